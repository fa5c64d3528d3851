"""A small bundle, built with nvcc, and a driver that plays its kernels on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from foretile.calibration.device.archive import Bundle
from foretile.calibration.device.build import build_bundle
from foretile.calibration.device.driver import Pointer
from foretile.calibration.device.fake import Execution, FakeDriver
from foretile.calibration.device.formats import decode, encode, stored, stored_shape
from foretile.calibration.device.references import FORMULAS
from foretile.calibration.device.rows import Case
from foretile.calibration.device.suites import load_suite
from foretile.hwmodels import load_chip
from foretile.kernels.cuda.nvcc import NvccError, find_nvcc
from foretile.kernels.cuda.recipe import LaunchRecipe, TensorArg
from foretile.kernels.tilelang.versions import installed

SUITE = {
    "name": "small",
    "title": "four operators",
    "timing": {"budget_s": 0.02},
    "entries": [
        {"operator": "softmax", "shapes": [{"rows": 8, "cols": [40, 48], "dtype": "fp32"}], "tile": 0},
        {"operator": "rmsnorm", "shapes": [{"rows": 8, "cols": 64}], "tile": 0},
        # Without a formula; and one of whose results several are right.
        {"operator": "swiglu", "shapes": [{"rows": 8, "cols": 64}], "tile": 0},
        {"operator": "topk_select", "shapes": [{"rows": 8, "cols": 64, "k": 4}], "tile": 0},
    ],
}


def build_small(folder: Path, arch: str = "sm_90a") -> Path:
    """A bundle of four rows; skips the test where there is no nvcc."""
    try:
        find_nvcc()
    except NvccError as error:
        pytest.skip(str(error).partition(":")[0])
    (folder / "small.yaml").write_text(yaml.safe_dump(SUITE), encoding="utf-8")
    out = folder / "small.bundle"
    build_bundle(load_suite(str(folder / "small.yaml")), arch, out, load_chip("h200-sxm"))
    return out


def _swiglu(xp: Any, shape: Any, given: Any) -> dict[str, Any]:
    gate, up = np.split(given["X"].astype(np.float64), 2, axis=1)
    return {"Y": gate / (1 + np.exp(-gate)) * up}


def _player(case: Case, recipe: LaunchRecipe, spoil: Callable[[Any], Any]) -> Callable[[Execution], None]:
    """What a kernel of a case does: the formula on the operands it points to, rounded as it stores them."""
    tensors = {t.name: t for t in case.tensors}
    places = {arg.name: i for i, arg in enumerate(recipe.args) if isinstance(arg, TensorArg)}

    def view(run: Execution, name: str) -> Any:
        tensor, pointer = tensors[name], run.parameters[places[name]]
        assert isinstance(pointer, Pointer)
        shape = stored_shape(tensor.dtype, tensor.shape)
        return run.driver.view(pointer.buffer, stored(tensor.dtype), shape, pointer.start)

    def play(run: Execution) -> None:
        given = {n: decode(np, view(run, n), tensors[n].dtype, tensors[n].shape) for n in case.fills}
        for name, values in (FORMULAS[case.formula] if case.formula else _swiglu)(
            np, case.shape, given
        ).items():
            view(run, name)[...] = encode(np, spoil(values).astype(np.float32), tensors[name].dtype)

    return play


class Player(FakeDriver):
    """Plays every row of a bundle by its launch; ``spoil`` changes results, by operator."""

    def __init__(
        self, bundle: Bundle, spoil: dict[str, Callable[[Any], Any]] | None = None, **more: Any
    ) -> None:
        super().__init__((9, 0), **more)
        self._properties = replace(self._properties, name="NVIDIA H200", simulated=False, driver="580.1")
        self._properties = replace(self._properties, cores=132, memory_bytes=140 << 30)
        self._plays = {}
        for row in bundle.rows:
            case, (_, recipe) = bundle.cases[row.case], row.launches[-1]
            change = (spoil or {}).get(case.operator, lambda values: values)
            self._plays[recipe.symbol, recipe.grid, self._scalars(recipe)] = _player(case, recipe, change)

    @staticmethod
    def _scalars(recipe: LaunchRecipe) -> tuple[Any, ...]:
        return tuple(getattr(arg, "value", None) for arg in recipe.args)

    def launch(self, kernel: Any, grid: Any, block: Any, parameters: Any, **more: Any) -> None:
        """Checked as ever; the row is told by symbol, grid and scalar parameters."""
        scalars = tuple(
            int.from_bytes(p, "little") if isinstance(p, bytes) and len(p) in (4, 8) else None
            for p in parameters
        )
        play = self._plays[kernel.symbol, tuple(grid), scalars]
        self._executors[kernel.symbol] = play
        super().launch(kernel, grid, block, parameters, **more)


def need_compilers() -> None:
    """Skip what needs TileLang and nvcc, with the reason."""
    if installed() is None:
        pytest.skip("TileLang is not installed (pip install 'foretile[tilelang]')")
    try:
        find_nvcc()
    except NvccError as error:
        pytest.skip(str(error))
