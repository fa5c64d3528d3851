"""TileLang in: kernels written for the real TileLang, as tile programs of ours.

The importer reads the objects that TileLang's front end makes, before any lowering; it needs no GPU and
no compiler, and imports TileLang itself only where a kernel has to be traced.
"""

from foretile.kernels.tilelang.program import from_prim_func
from foretile.kernels.tilelang.versions import KNOWN, TileLangMissing, installed, require

__all__ = ["KNOWN", "TileLangMissing", "from_prim_func", "installed", "require"]
