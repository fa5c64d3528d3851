"""The command line, run in this process: exit code and both streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from . import fakes


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run("predict", "gemm", …)`` → exit code, standard output, standard error."""
    from foretile.cli import main

    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("FORETILE_DEBUG", raising=False)

    def call(*argv: str) -> Outcome:
        with pytest.raises(SystemExit) as left:
            main(list(argv))
        caught = capsys.readouterr()
        code = left.value.code
        return Outcome(code if isinstance(code, int) else 0, caught.out, caught.err)

    return call


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The front door answers from :mod:`.fakes`, on four made-up chips and an incomplete one."""
    import foretile.frontdoor
    import foretile.hwmodels

    chips = {chip.id: chip for chip in fakes.CHIPS}

    def load_chip(ref: Any) -> Any:
        if isinstance(ref, str) and ref in chips:
            return chips[ref]
        if ref == fakes.INCOMPLETE.id:
            raise foretile.hwmodels.IncompleteChipError(fakes.INCOMPLETE)
        raise foretile.hwmodels.ChipError(f"unknown chip {ref!r}")

    def describe_chip(ref: Any) -> Any:
        return fakes.INCOMPLETE if ref == fakes.INCOMPLETE.id else load_chip(ref)

    def by_id(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda op, chip, **options: function(op, load_chip(getattr(chip, "id", chip)), **options)

    monkeypatch.setattr(foretile.hwmodels, "load_chip", load_chip)
    monkeypatch.setattr(foretile.hwmodels, "describe_chip", describe_chip)
    monkeypatch.setattr(foretile.hwmodels, "list_chips", lambda: list(chips))
    monkeypatch.setattr(foretile.hwmodels, "list_incomplete", lambda: [fakes.INCOMPLETE.id])
    monkeypatch.setattr(foretile.frontdoor, "predict", by_id(fakes.predict))
    monkeypatch.setattr(foretile.frontdoor, "explain", by_id(fakes.explain))
