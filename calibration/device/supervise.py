"""The process in which rows are measured, watched from outside: ended if a row takes too long."""

from __future__ import annotations

import json
import queue
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

from foretile.calibration.device.session import Message

_START_S = 120.0  # importing CuPy, and making a context on a machine that sleeps


@dataclass(frozen=True)
class Process:
    """A worker that is ``command``, which reads its task from standard input and answers a line a message.

    ``row_s`` is how long a row may take before the process is ended, with that row as failed.
    """

    command: Sequence[str]
    row_s: float = 90.0
    start_s: float = _START_S

    def __call__(self, keys: Sequence[str], budget_s: float) -> Iterator[Message]:
        """Messages as they come; ``stopped`` at the end if the process was lost."""
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                list(self.command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
            assert process.stdin is not None
            assert process.stdout is not None
            lines: queue.Queue[str | None] = queue.Queue()
            threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
            try:
                _tell(process.stdin, {"keys": list(keys), "budget_s": budget_s})
                yield from self._heard(process, lines, errors)
            finally:
                process.kill()
                process.wait()

    def _heard(
        self, process: subprocess.Popen[str], lines: queue.Queue[str | None], errors: IO[bytes]
    ) -> Iterator[Message]:
        patience, begun, lost = self.start_s, False, False
        while True:
            try:
                line = lines.get(timeout=patience)
            except queue.Empty:
                doing = "measuring it" if begun else "starting"
                yield {"stopped" if begun else "error": f"{doing} took more than {patience:g} s"}
                return
            if line is None:
                if process.wait() and not lost:
                    said = _last_words(errors) or f"exit code {process.returncode}"
                    yield {"stopped" if begun else "error": f"the measuring process ended: {said}"}
                return
            message = json.loads(line)
            patience, begun = self.row_s, begun or "begin" in message
            lost = lost or "stopped" in message or "error" in message
            yield message


def _tell(stream: IO[str], task: dict[str, Any]) -> None:
    try:
        stream.write(json.dumps(task) + "\n")
        stream.close()
    except BrokenPipeError:
        pass  # the process has ended already, and what it said is read


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    """Lines that are messages, to the queue; then None. What libraries print is passed over."""
    for line in stream:
        if line.startswith("{"):
            lines.put(line)
    lines.put(None)


def _last_words(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
