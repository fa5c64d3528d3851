"""Evenly spaced elements as views: what most tiles and most element accesses are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Ramp:
    """An index that grows by ``steps[d]`` along axis ``d`` of the iteration space, from ``first``."""

    first: int
    steps: tuple[int, ...]


def ramp(index: Any, ndim: int) -> Ramp | None:
    """``index`` (a number, or an array of ``ndim`` axes) as a ramp; None if it is not one."""
    if np.ndim(index) == 0:
        return Ramp(int(index), (0,) * ndim)
    origin = (0,) * ndim
    first = int(index[origin])
    steps = [0] * ndim
    expected: Any = first
    for d, n in enumerate(index.shape):
        if n > 1:
            steps[d] = int(index[(*origin[:d], 1, *origin[d + 1 :])]) - first
            shape = [1] * ndim
            shape[d] = n
            expected = expected + (np.arange(n) * steps[d]).reshape(shape)
    if index.size > 1 and not np.array_equal(index, expected):
        return None
    return Ramp(first, tuple(steps))


def shape_of(indices: tuple[Any, ...] | list[Any], ndim: int) -> tuple[int, ...]:
    """Lengths of the axes on which any of the indices depends."""
    return np.broadcast_shapes((1,) * ndim, *(np.shape(i) for i in indices if np.ndim(i)))


def elements(array: np.ndarray, indices: list[Any] | tuple[Any, ...], ndim: int) -> np.ndarray | None:
    """``array[indices]`` as a view, if every index is a ramp; all of it must lie inside of ``array``.

    ``indices``: one for each dimension of ``array``, numbers or arrays of ``ndim`` axes. The view has the
    lengths of the axes on which any index depends, one elsewhere.
    """
    strides = [0] * ndim
    first = []
    for index, stride in zip(indices, array.strides, strict=True):
        found = ramp(index, ndim)
        if found is None:
            return None
        first.append(slice(found.first, found.first + 1))
        for d, step in enumerate(found.steps):
            strides[d] += step * stride
    corner = array[tuple(first)]
    return np.lib.stride_tricks.as_strided(
        corner, shape=shape_of(indices, ndim), strides=strides, writeable=array.flags.writeable
    )


def distinct(indices: list[Any] | tuple[Any, ...], axes: range, ndim: int) -> bool:
    """Whether points that differ along ``axes`` surely have different indices.

    True if every one of these axes steps a dimension that no other of them steps.
    """
    stepped: dict[int, list[int]] = {d: [] for d in axes}
    shape = shape_of(indices, ndim)
    for number, index in enumerate(indices):
        found = ramp(index, ndim)
        if found is None:
            return False
        moving = [d for d in axes if found.steps[d]]
        if len(moving) == 1:
            stepped[moving[0]].append(number)
    return all(stepped[d] for d in axes if shape[d] > 1)


def in_range(indices: list[Any] | tuple[Any, ...], shape: tuple[int, ...]) -> bool:
    """Whether every index lies inside of its dimension."""
    return all(int(np.min(i)) >= 0 and int(np.max(i)) < n for i, n in zip(indices, shape, strict=True))
