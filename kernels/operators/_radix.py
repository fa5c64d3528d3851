"""Selecting the k largest of a row by their bits: histograms in shared memory, as indexers' kernels do.

The algorithm is that of TileLang's top-k selector for DeepSeek-V3.2 (examples/deepseek_v32) and of SGLang's
kernels made from it (sgl-kernel/csrc/elementwise/topk.cu, jit_kernel/csrc/deepseek_v4/topk_v1.cuh): a pass
that counts the upper eight bits of each number in half precision, sums over the 256 counts, a second pass
that writes the larger ones down, and, where the bin of the k-th number holds more than are missing, four
more digits of eight bits of those alone.
"""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from dataclasses import dataclass
from typing import Any

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operator import Config, OperatorError, Shape
from foretile.kernels.operators._mla import traced

_BINS = 256
_STEPS = (1, 2, 4, 8, 16, 32, 64, 128)  # of the sums over the bins
_THREADS = 2048  # of a core: kernels with little in registers are built to fill it
_DIGITS = 4  # of eight bits, in a float32


@T.macro
def _coarse(x: Any, half: Any, key: Any) -> None:
    """``key[i]``: the upper eight bits of ``x[i]`` in half precision, in the order of the numbers."""
    for i in T.Parallel(x.shape[0]):
        half[i] = T.reinterpret(T.cast(x[i], "float16"), "uint16")
    for i in T.Parallel(x.shape[0]):
        key[i] = (half[i] ^ T.if_then_else(half[i] >= 0x8000, 0xFFFF, 0x8000)) >> 8


@T.macro
def _fine(x: Any, bits: Any) -> None:
    """``bits[i]``: those of ``x[i]``, in the order of the numbers (-0 below +0)."""
    for i in T.Parallel(x.shape[0]):
        bits[i] = T.reinterpret(x[i], "uint32")
    for i in T.Parallel(x.shape[0]):
        bits[i] = bits[i] ^ T.if_then_else(bits[i] >= 0x80000000, T.uint32(0xFFFFFFFF), T.uint32(0x80000000))


@T.macro
def _divide(reach: Any, wanted: Any, split: Any, scan: str) -> None:
    """Where the ``wanted``-th largest lies: ``split`` = its bin, how many too many bins from it on hold,
    and how many of its own are wanted. ``reach``: counts by bin; its second row is for the sums, which
    are made in eight steps of the block, or by ``warps``."""
    if scan == "warps":
        T.cumsum(reach[0:1, 0:_BINS], reach[0:1, 0:_BINS], dim=1, reverse=True)
        T.sync_threads()
    side = 0
    for step in _STEPS if scan == "steps" else ():
        for b in T.Parallel(_BINS):
            above = T.if_then_else(b + step < _BINS, reach[side, T.min(b + step, _BINS)], 0)
            reach[1 - side, b] = reach[side, b] + above
        T.sync_threads()
        side = 1 - side
    for b in T.Parallel(_BINS):
        if reach[0, b] >= wanted and reach[0, b + 1] < wanted:
            split[0] = b
            split[1] = reach[0, b] - wanted
            split[2] = wanted - reach[0, b + 1]
    T.sync_threads()


@dataclass(frozen=True)
class _Row:
    """A row of ``X``; ``stored`` is the copy in shared memory that later passes read, or None."""

    X: Any
    row: Any
    stored: Any


@dataclass(frozen=True)
class _Tile:
    """Fragments for some elements of a row, their halves and their bins."""

    x: Any
    half: Any
    key: Any


@T.macro
def _first_pass(source: _Row, first: Any, tile: _Tile, reach: Any) -> None:
    """Count the bins of the elements from ``first`` on."""
    X, key, count = source.X, tile.key, tile.x.shape[0]
    T.copy(X[source.row, first : first + count], tile.x)
    _coarse(tile.x, tile.half, key)
    for i in T.Parallel(count):
        if first + i < X.shape[1]:
            T.atomic_add(reach[0, key[i]], 1)
    if source.stored is not None:
        T.copy(tile.x, source.stored[first : first + count])


@T.macro
def _again(source: _Row, first: Any, tile: _Tile) -> None:
    """The bins of the elements from ``first`` on once more."""
    X, stored, count = source.X, source.stored, tile.x.shape[0]
    if stored is not None:
        T.copy(stored[first : first + count], tile.x)
    else:
        T.copy(X[source.row, first : first + count], tile.x)
    _coarse(tile.x, tile.half, tile.key)


@T.macro
def _winners(source: _Row, first: Any, tile: _Tile, split: Any, counter: Any, place: Any, found: Any) -> None:
    """Write down the elements from ``first`` on whose bins are among the k largest."""
    _again(source, first, tile)
    key = tile.key
    for i in T.Parallel(tile.x.shape[0]):
        if first + i < source.X.shape[1] and key[i] >= split[0]:
            place[0] = T.atomic_add(counter[0], 1, return_prev=True)
            found[place[0]] = first + i


@T.macro
def _candidates(source: _Row, first: Any, number: Any, tile: _Tile, listed: Any, at: Any, bits: Any) -> None:
    """Candidates from ``first`` on: where they are in the row, their bins and bits."""
    X, row, x, room = source.X, source.row, tile.x, listed.shape[0]
    for i in T.Parallel(x.shape[0]):
        if number > room:
            at[i] = T.min(first + i, X.shape[1] - 1)
        else:
            at[i] = listed[T.min(first + i, number - 1)]
    for i in T.Parallel(x.shape[0]):
        x[i] = X[row, at[i]]
    _coarse(x, tile.half, tile.key)
    _fine(x, bits)


def radix_program(shape: Shape, config: Config) -> TileProgram:
    """One block a row. ``kept``: the second pass finds the row on chip, else it reads it again.

    Tiles of ``block_cols`` come first (a loop unrolled so far), what is left in tiles of ``last_cols``.
    Timed as for rows whose k largest fill whole bins of the first histogram (clear winners); ties and
    close numbers at the boundary take the further digits.
    """
    rows, cols, k = shape["rows"], shape["cols"], shape["k"]
    tile, last, threads = config["block_cols"], config["last_cols"], config["threads"]
    kept, room, scan = config["variant"] == "radix_kept", config["listed"], config["scan"]
    if scan not in ("steps", "warps"):
        raise OperatorError(f"topk_select: scan={scan!r} is not one of steps, warps")
    whole = cols // tile * tile
    left, steps = -(-(cols - whole) // last), -(-cols // last)

    @T.prim_func
    def topk_select(X: T.Tensor((rows, cols), "float32"), Index: T.Tensor((rows, k), "int32")) -> None:
        with T.Kernel(rows, threads=threads) as row:
            T.annotate_min_blocks_per_sm(max(1, _THREADS // threads))
            x = T.alloc_fragment((tile,), "float32")
            half = T.alloc_fragment((tile,), "uint16")
            key = T.alloc_fragment((tile,), "int32")
            x1 = T.alloc_fragment((last,), "float32")
            half1 = T.alloc_fragment((last,), "uint16")
            key1 = T.alloc_fragment((last,), "int32")
            bits = T.alloc_fragment((last,), "uint32")
            at = T.alloc_fragment((last,), "int32")
            X_shared = T.alloc_shared((whole + left * last if kept else 1,), "float32")
            reach = T.alloc_shared((2, _BINS + 1), "int32")
            split = T.alloc_shared((3,), "int32")
            counter = T.alloc_shared((3,), "int32")
            listed = T.alloc_shared((room,), "int32")
            found = T.alloc_shared((k,), "int32")
            place = T.alloc_local((1,), "int32")

            whole_tile, part = _Tile(x, half, key), _Tile(x1, half1, key1)
            row_of = _Row(X, row, X_shared if kept else None)

            T.clear(reach)
            T.clear(counter)
            T.sync_threads()
            for c in T.serial(cols // tile):
                _first_pass(row_of, c * tile, whole_tile, reach)
            for c in T.serial(left):
                _first_pass(row_of, whole + c * last, part, reach)
            T.sync_threads()
            _divide(reach, k, split, scan)

            if T.likely(split[1] == 0):
                for c in T.serial(cols // tile):
                    _winners(row_of, c * tile, whole_tile, split, counter, place, found)
                for c in T.serial(left):
                    _winners(row_of, whole + c * last, part, split, counter, place, found)
            else:
                edge = T.alloc_var("int32", init=split[0])
                wanted = T.alloc_var("int32", init=split[2])
                for c in T.serial(steps):
                    _again(row_of, c * last, part)
                    for i in T.Parallel(last):
                        if c * last + i < cols and key1[i] > edge:
                            place[0] = T.atomic_add(counter[0], 1, return_prev=True)
                            found[place[0]] = c * last + i
                        if c * last + i < cols and key1[i] == edge:
                            place[0] = T.atomic_add(counter[1], 1, return_prev=True)
                            if place[0] < room:
                                listed[place[0]] = c * last + i
                T.sync_threads()
                number = T.alloc_var("int32", init=T.if_then_else(counter[1] > room, cols, counter[1]))
                prefix: Any = T.alloc_var("uint32", init=0)
                for digit in T.serial(_DIGITS):
                    T.fill(reach[0, 0:_BINS], 0)
                    T.sync_threads()
                    for c in T.serial(T.ceildiv(number, last)):
                        _candidates(row_of, c * last, number, part, listed, at, bits)
                        for i in T.Parallel(last):
                            upper = bits[i] >> (24 - 8 * digit)
                            if c * last + i < number and key1[i] == edge and upper // _BINS == prefix:
                                T.atomic_add(reach[0, T.cast(upper % _BINS, "int32")], 1)
                    T.sync_threads()
                    _divide(reach, wanted, split, scan)
                    prefix = prefix * _BINS + T.cast(split[0], "uint32")
                    wanted = split[2]
                for c in T.serial(T.ceildiv(number, last)):
                    _candidates(row_of, c * last, number, part, listed, at, bits)
                    for i in T.Parallel(last):
                        if c * last + i < number and key1[i] == edge:
                            if bits[i] > prefix:
                                place[0] = T.atomic_add(counter[0], 1, return_prev=True)
                                found[place[0]] = at[i]
                            if bits[i] == prefix:
                                place[0] = T.atomic_add(counter[2], 1, return_prev=True)
                                if place[0] < wanted:  # as many equal ones as are missing, behind the larger
                                    found[k - wanted + place[0]] = at[i]
            T.sync_threads()
            T.copy(found, Index[row, 0:k])

    return traced(topk_select)


# (block_cols, threads, candidates kept): 1024 threads of four elements each first, smaller blocks for short
# rows and small cores.
_SIZES = ((4096, 1024, 8192), (2048, 512, 4096), (2048, 1024, 4096), (1024, 256, 2048))


def radix_config(variant: str, cols: int, last: int, threads: int, listed: int, scan: str) -> Config:
    """One configuration: elements of a trip and of the last ones, candidates that a block keeps, sums."""
    sizes = {"block_cols": cols, "last_cols": last, "num_stages": 1, "threads": threads, "listed": listed}
    return {"variant": variant, "bits": 8, "scan": scan, **sizes}


def radix_configs() -> list[Config]:
    """The radix selections of the space."""
    return [
        radix_config(variant, cols, cols, threads, listed, "warps")
        for cols, threads, listed in _SIZES
        for variant in ("radix", "radix_kept")
    ]
