"""Between torch's tensors and the storage types of tile programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from foretile.simulator.numerics.formats import storage

if TYPE_CHECKING:
    import torch

_NIBBLES = {"float4_e2m1": ml_dtypes.float4_e2m1fn, "int4": ml_dtypes.int4, "uint4": ml_dtypes.uint4}


def to_array(tensor: torch.Tensor, dtype: str) -> np.ndarray:
    """A copy of ``tensor`` in the storage type of ``dtype``.

    Types of half a byte come as bytes that hold two elements, the first in the low half.
    """
    import torch

    held = tensor.detach().contiguous()
    if not held.numel():
        return np.zeros(tuple(held.shape), storage(dtype))
    raw = held.reshape(-1).view(torch.uint8).numpy().reshape(*held.shape[:-1], -1) if held.dim() else None
    if raw is None:
        return np.asarray(held.reshape(1).view(torch.uint8).numpy().copy().view(storage(dtype)).reshape(()))
    if dtype in _NIBBLES:
        halves = np.stack([raw & 0xF, raw >> 4], axis=-1).reshape(*raw.shape[:-1], -1)
        return np.asarray(halves.view(_NIBBLES[dtype]))
    return np.asarray(raw.copy().view(storage(dtype)).reshape(held.shape))


def put_back(array: np.ndarray, tensor: torch.Tensor, dtype: str) -> None:
    """Write ``array``, in the storage type of ``dtype``, into ``tensor``, whatever its strides."""
    import torch

    if not array.size:
        return
    if dtype in _NIBBLES:
        halves = np.ascontiguousarray(array).view(np.uint8) & 0xF
        array = halves[..., 0::2] | (halves[..., 1::2] << 4)
    raw = torch.from_numpy(np.ascontiguousarray(array).reshape(-1).view(np.uint8).copy())
    with torch.no_grad():  # as a kernel writes: autograd does not see it
        tensor.data.copy_(raw.view(tensor.dtype).reshape(tensor.shape))
