"""What a library's kernels are: the configurations it has, which it launches for a shape, and what else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from foretile.hwmodels import Chip
from foretile.kernels.operator import Config, Shape
from foretile.kernels.operators._mla import ABSORBED, NOPE, ROPE

Array = np.ndarray
Where = Callable[[Mapping[str, Any]], Any]  # columns of a shape by row → whether, by row
# Columns of a shape, a configuration and the number of cores → into how many parts keys are split, by row.
Parts = Callable[[Mapping[str, Any], Config, int], Any]
CACHE_BYTES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0}  # of an element of a K/V cache
_ACTIVATION_BYTES = 2.0  # new keys and values come in bf16, whatever the cache holds


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
    ``packs``: rows of a prefill tile are queries of all the heads that share a K/V head. ``beside``: what
    else a call launches:

    * ``cache``: a kernel that writes new keys and values to the paged cache;
    * ``packed``: one that takes packed queries, keys and values apart, and writes the cache;
    * ``cast``: one that turns queries into fp8, if the cache is;
    * ``narrowed``: one that turns new keys (or values) into fp8, if the cache is;
    * ``lengths``: one that plans the work from the sequences' lengths;
    * ``latent``: one that writes new tokens to a cache of latent vectors;
    * ``latent_rope``: one that does so, and turns the rotary part of every head's query and key;
    * ``concat_q``, ``concat_k``: one that joins the rotary and the other part of queries, or of one key
      for all heads.
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
    beside: tuple[str, ...] = ()

    def describes(self, operator: str, kernel: str, engine: str, shape: Shape) -> bool:
        """Whether these are the kernels of a source on such chips at a static shape."""
        return (
            self.operator == operator
            and _named(kernel, self.kernels)
            and _named(engine, self.engines)
            and self.shapes(shape)
        )

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

    def like(self, shape: Shape, config: Config) -> Shape:
        """The shape whose blocks do what the library's do.

        Packed, queries fewer than a tile's rows fill it up with the other heads of their K/V head: as many
        rows of fewer heads. (The few keys of so short a sequence are counted longer, too.)
        """
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
        return [moved for kernel in self.beside if (moved := _bytes_beside(kernel, shape)) is not None]


def _named(name: str, patterns: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns.split())


def _bytes_beside(kernel: str, shape: Shape) -> Array | None:
    batch = np.asarray(shape["batch"], dtype=np.float64)
    if kernel == "cache":  # read in the activations' type, written in the cache's
        each = (_ACTIVATION_BYTES + CACHE_BYTES[shape["kv_dtype"]]) / 2.0
        return np.asarray(2.0 * each * batch * shape.get("seq", 1) * shape["kv_heads"] * shape["head_dim"])
    if kernel in ("cast", "narrowed"):
        if shape["kv_dtype"] != "fp8":
            return None
        heads = shape["heads" if kernel == "cast" else "kv_heads"]
        return np.asarray(1.5 * batch * shape.get("seq", 1) * heads * shape["head_dim"])
    if kernel == "packed":  # read packed, written as Q and into the cache
        heads = shape["heads"] + 2 * np.asarray(shape["kv_heads"])
        return np.asarray(_ACTIVATION_BYTES * batch * shape.get("seq", 1) * heads * shape["head_dim"])
    if kernel == "lengths":
        return 4.0 * batch
    tokens = batch * shape.get("seq", 1)
    if kernel == "latent":
        return np.asarray(_ACTIVATION_BYTES * tokens * ABSORBED)
    if kernel == "latent_rope":  # the key's rotary part is one for all heads, and written for each
        turned = 1.5 * np.asarray(shape["heads"]) * ROPE
        return np.asarray(_ACTIVATION_BYTES * tokens * (ABSORBED + turned))
    if kernel in ("concat_q", "concat_k"):
        heads = np.asarray(shape["heads"]) if kernel == "concat_q" else 1.0
        return np.asarray(_ACTIVATION_BYTES * tokens * heads * (NOPE + ROPE))
    raise ValueError(f"no kernel beside an operator's is called {kernel!r}")


def engine_of(chip: Chip) -> str:
    """What decides which kernels a chip runs: its matrix instruction, and bulk copies beside the oldest."""
    instruction = chip.matrix.instruction
    bulk = instruction == "mma_sync" and chip.features.bulk_copy
    return f"{instruction}+bulk" if bulk else instruction
