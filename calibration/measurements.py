"""Measurement tables: their schema, reading and writing, checks, and the split into fit and test rows."""

from __future__ import annotations

from foretile.calibration.table_checks import validate_table
from foretile.calibration.table_files import read_csv, read_table, write_table
from foretile.calibration.table_schema import (
    COLUMNS,
    SCHEMA_VERSION,
    Measurement,
    MeasurementError,
    canonical,
    family_of,
)
from foretile.calibration.table_split import (
    FIT_FOLDS,
    FIT_ROWS,
    fit_rows,
    fold,
    folds,
    row_key,
    row_keys,
    test_rows,
)

__all__ = [
    "COLUMNS",
    "FIT_FOLDS",
    "FIT_ROWS",
    "SCHEMA_VERSION",
    "Measurement",
    "MeasurementError",
    "canonical",
    "family_of",
    "fit_rows",
    "fold",
    "folds",
    "read_csv",
    "read_table",
    "row_key",
    "row_keys",
    "test_rows",
    "validate_table",
    "write_table",
]
