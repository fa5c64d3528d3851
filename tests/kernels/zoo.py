"""Kernels written as users of TileLang write them; the tests trace, print and compare them."""

from __future__ import annotations

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram


def matmul(
    N=1024, K=512, block_M=128, block_N=128, block_K=32, dtype="float16", accum_dtype="float", relu=False
) -> TileProgram:
    M = T.dynamic("m")

    @T.prim_func
    def gemm(A: T.Tensor((M, K), dtype), B: T.Tensor((K, N), dtype), C: T.Tensor((M, N), dtype)):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=128) as (bx, by):
            A_shared = T.alloc_shared((block_M, block_K), dtype)
            B_shared = T.alloc_shared((block_K, block_N), dtype)
            C_local = T.alloc_fragment((block_M, block_N), accum_dtype)

            T.use_swizzle(panel_size=10, enable=True)
            T.annotate_layout({A_shared: T.make_swizzled_layout(A_shared)})
            T.clear(C_local)

            for ko in T.Pipelined(T.ceildiv(K, block_K), num_stages=3):
                # Copy a tile of A by its corner, and B element by element.
                T.copy(A[by * block_M, ko * block_K], A_shared)
                for k, j in T.Parallel(block_K, block_N):
                    B_shared[k, j] = B[ko * block_K + k, bx * block_N + j]
                T.gemm(A_shared, B_shared, C_local)

            if relu:
                for i, j in T.Parallel(block_M, block_N):
                    C_local[i, j] = T.max(C_local[i, j], 0)

            T.copy(C_local, C[by * block_M, bx * block_N])

    return gemm


def persistent_matmul(M=1024, N=1024, K=512, blocks=132) -> TileProgram:
    block_M, block_N, block_K = 128, 256, 64

    @T.prim_func
    def main(
        A: T.Tensor((M, K), "bfloat16"), B: T.Tensor((N, K), "bfloat16"), C: T.Tensor((M, N), "bfloat16")
    ):
        with T.Kernel(blocks, threads=256) as block_id:
            A_shared = T.alloc_shared((block_M, block_K), "bfloat16")
            B_shared = T.alloc_shared((block_N, block_K), "bfloat16")
            C_local = T.alloc_fragment((block_M, block_N), "float32")
            for bx, by in T.Persistent([T.ceildiv(M, block_M), T.ceildiv(N, block_N)], blocks, block_id):
                T.clear(C_local)
                for k in T.Pipelined(T.ceildiv(K, block_K), num_stages=4):
                    T.copy(A[bx * block_M, k * block_K], A_shared)
                    T.copy(B[by * block_N, k * block_K], B_shared)
                    T.gemm(A_shared, B_shared, C_local, transpose_B=True)
                T.copy(C_local, C[bx * block_M, by * block_N])

    return main


def flash_attention(heads=32, dim=128, causal=True, block_M=128, block_N=64, num_stages=2) -> TileProgram:
    scale = (1.0 / dim) ** 0.5 * 1.44269504  # log2(e)
    batch, seq_len = T.dynamic("batch, seq_len")
    shape = [batch, seq_len, heads, dim]
    dtype, accum_dtype = "float16", "float"

    @T.macro
    def softmax(acc_s, acc_s_cast, scores_max, scores_max_prev, scores_scale, scores_sum, logsum):
        T.copy(scores_max, scores_max_prev)
        T.fill(scores_max, -T.infinity(accum_dtype))
        T.reduce_max(acc_s, scores_max, dim=1, clear=False)
        for i in T.Parallel(block_M):
            scores_scale[i] = T.exp2(scores_max_prev[i] * scale - scores_max[i] * scale)
        for i, j in T.Parallel(block_M, block_N):
            acc_s[i, j] = T.exp2(acc_s[i, j] * scale - scores_max[i] * scale)
        T.reduce_sum(acc_s, scores_sum, dim=1)
        for i in T.Parallel(block_M):
            logsum[i] = logsum[i] * scores_scale[i] + scores_sum[i]
        T.copy(acc_s, acc_s_cast)

    @T.prim_func
    def main(
        Q: T.Tensor(shape, dtype),
        K: T.Tensor(shape, dtype),
        V: T.Tensor(shape, dtype),
        Output: T.Tensor(shape, dtype),
    ):
        with T.Kernel(T.ceildiv(seq_len, block_M), heads, batch, threads=128) as (bx, by, bz):
            Q_shared = T.alloc_shared([block_M, dim], dtype)
            K_shared = T.alloc_shared([block_N, dim], dtype)
            V_shared = T.alloc_shared([block_N, dim], dtype)
            O_shared = T.alloc_shared([block_M, dim], dtype)
            acc_s = T.alloc_fragment([block_M, block_N], accum_dtype)
            acc_s_cast = T.alloc_fragment([block_M, block_N], dtype)
            acc_o = T.alloc_fragment([block_M, dim], accum_dtype)
            scores_max = T.alloc_fragment([block_M], accum_dtype)
            scores_max_prev = T.alloc_fragment([block_M], accum_dtype)
            scores_scale = T.alloc_fragment([block_M], accum_dtype)
            scores_sum = T.alloc_fragment([block_M], accum_dtype)
            logsum = T.alloc_fragment([block_M], accum_dtype)

            T.copy(Q[bz, bx * block_M : (bx + 1) * block_M, by, :], Q_shared)
            T.fill(acc_o, 0)
            T.fill(logsum, 0)
            T.fill(scores_max, -T.infinity(accum_dtype))

            loop_range = (
                T.min(T.ceildiv(seq_len, block_N), T.ceildiv((bx + 1) * block_M, block_N))
                if causal
                else T.ceildiv(seq_len, block_N)
            )
            for k in T.Pipelined(loop_range, num_stages=num_stages):
                T.copy(K[bz, k * block_N : (k + 1) * block_N, by, :], K_shared)
                if causal:
                    for i, j in T.Parallel(block_M, block_N):
                        acc_s[i, j] = T.if_then_else(
                            bx * block_M + i >= k * block_N + j, 0, -T.infinity(acc_s.dtype)
                        )
                else:
                    T.clear(acc_s)
                T.gemm(Q_shared, K_shared, acc_s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                softmax(acc_s, acc_s_cast, scores_max, scores_max_prev, scores_scale, scores_sum, logsum)
                for i, j in T.Parallel(block_M, dim):
                    acc_o[i, j] *= scores_scale[i]
                T.copy(V[bz, k * block_N : (k + 1) * block_N, by, :], V_shared)
                T.gemm(acc_s_cast, V_shared, acc_o, policy=T.GemmWarpPolicy.FullRow)
            for i, j in T.Parallel(block_M, dim):
                acc_o[i, j] /= logsum[i]
            T.copy(acc_o, O_shared)
            T.copy(O_shared, Output[bz, bx * block_M : (bx + 1) * block_M, by, :])

    return main


def split_k(M=256, N=256, K=4096, splits=4) -> TileProgram:
    @T.prim_func
    def main(A: T.Tensor((M, K), "float16"), B: T.Tensor((K, N), "float16"), C: T.Tensor((M, N), "float32")):
        with T.Kernel(N // 64, M // 64, splits, threads=128) as (bx, by, bz):
            A_shared = T.alloc_shared((64, 32), T.float16)
            B_shared = T.alloc_shared((32, 64), T.float16)
            C_local = T.alloc_fragment((64, 64), T.float32)
            T.clear(C_local)
            for k in T.Pipelined(K // splits // 32, num_stages=2):
                start = bz * (K // splits) + k * 32
                T.copy(A[by * 64, start], A_shared)
                T.copy(B[start, bx * 64], B_shared)
                T.gemm(A_shared, B_shared, C_local, clear_accum=False)
            T.atomic_add(C[by * 64, bx * 64], C_local)

    return main


def grouped_rows(groups=8, hidden=64) -> TileProgram:
    """Rows of each group scaled; trip counts and row numbers are data."""
    rows = T.dynamic("rows")

    @T.prim_func
    def main(
        X: T.Tensor((rows, hidden), "bfloat16"),
        Offsets: T.Tensor((groups + 1,), "int32"),
        Index: T.Tensor((rows,), "int32"),
        Y: T.Tensor((rows, hidden), "bfloat16"),
        Count: T.Tensor((1,), "int32"),
    ):
        with T.Kernel(groups, threads=64) as bx:
            tile = T.alloc_fragment((16, hidden), "float32")
            seen = T.alloc_var("int32", init=0)
            start, end = Offsets[bx], Offsets[bx + 1]
            length = end - start
            for t in range(T.ceildiv(length, 16)):
                for i, j in T.Parallel(16, hidden):
                    row = start + t * 16 + i
                    if row < end and (j % 2 == 0 or not T.isnan(X[Index[row], j])):
                        tile[i, j] = X[Index[row], j].astype("float32") * T.sigmoid(T.cast(bx, "float32"))
                    elif row >= end:
                        tile[i, j] = 0
                    else:
                        tile[i, j] = -1.5
                for i, j in T.Parallel(16, hidden):
                    if start + t * 16 + i < end:
                        Y[start + t * 16 + i, j] = tile[i, j]
                seen += 1
                if seen > 3:
                    seen = seen // 2
            while seen > 1:
                seen = seen - 1
            if bx == 0:
                T.atomic_max(Count[0], seen)
                T.atomic_add(Count[0], 1)

    return main


def layer(columns=1024, block=256, dtype=T.bfloat16) -> TileProgram:
    """Row statistics with a serial loop, a prefix sum, a barrier and a one-axis grid."""
    rows = T.symbolic("rows")
    eps = 1e-6

    @T.prim_func
    def norm(X: T.Tensor((rows, columns), dtype), Out: T.Tensor[(rows, columns), dtype]):
        with T.Kernel(T.ceildiv(rows, 4), threads=64) as b:
            x = T.alloc_shared((4, block), dtype)
            squares = T.alloc_fragment((4, block), "float32")
            sums = T.alloc_fragment((4,), "float32")
            prefix = T.alloc_fragment((4,), "float32")
            T.annotate_safe_value({X: 0.0})
            T.annotate_l2_hit_ratio({X: 0.8})
            T.clear(sums)
            for c in T.serial(0, columns, block):
                T.copy(X[b * 4 : b * 4 + 4, c : c + block], x)
                T.sync_threads()
                for i, j in T.Parallel(4, block):
                    squares[i, j] = T.cast(x[i, j], "float32") ** 2
                T.reduce_sum(squares, sums, dim=1, clear=False)
            T.cumsum(sums, prefix, dim=0, reverse=True)
            for c in T.unroll(columns // block - 1, -1, -1):
                T.copy(X[b * 4, c * block], x)
                for i, j in T.Parallel(4, block):
                    Out[b * 4 + i, c * block + j] = x[i, j] * T.rsqrt(sums[i] / columns + eps) + prefix[i]

    return norm


ZOO = {
    "matmul": matmul,
    "matmul_relu": lambda: matmul(relu=True),
    "persistent": persistent_matmul,
    "attention": flash_attention,
    "attention_full": lambda: flash_attention(causal=False),
    "split_k": split_k,
    "grouped": grouped_rows,
    "norm": layer,
}
