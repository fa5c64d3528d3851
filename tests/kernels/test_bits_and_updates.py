"""Bits of numbers, updates that tell what they found, and what is likely: recorded, executed, timed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from foretile.hwmodels import load_chip
from foretile.kernels import language as T
from foretile.kernels.ir import If, Store, TileProgram, walk_stmts
from foretile.kernels.load import from_script
from foretile.simulator.lowering import lower
from foretile.simulator.machine import SimulationError
from foretile.simulator.numerics.execute import execute
from foretile.simulator.predictor import machine_of

ROWS, COLS, BINS = 3, 96, 16


def histogram(per_row: int = 1) -> TileProgram:
    """Bins of four bits of each number of a row, and the place of each among its bin's."""

    @T.prim_func
    def count(
        X: T.Tensor((ROWS, COLS), "float32"),  # type: ignore[valid-type]
        Bits: T.Tensor((ROWS, COLS), "uint32"),  # type: ignore[valid-type]
        Place: T.Tensor((ROWS, COLS), "int32"),  # type: ignore[valid-type]
        Count: T.Tensor((ROWS, BINS), "int32"),  # type: ignore[valid-type]
    ) -> None:
        with T.Kernel(ROWS, threads=32) as b:
            T.annotate_min_blocks_per_sm(per_row)
            counts = T.alloc_shared((BINS,), "int32")
            place: Any = T.alloc_var("int32")
            T.clear(counts)
            for i in T.Parallel(COLS):
                Bits[b, i] = T.reinterpret(X[b, i], "uint32")
                place = -1
                if X[b, i] > 0:
                    at = T.cast((T.reinterpret("uint32", X[b, i]) >> 19) % BINS, "int32")
                    place = T.atomic_add(counts[at], 2, return_prev=True)
                Place[b, i] = place
            if T.likely(counts[0] >= 0):
                T.copy(counts, Count[b, 0:BINS])
            else:
                T.clear(counts)
                T.copy(counts, Count[b, 0:BINS])

    assert isinstance(count, TileProgram)
    return count


def test_an_update_tells_what_it_found_in_the_order_of_the_iterations() -> None:
    x = np.random.default_rng(1).normal(size=(ROWS, COLS)).astype(np.float32)
    found = execute(histogram(), {"X": x}).tensors
    assert (found["Bits"] == x.view(np.uint32)).all()
    for row in range(ROWS):
        counts = np.zeros(BINS, dtype=int)
        for i in range(COLS):
            at = (x.view(np.uint32)[row, i] >> 19) % BINS
            assert found["Place"][row, i] == (counts[at] if x[row, i] > 0 else -1)
            counts[at] += 2 * int(x[row, i] > 0)
        assert (found["Count"][row] == counts).all()


def test_programs_round_trip_through_text_and_json() -> None:
    program = histogram(2)
    assert TileProgram.from_json(program.to_json()) == program
    text = program.script()
    assert "place = T.atomic_add(" in text
    assert "return_prev=True)" in text
    assert "T.annotate_min_blocks_per_sm(2)" in text
    assert from_script(text).script() == text


def test_the_update_and_what_it_found_are_one_statement() -> None:
    (update,) = (s for s in walk_stmts(histogram().body) if isinstance(s, Store) and s.atomic)
    assert update.previous is not None
    assert update.previous.buffer == "place"


@pytest.mark.parametrize(
    ("source", "target", "value", "bits"),
    [
        ("float16", "uint16", -0.0, 0x8000),
        ("bfloat16", "uint16", 1.5, 0x3FC0),
        ("float32", "int32", -1.0, 0xBF800000 - 2**32),
        ("float32", "uint32", np.inf, 0x7F800000),
        ("float8_e4m3", "uint8", 448.0, 0x7E),
    ],
)
def test_bits_are_those_of_the_type(source: str, target: str, value: float, bits: int) -> None:
    @T.prim_func
    def read(X: T.Tensor((1,), "float32"), Y: T.Tensor((1,), target), Z: T.Tensor((1,), "float32")) -> None:  # type: ignore[valid-type]
        with T.Kernel(1, threads=32) as b:
            Y[b] = T.reinterpret(T.cast(X[b], source), target)
            Z[b] = T.reinterpret(T.reinterpret(T.cast(X[b], source), target), source)

    found = execute(read, {"X": np.array([value], dtype=np.float32)}).tensors
    assert found["Y"][0] == bits
    assert found["Z"][0] == value
    assert np.signbit(found["Z"][0]) == np.signbit(value)


def test_a_likely_branch_is_timed_as_taken_whatever_decides_it() -> None:
    machine = machine_of(load_chip("h200-sxm"), "")
    lowered = lower(histogram(), machine)
    stores = [a for a in lowered.accesses if a.tensor == "Count"]
    assert len(stores) == 1  # the branch that is not expected is not there
    program = histogram()
    (branch,) = (s for s in walk_stmts(program.body) if isinstance(s, If) and s.orelse)
    text = program.script().replace("T.likely(counts[0] >= 0)", "counts[0] >= 0")
    with pytest.raises(SimulationError, match="a branch depends on the value of counts"):
        lower(from_script(text), machine)
    assert branch.then


def test_registers_keep_to_the_blocks_that_are_to_run() -> None:
    machine = machine_of(load_chip("h200-sxm"), "")
    free, kept = (lower(histogram(n), machine).occupancy.registers_per_thread for n in (1, 32))
    assert kept <= free
    assert kept <= machine.register_bytes // 4 // (32 * 32)
