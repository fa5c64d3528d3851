"""What stands on the command line: ``key=value`` pairs, lists of chips."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import numpy as np


class ArgumentError(ValueError):
    """A word on the command line that cannot be understood; the message shows a right one."""


def spread_config(argv: Sequence[str]) -> list[str]:
    """Let one ``--config`` take several pairs: ``--config a=1 b=2`` → ``--config a=1 --config b=2``.

    Every ``key=value`` that directly follows belongs to it, up to the next option.
    """
    spread: list[str] = []
    inside = False
    for i, word in enumerate(argv):
        if word == "--":
            return spread + list(argv[i:])
        if word.startswith("-"):
            inside = word == "--config"
        elif inside and "=" in word and spread[-1] != "--config":
            spread.append("--config")
        elif inside and "=" not in word and spread[-1] != "--config":
            inside = False
        spread.append(word)
    return spread


def pairs(words: Iterable[str], *, example: str) -> dict[str, str]:
    """``["m=4", "n=8,k=16"]`` → ``{"m": "4", "n": "8", "k": "16"}``.

    Raises:
        ArgumentError: a word without ``=``, without a name or a value, or a name given twice.
    """
    found: dict[str, str] = {}
    for word in (part for whole in words for part in whole.split(",")):
        key, sign, value = word.partition("=")
        if not sign or not key or not value:
            raise ArgumentError(f"{word!r} is not of the form key=value (example: {example})")
        if key in found:
            raise ArgumentError(f"{key} is given twice: {key}={found[key]} and {key}={value}")
        found[key] = value
    return found


def comma_list(words: Iterable[str]) -> list[str]:
    """``["a,b", "c"]`` → ``["a", "b", "c"]``, without repetitions, order kept."""
    parts = (part.strip() for word in words for part in word.split(","))
    return list(dict.fromkeys(part for part in parts if part))


def arrays(path: Path | None) -> dict[str, np.ndarray] | None:
    """The operands of an ``.npz`` file by name; None for no file.

    Raises:
        ArgumentError: the file is not there, or none of arrays.
    """
    if path is None:
        return None
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError) as error:
        raise ArgumentError(f"--tensors {path}: not an .npz file of arrays ({error})") from error


JSON = typer.Option(False, "--json", help="Print JSON instead of tables.")
SHAPE = typer.Argument(
    None, metavar="KEY=VALUE …", help="Shape parameters; [bold]foretile ops[/bold] lists them."
)
OPERATOR = typer.Argument(
    ...,
    metavar="OP",
    help="A library operator, or [bold]path/to/file.py:function[/bold].",
    show_default=False,
)
CONFIG = typer.Option(
    None,
    "--config",
    metavar="KEY=VALUE …",
    help="Configuration to use (tile sizes, stages); what is not given is chosen.",
    show_default=False,
)
TENSORS = typer.Option(
    None,
    "--tensors",
    metavar="FILE.npz",
    help="Operands by name on whose values the kernel's work depends (indices, lengths, …).",
    show_default=False,
)
