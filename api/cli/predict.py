"""``foretile predict | explain | trace``: one operator, how long and why."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from foretile.cli.arguments import (
    CONFIG,
    JSON,
    OPERATOR,
    SHAPE,
    TENSORS,
    ArgumentError,
    arrays,
    comma_list,
    pairs,
)
from foretile.cli.errors import WRONG_REQUEST, reported

if TYPE_CHECKING:
    from foretile.compiled import Comparison
    from foretile.simulator.prediction import Explanation, Prediction

_FELT = 0.0005  # a smaller relative change of the time would print as 0.0 %
_SHAPE_EXAMPLE = "m=4096 n=7168 k=2048"
_CONFIG_EXAMPLE = "--config block_m=128 num_stages=3"


class Model(enum.StrEnum):
    """How a time is found."""

    ENGINE = "engine"
    COST_MODEL = "cost-model"


class Toolchain(enum.StrEnum):
    """Who decides a kernel's roles, registers and instructions."""

    LIBRARY = "library"
    TILELANG = "tilelang"


class Cache(enum.StrEnum):
    """What the L2 holds when the kernel starts."""

    COLD = "cold"
    WARM = "warm"


_CACHE = typer.Option(
    Cache.COLD,
    "--cache",
    help="The L2 at the start: empty of the operands, or as repeating the kernel on them leaves it.",
    case_sensitive=False,
)
_CHIPS = typer.Option(
    ..., "--chip", metavar="ID", help="A chip's id or a YAML file; repeat to compare.", show_default=False
)
_CHIP = typer.Option(..., "--chip", metavar="ID", help="A chip's id or a YAML file.", show_default=False)
_MODEL = typer.Option(
    Model.ENGINE,
    "--model",
    help="The event engine, or the faster closed-form cost model.",
    case_sensitive=False,
)
_EXTERN = typer.Option(
    None,
    "--extern",
    metavar="NAME=N",
    help="Instructions that a call of opaque device code takes in each thread; repeat for more.",
    show_default=False,
)
_TRIPS = typer.Option(
    None,
    "--trips",
    metavar="LINE=N",
    help="How often the loop at this line of the kernel runs, where its own values decide; repeat for more.",
    show_default=False,
)
_OUT = typer.Option(
    ..., "--out", "-o", help="Where to write; compressed if it ends in .gz.", show_default=False
)
_COMPILED = typer.Option(
    False,
    "--compiled",
    help="Compile it with the installed TileLang and nvcc, and say where they did otherwise than assumed. "
    "Predicts it as they make it (--toolchain tilelang). Without this option only what has been compiled "
    "before is compared.",
)
_TOOLCHAIN = typer.Option(
    None,
    "--toolchain",
    help="Who decides roles, registers and instructions: the authors of a tuned library, or TileLang's "
    "compiler and nvcc. Default: tilelang for kernels written for it, library for the others.",
    show_default=False,
    case_sensitive=False,
)
_OPTIONS = {
    "op",
    "chip",
    "config",
    "model",
    "cache",
    "compiled",
    "extern",
    "tensors",
    "toolchain",
    "trips",
}  # of predict(): not names a shape parameter can have


def _given(shape: list[str], config: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Shape and configuration from their words."""
    sizes = pairs(shape or (), example=_SHAPE_EXAMPLE)
    for name in sizes:
        if name in _OPTIONS:
            raise ArgumentError(f"{name} is no shape parameter; write --{name} {sizes[name]}")
    return dict(sizes), pairs(config or (), example=_CONFIG_EXAMPLE)


def _assumed(
    extern: list[str] | None, trips: list[str] | None, tensors: Path | None, toolchain: Toolchain | None
) -> dict[str, Any]:
    """What the user says of opaque code, of loops, of operands and of the compiler."""
    found: dict[str, Any] = {} if toolchain is None else {"toolchain": toolchain.value}
    if tensors is not None:
        found["tensors"] = arrays(tensors)
    if extern:
        found["extern"] = {
            name: _number(text, f"--extern {name}={text}", float)
            for name, text in pairs(extern, example="--extern decode_fp4=12").items()
        }
    if trips:
        found["trips"] = {
            _number(line, f"--trips {line}={text}", int): _number(text, f"--trips {line}={text}", int)
            for line, text in pairs(trips, example="--trips 57=4").items()
        }
    return found


def _number(text: str, given: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ArgumentError(f"{given}: {text!r} is not a {'whole ' if kind is int else ''}number") from None


def predict(
    op: str = OPERATOR,
    shape: list[str] = SHAPE,
    chip: list[str] = _CHIPS,
    config: list[str] = CONFIG,
    model: Model = _MODEL,
    cache: Cache = _CACHE,
    extern: list[str] | None = _EXTERN,
    trips: list[str] | None = _TRIPS,
    tensors: Path | None = TENSORS,
    toolchain: Toolchain | None = _TOOLCHAIN,
    as_json: bool = JSON,
) -> None:
    """How long an operator takes, with interval, bound and breakdown.

    JSON: one object for one chip, a list of them for several. Exit code 2: for one of them there is none.
    """
    from foretile.cli import show

    with reported(op):
        chips = comma_list(chip)
        if not chips:
            raise ArgumentError("--chip needs an id (foretile chips lists them) or a YAML file")
        sizes, chosen = _given(shape, config)
        from foretile.frontdoor import predict as run

        kind: Literal["engine", "cost_model"] = "engine" if model is Model.ENGINE else "cost_model"
        state: Literal["cold", "warm"] = "cold" if cache is Cache.COLD else "warm"
        known = _assumed(extern, trips, tensors, toolchain)

        def on(name: str) -> Prediction:
            return run(op, name, config=chosen or None, model=kind, cache=state, **known, **sizes)

        found, refused = _on_each(on, chips)
        if as_json:
            objects = [
                found[name].to_json() if name in found else {"chip": name, "error": str(refused[name])}
                for name in chips
            ]
            show.emit_json(objects[0] if len(objects) == 1 else objects)
        else:
            _print_predictions(list(found.values()), list(found))
        for name, error in refused.items():
            show.console(err=True).print(f"{name}: {error}", markup=False)
        if refused:
            raise typer.Exit(WRONG_REQUEST)


def _on_each(
    on: Callable[[str], Prediction], chips: Sequence[str]
) -> tuple[dict[str, Prediction], dict[str, Exception]]:
    """Predictions by chip, and why there is none; an error where there is none at all.

    A program may fit one chip and not another, and a file may trace for one only.
    """
    from foretile.hwmodels.incomplete import IncompleteChipError
    from foretile.kernels.errors import TraceError
    from foretile.simulator.machine import SimulationError

    found: dict[str, Prediction] = {}
    refused: dict[str, Exception] = {}
    for name in chips:
        try:
            found[name] = on(name)
        except (SimulationError, TraceError, IncompleteChipError) as error:
            refused[name] = error
    if not found:
        raise next(iter(refused.values()))
    return found, refused


def _shape_words(shape: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in shape.items())


def _print_predictions(found: Sequence[Prediction], chips: Sequence[str]) -> None:
    from rich.text import Text

    from foretile.cli import show
    from foretile.hwmodels import load_chip
    from foretile.report import units
    from foretile.report.grounds import achieved

    out = show.console()
    first = found[0]
    out.print(Text.assemble((first.operator, "bold cyan"), "  ", _shape_words(first.shape)))
    machines = [load_chip(name) for name in chips]
    reached = [achieved(p, m) for p, m in zip(found, machines, strict=True)]
    if len(found) == 1:
        resource, share = reached[0].of_peak
        rates = f"{units.flop_rate(reached[0].flop_per_s)}, {units.byte_rate(reached[0].dram_bytes_per_s)}"
        out.print(
            Text.assemble(
                f"{machines[0].name}: ",
                (units.seconds(first.time_s), "bold green"),
                f"  [{units.interval(*first.interval_s)}]  ",
                f"{rates}  ({units.percent(share)} of {resource})",
            )
        )
        out.print(Text.assemble("bound by ", (first.bound, "bold"), _also_busy(first)))
        out.print(show.breakdown(first.breakdown_s, first.time_s))
        if first.config:
            out.print(Text(f"configuration: {_shape_words(first.config)}"))
        if first.occupancy:
            out.print(Text(f"occupancy: {_occupancy(first.occupancy)}"))
        if assumed := first.model.get("assumed"):
            out.print(Text(f"as {first.model['toolchain']} makes it: {'; '.join(assumed)}"))
    else:
        made = show.table(
            "chip", "time", "90 % interval", "slower", "FLOP rate", "DRAM rate", "of peak", "bound",
            right=("time", "90 % interval", "slower", "FLOP rate", "DRAM rate", "of peak"),
        )  # fmt: skip
        best = min(p.time_s for p in found)
        for p, m, r in sorted(zip(found, machines, reached, strict=True), key=lambda row: row[0].time_s):
            made.add_row(
                m.id,
                Text(units.seconds(p.time_s), style="bold green" if p.time_s == best else "bold"),
                units.interval(*p.interval_s),
                units.ratio(p.time_s / best),
                units.flop_rate(r.flop_per_s),
                units.byte_rate(r.dram_bytes_per_s),
                units.percent(r.of_peak[1]),
                p.bound,
            )
        out.print(made)
    _print_warnings(found)


def _also_busy(prediction: Prediction) -> str:
    busy = sorted(prediction.utilisation.items(), key=lambda part: -part[1])[:3]
    return (
        "  (busy: " + ", ".join(f"{name} {share * 100:.0f} %" for name, share in busy) + ")" if busy else ""
    )


def _occupancy(occupancy: Mapping[str, Any]) -> str:
    parts = []
    for name, value in occupancy.items():
        if name == "spilled_bytes_per_thread" and not value:
            continue
        text = f"{value:.3g}" if isinstance(value, float) else str(value)
        parts.append(f"{name.replace('_', ' ')} {text}")
    return ", ".join(parts)


def _print_warnings(found: Sequence[Prediction]) -> None:
    from rich.text import Text

    from foretile.cli import show
    from foretile.report.grounds import standing, warnings

    err = show.console(err=True)
    for p in found:
        for line in (standing(p.model), *warnings(p.model)):
            err.print(Text.assemble(("note: ", "yellow"), f"{p.chip}: {line}"))


def explain(
    op: str = OPERATOR,
    shape: list[str] = SHAPE,
    chip: str = _CHIP,
    config: list[str] = CONFIG,
    compiled: bool = _COMPILED,
    extern: list[str] | None = _EXTERN,
    trips: list[str] | None = _TRIPS,
    tensors: Path | None = TENSORS,
    toolchain: Toolchain | None = _TOOLCHAIN,
    as_json: bool = JSON,
) -> None:
    """Why an operator takes as long as it does, and what would make it faster."""
    from foretile.cli import show

    with reported(op):
        sizes, chosen = _given(shape, config)
        from foretile.compiled import of_prediction, require_compiler
        from foretile.frontdoor import explain as run

        if compiled:
            require_compiler(chip)
            toolchain = toolchain or Toolchain.TILELANG
        known = _assumed(extern, trips, tensors, toolchain)
        found = run(op, chip, config=chosen or None, **known, **sizes)
        launches = of_prediction(op, chip, found.prediction, compile_now=compiled)
        if as_json:
            more = {"compiled": [one.to_json() for one in launches]} if launches else {}
            show.emit_json({**found.to_json(), **more})
            return
        _print_explanation(found)
        _print_compiled(launches)


def _print_compiled(launches: Sequence[Comparison]) -> None:
    from rich.text import Text

    from foretile.cli import show

    out = show.console()
    for one in launches:
        if one.refused:
            out.print(Text(f"TileLang, {one.arch}, {one.kernel}: {one.refused}"))
            continue
        made = show.table(f"{one.kernel} by TileLang for {one.arch}", "assumed", "compiled", "",
                          right=("assumed", "compiled"))  # fmt: skip
        for fact in one.facts:
            made.add_row(fact.what, fact.assumed, fact.actual, "" if fact.same else "differs")
        out.print(made)


def _print_explanation(found: Explanation) -> None:
    from rich.text import Text

    from foretile.cli import show
    from foretile.report import units

    out, p = show.console(), found.prediction
    out.print(
        Text.assemble((p.operator, "bold cyan"), "  ", _shape_words(p.shape), "  on ", (p.chip, "bold"))
    )
    out.print(Text.assemble((units.seconds(p.time_s), "bold green"), f"  [{units.interval(*p.interval_s)}]"))
    for sentence in found.sentences:
        out.print(Text(f"· {sentence}"))
    out.print(show.breakdown(p.breakdown_s, p.time_s))
    bounds = show.table("no faster than, by", "time", "of the total", "", right=("time", "of the total"))
    for name, value in found.bounds_s.items():
        share = value / p.time_s
        bounds.add_row(name.replace("_", " "), units.seconds(value), units.percent(share), show.bar(share))
    out.print(bounds)
    gains = show.table("10 % more of", "time changes by", right=("time changes by",))
    felt = {name: change for name, change in found.gains.items() if abs(change) >= _FELT}
    for name, change in sorted(felt.items(), key=lambda part: part[1]):
        gains.add_row(name.replace("_", " "), f"{change * 100:+.1f} %".replace("-", "−"))
    if felt:
        out.print(gains)
    _print_warnings([p])


def trace(
    op: str = OPERATOR,
    shape: list[str] = SHAPE,
    chip: str = _CHIP,
    out: Path = _OUT,
    config: list[str] = CONFIG,
    tensors: Path | None = TENSORS,
    as_json: bool = JSON,
) -> None:
    """Write the simulated timeline as a trace that ui.perfetto.dev opens."""
    from foretile.cli import show

    with reported(op):
        sizes, chosen = _given(shape, config)
        from foretile.report.output import require_file, write_all

        require_file(out)
        from foretile.frontdoor import trace_events

        events = trace_events(op, chip, config=chosen or None, tensors=arrays(tensors), **sizes)
        write_all({out: json.dumps(events, default=show.plain, separators=(",", ":"))})
        count = len(events.get("traceEvents", ()))
        if as_json:
            show.emit_json({"file": str(out), "events": count})
            return
        typer.echo(str(out))
        show.console(err=True).print(
            f"{count:,} events. Open https://ui.perfetto.dev and drop the file onto the page "
            "(it stays on your machine).",
            markup=False,
        )
