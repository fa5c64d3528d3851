"""Random numbers of a thread: Philox 4x32-10, as the device library of CUDA draws them.

J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The seed is the key, the upper
half of the counter is the sequence, the lower half counts blocks of four numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)  # Salmon et al., the constants of Philox 4x32
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox(counter: tuple[np.ndarray, ...], key: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Four 32-bit numbers (in uint64) for each counter of four and key of two 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for r in range(_ROUNDS):
        if r:
            k0, k1 = ((k + np.uint64(step)) & _LOW for k, step in zip((k0, k1), _KEY_STEPS, strict=True))
        first, second = c0 * np.uint64(_MULTIPLIERS[0]), c2 * np.uint64(_MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (second >> _HALF) ^ c1 ^ k0,
            second & _LOW,
            (first >> _HALF) ^ c3 ^ k1,
            first & _LOW,
        )
    return c0, c1, c2, c3


@dataclass
class Generators:
    """One generator a thread: uint64 arrays of one shape. ``drawn``: numbers drawn so far."""

    seed: np.ndarray
    sequence: np.ndarray
    drawn: np.ndarray

    def draw(self, mask: np.ndarray) -> np.ndarray:
        """The next 32-bit number of the generators where ``mask`` holds (int64)."""
        number = self.drawn >> np.uint64(2)
        words = philox(
            (number & _LOW, number >> _HALF, self.sequence & _LOW, self.sequence >> _HALF),
            (self.seed & _LOW, self.seed >> _HALF),
        )
        which = (self.drawn & np.uint64(3)).astype(np.int64)
        found = np.choose(which, words).astype(np.int64)
        self.drawn = self.drawn + mask.astype(np.uint64)
        return found


def uniform(bits: np.ndarray) -> np.ndarray:
    """Floats in (0, 1] of 32-bit numbers, as the CUDA library makes them: ``x * 2**-32 + 2**-33``."""
    scale = np.float32(2.0**-32)
    return bits.astype(np.float32) * scale + scale / np.float32(2)
