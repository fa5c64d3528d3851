"""TileLang's host code without a GPU: every kernel it launches is run on the CPU and can be predicted.

The kernels, and the Python around them, stay as they are: under :func:`hosted` a package that believes in
its GPU computes with foretile's numerics.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

from foretile.foreign import device_of
from foretile.hosted import clock, tuning
from foretile.hosted.kernel import Kernel
from foretile.hosted.launch import Launch
from foretile.hwmodels import Chip, load_chip
from foretile.kernels.tilelang import absent, probes, renames

Failure = Callable[[str, Exception], None]


@dataclass
class Session:
    """What happened under :func:`hosted`.

    ``kernels``: in the order they were made; ``launches``: in the order they ran. ``failed``: told of
    kernels that could not be imported or executed. ``timing``: launches of what is being timed.
    """

    chip: Chip
    kernels: list[Kernel] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    failed: Failure | None = None
    timing: list[list[Launch]] = field(default_factory=list)

    def failure(self, kernel: str, error: Exception) -> None:
        """Raise ``error``, or tell who asked to be told."""
        if self.failed is None:
            raise error
        self.failed(kernel, error)

    def launched(self, launch: Launch, instead: Launch | None = None) -> None:
        """Note a launch: of what is being timed, or of the host code (``instead`` of one noted before)."""
        noted = self.timing[-1] if self.timing else self.launches
        places = [i for i, found in enumerate(noted) if found is instead]
        if places:
            noted[places[-1]] = launch
        else:
            noted.append(launch)


@contextmanager
def hosted(chip: str | Chip = "h200-sxm", *, failed: Failure | None = None) -> Iterator[Session]:
    """While it lasts, TileLang's kernels run on the CPU, and torch's CUDA device is ``chip``.

    Torch tensors made "on cuda" are CPU tensors; every tensor says that it is on that device. What is
    timed (TileLang's profiler, CUDA events around launches, a tuner's configurations) takes as long as
    its launches are predicted to. ``failed`` is called with the name of a kernel that could not
    be imported or executed, and why; the host code then goes on with what its outputs held. Without
    it the error is raised.

    Raises:
        TraceError: a kernel that cannot be imported.
        NumericsError: a kernel that cannot be executed, or does what a chip leaves undefined.
    """
    jit = importlib.import_module("tilelang.jit")  # `tilelang.jit` itself is the decorator
    session = Session(chip if isinstance(chip, Chip) else load_chip(chip), failed=failed)

    def made(func: Any, out_idx: Any = None, pass_configs: Any = None, **_compiling: Any) -> Kernel:
        return Kernel(session, func, out_idx, pass_configs or {})

    device = device_of(session.chip)
    renames.apply()
    compiled: list[Any] = []
    compile_ = jit.JITImpl.compile

    def noted(function: Any, *args: Any, **kwargs: Any) -> Any:
        compiled.append(function)
        return compile_(function, *args, **kwargs)

    with (
        probes.answered(device),
        probes.target_of(device),
        clock.predicted(session),
        tuning.predicted(session),
        absent.stand_ins(),
        mock.patch.object(jit, "cached", made),
        mock.patch.object(jit.JITImpl, "compile", noted),
    ):
        try:
            yield session
        finally:
            for function in compiled:  # or a later call would find kernels made here
                function._kernel_cache.clear()
                function._call_form_cache.clear()
