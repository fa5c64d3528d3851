"""Values that nothing has written: refused, unless no result depends on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from foretile.simulator.numerics.errors import NumericsError, Undefined
from foretile.simulator.numerics.tensors import GlobalTensor

_GARBAGE = (0, 1)  # what unwritten elements hold in two runs that are compared

State = dict[str, tuple[np.ndarray, np.ndarray | None]]


def defined(
    memory: Mapping[str, GlobalTensor],
    written: set[str],
    run: Callable[[int | None], int],
    loose: dict[str, np.ndarray],
) -> int:
    """The result of ``run``, which may read on chip what nothing has written if no output shows it.

    Kernels read registers and edges of tiles that they never wrote, and mask the values out later. What a
    launch leaves in memory must not depend on them: it is executed twice, with different ones. Elements of
    operands that do differ are noted in ``loose``: kernels leave such where nobody looks (rows of padding).

    Raises:
        NumericsError: the launch reads what nothing has written, and its results depend on it.
    """
    before = _state(memory, written)
    try:
        return run(None)
    except Undefined as error:
        first = error
    results: list[State] = []
    done = 0
    for garbage in _GARBAGE:
        _restore(memory, before)
        try:
            done = run(garbage)
        except NumericsError:
            raise first from None
        results.append(_state(memory, written))
    a, b = results
    for name, (data, flags) in a.items():
        other, other_flags = b[name]
        differs = (data != other) & ((data == data) | (other == other))
        if differs.any() and flags is None:
            loose[name] = loose.get(name, np.zeros(data.shape, bool)) | differs
        elif differs.any() or (flags is not None and not np.array_equal(flags, np.asarray(other_flags))):
            raise first
    return done


def _state(memory: Mapping[str, GlobalTensor], written: set[str]) -> State:
    return {
        name: (t.data.copy(), None if t.written is None else t.written.copy())
        for name, t in memory.items()
        if name in written
    }


def _restore(memory: Mapping[str, GlobalTensor], state: State) -> None:
    for name, (data, flags) in state.items():
        tensor = memory[name]
        tensor.data[...] = data
        if flags is not None and tensor.written is not None:
            tensor.written[...] = flags
        if tensor.writer is not None:
            tensor.writer[...] = -1
        tensor.padded.clear()
