"""Choosing a configuration, and what the front door says about wrong ones."""

from __future__ import annotations

import numpy as np
import pytest
from simcases import sample

from foretile.frontdoor import predict
from foretile.hwmodels import load_chip
from foretile.hwmodels.schema import KernelProfile, Quantity
from foretile.kernels.operator import OperatorError, load_operator
from foretile.simulator.launches import workloads
from foretile.simulator.machine import SimulationError
from foretile.simulator.predictor import machine_of
from foretile.simulator.search import best, chosen, evaluate_config, play, rank, space


def test_the_search_finds_the_best_of_the_whole_space_or_nearly() -> None:
    """The cost model ranks, the engine decides among the first: at most 10 % is left behind."""
    lost = []
    for name, shape in (
        ("gemm", {"m": 512, "n": 4096, "k": 2048}),
        ("attention_prefill", {"batch": 1, "seq": 2048, "heads": 8}),
        ("rmsnorm", {"rows": 4096, "cols": 8192}),
    ):
        operator = load_operator(name)
        full = operator.shape(**shape)
        m = machine_of(load_chip("h100"))
        everything = min(play(operator, full, c, m).time_s for c in space(operator, full, m))
        lost.append(best(operator, [full], m)[0].time_s / everything)
    assert max(lost) <= 1.10
    assert min(lost) >= 1.0 - 1e-12


def test_the_searched_time_is_hardly_worse_than_that_of_the_first_fitting_configuration() -> None:
    for case in sample(8, 41):
        m = case.machine
        first = space(case.operator, case.shape, m)[0]
        assert (
            best(case.operator, [case.shape], m)[0].time_s
            <= play(case.operator, case.shape, first, m).time_s * 1.15
        )


def test_the_ranking_of_many_shapes_is_that_of_each() -> None:
    operator = load_operator("gemm")
    m = machine_of(load_chip("h100"))
    sizes = np.asarray([1, 100, 1024, 5000])
    table = rank(operator, {**operator.shape(m=1, n=2048, k=2048), "m": sizes}, m)
    for column, size in enumerate(sizes.tolist()):
        alone = rank(operator, operator.shape(m=size, n=2048, k=2048), m)
        assert alone.configs == table.configs
        assert table.time_s[:, column] == pytest.approx(alone.time_s[:, 0], rel=1e-12)


@pytest.mark.parametrize(
    ("name", "static", "columns"),
    [
        (
            "moe",
            {"topk": 4, "experts": 16},
            {"tokens": [1, 33, 700], "hidden": [512, 2048, 1024], "inter": [256, 512, 96]}
            | {"distribution": [0, 120, 101]},
        ),
        (
            "grouped_gemm",
            {"masked": True},
            {"m": [7, 900, 300], "n": [512, 256, 1024], "k": [256, 512, 128], "groups": [4, 9, 2]},
        ),
    ],
)
def test_shapes_with_tensors_of_their_own_are_ranked_as_each_alone(
    monkeypatch: pytest.MonkeyPatch, name: str, static: dict[str, int], columns: dict[str, list[int]]
) -> None:
    """However many fit into memory together."""
    operator = load_operator(name)
    m = machine_of(load_chip("h100"))
    shapes = [
        operator.shape(**static, **dict(zip(columns, row, strict=True)))
        for row in zip(*columns.values(), strict=True)
    ]
    together = {**shapes[0], **{key: np.asarray(values) for key, values in columns.items()}}
    for held in (1 << 22, 1):
        monkeypatch.setattr("foretile.simulator.search._STACKED", held)
        table = rank(operator, together, m)
        for column, shape in enumerate(shapes):
            alone = rank(operator, shape, m)
            assert alone.configs == table.configs
            assert table.time_s[:, column] == pytest.approx(alone.time_s[:, 0], rel=1e-12)


def test_launches_that_configurations_have_in_common_are_lowered_once() -> None:
    operator = load_operator("moe")
    shape = operator.shape(tokens=64, hidden=1024, inter=512, topk=4, experts=16)
    m = machine_of(load_chip("h100"))
    configs = space(operator, shape, m)
    launches = [workloads(operator, shape, config, m) for config in configs]
    assert len({id(found[2]) for found in launches}) == 1  # the permutation is the same for all
    tiles = [{k: v for k, v in config.items() if k != "block_t"} for config in configs]
    assert len({id(found[3]) for found in launches}) == len({str(tile) for tile in tiles}) < len(configs)


def test_persistent_configurations_use_the_cores_of_the_chip() -> None:
    operator = load_operator("gemm")
    shape = operator.shape(m=4096, n=4096, k=4096)
    for chip in ("h20", "b200-sxm"):
        m = machine_of(load_chip(chip))
        config = chosen(operator, shape, m, {"variant": "persistent"})
        assert config["cores"] == load_chip(chip).cores.value
        assert predict("gemm", chip, m=4096, n=4096, k=4096, config=config).occupancy["blocks"] <= m.cores


def test_a_small_m_prefers_tiles_of_few_rows_or_a_split_k() -> None:
    p = predict("gemm", "h100", m=8, n=8192, k=8192)
    assert p.config["block_m"] <= 64
    fixed = predict(
        "gemm", "h100", m=8, n=8192, k=8192, config={"variant": "tile", "block_m": 128, "block_n": 256}
    )
    assert p.time_s < fixed.time_s


def test_an_unknown_configuration_key_names_the_nearest() -> None:
    with pytest.raises(OperatorError, match=r"no configuration key 'blockm'; did you mean 'block_m'"):
        predict("gemm", "h100", m=64, n=64, k=64, config={"blockm": 64})


def test_nothing_that_fits_is_said_with_a_reason() -> None:
    with pytest.raises(
        SimulationError, match=r"no configuration of gemm fits a100-sxm4-80gb: .*fp8: unknown"
    ):
        predict("gemm", "a100-sxm4-80gb", m=64, n=64, k=64, dtype="fp8")


@pytest.mark.parametrize("model", ["engine", "cost_model"])
def test_a_given_configuration_is_the_one_used(model: str) -> None:
    config = {"variant": "tile", "block_m": 64, "block_n": 64, "block_k": 64, "num_stages": 3, "threads": 128}
    p = predict("gemm", "h100", m=512, n=512, k=512, config=config, model=model)  # type: ignore[arg-type]
    assert {k: p.config[k] for k in config} == config
    assert p.occupancy["blocks"] == 64


def test_rows_just_above_a_power_of_two_take_no_whole_tile_more() -> None:
    """257 rows are two transposed tiles of 136; an instruction of 64 or 128 rows would compute 320 or 384."""
    operator = load_operator("gemm")
    for chip in ("h200-sxm", "b200-sxm"):
        machine = machine_of(load_chip(chip, calibrated=False), "")
        shape = operator.shape(m=257, n=16384, k=8192, trans_b=True)
        configs = space(operator, shape, machine)
        seconds = [float(evaluate_config(operator, shape, c, machine).time_s[0]) for c in configs]
        plain = min(t for c, t in zip(configs, seconds, strict=True) if not c["swap"])
        assert min(seconds) < 0.95 * plain
        assert configs[int(np.argmin(seconds))]["swap"]


def test_libraries_of_few_parts_split_no_sum_further() -> None:
    operator, chip = load_operator("gemm"), load_chip("b200-sxm", calibrated=False)
    shape, machine = operator.shape(m=16, n=32, k=65536, trans_b=True), machine_of(chip, "")
    one = Quantity[float](value=1.0, source="test", confidence="measured")
    parts = {
        tiles: {
            c["split_k"]
            for c in space(
                operator,
                shape,
                machine,
                KernelProfile(core_fraction=one, memory_fraction=one, launch_fraction=one, tiles=tiles),
            )
        }
        for tiles in ("any", "few_parts")
    }
    assert max(parts["any"]) > 16 >= max(parts["few_parts"]) > 1
