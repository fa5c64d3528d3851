"""Names that TileLang had and has no more, for kernels that pin an older version.

This table is all that is changed about TileLang. A kernel that uses something else that is gone fails
as it fails with TileLang itself. docs/tilelang.md shows the table.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

MODULES: dict[str, str] = {
    "tilelang.utils.target": "tilelang.backend.target",
    "tilelang.jit.env": "tilelang.env",
    "tilelang.language.copy": "tilelang.language.copy_op",
    "tilelang.language.fill": "tilelang.language.fill_op",
    "tilelang.language.gemm": "tilelang.language.gemm_op",
    "tilelang.language.reduce": "tilelang.language.reduce_op",
    "tilelang.language.parallel": "tilelang.language.loop",
    "tilelang.language.persistent": "tilelang.language.loop",
    "tilelang.language.pipeline": "tilelang.language.loop",
    "tilelang.language.fastmath": "tilelang.language.math_intrinsics",
    "tilelang.language.print": "tilelang.cuda.language.print",
    "tilelang.language.print_op": "tilelang.cuda.language.print",
    "tilelang.language.random": "tilelang.cuda.language.random",
    "tilelang.language.cluster": "tilelang.cuda.language.cluster",
    "tilelang.language.pdl": "tilelang.cuda.language.pdl",
    "tilelang.language.warpgroup": "tilelang.cuda.language.warpgroup",
}
"""Modules that moved: old name → new name."""

PASS_SWITCHES: dict[str, str] = {
    "TL_DISABLE_FAST_MATH": "tl.disable_fast_math",
    "TL_ENABLE_PTXAS_VERBOSE_OUTPUT": "tl.enable_ptxas_verbose_output",
    "TL_DISABLE_DYNAMIC_TAIL_SPLIT": "tl.disable_dynamic_tail_split",
    "TL_DYNAMIC_ALIGNMENT": "tl.dynamic_alignment",
}
"""Members of ``tilelang.PassConfigKey`` that are gone: name → the switch it stood for."""

LANGUAGE: dict[str, str] = {
    "gemm_v2": "gemm",
    "gemm_sp_v2": "gemm_sp",
    "sync_global": "sync_grid",
    "initialize_descriptor": "initialize_wgmma_descriptor",
}
"""Names of ``tilelang.language`` that are gone: old name → the name that does the same."""


def apply() -> None:
    """Make the old names stand for what they stood for, where the installed version lacks them."""
    import tilelang

    for old, new in MODULES.items():
        if not _importable(old) and _importable(new):
            module = importlib.import_module(new)
            sys.modules[old] = module
            parent, _, name = old.rpartition(".")
            holder = importlib.import_module(parent)
            if not hasattr(holder, name):  # a function may have the name by now
                setattr(holder, name, module)
    keys: Any = tilelang.PassConfigKey
    for name, switch in PASS_SWITCHES.items():
        if not hasattr(keys, name):
            setattr(keys, name, switch)
    language: Any = importlib.import_module("tilelang.language")
    for old, new in LANGUAGE.items():
        if not hasattr(language, old) and hasattr(language, new):
            setattr(language, old, getattr(language, new))


def _importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True
