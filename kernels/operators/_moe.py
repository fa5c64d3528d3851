"""Tile-program parts that mixture-of-experts operators share: the gate, rows scattered and combined."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

from foretile.kernels import language as T
from foretile.kernels.operators._common import LOWEST
from foretile.kernels.operators._moe_host import EPS, SCALING

TAKEN = 2.0 * LOWEST
"""Mark of an expert already chosen; below the mark of experts outside the chosen groups."""


@T.macro
def keep_groups(score: Any, bias: Any, choice: Any, groups: int, topk_groups: int) -> None:
    """``choice`` of (rows, experts) becomes LOWEST outside each row's ``topk_groups`` best groups.

    A group's score is the sum of its two best biased scores. Its place is the number of groups that
    beat it (the lower index wins a tie): no sorting, and one pass over groups² comparisons.
    """
    rows, experts = choice.shape
    members = experts // groups
    grouped = T.alloc_fragment((rows, groups, members), "float32")
    place = T.alloc_fragment((rows, groups, members), "int32")
    first = T.alloc_fragment((rows, groups), "int32")
    best = T.alloc_fragment((rows, groups), "float32")
    second = T.alloc_fragment((rows, groups), "float32")
    group_score = T.alloc_shared((rows, groups), "float32")
    beaten = T.alloc_fragment((rows, groups, groups), "int32")
    rank_local = T.alloc_fragment((rows, groups), "int32")
    rank = T.alloc_shared((rows, groups), "int32")
    for i, g, e in T.Parallel(rows, groups, members):
        grouped[i, g, e] = score[i, g * members + e] + bias[g * members + e]
    T.reduce_max(grouped, best, dim=2)
    for i, g, e in T.Parallel(rows, groups, members):
        place[i, g, e] = T.if_then_else(grouped[i, g, e] == best[i, g], e, members)
    T.reduce_min(place, first, dim=2)
    for i, g, e in T.Parallel(rows, groups, members):
        grouped[i, g, e] = T.if_then_else(first[i, g] == e, LOWEST, grouped[i, g, e])
    T.reduce_max(grouped, second, dim=2)
    for i, g in T.Parallel(rows, groups):
        group_score[i, g] = best[i, g] + second[i, g]
    for i, g, h in T.Parallel(rows, groups, groups):
        beaten[i, g, h] = T.if_then_else(
            T.any_of(
                group_score[i, h] > group_score[i, g],
                (group_score[i, h] == group_score[i, g] and h < g),
            ),
            1,
            0,
        )
    T.reduce_sum(beaten, rank_local, dim=2)
    T.copy(rank_local, rank)
    for i, e in T.Parallel(rows, experts):
        choice[i, e] = T.if_then_else(rank[i, e // members] < topk_groups, choice[i, e], LOWEST)


@T.macro
def choose_experts(
    Logits: Any,
    Bias: Any,
    t0: Any,
    rows: int,
    topk: int,
    groups: int,
    topk_groups: int,
) -> tuple[Any, Any, Any]:
    """The gate of ``rows`` tokens from ``t0``: chosen experts, their weights, and what is left to choose.

    The first two are fragments of (rows, topk), int32 and float32, best first; the third is
    (rows, experts), float32, with TAKEN where an expert was chosen. Each round takes the maximum, the
    lowest index that has it, and marks it.
    """
    experts = Bias.shape[0]
    score = T.alloc_shared((rows, experts), "float32")
    bias = T.alloc_shared((experts,), "float32")
    choice = T.alloc_fragment((rows, experts), "float32")
    place = T.alloc_fragment((rows, experts), "int32")
    best = T.alloc_fragment((rows,), "float32")
    first = T.alloc_fragment((rows,), "int32")
    index = T.alloc_fragment((rows, topk), "int32")
    weight = T.alloc_fragment((rows, topk), "float32")
    total = T.alloc_fragment((rows,), "float32")
    T.copy(Logits[t0, 0], choice)
    T.copy(Bias, bias)
    for i, e in T.Parallel(rows, experts):
        choice[i, e] = T.sigmoid(choice[i, e])
    T.copy(choice, score)
    for i, e in T.Parallel(rows, experts):
        choice[i, e] = choice[i, e] + bias[e]
    if topk_groups < groups:
        keep_groups(score, bias, choice, groups, topk_groups)
    for k in T.serial(topk):
        T.reduce_max(choice, best, dim=1)
        for i, e in T.Parallel(rows, experts):
            place[i, e] = T.if_then_else(choice[i, e] == best[i], e, experts)
        T.reduce_min(place, first, dim=1)
        for i, e in T.Parallel(rows, experts):
            choice[i, e] = T.if_then_else(first[i] == e, TAKEN, choice[i, e])
        for i in T.Parallel(rows):
            index[i, k] = first[i]
            weight[i, k] = score[i, first[i]]
    T.reduce_sum(weight, total, dim=1)
    for i, k in T.Parallel(rows, topk):
        weight[i, k] = weight[i, k] / (total[i] + EPS) * SCALING
    return index, weight, choice


@T.macro
def scatter_row(X: Any, Rows: Any, X_sorted: Any, t: Any, h0: Any, cols: int, dtype: str) -> None:
    """``cols`` elements of token ``t`` from ``h0``, read once and written to each of its rows."""
    X_local = T.alloc_fragment((cols,), dtype)
    T.copy(X[t, h0], X_local)
    for j in T.serial(Rows.shape[1]):
        T.copy(X_local, X_sorted[Rows[t, j], h0])


@T.macro
def combine_rows(
    Y: Any,
    Rows: Any,
    Weights: Any,
    Out: Any,
    t: Any,
    h0: Any,
    cols: int,
    num_stages: int,
    dtype: str,
) -> None:
    """``cols`` elements of token ``t`` from ``h0``: the weighted sum of its rows, in float32."""
    topk = Rows.shape[1]
    weight = T.alloc_shared((topk,), "float32")
    Y_shared = T.alloc_shared((cols,), dtype)
    acc = T.alloc_fragment((cols,), "float32")
    T.copy(Weights[t, 0:topk], weight)
    T.clear(acc)
    for j in T.Pipelined(topk, num_stages=num_stages):
        T.copy(Y[Rows[t, j], h0], Y_shared)
        for c in T.Parallel(cols):
            acc[c] = acc[c] + weight[j] * Y_shared[c]
    T.copy(acc, Out[t, h0])
