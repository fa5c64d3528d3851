"""Rows for tests of measurement tables."""

from __future__ import annotations

from typing import Any

import pandas as pd

from foretile.calibration.measurements import COLUMNS, canonical, family_of
from foretile.calibration.table_schema import OPTIONAL
from foretile.kernels.operator import load_operator


def row(operator: str = "gemm", **given: Any) -> dict[str, Any]:
    """A valid row; names of columns replace columns, all others are shape parameters."""
    columns = {name: given.pop(name) for name in list(given) if name in COLUMNS}
    default = {"m": 4096, "n": 4096, "k": 4096} if operator == "gemm" and not given else {}
    shape = load_operator(operator).shape(**{**default, **given})
    return {
        "device": "h200-sxm",
        "operator": operator,
        "shape": canonical(shape),
        "family": family_of(operator, shape),
        "kernel_source": "cublas",
        "framework": "torch",
        "framework_version": "2.8",
        "launch": "graph",
        "copies": '{"B":5}',
        "latency_s": 210e-6,
        "spread": float("nan"),
        "runs": 1,
        "comparable": "",
        "source": "test",
        "licence": "CC0-1.0",
        **OPTIONAL,
    } | columns


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(list(rows) or [row()], columns=list(COLUMNS))
