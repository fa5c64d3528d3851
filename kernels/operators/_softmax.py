"""The step that tiled attention shares: an online softmax over tiles of scores (FlashAttention-2)."""

from typing import Any, NamedTuple

from foretile.kernels import language as T
from foretile.kernels.operators._common import LOWEST


class Rows(NamedTuple):
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
    scores_max, scores_max_prev, scores_scale, scores_sum, logsum = rows
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
