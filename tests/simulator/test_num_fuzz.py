"""Random programs through everything: tracing, execution, lowering, cost model, engine.

``FORETILE_FUZZ=10000 pytest tests/simulator/test_num_fuzz.py`` runs that many programs (new ones each
time; ``--hypothesis-seed`` repeats a run); without it a small, fixed selection is run.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from pathlib import Path
from typing import Any

import block_oracle
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from foretile.frontdoor import predict
from foretile.hwmodels import list_chips, load_chip
from foretile.kernels.errors import TraceError
from foretile.kernels.ir import TileProgram
from foretile.kernels.load import from_script
from foretile.simulator.lowering import lower
from foretile.simulator.machine import SimulationError
from foretile.simulator.numerics import execute as executor
from foretile.simulator.numerics.errors import NumericsError
from foretile.simulator.numerics.execute import execute
from foretile.simulator.prediction import Prediction
from foretile.simulator.predictor import as_operator, machine_of
from foretile.simulator.search import evaluate_config, play
from foretile.simulator.simulate import simulate

sys.path.append(str(Path(__file__).parents[1] / "kernels"))

from strategies import INDEX_LIMIT, bindings, programs, sources

COUNT = int(os.environ.get("FORETILE_FUZZ", "120"))
"""Programs through the whole pipeline; comparisons with the slow interpreter take a quarter."""
steady = settings(
    deadline=None,
    database=None,
    derandomize="FORETILE_FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate,),  # shrinking such programs takes longer than reading them
    print_blob=False,
)
# Half a unit in the last place of each type, relative (of integers: absolute).
_COARSE = {"float8_e4m3": 2**-4, "float8_e5m2": 2**-3, "bfloat16": 2**-8, "float16": 2**-11, "int32": 1.0}
_TIGHT = 2.0**-19  # relative to the largest sum: what orders of 70 addends in float32 differ by


def operands(program: TileProgram, seed: int, *, exact: bool) -> dict[str, np.ndarray]:
    """Inputs; ``exact``: multiples of 1/16, of which sums of products need no rounding."""
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for p in program.params:
        shape = tuple(int(getattr(e, "value", 0)) for e in p.shape)
        if p.name == "I":
            found["I"] = rng.integers(0, INDEX_LIMIT, shape, dtype=np.int32)
        elif p.name == "S":
            found["S"] = np.zeros(shape, np.float32)
        elif p.name not in ("O", "R"):
            values = rng.integers(-16, 17, shape) / 16 if exact else rng.standard_normal(shape)
            found[p.name] = values.astype(block_oracle.storage(p.dtype))
    return found


def bound(data: st.DataObject, program: TileProgram) -> TileProgram:
    return program.bind(**data.draw(bindings(program))) if program.dims else program


# -- the executor against an interpreter that knows nothing of it ----------------------------------


def agree(
    program: TileProgram, found: np.ndarray, wanted: np.ndarray, noisy: bool, run: block_oracle.Oracle
) -> None:
    """Equal; where sums of floats are involved, as close as their order allows.

    A rounding or comparison that the interpreter saw on a knife edge may turn, and what it reaches (at
    most a tile each, carried on by scans) may differ by steps of the coarsest type.
    """
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    if not noisy:
        np.testing.assert_array_equal(a, b)
        return
    assert np.array_equal(np.isfinite(a), np.isfinite(b))
    error = np.abs(a - b)[np.isfinite(b)]
    scale = 1 + run.largest
    if not run.flips:
        assert error.max(initial=0) <= _TIGHT * scale
        return
    coarse = max(_COARSE.get(x.dtype, 0.0) for x in (*program.params, *program.buffers) if x.name != "I")
    assert error.max(initial=0) <= 4 * (coarse + _TIGHT) * scale
    assert np.count_nonzero(error > _TIGHT * scale) <= run.flips * 32 * 32


def compare(data: st.DataObject, program: TileProgram) -> None:
    exact = data.draw(st.booleans(), label="exact")
    given = operands(program, data.draw(st.integers(0, 999), label="seed"), exact=exact)
    wanted, (run,) = block_oracle.execute(program, given, exact_products=exact)
    event("with knife edges" if run.flips else "without knife edges")
    results = [name for name in ("O", "R", "S") if name in wanted]
    whole = execute(program, given)
    for name in results:
        event(f"{'close' if name in run.noisy else 'equal'} {name}")
        agree(program, whole.tensors[name], wanted[name], name in run.noisy, run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "_CHUNK_BYTES", data.draw(st.sampled_from((1, 1 << 15, 1 << 17))))
        pieces = execute(program, given).tensors
    for name in results:
        agree(program, pieces[name], wanted[name], name in run.noisy, run)
    part = execute(program, given, blocks=data.draw(st.integers(1, 5)), seed=1)
    for name, written in part.written.items():
        agree(program, part.tensors[name][written], wanted[name][written], name in run.noisy, run)


@settings(steady, max_examples=max(1, COUNT // 4))
@given(data=st.data())
def test_the_executor_agrees_with_a_slow_interpreter(data: st.DataObject) -> None:
    compare(data, bound(data, data.draw(programs())))


@st.composite
def narrowed(draw: st.DrawFn) -> TileProgram:
    """A random program whose tiles are of other types: every operation rounds, or truncates."""
    text = draw(sources())
    first = "t1 = "  # the accumulator of the product
    types = st.sampled_from(("float32", "float16", "bfloat16", "float8_e4m3", "float8_e5m2", "int32"))
    lines = []
    for line in text.splitlines():
        if "alloc_fragment" in line and first not in line:
            line = line.replace('"float32"', f'"{draw(types)}"')
        lines.append(line)
    return from_script("\n".join(lines) + "\n")


@settings(steady, max_examples=max(1, COUNT // 8))
@given(data=st.data())
def test_the_executor_agrees_with_a_slow_interpreter_on_other_types(data: st.DataObject) -> None:
    compare(data, bound(data, data.draw(narrowed())))


# -- the whole pipeline ----------------------------------------------------------------------------


@settings(steady, max_examples=COUNT)
@given(data=st.data())
def test_every_program_is_executed_and_timed(data: st.DataObject) -> None:
    symbolic = data.draw(programs())
    sizes = data.draw(bindings(symbolic)) if symbolic.dims else {}
    program = symbolic.bind(**sizes) if sizes else symbolic
    again = TileProgram.from_json(json.loads(json.dumps(program.to_json())))
    assert again == program
    found = execute(program, operands(program, 1, exact=True)).tensors
    assert all(np.isfinite(found[name].astype(np.float64)).all() for name in ("O", "R"))
    operator = as_operator(program)
    for chip_id in data.draw(st.lists(st.sampled_from(list_chips()), min_size=2, max_size=2, unique=True)):
        chip = load_chip(chip_id)
        machine = machine_of(chip)
        try:
            lower(program, machine)
        except SimulationError as error:
            event(re.sub(r"^\S+: |\d+|x\d+", "", str(error))[:60])
            continue
        event("timed")
        launches, played = evaluate_config(operator, {}, {}, machine), play(operator, {}, {}, machine)
        modelled_s, played_s = float(launches.time_s[0]), played.time_s
        assert 0 < modelled_s < math.inf
        assert 0 < played_s < math.inf
        floors = {e: float(np.ravel(b)[0]) for x in launches.estimates for e, b in x.busy.items()}
        assert all(0 <= floor <= min(modelled_s, played_s) * (1 + 1e-9) for floor in floors.values()), floors
        assert simulate(lower(again, machine), {}).time_s == played_s
        later_s = simulate(lower(symbolic, machine), sizes).time_s
        if machine.style == "davinci":  # lines of a length that is not known yet count as aligned
            assert later_s <= played_s * (1 + 1e-3)
        else:
            assert later_s == pytest.approx(played_s, rel=1e-9)
        if data.draw(st.integers(0, 5)) == 0:
            _predicted(program, chip, played_s)


def _predicted(program: TileProgram, chip: Any, played_s: float) -> None:
    prediction = predict(program, chip)
    assert prediction.time_s == played_s
    assert sum(prediction.breakdown_s.values()) == pytest.approx(prediction.time_s, rel=1e-9)
    assert all(seconds >= 0 for seconds in prediction.breakdown_s.values())
    assert all(0 <= share <= 1 for share in prediction.utilisation.values())
    assert Prediction.from_json(json.loads(json.dumps(prediction.to_json()))) == prediction


# -- malformed programs ----------------------------------------------------------------------------

BASE = """\
n = T.dynamic("n")
@T.prim_func
def program(
    X: T.Tensor((n, 32), "float16"),
    Y: T.Tensor((32, 32), "float16"),
    I: T.Tensor((n,), "int32"),
    O: T.Tensor((n, 32), "float32"),
    R: T.Tensor((n,), "float32"),
):
    with T.Kernel(T.ceildiv(n, 16), threads=64) as bx:
        xs = T.alloc_shared((16, 32), "float16")
        ys = T.alloc_shared((32, 32), "float16")
        acc = T.alloc_fragment((16, 32), "float32")
        row = T.alloc_fragment((16,), "float32")
        total = T.alloc_var("float32", init=0.0)
        T.clear(acc)
        for k in T.Pipelined(2, num_stages=2):
            T.copy(X[bx * 16, 0], xs)
            T.copy(Y[0, 0], ys)
            T.gemm(xs, ys, acc)
        T.reduce_sum(acc, row, dim=1)
        for i, j in T.Parallel(16, 32):
            acc[i, j] = acc[i, j] + row[i]
        if bx > 0:
            total = total + 1.0
        T.copy(acc, O[bx * 16, 0])
        T.copy(row, R[bx * 16])
"""
# What is replaced by what, and a part of the message.
MALFORMED = {
    "unknown operation": ("T.clear(acc)", "T.claer(acc)", "T.claer is not part"),
    "unknown Python name": ("row[i]", "rwo[i]", "rwo"),
    "unknown name of a tensor": ("T.copy(acc, O", "T.copy(acc, P", "'P'"),
    "unknown type": (
        'row = T.alloc_fragment((16,), "float32")',
        'row = T.alloc_fragment((16,), "f33")',
        "f33",
    ),
    "operands of a product": ("T.gemm(xs, ys, acc)", "T.gemm(ys, xs, acc)", "T.gemm"),
    "transposed operand": ("T.gemm(xs, ys, acc)", "T.gemm(xs, ys, acc, transpose_A=True)", "T.gemm"),
    "product into a vector": ("T.gemm(xs, ys, acc)", "T.gemm(xs, ys, row)", "T.gemm"),
    "too many indices": ("+ row[i]", "+ row[i, j]", "row has 1 dimension"),
    "too few indices": ("= acc[i, j]", "= acc[i]", "acc has 2 dimensions"),
    "extents of a copy": ("T.copy(row, R", "T.copy(acc, R", "acc"),
    "rank of a copy": ("T.copy(acc, O[bx * 16, 0])", "T.copy(acc, O[bx * 16])", "O has 2 dimensions"),
    "dimension of a reduction": ("dim=1)", "dim=2)", "dim"),
    "target of a reduction": ("T.reduce_sum(acc, row", "T.reduce_sum(row, acc", "T.reduce"),
    "symbolic tile": ("T.alloc_fragment((16,)", "T.alloc_fragment((n,)", "symbolic extent n"),
    "float index": ("+ row[i]", "+ row[i / 2]", "/"),
    "index beyond the tile": ("+ row[i]", "+ row[16]", "out of bounds"),
    "computed index beyond the tile": ("+ row[i]", "+ row[i + 1]", "leaves the buffer of 16"),
    "unwritten accumulator": ("T.clear(acc)\n", "T.sync_threads()\n", "reads acc, which was never written"),
    "unwritten operand": ("            T.copy(Y[0, 0], ys)\n", "", "reads ys, which was never written"),
    "unwritten vector": ("T.reduce_sum(acc, row, dim=1)", "T.sync_threads()", "reads row, which was never"),
    "unwritten output": ("T.copy(row, R[bx * 16])", "T.sync_threads()", "was never written"),
    "output read": ("T.copy(row, R", "T.copy(R[bx * 16], row)\n        T.copy(row, R", "never written"),
    "racing blocks": ("R[bx * 16])", "R[0])", "several blocks write R"),
    "racing iterations": ("acc[i, j] = acc", "row[i] = acc", "row"),
    "reading a neighbour": ("+ row[i]", "+ acc[15 - i, j]", "another one"),
    "changed name": ("total = T.alloc_var", "totals = T.alloc_var", "used before it is assigned"),
    "assigned index": ("total = total + 1.0", "bx = 1", "bx"),
    "tile operation in a parallel loop": ("acc[i, j] = acc[i, j] + row[i]", "T.clear(acc)", "arallel"),
    "second kernel": (
        "        T.copy(row, R",
        "        with T.Kernel(2) as by:\n            T.copy(row, R",
        "Kernel",
    ),
    "syntax": ("if bx > 0:", "if bx > :", "invalid syntax"),
    "threads": ("threads=64", "threads=65", "threads"),
    "number of indices of the grid": ("as bx:", "as (bx, by):", "T.Kernel has 1 grid axes"),
    "product with a number": ("T.gemm(xs, ys, acc)", "T.gemm(xs, 3, acc)", "T.gemm"),
    "wrong keyword": ("dim=1)", "axis=1)", "axis"),
    "division by zero": ("bx > 0", "bx // 0 > 0", "division by zero"),
    "a text among numbers": ("total + 1.0", 'total + "a"', "expected a number or a value"),
}


def sized(n: int) -> dict[str, np.ndarray]:
    return {
        "X": np.ones((n, 32), np.float16),
        "Y": np.ones((32, 32), np.float16),
        "I": np.zeros(n, np.int32),
    }


@pytest.mark.parametrize(("old", "new", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_programs_are_refused_with_their_line(old: str, new: str, message: str) -> None:
    assert BASE.count(old) == 1
    text = BASE.replace(old, new)
    with pytest.raises((TraceError, NumericsError), match=re.escape(message)) as raised:
        execute(from_script(text), sized(40))
    named = re.match(r"<tile script \d+>:(\d+): ", str(raised.value))
    assert named is not None, str(raised.value)
    assert 1 <= int(named[1]) <= len(text.splitlines())


def test_the_program_that_the_malformed_ones_are_made_of_runs() -> None:
    execute(from_script(BASE), sized(40))


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A random program with a line taken out, doubled or moved, or a word or number exchanged."""
    lines = draw(sources()).splitlines()
    first = next(i for i, line in enumerate(lines) if "T.Kernel" in line)
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(first, len(lines) - 1))
        how = draw(st.sampled_from(("drop", "double", "move", "word", "word", "word", "number", "number")))
        if how == "drop":
            del lines[at]
        elif how == "double":
            lines.insert(at, lines[at])
        elif how == "move":
            line = lines.pop(at)
            lines.insert(draw(st.integers(first, len(lines))), line)
        else:
            pattern = r"\b\d+\b" if how == "number" else r"\b[A-Za-z_]\w*\b"
            words = [m.span() for m in re.finditer(pattern, lines[at])]
            pool = sorted({w for line in lines[first:] for w in re.findall(pattern, line)} | {"q", "0", "V"})
            if words:
                start, end = draw(st.sampled_from(words))
                lines[at] = lines[at][:start] + draw(st.sampled_from(pool)) + lines[at][end:]
    return "\n".join(lines) + "\n"


@settings(steady, max_examples=COUNT)
@given(data=st.data())
def test_damaged_programs_run_or_are_refused(data: st.DataObject) -> None:
    """No other exception escapes, and the message names a line."""
    text = data.draw(damaged())
    refused: ValueError | None = None
    try:
        program = bound(data, from_script(text))
        execute(program, operands(program, 1, exact=True))
        event("runs")
    except (TraceError, NumericsError) as error:
        event(type(error).__name__)
        refused = error
    if refused is not None:
        assert re.match(r"<tile script \d+>:\d+: ", str(refused)), f"{refused}\n{text}"
        return
    try:
        evaluate_config(as_operator(program), {}, {}, machine_of(load_chip("h100")))
    except SimulationError:
        event("SimulationError")
