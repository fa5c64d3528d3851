"""Where it runs: the schema of a chip, the catalogue of chip files, and the loader."""

from foretile.hwmodels.loader import ChipError, list_chips, load_chip
from foretile.hwmodels.schema import Chip, Quantity

__all__ = ["Chip", "ChipError", "Quantity", "list_chips", "load_chip"]
