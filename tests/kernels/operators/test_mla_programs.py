"""Programs of latent attention, its indexer and its selection: their work, and what they compute."""

from typing import Any

import numpy as np
import pytest
from test_mla import CONTRACT, EACH, SMALL
from tile_oracle import execute, gemm_flops

from foretile.kernels import language as T
from foretile.kernels.ir import Copy, Gemm, TileProgram, walk_stmts
from foretile.kernels.operator import OperatorError, load_operator
from foretile.simulator.numerics.verify import compare, verify

DECODE = {"batch": 2, "kv_len": 333, "heads": 20}
PREFILL = {"batch": 1, "seq": 70, "heads": 2, "prefix": 75}
INDEXER = {"batch": 2, "seq": 7, "kv_len": 333, "heads": 16}
SPARSE = {"batch": 2, "seq": 2, "heads": 20, "topk": 70, "kv_len": 300}
SELECT = {"rows": 5, "cols": 300, "k": 20}

CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("mla_decode", DECODE, {"num_split": 1, "block_h": 16, "block_n": 16}),
    ("mla_decode", DECODE, {"num_split": 4, "block_h": 32, "block_n": 32}),
    ("mla_decode", {**DECODE, "kv_len": 65}, {"num_split": 16, "block_h": 64, "block_n": 64}),
    ("mla_decode", {**DECODE, "heads": 100}, {"num_split": 1, "block_v": 256}),
    ("mla_decode", {**DECODE, "kv_dtype": "fp8"}, {"num_split": 1, "block_h": 16}),
    ("mla_decode", {**DECODE, "kv_dtype": "fp8"}, {"num_split": 8, "block_n": 32}),
    ("mla_decode", {**DECODE, "dtype": "fp16"}, {"num_split": 2}),
    ("mla_prefill", PREFILL, {"block_m": 64, "block_n": 32}),
    ("mla_prefill", PREFILL, {"block_m": 32, "block_n": 32}),
    ("mla_prefill", {**PREFILL, "prefix": 0}, {"block_m": 128, "block_n": 128}),
    ("mla_prefill", {**PREFILL, "seq": 1, "dtype": "fp16"}, {"block_m": 64, "block_n": 64}),
    ("indexer_logits", INDEXER, {"block_q": 4}),
    ("indexer_logits", INDEXER, {"block_q": 2, "block_n": 64, "chunk": 2, "product": "bf16"}),
    ("indexer_logits", {**INDEXER, "causal": False, "heads": 64}, {"block_q": 1, "chunk": 2}),
    ("indexer_logits", {**INDEXER, "seq": 150, "kv_len": 150}, {"block_q": 8, "chunk": 1, "block_n": 32}),
    ("indexer_logits", INDEXER, {"block_q": 4, "joined": True}),
    ("indexer_logits", {**INDEXER, "causal": False, "heads": 64}, {"block_q": 2, "chunk": 2, "joined": True}),
    ("indexer_logits", {**INDEXER, "seq": 7, "kv_len": 150}, {"product": "bf16", "chunk": 1, "joined": True}),
    ("sparse_mla", SPARSE, {"num_split": 1, "block_h": 64}),
    ("sparse_mla", SPARSE, {"num_split": 2, "block_h": 16, "block_n": 16}),
    ("sparse_mla", {**SPARSE, "topk": 50, "kv_len": 40}, {"num_split": 1, "block_n": 32}),
    ("sparse_mla", {**SPARSE, "dtype": "fp16"}, {"num_split": 1, "block_v": 256}),
]
# Branches, prefix sums and scattered stores under a condition are beyond the oracle.
NEEDS_EXECUTOR: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("mla_decode", {**DECODE, "heads": 100}, {"num_split": 2, "block_v": 256}),
    ("sparse_mla", SPARSE, {"num_split": 2, "block_v": 256}),
    ("sparse_mla", SPARSE, {"num_split": 1, "lazy": True}),
    ("sparse_mla", {**SPARSE, "dtype": "fp16"}, {"num_split": 2, "block_n": 16, "lazy": True}),
    ("topk_select", SELECT, {"variant": "resident", "bits": 2, "block_cols": 64}),
    ("topk_select", SELECT, {"variant": "streamed", "bits": 4, "block_cols": 128}),
    ("topk_select", {**SELECT, "k": 300}, {"variant": "resident", "bits": 4, "block_cols": 512}),
    ("topk_select", {**SELECT, "k": 1}, {"variant": "streamed", "bits": 2, "block_cols": 100}),
    ("topk_select", {"rows": 2, "cols": 1, "k": 1}, {}),
    # Whole tiles and smaller last ones; more candidates than are kept; all of a row; both sums.
    ("topk_select", SELECT, {"variant": "radix", "block_cols": 64, "last_cols": 32, "scan": "steps"}),
    ("topk_select", SELECT, {"variant": "radix_kept", "block_cols": 128, "last_cols": 64, "listed": 8}),
    ("topk_select", {**SELECT, "k": 300}, {"variant": "radix", "block_cols": 256, "last_cols": 64}),
    ("topk_select", {**SELECT, "k": 1}, {"variant": "radix_kept", "block_cols": 512, "listed": 1}),
]
EVERY_KIND = pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in CONTRACT for kind in load_operator(name).adversarial]
)


@pytest.mark.parametrize("name", ["mla_decode", "sparse_mla", "mla_prefill", "indexer_logits"])
def test_programs_do_the_exact_work_where_tiles_divide_the_shape(name: str) -> None:
    operator = load_operator(name)
    given = {
        "mla_decode": {"kv_len": 512, "heads": 64},
        "sparse_mla": {"topk": 512, "heads": 64, "kv_len": 512},
        "mla_prefill": {"seq": 1, "prefix": 383, "heads": 2},
        "indexer_logits": {"seq": 8, "kv_len": 4096, "causal": False, "heads": 64},
    }[name]
    shape = operator.shape(**{**SMALL[name], **given})
    for config in operator.configs(shape):
        # Two blocks for the halves of the values both do the scores.
        repeated = (2 * 576 + 512) / (576 + 512) if config.get("block_v", 512) == 256 else 1.0
        padded = config.get("block_m", 1)  # rows of the one query's tile
        work = gemm_flops(operator.program(shape, config))
        assert work == operator.flops(shape) * padded * repeated


def test_decode_reads_the_latent_tile_once_for_keys_and_values() -> None:
    decode = load_operator("mla_decode")
    shape = decode.shape(**DECODE)
    program = decode.program(shape, decode.config(shape, num_split=1))
    assert isinstance(program, TileProgram)
    stmts = list(walk_stmts(program.body))
    assert [s.dst.buffer for s in stmts if isinstance(s, Copy) and s.src.buffer == "KV"] == [
        "KV_shared",
        "K_rope_shared",
    ]
    assert [s.b.buffer for s in stmts if isinstance(s, Gemm)] == ["KV_shared", "K_rope_shared", "KV_shared"]


@pytest.mark.parametrize(("name", "given", "chosen"), CASES, ids=lambda v: v if isinstance(v, str) else None)
def test_program_computes_the_reference(name: str, given: dict[str, Any], chosen: dict[str, Any]) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    config = operator.config(shape, **chosen)
    inputs = operator.inputs(shape, np.random.default_rng(3))
    tensors = execute(operator.program(shape, config), inputs)
    for key, want in operator.reference(shape, **inputs).items():
        assert compare(key, tensors[key], want, operator.tolerance(shape)).within


@pytest.mark.parametrize(
    ("name", "given", "chosen"), NEEDS_EXECUTOR, ids=lambda v: v if isinstance(v, str) else None
)
def test_program_computes_the_reference_on_the_executor(
    name: str, given: dict[str, Any], chosen: dict[str, Any]
) -> None:
    operator = load_operator(name)
    shape = operator.shape(**given)
    found = verify(operator, shape, operator.config(shape, **chosen), seed=3)
    assert found.ok, found


@EVERY_KIND
def test_special_cases(name: str, kind: str) -> None:
    operator = load_operator(name)
    shape = operator.shape(**operator.example)
    for config in (operator.configs(shape)[0], operator.configs(shape)[-1]):
        found = verify(operator, shape, config, kind=kind)
        assert found.ok, found


@pytest.mark.parametrize("kind", load_operator("topk_select").adversarial)
@pytest.mark.parametrize("k", [1, 40, 257])
@pytest.mark.parametrize("listed", [8, 300])
def test_radix_selection_of_ties_and_extremes(kind: str, k: int, listed: int) -> None:
    operator = load_operator("topk_select")
    shape = operator.shape(rows=3, cols=257, k=k)
    config = operator.config(shape, block_cols=128, last_cols=64, threads=64, listed=listed, scan="steps")
    found = verify(operator, shape, config, kind=kind)
    assert found.ok, found


def test_a_result_that_is_seldom_rescaled_is_right_all_the_same() -> None:
    """Few keys a tile, so that maxima rise between tiles by more than is let pass and by less."""
    sparse = load_operator("sparse_mla")
    shape = sparse.shape(**{**SPARSE, "topk": 96, "kv_len": 200})
    for kind in sparse.adversarial:
        for tile in (16, 64):
            found = verify(
                sparse, shape, sparse.config(shape, num_split=1, block_n=tile, lazy=True), kind=kind
            )
            assert found.ok, found


def test_special_cases_of_an_fp8_cache() -> None:
    decode = load_operator("mla_decode")
    shape = decode.shape(**DECODE, kv_dtype="fp8")
    for kind in decode.adversarial:
        found = verify(decode, shape, decode.config(shape, num_split=4, block_h=32), kind=kind)
        assert found.ok, found


@EACH
def test_one_trace_serves_every_size(name: str) -> None:
    operator = load_operator(name)
    shape = operator.shape(**operator.example)
    symbolic = {**shape, **{p.name: T.dynamic(p.name) for p in operator.params if p.dynamic}}
    for config in operator.configs(shape)[:: len(operator.configs(shape)) // 3]:
        traced = operator.program(symbolic, config)
        found = verify(operator, shape, config, programs=traced, seed=1)
        assert found.ok, found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"variant": "x"}, "variant='x' is not one of radix, radix_kept, resident, streamed"),
        ({"variant": "streamed", "bits": 3}, "bits=3 is not one of"),
        ({"scan": "x"}, "scan='x' is not one of"),
    ],
)
def test_selection_refuses_configurations_it_cannot_trace(change: dict[str, Any], message: str) -> None:
    operator = load_operator("topk_select")
    shape = operator.shape(**SMALL["topk_select"])
    with pytest.raises(OperatorError, match=message):
        operator.program(shape, operator.config(shape, **change))
