"""Mixture of experts on the host: loads, assignments, destination rows, the gate in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.operator import Arrays, OperatorError, Shape
from foretile.kernels.operators._common import whole

SCALING = 2.5
"""``routed_scaling_factor`` of DeepSeek-V3: the weights of a token's experts sum to it."""

EPS = 1e-20
"""Added to the sum of a token's scores before the division, as DeepSeek-V3's released model does."""

ALIGNMENT = 128
"""Rows to which DeepGEMM's contiguous layout pads every expert: one tile never holds two experts."""

_RESOLUTION = (
    1e-5  # differences of scores (0 … 1) below it are not resolved in float32 with fast exponentials
)


_EMPTIEST, _FULLEST = 0.01, 2.0  # relative loads where there are no more choices than experts
_FULL_SHARE = 0.8  # of the tokens, for the fullest expert otherwise


def expert_loads(tokens: int, experts: int, topk: int, distribution: int) -> np.ndarray:
    """Rows of each expert, (experts,) int64: whole numbers that sum to tokens·topk, none above ``tokens``.

    0 is the even split. Otherwise loads have the density x^(−distribution / 100) between 1 and 0.8·tokens,
    or, where there are no more choices than experts, between 0.01 and 2 (aiconfigurator's power law):
    the experts take its quantiles, scaled to tokens·topk and rounded, in a fixed random order. An expert
    that would get more rows than there are tokens gets one of each token; what is then missing goes, row
    by row, to the emptiest expert, and what is too much comes from the fullest.
    """
    total = tokens * topk
    if not distribution:
        loads: np.ndarray = np.full(experts, total // experts, dtype=np.int64)
        loads[: total % experts] += 1
        return loads
    loads = _whole_loads(_rounded_loads(tokens, experts, total, distribution), tokens, total)
    return np.asarray(np.random.default_rng(experts).permutation(loads))


def _rounded_loads(tokens: int, experts: int, total: int, distribution: int) -> np.ndarray:
    """The power law's quantiles scaled to ``total`` and rounded, fullest first."""
    low, high = (1.0, _FULL_SHARE * tokens) if total > experts else (_EMPTIEST, _FULLEST)
    weight = _power_law(distribution / 100, low, high, (np.arange(experts)[::-1] + 0.5) / experts)
    return np.asarray(np.round(total * weight / weight.sum()).astype(np.int64))


def _power_law(exponent: float, low: float, high: float, share: np.ndarray) -> np.ndarray:
    """Quantiles of the density x^(−exponent) between ``low`` and ``high``."""
    power = 1.0 - exponent
    if abs(power) < 1e-9:
        return np.asarray(low * (high / low) ** share)
    return np.asarray(((high**power - low**power) * share + low**power) ** (1.0 / power))


def _whole_loads(wanted: np.ndarray, tokens: int, total: int) -> np.ndarray:
    """``wanted`` loads, none above ``tokens``, brought to a sum of ``total``."""
    loads = np.minimum(wanted, tokens)
    filled = _raised(loads, int((wanted - loads).sum()))
    missing = total - int(filled.sum())
    return _raised(filled, missing) if missing >= 0 else tokens - _raised(tokens - filled, -missing)


def _raised(loads: np.ndarray, rows: int) -> np.ndarray:
    """``rows`` more, each to the expert that has fewest by then."""
    order = np.argsort(loads, kind="stable")
    low = loads[order]
    # Rows that bring all experts before the i-th up to its load.
    needed = low * np.arange(len(low)) - (np.cumsum(low) - low)
    raised = int(np.searchsorted(needed, rows, side="right"))
    level, left = divmod(rows + int(low[:raised].sum()), raised)
    found = loads.copy()
    found[order[:raised]] = level + (np.arange(raised) < left)
    return found


def assignment(rng: np.random.Generator, loads: np.ndarray, tokens: int, topk: int) -> np.ndarray:
    """Distinct experts for every token, (tokens, topk) int32, so that expert e has ``loads[e]`` tokens.

    The experts' copies are dealt to the tokens round robin: as none has more copies than there are
    tokens, no token gets one twice.
    """
    copies = np.repeat(np.arange(len(loads), dtype=np.int32), loads)
    dealt: np.ndarray = rng.permutation(copies.reshape(topk, tokens).T)
    return rng.permuted(dealt, axis=1)


def rows_bound(tokens: Any, experts: Any, topk: Any, align: int) -> Any:
    """Rows that hold any routing: tokens·topk, and for every expert that may have some its padding.

    A multiple of ``align``; of numbers, symbolic dimensions or arrays.
    """
    filled = tokens * topk
    if isinstance(filled, np.ndarray) or isinstance(experts, np.ndarray):
        used = np.minimum(filled, experts)
    else:
        used = T.min(experts, filled)
    return (filled + used * (align - 1) + align - 1) // align * align


def destination_rows(indices: np.ndarray, experts: int, align: int) -> np.ndarray:
    """Row of every (token, choice) in expert-contiguous order, (tokens, topk) int32.

    Expert after expert, each starting at a multiple of ``align``, its tokens in their order.
    """
    flat = indices.ravel()
    count = np.bincount(flat, minlength=experts)
    padded = -(-count // align) * align
    begin = np.cumsum(padded) - padded
    order = np.argsort(flat, kind="stable")
    rank = np.empty(len(flat), dtype=np.int64)
    rank[order] = np.arange(len(flat)) - np.repeat(np.cumsum(count) - count, count)
    rows: np.ndarray = (begin[flat] + rank).reshape(indices.shape).astype(np.int32)
    return rows


def tile_tables(loads: np.ndarray, align: int, tiles: int) -> tuple[np.ndarray, np.ndarray]:
    """Expert and filled rows of each tile of ``align`` rows, both (tiles,) int32; unused tiles have none."""
    per_expert = -(-loads // align)
    owner = np.repeat(np.arange(len(loads)), per_expert)
    first = np.cumsum(per_expert) - per_expert
    filled = np.minimum(loads[owner] - (np.arange(len(owner)) - first[owner]) * align, align)
    expert = np.full(tiles, len(loads) - 1, dtype=np.int32)
    rows = np.zeros(tiles, dtype=np.int32)
    expert[: len(owner)], rows[: len(owner)] = owner, filled
    return expert, rows


def routing_sizes(shape: Shape) -> tuple[int, int, int]:
    """Tokens, experts and topk of one shape as Python ints, also where its values are arrays of one."""
    tokens, experts, topk = (int(np.asarray(shape[n]).item()) for n in ("tokens", "experts", "topk"))
    return tokens, experts, topk


def routed_rows(shape: Shape, rng: np.random.Generator, loads: np.ndarray) -> np.ndarray:
    """Destination rows of a random routing with these loads, (tokens, topk) int32, padded to ``align``."""
    tokens, experts, topk = routing_sizes(shape)
    return destination_rows(assignment(rng, loads, tokens, topk), experts, shape["align"])


def skewed_loads(shape: Shape) -> dict[str, np.ndarray]:
    """Loads that leave experts empty: ``one_expert`` of every choice, and every other one (``empty``)."""
    tokens, experts, topk = routing_sizes(shape)
    one = np.zeros(experts, dtype=np.int64)
    one[-topk:] = tokens
    half = max(topk, experts // 2)
    few = np.zeros(experts, dtype=np.int64)
    few[np.arange(half) * experts // half] = expert_loads(tokens, half, topk, 0)
    return {"one_expert": one, "empty": few}


def gate_logits(rng: np.random.Generator, chosen: np.ndarray, experts: int) -> Arrays:
    """Logits (tokens, experts) and Bias (experts,), float32, from which the gate chooses ``chosen``."""
    tokens = len(chosen)
    logits = rng.uniform(-3.0, -0.5, (tokens, experts))
    np.put_along_axis(logits, chosen, rng.uniform(0.5, 3.0, chosen.shape), axis=1)
    bias = rng.uniform(-0.05, 0.05, experts)  # less than half of sigmoid(0.5) − sigmoid(−0.5) = 0.24
    return {"Logits": logits.astype(np.float32), "Bias": bias.astype(np.float32)}


def random_logits(rng: np.random.Generator, tokens: int, experts: int) -> Arrays:
    """Standard normal Logits (tokens, experts) and a small Bias (experts,), float32."""
    return {
        "Logits": rng.standard_normal((tokens, experts), dtype=np.float32),
        "Bias": 0.1 * rng.standard_normal(experts, dtype=np.float32),
    }


def _choices(
    logits: np.ndarray, bias: np.ndarray, groups: int, topk_groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, what experts are chosen by (−inf outside the chosen groups), and the groups' scores."""
    scores = 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))
    biased = scores + bias.astype(np.float64)
    grouped = biased.reshape(len(biased), groups, -1)
    group_scores = np.sort(grouped, axis=2)[:, :, -2:].sum(axis=2)
    if topk_groups < groups:
        kept = np.argsort(-group_scores, axis=1, kind="stable")[:, :topk_groups]
        allowed = np.zeros(group_scores.shape, dtype=bool)
        np.put_along_axis(allowed, kept, True, axis=1)
        biased = np.where(allowed[:, :, None], grouped, -np.inf).reshape(biased.shape)
    return scores, biased, group_scores


def gate(
    logits: np.ndarray, bias: np.ndarray, topk: int, groups: int = 1, topk_groups: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """DeepSeek-V3's gate in float64: indices (tokens, topk) int64, best first, and their weights.

    The bias takes part in the choice, not in the weights; among equals the lower index is first.
    """
    scores, biased, _ = _choices(logits, bias, groups, topk_groups)
    indices = np.argsort(-biased, axis=1, kind="stable")[:, :topk]
    weights = np.take_along_axis(scores, indices, axis=1)
    return indices, weights / (weights.sum(axis=1, keepdims=True) + EPS) * SCALING


def resolved(
    logits: np.ndarray, bias: np.ndarray, topk: int, groups: int = 1, topk_groups: int = 1
) -> np.ndarray:
    """Tokens, (tokens,) bool, whose choice float32 decides: the last in and the first out are no near tie.

    Exact ties are decided (the lower index), so they count as resolved.
    """
    _, biased, group_scores = _choices(logits, bias, groups, topk_groups)
    clear = np.ones(len(biased), dtype=bool)
    for values, kept in ((biased, topk), (group_scores, topk_groups)):
        if kept < values.shape[1]:
            ordered = -np.sort(-values, axis=1)
            gap = ordered[:, kept - 1] - ordered[:, kept]
            clear &= (gap == 0.0) | (gap > _RESOLUTION * np.maximum(1.0, np.abs(ordered[:, kept - 1])))
    return clear


def active_experts(shape: Shape) -> Any:
    """Experts with at least one row in a routing of ``distribution``; an array if the shape is one."""
    names = ("tokens", "experts", "topk", "distribution")
    if not any(isinstance(shape[name], np.ndarray) for name in names):
        return int(np.count_nonzero(expert_loads(*(whole(shape[name]) for name in names))))
    rows = np.broadcast_arrays(*(whole(shape[name]) for name in names))
    return np.asarray(
        [np.count_nonzero(expert_loads(*map(int, row))) for row in zip(*rows, strict=True)], dtype=np.int64
    )


def experts_between(tokens: int, experts: int, topk: int, distribution: int, drawings: int) -> float:
    """Experts that are read from one use of an expert to its next, on average over what a drawing uses.

    So many drawings of the power law take turns. Which experts the law's rounded loads fall to is drawn anew
    each time; rows that are missing then go to the emptiest experts, the first of them in their order: much
    the same ones every time, and their next use is in the next drawing.
    """
    used = np.count_nonzero(expert_loads(tokens, experts, topk, distribution))
    if not distribution:
        return float(used)
    loads = _rounded_loads(tokens, experts, tokens * topk, distribution)
    share = min(used, np.count_nonzero(loads)) / experts
    always = (used - share * experts) / (1.0 - share) if share < 1.0 else 0.0
    later = np.arange(1, drawings + 1)  # how many drawings later an expert is used again
    found = always + (experts - always) * (1.0 - (1.0 - share) ** later)
    chance = share * (1.0 - share) ** (later - 1)
    chance[-1] = 1.0 - chance[:-1].sum()  # the same drawing, a round later
    return float((always * found[0] + (used - always) * (chance @ found)) / used)


def check_topk(name: str, shape: Shape) -> None:
    """Refuse to choose more experts than there are.

    Raises:
        OperatorError: topk exceeds experts.
    """
    if np.any(np.asarray(shape["topk"]) > shape["experts"]):
        raise OperatorError(
            f"{name}: topk={shape['topk']} experts cannot be chosen of experts={shape['experts']}"
        )


def adversarial_rows(
    operands: Callable[[Shape, np.random.Generator, np.ndarray], Arrays],
) -> dict[str, Callable[[Shape, np.random.Generator], Arrays]]:
    """Inputs of operators that take destination rows, by what is special about the loads.

    ``operands(shape, rng, loads)`` makes the inputs of one routing.
    """

    def of(name: str) -> Callable[[Shape, np.random.Generator], Arrays]:
        return lambda shape, rng: operands(shape, rng, skewed_loads(shape)[name])

    return {"same_experts": of("one_expert"), "empty_experts": of("empty")}
