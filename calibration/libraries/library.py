"""What a library's kernels are: the configurations it has, which it launches for a shape, and what else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from foretile.calibration.libraries.beside import bytes_beside
from foretile.hwmodels import Chip
from foretile.kernels.operator import Config, Shape
from foretile.simulator.machine import Machine

Array = np.ndarray
Where = Callable[[Mapping[str, Any]], Any]  # columns of a shape by row → whether, by row
# Columns of a shape, a configuration and the number of cores → into how many parts keys are split, by row.
Parts = Callable[[Mapping[str, Any], Config, int], Any]


def always(shape: Mapping[str, Any]) -> Any:
    """Every row."""
    del shape
    return True


def any_shape(shape: Shape) -> bool:
    """Every static shape."""
    del shape
    return True


@dataclass(frozen=True)
class Library:
    """Kernels of some sources on some chips; the first entry that fits a measured row describes it.

    ``kernels`` and ``engines`` (see :func:`engine_of`) are patterns, ``shapes`` picks static shapes.
    ``tiles``: the library's own configurations for a shape, most wanted first (None, or none of them
    fits: the operator's space). ``choices``: what the launched configuration has, for the rows where a
    condition holds first. ``fills``: keys are split into no more parts than run at once. ``parts``: the
    library's own rule instead, from the columns of a shape, a configuration and the number of cores.
    ``merges``: how parts are combined: by a kernel of its own (empty), by one whose launch is hidden behind
    the kernel before it (``dependent``), or by the ``last`` block of a row to end. ``combines``: where the
    combination is launched even for one part.
    ``packs``: rows of a prefill tile are queries of all the heads that share a K/V head. ``padded``: an
    expert's rows are padded to those of a tile, and each tile is a block of its own. ``beside``: what else a
    call launches:

    * ``cache``: a kernel that writes new keys and values to the paged cache;
    * ``packed``: one that takes packed queries, keys and values apart, and writes the cache;
    * ``cast``: one that turns queries into fp8, if the cache is;
    * ``narrowed``: one that turns new keys (or values) into fp8, if the cache is;
    * ``lengths``: one that plans the work from the sequences' lengths;
    * ``latent``: one that writes new tokens to a cache of latent vectors;
    * ``latent_rope``: one that does so, and turns the rotary part of every head's query and key;
    * ``concat_q``, ``concat_k``: one that joins the rotary and the other part of queries, or of one key
      for all heads;
    * ``activation``: one that applies SwiGLU to the first product's results, written in bf16
      (``activation_quantised``: in the format of its operands);
    * ``quantised_h``, ``quantised_rows``, ``quantised_tokens``: one that quantises what the kernel before
      it wrote in bf16: the SwiGLU's results, the permuted rows; or X, token by token.

    ``walks``: how often a call's kernels go through the experts' counts one by one, an L2 access each.
    ``row_cycles``: cycles of a core for an element of the permuted rows, in a kernel that quantises them
    and whose pace is not that of what it moves.
    """

    operator: str
    kernels: str
    engines: str = "*"
    shapes: Callable[[Shape], bool] = any_shape
    tiles: Callable[[Shape], Sequence[Config]] | None = None
    choices: tuple[tuple[Where, Mapping[str, Any]], ...] = ()
    fills: bool = False
    parts: Parts | None = None
    merges: str = ""
    combines: Parts | None = None
    packs: bool = False
    padded: bool = False
    beside: tuple[str, ...] = ()
    walks: int = 0
    row_cycles: float = 0.0

    def describes(self, operator: str, kernel: str, engine: str, shape: Shape) -> bool:
        """Whether these are the kernels of a source on such chips at a static shape."""
        return self.operator == operator and self.concerns(kernel, engine) and self.shapes(shape)

    def concerns(self, kernel: str, engine: str) -> bool:
        """Whether these are kernels of a source on such chips at some shape."""
        return _named(kernel, self.kernels) and _named(engine, self.engines)

    def launched(self, configs: Sequence[Config], shape: Shape, rows: int) -> Array:
        """By configuration and row, whether the library launches it: of shape (configs, rows).

        A row whose kernel is none of ``configs`` (it does not fit, or no tile program is like it) takes
        any of them.
        """
        if not self.choices:
            return np.ones((len(configs), rows), dtype=bool)
        undecided = np.ones(rows, dtype=bool)
        found = np.zeros((len(configs), rows), dtype=bool)
        for where, held in self.choices:
            mine = undecided & np.broadcast_to(np.asarray(where(shape)), (rows,))
            undecided &= ~mine
            for i, config in enumerate(configs):
                if all(config.get(name) == value for name, value in held.items()):
                    found[i] |= mine
        found[:, ~found.any(axis=0)] = True
        return found

    def splits(self, shape: Shape, config: Config, cores: int) -> Any:
        """By row, whether the library splits keys into as many parts as a configuration has.

        True where it has no rule of its own, or the configuration is none of its own.
        """
        own = {} if self.tiles is None else {**config, "num_split": 1}
        if self.parts is None or self.tiles is None or own not in self.tiles(shape):
            return True
        return self.parts(shape, config, cores) == config["num_split"]

    def launches_merge(self, shape: Shape, config: Config, cores: int) -> Any:
        """By row, whether a configuration of one part is followed by a combination all the same."""
        if self.combines is None or config.get("num_split", 2) > 1:
            return False
        return self.combines(shape, config, cores)

    @property
    def reshapes(self) -> bool:
        """Whether :meth:`like` gives every configuration a shape of its own."""
        return self.packs or self.padded

    def like(self, shape: Shape, config: Config) -> Shape:
        """The shape whose blocks do what the library's do.

        Padded, experts' tiles are as long as the configuration's. Packed, queries fewer than a tile's rows
        fill it up with the other heads of their K/V head: as many rows of fewer heads. (The few keys of so
        short a sequence are counted longer, too.)
        """
        if self.padded:
            return {**shape, "align": config["block_m"]}
        if not self.packs or "block_m" not in config:
            return shape
        rows = min(config["block_m"], config["block_n"])
        seq, kv_heads = np.asarray(shape["seq"]), np.asarray(shape["kv_heads"])
        packed = seq * np.asarray(shape["heads"]) / kv_heads
        short = seq < rows
        return {
            **shape,
            "seq": np.where(short, np.minimum(rows, packed), seq),
            "heads": np.where(short, kv_heads * np.ceil(packed / rows), shape["heads"]),
        }

    def bytes_beside(self, shape: Shape) -> list[Array]:
        """Bytes that each kernel beside the operator's moves one way, by row."""
        return [moved for kernel in self.beside if (moved := bytes_beside(kernel, shape)) is not None]

    def waits_s(self, shape: Shape, machine: Machine) -> Array:
        """Seconds beside what kernels move, by row: counts walked over, rows quantised at a slow pace."""
        walks = self.walks * np.asarray(shape["experts"], dtype=np.float64) if self.walks else 0.0
        seconds = machine.l2_latency_s * walks
        if self.row_cycles:
            elements = np.asarray(shape["tokens"], dtype=np.float64) * shape["topk"] * shape["hidden"]
            seconds = seconds + self.row_cycles * machine.cycle_s * elements / machine.cores
        return np.asarray(seconds)


def _named(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns.split())


def engine_of(chip: Chip) -> str:
    """What decides which kernels a chip runs: its matrix instruction; if the oldest, bulk copies or fp8."""
    instruction = chip.matrix.instruction
    if instruction == "mma_sync" and chip.features.bulk_copy:
        return f"{instruction}+bulk"
    if instruction == "mma_sync" and "fp8" in chip.matrix.flop_per_cycle:
        return f"{instruction}/fp8"
    return instruction
