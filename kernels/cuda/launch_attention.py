"""Launches of attention (attention.cu, mla.cu): a block some queries of a head, or some heads of a query."""

from __future__ import annotations

from collections.abc import Sequence

from foretile.kernels.cuda.launch_gemm import narrow, wide
from foretile.kernels.cuda.recipe import Argument, KernelSource, ScalarArg
from foretile.kernels.cuda.registry import OUT_TYPES, Launch, Tensors, ceildiv, cuda_version, launch
from foretile.kernels.operator import OperatorError, Shape
from foretile.kernels.operators._common import LOG2E

THREADS, KEYS = 128, 64  # flash.cuh
_GRID_YZ = 65535
_LATENT, _ABSORBED, _EXPANDED, _VALUE = 512, 576, 192, 128  # mla.cu
_MLA_SCALE = _EXPANDED**-0.5 * LOG2E
_MATH = {"bf16": "Bf16", "fp16": "Half", "fp8": "Half"}
_STORED = {"bf16": "Bf16", "fp16": "Half", "fp8": "Fp8"}


def shared_bytes(rows: int, qk: int, v: int, same_tile: bool = False) -> int:
    """Dynamic shared memory of ``Flash<T, rows, qk, v, same_tile>``."""
    values = 0 if same_tile else KEYS * (v + 8)
    return 2 * ((rows + KEYS) * (qk + 8) + values + rows * (KEYS + 8)) + 4 * rows * (KEYS + 4 + 3)


def _grid(name: str, grid: tuple[int, int, int]) -> tuple[int, int, int]:
    for extent in grid[1:]:
        if extent > _GRID_YZ:
            raise OperatorError(
                f"{name}: {extent} queries or heads side by side; at most {_GRID_YZ} are possible"
            )
    return grid


def _source(name: str, shape: Shape) -> KernelSource:
    dtype, head_dim = shape["dtype"], int(shape["head_dim"])
    if head_dim > 256:
        raise OperatorError(f"{name}: head_dim={head_dim}; the CUDA version takes up to 256")
    types = {"MATH": _MATH[dtype], "Q_TYPE": _STORED[dtype], "KV_TYPE": _STORED[shape["kv_dtype"]]}
    return KernelSource("attention.cu", name, (("HEAD_DIM", str(head_dim)), *types.items()))


def _scalars(shape: Shape) -> tuple[Argument, ...]:
    """Type of the result, and the scale of the scores."""
    written = "bf16" if shape["dtype"] == "fp8" else shape["dtype"]
    return *narrow(OUT_TYPES[written]), ScalarArg("float32", shape["head_dim"] ** -0.5 * LOG2E, "scale")


@cuda_version("attention_prefill")
def attention_prefill(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A block 64 queries of a head (16 of wide heads)."""
    batch, seq, heads, head_dim = tensors.shape("Q")
    rows = 64 if head_dim <= 128 else 16
    sizes = wide(seq, shape["prefix"], shape["window"])
    switches = narrow(heads, shape["kv_heads"], shape["causal"])
    args = (*tensors.ins("Q K V"), *tensors.outs("O"), *sizes, *switches, *_scalars(shape))
    shared = shared_bytes(rows, head_dim, ceildiv(head_dim, 32) * 32)
    grid = _grid(name, (ceildiv(seq, rows), heads, batch))
    return (launch(_source(name, shape), grid, THREADS, args, shared),)


@cuda_version("attention_decode")
def attention_decode(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A block sixteen of the query heads that share a key/value head."""
    batch, kv_heads, group, head_dim = tensors.shape("Q")
    sizes = (*wide(shape["kv_len"], shape["window"]), *narrow(group))
    args = (*tensors.ins("Q K V"), *tensors.outs("O"), *sizes, *_scalars(shape))
    shared = shared_bytes(16, head_dim, ceildiv(head_dim, 32) * 32)
    grid = _grid(name, (ceildiv(group, 16), kv_heads, batch))
    return (launch(_source(name, shape), grid, THREADS, args, shared),)


def _mla(
    symbol: str, shape: Shape, grid: tuple[int, int, int], args: Sequence[Argument], shared: int
) -> Launch:
    scale = ScalarArg("float32", _MLA_SCALE, "scale")
    source = KernelSource("mla.cu", f"{symbol}_{shape['dtype']}")
    return launch(source, _grid(symbol, grid), THREADS, (*args, scale), shared)


@cuda_version("mla_decode")
def mla_decode(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A block sixteen heads of a query."""
    batch, heads, _ = tensors.shape("Q")
    fp8 = shape["kv_dtype"] == "fp8"
    cache = "KV KV_scale K_rope" if fp8 else "KV"
    args = (*tensors.ins(f"Q {cache}"), *tensors.outs("O"), *wide(shape["kv_len"]), *narrow(heads))
    shared = shared_bytes(16, _ABSORBED, _LATENT, same_tile=True)
    return (_mla("mla_decode_fp8" if fp8 else name, shape, (ceildiv(heads, 16) * batch, 1, 1), args, shared),)


@cuda_version("sparse_mla")
def sparse_mla(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A block sixteen heads of a query."""
    batch, seq, heads, _ = tensors.shape("Q")
    sizes = (*wide(seq, shape["kv_len"], shape["topk"]), *narrow(heads))
    args = (*tensors.ins("Q KV Indices"), *tensors.outs("O"), *sizes)
    shared = shared_bytes(16, _ABSORBED, _LATENT, same_tile=True)
    return (_mla(name, shape, (ceildiv(heads, 16) * batch * seq, 1, 1), args, shared),)


@cuda_version("mla_prefill")
def mla_prefill(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A block 64 queries of a head."""
    batch, seq, heads, _ = tensors.shape("Q")
    sizes = (*wide(seq, shape["prefix"]), *narrow(heads))
    args = (*tensors.ins("Q K K_rope V"), *tensors.outs("O"), *sizes)
    return (_mla(name, shape, (ceildiv(seq, 64), heads, batch), args, shared_bytes(64, _EXPANDED, _VALUE)),)
