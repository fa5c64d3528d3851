"""Parts that the matrix product's variants share, and the variants that finish in a second launch."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Shape
from foretile.kernels.operators._common import full

_FINISH_ROWS, _FINISH_COLS, _FINISH_THREADS = 8, 256, 256


def sizes(shape: Shape) -> tuple[Any, Any, Any, Any, tuple[Any, ...], tuple[Any, ...]]:
    """Batch, M, N, K (numbers or symbolic) and the shapes of the tensors A and B."""
    batch, M, N, K = shape["batch"], shape["m"], shape["n"], shape["k"]
    a_shape = (batch, K, M) if shape["trans_a"] else (batch, M, K)
    b_shape = (batch, N, K) if shape["trans_b"] else (batch, K, N)
    return batch, M, N, K, a_shape, b_shape


def accumulator(shape: Shape) -> str:
    """Type of the accumulators."""
    return "int32" if shape["dtype"] == "int8" else "float32"


def mainloop(shape: Shape, config: Config) -> tuple[tuple[int, int], tuple[int, int], Any]:
    """Shapes of the shared tiles, laid out as the operands are, and the K loop every variant shares."""
    trans_A, trans_B, num_stages = shape["trans_a"], shape["trans_b"], config["num_stages"]
    block_M, block_N, block_K = config["block_m"], config["block_n"], config["block_k"]
    swap = config.get("swap", 0)

    @T.macro
    def multiply(
        A: Any,
        B: Any,
        A_shared: Any,
        B_shared: Any,
        C_local: Any,
        bz: Any,
        by: Any,
        bx: Any,
        first: Any,
        last: Any,
    ) -> None:
        T.clear(C_local)
        for ko in T.Pipelined(first, last, num_stages=num_stages):
            if trans_A:
                T.copy(A[bz, ko * block_K, by * block_M], A_shared)
            else:
                T.copy(A[bz, by * block_M, ko * block_K], A_shared)
            if trans_B:
                T.copy(B[bz, bx * block_N, ko * block_K], B_shared)
            else:
                T.copy(B[bz, ko * block_K, bx * block_N], B_shared)
            if swap:  # Cᵀ = Bᵀ · Aᵀ
                T.gemm(B_shared, A_shared, C_local, transpose_A=not trans_B, transpose_B=not trans_A)
            else:
                T.gemm(A_shared, B_shared, C_local, transpose_A=trans_A, transpose_B=trans_B)

    a_tile = (block_K, block_M) if trans_A else (block_M, block_K)
    b_tile = (block_N, block_K) if trans_B else (block_K, block_N)
    return a_tile, b_tile, multiply


def result(config: Config) -> tuple[tuple[int, int], Any]:
    """Shape of the accumulators, and the macro that stores them at the tile of a row and a column.

    With ``swap`` they hold the transposed tile: the instruction's rows, of which it wants 64 or 128,
    are columns of C, and rows of C come in steps of eight.
    """
    block_M, block_N, swap = config["block_m"], config["block_n"], config.get("swap", 0)

    @T.macro
    def store(C_local: Any, C: Any, bz: Any, by: Any, bx: Any) -> None:
        if swap:
            for i, j in T.Parallel(block_M, block_N):
                C[bz, by * block_M + i, bx * block_N + j] = C_local[j, i]
        else:
            T.copy(C_local, C[bz, by * block_M, bx * block_N])

    return (block_N, block_M) if swap else (block_M, block_N), store


def split_k(shape: Shape, config: Config) -> tuple[TileProgram, TileProgram]:
    """``split_k`` blocks an output tile, each with its share of K; then the named epilogue.

    The first launch adds its partial tiles atomically to the accumulator-typed workspace ``W``;
    the second, ``gemm_split_k_finish``, converts ``W`` to ``C`` and leaves ``W`` zero for the
    next call, so that no launch is spent on clearing it.
    """
    batch, M, N, K, a_shape, b_shape = sizes(shape)
    dtype, out_dtype, accum_dtype = full(shape["dtype"]), full(shape["out_dtype"]), accumulator(shape)
    block_M, block_N, block_K = config["block_m"], config["block_n"], config["block_k"]
    threads, split = config["threads"], config["split_k"]
    a_tile, b_tile, multiply = mainloop(shape, config)

    @T.prim_func
    def gemm_split_k(
        A: T.Tensor(a_shape, dtype),
        B: T.Tensor(b_shape, dtype),
        W: T.Tensor((batch, M, N), accum_dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), batch * split, threads=threads) as (
            bx,
            by,
            bs,
        ):
            A_shared = T.alloc_shared(a_tile, dtype)
            B_shared = T.alloc_shared(b_tile, dtype)
            C_local = T.alloc_fragment((block_M, block_N), accum_dtype)
            bz, part = bs // split, bs % split
            k_tiles = T.ceildiv(K, block_K)  # dealt out evenly: no two parts differ by more than one
            first, last = part * k_tiles // split, (part + 1) * k_tiles // split
            multiply(A, B, A_shared, B_shared, C_local, bz, by, bx, first, last)
            T.atomic_add(W[bz, by * block_M, bx * block_N], C_local)

    rows, cols = _FINISH_ROWS, _FINISH_COLS

    @T.prim_func
    def gemm_split_k_finish(
        W: T.Tensor((batch, M, N), accum_dtype),
        C: T.Tensor((batch, M, N), out_dtype),
    ) -> None:
        with T.Kernel(T.ceildiv(N, cols), T.ceildiv(M, rows), batch, threads=_FINISH_THREADS) as (bx, by, bz):
            W_local = T.alloc_fragment((rows, cols), accum_dtype)
            T.copy(W[bz, by * rows, bx * cols], W_local)
            T.copy(W_local, C[bz, by * rows, bx * cols])
            T.clear(W_local)
            T.copy(W_local, W[bz, by * rows, bx * cols])

    return gemm_split_k, gemm_split_k_finish


def stream_k(shape: Shape, config: Config) -> tuple[TileProgram, TileProgram]:
    """``cores`` blocks that share the iterations of all tiles' K loops evenly (arXiv:2301.03598).

    The tiles' loops stand one after the other, and every block takes a run of them: the rest of a
    tile that the block before it has begun, whole tiles, which it writes to ``C`` itself, and the
    beginning of another. Parts of tiles are added atomically to the accumulator-typed workspace
    ``W``; the second launch, ``gemm_stream_k_finish``, converts the tiles that are cut and leaves
    ``W`` zero for the next call. There are no more blocks than iterations.
    """
    batch, M, N, K, a_shape, b_shape = sizes(shape)
    dtype, out_dtype, accum_dtype = full(shape["dtype"]), full(shape["out_dtype"]), accumulator(shape)
    block_M, block_N, cores, threads = (config[key] for key in ("block_m", "block_n", "cores", "threads"))
    a_tile, b_tile, multiply = mainloop(shape, config)
    m_tiles, n_tiles, k_tiles = T.ceildiv(M, block_M), T.ceildiv(N, block_N), T.ceildiv(K, config["block_k"])
    total = batch * m_tiles * n_tiles * k_tiles
    blocks = T.min(cores, total)

    def share(block: Any) -> Any:
        """First iteration of a block; no product of sizes that might not fit 32 bits."""
        return block * (total // blocks) + T.min(block, total % blocks)

    def place(tile: Any) -> tuple[Any, Any, Any]:
        """Batch, row and column of a tile, columns fastest."""
        return tile // (m_tiles * n_tiles), tile // n_tiles % m_tiles, tile % n_tiles

    @T.prim_func
    def gemm_stream_k(
        A: T.Tensor(a_shape, dtype),
        B: T.Tensor(b_shape, dtype),
        C: T.Tensor((batch, M, N), out_dtype),
        W: T.Tensor((batch, M, N), accum_dtype),
    ) -> None:
        with T.Kernel(blocks, threads=threads) as block:
            A_shared = T.alloc_shared(a_tile, dtype)
            B_shared = T.alloc_shared(b_tile, dtype)
            C_local = T.alloc_fragment((block_M, block_N), accum_dtype)
            begin, end = share(block), share(block + 1)
            cut = begin // k_tiles  # the tile that ``begin`` falls into or starts
            whole = (begin + (k_tiles - 1)) // k_tiles  # the first one that this block begins
            rest = T.max(whole, end // k_tiles)  # the tile after the last one that it ends

            bz, by, bx = place(cut)
            from_k = begin % k_tiles
            last_part = T.min(end, whole * k_tiles) - begin
            multiply(A, B, A_shared, B_shared, C_local, bz, by, bx, from_k, from_k + last_part)
            if last_part > 0:
                T.atomic_add(W[bz, by * block_M, bx * block_N], C_local)
            for tile in T.serial(whole, rest):
                bz, by, bx = place(tile)
                multiply(A, B, A_shared, B_shared, C_local, bz, by, bx, 0, k_tiles)
                T.copy(C_local, C[bz, by * block_M, bx * block_N])
            bz, by, bx = place(rest)
            first_part = T.max(0, end - rest * k_tiles)
            multiply(A, B, A_shared, B_shared, C_local, bz, by, bx, 0, first_part)
            if first_part > 0:
                T.atomic_add(W[bz, by * block_M, bx * block_N], C_local)

    rows = 16  # of which every tile is a multiple

    @T.prim_func
    def gemm_stream_k_finish(
        W: T.Tensor((batch, M, N), accum_dtype),
        C: T.Tensor((batch, M, N), out_dtype),
    ) -> None:
        with T.Kernel(block_M // rows, blocks, threads=_FINISH_THREADS) as (bx, block):
            W_local = T.alloc_fragment((rows, block_N), accum_dtype)
            zeros = T.alloc_fragment((rows, block_N), accum_dtype)
            T.clear(zeros)
            tile = share(block) // k_tiles
            bz, by, column = place(tile)
            row = by * block_M + bx * rows
            # A tile is finished by the first block that begins inside it.
            if share(block) > tile * k_tiles and share(block - 1) <= tile * k_tiles:
                T.copy(W[bz, row, column * block_N], W_local)
                T.copy(W_local, C[bz, row, column * block_N])
                T.copy(zeros, W[bz, row, column * block_N])

    return gemm_stream_k, gemm_stream_k_finish
