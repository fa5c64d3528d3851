"""Launches of the operators on rows and elements (rows.cu)."""

from __future__ import annotations

from collections.abc import Sequence

from foretile.kernels.cuda.recipe import Argument, KernelSource, ScalarArg
from foretile.kernels.cuda.registry import Launch, Tensors, ceildiv, cuda_version, launch
from foretile.kernels.operator import Shape

_THREADS = 256
_ELEMENT_BLOCKS = 4096  # a block takes further chunks where there are more
_NAMES = {  # tensors that are read, and written, in the kernels' order
    "rmsnorm": ("X W", "Y"),
    "add_rmsnorm": ("X R W", "R_out Y"),
    "layernorm": ("X W B", "Y"),
    "softmax": ("X", "Y"),
    "cross_entropy": ("Logits Target", "Loss"),
    "argmax": ("X", "Index"),
    "reduce_sum": ("X", "Y"),
    "gemv": ("A x", "y"),
    "silu_mul": ("Gate Up", "Out"),
    "swiglu": ("X", "Y"),
    "gelu": ("X", "Y"),
    "rope": ("X Cos Sin", "Y"),
}


def _source(name: str, shape: Shape) -> KernelSource:
    return KernelSource("rows.cu", f"{name}_{shape['dtype']}")


@cuda_version(
    "rmsnorm", "add_rmsnorm", "layernorm", "softmax", "cross_entropy", "argmax", "reduce_sum", "gemv"
)
def by_row(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A block a row."""
    read, written = _NAMES[name]
    rows, cols = tensors.shape(read.split()[0])
    args: tuple[Argument, ...] = (
        *tensors.ins(read),
        *tensors.outs(written),
        ScalarArg("int32", cols, "cols"),
    )
    return (launch(_source(name, shape), (rows,), _THREADS, args),)


@cuda_version("silu_mul", "swiglu", "gelu")
def by_element(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A thread eight columns of a row."""
    read, written = _NAMES[name]
    rows, cols = tensors.shape(written)
    scalars: list[Argument] = [ScalarArg("int64", rows, "rows"), ScalarArg("int32", cols, "cols")]
    if name == "gelu":
        scalars.append(ScalarArg("int32", int(shape["tanh"]), "tanh_form"))
    blocks = min(_ELEMENT_BLOCKS, ceildiv(rows * ceildiv(cols, 8), _THREADS))
    args = (*tensors.ins(read), *tensors.outs(written), *scalars)
    return (launch(_source(name, shape), (blocks,), _THREADS, args),)


@cuda_version("rope")
def rope(name: str, shape: Shape, tensors: Tensors) -> Sequence[Launch]:
    """A thread a pair."""
    read, written = _NAMES[name]
    rows, heads, cols = tensors.shape("X")
    scalars: tuple[Argument, ...] = (
        ScalarArg("int64", rows, "rows"),
        ScalarArg("int32", heads, "heads"),
        ScalarArg("int32", cols, "cols"),
        ScalarArg("int32", int(shape["interleaved"]), "interleaved"),
    )
    blocks = min(_ELEMENT_BLOCKS, ceildiv(rows * heads * cols // 2, _THREADS))
    args = (*tensors.ins(read), *tensors.outs(written), *scalars)
    return (launch(_source(name, shape), (blocks,), _THREADS, args),)
