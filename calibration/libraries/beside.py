"""Bytes that kernels beside an operator's own move one way, by name and shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from foretile.kernels.operator import Shape
from foretile.kernels.operators._mla import ABSORBED, NOPE, ROPE

Array = np.ndarray
CACHE_BYTES = {"bf16": 2.0, "fp16": 2.0, "fp8": 1.0}  # of an element of a K/V cache
_WIDE = 2.0  # bytes of an activation before it is quantised
_STORED = {"fp8": 1.0, "fp8_block": 1.0, "nvfp4": 0.5625}  # of one that is, with its share of the scales


def bytes_beside(kernel: str, shape: Shape) -> Array | None:
    """What ``kernel`` moves one way (half of reads and writes), by row; None where it is not launched.

    Raises:
        ValueError: no kernel is called that.
    """
    if kernel not in _MOVED:
        raise ValueError(f"no kernel beside an operator's is called {kernel!r}")
    return _MOVED[kernel](shape)


def _cache(shape: Shape) -> Array:
    """Read in the activations' type, written in the cache's."""
    each = (_WIDE + CACHE_BYTES[shape["kv_dtype"]]) / 2.0
    return np.asarray(2.0 * each * _steps(shape) * shape["kv_heads"] * shape["head_dim"])


def _cast(shape: Shape) -> Array | None:
    return _narrowed({**shape, "kv_heads": shape["heads"]})


def _narrowed(shape: Shape) -> Array | None:
    if shape["kv_dtype"] != "fp8":
        return None
    return np.asarray(1.5 * _steps(shape) * shape["kv_heads"] * shape["head_dim"])


def _packed(shape: Shape) -> Array:
    """Read packed, written as Q and into the cache."""
    heads = shape["heads"] + 2 * np.asarray(shape["kv_heads"])
    return np.asarray(_WIDE * _steps(shape) * heads * shape["head_dim"])


def _lengths(shape: Shape) -> Array:
    return 4.0 * np.asarray(shape["batch"], dtype=np.float64)


def _steps(shape: Shape) -> Array:
    return np.asarray(np.asarray(shape["batch"], dtype=np.float64) * shape.get("seq", 1))


def _latent(shape: Shape) -> Array:
    return np.asarray(_WIDE * _steps(shape) * ABSORBED)


def _latent_rope(shape: Shape) -> Array:
    """The key's rotary part is one for all heads, and written for each."""
    turned = 1.5 * np.asarray(shape["heads"]) * ROPE
    return np.asarray(_WIDE * _steps(shape) * (ABSORBED + turned))


def _concat_q(shape: Shape) -> Array:
    return np.asarray(_concat_k(shape) * shape["heads"])


def _concat_k(shape: Shape) -> Array:
    return np.asarray(_WIDE * _steps(shape) * (NOPE + ROPE))


def _choices(shape: Shape) -> Array:
    """Rows of all experts together."""
    return np.asarray(np.asarray(shape["tokens"], dtype=np.float64) * shape["topk"])


def _activation(shape: Shape) -> Array:
    """Gate and up, written by the product and read again (H is written in either case)."""
    return np.asarray(2.0 * _WIDE * _choices(shape) * shape["inter"])


def _activation_quantised(shape: Shape) -> Array:
    """Gate and up as quantised numbers, written by the product and read again."""
    return np.asarray(2.0 * _STORED[shape["dtype"]] * _choices(shape) * shape["inter"])


def _quantised_h(shape: Shape) -> Array:
    """H, written unquantised and read again."""
    return np.asarray(_WIDE * _choices(shape) * shape["inter"])


def _quantised_rows(shape: Shape) -> Array:
    """Permuted rows: written wide, read again and only then quantised."""
    return np.asarray(_WIDE * _choices(shape) * shape["hidden"])


def _quantised_tokens(shape: Shape) -> Array:
    """X of all tokens, quantised before anything else."""
    each = (_WIDE + _STORED[shape["dtype"]]) / 2.0
    return np.asarray(each * np.asarray(shape["tokens"], dtype=np.float64) * shape["hidden"])


_MOVED: dict[str, Callable[[Shape], Array | None]] = {
    "cache": _cache,
    "cast": _cast,
    "narrowed": _narrowed,
    "packed": _packed,
    "lengths": _lengths,
    "latent": _latent,
    "latent_rope": _latent_rope,
    "concat_q": _concat_q,
    "concat_k": _concat_k,
    "activation": _activation,
    "activation_quantised": _activation_quantised,
    "quantised_h": _quantised_h,
    "quantised_rows": _quantised_rows,
    "quantised_tokens": _quantised_tokens,
}
