"""From an exception to one clear message on standard error and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import typer

FAULT, WRONG_REQUEST, INTERRUPTED = 1, 2, 130


def fail(message: str, code: int = WRONG_REQUEST) -> NoReturn:
    """Say ``message`` on standard error and leave with ``code``."""
    lead = typer.style("error:", fg="red", bold=True) if colour_on(sys.stderr.isatty()) else "error:"
    typer.echo(f"{lead} {message}", err=True)
    raise typer.Exit(code)


def colour_on(terminal: bool) -> bool:
    """Whether to write colours (https://no-color.org)."""
    return terminal and not os.environ.get("NO_COLOR")


@contextmanager
def reported(operator: str = "") -> Iterator[None]:
    """Turn what goes wrong inside into a message; ``operator`` may be ``file.py:function``.

    ``FORETILE_DEBUG=1`` shows the traceback as well.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # The reader (``| head``) has gone; stop Python from complaining again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None
    except Exception as error:
        # typer's Exit, and the usage errors of the click it is built on, carry their own code.
        if hasattr(error, "exit_code"):
            raise
        if os.environ.get("FORETILE_DEBUG"):
            traceback.print_exc()
        message = _message(error, operator)
        if message is None:
            fail(
                f"internal error: {type(error).__name__}: {error}\n"
                "This is a fault in foretile; FORETILE_DEBUG=1 shows where. Please report it.",
                FAULT,
            )
        fail(message)


def _message(error: Exception, operator: str) -> str | None:
    """What the user can put right, or ``None`` if the fault is ours."""
    if isinstance(error, ValueError) and type(error).__module__.partition(".")[0] == "foretile":
        return str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}"
    file = operator.rpartition(":")[0] or operator
    if file.endswith(".py"):
        return _in_kernel_file(error, Path(file))
    return None


def _in_kernel_file(error: Exception, file: Path) -> str | None:
    """A user's kernel file may raise anything: name its line."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).name == file.name]
    return f"{file}:{frames[-1].lineno}: {type(error).__name__}: {error}" if frames else None
