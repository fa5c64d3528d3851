"""Matrix product ``C[b] = op(A[b]) @ op(B[b])``: a tile a block, split along K, persistent, stream-K."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import (
    Arrays,
    Config,
    Operator,
    OperatorError,
    Param,
    Shape,
    Tolerance,
    storage_tolerance,
)
from foretile.kernels.operators._common import full, random_operand, size, smallest_normal, whole
from foretile.kernels.operators._gemm import accumulator, mainloop, result, sizes, split_k, stream_k

_OUT_DTYPES = {
    "bf16": ("bf16", "fp32"),
    "fp16": ("fp16", "fp32"),
    "fp8": ("bf16", "fp16", "fp32", "fp8"),
    "int8": ("int32", "fp32", "bf16"),
}


def _tile(shape: Shape, config: Config) -> TileProgram:
    """One block an output tile, batch on the grid's z axis."""
    batch, M, N, K, a_shape, b_shape = sizes(shape)
    dtype, out_dtype, accum_dtype = full(shape["dtype"]), full(shape["out_dtype"]), accumulator(shape)
    block_M, block_N, block_K = config["block_m"], config["block_n"], config["block_k"]
    threads, swizzle = config["threads"], config["swizzle"]
    a_tile, b_tile, multiply = mainloop(shape, config)
    c_tile, store = result(config)

    @T.prim_func
    def gemm(
        A: T.Tensor(a_shape, dtype),
        B: T.Tensor(b_shape, dtype),
        C: T.Tensor((batch, M, N), out_dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), batch, threads=threads) as (bx, by, bz):
            A_shared = T.alloc_shared(a_tile, dtype)
            B_shared = T.alloc_shared(b_tile, dtype)
            C_local = T.alloc_fragment(c_tile, accum_dtype)
            if swizzle:
                T.use_swizzle(panel_size=swizzle)
            multiply(A, B, A_shared, B_shared, C_local, bz, by, bx, 0, T.ceildiv(K, block_K))
            store(C_local, C, bz, by, bx)

    traced: TileProgram = gemm
    return traced


def _persistent(shape: Shape, config: Config) -> TileProgram:
    """One block a core; the tiles of all batches, in groups of ``swizzle`` tile rows, dealt round robin."""
    batch, M, N, K, a_shape, b_shape = sizes(shape)
    dtype, out_dtype, accum_dtype = full(shape["dtype"]), full(shape["out_dtype"]), accumulator(shape)
    block_M, block_N, block_K = config["block_m"], config["block_n"], config["block_k"]
    threads, cores, group_size = config["threads"], config["cores"], max(1, config["swizzle"])
    m_tiles, n_tiles = T.ceildiv(M, block_M), T.ceildiv(N, block_N)
    a_tile, b_tile, multiply = mainloop(shape, config)
    c_tile, store = result(config)

    @T.prim_func
    def gemm_persistent(
        A: T.Tensor(a_shape, dtype),
        B: T.Tensor(b_shape, dtype),
        C: T.Tensor((batch, M, N), out_dtype),
    ) -> None:
        with T.Kernel(cores, threads=threads) as block_id:
            A_shared = T.alloc_shared(a_tile, dtype)
            B_shared = T.alloc_shared(b_tile, dtype)
            C_local = T.alloc_fragment(c_tile, accum_dtype)
            for bx, row in T.Persistent([n_tiles, batch * m_tiles], cores, block_id, group_size=group_size):
                bz, by = row // m_tiles, row % m_tiles
                multiply(A, B, A_shared, B_shared, C_local, bz, by, bx, 0, T.ceildiv(K, block_K))
                store(C_local, C, bz, by, bx)

    traced: TileProgram = gemm_persistent
    return traced


_VARIANTS: dict[str, Any] = {
    "tile": _tile,
    "split_k": split_k,
    "persistent": _persistent,
    "stream_k": stream_k,
}


def program(shape: Shape, config: Config) -> TileProgram | tuple[TileProgram, ...]:
    """The variant ``config["variant"]`` names; ``swap``: the block computes the transpose of its tile.

    Raises:
        OperatorError: an unknown variant, a tile that is no multiple of 16 (``block_m`` of 8 with
            ``swap``), or ``swap`` with a variant whose blocks share a tile.
    """
    variant = config["variant"]
    if variant not in _VARIANTS:
        raise OperatorError(f"gemm: variant={variant!r} is not one of {', '.join(_VARIANTS)}")
    swap = config.get("swap", 0)
    if swap and variant in ("split_k", "stream_k"):
        raise OperatorError(f"gemm: swap does not go with variant={variant!r}; tile and persistent have it")
    for key in ("block_m", "block_n", "block_k"):
        step = 8 if key == "block_m" and swap else 16
        if config[key] % step:
            raise OperatorError(f"gemm: {key}={config[key]} is not a multiple of {step}")
    traced: TileProgram | tuple[TileProgram, ...] = _VARIANTS[variant](shape, config)
    return traced


# (block_m, block_n, threads, swizzle, ((bytes of a K row of a tile, stages), …)), likeliest first.
_TILES = (
    (128, 256, 256, 8, ((128, 3), (128, 4), (64, 4), (128, 2))),
    (256, 128, 256, 8, ((128, 3), (128, 4), (64, 4), (128, 2))),
    (128, 128, 256, 8, ((128, 4), (128, 3), (128, 6), (128, 5), (128, 2), (64, 4), (64, 3), (64, 2))),
    (128, 192, 256, 8, ((128, 4), (128, 5), (128, 3))),
    (192, 128, 256, 8, ((128, 4), (128, 5), (128, 3))),
    (128, 64, 128, 8, ((128, 4), (128, 8), (128, 3), (64, 4), (64, 2))),
    (64, 128, 128, 8, ((128, 4), (128, 8), (128, 3), (64, 4), (64, 2))),
    (64, 256, 256, 8, ((128, 4), (128, 5), (128, 3))),
    (256, 64, 256, 8, ((128, 4),)),
    (64, 64, 128, 0, ((128, 5), (128, 12), (128, 3), (256, 3), (64, 2))),
    (16, 128, 128, 0, ((128, 5), (128, 12), (256, 4))),
    (32, 128, 128, 0, ((128, 5), (128, 10), (256, 3))),
    (16, 64, 128, 0, ((256, 4), (128, 6), (128, 16))),
    (32, 64, 128, 0, ((128, 5), (128, 16))),
    (128, 32, 128, 0, ((128, 4), (128, 6), (128, 10))),
    (256, 256, 512, 8, ((128, 2), (64, 4))),
    # Between the powers of two, where asynchronous matrix units take any width: fewer idle cores in the
    # last wave.
    (128, 96, 256, 8, ((128, 4), (128, 7))),
    (128, 160, 256, 8, ((128, 4),)),
    (128, 224, 256, 8, ((128, 4),)),
    (64, 96, 128, 8, ((128, 4), (128, 10))),
    (64, 160, 128, 8, ((128, 4),)),
    (64, 192, 128, 8, ((128, 4), (128, 6))),
    (192, 96, 384, 8, ((128, 4),)),
    (192, 192, 384, 8, ((128, 3),)),
    (192, 256, 384, 8, ((128, 3),)),
    (256, 96, 256, 8, ((128, 4),)),
    (256, 160, 256, 8, ((128, 3),)),
    (256, 192, 256, 8, ((128, 3),)),
    (64, 32, 128, 0, ((128, 6), (128, 16))),
    (64, 16, 128, 0, ((128, 8), (128, 16))),
)
# (variant, block_m, block_n, threads, swizzle, bytes of a K row, stages): long rows, for cores with half a
# megabyte and more of memory of their own, whose copies move them faster. No other has room for them.
_DEEP_TILES = (
    ("persistent", 128, 256, 256, 8, 512, 2),
    ("persistent", 256, 256, 512, 8, 512, 2),
    ("tile", 128, 128, 256, 8, 512, 3),
    ("tile", 64, 128, 128, 8, 1024, 2),
)
# (block_m, block_n, threads, bytes of a K row, stages, parts of the sum)
_SPLIT_TILES = (
    (128, 128, 256, 128, 4, (4, 2, 8, 16)),
    (128, 128, 256, 128, 6, (4, 2, 8, 16)),
    (64, 128, 128, 128, 4, (4, 2, 8, 16)),
    (64, 128, 128, 128, 8, (4, 2, 8, 16)),
    (64, 64, 128, 128, 5, (4, 2, 8, 16, 32, 64)),
    (64, 64, 128, 128, 12, (4, 2, 8, 16, 32, 64)),
    (16, 128, 128, 256, 4, (4, 2, 8, 16)),
    (16, 64, 128, 256, 4, (4, 2, 8, 16, 32, 64)),
    (128, 256, 256, 128, 3, (2, 3, 4, 6)),
    (128, 96, 256, 128, 4, (4, 8)),
    (64, 192, 128, 128, 4, (4,)),
)
# (block_m, block_n, threads, stages) of blocks that compute the transpose of their tile: its rows come in
# steps of eight, so that 257 rows are two tiles and not three, and 17 do not take 64. Such tiles, and
# pipelines as deep as the scratchpad allows, are cuBLAS's on Hopper and Blackwell, by its kernels' names
# (nvjet_tst_64x8_64x16, …_64x72_64x12, …_64x136_64x8, …_128x136_64x6, …_128x152_64x6, …_192x144_64x5).
_SWAPPED_TILES = (
    (8, 64, 128, 16),
    (16, 64, 128, 16),
    (24, 64, 128, 16),
    (32, 64, 128, 16),
    (40, 64, 128, 14),
    (48, 64, 128, 14),
    (56, 64, 128, 13),
    (72, 64, 128, 12),
    (88, 64, 128, 10),
    (104, 64, 128, 10),
    (120, 64, 128, 9),
    (136, 64, 128, 8),
    (176, 64, 128, 6),
    (16, 128, 256, 10),
    (40, 128, 256, 9),
    (72, 128, 256, 8),
    (88, 128, 256, 8),
    (104, 128, 256, 7),
    (120, 128, 256, 6),
    (136, 128, 256, 6),
    (152, 128, 256, 6),
    (176, 128, 256, 5),
    (200, 128, 256, 5),
    (232, 128, 256, 4),
    (144, 192, 384, 5),
    (136, 256, 256, 4),
    (88, 256, 256, 5),
)
_PERSISTENT_TILES = (
    (128, 256, 256, 4),
    (256, 128, 256, 4),
    (128, 256, 256, 3),
    (256, 128, 256, 3),
    (128, 128, 256, 4),
    (128, 192, 256, 4),
)


def configs(shape: Shape) -> list[Config]:
    """The space: block shapes by bytes of a K row, so that int8 and fp8 tiles are twice as deep.

    ``swizzle`` is the panel (or group) size of the raster order in tile rows, 0 for none;
    ``cores`` the number of blocks of the persistent and stream-K variants, to be set to the chip's.
    ``swap``: the matrix instruction's rows are columns of C, see :data:`_SWAPPED_TILES`.
    ``variant="stream_k"`` is made on request only: its blocks differ by an iteration and cut tiles
    meet through atomics, which the closed form that searches the space misjudges by up to a half.
    """

    def config(variant: str, m: int, n: int, threads: int, row: int, stages: int, **other: int) -> Config:
        base = {"swizzle": 0, "split_k": 1, "cores": 132, "swap": 0}
        block_k = row // size(shape["dtype"])
        tile = {"block_m": m, "block_n": n, "block_k": block_k, "num_stages": stages, "threads": threads}
        return {"variant": variant, **tile, **base, **other}

    space = [
        config("tile", m, n, threads, row, stages, swizzle=swizzle)
        for m, n, threads, swizzle, depths in _TILES
        for row, stages in depths
    ]
    space += [
        config("persistent", m, n, threads, 128, stages, swizzle=8)
        for m, n, threads, stages in _PERSISTENT_TILES
    ]
    space += [
        config("split_k", m, n, threads, row, stages, split_k=split)
        for m, n, threads, row, stages, splits in _SPLIT_TILES
        for split in splits
    ]
    space += [config("tile", m, n, threads, 128, stages, swap=1) for m, n, threads, stages in _SWAPPED_TILES]
    space += [
        config(variant, m, n, threads, row, stages, swizzle=swizzle)
        for variant, m, n, threads, swizzle, row, stages in _DEEP_TILES
    ]
    return space


def flops(shape: Shape) -> Any:
    """2·batch·m·n·k: one multiplication and one addition a term; padding is not counted."""
    return 2 * whole(shape["batch"]) * whole(shape["m"]) * whole(shape["n"]) * whole(shape["k"])


def min_bytes(shape: Shape) -> Any:
    """A and B read once, C written once (in ``out_dtype``)."""
    batch, m, n, k = (whole(shape[name]) for name in ("batch", "m", "n", "k"))
    return batch * ((m * k + k * n) * size(shape["dtype"]) + m * n * size(shape["out_dtype"]))


def inputs(shape: Shape, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A of (batch, m, k), or (batch, k, m) with ``trans_a``; B of (batch, k, n), or (batch, n, k)."""
    *_, a_shape, b_shape = sizes(shape)
    return {
        "A": random_operand(rng, a_shape, shape["dtype"]),
        "B": random_operand(rng, b_shape, shape["dtype"]),
    }


def reference(shape: Shape, A: np.ndarray, B: np.ndarray) -> dict[str, np.ndarray]:
    """C of (batch, m, n) in float64, not rounded to ``out_dtype``."""
    a, b = A.astype(np.float64), B.astype(np.float64)
    a = a.swapaxes(1, 2) if shape["trans_a"] else a
    b = b.swapaxes(1, 2) if shape["trans_b"] else b
    return {"C": a @ b}


def tolerance(shape: Shape) -> Tolerance:
    """The rounding of C to ``out_dtype``, and that of k partial sums to float32.

    Each addition changes a partial sum by at most 2^-24 of it. The changes are independent, a random
    walk of k steps, and the partial sums of unrelated terms are no larger than the result. Tiles that
    meet in a float32 workspace (``split_k``, ``stream_k``) add in another order, not in another
    precision. Sums of int8 products are exact.
    """
    stored = storage_tolerance(shape)
    walk = 0.0 if shape["dtype"] == "int8" else 2.0**-24 * float(np.sqrt(shape["k"]))
    return Tolerance(norm=stored.norm + walk, peak=stored.peak + 2.0 * walk)


# Powers of two over which operands are spread: products of two stay far inside the result types.
_SPREAD = {"bf16": 30, "fp16": 6, "fp8": 3}
# Powers of two that bring products with the smallest numbers of a type back to normal ones.
_RAISED = {"bf16": 100, "fp16": 10, "fp8": 6}


def _wide_range(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Terms of a sum from factors of very different sizes, and rows that are far smaller than others."""
    found = inputs(shape, rng)
    if shape["dtype"] == "int8":
        return found  # its inputs span the whole range
    spread = _SPREAD[shape["dtype"]]
    factor = np.exp2(rng.integers(-spread, spread + 1, (shape["k"], 1)))
    rows = np.exp2(-rng.integers(0, spread + 1, (shape["m"], 1)))
    a = found["A"] * (factor * rows.T if shape["trans_a"] else rows * factor.T)
    b = found["B"] / (factor.T if shape["trans_b"] else factor)
    return {"A": a.astype(found["A"].dtype), "B": b.astype(found["B"].dtype)}


def _denormals(shape: Shape, rng: np.random.Generator) -> Arrays:
    """A of subnormal numbers (of -1, 0 and 1 for int8), B large enough for normal results."""
    found = inputs(shape, rng)
    stored = found["A"].dtype
    if shape["dtype"] == "int8":
        return {**found, "A": rng.integers(-1, 2, found["A"].shape, dtype=stored)}
    normal = smallest_normal(shape["dtype"])
    b = found["B"].astype(np.float64) * 2.0 ** _RAISED[shape["dtype"]]
    return {"A": rng.uniform(-normal, normal, found["A"].shape).astype(stored), "B": b.astype(stored)}


def _constant(shape: Shape, rng: np.random.Generator) -> Arrays:
    """All elements equal, for int8 the one of largest product: sums grow as far as they can, exactly."""
    found = inputs(shape, rng)
    return {name: np.full_like(x, -128 if shape["dtype"] == "int8" else 0.125) for name, x in found.items()}


def check(shape: Shape) -> None:
    """Refuse result types that the operand type's accumulator does not turn into."""
    allowed = _OUT_DTYPES[shape["dtype"]]
    if shape["out_dtype"] not in allowed:
        raise OperatorError(
            f"gemm: out_dtype={shape['out_dtype']} does not go with dtype={shape['dtype']}; "
            f"it is one of {', '.join(allowed)}"
        )


OPERATOR = Operator(
    name="gemm",
    doc=(
        "Matrix product C[b] = op(A[b]) @ op(B[b]), row-major: A is (batch, m, k), B (batch, k, n), "
        "C (batch, m, n); a transposed operand is stored (batch, k, m) or (batch, n, k). "
        "Accumulates in fp32 (int32 for int8)."
    ),
    params=(
        Param("m", "rows of C", dynamic=True),
        Param("n", "columns of C", dynamic=True),
        Param("k", "length of the sum", dynamic=True),
        Param("dtype", "type of A and B", kind="dtype", default="bf16", choices=tuple(_OUT_DTYPES)),
        Param("batch", "independent products", default=1, dynamic=True),
        Param("trans_a", "A is stored (k, m)", kind="bool", default=False),
        Param("trans_b", "B is stored (n, k)", kind="bool", default=False),
        Param(
            "out_dtype",
            "type of C; by default dtype, but bf16 for fp8 and int32 for int8",
            kind="dtype",
            default="=dtype",
            default_map=(("fp8", "bf16"), ("int8", "int32")),
            choices=("bf16", "fp16", "fp32", "fp8", "int32"),
        ),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    check=check,
    tolerance=tolerance,
    adversarial={"wide_range": _wide_range, "denormals": _denormals, "constant": _constant},
    example={"m": 300, "n": 200, "k": 170},
)
