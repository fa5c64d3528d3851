"""What host code measures: the predicted times of the kernels it launches meanwhile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

from foretile.simulator.machine import SimulationError

if TYPE_CHECKING:
    from foretile.hosted.launch import Launch
    from foretile.hosted.session import Session


@contextmanager
def predicted(session: Session) -> Iterator[None]:
    """While it lasts, TileLang's ``do_bench`` and torch's CUDA events tell predicted times."""
    import torch
    from tilelang.profiler import bench
    from tilelang.utils import device

    def timed(fn: Callable[[], Any], *args: Any, quantiles: Any = None, **_how: Any) -> Any:
        session.timing.append([])
        try:
            fn()
        finally:
            launches = session.timing.pop()
        time_ms = milliseconds(session, launches)
        return time_ms if quantiles is None or len(quantiles) == 1 else [time_ms] * len(quantiles)

    def event(*_args: Any, **_kwargs: Any) -> Event:
        return Event(session)

    with ExitStack() as patches:
        for module, name, value in (
            (bench, "do_bench", timed),
            (bench, "_do_bench_impl", timed),
            (bench, "_normalize_cuda_device", lambda device: None),
            (torch.cuda, "Event", event),
            (device, "Event", event),
            (device, "IS_CUDA", True),
        ):
            patches.enter_context(mock.patch.object(module, name, value, create=True))
        yield


def milliseconds(session: Session, launches: list[Launch]) -> float:
    """How long launches take one after the other; not a number if there are none, or one cannot be timed."""
    if not launches:
        return math.nan  # what is no kernel of TileLang's has no prediction
    known: dict[int, float] = {}
    for launch in launches:
        try:
            if id(launch) not in known:
                known[id(launch)] = launch.predict(session.chip).time_s
        except SimulationError:
            return math.nan
    return 1e3 * sum(known[id(launch)] for launch in launches)


class Event:
    """A CUDA event: a place in the order of launches."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._at = 0

    def record(self, _stream: Any = None) -> None:
        """It stands after every launch so far."""
        self._at = len(self._session.launches)

    def synchronize(self) -> None:
        """Launches are through when they return."""

    def wait(self, _stream: Any = None) -> None:
        """Launches are through when they return."""

    def query(self) -> bool:
        """Whether what stands before it is through."""
        return True

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds that the launches between here and ``end`` are predicted to take."""
        return milliseconds(self._session, self._session.launches[self._at : end._at])
