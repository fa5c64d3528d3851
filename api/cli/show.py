"""What the command line prints: JSON, and tables for people."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from foretile.report import units

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

PIPE_WIDTH = 120  # columns when standard output is no terminal and COLUMNS is not set
CONFIDENCE_STYLE = {"measured": "green", "datasheet": "cyan", "derived": "blue", "inferred": "yellow"}

Tell = Callable[[int, int, str], None]
"""What moves a bar: how many are done, of how many, and which is next."""


def console(*, err: bool = False) -> Console:
    """A console that honours NO_COLOR, and is wide enough for a table when piped."""
    from rich.console import Console

    stream = sys.stderr if err else sys.stdout
    width = None if stream.isatty() or os.environ.get("COLUMNS") else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False)


def emit_json(value: object) -> None:
    """``value`` as indented JSON on standard output; NumPy scalars and paths become plain."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, default=plain) + "\n")
    sys.stdout.flush()


def plain(value: Any) -> Any:
    """What ``json.dumps`` cannot take by itself."""
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        return value.item()
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)


def table(*columns: str, right: tuple[str, ...] = (), title: str | None = None) -> Table:
    """A table without box noise; the columns named in ``right`` hold numbers."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left", header_style="bold")
    for name in columns:
        # What does not fit goes on in the next line: names that are cut cannot be looked up.
        justify: Literal["left", "right"] = "right" if name in right else "left"
        made.add_column(name, justify=justify, no_wrap=name in right, overflow="fold")
    return made


def bar(share: float, width: int = 28) -> str:
    """A horizontal bar in eighths of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def breakdown(parts: Mapping[str, float], total: float) -> Table:
    """The named parts of a time, longest first, each with its bar."""
    made = table("where the time goes", "time", "share", "", right=("time", "share"))
    for name, value in sorted(parts.items(), key=lambda part: -part[1]):
        if value > 0:
            share = value / total
            made.add_row(name.replace("_", " "), units.seconds(value), units.percent(share), bar(share))
    return made


def heading(text: str) -> Text:
    """A bold line."""
    from rich.text import Text

    return Text(text, style="bold")


@contextmanager
def progress(doing: str) -> Iterator[Tell]:
    """A bar on standard error, and what moves it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(err=True), transient=True) as bar:
        task = bar.add_task(doing)

        def tell(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{doing} {what[:70]}")

        yield tell
