from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from foretile.hwmodels import load_chip
from foretile.hwmodels.loader import ENV_VARIABLE


@pytest.fixture(autouse=True)
def _no_user_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENV_VARIABLE, raising=False)


@pytest.fixture
def plain() -> dict[str, Any]:
    """A complete chip as the mapping of a file without ``extends``."""
    data: dict[str, Any] = json.loads(load_chip("a100", calibrated=False).model_dump_json(exclude_none=True))
    return data | {"id": "testchip", "aliases": ["tc"]}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a mapping or YAML text to a file below tmp_path."""

    def to_file(content: dict[str, Any] | str, name: str = "x.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        path.write_text(text, encoding="utf-8")
        return path

    return to_file
