"""Mixture-of-experts layer, from router logits to combined results: gate, permutation, grouped products."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.dtypes import dtype as dtype_of
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, OperatorError, Param, Shape, Tolerance
from foretile.kernels.operators import _moe_fp8, _moe_grouped, _moe_nvfp4
from foretile.kernels.operators._common import full, random_operand, size, traced_once, whole
from foretile.kernels.operators._moe import combine_rows
from foretile.kernels.operators._moe_formats import (
    QUANTISED,
    activations,
    element,
    exact_weights,
    quantising_flops,
    random_weights,
    rounded,
    static_scale,
    weight_bytes,
)
from foretile.kernels.operators._moe_host import (
    ALIGNMENT,
    active_experts,
    assignment,
    check_topk,
    expert_loads,
    gate,
    gate_logits,
    resolved,
    routing_sizes,
    rows_bound,
    skewed_loads,
    tile_tables,
)
from foretile.kernels.operators._moe_place import gate_tokens, place_rows

_COPY_COLS, _COPY_THREADS = 2048, 256  # of a block that scatters or combines rows
_COMBINE_STAGES = 4
_TILE_KEYS = ("block_m", "block_n", "block_k", "num_stages", "threads", "product")  # of the products
_FORMATS: dict[str, Any] = {"fp8": _moe_fp8, "fp8_block": _moe_fp8, "nvfp4": _moe_nvfp4}


def _rows(shape: Shape) -> Any:
    return rows_bound(shape["tokens"], shape["experts"], shape["topk"], shape["align"])


def _combine(shape: Shape, config: Config) -> TileProgram:
    """Every token's weighted sum of its experts' rows."""
    tokens, hidden, topk, dtype = shape["tokens"], shape["hidden"], shape["topk"], full(activations(shape))

    @T.prim_func
    def moe_combine(
        Y: T.Tensor((shape["rows"], hidden), dtype),
        Rows: T.Tensor((tokens, topk), "int32"),
        Weights: T.Tensor((tokens, topk), "float32"),
        O: T.Tensor((tokens, hidden), dtype),  # noqa: E741
    ) -> None:
        with T.Kernel(T.ceildiv(hidden, _COPY_COLS), tokens, threads=_COPY_THREADS) as (bx, by):
            combine_rows(Y, Rows, Weights, O, by, bx * _COPY_COLS, _COPY_COLS, _COMBINE_STAGES, dtype)

    traced: TileProgram = moe_combine
    return traced


def program(shape: Shape, config: Config) -> tuple[TileProgram, ...]:
    """Six launches: gate, rows of the tokens, permutation, gate and up with SwiGLU, down, combination.

    Raises:
        OperatorError: ``block_m`` does not divide ``align`` (a tile would hold rows of two experts), or
            tiles that do not go with the scales.
    """
    if shape["align"] % config["block_m"]:
        raise OperatorError(f"moe: block_m={config['block_m']} does not divide align={shape['align']}")
    launches = _FORMATS.get(shape["dtype"], _moe_grouped)
    launches.check(config, shape["dtype"])
    rows = {"rows": _rows(shape)}
    routing = {**{name: shape[name] for name in ("tokens", "topk", "experts", "align")}, **rows}
    full_shape = {**shape, **rows}
    return (
        traced_once(gate_tokens, routing, config, ("block_t",)),
        traced_once(place_rows, routing, config, ("block_t",)),
        traced_once(launches.permute, full_shape, config),
        traced_once(launches.gate_up, full_shape, config, _TILE_KEYS),
        traced_once(launches.down, full_shape, config, _TILE_KEYS),
        traced_once(_combine, full_shape, config),
    )


_GATE_TOKENS = (16, 4)


def configs(shape: Shape) -> list[Config]:
    """The space: rows (a divisor of ``align``) and columns of gate and up, depth of a tile; gate tokens.

    The tile of the product down is twice as wide, so that it holds as many accumulators and bytes.
    """
    tiles = _FORMATS.get(shape["dtype"], _moe_grouped).TILES[shape["dtype"]]
    return [
        {**dict(zip(_TILE_KEYS, tile, strict=False)), "block_t": t}
        for t in _GATE_TOKENS
        for tile in tiles
        if shape["align"] % tile[0] == 0
    ]


def flops(shape: Shape) -> Any:
    """A token: 5·experts + 3·topk for the gate; topk·(6·hidden·inter + 5·inter); hidden·(2·topk − 1).

    The gate as in ``moe_route``; a SwiGLU is a negation, an exponential, an addition, a division and a
    product. What quantises X and H is counted as in ``quantize``; padding rows are not counted.
    """
    hidden, inter, topk, experts = (whole(shape[n]) for n in ("hidden", "inter", "topk", "experts"))
    expert = topk * (6 * hidden * inter + 5 * inter)
    token = 5 * experts + 3 * topk + expert + hidden * (2 * topk - 1)
    return whole(shape["tokens"]) * token + quantising_flops(shape)


def min_bytes(shape: Shape) -> Any:
    """X, Logits, Bias, scales, weights of experts that ``distribution`` gives tokens read, O written once."""
    tokens, hidden, experts = (whole(shape[n]) for n in ("tokens", "hidden", "experts"))
    rows = 2 * tokens * hidden * size(activations(shape))
    return weight_bytes(shape, active_experts(shape)) + rows + 4 * (tokens + 1) * experts


def _operands(shape: Shape, rng: np.random.Generator, gating: Arrays) -> Arrays:
    X = random_operand(rng, (shape["tokens"], shape["hidden"]), activations(shape))
    return {"X": X, **gating, **static_scale(shape, X), **random_weights(shape, rng)}


def _routed(shape: Shape, rng: np.random.Generator, loads: np.ndarray) -> Arrays:
    chosen = assignment(rng, loads, shape["tokens"], shape["topk"])
    return _operands(shape, rng, gate_logits(rng, chosen, shape["experts"]))


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """X of (tokens, hidden); Logits (tokens, experts) and Bias (experts,) fp32 that give the loads of
    ``distribution``; W_gate_up (experts, 2, inter, hidden), gate first, and W_down (experts, hidden, inter).
    """
    loads = expert_loads(*routing_sizes(shape), shape["distribution"])
    return _routed(shape, rng, loads)


def _ties(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Few different scores and no bias: most choices are ties, and the loads lean to the first experts."""
    logits = rng.integers(-1, 2, (shape["tokens"], shape["experts"])).astype(np.float32)
    return _operands(shape, rng, {"Logits": logits, "Bias": np.zeros(shape["experts"], np.float32)})


def reference(
    shape: Shape, X: np.ndarray, Logits: np.ndarray, Bias: np.ndarray, **operands: np.ndarray
) -> Arrays:
    """O of (tokens, hidden) in float64, not rounded; X and H are quantised where the format does that."""
    indices, weights = gate(Logits, Bias, shape["topk"])
    x = rounded(shape, X.astype(np.float64), operands.get("X_scale"))
    result = np.zeros((shape["tokens"], shape["hidden"]))
    for expert in np.unique(indices):
        token, choice = np.nonzero(indices == expert)
        g, u = (x[token] @ w.T for w in exact_weights(shape, "W_gate_up", operands, expert))
        h = rounded(shape, g / (1.0 + np.exp(-g)) * u, operands.get("H_scale"))
        y = h @ exact_weights(shape, "W_down", operands, expert).T
        result[token] += weights[token, choice, None] * y
    return {"O": result}


def comparable(shape: Shape, inputs: Arrays, outputs: Arrays) -> Arrays:
    """O without the tokens whose experts float32 scores cannot decide."""
    clear = resolved(inputs["Logits"], inputs["Bias"], shape["topk"])
    return {"O": np.where(clear[:, None], outputs["O"].astype(np.float64), 0.0)}


def tolerance(shape: Shape) -> Tolerance:
    """Three roundings to ``dtype``: the SwiGLU's results, the experts' rows, and O.

    Each changes its values by at most u relative to themselves, u/√3 in the mean square, independently
    of the others, and the sums after it carry that over to O: √3·u/√3 = u all together; as much again is
    left for values near a power of two and for the float32 arithmetic.

    With fp8 and nvfp4 H is rounded to its format as in the reference, but for an element in ten thousand
    or so, which a float32 sum's error lets fall to the other neighbour. Where that is the largest of a
    group it moves by 1/14 of itself (fp8) or a fifth (nvfp4), and a short row's results by as much as the
    peak's tolerance, which is doubled.
    """
    u = 2.0 ** -(1 + dtype_of(activations(shape)).mantissa_bits)
    return Tolerance(norm=2.0 * u, peak=8.0 * u if shape["dtype"] in QUANTISED else 4.0 * u)


def tensors(shape: Shape) -> Arrays:
    """Expert and filled rows of every tile, for the loads of ``distribution``."""
    tokens, experts, topk = routing_sizes(shape)
    loads = expert_loads(tokens, experts, topk, int(np.asarray(shape["distribution"]).item()))
    align = shape["align"]
    tile_expert, tile_rows = tile_tables(loads, align, rows_bound(tokens, experts, topk, align) // align)
    return {"TileExpert": tile_expert, "TileRows": tile_rows}


def check(shape: Shape) -> None:
    """Refuse more choices than experts, and an alignment that no tile divides."""
    check_topk("moe", shape)
    if shape["align"] % 16:
        raise OperatorError(f"moe: align={shape['align']} is not a multiple of 16, the rows of a product")
    for name in ("hidden", "inter"):
        if shape["dtype"] == "nvfp4" and np.any(np.asarray(shape[name]) % 2):
            raise OperatorError(
                f"moe: {name}={shape[name]} is odd; two elements of an nvfp4 row share a byte"
            )


OPERATOR = Operator(
    name="moe",
    doc=(
        "Mixture-of-experts layer O[t] = Σ_j w[t, j] · W_down[e] (silu(W_gate[e] x) · W_up[e] x), e the j-th "
        "expert of token t by DeepSeek-V3's gate (moe_route without groups) from router Logits. X and O are "
        "(tokens, hidden), Logits (tokens, experts) and Bias (experts,) fp32, W_gate_up (experts, 2, inter, "
        "hidden), W_down (experts, hidden, inter). Contiguous grouped layout: rows padded to align. With fp8 "
        "and fp8_block X and O are bf16, and X and the SwiGLU's results H are quantised before their "
        "products: fp8 with static float32 scales, X_scale and H_scale (1,), W_gate_up_scale (experts, 2), "
        "W_down_scale (experts,); fp8_block with scales a row and 128 columns taken from the maximum "
        "(quantize), weights with one a block of 128 × 128; nvfp4 as gemm_nvfp4, with X_scale, H_scale and "
        "W_gate_up_global (experts, 2), W_down_global (experts,) for the tensors."
    ),
    params=(
        Param("tokens", "tokens", dynamic=True),
        Param("hidden", "elements of a token's row", dynamic=True),
        Param("inter", "intermediate size of an expert", dynamic=True),
        Param("topk", "experts chosen for a token"),
        Param("experts", "experts"),
        Param(
            "dtype",
            "type of X, the weights and O, or format of the products",
            kind="dtype",
            default="bf16",
            choices=("bf16", "fp16", *QUANTISED),
        ),
        Param(
            "distribution",
            "expert loads: exponent of their density (a power law) in hundredths, 0: even",
            default=0,
            minimum=0,
            dynamic=True,
        ),
        Param("align", "multiple to which an expert's rows are padded", default=ALIGNMENT),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    check=check,
    tensors=tensors,
    tolerance=tolerance,
    adversarial={
        "same_experts": lambda shape, rng: _routed(shape, rng, skewed_loads(shape)["one_expert"]),
        "empty_experts": lambda shape, rng: _routed(shape, rng, skewed_loads(shape)["empty"]),
        "ties": _ties,
    },
    comparable=comparable,
    compute_dtype=element,
    example={"tokens": 50, "hidden": 200, "inter": 100, "topk": 3, "experts": 8},
)
