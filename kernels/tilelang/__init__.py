"""TileLang in: kernels written for the real TileLang, as tile programs of ours.

The importer reads the objects that TileLang's front end makes, before any lowering; it needs no GPU and
no compiler, and imports TileLang itself only where a kernel has to be traced.
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
