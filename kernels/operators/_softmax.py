"""What tiled attention shares: an online softmax over tiles of scores (FlashAttention-2), its rounding."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.dtypes import dtype
from foretile.kernels.operator import Arrays, Shape, Tolerance
from foretile.kernels.operators._common import LOWEST, smallest_normal


@dataclass(frozen=True)
class Rows:
    """What an online softmax keeps for each row: fragments of (rows,), float32.

    ``scores_max`` is the running maximum of the raw scores, ``logsum`` the running sum of their
    exponentials relative to it; the others hold one step's intermediate values.
    """

    scores_max: Any
    scores_max_prev: Any
    scores_scale: Any
    scores_sum: Any
    logsum: Any


@T.macro
def alloc_rows(rows: int) -> Rows:
    """Fragments for an online softmax of ``rows`` rows, not yet initialised."""
    scores_max = T.alloc_fragment((rows,), "float32")
    scores_max_prev = T.alloc_fragment((rows,), "float32")
    scores_scale = T.alloc_fragment((rows,), "float32")
    scores_sum = T.alloc_fragment((rows,), "float32")
    logsum = T.alloc_fragment((rows,), "float32")
    return Rows(scores_max, scores_max_prev, scores_scale, scores_sum, logsum)


@T.macro
def clear_rows(rows: Rows, acc_o: Any) -> None:
    """Before the first tile: no result, no sum, a maximum below every score."""
    T.clear(acc_o)
    T.clear(rows.logsum)
    T.fill(rows.scores_max, LOWEST)


@T.macro
def online_softmax(acc_s: Any, acc_o: Any, rows: Rows, scale: float) -> None:
    """One tile: raw scores ``acc_s`` of (rows, keys) become weights 2^(scale·(score - maximum)).

    Where the maximum has risen, the sum and the result ``acc_o`` of (rows, head_dim) so far are
    scaled down to it.
    """
    scores_max, scores_max_prev = rows.scores_max, rows.scores_max_prev
    scores_scale, scores_sum, logsum = rows.scores_scale, rows.scores_sum, rows.logsum
    T.copy(scores_max, scores_max_prev)
    T.reduce_max(acc_s, scores_max, dim=1, clear=False)
    for i in T.Parallel(acc_s.shape[0]):
        scores_scale[i] = T.exp2(scores_max_prev[i] * scale - scores_max[i] * scale)
    for i, j in T.Parallel(*acc_s.shape):
        acc_s[i, j] = T.exp2(acc_s[i, j] * scale - scores_max[i] * scale)
    T.reduce_sum(acc_s, scores_sum, dim=1)
    for i in T.Parallel(acc_s.shape[0]):
        logsum[i] = logsum[i] * scores_scale[i] + scores_sum[i]
    for i, j in T.Parallel(*acc_o.shape):
        acc_o[i, j] = acc_o[i, j] * scores_scale[i]


_RISE = 6.0  # powers of two by which weights may exceed 1 before anything is scaled down


@T.macro
def lazy_softmax(acc_s: Any, acc_o: Any, rows: Rows, scale: float) -> None:
    """As :func:`online_softmax`, but the result is scaled down only where a maximum has risen far.

    ``scores_max`` stays what the sums refer to while no row's maximum is more than ``_RISE`` powers of
    two above it: weights reach 2^6 then. Scores of many keys seldom rise further once a tile or two are
    seen (FlashAttention 4; FlashMLA's sparse prefill for sm_100), so that branch is not timed.
    """
    scores_max, scores_max_prev = rows.scores_max, rows.scores_max_prev
    scores_scale, scores_sum, logsum = rows.scores_scale, rows.scores_sum, rows.logsum
    rise = T.alloc_fragment((1,), "float32")
    T.copy(scores_max, scores_max_prev)
    T.reduce_max(acc_s, scores_max, dim=1, clear=False)
    for i in T.Parallel(acc_s.shape[0]):
        scores_scale[i] = scores_max[i] * scale - scores_max_prev[i] * scale
    T.reduce_max(scores_scale, rise, dim=0)
    if T.likely(rise[0] <= _RISE):
        T.copy(scores_max_prev, scores_max)
    else:
        for i in T.Parallel(acc_s.shape[0]):
            scores_scale[i] = T.exp2(-scores_scale[i])
            logsum[i] = logsum[i] * scores_scale[i]
        for i, j in T.Parallel(*acc_o.shape):
            acc_o[i, j] = acc_o[i, j] * scores_scale[i]
    for i, j in T.Parallel(*acc_s.shape):
        acc_s[i, j] = T.exp2(acc_s[i, j] * scale - scores_max[i] * scale)
    T.reduce_sum(acc_s, scores_sum, dim=1)
    for i in T.Parallel(acc_s.shape[0]):
        logsum[i] = logsum[i] + scores_sum[i]


@T.macro
def load_keys(src: Any, stored: Any, staged: Any, shared: Any) -> None:
    """A tile of K or V, ``src``, into ``shared``; through registers where its type is converted.

    ``stored`` is the tile in the type of ``src`` (``shared`` itself without a conversion) and
    ``staged`` the fragment between the two, or None.
    """
    T.copy(src, stored)
    if staged is not None:
        T.copy(stored, staged)
        T.copy(staged, shared)


def attention_tolerance(shape: Shape) -> Tolerance:
    """Attention weights rounded to ``dtype`` for the second product, and the result rounded once.

    A weight is off by at most the unit roundoff of its type (in fp8, weights below 1/64 of the
    row's largest by at most 1/1024 of that one, which only long tails of a row add up to anything).
    Their sum, by which the result is divided, is that of unrounded weights, so weights that all
    round alike shift the result as a whole by as much. fp8 attention writes bf16.
    """
    weight, result = (
        dtype(name) for name in (shape["dtype"], "bf16" if shape["dtype"] == "fp8" else shape["dtype"])
    )
    u = 2.0 ** -(1 + weight.mantissa_bits) + 2.0 ** -(1 + result.mantissa_bits)
    return Tolerance(norm=u, peak=2.0 * u)


def attention_adversarial(
    inputs: Callable[[Shape, np.random.Generator], Arrays],
) -> Mapping[str, Callable[[Shape, np.random.Generator], Arrays]]:
    """Operands that provoke a softmax's special cases, from an operator's ``inputs``.

    Q is (batch, …, head_dim); K and V have their keys along the second axis.
    """

    def equal_scores(shape: Shape, rng: np.random.Generator) -> Arrays:
        """Every key the same: all weights of a row are equal."""
        found = inputs(shape, rng)
        return {**found, "K": np.broadcast_to(found["K"][:, :1], found["K"].shape).copy()}

    def huge_score(shape: Shape, rng: np.random.Generator) -> Arrays:
        """One key in the middle takes all the weight of the queries that see it."""
        found = inputs(shape, rng)
        found["Q"] = np.abs(found["Q"])
        found["K"][:, found["K"].shape[1] // 2] = 64.0
        return found

    def wide_range(shape: Shape, rng: np.random.Generator) -> Arrays:
        """Scores eight times as far apart, and values from 2^-6 to 2^6."""
        found = inputs(shape, rng)
        columns = 2.0 ** (np.arange(shape["head_dim"]) % 13 - 6)
        for name, factor in (("Q", 8.0), ("V", columns)):
            found[name] = (found[name].astype(np.float64) * factor).astype(found[name].dtype)
        return found

    def denormals(shape: Shape, rng: np.random.Generator) -> Arrays:
        """Keys of subnormal numbers: scores that all but vanish."""
        found = inputs(shape, rng)
        stored = found["K"].dtype
        normal = smallest_normal(shape["kv_dtype"])
        return {**found, "K": rng.uniform(-normal, normal, found["K"].shape).astype(stored)}

    return {
        "equal_scores": equal_scores,
        "huge_score": huge_score,
        "wide_range": wide_range,
        "denormals": denormals,
    }
