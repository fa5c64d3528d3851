"""Linear attention, convolution and the stream-K matrix product: contract, counts, references, programs."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from test_operator_programs import _launches, _mirrored, _symbolic

from foretile.kernels.expr import evaluate
from foretile.kernels.ir import AtomicAdd, For, TileProgram, walk_stmts
from foretile.kernels.operator import Arrays, Operator, OperatorError, load_operator
from foretile.kernels.rewrite import map_exprs
from foretile.simulator.numerics.execute import execute
from foretile.simulator.numerics.verify import input_kinds, verify

CONTRACT: dict[str, dict[str, tuple[Any, bool]]] = {
    "linear_attention": {
        "batch": ("required", True),
        "seq": ("required", True),
        "heads": ("required", True),
        "head_dim": (128, False),
        "value_dim": (128, False),
        "dtype": ("bf16", False),
    },
    "conv2d": {
        "batch": ("required", True),
        "height": ("required", False),
        "width": ("required", False),
        "in_channels": ("required", False),
        "out_channels": ("required", True),
        "kernel": ("required", False),
        "stride": (1, False),
        "padding": (0, False),
        "dtype": ("bf16", False),
    },
}
LINEAR = {"batch": 2, "seq": 150, "heads": 2, "head_dim": 32, "value_dim": 48}
CONV = {"batch": 2, "height": 9, "width": 11, "in_channels": 20, "out_channels": 40, "kernel": 3}
SMALL: dict[str, dict[str, Any]] = {"linear_attention": LINEAR, "conv2d": {**CONV, "padding": 1}}
GEMM = {"m": 70, "n": 150, "k": 300, "batch": 2}  # 2 × 3 tiles of 64 a batch, of 5 iterations
TILE = {"block_m": 64, "block_n": 64}
STREAM = {"variant": "stream_k", **TILE}
PREFILL = {"batch": 1, "seq": 150, "heads": 4, "kv_heads": 2, "head_dim": 32}
DECODE = {"batch": 1, "kv_len": 333, "heads": 10, "kv_heads": 2, "head_dim": 32}

# What the oracle of this folder does not know: prefix sums, conditions, elements outside of tensors.
NEEDS_EXECUTOR: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("linear_attention", LINEAR, {}),
    ("linear_attention", {**LINEAR, "dtype": "fp16"}, {"solve_rows": 32, "block_d": 128}),
    ("linear_attention", {**LINEAR, "seq": 64}, {"solve_rows": 64, "block_v": 16}),
    ("linear_attention", {**LINEAR, "seq": 70, "head_dim": 96, "value_dim": 16}, {"chunk": 32}),
    ("linear_attention", {**LINEAR, "seq": 1, "heads": 3}, {}),
    ("linear_attention", LINEAR, {"variant": "fused"}),
    ("linear_attention", {**LINEAR, "seq": 70, "value_dim": 16}, {"variant": "fused", "chunk": 32}),
    ("conv2d", {**CONV, "padding": 1}, {**TILE, "block_k": 32}),
    ("conv2d", {**CONV, "padding": 2, "stride": 3, "dtype": "fp16"}, {"block_m": 32, "block_n": 64}),
    ("conv2d", {**CONV, "in_channels": 32}, {**TILE, "block_k": 32}),
    ("conv2d", {**CONV, "kernel": 1, "stride": 2}, {"block_m": 64, "block_n": 32}),
    ("conv2d", {**CONV, "kernel": 9, "in_channels": 3}, {"block_m": 64, "block_n": 32}),
    ("conv2d", {**CONV, "kernel": 4, "stride": 5, "padding": 3}, {"block_m": 128, "block_n": 32}),
    *(("gemm", GEMM, {**STREAM, "cores": cores}) for cores in (1, 3, 5, 7, 24, 29, 100)),
    ("gemm", {**GEMM, "trans_b": True, "dtype": "fp8"}, {**STREAM, "cores": 5}),
    ("gemm", {**GEMM, "trans_a": True, "dtype": "int8"}, {**STREAM, "cores": 5}),
    ("gemm", {"m": 7, "n": 9, "k": 2000, "out_dtype": "fp32"}, {**STREAM, "block_m": 16, "cores": 30}),
]
# Operators with inputs of their own that provoke special cases, beside those above.
PROVOKED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("linear_attention", {**LINEAR, "batch": 1, "heads": 1, "value_dim": 16}, {}),
    ("linear_attention", {**LINEAR, "batch": 1, "heads": 1, "value_dim": 16}, {"variant": "fused"}),
    ("linear_attention", {**LINEAR, "batch": 1, "heads": 1, "value_dim": 16, "dtype": "fp16"}, {"chunk": 32}),
    *(("gemm", {**GEMM, "dtype": dtype}, TILE) for dtype in ("bf16", "fp16", "fp8", "int8")),
    (
        "gemm",
        {**GEMM, "out_dtype": "fp32", "trans_a": True},
        {"variant": "split_k", "split_k": 4, "block_m": 64},
    ),
    ("gemm", {**GEMM, "dtype": "fp8", "out_dtype": "fp8", "trans_b": True}, TILE),
    *(("attention_prefill", {**PREFILL, "dtype": dtype}, TILE) for dtype in ("bf16", "fp16", "fp8")),
    ("attention_prefill", {**PREFILL, "kv_dtype": "fp8", "window": 40}, TILE),
    ("attention_prefill", {**PREFILL, "causal": False}, TILE),
    *(
        ("attention_decode", {**DECODE, "dtype": dtype}, {"num_split": 4})
        for dtype in ("bf16", "fp16", "fp8")
    ),
]


@pytest.mark.parametrize("name", CONTRACT)
def test_parameters_and_defaults(name: str) -> None:
    operator = load_operator(name)
    given = {p.name: ("required" if p.default is None else p.default, p.dynamic) for p in operator.params}
    assert given == CONTRACT[name]
    assert all(p.doc for p in operator.params)
    assert operator.name == name


@pytest.mark.parametrize("name", CONTRACT)
def test_configurations_are_distinct_plain_and_uniform(name: str) -> None:
    operator = load_operator(name)
    space = operator.configs(operator.shape(**SMALL[name]))
    assert 8 <= len(space) <= 40
    assert len({tuple(sorted(c.items())) for c in space}) == len(space)
    assert all(c.keys() == space[0].keys() for c in space)
    assert all(type(v) is int for c in space for k, v in c.items() if k != "variant")
    assert all(c["threads"] % 32 == 0 and c["threads"] <= 1024 for c in space)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("linear_attention", {"head_dim": 100}, "head_dim=100 is not a multiple of 16"),
        ("linear_attention", {"value_dim": 512}, "value_dim=512 is not a multiple of 16 up to 256"),
        ("linear_attention", {"dtype": "fp8"}, "not one of bf16, fp16"),
        ("conv2d", {"kernel": 12}, r"kernel=12 is larger than the padded height, height \+ 2·padding = 11"),
        ("conv2d", {"padding": -1}, "at least 0"),
        ("conv2d", {"stride": 0}, "at least 1"),
    ],
)
def test_refusals_say_what_is_right(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(OperatorError, match=message):
        load_operator(name).shape(**{**SMALL[name], **given})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("linear_attention", {"solve_rows": 24}, "chunk=64 is not a multiple of solve_rows=24"),
        ("conv2d", {"block_k": 24}, "block_k=24 is not a multiple of 16"),
    ],
)
def test_programs_refuse_configurations_they_cannot_trace(
    name: str, change: dict[str, Any], message: str
) -> None:
    operator = load_operator(name)
    shape = operator.shape(**SMALL[name])
    with pytest.raises(OperatorError, match=message):
        operator.program(shape, operator.config(shape, **change))


# -- counts ------------------------------------------------------------------------------------


def test_linear_attention_counts_three_products_a_step() -> None:
    operator = load_operator("linear_attention")
    shape = operator.shape(batch=2, seq=3, heads=2, head_dim=16, value_dim=32)
    count = 0
    for _ in itertools.product(range(2), range(3), range(2)):  # sequence, step, head
        for _ in itertools.product(range(16), range(32)):  # elements of the state
            count += 2  # Sᵀk: a product and an addition
            count += 2  # + k uᵀ
            count += 2  # Sᵀq
    assert operator.flops(shape) == count


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_linear_attention_moves_its_operands_once(dtype: str) -> None:
    operator = load_operator("linear_attention")
    shape = operator.shape(**LINEAR, dtype=dtype)
    inputs = operator.inputs(shape, np.random.default_rng(0))
    out = operator.reference(shape, **inputs)
    written = 2 * out["O"].size + 4 * out["Final"].size
    assert operator.min_bytes(shape) == sum(x.nbytes for x in inputs.values()) + written


CONVOLUTIONS: list[dict[str, int]] = [
    {"kernel": 3, "padding": 1},
    {"kernel": 3, "stride": 2},
    {"kernel": 2, "stride": 3, "padding": 1},
    {"kernel": 1, "stride": 4},
    {"kernel": 5, "stride": 2, "padding": 4},
]


@pytest.mark.parametrize("given", CONVOLUTIONS, ids=str)
def test_convolution_counts(given: dict[str, int]) -> None:
    operator = load_operator("conv2d")
    shape = operator.shape(batch=2, height=6, width=7, in_channels=3, out_channels=4, **given)
    stride, padding = shape["stride"], shape["padding"]
    rows = [y for y in range(-padding, 6 + padding - shape["kernel"] + 1) if (y + padding) % stride == 0]
    columns = [x for x in range(-padding, 7 + padding - shape["kernel"] + 1) if (x + padding) % stride == 0]
    taps = list(itertools.product(range(shape["kernel"]), repeat=2))
    reads = [(y + r, x + s) for y in rows for x in columns for r, s in taps]
    assert operator.flops(shape) == 2 * len(reads) * 2 * 3 * 4
    seen = {(y, x) for y, x in reads if 0 <= y < 6 and 0 <= x < 7}
    elements = 2 * len(seen) * 3 + len(taps) * 3 * 4 + 2 * len(rows) * len(columns) * 4
    assert operator.min_bytes(shape) == 2 * elements


@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.parametrize("key", ["batch", "last"])
def test_counts_of_arrays_are_the_counts_of_their_elements(name: str, key: str) -> None:
    operator: Operator = load_operator(name)
    key = key if key == "batch" else {"linear_attention": "seq", "conv2d": "out_channels"}[name]
    sizes = np.array([1, 7, 130, 200_000], dtype=np.int32)
    together = operator.shape(**{**SMALL[name], key: sizes})
    for count in (operator.flops, operator.min_bytes):
        alone = [count(operator.shape(**{**SMALL[name], key: int(n)})) for n in sizes]
        assert all(isinstance(value, int) for value in alone)
        assert list(count(together)) == alone


# -- references --------------------------------------------------------------------------------


def _operands(name: str, seed: int = 1, **given: Any) -> tuple[dict[str, Any], Arrays]:
    operator = load_operator(name)
    shape = operator.shape(**given)
    return shape, operator.inputs(shape, np.random.default_rng(seed))


def test_linear_attention_follows_the_recurrence_in_matrix_form() -> None:
    shape, x = _operands("linear_attention", **{**LINEAR, "seq": 9})
    out = load_operator("linear_attention").reference(shape, **x)
    v = {name: a.astype(np.float64) for name, a in x.items()}
    for b, h in itertools.product(range(2), range(2)):
        state = v["State"][b, h]
        for t in range(9):
            k, beta = v["K"][b, t, h][:, None], v["Beta"][b, t, h]
            erase = math.exp(v["Gate"][b, t, h]) * (np.eye(32) - beta * k @ k.T)
            state = erase @ state + beta * k @ v["V"][b, t, h][None, :]
            want = v["Q"][b, t, h] @ state / math.sqrt(32)
            np.testing.assert_allclose(out["O"][b, t, h], want, rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(out["Final"][b, h], state, rtol=1e-10, atol=1e-13)


def test_linear_attention_goes_on_from_the_state_it_left() -> None:
    operator = load_operator("linear_attention")
    shape, x = _operands("linear_attention", **{**LINEAR, "seq": 12})
    whole = operator.reference(shape, **x)

    def part(state: np.ndarray, steps: slice) -> dict[str, np.ndarray]:
        some = {name: a if name == "State" else a[:, steps] for name, a in x.items()} | {"State": state}
        return operator.reference({**shape, "seq": len(range(*steps.indices(12)))}, **some)

    first = part(x["State"], slice(0, 5))
    second = part(first["Final"], slice(5, 12))
    both = np.concatenate([first["O"], second["O"]], axis=1)
    np.testing.assert_allclose(both, whole["O"], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(second["Final"], whole["Final"], rtol=1e-12, atol=1e-14)


def test_linear_attention_recalls_what_the_last_equal_key_wrote() -> None:
    shape, x = _operands("linear_attention", **{**LINEAR, "seq": 40})
    axes = np.eye(32)[np.arange(40) % 32].astype(x["K"].dtype)  # the first eight keys come twice
    x["K"] = np.broadcast_to(axes[None, :, None], x["K"].shape)
    x["Q"], x["Gate"], x["Beta"] = x["K"], np.zeros_like(x["Gate"]), np.ones_like(x["Beta"])
    out = load_operator("linear_attention").reference(shape, **x)["O"]
    np.testing.assert_allclose(out * math.sqrt(32), x["V"].astype(np.float64), rtol=1e-12)


def test_linear_attention_inputs_are_what_the_rule_assumes() -> None:
    _, x = _operands("linear_attention", **LINEAR)
    for name in ("Q", "K"):
        np.testing.assert_allclose(np.linalg.norm(x[name].astype(np.float64), axis=-1), 1.0, rtol=5e-3)
    assert x["Gate"].dtype == x["Beta"].dtype == np.float32
    assert np.all(x["Gate"] < 0)
    assert np.all((x["Beta"] >= 0) & (x["Beta"] <= 1))


@pytest.mark.parametrize("given", CONVOLUTIONS, ids=str)
def test_convolution_tap_by_tap(given: dict[str, int]) -> None:
    shape, x = _operands("conv2d", batch=2, height=6, width=7, in_channels=3, out_channels=4, **given)
    out = load_operator("conv2d").reference(shape, **x)["Y"]
    kernel, stride, padding = shape["kernel"], shape["stride"], shape["padding"]
    image, taps = x["X"].astype(np.float64), x["F"].astype(np.float64)
    pixel = 0
    for b in range(2):
        for top in range(-padding, 6 + padding - kernel + 1, stride):
            for left in range(-padding, 7 + padding - kernel + 1, stride):
                want = np.zeros(4)
                for r, s, c in itertools.product(range(kernel), range(kernel), range(3)):
                    if 0 <= top + r < 6 and 0 <= left + s < 7:
                        want += image[b, top + r, left + s, c] * taps[(r * kernel + s) * 3 + c]
                np.testing.assert_allclose(out[pixel], want, rtol=1e-10, atol=1e-12)
                pixel += 1
    assert pixel == len(out)


# -- programs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTRACT)
def test_every_configuration_traces_alike_with_numbers_and_with_symbols(name: str) -> None:
    operator = load_operator(name)
    shape = operator.shape(**SMALL[name])
    for config in operator.configs(shape):
        concrete = _launches(operator.program(shape, config))
        symbolic = _launches(operator.program(_symbolic(name, shape), config))
        for with_numbers, with_symbols in zip(concrete, symbolic, strict=True):
            bound = with_symbols.bind(**{v.name: shape[v.name] for v in with_symbols.dims})
            assert map_exprs(bound, _mirrored) == map_exprs(with_numbers, _mirrored), config


@pytest.mark.parametrize(
    ("name", "given", "chosen"), NEEDS_EXECUTOR, ids=lambda v: str(v) if isinstance(v, str) else None
)
def test_program_computes_the_reference(name: str, given: dict[str, Any], chosen: dict[str, Any]) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    found = verify(operator, shape, operator.config(shape, **chosen), seed=3)
    assert found.ok, found


@pytest.mark.parametrize(
    ("name", "given", "chosen"),
    [*NEEDS_EXECUTOR[5:7], NEEDS_EXECUTOR[13], *PROVOKED],
    ids=lambda v: str(v) if isinstance(v, str) else None,
)
def test_special_cases_are_within_the_tolerance(
    name: str, given: dict[str, Any], chosen: dict[str, Any]
) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    config = operator.config(shape, **chosen)
    assert operator.adversarial
    for kind in input_kinds(operator):
        found = verify(operator, shape, config, kind=kind, seed=4)
        assert found.ok, (kind, found)
        reference = operator.reference(shape, **_inputs(operator, shape, kind))
        assert all(np.all(np.isfinite(r)) and np.any(r) for r in reference.values()), kind


def _inputs(operator: Operator, shape: dict[str, Any], kind: str) -> Arrays:
    make = operator.inputs if kind == "random" else operator.adversarial[kind]
    return make(shape, np.random.default_rng(4))


@pytest.mark.parametrize("cores", [7, 8, 29])
def test_stream_k_leaves_its_workspace_as_it_found_it(cores: int) -> None:
    gemm = load_operator("gemm")
    shape = gemm.shape(**GEMM, dtype="int8")
    programs = gemm.program(shape, gemm.config(shape, **STREAM, cores=cores))
    assert isinstance(programs, tuple)
    inputs = gemm.inputs(shape, np.random.default_rng(4))
    atomics = [s for s in walk_stmts(programs[0].body) if isinstance(s, AtomicAdd)]
    assert {s.dst.buffer for s in atomics} == {"W"}
    first = execute(programs[:1], inputs, outputs=())
    assert first.tensors["W"].any()  # some tile is cut
    both = execute(programs, inputs, outputs=("C",))
    assert not both.tensors["W"].any()
    again = execute(programs, {**inputs, "W": both.tensors["W"]}, outputs=("C",))
    np.testing.assert_array_equal(again.tensors["C"], both.tensors["C"])


def test_stream_k_deals_the_iterations_evenly() -> None:
    gemm = load_operator("gemm")
    shape = gemm.shape(m=600, n=500, k=1100)  # 10 × 8 tiles of 18 iterations
    config = gemm.config(shape, **STREAM, cores=132)
    traced = gemm.program(shape, config)
    assert isinstance(traced, tuple)
    trips = [_iterations(traced[0], block) for block in range(132)]
    assert sum(trips) == 10 * 8 * 18
    assert max(trips) - min(trips) <= 1


def _iterations(program: TileProgram, block: int) -> int:
    """Iterations of all K loops that a block runs through."""
    total = 0
    for stmt in program.body:
        if not isinstance(stmt, For):
            continue
        env = {"block": block}
        count = int(evaluate(stmt.extents[0], env))
        inner = [s for s in stmt.body if isinstance(s, For)]
        total += count * int(evaluate(inner[0].extents[0], env)) if inner else count
    return total
