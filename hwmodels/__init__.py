"""Where it runs: the schema of a chip, the catalogue of chip files, and the loader."""

from foretile.hwmodels.incomplete import IncompleteChip, IncompleteChipError
from foretile.hwmodels.loader import ChipError, describe_chip, list_chips, list_incomplete, load_chip
from foretile.hwmodels.quantity import Quantity
from foretile.hwmodels.schema import Chip

__all__ = [
    "Chip",
    "ChipError",
    "IncompleteChip",
    "IncompleteChipError",
    "Quantity",
    "describe_chip",
    "list_chips",
    "list_incomplete",
    "load_chip",
]
