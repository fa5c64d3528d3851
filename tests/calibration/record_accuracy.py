"""The recorded errors that test_cal_accuracy.py holds the model to; run as a script, makes them again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from foretile.calibration.measurements import row_keys, test_rows
from foretile.calibration.predictions import predict_table, summary
from foretile.calibration.sample import load_sample, sample_devices
from foretile.calibration.table_split import smallest_keys

FILE = Path(__file__).with_name("accuracy_recorded.json")
ROWS = 40
# Families whose rows take well under a second to predict; the others are in docs/accuracy.md.
FAMILIES = (
    "gemm.bf16",
    "gemm_fp8_block",
    "gemm.nvfp4",
    "quantize",
    "mla_decode",
    "mla_prefill",
    "indexer_logits",
)


def measured(device: str, family: str) -> dict[str, float] | None:
    """Error over the first test rows of a chip and family; None where the sample has none."""
    table = load_sample(device)
    table = table[(table["family"] == family) & (table["comparable"] == "") & (table["launch"] == "graph")]
    rows = test_rows(table)
    if rows.empty:
        return None
    rows = smallest_keys(rows, row_keys(rows), ROWS)
    time_s = predict_table(rows)["time_s"].to_numpy()
    known = np.isfinite(time_s)
    return dict(summary(rows["latency_s"].to_numpy()[known], time_s[known])) if known.any() else None


def main() -> None:
    found = {d: {f: e for f in FAMILIES if (e := measured(d, f)) is not None} for d in sample_devices()}
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
