"""TileLang in and out: kernels written for it as tile programs of ours, and ours as its source and CUDA.

The importer reads the objects that TileLang's front end makes, before any lowering; it needs no GPU and
no compiler, and imports TileLang itself only where a kernel has to be traced. Out: :mod:`export` writes
source text without TileLang; :mod:`compiler` has the installed one, in a process of its own, make CUDA of it.
"""

from foretile.kernels.tilelang.device import Device
from foretile.kernels.tilelang.held import from_tilelang, is_held
from foretile.kernels.tilelang.program import from_prim_func
from foretile.kernels.tilelang.versions import KNOWN, TileLangMissing, installed, require

__all__ = [
    "KNOWN",
    "Device",
    "TileLangMissing",
    "from_prim_func",
    "from_tilelang",
    "installed",
    "is_held",
    "require",
]
