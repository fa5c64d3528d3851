"""What runs: the tile language, its program IR, and the operators built from it."""

from foretile.kernels.ir import TileProgram

__all__ = ["TileProgram"]
