"""``foretile export``: an operator as TileLang source, CUDA C++ or machine code."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foretile.cli.arguments import CONFIG, JSON, OPERATOR, SHAPE, ArgumentError, comma_list, pairs
from foretile.cli.errors import reported

if TYPE_CHECKING:
    from foretile.export import Exported, Traced

_SHAPE_EXAMPLE = "m=4096 n=7168 k=2048"
_CONFIG_EXAMPLE = "--config block_m=128 num_stages=3"
_SWITCH_EXAMPLE = "--pass-config tl.disable_tma_lower=true"


class To(enum.StrEnum):
    """What comes out."""

    TILELANG = "tilelang"
    CUDA = "cuda"
    CUBIN = "cubin"


_TO = typer.Option(
    ..., "--to", help="TileLang source, CUDA C++, or machine code.", case_sensitive=False, show_default=False
)
_ARCH = typer.Option(
    "", "--arch", help="sm_80, sm_89, sm_90a or sm_100a.  [default: the chip's]", show_default=False
)
_CHIP = typer.Option(
    "", "--chip", metavar="ID", help="Take the configuration that is best on this chip.", show_default=False
)
_DYNAMIC = typer.Option(
    None, "--dynamic", metavar="NAME …", help="Parameters that stay symbolic in the kernel (m,n)."
)
_SWITCH = typer.Option(
    None,
    "--pass-config",
    metavar="KEY=VALUE",
    help="A switch of TileLang's compiler, over the program's own (tl.disable_tma_lower=true); repeatable.",
)
_OUT = typer.Option(
    None,
    "--out",
    "-o",
    help="Where to write; how it is launched goes beside it, as .json.",
    show_default=False,
)


def export(
    op: str = OPERATOR,
    shape: list[str] = SHAPE,
    to: To = _TO,
    arch: str = _ARCH,
    chip: str = _CHIP,
    config: list[str] = CONFIG,
    dynamic: list[str] = _DYNAMIC,
    pass_config: list[str] = _SWITCH,
    out: Path = _OUT,
    as_json: bool = JSON,
) -> None:
    """Write an operator as TileLang source, or compile it with the installed TileLang; needs no GPU."""
    from foretile.cli import show

    with reported(op):
        from foretile import export as run
        from foretile.report.output import require_file, write_all

        if out is not None:
            require_file(out)
        elif to is To.CUBIN and not as_json:
            raise ArgumentError("--to cubin writes a file; say where with --out")
        target = "" if to is To.TILELANG else _architecture(arch, chip)
        found = run.traced(
            op,
            pairs(shape or (), example=_SHAPE_EXAMPLE),
            config=pairs(config or (), example=_CONFIG_EXAMPLE) or None,
            chip=chip or None,
            dynamic=comma_list(dynamic or ()),
        )
        if to is To.TILELANG:
            text = run.as_tilelang(found)
            if out is not None:
                write_all({out: text})
            if as_json:
                kept = {"file": str(out)} if out is not None else {"source": text}
                show.emit_json({**_grounds(found), "to": "tilelang", **kept})
            else:
                typer.echo(text if out is None else str(out), nl=out is not None)
            return
        switches = _switches(pass_config or ())
        made = _compiled(found, target, to is To.CUBIN, switches)
        files = run.places(out, made) if out is not None else []
        if out is not None:
            write_all(run.written(out, made))
        if as_json:
            launches = run.launches_json(made, files)
            if out is None:
                launches = [{**told, "source": one.source} for told, one in zip(launches, made, strict=True)]
            show.emit_json({**_grounds(found), "to": str(to), "launches": launches})
        elif out is None:
            typer.echo("\n".join(one.source for one in made), nl=False)
        else:
            for file in (*files, out.with_suffix(".json")):
                typer.echo(str(file))
            _print_launches(made)


def _switches(words: list[str] | tuple[()]) -> dict[str, Any]:
    """Switches with their values as the compiler takes them: truth values, numbers, else texts."""
    known = {"true": True, "false": False}
    found: dict[str, Any] = {}
    for name, text in pairs(words, example=_SWITCH_EXAMPLE).items():
        number = int(text) if text.lstrip("-").isdigit() else text
        found[name] = known.get(text.lower(), number)
    return found


def _architecture(arch: str, chip: str) -> str:
    from foretile.kernels.tilelang.compiler import ARCHITECTURES, check_architecture

    if arch:
        return check_architecture(arch)
    if not chip:
        raise ArgumentError(f"--arch is needed: {', '.join(ARCHITECTURES)}; or --chip, which has one")
    from foretile.compiled import architecture
    from foretile.hwmodels import load_chip

    found = architecture(load_chip(chip))
    if not found:
        raise ArgumentError(f"{chip} takes no CUDA code of {', '.join(ARCHITECTURES)}; give --arch")
    return found


def _compiled(
    found: Traced, arch: str, machine_code: bool, switches: Mapping[str, Any]
) -> tuple[Exported, ...]:
    from foretile.cli import show
    from foretile.export import as_cuda

    with show.console(err=True).status(f"{found.name} for {arch}") as status:
        return as_cuda(found, arch, machine_code=machine_code, pass_configs=switches, progress=status.update)


def _grounds(found: Traced) -> dict[str, object]:
    return {"operator": found.name, "shape": dict(found.shape), "config": dict(found.config)}


def _print_launches(made: tuple[Exported, ...]) -> None:
    from foretile.cli import show

    numbers = ("grid", "threads", "shared memory (bytes)", "registers", "spilled (bytes)")
    table = show.table("kernel", *numbers, right=numbers)
    for one in made:
        static = one.resources.static_shared_bytes if one.resources else 0
        table.add_row(
            one.program.name,
            " × ".join(map(str, one.recipe.grid)),
            str(one.recipe.threads),
            str(one.recipe.shared_bytes + static),
            str(one.resources.registers) if one.resources else "",
            str(one.resources.spill_store_bytes) if one.resources else "",
        )
    show.console(err=True).print(table)
