"""Every kernel of the bundle of operators, built and checked: half an hour an architecture (-m bundles)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from device_bundles import need_compilers

from foretile.calibration.device.archive import open_bundle
from foretile.calibration.device.build import ARCHITECTURES, build_bundle
from foretile.calibration.device.kernels import CUDA, TILE
from foretile.calibration.device.main import check
from foretile.calibration.device.suites import load_suite
from foretile.calibration.device.tables import canonical
from foretile.hwmodels import load_chip

SUITE = load_suite("operators")
CASES = [(e, operator, shape) for e in SUITE.entries for operator, shape in e.resolved()]
MOST_BYTES, MOST_S = 40e6, 480.0


@pytest.fixture(scope="module", autouse=True)
def compilers() -> None:
    need_compilers()


@pytest.mark.slow
@pytest.mark.bundles
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_100a"])
def test_every_kernel_of_the_operators_compiles(arch: str, tmp_path: Path) -> None:
    chip = load_chip(ARCHITECTURES[arch])
    # Another configuration is taken for one that TileLang or nvcc refuses, so none is missing.
    manifest = build_bundle(SUITE, arch, tmp_path / "operators.bundle", jobs=2)
    lacking = Counter(left["why"] for left in manifest["left_out"] if left["why"].startswith("no config"))
    fp8 = "fp8" in chip.matrix.flop_per_cycle
    assert sum(lacking.values()) == (0 if fp8 else sum(s.get("dtype") == "fp8" for _, _, s in CASES)), lacking
    with open_bundle(tmp_path / "operators.bundle") as bundle:
        assert check(bundle) == []
        assert bundle.bytes <= MOST_BYTES
        assert manifest["estimate_s"] <= MOST_S
        held = Counter((bundle.cases[r.case].operator, r.case, r.kernel_source) for r in bundle.rows)
        shapes = {(bundle.cases[r.case].operator, canonical(bundle.cases[r.case].shape)) for r in bundle.rows}
        assert shapes == {(operator.name, canonical(shape)) for _, operator, shape in CASES}
        wanted = {e.operator: e.tile for e in SUITE.entries}
        for (operator, _, source), count in held.items():
            assert count == (wanted[operator] if source == TILE else 1), (operator, source)
        assert {source for _, _, source in held} == {TILE, CUDA}
