"""Predictions for the rows of a measurement table, under the conditions they were measured in."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from foretile.calibration.device.kernels import TILE, compiled_by_tilelang
from foretile.calibration.device.timing import Plan, graph_length
from foretile.calibration.libraries import Library, engine_of, library_of
from foretile.hwmodels import Chip, load_chip
from foretile.kernels.operator import Config, Operator, Shape, load_operator
from foretile.kernels.operators._moe_formats import weight_bytes
from foretile.kernels.operators._moe_host import active_experts, experts_between
from foretile.simulator.conditions import REPEATED, Conditions
from foretile.simulator.launches import static_part, workloads
from foretile.simulator.machine import Machine, SimulationError
from foretile.simulator.predictor import machine_of
from foretile.simulator.search import Evaluated, evaluate_config, space

Array = np.ndarray
# Warm-ups and replays before and while the clock is read: three plain, three replayed, six timed; the
# timed ones have between six and twelve behind them (aiconfigurator, collector/helper.py).
_RUNS = 9.0
# Weights that nobody has filled draw less power than random ones: the fall of the clock over that of
# random operands. Set between the fits of five chips to bf16 GEMM (0.2 to 0.6), not fitted further.
_IDLE_SWITCHING = 0.4
# Runs of a kernel that one graph holds where no operand has copies: quantisation in a loop of five
# (collector/*/collect_computescale.py); all others once.
_IN_GRAPH = {"quantize": 5.0, "topk_select": 4.0}
# Drawings of experts by a power law that one graph goes through (collector/*/collect_moe.py).
_ROUTINGS = 5.0
_WEIGHTS = {"W_gate_up": 2.0 / 3.0, "W_down": 1.0 / 3.0}  # share of the weights


def _named(shape: Shape) -> Array:
    """Share of a query's indices that name a key; the others' products are of zeros, which switch nothing."""
    return np.asarray(np.minimum(1.0, shape["kv_len"] / shape["topk"]))


def _routings(shape: Shape) -> tuple[Array, dict[str, Array], dict[str, Array]]:
    """Of ``moe`` by row: kernels in one graph; copies of the weights that the routings make of them, and
    bytes of what one routing reads.
    """
    names = ("tokens", "experts", "topk", "distribution")
    columns = np.broadcast_arrays(*(np.asarray(shape[name]) for name in names))
    drawn = columns[-1] > 0
    used = active_experts(shape)
    between = [
        experts_between(int(tokens), int(experts), int(topk), int(exponent), int(_ROUTINGS))
        for tokens, experts, topk, exponent in zip(*columns, strict=True)
    ]
    read = np.asarray(between) / used
    total = np.asarray(weight_bytes(shape, used), dtype=np.float64)
    passing = {name: share * total for name, share in _WEIGHTS.items()}
    return np.where(drawn, _ROUTINGS, 1.0), dict.fromkeys(_WEIGHTS, read), passing


# Share of an operator's products whose operands are random numbers, where it is not all of them.
_RANDOM: dict[str, Callable[[Shape], Array]] = {"sparse_mla": _named}


@dataclass
class Batch:
    """Rows of one operator whose shapes differ in dynamic parameters only and whose kernels have one profile.

    ``shape`` holds columns (arrays of one value a row); ``graph``: kernels in one replayed graph
    (0: launched eagerly); ``where``: the rows' places in the table; ``library``: what is known
    of the kernels that ran; ``config``: the configuration they ran in, where the table names it.
    """

    operator: Operator
    family: str
    source: str
    shape: Shape
    conditions: Conditions
    graph: Array
    latency_s: Array
    where: Array
    library: Library | None = None
    config: Config | None = None

    def __len__(self) -> int:
        return len(self.where)

    def rows(self, index: Array) -> tuple[Shape, Conditions]:
        """Shape and conditions of some of the rows."""
        names = [p.name for p in self.operator.params if p.dynamic]
        return {**self.shape, **{n: self.shape[n][index] for n in names}}, self.conditions.rows(index)


def batches(frame: pd.DataFrame, chip: Chip, *, by_source: bool = False) -> list[Batch]:
    """The rows of a table of one device as batches.

    Sources whose kernels have no profile of their own in ``chip`` go together, unless ``by_source``. Rows
    that name a configuration go by it: they are of that tile program, and no library chose. Those of a bundle
    (``foretile/tile``) are predicted as TileLang's compiler makes them.

    Raises:
        OperatorError: an operator, a parameter or a key of a configuration that does not exist.
    """
    found: list[Batch] = []
    for (name, family), group in frame.groupby(["operator", "family"], sort=False):
        operator = load_operator(str(name))
        shapes = group["shape"].map(json.loads)
        static = shapes.map(lambda s, o=operator: json.dumps(static_part(o, s), sort_keys=True))
        kernels = group["kernel_source"].map(kernels_of)
        own = kernels.map(lambda k, f=family: by_source or f"{f}/{k}" in chip.kernels)
        source = kernels.where(own, "")
        configs = _named_configs(group)
        libraries = [
            None if config else library_of(operator.name, str(kernel), engine_of(chip), shape)
            for kernel, shape, config in zip(group["kernel_source"], shapes, configs, strict=True)
        ]
        number = pd.Series(pd.factorize(np.array([id(x) for x in libraries]))[0], index=group.index)
        by_number = dict(zip(number, libraries, strict=True))
        made_here = group["kernel_source"] == TILE
        by = [static, source, number, configs, made_here]
        for (_, name_of_source, n, *_), part in group.groupby(by, sort=False):
            found.append(_batch(operator, str(family), str(name_of_source), by_number[n], frame, part))
    return found


def _named_configs(rows: pd.DataFrame) -> pd.Series:
    """By row the configuration and how the L2 was left, as text; empty where no configuration is named."""
    if "config" not in rows:
        return pd.Series("", index=rows.index)
    named = rows["config"].astype(str)
    return (named + rows["cache"].astype(str)).where(named != "{}", "")


def named_configs_that_fit(frame: pd.DataFrame, chip: Chip) -> tuple[pd.DataFrame, dict[str, str]]:
    """The rows but for those in a configuration that does not fit ``chip``; for their families, why.

    Raises:
        OperatorError: an operator, a parameter or a key of a configuration that does not exist.
    """
    refused: dict[str, str] = {}
    out: list[int] = []
    for batch in batches(frame, chip):
        if batch.config is None:
            continue
        try:
            allowed(chip, batch)
        except SimulationError as error:
            out += batch.where.tolist()
            refused[f"{batch.family}, rows in a configuration that does not fit"] = str(error)
    return frame.drop(index=frame.index[out]), refused


def _batch(
    operator: Operator,
    family: str,
    source: str,
    library: Library | None,
    frame: pd.DataFrame,
    part: pd.DataFrame,
) -> Batch:
    shapes = [json.loads(s) for s in part["shape"]]
    shape: Shape = {p.name: shapes[0][p.name] for p in operator.params}
    for p in operator.params:
        if p.dynamic:
            shape[p.name] = np.array([s[p.name] for s in shapes], dtype=np.float64)
    held = [json.loads(c) for c in part["copies"]]
    tensors = sorted({name for row in held for name in row})
    copies = {name: np.array([float(row.get(name, 1)) for row in held]) for name in tensors}
    most = np.max(np.stack([np.ones(len(part)), *copies.values()]), axis=0)
    passing: dict[str, Array] = {}
    in_graph: Array | float = _IN_GRAPH.get(operator.name, 1.0)
    named = json.loads(part["config"].iloc[0]) if "config" in part else {}
    if operator.name == "moe" and not named:
        in_graph, drawn, passing = _routings(shape)
        copies = {**drawn, **copies}
    idle = np.where(part["framework"] == "vllm", _IDLE_SWITCHING, 1.0)
    random = _RANDOM[operator.name](shape) if operator.name in _RANDOM else 1.0
    latency = part["latency_s"].to_numpy(dtype=np.float64)
    replayed, runs = np.maximum(most, in_graph), _RUNS * most
    if named:  # as the device runner takes its times
        lengths = [
            graph_length(time_s, Plan(), int(count)) for time_s, count in zip(latency, most, strict=True)
        ]
        replayed, runs = np.array(lengths, dtype=np.float64), part["runs"].to_numpy(dtype=np.float64)
    flushed = bool(named) and part["cache"].iloc[0] == "flushed"
    made_here = part["kernel_source"].iloc[0] == TILE
    return Batch(
        operator=compiled_by_tilelang(operator) if made_here else operator,
        family=family,
        source=source,
        shape=shape,
        conditions=Conditions(
            None if flushed else copies,
            runs=runs,
            switching=idle * random,
            passing=passing,
        ),
        graph=np.where(part["launch"] == "graph", replayed, 0.0),
        latency_s=latency,
        where=frame.index.get_indexer(part.index),
        library=library,
        config=operator.config(shapes[0], **named) if named else None,
    )


def kernels_of(kernel_source: str) -> str:
    """The kernels of a source whatever shapes its name tells (``…/v_heads_per_k=4``)."""
    return re.sub(r"/\w+=[^/]*", "", kernel_source)


def profile_key(chip: Chip, batch: Batch) -> str:
    """The key of ``chip.kernels`` that the batch's kernels use, "" for none.

    A compiler's kernels have none: what is known of a family is known of a library's kernels.
    """
    if batch.operator.toolchain:
        return ""
    for key in (f"{batch.family}/{batch.source}", batch.family):
        if key in chip.kernels:
            return key
    return ""


def batch_machine(chip: Chip, batch: Batch) -> Machine:
    """The machine as the batch's kernels use it."""
    return machine_of(chip, profile_key(chip, batch))


def allowed(chip: Chip, batch: Batch) -> list[Config]:
    """The configurations of the batch's operator that fit the chip and that its library has.

    The one that ran where the rows name it. The whole space where nothing is known of the library, or none
    of its own tiles fits.

    Raises:
        SimulationError: nothing fits.
    """
    key = profile_key(chip, batch)
    machine = machine_of(chip, key)
    if batch.config is not None:
        workloads(batch.operator, batch.shape, batch.config, machine)
        return [batch.config]
    fitting: list[Config] = []
    if batch.library is not None and batch.library.tiles is not None:
        for config in batch.library.tiles(batch.shape):
            try:
                workloads(batch.operator, batch.shape, config, machine)
            except SimulationError:
                continue
            fitting.append(config)
    return fitting or space(batch.operator, batch.shape, machine, chip.kernels.get(key))


def around_s(chip: Chip, batch: Batch) -> Array:
    """Seconds that each row's measurement holds beside the operator's own kernels.

    The gap between replays of a graph, and the kernels that the same call launches.
    """
    gap = chip.launch.graph_s.value if chip.launch.graph_s else 0.0
    total = np.where(batch.graph > 0, gap / np.maximum(1.0, batch.graph), 0.0)
    if batch.library is not None:
        # The chip's own machine: whose kernels they are is another matter.
        copy, machine = load_operator("copy"), machine_of(chip, "")
        for moved in batch.library.bytes_beside(batch.shape):
            config = copy.configs({"bytes": moved})[0]
            launches = evaluate_config(copy, {"bytes": moved}, config, machine, REPEATED)
            total = total + launches.time_s
        total = total + batch.library.waits_s(batch.shape, machine)
    return np.asarray(total)


def config_s(
    chip: Chip, batch: Batch, config: Config, rows: Array | None = None, shared: Evaluated | None = None
) -> Array:
    """Seconds of the operator's own kernels in one configuration, infinite where no library runs it.

    ``shared``: launches of other configurations of the same rows, see :func:`evaluate_config`.
    """
    shape, conditions = (batch.shape, batch.conditions) if rows is None else batch.rows(rows)
    library, count = batch.library, len(batch) if rows is None else len(rows)
    if library is not None and library.reshapes:  # a shape of its own for every tile
        shape = library.like(shape, config)
        shared = None if library.packs else shared  # launches of other static shapes are others
    machine = batch_machine(chip, batch)
    launches = evaluate_config(batch.operator, shape, config, machine, conditions, shared=shared)
    seconds = launches.time_s
    if library is not None and "num_split" in config:
        plan = launches.plans[0]
        split = Split.of(library, shape, config, machine.cores, plan.blocks.reshape(-1), plan.slots)
        seconds = split.time_s(seconds, machine)
    return np.asarray(np.broadcast_to(seconds, (count,)))


@dataclass(frozen=True)
class Split:
    """What a library makes of a configuration that splits keys.

    ``parts``: whether there are several; ``merges``: how they are combined (see :class:`Library`); by row,
    ``combined``: whether the combination is launched for one part; ``run``: whether the library runs it.
    """

    parts: bool
    merges: str
    combined: Array
    run: Array

    @classmethod
    def of(
        cls, library: Library, shape: Shape, config: Config, cores: int, blocks: Array, slots: int
    ) -> Split:
        """``blocks`` of the first launch, by row, of which ``slots`` run at once."""
        run = np.asarray(library.splits(shape, config, cores))
        if library.fills and config["num_split"] > 1:
            run = run & (blocks <= slots)
        combined = np.asarray(library.launches_merge(shape, config, cores))
        return cls(config["num_split"] > 1, library.merges, combined, run)

    def time_s(self, seconds: Array, machine: Machine) -> Array:
        """Seconds by row from those of all launches; infinite where the library runs something else."""
        hidden = {"": 0.0, "dependent": machine.launch_s, "last": machine.launch_s + machine.ramp_s}
        if self.parts:
            seconds = seconds - hidden[self.merges]
        idle = machine.launch_s + machine.ramp_s - hidden[self.merges]
        seconds = seconds + np.where(self.combined, idle, 0.0)
        return np.where(self.run, seconds, np.inf)


def times(chip: Chip, batch: Batch, configs: Sequence[Config]) -> Array:
    """Seconds by configuration (rows) and row of the batch (columns)."""
    shared: Evaluated = {}
    found = np.stack([config_s(chip, batch, config, shared=shared) for config in configs])
    return np.asarray(launched(batch, configs, found) + around_s(chip, batch))


def launched(batch: Batch, configs: Sequence[Config], seconds: Array) -> Array:
    """``seconds`` by configuration and row, infinite where the library launches another configuration."""
    if batch.library is None:
        return seconds
    return np.where(batch.library.launched(configs, batch.shape, len(batch)), seconds, np.inf)


def predict_table(frame: pd.DataFrame, chip_of: Callable[[str], Chip] | None = None) -> pd.DataFrame:
    """Predicted time and 90 % interval of every row: columns ``time_s, low_s, high_s, refused``.

    ``chip_of`` gives the chip of a device id (the catalogue's, calibrated if it is, by default). Rows
    that cannot be predicted have NaN and the reason in ``refused``.
    """
    from foretile.calibration.intervals import row_factors

    out = pd.DataFrame(
        {"time_s": np.nan, "low_s": np.nan, "high_s": np.nan, "refused": ""}, index=frame.index
    )
    for device, rows in frame.groupby("device", sort=False):
        chip = (chip_of or load_chip)(str(device))
        for batch in batches(rows, chip):
            place = rows.index[batch.where]
            try:
                configs = allowed(chip, batch)
                ranked = times(chip, batch, configs)
            except SimulationError as error:
                out.loc[place, "refused"] = str(error)
                continue
            best = ranked.min(axis=0)
            factor = row_factors(chip, batch, configs, ranked)
            out.loc[place, "time_s"] = best
            out.loc[place, "low_s"] = best / factor
            out.loc[place, "high_s"] = best * factor
    return out


def summary(latency_s: Array, time_s: Array) -> Mapping[str, Any]:
    """MAPE, median, p90 and bias (all per cent) with n."""
    error = time_s / latency_s - 1.0
    return {
        "n": len(error),
        "mape": 100.0 * float(np.mean(np.abs(error))),
        "median": 100.0 * float(np.median(np.abs(error))),
        "p90": 100.0 * float(np.percentile(np.abs(error), 90)),
        "bias": 100.0 * float(np.expm1(np.median(np.log(time_s / latency_s)))),
    }
