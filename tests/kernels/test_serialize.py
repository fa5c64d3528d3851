"""Programs as JSON and back."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from strategies import programs
from zoo import ZOO, flash_attention, grouped_rows, matmul

from foretile.kernels.expr import Const
from foretile.kernels.ir import TileProgram, walk_stmts
from foretile.kernels.serialize import to_json


@pytest.mark.parametrize("name", sorted(ZOO))
def test_zoo_round_trip(name):
    p = ZOO[name]()
    again = TileProgram.from_json(json.loads(json.dumps(p.to_json(), allow_nan=False)))
    assert again == p
    assert again.loc == p.loc
    assert [s.loc for s in walk_stmts(again.body)] == [s.loc for s in walk_stmts(p.body)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(programs())
def test_random_programs_round_trip(p):
    assert TileProgram.from_json(json.loads(json.dumps(p.to_json()))) == p


def test_locations_are_optional():
    p = matmul()
    data = to_json(p, locs=False)
    assert '"loc"' not in json.dumps(data)
    again = TileProgram.from_json(data)
    assert again == p
    assert all(s.loc is None for s in walk_stmts(again.body))


def test_literals_keep_their_type():
    text = json.dumps(flash_attention().to_json())
    assert '"-inf"' in text
    data = json.loads(json.dumps(grouped_rows().to_json()))

    def literals(node):
        if isinstance(node, dict):
            if node.get("node") == "Const":
                yield node
            for value in node.values():
                yield from literals(value)
        elif isinstance(node, list):
            for value in node:
                yield from literals(value)

    for literal in literals(data):
        if literal.get("dtype") == "float32":
            literal["value"] = (
                int(literal["value"]) if literal["value"] == int(literal["value"]) else literal["value"]
            )
    assert TileProgram.from_json(data) == grouped_rows()  # 0 read where 0.0 is meant


def _changed(path, value):
    data = copy.deepcopy(json.loads(json.dumps(matmul().to_json())))
    node = data
    *way, last = path
    for key in way:
        node = node[key]
    if value is KeyError:
        del node[last]
    else:
        node[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("version",), 99, r"version: 99 is not a version this release reads \(1\)"),
        (("format",), "x", "format: 'x' is not"),
        (("threads",), "many", "program.threads: expected int, got 'many'"),
        (("threads",), True, "program.threads: expected int"),
        (("name",), KeyError, "TileProgram lacks the field 'name'"),
        (("nmae",), 1, r"program.nmae: TileProgram has no such field; did you mean name\?"),
        (("grid", 0, "node"), "Cost", r"program.grid\[0\].node: 'Cost' is not a Expr; did you mean Const"),
        (
            ("grid", 1, "op"),
            "floordvi",
            r"program.grid\[1\].op: unknown op 'floordvi'; did you mean",
        ),
        (("params", 0, "dtype"), "float17", r"params\[0\].dtype: unknown dtype 'float17'; did you mean"),
        (("params", 0, "scope"), "sharde", r"params\[0\].scope: 'sharde' is not one of 'global', 'shared'"),
        (("params",), 3, "program.params: expected a list, got 3"),
        (("body", 0, "value", "value"), "x", r"body\[0\].value.value: 'x' is not a float32"),
        (("grid", 0, "value"), 1.5, r"grid\[0\].value: 1.5 is not a int32"),
        (
            ("body", 1, "body", 0, "src", "buffer"),
            "A_shard",
            r"body\[1\].body\[0\].src.buffer: there is no buffer 'A_shard'; did you mean 'A_shared'",
        ),
        (("body", 0, "node"), "Const", r"body\[0\].node: 'Const' is not a Stmt; expected Copy"),
        (("annotations",), [["one"]], r"annotations\[0\]: expected 2 items, got 1"),
        (("loc",), "nowhere", "program.loc: 'nowhere' is not file:line"),
        (("grid", 0), 8, r"grid\[0\]: expected a Expr node, got 8"),
    ],
)
def test_malformed_data_names_the_path(path, value, message):
    with pytest.raises(ValueError, match=message):
        TileProgram.from_json(_changed(path, value))


def test_not_a_mapping():
    with pytest.raises(ValueError, match="a program is a mapping, got list"):
        TileProgram.from_json([])  # type: ignore[arg-type]  # the misuse under test


def test_defaults_are_left_out():
    gemm = to_json(matmul(), locs=False)["body"][1]["body"][2]
    assert set(gemm) == {"node", "a", "b", "c"}
    assert Const(1) == Const(1, "int32")
