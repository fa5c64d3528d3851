"""Launches of copies, selection, the indexer, the delta rule (move.cu, select.cu, indexer.cu, delta.cu)."""

from __future__ import annotations

from collections.abc import Sequence

from foretile.kernels.cuda.launch_gemm import TILE, narrow, wide
from foretile.kernels.cuda.recipe import KernelSource, ScalarArg
from foretile.kernels.cuda.registry import Launch, Tensors, ceildiv, cuda_version, launch
from foretile.kernels.dtypes import dtype
from foretile.kernels.operator import Shape

_COPY_BLOCKS, _COPY_THREADS = 4096, 256  # a block takes further chunks where there are more
_SIDE = 32  # of a transposed tile (move.cu)
_TOPK_THREADS, _SAMPLE_THREADS = 1024, 256
_COLUMNS, _DELTA_THREADS = 32, 128  # of a block's part of the state (delta.cu)


@cuda_version("copy")
def copy(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """Sixteen bytes a thread and step."""
    (size,) = tensors.shape("Src")
    blocks = min(_COPY_BLOCKS, ceildiv(ceildiv(size, 16), _COPY_THREADS))
    args = (*tensors.ins("Src"), *tensors.outs("Dst"), *wide(size))
    return (launch(KernelSource("move.cu", name), (blocks,), _COPY_THREADS, args),)


@cuda_version("transpose")
def transpose(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A block a tile of 32 × 32."""
    rows, cols = tensors.shape("X")
    width = dtype(shape["dtype"]).bits // 8
    args = (*tensors.ins("X"), *tensors.outs("Y"), *wide(rows, cols))
    grid = (ceildiv(rows, _SIDE) * ceildiv(cols, _SIDE),)
    return (launch(KernelSource("move.cu", f"{name}_{width}"), grid, _SIDE * 8, args),)


@cuda_version("topk_select")
def topk_select(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A block a row."""
    rows, cols = tensors.shape("X")
    args = (*tensors.ins("X"), *tensors.outs("Index"), *narrow(cols, shape["k"]))
    return (launch(KernelSource("select.cu", name), (rows,), _TOPK_THREADS, args),)


@cuda_version("top_p_sample")
def top_p_sample(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A block a row."""
    rows, cols = tensors.shape("P")
    args = (*tensors.ins("P U TopP"), *tensors.outs("Token"), *narrow(cols))
    source = KernelSource("select.cu", f"{name}_{shape['dtype']}")
    return (launch(source, (rows,), _SAMPLE_THREADS, args),)


@cuda_version("indexer_logits")
def indexer_logits(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A block a query and 64 keys."""
    batch, seq, kv_len = tensors.shape("Logits")
    scalars = (*wide(seq, kv_len), *narrow(shape["heads"], shape["causal"]))
    args = (*tensors.ins("Q K K_scale W"), *tensors.outs("Logits"), *scalars)
    grid = (seq, ceildiv(kv_len, TILE), batch)
    return (launch(KernelSource("indexer.cu", name), grid, 128, args),)


@cuda_version("linear_attention")
def linear_attention(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A block 32 columns of a head's state, all steps one after the other."""
    batch, seq, heads, head_dim = tensors.shape("Q")
    value_dim = tensors.shape("V")[-1]
    scalars = (*wide(seq), *narrow(heads, head_dim, value_dim))
    scale = ScalarArg("float32", head_dim**-0.5, "scale")
    args = (*tensors.ins("Q K V Gate Beta State"), *tensors.outs("O Final"), *scalars, scale)
    shared = 4 * (head_dim * (_COLUMNS + 2) + 2 * _DELTA_THREADS)
    source = KernelSource("delta.cu", f"{name}_{shape['dtype']}")
    return (launch(source, (ceildiv(value_dim, _COLUMNS), batch * heads), _DELTA_THREADS, args, shared),)
