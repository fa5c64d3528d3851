"""Adapter for the silicon tables of ``aiconfigurator-core`` (Apache-2.0): rows of ours, or why not.

The package (extra ``data``) holds, under ``systems/data/<device>/<group>/<framework>/<version>/``, one
Parquet file a table, latencies in milliseconds. The modules ``_aic_*`` say, table by table, what its
columns mean and how it was measured, as read from the collector that wrote it (github.com/
ai-dynamo/aiconfigurator, folder ``collector``). All were replayed from a CUDA graph, three warm-ups and
six timed replays, without flushing the L2 (``collector/helper.py``), unless a module says otherwise.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from foretile.calibration.sources import _aic_attention, _aic_gemm, _aic_moe, _aic_sparse
from foretile.calibration.sources._aic_common import (
    Mapped,
    Mapper,
    Place,
    Refused,
    refuse,
    shapes,
    texts_of,
)
from foretile.calibration.sources.comparable import reasons
from foretile.calibration.table_checks import typed
from foretile.calibration.table_schema import COLUMNS, KEY_COLUMNS, MeasurementError, canonical, family_of
from foretile.hwmodels import load_chip

PACKAGE = "aiconfigurator_core"
LICENCE = "Apache-2.0"
_INSIDE = ("systems", "data")
_SUFFIX = "_perf.parquet"
_CHIPS = {
    "a100_sxm": "a100-sxm4-80gb",
    "h100_sxm": "h100-sxm5-80gb",
    "h200_sxm": "h200-sxm",
    "b200_sxm": "b200-sxm",
    "b300_sxm": "b300-sxm",
    "gb200": "gb200",
    "gb300": "gb300",
    "l40s": "l40s",
    "rtx_pro_6000_server": "rtx-pro-6000",
}
_MAPPERS: Mapping[str, Mapper] = {
    "gemm": _aic_gemm.gemm,
    "mla_bmm": _aic_gemm.mla_bmm,
    "context_attention": _aic_attention.context,
    "generation_attention": _aic_attention.generation,
    "encoder_attention": _aic_attention.encoder,
    "context_mla": _aic_attention.context_mla,
    "generation_mla": _aic_attention.generation_mla,
    "moe": _aic_moe.moe,
    "scale_matrix": _aic_sparse.scale_matrix,
    "glm5_mqa_logits_module": _aic_sparse.glm5_logits,
    "glm5_topk_module": _aic_sparse.glm5_topk,
    "glm5_dsa_attn_module": _aic_sparse.glm5_attention,
    "dsv4_paged_mqa_logits_module": _aic_sparse.dsv4_logits,
    "dsv4_csa_topk_calib": _aic_sparse.dsv4_topk,
    "gdn": _aic_sparse.delta_rule,
    "kda": _aic_sparse.channel_delta_rule,
}
_MODULE = "a whole module: projections, norms, caches and attention, several kernels in one time"
_DISPATCHED = "grouped products of a rank after dispatch by another system; its routing is not stated"
_COMMUNICATION = "communication between chips: no operator"
_UNMAPPED: Mapping[str, str] = {
    "computescale": "a difference of two measurements (dynamic less static quantisation), clipped at zero",
    "custom_allreduce": _COMMUNICATION,
    "nccl": _COMMUNICATION,
    "oneccl": _COMMUNICATION,
    "trtllm_alltoall": _COMMUNICATION,
    "moe_a2a": _COMMUNICATION,
    "wideep_deepep_ll": _COMMUNICATION,
    "wideep_deepep_normal": _COMMUNICATION,
    "dsa_context_module": _MODULE,
    "dsa_generation_module": _MODULE,
    "dsv4_csa_context_module": _MODULE,
    "dsv4_csa_generation_module": _MODULE,
    "dsv4_hca_context_module": _MODULE,
    "dsv4_hca_generation_module": _MODULE,
    "mla_context_module": _MODULE,
    "mla_generation_module": _MODULE,
    "msa_context_module": _MODULE,
    "msa_generation_module": _MODULE,
    "wideep_context_mla": _MODULE,
    "wideep_generation_mla": _MODULE,
    "wideep_context_mlp": _MODULE,
    "wideep_generation_mlp": _MODULE,
    "wideep_context_moe": _DISPATCHED,
    "wideep_generation_moe": _DISPATCHED,
    "wideep_moe": "experts with redundant copies placed by load: the loads of a rank are not stated",
    "dsv4_hca_attn_module": "attention over two caches, heads of 512 in 584 bytes a token: no operator",
    "dsv4_megamoe_module": "experts and communication in one kernel",
    "mamba2": "state-space scan of Mamba 2: no operator",
    "mhc_module": "several kernels in one time",
}


def available(path: str | Path | None = None) -> Path | None:
    """The folder of the tables: of ``path`` (the package, or the folder itself), or of the installed package.

    The package is located, not imported. None if it is not installed.

    Raises:
        FileNotFoundError: ``path`` is given and holds no tables.
    """
    if path is not None:
        root = Path(path)
        for folder in (root.joinpath(PACKAGE, *_INSIDE), root.joinpath(*_INSIDE), root):
            if folder.is_dir() and any(folder.glob(f"*/*/*/*/*{_SUFFIX}")):
                return folder
        raise FileNotFoundError(
            f"{root}: no tables here; expected <device>/<group>/<framework>/<version>/*{_SUFFIX}"
        )
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent.joinpath(*_INSIDE)
    return folder if folder.is_dir() else None


def _root(path: str | Path | None) -> Path:
    root = available(path)
    if root is None:
        raise FileNotFoundError(
            "aiconfigurator-core is not installed: pip install 'foretile[data]', or give the tables' path"
        )
    return root


def release(path: str | Path | None = None) -> str:
    """The data's version: of the distribution beside the tables, or of the installed one."""
    root = _root(path)
    for info in root.parents[2].glob("aiconfigurator_core-*.dist-info") if len(root.parents) > 2 else ():
        return info.name.removesuffix(".dist-info").rpartition("-")[2]
    try:
        return importlib.metadata.version("aiconfigurator-core")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def devices(path: str | Path | None = None) -> tuple[str, ...]:
    """Ids of our chips that the tables hold measurements of."""
    root = _root(path)
    held = {folder.name for folder in root.iterdir() if any(folder.glob(f"*/*/*/*{_SUFFIX}"))}
    return tuple(sorted(chip for name, chip in _CHIPS.items() if name in held))


def unmapped() -> dict[str, str]:
    """Tables that no operator describes, and why."""
    return dict(_UNMAPPED)


def load(
    device: str, family: str | None = None, *, operator: str | None = None, path: str | Path | None = None
) -> pd.DataFrame:
    """All rows of one chip that map onto operators, in the schema of measurement tables.

    ``family`` or ``operator`` narrow it down. Repeated keys are averaged, with their spread and number.

    Raises:
        FileNotFoundError: the tables are not installed.
        MeasurementError: a chip without tables, or a file that is not as it should be.
    """
    frame, _ = _read(device, _root(path), operator)
    keep = np.ones(len(frame), dtype=bool)
    if family is not None:
        keep &= (frame["family"] == family).to_numpy()
    if operator is not None:
        keep &= (frame["operator"] == operator).to_numpy()
    return frame[keep].reset_index(drop=True)


def refused(device: str, path: str | Path | None = None) -> pd.DataFrame:
    """Every table, or part of one, that cannot be mapped: table, framework, version, what, rows, reason."""
    root = _root(path)
    _, refusals = _read(device, root, None)
    columns = list(Refused.__dataclass_fields__)
    frame = pd.DataFrame([vars(r) for r in refusals], columns=columns)
    keys = [name for name in columns if name != "rows"]
    return frame.groupby(keys, sort=False)["rows"].sum().reset_index().loc[:, columns]


def _folder(device: str, root: Path) -> Path:
    names = {chip: name for name, chip in _CHIPS.items()}
    if device not in names or not (root / names[device]).is_dir():
        held = ", ".join(devices(root))
        raise MeasurementError(str(root), None, "device", f"no tables of {device!r}; there are: {held}")
    return root / names[device]


def _read(device: str, root: Path, operator: str | None) -> tuple[pd.DataFrame, list[Refused]]:
    chip, version_held = load_chip(device), release(root)
    parts: list[pd.DataFrame] = []
    refusals: list[Refused] = []
    for file in sorted(_folder(device, root).glob(f"*/*/*/*{_SUFFIX}")):
        table = file.name.removesuffix(_SUFFIX)
        framework, version = file.parts[-3], file.parts[-2]
        l2, dram = float(chip.l2.capacity_bytes.value), float(chip.dram.capacity_bytes.value)
        place = Place(device, table, framework, version, file, l2, dram, chip.matrix.instruction)
        source = f"aiconfigurator-core {version_held}: {file.relative_to(root).as_posix()}"
        if table not in _MAPPERS:
            reason = _UNMAPPED.get(table, "a table this adapter does not know")
            refusals.append(refuse(place, "all", _rows_in(file), reason))
            continue
        for item in _rows(file, place, source, operator):
            if isinstance(item, Refused):
                refusals.append(item)
            else:
                parts.append(item)
    if not parts:
        return typed(pd.DataFrame(columns=list(COLUMNS))), refusals
    return _aggregate(pd.concat(parts, ignore_index=True)), refusals


def _rows_in(file: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(file).num_rows)


def _rows(file: Path, place: Place, source: str, operator: str | None) -> Iterator[pd.DataFrame | Refused]:
    """The mapped rows of one file, part by part."""
    frame = pd.read_parquet(file)
    latency = frame["latency"].to_numpy(dtype=np.float64) * 1e-3
    usable = np.isfinite(latency) & (latency > 0)
    if not usable.all():
        reason = "a time of zero or none at all"
        yield refuse(place, "latency", int((~usable).sum()), reason)
    frame = frame.assign(latency_s=latency)[usable]
    for item in _MAPPERS[place.table](frame, place):
        if isinstance(item, Refused):
            yield item
        elif operator is None or item.operator == operator:
            yield from _mapped(frame, item, place, source)


def _mapped(frame: pd.DataFrame, item: Mapped, place: Place, source: str) -> Iterator[pd.DataFrame | Refused]:
    rows = frame.loc[item.index]
    texts, problems = shapes(item.operator, item.params, len(rows))
    for problem, count in pd.Series(problems[problems != ""]).value_counts().items():
        yield refuse(place, f"operator {item.operator}", int(count), str(problem))
    good = problems == ""
    if not good.any():
        return
    kernel = rows["kernel_source"].astype(str) + (f"/{item.variant}" if item.variant else "")
    copies = texts_of(item.copies, len(rows), canonical)
    part = pd.DataFrame(
        {
            "device": place.device,
            "operator": item.operator,
            "shape": texts,
            "kernel_source": kernel.to_numpy(),
            "framework": place.framework,
            "framework_version": place.version,
            "launch": item.launch,
            "copies": copies,
            "latency_s": rows["latency_s"].to_numpy(),
            "source": source,
            "licence": LICENCE,
        }
    )[good].reset_index(drop=True)
    params = {k: np.asarray(v)[good] if np.ndim(v) else v for k, v in item.params.items()}
    part["family"], part["comparable"] = _described(part, params, place)
    yield part


def _described(
    part: pd.DataFrame, params: Mapping[str, object], place: Place
) -> tuple[np.ndarray, np.ndarray]:
    """Family and reason of every row; both follow from the resolved shape."""
    import json

    codes, distinct = pd.factorize(part["shape"].astype(object))
    resolved = [json.loads(text) for text in distinct]
    operator = str(part["operator"].iloc[0])
    families = np.array([family_of(operator, shape) for shape in resolved], dtype=object)[codes]
    columns = pd.DataFrame(resolved).iloc[codes].reset_index(drop=True)
    columns["kernel_source"] = part["kernel_source"]
    columns["launch"] = part["launch"]
    columns["engine"] = place.instruction
    return families, reasons(operator, columns)


def _aggregate(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a key: mean latency, spread, number of runs; the other columns are those of the first."""
    keys = [c for c in KEY_COLUMNS if c in frame.columns]
    groups = frame.groupby(keys, sort=False)
    times = groups["latency_s"].agg(["mean", "min", "max", "size"])
    rest = groups[[c for c in COLUMNS if c in frame.columns and c not in (*keys, "latency_s")]].first()
    result = rest.reset_index()
    result["latency_s"] = times["mean"].to_numpy()
    result["runs"] = times["size"].to_numpy()
    spread = (times["max"] / times["min"] - 1.0).to_numpy()
    result["spread"] = np.where(times["size"].to_numpy() > 1, spread, np.nan)
    return typed(result)
