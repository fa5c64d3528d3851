"""Linear attention with the gated delta rule (Gated DeltaNet), in chunks: the WY form, then a scan."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

import numpy as np

from foretile.kernels.dtypes import dtype as dtype_of
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Arrays, Config, Operator, OperatorError, Param, Shape, Tolerance
from foretile.kernels.operators._common import (
    numpy_dtype,
    random_operand,
    size,
    traced_once,
    whole,
)
from foretile.kernels.operators._delta_rule import delta_sizes, fused, prepare, scan

_KEYS = ("Q", "K")


def program(shape: Shape, config: Config) -> TileProgram | tuple[TileProgram, ...]:
    """``chunked``: every chunk's U and W side by side, then the chunks of a head; ``fused``: one launch.

    Raises:
        OperatorError: a variant that there is not, or ``chunk`` is no multiple of ``solve_rows``.
    """
    if config["chunk"] % config["solve_rows"]:
        raise OperatorError(
            f"linear_attention: chunk={config['chunk']} is not a multiple of "
            f"solve_rows={config['solve_rows']}"
        )
    if config["variant"] == "fused":
        return fused(shape, config)
    if config["variant"] != "chunked":
        raise OperatorError(f"linear_attention: variant={config['variant']!r} is not one of chunked, fused")
    return (
        traced_once(prepare, shape, config, ("chunk", "block_d", "num_stages", "threads", "solve_rows")),
        traced_once(scan, shape, config, ("chunk", "block_v", "num_stages", "threads")),
    )


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


# (chunk, num_stages, threads) of the one launch; a block has all of the state.
_FUSED_TILES = ((64, 2, 256), (64, 1, 256), (64, 1, 128), (32, 1, 128))


def configs(shape: Shape) -> list[Config]:
    """The space: launches, steps of a chunk, state columns, buffers, threads, rows solved one by one."""
    chunked = [
        {
            "variant": "chunked",
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
    single = [
        {
            "variant": "fused",
            "chunk": chunk,
            "block_v": shape["value_dim"],
            "block_d": shape["head_dim"],
            "solve_rows": 16,
            "num_stages": stages,
            "threads": threads,
        }
        for chunk, stages, threads in _FUSED_TILES
    ]
    return chunked + single


def flops(shape: Shape) -> Any:
    """6·head_dim·value_dim a step and head: two each for Sᵀk, the update k uᵀ and Sᵀq.

    Decay, gate and scale are not counted, as attention's softmax is not; nor is what the chunked
    form adds.
    """
    batch, seq, heads = (whole(shape[name]) for name in ("batch", "seq", "heads"))
    return 6 * shape["head_dim"] * shape["value_dim"] * batch * seq * heads


def min_bytes(shape: Shape) -> Any:
    """Q, K, V, the two float32 gates and the states before read once, O and the states after written once."""
    batch, seq, heads = (whole(shape[name]) for name in ("batch", "seq", "heads"))
    elements = 2 * shape["head_dim"] + 2 * shape["value_dim"]
    states = 2 * batch * heads * shape["head_dim"] * shape["value_dim"] * size("fp32")
    return batch * seq * heads * (elements * size(shape["dtype"]) + 2 * size("fp32")) + states


def inputs(shape: Shape, rng: np.random.Generator) -> Arrays:
    """Q, K of (batch, seq, heads, head_dim), rows of length one; V of (batch, seq, heads, value_dim).

    Gate, the logarithm of the decay, and Beta are (batch, seq, heads) in float32. The decay is
    drawn as Mamba2 initialises it: -A·softplus(x + bias) with A in [1, 16] for each head. State, that
    before the first step, is (batch, heads, head_dim, value_dim) in float32.
    """
    batch, seq, heads, head_dim, value_dim = delta_sizes(shape)
    found: Arrays = {name: _unit_rows(rng, (batch, seq, heads, head_dim), shape) for name in _KEYS}
    found["V"] = random_operand(rng, (batch, seq, heads, value_dim), shape["dtype"])
    gates = (batch, seq, heads)
    rate = rng.uniform(1.0, 16.0, heads) * np.logaddexp(0.0, rng.standard_normal(gates) - 4.0)
    found["Gate"] = -rate.astype(np.float32)
    found["Beta"] = rng.uniform(0.0, 1.0, gates).astype(np.float32)
    found["State"] = rng.standard_normal((batch, heads, head_dim, value_dim), dtype=np.float32)
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
    shape: Shape,
    Q: np.ndarray,
    K: np.ndarray,
    V: np.ndarray,
    Gate: np.ndarray,
    Beta: np.ndarray,
    State: np.ndarray,
) -> Arrays:
    """O of (batch, seq, heads, value_dim) and the states after the last step, Final, in float64, not rounded:
    the recurrence, step by step.
    """
    q, k, v, gate, beta = (x.astype(np.float64) for x in (Q, K, V, Gate, Beta))
    seq, head_dim = shape["seq"], shape["head_dim"]
    state = State.astype(np.float64)
    out = np.empty(v.shape)
    for t in range(seq):
        state *= np.exp(gate[:, t, :, None, None])
        read = np.einsum("bhkv,bhk->bhv", state, k[:, t])
        update = beta[:, t, :, None] * (v[:, t] - read)
        state += k[:, t, :, :, None] * update[:, :, None, :]
        out[:, t] = np.einsum("bhkv,bhk->bhv", state, q[:, t]) * head_dim**-0.5
    return {"O": out, "Final": state}


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
        "(head_dim, value_dim) starts as State and follows S_t = e^(g_t) (S_{t-1} - β_t k_t "
        "(k_tᵀ S_{t-1})) + β_t k_t v_tᵀ, o_t = S_tᵀ q_t / √head_dim. Q, K are (batch, seq, heads, head_dim), "
        "V, O (batch, seq, heads, value_dim), the log-decay Gate and Beta (batch, seq, heads) in fp32; State "
        "and Final, before the first and after the last step, (batch, heads, head_dim, value_dim) in fp32."
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
