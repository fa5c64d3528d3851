"""The nucleus of nucleus sampling: its threshold without a sort, its reference, how far a token is off."""

from typing import Any

import numpy as np

from foretile.kernels import language as T

TINY = 1e-30
"""The least mass of a nucleus: TopP of zero keeps the most probable tokens instead of none."""

NO_TOKEN = 1 << 30

_EXPONENT_BITS = 7  # thresholds down to 2⁻¹²⁷, far below what float32 sums of probabilities notice
_MANTISSA_BITS = 23


@T.macro
def find_threshold(masses: Any, held: Any, share: Any, threshold: Any, bits: int) -> None:
    """``threshold`` = the largest float32 t for which the probabilities ≥ t sum to ``share`` of all or more.

    The sum falls as t grows, so t is found like a number is guessed: first its power of two, then its
    mantissa, ``bits`` bits with each call of ``masses(held, cuts, sums)``: the sums of what is not below
    each cut, of the rows that ``held`` stands for.
    All candidates are exact in float32, the last digit's odd half bits excepted: rounded, they are
    neighbours of t, which are candidates too.
    """
    rows = threshold.shape[0]
    cuts = [T.alloc_fragment((rows,), "float32") for _ in list(range(2**bits - 1))]
    sums = [T.alloc_fragment((rows,), "float32") for _ in list(range(2**bits - 1))]
    needed = T.alloc_fragment((rows,), "float32")
    base = T.alloc_fragment((rows,), "float32")
    step = T.alloc_fragment((rows,), "float32")
    candidates = list(enumerate(zip(cuts, sums, strict=True), start=1))

    T.clear(cuts[0])
    masses(held, cuts[:1], sums[:1])
    for i in T.Parallel(rows):
        needed[i] = T.max(T.min(share[i], 1.0) * sums[0][i], TINY)
    T.fill(threshold, 2.0)
    for powers in [2 ** (bits * digit) for digit in reversed(list(range(-(-_EXPONENT_BITS // bits))))]:
        # From a power of two that is too large to the smallest that still is.
        T.copy(threshold, base)
        for q, (cut, _) in candidates:
            if q * powers > 126:
                T.clear(cut)  # nothing is too large for zero
            else:
                for i in T.Parallel(rows):
                    cut[i] = base[i] * 2.0 ** (-q * powers)
        masses(held, cuts, sums)
        for _, (cut, total) in candidates:
            for i in T.Parallel(rows):
                threshold[i] = T.if_then_else(total[i] < needed[i], cut[i], threshold[i])
    for i in T.Parallel(rows):
        threshold[i] = threshold[i] * 0.5
        step[i] = threshold[i]
    for _digit in T.serial(-(-_MANTISSA_BITS // bits)):
        T.copy(threshold, base)
        for i in T.Parallel(rows):
            step[i] = step[i] * 2.0**-bits
        for q, (cut, _) in candidates:
            for i in T.Parallel(rows):
                cut[i] = base[i] + (step[i] if q == 1 else step[i] * float(q))
        masses(held, cuts, sums)
        for _, (cut, total) in candidates:
            for i in T.Parallel(rows):
                threshold[i] = T.if_then_else(total[i] >= needed[i], cut[i], threshold[i])


@T.macro
def places(P_local: Any, cdf: Any, cut: Any, wanted: Any, place: Any, first: Any, cols: int) -> None:
    """``place``: an index where the distribution function ``cdf`` has passed ``wanted``.

    Other tokens of the nucleus get 2·cols minus their index, so that without one that has passed (rounding,
    U next to 1) the minimum is the last one's.
    """
    for i, j in T.Parallel(*P_local.shape):
        place[i, j] = T.if_then_else(
            P_local[i, j] >= cut[i],
            T.if_then_else(cdf[i, j] > wanted[i], first + j, 2 * cols - (first + j)),
            NO_TOKEN,
        )


@T.macro
def decide(token: Any, cols: int) -> None:
    """The index behind the least of :func:`places`."""
    for i in T.Parallel(token.shape[0]):
        token[i] = T.if_then_else(token[i] < cols, token[i], 2 * cols - token[i])


def _threshold(p: np.ndarray, needed: float) -> float:
    """The largest value of ``p`` whose equals and betters sum to ``needed`` or more."""
    descending = np.sort(p)[::-1]
    enough = np.cumsum(descending) >= needed
    return float(descending[np.argmax(enough)]) if enough.any() else float(p[p > 0].min())


def _needed(p: np.ndarray, share: float) -> float:
    return max(min(share, 1.0) * float(np.cumsum(np.sort(p)[::-1])[-1]), TINY)


def _token(p: np.ndarray, u: float, share: float) -> int:
    kept = np.where(p >= _threshold(p, _needed(p, share)), p, 0.0)
    cdf = np.cumsum(kept)
    passed = (cdf > u * cdf[-1]) & (kept > 0)
    return int(np.argmax(passed)) if passed.any() else int(np.flatnonzero(kept)[-1])


def sample(p: np.ndarray, u: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Tokens of (rows,) for probabilities of (rows, cols), uniform numbers and TopP of (rows,)."""
    tokens = [_token(*row) for row in zip(p, u, share, strict=True)]
    return np.array(tokens, dtype=np.float64)


def _miss(p: np.ndarray, u: float, needed: float, cut: float, token: int) -> float:
    """How far ``token`` is from being drawn from the tokens ≥ ``cut``, and these from being the nucleus."""
    mass, above = float(p[p >= cut].sum()), float(p[p > cut].sum())
    better = float(p[p > p[token]].sum())
    kept = np.where(p >= cut, p, 0.0)
    before = float(kept[:token].sum())
    wanted = u * mass
    return max(
        0.0,
        needed - mass,
        above - needed,
        better - needed,
        before - wanted,
        wanted - before - float(kept[token]),
    )


def deviation(p: np.ndarray, u: np.ndarray, share: np.ndarray, token: np.ndarray) -> np.ndarray:
    """How far tokens of (rows,) are from being right, as shares of their rows' sums; 1 for no token at all.

    Zero if U times the nucleus' sum lies in the token's interval of the distribution function. A program
    whose sums are rounded may also end the nucleus at the next larger or smaller probability: then the
    mass by which that nucleus misses TopP counts, if it is less.
    """
    off = np.ones(p.shape[0])
    for r, (row, chance, part, t) in enumerate(zip(p, u, share, token, strict=True)):
        if not 0 <= t < row.size or row[t] <= 0.0:
            continue
        needed, values = _needed(row, part), np.unique(row[row > 0])
        at = int(np.searchsorted(values, _threshold(row, needed)))
        cuts = values[max(0, at - 1) : at + 2]
        off[r] = min(_miss(row, chance, needed, float(cut), int(t)) for cut in cuts) / row.sum()
    return off
