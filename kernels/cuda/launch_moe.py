"""Launches of grouped products and of mixtures of experts (grouped.cu, route.cu)."""

from __future__ import annotations

from collections.abc import Sequence

from foretile.kernels.cuda.launch_gemm import THREADS, TILE, narrow, quantising, tiles, wide
from foretile.kernels.cuda.recipe import Argument, KernelSource, TensorArg
from foretile.kernels.cuda.registry import OUT_TYPES, Launch, Tensors, ceildiv, cuda_version, launch
from foretile.kernels.dtypes import dtype
from foretile.kernels.operator import OperatorError, Shape

_PLACE_THREADS, _ROW_THREADS, _GRID_Y = 1024, 256, 65535
_ELEMENT_BLOCKS = 4096  # a block takes further elements where there are more
_QUANTISED = ("fp8", "fp8_block", "nvfp4")
_GROUP = {"fp8_block": 128, "nvfp4": 16}  # columns that share a scale


def _grouped(symbol: str, grid: Sequence[int], args: Sequence[Argument]) -> Launch:
    return launch(KernelSource("grouped.cu", symbol), grid, THREADS, args)


def _routing(symbol: str, blocks: int, threads: int, args: Sequence[Argument], shared: int = 0) -> Launch:
    return launch(KernelSource("route.cu", symbol), (blocks,), threads, args, shared)


@cuda_version("grouped_gemm")
def grouped_gemm(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A block a tile; in the masked layout groups are on the grid's z axis."""
    masked, kind = bool(shape["masked"]), shape["dtype"]
    *outer, rows, k = tensors.shape("A")
    n = tensors.shape("B")[1]
    layout = "masked_m" if masked else "m_indices"
    sizes, out = wide(rows, n, k), OUT_TYPES[shape["out_dtype"]]
    grid = (*tiles(name, rows, n), *outer)
    if kind in ("bf16", "fp16"):
        args = (*tensors.ins(f"A B {layout}"), *tensors.outs("C"), *sizes, *narrow(out))
        return (_grouped(f"{name}_masked_{kind}" if masked else f"{name}_{kind}", grid, args),)
    scaled = (*tensors.ins(f"A A_scale B B_scale {layout}"), *tensors.outs("C"), *sizes, *narrow(masked, out))
    return (_grouped(f"{name}_{kind}", grid, scaled),)


@cuda_version("moe_route")
def moe_route(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A warp a token."""
    tokens, experts = tensors.shape("Logits")
    groups = shape["groups"]
    scalars = narrow(experts, shape["topk"], groups, shape["topk_groups"])
    args = (*tensors.ins("Logits Bias"), *tensors.outs("Indices Weights"), *scalars)
    return (_routing(name, tokens, 32, args, 4 * (2 * experts + groups)),)


@cuda_version("moe_permute")
def moe_permute(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """Rows to their places, then zeros to the places left over."""
    rows, hidden = tensors.shape("X_sorted")
    row_bytes = wide(hidden * dtype(shape["dtype"]).bits // 8)
    used = tensors.arg("Used", "scratch")
    moved = (*tensors.ins("X Rows"), *tensors.outs("X_sorted"), used, *row_bytes, *narrow(shape["topk"]))
    padded = (*tensors.outs("X_sorted"), used, *row_bytes)
    return (
        _routing(name, shape["tokens"], _ROW_THREADS, moved),
        _routing("moe_permute_pad", rows, _ROW_THREADS, padded),
    )


@cuda_version("moe_combine")
def moe_combine(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A block a token."""
    args = (*tensors.ins("Y Rows Weights"), *tensors.outs("O"), *narrow(shape["hidden"], shape["topk"]))
    return (_routing(f"{name}_{shape['dtype']}", shape["tokens"], _ROW_THREADS, args),)


def _scratch(name: str, kind: str, *extents: int) -> TensorArg:
    return TensorArg(name, dtype(kind).name, extents, "scratch")


@cuda_version("moe")
def moe(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """Gate, places of the rows, gate and up with SwiGLU, down, combination; X and H quantised in between.

    Rows are not copied: the first product gathers them by the token of every row.
    """
    tokens, hidden, inter, topk, experts, align = (
        int(shape[n]) for n in ("tokens", "hidden", "inter", "topk", "experts", "align")
    )
    rows = tensors.shape("X_sorted")[0]
    parts = rows // align * ceildiv(align, TILE)
    if parts > _GRID_Y:
        raise OperatorError(
            f"moe: {rows} rows in tiles of {align}; the CUDA version takes {_GRID_Y} tiles of 64"
        )
    kind, stored = shape["dtype"], tensors.dtype("O")
    indices, weights = _scratch("Indices", "int32", tokens, topk), _scratch("Weights", "fp32", tokens, topk)
    places, token = _scratch("Rows", "int32", tokens, topk), _scratch("Token", "int32", rows)
    table = tuple(_scratch(name, "int32", rows // align) for name in ("TileExpert", "TileRows"))
    products = _scratch("gate_and_up", "fp32", 2, rows, inter)
    H = _scratch("H", "fp32" if kind in _QUANTISED else stored, rows, inter)
    Y = _scratch("Y", stored, rows, hidden)
    x, quantise_x = _activations("X", tensors.arg("X"), tokens, hidden, shape, tensors)
    h, quantise_h = _activations("H", H, rows, inter, shape, tensors)
    up = (*x, *_weights("W_gate_up", tensors), token, *table, products, *wide(tokens, rows, inter, hidden))
    down = (*h, *_weights("W_down", tensors), *wide(0), *table, Y, *wide(rows, rows, hidden, inter))
    gate = (*tensors.ins("Logits Bias"), indices, weights, *narrow(experts, topk, 1, 1))
    place = (*wide(tokens * topk), *narrow(topk, experts, align, rows // align))
    result = (Y, places, weights, *tensors.outs("O"), *narrow(hidden, topk))
    symbol, elements = f"moe_product_{kind}", rows * inter
    return (
        _routing("moe_route", tokens, 32, gate, 4 * (2 * experts + 1)),
        _routing("moe_place", 1, _PLACE_THREADS, (indices, places, token, *table, *place), 12 * experts),
        *quantise_x,
        _grouped(symbol, (ceildiv(inter, TILE), parts, 2), (*up, *narrow(align, OUT_TYPES["fp32"]))),
        _routing(
            "moe_swiglu",
            min(_ELEMENT_BLOCKS, ceildiv(elements, _ROW_THREADS)),
            _ROW_THREADS,
            (products, H, *wide(elements), *narrow(OUT_TYPES[_short(H)])),
        ),
        *quantise_h,
        _grouped(symbol, (ceildiv(hidden, TILE), parts), (*down, *narrow(align, OUT_TYPES[stored]))),
        _routing(f"moe_combine_{stored}", tokens, _ROW_THREADS, result),
    )


def _short(tensor: TensorArg) -> str:
    return dtype(tensor.dtype).short


def _weights(name: str, tensors: Tensors) -> tuple[Argument, ...]:
    """The weights with the scales of their format."""
    parts = [part for part in (name, f"{name}_scale", f"{name}_global") if part in tensors]
    return tensors.ins(" ".join(parts))


def _activations(
    name: str, source: TensorArg, rows: int, cols: int, shape: Shape, tensors: Tensors
) -> tuple[tuple[Argument, ...], tuple[Launch, ...]]:
    """An operand of a product with its scales, and the launches that make it of ``source``."""
    kind = shape["dtype"]
    if kind not in _QUANTISED:
        return (source,), ()
    suffix = _short(source)
    if kind == "fp8":
        scale, made = tensors.arg(f"{name}_scale"), _scratch(f"{name}_quantised", "fp8", rows, cols)
        done = quantising(f"quantize_tensor_{suffix}", (rows,), (source, scale, made, *narrow(cols)))
        return (made, scale), (done,)
    groups = ceildiv(cols, _GROUP[kind])
    if kind == "fp8_block":
        made = _scratch(f"{name}_quantised", "fp8", rows, cols)
        group_scale = _scratch(f"{name}_group_scale", "fp32", rows, groups)
        args = (source, made, group_scale, *narrow(cols, 128, 0))
        return (made, group_scale), (quantising(f"quantize_{suffix}", (rows * groups,), args, 32),)
    scale, made = tensors.arg(f"{name}_scale"), _scratch(f"{name}_quantised", "fp4", rows, cols)
    group_scale = _scratch(f"{name}_group_scale", "fp8", rows, groups)
    done = quantising(f"quantize_nvfp4_{suffix}", (rows,), (source, scale, made, group_scale, *narrow(cols)))
    return (made, group_scale, scale), (done,)
