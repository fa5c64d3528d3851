"""Explanations that follow from the numbers, and traces that a viewer accepts."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from typing import Any

import pytest

from foretile.frontdoor import explain, predict, trace_events
from foretile.simulator.machine import RESOURCES
from foretile.simulator.program import ENGINES

SHAPES: list[tuple[str, str, dict[str, Any]]] = [
    ("gemm", "h100", {"m": 4096, "n": 4096, "k": 4096}),
    ("gemm", "ascend-910b3", {"m": 1024, "n": 1024, "k": 4096}),
    ("attention_prefill", "h100", {"batch": 1, "seq": 4096, "heads": 16}),
    ("attention_decode", "h20", {"batch": 16, "kv_len": 8192, "heads": 32, "kv_heads": 8}),
    ("copy", "a100-sxm4-80gb", {"bytes": 2**28}),
    ("rmsnorm", "b200-sxm", {"rows": 4096, "cols": 4096}),
]


@pytest.mark.parametrize(("name", "chip", "shape"), SHAPES)
def test_an_explanation_follows_from_its_prediction(name: str, chip: str, shape: dict[str, Any]) -> None:
    e = explain(name, chip, **shape)
    p = e.prediction
    assert p == predict(name, chip, **shape)
    assert list(e.bounds_s.values()) == sorted(e.bounds_s.values(), reverse=True)
    assert all(0 < seconds <= p.time_s for seconds in e.bounds_s.values())
    assert set(e.gains) == set(RESOURCES)
    assert all(-0.10 <= gain <= 0 for gain in e.gains.values())  # 10 % more buys 10 % at most
    assert p.bound in e.sentences[0]
    assert json.loads(json.dumps(e.to_json()))["sentences"] == list(e.sentences)


def test_the_bound_is_the_resource_that_helps_most() -> None:
    assert min(explain("copy", "a100-sxm4-80gb", bytes=2**28).gains.items(), key=lambda g: g[1])[0] == "dram"
    gemm = explain("gemm", "h20", m=8192, n=8192, k=8192)
    assert gemm.prediction.bound == "matrix"
    assert min(gemm.gains.items(), key=lambda g: g[1])[0] == "matrix"
    assert gemm.gains["matrix"] < -0.05


def test_a_tiny_kernel_is_bound_by_its_launch_and_the_words_say_so() -> None:
    e = explain("rmsnorm", "h100", rows=1, cols=128)
    assert e.prediction.bound in ("launch", "latency")
    assert "no engine is busy for half" in e.sentences[0]
    assert min(e.gains.items(), key=lambda g: g[1])[0] in ("launch", "latency")


def test_padding_is_mentioned_where_there_is_much() -> None:
    config = {
        "variant": "tile",
        "block_m": 128,
        "block_n": 128,
        "block_k": 64,
        "num_stages": 3,
        "threads": 256,
    }
    words = " ".join(explain("gemm", "h100", m=8, n=4096, k=4096, config=config).sentences)
    assert "1500% more FLOPs" in words


@pytest.mark.parametrize(("name", "chip", "shape"), SHAPES)
def test_a_trace_is_a_valid_chrome_trace(name: str, chip: str, shape: dict[str, Any]) -> None:
    data = json.loads(json.dumps(trace_events(name, chip, **shape)))
    events = data["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e.get("name") == "thread_name"}
    assert set(names.values()) <= {"kernel", "steady state", *ENGINES}
    assert len(set(names.values())) == len(names)
    slices = [e for e in events if e["ph"] == "X"]
    assert {e["ph"] for e in events} == {"M", "X"}
    tracks: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for e in slices:
        assert e["tid"] in names
        assert e["name"]
        assert e["dur"] > 0
        for value in (e["ts"] * 1e6, e["dur"] * 1e6):  # whole picoseconds, written as microseconds
            assert value == pytest.approx(round(value), abs=1e-3)
        start = round(e["ts"] * 1e6)
        tracks[names[e["tid"]]].append((start, start + round(e["dur"] * 1e6)))
    for track, pieces in tracks.items():
        if track != "kernel":  # there the launch lies inside its kernel
            ordered = sorted(pieces)
            assert all(a[1] <= b[0] + 1 for a, b in itertools.pairwise(ordered)), track
    end = max(stop for pieces in tracks.values() for _, stop in pieces)
    assert end <= predict(name, chip, **shape).time_s * 1e12 * (1 + 1e-9) + 2
    assert data["otherData"]["chip"] == predict(name, chip, **shape).chip


def test_a_trace_of_two_launches_shows_them_one_after_the_other() -> None:
    data = trace_events(
        "gemm",
        "h100",
        m=64,
        n=1024,
        k=8192,
        config={"variant": "split_k", "split_k": 4, "block_m": 64, "block_n": 64},
    )
    tid = next(e["tid"] for e in data["traceEvents"] if e["args"].get("name") == "kernel")
    kernels = [e for e in data["traceEvents"] if e["ph"] == "X" and e["tid"] == tid and e["name"] != "launch"]
    assert [e["name"] for e in kernels] == ["gemm_split_k", "gemm_split_k_finish"]
    assert kernels[1]["ts"] == pytest.approx(kernels[0]["ts"] + kernels[0]["dur"], abs=1e-5)
