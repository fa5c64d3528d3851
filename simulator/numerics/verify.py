"""Does a tile program compute what its operator says? Its results against the float64 reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from foretile.hwmodels.schema import Chip
from foretile.kernels.dtypes import dtype
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Operator, Shape, Tolerance
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.execute import Progress, execute
from foretile.simulator.numerics.formats import ulp
from foretile.simulator.numerics.products import Accumulation

_SHOWN = 5  # mismatches listed
_ULP_BINS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class Mismatch:
    """One element that is far off."""

    index: tuple[int, ...]
    value: float
    reference: float


@dataclass(frozen=True)
class OutputCheck:
    """One output against its reference.

    ``norm_error`` ‖out − ref‖ / ‖ref‖, ``peak_error`` max |out − ref| / max |ref|; ``max_relative`` and
    ``mean_relative`` of |out − ref| / |ref| over elements that are not zero; ``cosine_distance`` 1 − cos;
    ``ulps``: share of the elements by distance in spacings of the stored type (upper edge of the bin);
    ``mismatches``: the worst elements beyond the peak tolerance.
    """

    name: str
    dtype: str
    elements: int
    norm_error: float
    peak_error: float
    max_relative: float
    mean_relative: float
    cosine_distance: float
    ulps: Mapping[str, float]
    mismatched: int
    mismatches: tuple[Mismatch, ...]
    within: bool


@dataclass(frozen=True)
class Verification:
    """One operator, shape and configuration on one kind of inputs.

    ``fault`` is what the executor refused, empty if it ran through.
    """

    operator: str
    shape: Shape
    config: Config
    inputs: str
    seed: int
    tolerance: Tolerance
    outputs: tuple[OutputCheck, ...]
    fault: str = ""
    blocks: int = 0

    @property
    def ok(self) -> bool:
        """Whether it ran, and every output is within the operator's tolerance."""
        return not self.fault and all(check.within for check in self.outputs)

    def to_json(self) -> dict[str, Any]:
        """Plain data, ``ok`` included."""
        return {**asdict(self), "ok": self.ok}


@dataclass(frozen=True)
class Settings:
    """How to run: ``blocks`` of each launch (None: all), reduced accumulation, a progress callback."""

    blocks: int | None = None
    accumulation: Mapping[str, Accumulation] = field(default_factory=dict)
    progress: Progress | None = None


def accumulation_of(chip: Chip) -> dict[str, Accumulation]:
    """How a chip's matrix engine sums products, by canonical dtype, where it is less than exact."""
    bits = chip.matrix.accumulate_fraction_bits or {}
    depth = chip.matrix.k_bytes.value
    return {
        dtype(short).name: Accumulation(fraction_bits=n.value, depth=int(depth / dtype(short).bytes))
        for short, n in bits.items()
    }


def input_kinds(operator: Operator) -> tuple[str, ...]:
    """The kinds of inputs there are for an operator: random ones, and those it names."""
    return ("random", *operator.adversarial)


def verify(
    operator: Operator,
    shape: Shape,
    config: Config,
    *,
    kind: str = "random",
    seed: int = 0,
    settings: Settings | None = None,
    programs: TileProgram | tuple[TileProgram, ...] | None = None,
) -> Verification:
    """Run one configuration on fresh inputs of ``kind`` and compare with the reference.

    ``shape`` is resolved (``operator.shape(...)``). ``programs`` replaces the operator's own (to see
    whether a fault is noticed).
    """
    how = settings or Settings()
    make = operator.inputs if kind == "random" else operator.adversarial[kind]
    inputs = make(shape, np.random.default_rng(seed))
    tolerance = operator.tolerance(shape)
    with np.errstate(all="ignore"):
        reference = operator.reference(shape, **inputs)
    try:
        ran = execute(
            programs if programs is not None else operator.program(shape, config),
            inputs,
            outputs=tuple(reference),
            dims=_sizes(operator, shape),
            blocks=how.blocks,
            seed=seed,
            accumulation=how.accumulation,
            progress=how.progress,
        )
    except NumericsError as error:
        return Verification(operator.name, shape, config, kind, seed, tolerance, (), str(error))
    results = {name: ran.tensors[name] for name in reference}
    stored = {name: str(results[name].dtype) for name in results}
    if how.blocks is None:  # what several answers are right for cannot be told from a part of it
        results = operator.comparable(shape, inputs, results)
        reference = operator.comparable(shape, inputs, reference)
    checks = tuple(
        compare(
            name,
            results[name],
            np.asarray(reference[name]),
            tolerance,
            stored.get(name, ""),
            ran.written.get(name),
        )
        for name in reference
    )
    return Verification(operator.name, shape, config, kind, seed, tolerance, checks, "", ran.blocks)


def _sizes(operator: Operator, shape: Shape) -> dict[str, int]:
    return {p.name: int(shape[p.name]) for p in operator.params if p.dynamic}


def compare(
    name: str,
    out: np.ndarray,
    ref: np.ndarray,
    tolerance: Tolerance,
    stored: str = "",
    written: np.ndarray | None = None,
) -> OutputCheck:
    """One output against its reference; where ``written`` is given, only elements that were computed."""
    stored = stored or str(out.dtype)
    kind = _canonical(stored)
    got, want = out.astype(np.float64), ref.astype(np.float64)
    if written is not None and written.shape == got.shape and not written.all():
        keep = written
    else:
        keep = np.ones(got.shape, dtype=bool)
    finite = np.isfinite(want)
    # Where the reference has no number, the result must have the same kind of none.
    wrong_kind = keep & ~finite & ~((got == want) | (np.isnan(got) & np.isnan(want)))
    wrong_kind |= keep & finite & ~np.isfinite(got)
    compared = keep & finite & np.isfinite(got)
    g, w = got[compared], want[compared]
    error = np.abs(g - w)
    size, largest = float(np.linalg.norm(w)), float(np.max(np.abs(w), initial=0.0))
    norm = _ratio(float(np.linalg.norm(g - w)), size)
    peak = _ratio(float(np.max(error, initial=0.0)), largest)
    nonzero = w != 0
    relative = error[nonzero] / np.abs(w[nonzero])
    cosine = (
        float(np.dot(g, w)) / (float(np.linalg.norm(g)) * size)
        if size and np.any(g)
        else 1.0 - float(size > 0)
    )
    far = np.zeros(got.shape, dtype=bool)
    far[compared] = error > tolerance.peak * largest
    bad = far | wrong_kind
    within = not wrong_kind.any() and norm <= tolerance.norm and peak <= tolerance.peak
    return OutputCheck(
        name=name,
        dtype=kind,
        elements=int(keep.sum()),
        norm_error=norm,
        peak_error=peak,
        max_relative=float(np.max(relative, initial=0.0)),
        mean_relative=float(np.mean(relative)) if relative.size else 0.0,
        cosine_distance=max(0.0, 1.0 - cosine) if size else float(np.any(g)),
        ulps=_ulp_shares(error, w, kind),
        mismatched=int(bad.sum()),
        mismatches=_worst(bad, got, want),
        within=within,
    )


def _canonical(stored: str) -> str:
    try:
        return dtype(stored).name
    except ValueError:
        return "float64"


def _ratio(error: float, size: float) -> float:
    if error == 0.0:
        return 0.0
    return error / size if size else float("inf")


def _ulp_shares(error: np.ndarray, want: np.ndarray, kind: str) -> dict[str, float]:
    if dtype(kind).kind != "float" or not error.size:
        return {}
    with np.errstate(over="ignore"):  # a zero's neighbours are the smallest numbers there are
        distance = error / ulp(want, kind).astype(np.float64)
    edges = np.searchsorted(_ULP_BINS, distance, side="left")
    counts = np.bincount(edges, minlength=len(_ULP_BINS) + 1) / error.size
    names = [f"≤ {edge:g}" for edge in _ULP_BINS] + [f"> {_ULP_BINS[-1]:g}"]
    return {n: float(c) for n, c in zip(names, counts, strict=True)}


def _worst(bad: np.ndarray, got: np.ndarray, want: np.ndarray) -> tuple[Mismatch, ...]:
    where = np.argwhere(bad)
    if not len(where):
        return ()
    with np.errstate(invalid="ignore"):
        size = np.abs(got[bad] - want[bad])
    order = np.argsort(-np.where(np.isnan(size), np.inf, size), kind="stable")[:_SHOWN]
    return tuple(
        Mismatch(tuple(int(i) for i in where[o]), float(got[tuple(where[o])]), float(want[tuple(where[o])]))
        for o in order
    )
