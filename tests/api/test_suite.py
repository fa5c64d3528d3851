"""Suites: the one that comes along, and what is said about broken ones."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from foretile.kernels.operator import load_operator
from foretile.report.suite import SuiteError, cases, load_suite, parse_suite, suite_names, tokens

GOOD: dict[str, Any] = {
    "name": "small",
    "title": "Small",
    "subtitle": "two operators",
    "model": {"name": "M", "source": "a test", "facts": {"hidden": 64, "layers": 2}},
    "assumptions": ["none"],
    "groups": {"g": "Group", "h": "Other"},
    "dtypes": ["bf16"],
    "phases": [
        {
            "id": "decode",
            "title": "Decode",
            "unit": "decode step",
            "tokens": "batch",
            "highlight": "b2",
            "points": [
                {"id": "b1", "title": "batch 1", "variables": {"batch": 1}},
                {"id": "b2", "title": "batch 2", "variables": {"batch": 2}},
            ],
            "entries": [
                {
                    "name": "up", "title": "up", "group": "g", "operator": "gemm", "count": "layers",
                    "shape": {
                        "m": "4 * batch", "n": "hidden + 2 * hidden", "k": "hidden // 2", "dtype": "bf16",
                    },
                },
                {
                    "name": "norm", "title": "norm", "group": "h", "operator": "rmsnorm", "count": 1,
                    "shape": {"rows": "batch", "cols": "hidden"},
                },
            ],
        }
    ],
}  # fmt: skip


def test_sizes_are_worked_out_from_facts_and_variables() -> None:
    suite = parse_suite(GOOD, "small.yaml")
    found = {case.where: (dict(case.shape), case.count) for case in cases(suite)}
    assert found["decode/b2/up"] == ({"m": 8, "n": 192, "k": 32, "dtype": "bf16"}, 2)
    assert tokens(suite, suite.phases[0], suite.phases[0].points[1]) == 2


def _change(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    data = copy.deepcopy(GOOD)
    node: Any = data
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    return data


UP = ("phases", 0, "entries", 0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ((*UP, "count"), "layer", "decode.up: count: unknown name 'layer'; known: hidden, layers, batch"),
        ((*UP, "shape", "m"), "batch - 4", "decode.up: shape.m: 'batch - 4' is -3; at least 1 is needed"),
        ((*UP, "shape", "m"), "__import__('os')", "is not a sum or product of whole numbers and names"),
        ((*UP, "shape", "m"), "batch // 0", "is not a sum or product of whole numbers and names"),
        ((*UP, "shape", "m"), "batch * 1.5", "is not a sum or product of whole numbers and names"),
        ((*UP, "group"), "x", "decode.up: group 'x' is not one of g, h"),
        ((*UP, "colour"), "red", "phases.decode.entries.up.colour: Extra inputs are not permitted"),
        ((*UP, "operator"), None, "phases.decode.entries.up.operator: Input should be a valid string"),
        (("phases", 0, "entries", 1, "name"), "up", "decode: entry 'up' is there twice"),
        (("phases", 0, "highlight"), "b3", "decode: highlight: 'b3' is none of its points"),
        (("phases", 0, "tokens"), "batches", "decode: tokens: unknown name 'batches'"),
        (("model", "facts", "hidden"), "many", "model.facts.hidden: Input should be a valid integer"),
    ],
)
def test_a_broken_suite_is_refused_by_file_and_entry(path: tuple[Any, ...], value: Any, message: str) -> None:
    with pytest.raises(SuiteError) as refused:
        parse_suite(_change(path, value), "small.yaml")
    assert str(refused.value).startswith("small.yaml: ")
    assert message in str(refused.value)


def test_a_suite_can_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(GOOD))
    assert load_suite(str(file)).name == "small"
    file.write_text("a: [")
    with pytest.raises(SuiteError, match="not YAML"):
        load_suite(str(file))
    file.write_text("- 1")
    with pytest.raises(SuiteError, match="the file"):
        load_suite(str(file))


@pytest.mark.parametrize("name", suite_names())
def test_every_shape_is_one_its_operator_accepts(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    for case in cases(suite):
        operator = load_operator(case.entry.operator)
        assert operator.flops(operator.shape(**case.shape)) > 0, case.where


def test_deepseek_v3_has_the_arithmetic_of_the_real_model() -> None:
    """37 thousand million active parameters, two FLOP each, besides attention and the embedding."""
    suite = load_suite("deepseek-v3")
    facts = suite.model.facts
    weights = {
        case.entry.name: case.count * int(case.shape["n"]) * int(case.shape["k"])
        for case in cases(suite)
        if case.point.id == "batch-1" and case.entry.operator == "gemm" and "batch" not in case.shape
    }
    expert = 3 * facts["hidden_size"] * facts["moe_intermediate_size"]
    per_head = facts["num_heads"] * facts["kv_lora_rank"] * (facts["qk_nope_head_dim"] + facts["v_head_dim"])
    active = sum(weights.values()) + facts["num_layers"] * per_head
    active += facts["moe_layers"] * facts["num_experts_per_tok"] * expert
    active += facts["vocab_size"] * facts["hidden_size"]  # the embedding, which is not multiplied
    assert active == pytest.approx(37.6e9, rel=0.01)


def test_deepseek_v3_attention_does_the_absorbed_arithmetic() -> None:
    facts = load_suite("deepseek-v3").model.facts
    decode = {c.point.id: c for c in cases(load_suite("deepseek-v3")) if c.entry.name == "attention"}[
        "batch-32"
    ]
    flops = load_operator("mla_decode").flops(load_operator("mla_decode").shape(**decode.shape))
    wide = facts["kv_lora_rank"] + facts["qk_rope_head_dim"]
    assert flops == 32 * 4096 * facts["num_heads"] * 2 * (wide + facts["kv_lora_rank"])


def test_v32_shows_indexer_selection_and_attention_apart() -> None:
    v3, sparse = load_suite("deepseek-v3"), load_suite("deepseek-v3.2")
    decode = [c for c in cases(sparse) if c.where.startswith("decode/kv-32768/")]
    by_operator = {c.entry.operator: c for c in decode}
    assert by_operator["indexer_logits"].entry.group == "indexer"
    assert by_operator["topk_select"].entry.group == "selection"
    assert by_operator["sparse_mla"].entry.group == "attention"
    assert by_operator["sparse_mla"].shape["topk"] == 2048
    assert "mla_decode" not in by_operator
    # The rest of the layer is V3's.
    kept = {e.name for e in v3.phases[1].entries} - {"attention"}
    assert kept <= {c.entry.name for c in decode}


def test_a_suite_may_say_only_what_differs(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(yaml.safe_dump(GOOD))
    norm = GOOD["phases"][0]["entries"][1]
    own = tmp_path / "own.yaml"
    own.write_text(
        yaml.safe_dump(
            {
                "extends": str(base),
                "name": "own",
                "model": {"facts": {"layers": 5}},
                "phases": [{"id": "decode", "replace": {"up": [{**norm, "name": "other"}]}}],
            }
        )
    )
    suite = load_suite(str(own))
    assert suite.name == "own"
    assert suite.model.facts == {"hidden": 64, "layers": 5}
    assert [e.name for e in suite.phases[0].entries] == ["other", "norm"]
    own.write_text(
        yaml.safe_dump({"extends": str(base), "phases": [{"id": "decode", "replace": {"nope": []}}]})
    )
    with pytest.raises(SuiteError, match=r"own.yaml: decode: replace: no entry nope"):
        load_suite(str(own))
