"""Values of a block's threads that have to be the same in all of them."""

from __future__ import annotations

from typing import Any

import numpy as np


class Varies(Exception):
    """A value that a tile operation needs once differs between its threads."""


def settle(value: Any, mask: Any, axes: int) -> Any:
    """A value (block axes, thread) of which all threads that take part have the same: block axes only.

    Raises:
        Varies: they have not.
    """
    if np.ndim(value) == 0:
        return value
    if value.shape[axes] == 1:
        return value[(slice(None),) * axes + (0,)]
    if mask is None:
        first = value[(slice(None),) * axes + (slice(0, 1),)]
        same = value == first
    else:
        full = np.broadcast_to(mask, np.broadcast_shapes(mask.shape, value.shape[: axes + 1]))
        some = np.argmax(full, axis=-1)[..., None]
        tail = value.ndim - axes - 1
        wide = np.broadcast_to(value, (*full.shape, *value.shape[axes + 1 :]))
        first = np.take_along_axis(wide, some.reshape(some.shape + (1,) * tail), axis=axes)
        same = (wide == first) | ~full.reshape(full.shape + (1,) * tail)
    if not same.all() and not _all_nan(value):
        raise Varies
    return first[(slice(None),) * axes + (0,)]


def _all_nan(value: np.ndarray) -> bool:
    return value.dtype.kind == "f" and bool(np.isnan(value).all())
