"""Linear attention with the gated delta rule (Gated DeltaNet), in chunks: the WY form, then a scan."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels import language as T
from foretile.kernels.dtypes import dtype as dtype_of
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, OperatorError, Param, Shape, Tolerance
from foretile.kernels.operators._common import LOG2E, full, numpy_dtype, random_operand, size, whole

_KEYS = ("Q", "K")


def _sizes(shape: Shape) -> tuple[Any, Any, Any, int, int]:
    """Batch, sequence length, heads (numbers or symbolic), elements of a key and of a value."""
    return shape["batch"], shape["seq"], shape["heads"], shape["head_dim"], shape["value_dim"]


def _prepare(shape: Shape, config: Config) -> TileProgram:
    """One block a chunk of a head: the chunk's updates as a function of the state before it.

    With G the running sum of the log-decay within the chunk (kept in base two), the updates
    u_t = β_t (v_t - α_t S_{t-1}ᵀ k_t) of a chunk solve (I + A) u = diag(β) (V - diag(e^G) K S), where
    A is the strictly lower part of β_i e^(G_i - G_j) k_i·k_j. This launch inverts I + A and writes
    U = T diag(β) V and W = T diag(β e^G) K, so that u = U - W S.

    The diagonal blocks of ``solve_rows`` rows are inverted by forward substitution, all of them at
    once, in float32; what is below them follows block row by block row,
    T_b = X_b (I_b - A_b T) with X_b the inverse diagonal block, as matrix products.
    """
    batch, seq, heads, head_dim, value_dim = _sizes(shape)
    dtype, chunk, rows, cols = full(shape["dtype"]), config["chunk"], config["solve_rows"], config["block_d"]
    num_stages, threads = config["num_stages"], config["threads"]
    blocks = chunk // rows
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
            X_shared = T.alloc_shared((chunk, rows), "float32")
            T_shared = T.alloc_shared((chunk, chunk), dtype)
            decay = T.alloc_shared((chunk,), "float32")
            beta = T.alloc_shared((chunk,), "float32")
            acc = T.alloc_fragment((chunk, chunk), "float32")
            term = T.alloc_fragment((blocks, rows, rows), "float32")
            done = T.alloc_fragment((blocks, rows), "float32")
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

            for i, j in T.Parallel(chunk, rows):
                X_shared[i, j] = T.if_then_else(i % rows == j, 1.0, 0.0)
            for r in T.serial(1, rows):
                for b, i, j in T.Parallel(blocks, rows, rows):  # rows from r on meet zeros of A
                    term[b, i, j] = A_shared[b * rows + r, b * rows + i] * X_shared[b * rows + i, j]
                T.reduce_sum(term, done, dim=1)
                for b, j in T.Parallel(blocks, rows):
                    X_shared[b * rows + r, j] = X_shared[b * rows + r, j] - done[b, j]
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


def _scan(shape: Shape, config: Config) -> TileProgram:
    """One block ``block_v`` columns of a head's state, which it carries over the chunks in registers.

    With S the state before the chunk and u = U - W S its updates,
    O = scale (diag(e^G) Q S + (lower part of e^(G_i - G_j) q_i·k_j) u), and the state after it is
    e^(G_last) S + Σ_j e^(G_last - G_j) k_j u_jᵀ. No exponent is positive.
    """
    batch, seq, heads, head_dim, value_dim = _sizes(shape)
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
        O: T.Tensor((batch, seq, heads, value_dim), dtype),  # noqa: E741
    ) -> None:
        with T.Kernel(T.ceildiv(value_dim, cols), heads, batch, threads=threads) as (bx, by, bz):
            W_shared = T.alloc_shared((chunk, head_dim), dtype)
            Q_shared = T.alloc_shared((chunk, head_dim), dtype)
            K_shared = T.alloc_shared((chunk, head_dim), dtype)
            U_shared = T.alloc_shared((chunk, cols), dtype)
            S_shared = T.alloc_shared((head_dim, cols), dtype)
            u_shared = T.alloc_shared((chunk, cols), dtype)
            decay = T.alloc_shared((chunk,), "float32")
            state = T.alloc_fragment((head_dim, cols), "float32")
            acc_u = T.alloc_fragment((chunk, cols), "float32")
            acc_o = T.alloc_fragment((chunk, cols), "float32")
            acc_s = T.alloc_fragment((chunk, chunk), "float32")
            acc_s_cast = T.alloc_fragment((chunk, chunk), dtype)

            T.clear(state)
            for c in T.Pipelined(chunks, num_stages=num_stages):
                T.copy(W[bz, by, c, 0:chunk, 0:head_dim], W_shared)
                T.copy(U[bz, by, c, 0:chunk, bx * cols : (bx + 1) * cols], U_shared)
                T.copy(Q[bz, c * chunk : (c + 1) * chunk, by, 0:head_dim], Q_shared)
                T.copy(K[bz, c * chunk : (c + 1) * chunk, by, 0:head_dim], K_shared)
                T.copy(Decay[bz, by, c, 0:chunk], decay)

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
                    acc_o[i, j] = acc_o[i, j] * T.exp2(decay[i])
                T.gemm(acc_s_cast, u_shared, acc_o)
                for i, j in T.Parallel(chunk, cols):
                    acc_o[i, j] = acc_o[i, j] * scale
                T.copy(acc_o, O[bz, c * chunk : (c + 1) * chunk, by, bx * cols : (bx + 1) * cols])

                for i, j in T.Parallel(chunk, cols):
                    u_shared[i, j] = acc_u[i, j] * T.exp2(decay[chunk - 1] - decay[i])
                for i, j in T.Parallel(head_dim, cols):
                    state[i, j] = state[i, j] * T.exp2(decay[chunk - 1])
                T.gemm(K_shared, u_shared, state, transpose_A=True)

    traced: TileProgram = gated_delta_scan
    return traced


def program(shape: Shape, config: Config) -> tuple[TileProgram, TileProgram]:
    """Two launches: every chunk's U and W side by side, then the chunks of a head one after the other.

    Raises:
        OperatorError: ``chunk`` is no multiple of ``solve_rows``.
    """
    if config["chunk"] % config["solve_rows"]:
        raise OperatorError(
            f"linear_attention: chunk={config['chunk']} is not a multiple of "
            f"solve_rows={config['solve_rows']}"
        )
    return _prepare(shape, config), _scan(shape, config)


# (chunk, block_v, num_stages, threads), likeliest first; the shorter chunk is for small scratchpads.
_TILES = (
    (64, 32, 2, 128),
    (64, 64, 2, 128),
    (64, 32, 1, 128),
    (64, 64, 2, 256),
    (64, 64, 1, 128),
    (64, 32, 3, 128),
    (64, 128, 1, 256),
    (64, 16, 2, 128),
    (64, 16, 1, 128),
    (32, 32, 2, 128),
    (32, 32, 1, 64),
    (32, 16, 1, 64),
)


def configs(shape: Shape) -> list[Config]:
    """The space: steps of a chunk, state columns of a block, buffers, threads, rows solved one by one."""
    return [
        {
            "chunk": chunk,
            "block_v": block_v,
            "block_d": block_d,
            "solve_rows": rows,
            "num_stages": stages,
            "threads": threads,
        }
        for rows, block_d in ((16, 64), (16, 128), (32, 64))
        for chunk, block_v, stages, threads in _TILES
    ]


def flops(shape: Shape) -> Any:
    """6·head_dim·value_dim a step and head: two each for Sᵀk, the update k uᵀ and Sᵀq.

    Decay, gate and scale are not counted, as attention's softmax is not; nor is what the chunked
    form adds.
    """
    batch, seq, heads = (whole(shape[name]) for name in ("batch", "seq", "heads"))
    return 6 * shape["head_dim"] * shape["value_dim"] * batch * seq * heads


def min_bytes(shape: Shape) -> Any:
    """Q, K, V and the two float32 gates read once, O written once; no workspace."""
    batch, seq, heads = (whole(shape[name]) for name in ("batch", "seq", "heads"))
    elements = 2 * shape["head_dim"] + 2 * shape["value_dim"]
    return batch * seq * heads * (elements * size(shape["dtype"]) + 2 * size("fp32"))


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Q, K of (batch, seq, heads, head_dim), rows of length one; V of (batch, seq, heads, value_dim).

    Gate, the logarithm of the decay, and Beta are (batch, seq, heads) in float32. The decay is
    drawn as Mamba2 initialises it: -A·softplus(x + bias) with A in [1, 16] for each head.
    """
    batch, seq, heads, head_dim, value_dim = _sizes(shape)
    found: Arrays = {name: _unit_rows(rng, (batch, seq, heads, head_dim), shape) for name in _KEYS}
    found["V"] = random_operand(rng, (batch, seq, heads, value_dim), shape["dtype"])
    gates = (batch, seq, heads)
    rate = rng.uniform(1.0, 16.0, heads) * np.logaddexp(0.0, rng.standard_normal(gates) - 4.0)
    found["Gate"] = -rate.astype(np.float32)
    found["Beta"] = rng.uniform(0.0, 1.0, gates).astype(np.float32)
    return found


def _unit_rows(rng: np.random.Generator, dims: tuple[int, ...], shape: Shape) -> np.ndarray:
    x = rng.standard_normal(dims)
    unit: np.ndarray = (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(numpy_dtype(shape["dtype"]))
    return unit


def _with(**changes: Any) -> Any:
    """``inputs`` with some operands replaced by functions of them."""

    def changed(shape: Shape, rng: np.random.Generator) -> Arrays:
        found = inputs(shape, rng)
        for name, change in changes.items():
            found[name] = np.array(change(found[name]), dtype=found[name].dtype)
        return found

    return changed


def _one_key(k: np.ndarray) -> np.ndarray:
    key: np.ndarray = np.eye(k.shape[-1])[0]  # its length is one in every type
    return np.broadcast_to(key, k.shape)


def _alike(k: np.ndarray) -> np.ndarray:
    near = k[:, :1].astype(np.float64) + 0.03 * k
    alike: np.ndarray = near / np.linalg.norm(near, axis=-1, keepdims=True)
    return alike


def reference(
    shape: Shape, Q: np.ndarray, K: np.ndarray, V: np.ndarray, Gate: np.ndarray, Beta: np.ndarray
) -> Arrays:
    """O of (batch, seq, heads, value_dim) in float64, not rounded: the recurrence, step by step."""
    q, k, v, gate, beta = (x.astype(np.float64) for x in (Q, K, V, Gate, Beta))
    batch, seq, heads, head_dim, value_dim = _sizes(shape)
    state = np.zeros((batch, heads, head_dim, value_dim))
    out = np.empty(v.shape)
    for t in range(seq):
        state *= np.exp(gate[:, t, :, None, None])
        read = np.einsum("bhkv,bhk->bhv", state, k[:, t])
        update = beta[:, t, :, None] * (v[:, t] - read)
        state += k[:, t, :, :, None] * update[:, :, None, :]
        out[:, t] = np.einsum("bhkv,bhk->bhv", state, q[:, t]) * head_dim**-0.5
    return {"O": out}


def tolerance(shape: Shape) -> Tolerance:
    """Roundings to ``dtype`` of the inverse, its right-hand sides, U, W, the state, updates, scores and O.

    Each is at most a unit roundoff u of its intermediate, u/√3 in the mean square. Where keys differ, the
    intermediates are no larger than the results, and eight such errors add up to 1.6u. Where a key
    repeats, what is written is the difference to the value before, as large as √2 values, and the result is
    the sum of up to a chunk of these: 32 of 64 on average, each rounded twice, √(32·2·2)·u/√3 = 6.5u.
    (Keys that are all off from length one alike, so that the inverse's rounding is the same in every
    row, can take twice that; no inputs of this operator are.)
    """
    u = 2.0 ** -(1 + dtype_of(shape["dtype"]).mantissa_bits)
    return Tolerance(norm=8.0 * u, peak=16.0 * u)


def check(shape: Shape) -> None:
    """Refuse heads that the matrix engines' tiles do not divide, or that no state fits."""
    for name in ("head_dim", "value_dim"):
        if shape[name] % 16 or shape[name] > 256:
            raise OperatorError(f"linear_attention: {name}={shape[name]} is not a multiple of 16 up to 256")


OPERATOR = Operator(
    name="linear_attention",
    doc=(
        "Gated delta rule (Gated DeltaNet, arXiv:2412.06464, equation 10): each head's state S of "
        "(head_dim, value_dim) starts at zero and follows S_t = e^(g_t) (S_{t-1} - β_t k_t (k_tᵀ S_{t-1})) + "
        "β_t k_t v_tᵀ, o_t = S_tᵀ q_t / √head_dim. Q, K are (batch, seq, heads, head_dim), V, O (batch, seq, "
        "heads, value_dim), the log-decay Gate and Beta (batch, seq, heads) in fp32."
    ),
    params=(
        Param("batch", "sequences", dynamic=True),
        Param("seq", "steps of each sequence", dynamic=True),
        Param("heads", "heads, each with its own state", dynamic=True),
        Param("head_dim", "elements of a query and key, a multiple of 16 up to 256", default=128),
        Param("value_dim", "elements of a value, a multiple of 16 up to 256", default=128),
        Param("dtype", "type of Q, K, V and O", kind="dtype", default="bf16", choices=("bf16", "fp16")),
    ),
    program=program,
    configs=configs,
    flops=flops,
    min_bytes=min_bytes,
    inputs=inputs,
    reference=reference,
    check=check,
    tolerance=tolerance,
    adversarial={
        # The inverse's worst cases: all keys the same or nearly so, written in full, nothing forgotten.
        "repeated_keys": _with(K=_one_key, Gate=np.zeros_like, Beta=np.ones_like),
        "alike_keys": _with(K=_alike, Gate=np.zeros_like, Beta=np.ones_like),
        "forgets_at_once": _with(Gate=lambda g: np.full_like(g, -100.0)),
        "forgets_now_and_then": _with(
            Gate=lambda g: np.where(np.arange(g.shape[1])[:, None] % 7 == 3, -200.0, g)
        ),
        "never_forgets": _with(Gate=np.zeros_like),
        "nothing_written_at_first": _with(
            Beta=lambda b: b * (np.arange(b.shape[1])[:, None] >= b.shape[1] // 2)
        ),
        "large_values": _with(V=lambda v: v.astype(np.float32) * 2.0 ** (np.arange(v.shape[-1]) % 12)),
    },
    example={"batch": 2, "seq": 150, "heads": 2, "head_dim": 64, "value_dim": 64},
)
