"""The driver that is none: what a GPU would refuse is refused, what it would compute is computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from device_kernels import compiled, machine_code, play_scale

from foretile.calibration.device.binding import bind
from foretile.calibration.device.cubin import CubinError, read_cubin
from foretile.calibration.device.driver import DeviceError, Pointer
from foretile.calibration.device.fake import FakeDriver
from foretile.kernels.cuda.recipe import LaunchRecipe, ScalarArg, TensorArg, TensorMapArg

N = 1000
RECIPE = LaunchRecipe(
    "scale",
    grid=(4, 1, 1),
    block=(256, 1, 1),
    args=(
        TensorArg("X", "float32", (N,), "in"),
        TensorArg("Y", "float32", (N,), "out"),
        ScalarArg("int32", N),
        ScalarArg("float32", 2.5),
    ),
)
MAP = TensorMapArg("X", "bfloat16", 2, (64, 32), (128,), (64, 16), (1, 1), swizzle="128B")


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver((9, 0), {"scale": play_scale}, memory_bytes=1 << 20)


def test_a_cubin_says_what_its_kernels_take() -> None:
    kernels = read_cubin(machine_code())
    assert set(kernels) == {"scale", "staged", "nothing", "paired", "mapped"}
    scale = kernels["scale"]
    assert scale.parameters == ((0, 8), (8, 8), (16, 4), (20, 4))
    assert (scale.capability, scale.most_threads, scale.static_shared_bytes) == ((9, 0), 256, 0)
    assert [size for _, size in kernels["staged"].parameters or ()] == [8, 8, 8, 1]
    assert kernels["staged"].static_shared_bytes == 256
    assert kernels["nothing"].parameters == ()
    assert kernels["paired"].cluster == (2, 1, 1)
    assert [size for _, size in kernels["mapped"].parameters or ()] == [128, 8]
    for symbol, reported in compiled("sm_90a").resources.items():
        assert kernels[symbol].registers == reported.registers
        assert kernels[symbol].static_shared_bytes == reported.static_shared_bytes


@pytest.mark.parametrize(
    ("arch", "capability"), [("sm_80", (8, 0)), ("sm_90a", (9, 0)), ("sm_100a", (10, 0))]
)
def test_a_cubin_says_what_it_is_for(arch: str, capability: tuple[int, int]) -> None:
    staged = read_cubin(machine_code(arch))["staged"]
    assert (staged.capability, staged.static_shared_bytes) == (capability, 256)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b"text" + b[4:], lambda b: b[:700]])
def test_a_damaged_cubin_is_refused(damage: object) -> None:
    with pytest.raises(CubinError):
        read_cubin(damage(machine_code()))  # type: ignore[operator]


def test_a_launch_computes(driver: FakeDriver) -> None:
    x, y = driver.allocate(4 * N), driver.allocate(4 * N)
    values = np.arange(N, dtype=np.float32)
    driver.write(x, values)
    driver.fill(y, 0xFF)
    bound = bind(driver, driver.load(machine_code(), "scale"), RECIPE, {"X": x, "Y": y})
    bound.enqueue(driver)
    assert np.array_equal(driver.read(y).view(np.float32), 2.5 * values)


def test_a_graph_does_nothing_until_it_is_replayed(driver: FakeDriver) -> None:
    x, y = driver.allocate(4 * N), driver.allocate(4 * N)
    bound = bind(driver, driver.load(machine_code(), "scale"), RECIPE, {"X": x, "Y": y})
    graph = driver.capture(lambda: (bound.enqueue(driver), bound.enqueue(driver), None)[-1])
    assert not driver.launches
    driver.replay(graph)
    assert len(driver.launches) == 2
    with pytest.raises(DeviceError, match="while a graph is captured"):
        driver.capture(lambda: driver.synchronize())
    driver.free(x)
    with pytest.raises(DeviceError, match="freed"):
        driver.replay(graph)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"block": (512, 1, 1)}, "launch bounds are 256"),
        ({"block": (1024, 2, 1)}, "2048 threads; at most 1024"),
        ({"block": (1, 1, 128)}, "block.z = 128"),
        ({"grid": (0, 1, 1)}, "grid.x = 0"),
        ({"grid": (1, 65536, 1)}, "grid.y = 65536"),
        ({"shared_bytes": 227 * 1024 + 1}, "232449 bytes of shared memory; a block may have 232448"),
        ({"cluster": (3, 1, 1)}, "not a multiple of cluster"),
        ({"cluster": (16, 1, 1)}, "not of 1 to 8 blocks"),
        ({"args": RECIPE.args[:3]}, "3 parameters; the kernel takes 4"),
        ({"args": (*RECIPE.args[:2], ScalarArg("int64", N), RECIPE.args[3])}, "parameter 2 has 8 bytes"),
    ],
)
def test_launches_that_a_device_refuses(driver: FakeDriver, change: dict[str, object], said: str) -> None:
    memory = {"X": driver.allocate(4 * N), "Y": driver.allocate(4 * N)}
    kernel = driver.load(machine_code(), "scale")
    with pytest.raises(DeviceError, match=said):
        bind(driver, kernel, replace(RECIPE, **change), memory).enqueue(driver)  # type: ignore[arg-type]


def test_shared_memory_of_the_code_counts(driver: FakeDriver) -> None:
    kernel, buffer = driver.load(machine_code(), "staged"), driver.allocate(4096)
    given = (Pointer(buffer), Pointer(buffer), bytes(8), bytes(1))
    most = 227 * 1024 - 256
    driver.launch(kernel, (1, 1, 1), (128, 1, 1), given, shared_bytes=most)
    with pytest.raises(DeviceError, match="shared memory"):
        driver.launch(kernel, (1, 1, 1), (128, 1, 1), given, shared_bytes=most + 1)


def test_clusters_of_the_code_count(driver: FakeDriver) -> None:
    kernel, given = driver.load(machine_code(), "paired"), (Pointer(driver.allocate(64)),)
    driver.launch(kernel, (4, 1, 1), (32, 1, 1), given)
    driver.launch(kernel, (4, 1, 1), (32, 1, 1), given, cluster=(2, 1, 1))
    with pytest.raises(DeviceError, match=r"grid \(3, 1, 1\) is not a multiple of cluster \(2, 1, 1\)"):
        driver.launch(kernel, (3, 1, 1), (32, 1, 1), given)
    with pytest.raises(DeviceError, match=r"compiled for \(2, 1, 1\)"):
        driver.launch(kernel, (4, 1, 1), (32, 1, 1), given, cluster=(4, 1, 1))


def test_memory_that_is_not_there(driver: FakeDriver) -> None:
    buffer = driver.allocate(100)
    for action in (
        lambda: driver.read(buffer, 90, 11),
        lambda: driver.write(buffer, np.zeros(101, np.uint8)),
        lambda: driver.fill(buffer, 0, -1),
        lambda: driver.view(buffer, "float32", (26,)),
    ):
        with pytest.raises(DeviceError, match="out of range"):
            action()
    with pytest.raises(DeviceError, match="cudaErrorMemoryAllocation"):
        driver.allocate(1 << 20)
    driver.free(buffer)
    with pytest.raises(DeviceError, match="freed"):
        driver.free(buffer)
    with pytest.raises(DeviceError, match="freed"):
        driver.launch(driver.load(machine_code(), "paired"), (2, 1, 1), (32, 1, 1), (Pointer(buffer),))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rank": 6}, "rank 6"),
        ({"global_strides_bytes": (120,)}, "multiple of 16"),
        ({"box_dim": (64, 257)}, "from 1 to 256"),
        ({"box_dim": (128, 16)}, "does not fit swizzle 128B"),
        ({"box_dim": (4, 16), "swizzle": "none"}, "multiple of 16"),
        ({"element_strides": (1, 9)}, "from 1 to 8"),
        ({"global_dim": (64, 33)}, "spans 4224 bytes from 0 of a buffer of 4096"),
        ({"interleave": "32B"}, "at least 3"),
        ({"dtype": "uint8", "oob_fill": "nan"}, "cannot be NaN"),
    ],
)
def test_tensor_maps_that_a_device_refuses(driver: FakeDriver, change: dict[str, object], said: str) -> None:
    buffer = driver.allocate(4096)
    assert len(driver.tensor_map(MAP, buffer)) == 128
    with pytest.raises(DeviceError, match=said):
        driver.tensor_map(replace(MAP, **change), buffer)  # type: ignore[arg-type]


def test_tensor_maps_are_aligned_and_their_memory_lives(driver: FakeDriver) -> None:
    buffer, out = driver.allocate(8192), driver.allocate(4)
    with pytest.raises(DeviceError, match="multiple of 16"):
        driver.tensor_map(MAP, buffer, 8)
    kernel = driver.load(machine_code(), "mapped")
    given = (driver.tensor_map(MAP, buffer, 16), Pointer(out))
    driver.launch(kernel, (1, 1, 1), (32, 1, 1), given)
    driver.free(buffer)
    with pytest.raises(DeviceError, match=r"parameter 0: the buffer .* freed"):
        driver.launch(kernel, (1, 1, 1), (32, 1, 1), given)
    older = FakeDriver((8, 0))
    with pytest.raises(DeviceError, match=r"compute capability 9\.0"):
        older.tensor_map(MAP, older.allocate(4096))


def test_machine_code_of_another_architecture() -> None:
    with pytest.raises(DeviceError, match="for sm_90; the device is sm_80"):
        FakeDriver((8, 0)).load(machine_code("sm_90a"), "scale")
    FakeDriver((8, 9)).load(machine_code("sm_80"), "scale")  # a later minor of the same major runs it
    with pytest.raises(DeviceError, match=r"no kernel other; the cubin holds: .*scale"):
        FakeDriver((9, 0)).load(machine_code("sm_90a"), "other")


@pytest.mark.parametrize(
    ("arch", "capability", "runs"),
    [
        ("sm_90a", (9, 0), True),
        ("sm_90", (9, 0), True),
        ("sm_80", (8, 9), True),
        ("sm_86", (8, 0), False),
        ("sm_90a", (10, 0), False),
        ("sm_100a", (10, 3), False),
        ("sm_100f", (10, 3), True),
    ],
)
def test_which_machine_code_runs_where(arch: str, capability: tuple[int, int], runs: bool) -> None:
    assert FakeDriver(capability).properties.runs(arch) is runs


def test_tensors_need_memory_that_is_large_enough(driver: FakeDriver) -> None:
    kernel = driver.load(machine_code(), "scale")
    with pytest.raises(DeviceError, match="no memory for tensor X"):
        bind(driver, kernel, RECIPE, {"Y": driver.allocate(4 * N)})
    with pytest.raises(DeviceError, match="tensor Y of 4000 bytes in a buffer of 3999"):
        bind(driver, kernel, RECIPE, {"X": driver.allocate(4 * N), "Y": driver.allocate(4 * N - 1)})
