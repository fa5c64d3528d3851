"""Gate of a mixture of experts (DeepSeek-V3): sigmoid scores, a bias for the choice, best groups, top-k."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, OperatorError, Param, Shape, Tolerance
from foretile.kernels.operators._common import whole
from foretile.kernels.operators._moe import choose_experts
from foretile.kernels.operators._moe_host import (
    EPS,
    SCALING,
    check_topk,
    gate,
    random_logits,
    resolved,
)


def program(shape: Shape, config: Config) -> TileProgram:
    """One block ``block_t`` tokens: their scores stay on chip through ``topk`` rounds of maximum and mark."""
    tokens, experts, topk = shape["tokens"], shape["experts"], shape["topk"]
    groups, topk_groups = shape["groups"], shape["topk_groups"]
    block_t, threads = config["block_t"], config["threads"]

    @T.prim_func
    def moe_route(
        Logits: T.Tensor((tokens, experts), "float32"),
        Bias: T.Tensor((experts,), "float32"),
        Indices: T.Tensor((tokens, topk), "int32"),
        Weights: T.Tensor((tokens, topk), "float32"),
    ) -> None:
        with T.Kernel(T.ceildiv(tokens, block_t), threads=threads) as bx:
            index, weight, _ = choose_experts(Logits, Bias, bx * block_t, block_t, topk, groups, topk_groups)
            T.copy(index, Indices[bx * block_t, 0])
            T.copy(weight, Weights[bx * block_t, 0])

    traced: TileProgram = moe_route
    return traced


# (block_t, threads), likeliest first.
_TILES = (
    (4, 128),
    (1, 32),
    (2, 64),
    (8, 256),
    (8, 128),
    (16, 256),
    (1, 64),
    (4, 64),
    (2, 128),
    (16, 512),
    (32, 256),
    (32, 512),
)


def configs(shape: Shape) -> list[Config]:
    """The space: tokens of a block and its threads."""
    return [{"block_t": t, "threads": threads} for t, threads in _TILES]


def flops(shape: Shape) -> Any:
    """A token: 5·experts, with groups limited one addition each, and 3·topk.

    A sigmoid is a negation, an exponential, an addition and a division; then the bias. The weights are
    topk − 1 additions and EPS, topk divisions and topk products. Comparisons are not counted.
    """
    groups = shape["groups"] if shape["topk_groups"] < shape["groups"] else 0
    return whole(shape["tokens"]) * (5 * whole(shape["experts"]) + groups + 3 * whole(shape["topk"]))


def min_bytes(shape: Shape) -> Any:
    """Logits and Bias read once, Indices and Weights written once; four bytes each."""
    tokens, experts, topk = (whole(shape[name]) for name in ("tokens", "experts", "topk"))
    return 4 * (tokens * experts + experts + 2 * tokens * topk)


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Logits of (tokens, experts), Bias of (experts,), float32."""
    return random_logits(rng, shape["tokens"], shape["experts"])


def _ties(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Few different scores and no bias: most choices are ties."""
    logits = rng.integers(-1, 2, (shape["tokens"], shape["experts"])).astype(np.float32)
    return {"Logits": logits, "Bias": np.zeros(shape["experts"], np.float32)}


def _equal(shape: Shape, rng: np.random.Generator) -> Arrays:
    """All scores equal: the first experts are chosen, with equal weights."""
    return {
        "Logits": np.full((shape["tokens"], shape["experts"]), rng.standard_normal(), np.float32),
        "Bias": np.zeros(shape["experts"], np.float32),
    }


def _small(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Scores down to 10⁻¹³, whose choice is the bias's: only the normalisation makes weights of them."""
    return {
        "Logits": rng.uniform(-30.0, -10.0, (shape["tokens"], shape["experts"])).astype(np.float32),
        "Bias": rng.permutation(shape["experts"]).astype(np.float32),
    }


def reference(shape: Shape, Logits: np.ndarray, Bias: np.ndarray) -> Arrays:
    """Indices and Weights of (tokens, topk), best first; float64 weights, not rounded."""
    indices, weights = gate(Logits, Bias, shape["topk"], shape["groups"], shape["topk_groups"])
    return {"Indices": indices, "Weights": weights}


def comparable(shape: Shape, inputs: Arrays, outputs: Arrays) -> Arrays:
    """Each token's choices in the order of their indices; tokens float32 cannot decide are left out."""
    clear = resolved(inputs["Logits"], inputs["Bias"], shape["topk"], shape["groups"], shape["topk_groups"])[
        :, None
    ]
    order = np.argsort(outputs["Indices"], axis=1, kind="stable")
    return {
        name: np.where(clear, np.take_along_axis(values, order, axis=1).astype(np.float64), 0.0)
        for name, values in outputs.items()
    }


def tolerance(shape: Shape) -> Tolerance:
    """Indices are exact (one off by one is far outside); weights differ by float32 exponentials and sums."""
    return Tolerance(norm=2.0**-20, peak=2.0**-19)


def check(shape: Shape) -> None:
    """Refuse groups that do not divide the experts, and choices that the chosen groups do not hold."""
    check_topk("moe_route", shape)
    experts, topk, groups, topk_groups = (shape[n] for n in ("experts", "topk", "groups", "topk_groups"))
    if experts % groups or (groups > 1 and experts // groups < 2):
        raise OperatorError(
            f"moe_route: experts={experts} do not split into groups={groups} equal groups of two or more"
        )
    if topk_groups > groups:
        raise OperatorError(f"moe_route: topk_groups={topk_groups} is more than groups={groups}")
    if topk > topk_groups * (experts // groups):
        raise OperatorError(
            f"moe_route: topk={topk} experts do not fit topk_groups={topk_groups} groups of "
            f"{experts // groups}"
        )


OPERATOR = Operator(
    name="moe_route",
    doc=(
        "Gate of DeepSeek-V3 (arXiv 2412.19437): scores s = sigmoid(Logits); of the topk_groups groups with "
        "the largest sum of their two best s + Bias, the topk experts with the largest s + Bias; Weights "
        f"s / (Σ s + {EPS:g}) · {SCALING}. Logits are (tokens, experts), Bias (experts,), both fp32; Indices "
        "(tokens, topk) int32 and Weights (tokens, topk) fp32, best first, the lower index among equals."
    ),
    params=(
        Param("tokens", "tokens", dynamic=True),
        Param("experts", "routed experts"),
        Param("topk", "experts chosen for a token"),
        Param("groups", "equal groups the experts form; 1: none (DeepSeek-V3: 8)", default=1),
        Param("topk_groups", "groups a token may choose from (DeepSeek-V3: 4)", default=1),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    check=check,
    tolerance=tolerance,
    adversarial={"ties": _ties, "all_equal": _equal, "tiny_scores": _small},
    comparable=comparable,
    compute_dtype=lambda shape: "fp32",
    example={"tokens": 50, "experts": 24, "topk": 4},
)
