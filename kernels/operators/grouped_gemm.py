"""Grouped matrix products of a mixture of experts: rows of A by group, ``C[r] = A[r] · B[group of r]ᵀ``."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from collections.abc import Mapping
from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, OperatorError, Param, Shape, Tolerance
from foretile.kernels.operators._common import full, random_operand, size, whole
from foretile.kernels.operators._quant import BLOCK, dequantised, groups_of, quantised_operand
from foretile.kernels.operators._scaled_gemm import (
    check_config,
    plain_products,
    product_tolerance,
    scaled_configs,
    scaled_products,
    unscaled_configs,
)

ALIGNMENT = 128
"""Rows that each group's share of the contiguous layout is padded to (DeepGEMM's alignment)."""


def _element(shape: Shape) -> str:
    """Type of the elements of A and B."""
    return "fp8" if shape["dtype"] == "fp8_block" else str(shape["dtype"])


def group_rows(shape: Shape) -> np.ndarray:
    """Rows of each group, fullest first: shape (groups,), sum ``m``.

    Group g of G has the rows between m·F(g / G) and m·F((g + 1) / G), rounded, with
    F(x) = 1 - (1 - x)^(1 + skew): equal shares for no skew, and a fullest group of (1 + skew) times
    the mean, or a little less, however many groups there are.
    """
    m, groups = (int(np.asarray(shape[name]).item()) for name in ("m", "groups"))
    left = 1.0 - np.arange(groups + 1) / groups
    return np.diff(np.rint(m * (1.0 - left ** (1.0 + shape["skew"] / 100.0))).astype(np.int64))


def capacity(shape: Shape) -> Any:
    """Rows of the buffer: of all groups together (contiguous), or of each (masked).

    Contiguous: enough whole alignments for any split of ``m`` rows. Masked: the fullest group's
    share, aligned.
    """
    m, groups = shape["m"], shape["groups"]
    if not shape["masked"]:
        return (m + groups * (ALIGNMENT - 1)) // ALIGNMENT * ALIGNMENT
    fullest = (m * (100 + shape["skew"]) + 100 * groups - 1) // (100 * groups)
    return (fullest + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


@T.macro
def _scale_rows(C: Any, row_scale: Any, scale: Any) -> None:
    """Row i of ``C`` times ``row_scale[i]`` and ``scale``."""
    for i, j in T.Parallel(*C.shape):
        C[i, j] = C[i, j] * (row_scale[i] * scale)


def _product(config: Config, K: Any, used: Any, A: Any, B: Any, scales: Any, tile: Any) -> Any:
    """The block's tile of C in float32, zero unless ``used``.

    ``scales`` are those of A and B, or None; ``tile`` is the tile's group, its index along A's
    leading axis (none, contiguous), its first row and its first column.
    """
    group, batch, m0, n0 = tile
    depth = config["block_k"]
    m, n = slice(m0, m0 + config["block_m"]), slice(n0, n0 + config["block_n"])

    def a(k: Any) -> Any:
        return A[(*batch, m, slice(k * depth, (k + 1) * depth))]

    def b(k: Any) -> Any:
        return B[group, n, k * depth : (k + 1) * depth]

    steps = T.if_then_else(used, T.ceildiv(K, depth), 0)
    if scales is not None and len(scales[1].shape) == 3:
        A_scale, B_scale = scales
        (C_local,) = scaled_products(
            config,
            a,
            (b,),
            lambda k: A_scale[(*batch, m, slice(k, k + 1))],
            (lambda k: B_scale[group, n0 // BLOCK, k : k + 1],),
            steps,
        )
        return C_local
    (C_local,) = plain_products(config, a, (b,), steps, A.dtype)
    if scales is not None:
        A_scale, B_scale = scales
        row_scale = T.alloc_fragment((config["block_m"],), "float32")
        T.copy(A_scale[(*batch, m)], row_scale)
        _scale_rows(C_local, row_scale, B_scale[T.max(group, 0)])
    return C_local


def _scale_shapes(shape: Shape, rows: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Shapes of the scales of A, whose rows are ``rows``, and of B: by block, or a row and a group."""
    groups, N, K = shape["groups"], shape["n"], shape["k"]
    if shape["dtype"] == "fp8":
        return rows, (groups,)
    return (*rows, groups_of(K)), (groups, groups_of(N), groups_of(K))


def _contiguous(shape: Shape, config: Config) -> TileProgram:
    """One block a tile of rows (all of one group) and columns; tiles of padding have no steps
    and end as zeros."""
    N, K, groups, rows = shape["n"], shape["k"], shape["groups"], capacity(shape)
    dtype, out_dtype = full(_element(shape)), full(shape["out_dtype"])
    block_M, block_N = config["block_m"], config["block_n"]
    threads, swizzle = config["threads"], config["swizzle"]
    grid = (T.ceildiv(N, block_N), rows // block_M)

    @T.macro
    def block(A: Any, B: Any, scales: Any, m_indices: Any, C: Any, bx: Any, by: Any) -> None:
        if swizzle:
            T.use_swizzle(panel_size=swizzle)
        group = m_indices[by * block_M]
        tile = (group, (), by * block_M, bx * block_N)
        C_local = _product(config, K, group >= 0, A, B, scales, tile)
        T.copy(C_local, C[by * block_M, bx * block_N])

    if _element(shape) != "fp8":

        @T.prim_func
        def grouped_gemm_contiguous(
            A: T.Tensor((rows, K), dtype),
            B: T.Tensor((groups, N, K), dtype),
            m_indices: T.Tensor((rows,), "int32"),
            C: T.Tensor((rows, N), out_dtype),
        ) -> None:
            with T.Kernel(*grid, threads=threads) as (bx, by):
                block(A, B, None, m_indices, C, bx, by)

        plain: TileProgram = grouped_gemm_contiguous
        return plain

    a_scales, b_scales = _scale_shapes(shape, (rows,))

    @T.prim_func
    def grouped_gemm_fp8_contiguous(
        A: T.Tensor((rows, K), dtype),
        A_scale: T.Tensor(a_scales, "float32"),
        B: T.Tensor((groups, N, K), dtype),
        B_scale: T.Tensor(b_scales, "float32"),
        m_indices: T.Tensor((rows,), "int32"),
        C: T.Tensor((rows, N), out_dtype),
    ) -> None:
        with T.Kernel(*grid, threads=threads) as (bx, by):
            block(A, B, (A_scale, B_scale), m_indices, C, bx, by)

    scaled: TileProgram = grouped_gemm_fp8_contiguous
    return scaled


def _masked(shape: Shape, config: Config) -> TileProgram:
    """One block a tile of rows and columns of a group; tiles beyond the group's rows
    have no steps and end as zeros."""
    N, K, groups, rows = shape["n"], shape["k"], shape["groups"], capacity(shape)
    dtype, out_dtype = full(_element(shape)), full(shape["out_dtype"])
    block_M, block_N = config["block_m"], config["block_n"]
    threads, swizzle = config["threads"], config["swizzle"]
    grid = (T.ceildiv(N, block_N), rows // block_M, groups)

    @T.macro
    def block(A: Any, B: Any, scales: Any, masked_m: Any, C: Any, bx: Any, by: Any, bz: Any) -> None:
        if swizzle:
            T.use_swizzle(panel_size=swizzle)
        tile = (bz, (bz,), by * block_M, bx * block_N)
        C_local = _product(config, K, by * block_M < masked_m[bz], A, B, scales, tile)
        T.copy(C_local, C[bz, by * block_M, bx * block_N])

    if _element(shape) != "fp8":

        @T.prim_func
        def grouped_gemm_masked(
            A: T.Tensor((groups, rows, K), dtype),
            B: T.Tensor((groups, N, K), dtype),
            masked_m: T.Tensor((groups,), "int32"),
            C: T.Tensor((groups, rows, N), out_dtype),
        ) -> None:
            with T.Kernel(*grid, threads=threads) as (bx, by, bz):
                block(A, B, None, masked_m, C, bx, by, bz)

        plain: TileProgram = grouped_gemm_masked
        return plain

    a_scales, b_scales = _scale_shapes(shape, (groups, rows))

    @T.prim_func
    def grouped_gemm_fp8_masked(
        A: T.Tensor((groups, rows, K), dtype),
        A_scale: T.Tensor(a_scales, "float32"),
        B: T.Tensor((groups, N, K), dtype),
        B_scale: T.Tensor(b_scales, "float32"),
        masked_m: T.Tensor((groups,), "int32"),
        C: T.Tensor((groups, rows, N), out_dtype),
    ) -> None:
        with T.Kernel(*grid, threads=threads) as (bx, by, bz):
            block(A, B, (A_scale, B_scale), masked_m, C, bx, by, bz)

    scaled: TileProgram = grouped_gemm_fp8_masked
    return scaled


def program(shape: Shape, config: Config) -> TileProgram:
    """One launch, in the layout ``masked`` chooses.

    Raises:
        OperatorError: a tile that would hold rows of two groups, or does not go with the scales' blocks.
    """
    check_config("grouped_gemm", config, blocks=shape["dtype"] == "fp8_block")
    if ALIGNMENT % config["block_m"]:
        raise OperatorError(
            f"grouped_gemm: block_m={config['block_m']} does not divide {ALIGNMENT}, the alignment of groups"
        )
    return (_masked if shape["masked"] else _contiguous)(shape, config)


# (block_m, block_n, block_k, num_stages, threads, swizzle) of plain products, likeliest first.
_PLAIN_TILES = (
    (128, 256, 64, 3, 256, 8),
    (128, 256, 64, 4, 256, 8),
    (128, 128, 64, 4, 256, 8),
    (128, 128, 64, 3, 256, 8),
    (128, 128, 64, 2, 256, 8),
    (128, 128, 32, 2, 256, 8),
    (128, 64, 64, 4, 128, 8),
    (64, 256, 64, 4, 256, 8),
    (64, 128, 64, 4, 128, 8),
    (64, 128, 64, 2, 128, 8),
    (64, 64, 64, 5, 128, 8),
    (64, 64, 64, 2, 128, 8),
    (32, 128, 64, 5, 128, 0),
    (32, 64, 64, 3, 128, 0),
    (16, 128, 64, 5, 128, 0),
    (16, 128, 128, 4, 128, 0),
    (16, 64, 64, 6, 128, 0),
    # Long rows, for cores with half a megabyte and more of memory of their own; no other has room for them.
    (128, 256, 256, 2, 256, 8),
    (128, 128, 256, 3, 256, 8),
    (64, 256, 256, 2, 256, 8),
    (64, 128, 256, 3, 128, 8),
    (16, 128, 256, 4, 128, 0),
)


def configs(shape: Shape) -> list[Config]:
    """The space: tiles of rows of one group; ``swizzle`` is the panel size of the raster order, or 0."""
    if shape["dtype"] == "fp8_block":
        return scaled_configs()
    if shape["dtype"] == "fp8":
        return unscaled_configs()
    keys = ("block_m", "block_n", "block_k", "num_stages", "threads", "swizzle")
    return [dict(zip(keys, tile, strict=True)) for tile in _PLAIN_TILES]


def flops(shape: Shape) -> Any:
    """2·m·n·k: a multiplication and an addition a term of the ``m`` routed rows; padding is not counted."""
    return 2 * whole(shape["m"]) * whole(shape["n"]) * whole(shape["k"])


def _groups_with_rows(shape: Shape) -> Any:
    """How many groups have rows, whose weights alone are needed."""
    m, groups = np.broadcast_arrays(shape["m"], shape["groups"])
    used = [
        np.count_nonzero(group_rows({**shape, "m": a, "groups": b}))
        for a, b in zip(m.ravel().tolist(), groups.ravel().tolist(), strict=True)
    ]
    return np.asarray(used, dtype=np.int64) if m.ndim else int(used[0])


def min_bytes(shape: Shape) -> Any:
    """Each routed row of A read and of C written once, B of every group that has rows read once.

    With fp8 their scales too (four bytes each); an index a row, or a count a group (masked).
    """
    m, n, k, groups = (whole(shape[name]) for name in ("m", "n", "k", "groups"))
    used = _groups_with_rows(shape)
    total = (m * k + used * n * k) * size(_element(shape)) + m * n * size(shape["out_dtype"])
    if shape["dtype"] == "fp8":
        total = total + 4 * (m + used)
    if shape["dtype"] == "fp8_block":
        total = total + 4 * groups_of(k) * (m + used * groups_of(n))
    return total + 4 * (groups if shape["masked"] else m)


def _layout(shape: Shape, rows: np.ndarray) -> Arrays:
    """``masked_m``, or ``m_indices`` of (buffer rows,) with -1 where a row is padding, for rows by group."""
    if shape["masked"]:
        return {"masked_m": rows.astype(np.int32)}
    index = np.full(int(capacity(shape)), -1, np.int32)
    first = 0
    for group, count in enumerate(rows.tolist()):
        index[first : first + count] = group
        first += -(-count // ALIGNMENT) * ALIGNMENT
    return {"m_indices": index}


def tensors(shape: Shape) -> Mapping[str, np.ndarray]:
    """The routing: rows by group as :func:`group_rows` has them. Sizes may be arrays of one element."""
    rows = group_rows(shape)
    return _layout({**shape, "m": int(rows.sum()), "groups": len(rows)}, rows)


def _routed(shape: Shape, layout: Mapping[str, np.ndarray]) -> np.ndarray:
    """Group of every row of the buffer, -1 for padding: shape (rows,) or (groups, rows)."""
    if not shape["masked"]:
        return layout["m_indices"]
    counts = layout["masked_m"]
    inside = np.arange(capacity(shape)) < counts[:, None]
    return np.where(inside, np.arange(len(counts))[:, None], -1)


def _operands(shape: Shape, rng: np.random.Generator, rows: np.ndarray) -> Arrays:
    batch = (shape["groups"],) if shape["masked"] else ()
    a_shape = (*batch, capacity(shape), shape["k"])
    b_shape = (shape["groups"], shape["n"], shape["k"])
    layout = _layout(shape, rows)
    if _element(shape) != "fp8":
        A, B = (random_operand(rng, s, shape["dtype"]) for s in (a_shape, b_shape))
        return {"A": A, "B": B, **layout}
    if shape["dtype"] == "fp8":
        A, A_scale = quantised_operand(rng, a_shape, 1, shape["k"])
        B, B_scale = quantised_operand(rng, b_shape, shape["n"], shape["k"])
        A_scale, B_scale = A_scale[..., 0], B_scale[:, 0, 0]
    else:
        A, A_scale = quantised_operand(rng, a_shape, 1)
        B, B_scale = quantised_operand(rng, b_shape, BLOCK)
    return {"A": A, "A_scale": A_scale, "B": B, "B_scale": B_scale, **layout}


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """A and C of (rows, …), or (groups, rows, …) masked, with ``rows`` the buffer's; B of (groups, n, k).

    Padding rows of A hold numbers too: nothing may depend on them.
    """
    return _operands(shape, rng, group_rows(shape))


def reference(
    shape: Shape,
    A: np.ndarray,
    B: np.ndarray,
    A_scale: np.ndarray | None = None,
    B_scale: np.ndarray | None = None,
    **layout: np.ndarray,
) -> Arrays:
    """C of (rows, n) or (groups, rows, n) in float64, not rounded; rows of padding are zero."""
    a, b = A.astype(np.float64), B.astype(np.float64)
    if A_scale is not None and B_scale is not None:
        if shape["dtype"] == "fp8":
            a, b = a * A_scale[..., None].astype(np.float64), b * B_scale[:, None, None].astype(np.float64)
        else:
            a, b = dequantised(A, A_scale, 1), dequantised(B, B_scale, BLOCK)
    routed = _routed(shape, layout)
    c = np.zeros((*routed.shape, shape["n"]))
    for group in range(shape["groups"]):
        c[routed == group] = a[routed == group] @ b[group].T
    return {"C": c}


def comparable(shape: Shape, inputs: Arrays, outputs: Arrays) -> Arrays:
    """The rows of C that belong to a group; what a kernel leaves in rows of padding is of no meaning."""
    return {"C": outputs["C"][_routed(shape, inputs) >= 0]}


def tolerance(shape: Shape) -> Tolerance:
    """One rounding to ``out_dtype`` and those of float32 sums over k."""
    return product_tolerance(shape["out_dtype"], shape["k"])


def check(shape: Shape) -> None:
    """Refuse an uneven split among one group."""
    if shape["skew"] and np.any(np.asarray(shape["groups"]) < 2):
        raise OperatorError(f"grouped_gemm: skew={shape['skew']} needs two groups or more")


def _front(shape: Shape, rng: np.random.Generator) -> Arrays:
    """The first groups are filled one after the other (to the buffer, masked); the last ones are empty."""
    most = int(capacity(shape)) if shape["masked"] else int(shape["m"])
    begin = np.minimum(np.arange(shape["groups"] + 1) * most, shape["m"])
    return _operands(shape, rng, np.diff(begin))


def _holes(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Every other group has one row, the last one too, the rest none: most of the buffer is padding."""
    return _operands(shape, rng, np.arange(shape["groups"])[::-1] % 2 ^ 1)


OPERATOR = Operator(
    name="grouped_gemm",
    doc=(
        "Products of rows with the weights of their group (expert), C[r] = A[r] B[group of r]ᵀ, for m rows "
        "in all; B is (groups, n, k). Contiguous layout: A is (rows, k) with each group's rows in one piece "
        "padded to 128, m_indices (rows,) the group of each row or -1 for padding. Masked layout: A is "
        "(groups, rows, k), of which group g has the first masked_m[g]. C is A with n for k. With fp8, A has "
        "a float32 scale a row (A_scale), B one a group (B_scale); with fp8_block A has one a row and 128 of "
        "k, B one a block of 128 × 128, as in gemm_fp8_block."
    ),
    params=(
        Param("m", "routed rows of all groups together (tokens · experts a token)", dynamic=True),
        Param("n", "rows of each group's B, columns of C", dynamic=True),
        Param("k", "depth of the products", dynamic=True),
        Param("groups", "groups (experts)", dynamic=True),
        Param(
            "dtype",
            "type of A and B",
            kind="dtype",
            default="bf16",
            choices=("bf16", "fp16", "fp8", "fp8_block"),
        ),
        Param("masked", "masked layout instead of contiguous", kind="bool", default=False),
        Param("skew", "per cent by which the fullest group is above the mean", default=0, minimum=0),
        Param(
            "out_dtype",
            "type of C; bf16 by default",
            kind="dtype",
            default="bf16",
            choices=("bf16", "fp16", "fp32"),
        ),
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
    adversarial={"front": _front, "holes": _holes},
    comparable=comparable,
    compute_dtype=_element,
    example={"m": 300, "n": 150, "k": 200, "groups": 4},
)
