"""What the command line understands."""

from __future__ import annotations

import pytest

from foretile.cli.arguments import ArgumentError, comma_list, pairs, spread_config


@pytest.mark.parametrize(
    ("given", "spread"),
    [
        (["predict", "gemm", "m=1"], ["predict", "gemm", "m=1"]),
        (["--config", "a=1", "b=2"], ["--config", "a=1", "--config", "b=2"]),
        (["--config", "a=1", "b=2", "--json"], ["--config", "a=1", "--config", "b=2", "--json"]),
        (["--config", "a=1", "--chip", "x"], ["--config", "a=1", "--chip", "x"]),
        (["--config", "a=1", "--config", "b=2"], ["--config", "a=1", "--config", "b=2"]),
        (["--config=a=1", "m=4"], ["--config=a=1", "m=4"]),
        (["--config"], ["--config"]),
        (["--config", "a=1", "--", "b=2"], ["--config", "a=1", "--", "b=2"]),
    ],
)
def test_config_takes_every_pair_that_follows(given: list[str], spread: list[str]) -> None:
    assert spread_config(given) == spread


def test_pairs_may_be_separate_or_joined_by_commas() -> None:
    assert pairs(["m=4", "n=8,k=16"], example="m=4") == {"m": "4", "n": "8", "k": "16"}


@pytest.mark.parametrize("word", ["m", "=4", "m=", "m=4,n"])
def test_a_word_that_is_no_pair_is_answered_with_an_example(word: str) -> None:
    with pytest.raises(ArgumentError, match=r"key=value \(example: m=4096\)"):
        pairs([word], example="m=4096")


def test_a_name_given_twice_is_refused() -> None:
    with pytest.raises(ArgumentError, match="m is given twice: m=4 and m=8"):
        pairs(["m=4", "m=8"], example="m=4")


def test_comma_lists_keep_order_and_drop_repetitions() -> None:
    assert comma_list(["b,a", "a", " c ,"]) == ["b", "a", "c"]
