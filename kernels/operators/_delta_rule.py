"""Tile programs of the gated delta rule: chunks prepared side by side and scanned, or all in one launch."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, Shape
from foretile.kernels.operators._common import LOG2E, full


def delta_sizes(shape: Shape) -> tuple[Any, Any, Any, int, int]:
    """Batch, sequence length, heads (numbers or symbolic), elements of a key and of a value."""
    return shape["batch"], shape["seq"], shape["heads"], shape["head_dim"], shape["value_dim"]


@T.macro
def _growth(decay: Any, since: Any, until: Any) -> None:
    """What is left at each step of the state before the chunk, and of each step's update at the chunk's end.

    Each is one exponential a step, not one an element of what it scales.
    """
    steps = decay.shape[0]
    for i in T.Parallel(steps):
        since[i] = T.exp2(decay[i])
        until[i] = T.exp2(decay[steps - 1] - decay[i])


@T.macro
def _join(A_shared: Any, X_shared: Any, half: int) -> None:
    """Inverses of blocks of ``half`` rows along the diagonal, in ``X_shared``, become those of twice as many.

    Of a pair X_1, X_2 with A_21 below the first, the corner is -X_2 A_21 X_1. Column j of a row of
    ``X_shared`` is the one j behind the beginning of the row's block of ``X_shared.shape[1]``.
    """
    chunk, rows = X_shared.shape
    pairs, both = chunk // (2 * half), 2 * half
    product = T.alloc_fragment((pairs, half, half, half), "float32")
    corner = T.alloc_fragment((pairs, half, half), "float32")
    right = T.alloc_shared((pairs, half, half), "float32")
    for p, i, j, k in T.Parallel(pairs, half, half, half):
        product[p, i, j, k] = (
            A_shared[p * both + half + i, p * both + k] * X_shared[p * both + k, p * both % rows + j]
        )
    T.reduce_sum(product, corner, dim=3)
    T.copy(corner, right)
    for p, i, j, k in T.Parallel(pairs, half, half, half):
        product[p, i, j, k] = X_shared[p * both + half + i, (p * both + half) % rows + k] * right[p, k, j]
    T.reduce_sum(product, corner, dim=3)
    for p, i, j in T.Parallel(pairs, half, half):
        X_shared[p * both + half + i, p * both % rows + j] = -corner[p, i, j]


@T.macro
def _invert(A_shared: Any, T_shared: Any, rows: int) -> None:
    """``T_shared`` = (I + A)^-1 for the strictly lower ``A_shared``, float32.

    The diagonal blocks of ``rows`` rows (a power of two) are inverted by joining pairs of blocks, from
    pairs of rows on, in float32; what is below them follows block row by block row,
    T_b = X_b (I_b - A_b T) with X_b the inverse diagonal block, as matrix products.
    """
    chunk, dtype = A_shared.shape[0], T_shared.dtype
    blocks = chunk // rows
    X_shared = T.alloc_shared((chunk, rows), "float32")
    for i, j in T.Parallel(chunk, rows):
        pair = T.if_then_else((i % 2 == 1 and i % rows == j + 1), -A_shared[i, T.max(i - 1, 0)], 0.0)
        X_shared[i, j] = T.if_then_else(i % rows == j, 1.0, pair)
    if rows >= 4:
        _join(A_shared, X_shared, 2)
    if rows >= 8:
        _join(A_shared, X_shared, 4)
    if rows >= 16:
        _join(A_shared, X_shared, 8)
    if rows >= 32:
        _join(A_shared, X_shared, 16)
    if rows >= 64:
        _join(A_shared, X_shared, 32)
    for i, j in T.Parallel(chunk, chunk):
        T_shared[i, j] = T.if_then_else(i // rows == j // rows, X_shared[i, j % rows], 0.0)

    if blocks > 1:
        A_rows = T.alloc_shared((rows, chunk), dtype)
        X_rows = T.alloc_shared((rows, rows), dtype)
        below = T.alloc_fragment((rows, chunk), "float32")
        for b in T.serial(1, blocks):
            for i, j in T.Parallel(rows, chunk):
                A_rows[i, j] = T.if_then_else(j < b * rows, A_shared[b * rows + i, j], 0.0)
            for i, j in T.Parallel(rows, rows):
                X_rows[i, j] = X_shared[b * rows + i, j]
            T.gemm(A_rows, T_shared, below, policy=T.GemmWarpPolicy.FullCol, clear_accum=True)
            T.copy(below, A_rows)
            T.gemm(X_rows, A_rows, below, policy=T.GemmWarpPolicy.FullCol, clear_accum=True)
            for i, j in T.Parallel(rows, chunk):
                T_shared[b * rows + i, j] = T.if_then_else(
                    j < b * rows, -below[i, j], T_shared[b * rows + i, j]
                )


def prepare(shape: Shape, config: Config) -> TileProgram:
    """One block a chunk of a head: the chunk's updates as a function of the state before it.

    With G the running sum of the log-decay within the chunk (kept in base two), the updates
    u_t = β_t (v_t - α_t S_{t-1}ᵀ k_t) of a chunk solve (I + A) u = diag(β) (V - diag(e^G) K S), where
    A is the strictly lower part of β_i e^(G_i - G_j) k_i·k_j. This launch inverts I + A and writes
    U = T diag(β) V and W = T diag(β e^G) K, so that u = U - W S.
    """
    batch, seq, heads, head_dim, value_dim = delta_sizes(shape)
    dtype, chunk, rows, cols = full(shape["dtype"]), config["chunk"], config["solve_rows"], config["block_d"]
    num_stages, threads = config["num_stages"], config["threads"]
    chunks = T.ceildiv(seq, chunk)

    @T.prim_func
    def gated_delta_prepare(
        K: T.Tensor((batch, seq, heads, head_dim), dtype),
        V: T.Tensor((batch, seq, heads, value_dim), dtype),
        Gate: T.Tensor((batch, seq, heads), "float32"),
        Beta: T.Tensor((batch, seq, heads), "float32"),
        U: T.Tensor((batch, heads, chunks, chunk, value_dim), dtype),
        W: T.Tensor((batch, heads, chunks, chunk, head_dim), dtype),
        Decay: T.Tensor((batch, heads, chunks, chunk), "float32"),
    ) -> None:
        with T.Kernel(chunks, heads, batch, threads=threads) as (bx, by, bz):
            tile = T.alloc_shared((chunk, cols), dtype)
            scaled = T.alloc_shared((chunk, cols), dtype)
            A_shared = T.alloc_shared((chunk, chunk), "float32")
            T_shared = T.alloc_shared((chunk, chunk), dtype)
            decay = T.alloc_shared((chunk,), "float32")
            beta = T.alloc_shared((chunk,), "float32")
            acc = T.alloc_fragment((chunk, chunk), "float32")
            out = T.alloc_fragment((chunk, cols), "float32")

            # Beyond the sequence's end keys, gates and beta read as zero: such steps change nothing.
            T.copy(Gate[bz, bx * chunk : (bx + 1) * chunk, by], decay)
            T.copy(Beta[bz, bx * chunk : (bx + 1) * chunk, by], beta)
            T.cumsum(decay)
            for i in T.Parallel(chunk):
                decay[i] = decay[i] * LOG2E
            T.copy(decay, Decay[bz, by, bx, 0:chunk])

            T.clear(acc)
            for d in T.Pipelined(T.ceildiv(head_dim, cols), num_stages=num_stages):
                T.copy(K[bz, bx * chunk : (bx + 1) * chunk, by, d * cols : (d + 1) * cols], tile)
                T.gemm(tile, tile, acc, transpose_B=True)
            for i, j in T.Parallel(chunk, chunk):
                A_shared[i, j] = T.if_then_else(i > j, acc[i, j] * beta[i] * T.exp2(decay[i] - decay[j]), 0.0)

            _invert(A_shared, T_shared, rows)

            for d in T.Pipelined(T.ceildiv(value_dim, cols), num_stages=num_stages):
                T.copy(V[bz, bx * chunk : (bx + 1) * chunk, by, d * cols : (d + 1) * cols], tile)
                for i, j in T.Parallel(chunk, cols):
                    scaled[i, j] = tile[i, j] * beta[i]
                T.gemm(T_shared, scaled, out, clear_accum=True)
                T.copy(out, U[bz, by, bx, 0:chunk, d * cols : (d + 1) * cols])
            for i in T.Parallel(chunk):
                beta[i] = beta[i] * T.exp2(decay[i])
            for d in T.Pipelined(T.ceildiv(head_dim, cols), num_stages=num_stages):
                T.copy(K[bz, bx * chunk : (bx + 1) * chunk, by, d * cols : (d + 1) * cols], tile)
                for i, j in T.Parallel(chunk, cols):
                    scaled[i, j] = tile[i, j] * beta[i]
                T.gemm(T_shared, scaled, out, clear_accum=True)
                T.copy(out, W[bz, by, bx, 0:chunk, d * cols : (d + 1) * cols])

    traced: TileProgram = gated_delta_prepare
    return traced


def scan(shape: Shape, config: Config) -> TileProgram:
    """One block ``block_v`` columns of a head's state, which it carries over the chunks in registers.

    With S the state before the chunk and u = U - W S its updates,
    O = scale (diag(e^G) Q S + (lower part of e^(G_i - G_j) q_i·k_j) u), and the state after it is
    e^(G_last) S + Σ_j e^(G_last - G_j) k_j u_jᵀ. No exponent is positive.
    """
    batch, seq, heads, head_dim, value_dim = delta_sizes(shape)
    dtype, chunk, cols = full(shape["dtype"]), config["chunk"], config["block_v"]
    num_stages, threads = config["num_stages"], config["threads"]
    chunks, scale = T.ceildiv(seq, chunk), head_dim**-0.5

    @T.prim_func
    def gated_delta_scan(
        Q: T.Tensor((batch, seq, heads, head_dim), dtype),
        K: T.Tensor((batch, seq, heads, head_dim), dtype),
        U: T.Tensor((batch, heads, chunks, chunk, value_dim), dtype),
        W: T.Tensor((batch, heads, chunks, chunk, head_dim), dtype),
        Decay: T.Tensor((batch, heads, chunks, chunk), "float32"),
        State: T.Tensor((batch, heads, head_dim, value_dim), "float32"),
        O: T.Tensor((batch, seq, heads, value_dim), dtype),  # noqa: E741
        Final: T.Tensor((batch, heads, head_dim, value_dim), "float32"),
    ) -> None:
        with T.Kernel(T.ceildiv(value_dim, cols), heads, batch, threads=threads) as (bx, by, bz):
            W_shared = T.alloc_shared((chunk, head_dim), dtype)
            Q_shared = T.alloc_shared((chunk, head_dim), dtype)
            K_shared = T.alloc_shared((chunk, head_dim), dtype)
            U_shared = T.alloc_shared((chunk, cols), dtype)
            S_shared = T.alloc_shared((head_dim, cols), dtype)
            u_shared = T.alloc_shared((chunk, cols), dtype)
            decay = T.alloc_shared((chunk,), "float32")
            since = T.alloc_fragment((chunk,), "float32")
            until = T.alloc_fragment((chunk,), "float32")
            kept: Any = T.alloc_var("float32")
            state = T.alloc_fragment((head_dim, cols), "float32")
            acc_u = T.alloc_fragment((chunk, cols), "float32")
            acc_o = T.alloc_fragment((chunk, cols), "float32")
            acc_s = T.alloc_fragment((chunk, chunk), "float32")
            acc_s_cast = T.alloc_fragment((chunk, chunk), dtype)

            T.copy(State[bz, by, 0:head_dim, bx * cols : (bx + 1) * cols], state)
            for c in T.Pipelined(chunks, num_stages=num_stages):
                T.copy(W[bz, by, c, 0:chunk, 0:head_dim], W_shared)
                T.copy(U[bz, by, c, 0:chunk, bx * cols : (bx + 1) * cols], U_shared)
                T.copy(Q[bz, c * chunk : (c + 1) * chunk, by, 0:head_dim], Q_shared)
                T.copy(K[bz, c * chunk : (c + 1) * chunk, by, 0:head_dim], K_shared)
                T.copy(Decay[bz, by, c, 0:chunk], decay)
                _growth(decay, since, until)
                kept = T.exp2(decay[chunk - 1])

                T.copy(state, S_shared)
                T.gemm(W_shared, S_shared, acc_u, clear_accum=True)
                for i, j in T.Parallel(chunk, cols):
                    acc_u[i, j] = U_shared[i, j] - acc_u[i, j]
                T.copy(acc_u, u_shared)

                T.gemm(Q_shared, K_shared, acc_s, transpose_B=True, clear_accum=True)
                for i, j in T.Parallel(chunk, chunk):
                    acc_s[i, j] = T.if_then_else(i >= j, acc_s[i, j] * T.exp2(decay[i] - decay[j]), 0.0)
                T.copy(acc_s, acc_s_cast)
                T.gemm(Q_shared, S_shared, acc_o, clear_accum=True)
                for i, j in T.Parallel(chunk, cols):
                    acc_o[i, j] = acc_o[i, j] * since[i]
                T.gemm(acc_s_cast, u_shared, acc_o)
                for i, j in T.Parallel(chunk, cols):
                    acc_o[i, j] = acc_o[i, j] * scale
                T.copy(acc_o, O[bz, c * chunk : (c + 1) * chunk, by, bx * cols : (bx + 1) * cols])

                for i, j in T.Parallel(chunk, cols):
                    u_shared[i, j] = acc_u[i, j] * until[i]
                for i, j in T.Parallel(head_dim, cols):
                    state[i, j] = state[i, j] * kept
                T.gemm(K_shared, u_shared, state, transpose_A=True)
            T.copy(state, Final[bz, by, 0:head_dim, bx * cols : (bx + 1) * cols])

    traced: TileProgram = gated_delta_scan
    return traced


def fused(shape: Shape, config: Config) -> TileProgram:
    """One launch, one block a head: each chunk's inverse and the state's step, chunk after chunk.

    The state is in the block's registers, all of it, so the updates need no W:
    u = T diag(β) (V - diag(e^G) K S). The rest is as in the two launches of ``chunked``.
    """
    batch, seq, heads, head_dim, value_dim = delta_sizes(shape)
    dtype, chunk, rows = full(shape["dtype"]), config["chunk"], config["solve_rows"]
    num_stages, threads = config["num_stages"], config["threads"]
    chunks, scale = T.ceildiv(seq, chunk), head_dim**-0.5

    @T.prim_func
    def gated_delta_fused(
        Q: T.Tensor((batch, seq, heads, head_dim), dtype),
        K: T.Tensor((batch, seq, heads, head_dim), dtype),
        V: T.Tensor((batch, seq, heads, value_dim), dtype),
        Gate: T.Tensor((batch, seq, heads), "float32"),
        Beta: T.Tensor((batch, seq, heads), "float32"),
        State: T.Tensor((batch, heads, head_dim, value_dim), "float32"),
        O: T.Tensor((batch, seq, heads, value_dim), dtype),  # noqa: E741
        Final: T.Tensor((batch, heads, head_dim, value_dim), "float32"),
    ) -> None:
        with T.Kernel(heads, batch, threads=threads) as (by, bz):
            Q_shared = T.alloc_shared((chunk, head_dim), dtype)
            K_shared = T.alloc_shared((chunk, head_dim), dtype)
            V_shared = T.alloc_shared((chunk, value_dim), dtype)
            S_shared = T.alloc_shared((head_dim, value_dim), dtype)
            u_shared = T.alloc_shared((chunk, value_dim), dtype)
            A_shared = T.alloc_shared((chunk, chunk), "float32")
            T_shared = T.alloc_shared((chunk, chunk), dtype)
            decay = T.alloc_shared((chunk,), "float32")
            beta = T.alloc_shared((chunk,), "float32")
            since = T.alloc_fragment((chunk,), "float32")
            until = T.alloc_fragment((chunk,), "float32")
            kept: Any = T.alloc_var("float32")
            weight = T.alloc_fragment((chunk,), "float32")
            ratio = T.alloc_fragment((chunk, chunk), "float32")
            state = T.alloc_fragment((head_dim, value_dim), "float32")
            acc_v = T.alloc_fragment((chunk, value_dim), "float32")
            update = T.alloc_fragment((chunk, value_dim), "float32")
            acc_s = T.alloc_fragment((chunk, chunk), "float32")
            acc_s_cast = T.alloc_fragment((chunk, chunk), dtype)

            T.copy(State[bz, by, 0:head_dim, 0:value_dim], state)
            for c in T.Pipelined(chunks, num_stages=num_stages):
                T.copy(Q[bz, c * chunk : (c + 1) * chunk, by, 0:head_dim], Q_shared)
                T.copy(K[bz, c * chunk : (c + 1) * chunk, by, 0:head_dim], K_shared)
                T.copy(V[bz, c * chunk : (c + 1) * chunk, by, 0:value_dim], V_shared)
                T.copy(Gate[bz, c * chunk : (c + 1) * chunk, by], decay)
                T.copy(Beta[bz, c * chunk : (c + 1) * chunk, by], beta)
                T.copy(beta, weight)
                T.cumsum(decay)
                for i in T.Parallel(chunk):
                    decay[i] = decay[i] * LOG2E
                _growth(decay, since, until)
                kept = T.exp2(decay[chunk - 1])
                for i, j in T.Parallel(chunk, chunk):
                    ratio[i, j] = T.if_then_else(i >= j, T.exp2(decay[i] - decay[j]), 0.0)

                T.gemm(K_shared, K_shared, acc_s, transpose_B=True, clear_accum=True)
                for i, j in T.Parallel(chunk, chunk):
                    A_shared[i, j] = T.if_then_else(i > j, acc_s[i, j] * weight[i] * ratio[i, j], 0.0)
                _invert(A_shared, T_shared, rows)

                T.copy(state, S_shared)
                T.gemm(K_shared, S_shared, acc_v, clear_accum=True)
                for i, j in T.Parallel(chunk, value_dim):
                    u_shared[i, j] = weight[i] * (V_shared[i, j] - acc_v[i, j] * since[i])
                T.gemm(T_shared, u_shared, update, clear_accum=True)
                T.copy(update, u_shared)

                T.gemm(Q_shared, K_shared, acc_s, transpose_B=True, clear_accum=True)
                for i, j in T.Parallel(chunk, chunk):
                    acc_s[i, j] = acc_s[i, j] * ratio[i, j]
                T.copy(acc_s, acc_s_cast)
                T.gemm(Q_shared, S_shared, acc_v, clear_accum=True)
                for i, j in T.Parallel(chunk, value_dim):
                    acc_v[i, j] = acc_v[i, j] * since[i]
                T.gemm(acc_s_cast, u_shared, acc_v)
                for i, j in T.Parallel(chunk, value_dim):
                    acc_v[i, j] = acc_v[i, j] * scale
                T.copy(acc_v, O[bz, c * chunk : (c + 1) * chunk, by, 0:value_dim])

                for i, j in T.Parallel(chunk, value_dim):
                    u_shared[i, j] = update[i, j] * until[i]
                for i, j in T.Parallel(head_dim, value_dim):
                    state[i, j] = state[i, j] * kept
                T.gemm(K_shared, u_shared, state, transpose_A=True)
            T.copy(state, Final[bz, by, 0:head_dim, 0:value_dim])

    traced: TileProgram = gated_delta_fused
    return traced
