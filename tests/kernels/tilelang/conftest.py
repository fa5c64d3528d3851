"""These tests need TileLang: what it builds is what the importer reads."""

import logging

import pytest


@pytest.fixture(scope="session", autouse=True)
def tilelang_language():
    language = pytest.importorskip(
        "tilelang.language", reason="TileLang is not installed: pip install 'foretile[tilelang]'"
    )
    logging.getLogger("tilelang").setLevel(logging.CRITICAL)
    return language
