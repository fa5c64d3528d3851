"""TileLang's tuner without a GPU: the configuration that is predicted fastest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from unittest import mock

from foretile.kernels.errors import TraceError
from foretile.simulator.machine import SimulationError

if TYPE_CHECKING:
    from foretile.hosted.kernel import Kernel
    from foretile.hosted.session import Session

_CONFIG_SWITCHES = {"pass_configs": "__pass_configs__"}  # as TileLang's tuner hands them to its compiler


@contextmanager
def predicted(session: Session) -> Iterator[None]:
    """While it lasts, ``@tilelang.autotune`` and ``AutoTuner`` ask predictions, not a device."""
    from tilelang.autotuner import tuner

    def run(self: Any, *_args: Any, **_kwargs: Any) -> Any:
        return _tuned(session, self)

    with mock.patch.object(tuner.AutoTuner, "run", run):
        yield


def _tuned(session: Session, tuner: Any) -> Any:
    """The result that TileLang's tuner would give: the best kernel with time and configuration.

    Raises:
        TraceError: no configuration can be traced and imported; says why the first could not.
    """
    from tilelang.autotuner.param import AutotuneResult

    compile_, _ = tuner._ensure_jit_functions()
    configs = tuner.configs
    if callable(configs):
        args, kwargs = tuner._kernel_parameters
        configs = configs(*args, **dict(kwargs))
    if _given(tuner, configs):
        only = compile_()
        return AutotuneResult(libcode=only.get_kernel_source(), func=only.prim_func, kernel=only)
    found = _best(session, compile_, configs)
    session.kernels.append(found.kernel)
    found.kernel.update_tuner_result(found.time_ms, found.config)
    return AutotuneResult(
        latency=found.time_ms,
        config=found.config,
        ref_latency=None,
        libcode=found.kernel.get_kernel_source(),
        func=found.kernel.prim_func,
        kernel=found.kernel,
    )


@dataclass(frozen=True)
class _Candidate:
    """A configuration's kernel; ``time_ms``: not a number where nothing but a call says how long it takes."""

    kernel: Kernel
    config: dict[str, Any]
    time_ms: float


def _best(session: Session, compile_: Callable[..., Kernel], configs: Any) -> _Candidate:
    kernels, failed = session.kernels, session.failed
    best: _Candidate | None = None
    refused = ""
    try:
        # Candidates are no kernels of the session, and one that does not trace loses, no more.
        session.kernels, session.failed = [], None
        for config in configs:
            arguments = {_CONFIG_SWITCHES.get(name, name): value for name, value in config.items()}
            try:
                found = _Candidate(compile_(**arguments), dict(config), math.nan)
            except Exception as error:  # whatever an author's code says of a configuration
                refused = refused or f"{config}: {error}"
                continue
            try:
                found = replace(found, time_ms=1e3 * found.kernel.predicted_s())
            except (SimulationError, ValueError) as error:
                refused = refused or f"{config}: {error}"
            if best is None or not found.time_ms >= best.time_ms:
                best = found if best is None or not math.isnan(found.time_ms) else best
    finally:
        session.kernels, session.failed = kernels, failed
    if best is None:
        raise TraceError(f"the tuner has no configuration that can be traced; {refused or 'it has none'}")
    return best


def _given(tuner: Any, configs: Any) -> bool:
    """Whether the caller has chosen the tunable arguments."""
    if tuner._kernel_parameters is None or not configs:
        return False
    args, kwargs = tuner._kernel_parameters
    names = list(tuner._function_parameters)[: len(args)]
    tunable = set(configs[0]) - {"pass_configs"}
    return bool(tunable & {*names, *(name for name, _ in kwargs)})
