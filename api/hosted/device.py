"""torch's questions about a CUDA device, answered for a chip of the catalogue; tensors stay on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from foretile.hwmodels import Chip

_NEWEST = (9, 0)  # what a chip that CUDA has no name for answers: the newest that most kernels know


@contextmanager
def answered_for(chip: Chip) -> Iterator[None]:
    """While it lasts, ``torch.cuda`` describes ``chip``, and tensors made "on cuda" are CPU tensors."""
    import torch

    properties = _properties(chip)
    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None, wait_stream=lambda _other: None)
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _device: None,
        "get_device_properties": lambda _device=None: properties,
        "get_device_capability": lambda _device=None: (properties.major, properties.minor),
        "get_device_name": lambda _device=None: properties.name,
        "synchronize": lambda _device=None: None,
        "current_stream": lambda _device=None: stream,
        "empty_cache": lambda: None,
        "mem_get_info": lambda _device=None: (properties.total_memory, properties.total_memory),
        "device": lambda _device: nullcontext(),
        "is_current_stream_capturing": lambda: False,
        "Stream": lambda *_args, **_kwargs: stream,
        "stream": lambda _stream: nullcontext(),
    }
    with ExitStack() as patches:
        for name, answer in answers.items():
            patches.enter_context(mock.patch.object(torch.cuda, name, answer))
        patches.enter_context(_on_cpu())
        yield


def compute_capability(chip: Chip) -> tuple[int, int]:
    """CUDA's number for a chip's architecture (``sm_90a``: 9, 0)."""
    if not chip.architecture.startswith("sm_"):
        return _NEWEST
    digits = chip.architecture.removeprefix("sm_").rstrip("af")
    return int(digits[:-1]), int(digits[-1])


def _properties(chip: Chip) -> SimpleNamespace:
    """What ``torch.cuda.get_device_properties`` gives, as far as the catalogue knows it."""
    major, minor = compute_capability(chip)
    pad, stay, registers = chip.scratchpad, chip.residency, chip.registers
    dram = chip.dram.capacity_bytes
    return SimpleNamespace(
        name=chip.name,
        major=major,
        minor=minor,
        multi_processor_count=chip.cores.value,
        total_memory=dram.value if dram else 0,
        warp_size=stay.warp_size.value if stay and stay.warp_size else 32,
        shared_memory_per_block=48 << 10,  # without opting in (CUDA C++ programming guide)
        shared_memory_per_block_optin=pad.max_block_bytes.value if pad else 0,
        shared_memory_per_multiprocessor=pad.capacity_bytes.value if pad else 0,
        regs_per_multiprocessor=registers.bytes_per_core.value // 4 if registers else 0,
        max_threads_per_multi_processor=stay.threads_per_core.value if stay else 0,
        L2_cache_size=chip.l2.capacity_bytes.value,
        clock_rate=int(chip.clock.max_hz.value / 1e3),
        is_integrated=0,
        gcnArchName=chip.architecture,
    )


def _on_cpu() -> Any:
    from torch.overrides import TorchFunctionMode

    class OnCpu(TorchFunctionMode):  # type: ignore[misc]  # torch is not there when types are checked
        """Sends what is to be on a CUDA device to the CPU."""

        def __torch_function__(
            self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            import torch

            given = dict(kwargs or {})
            if func is torch.Tensor.cuda:
                return args[0]
            if func is torch.Tensor.is_cuda.__get__:
                return True
            given.pop("pin_memory", None)
            given.pop("non_blocking", None)
            if _is_cuda(given.get("device")):
                given["device"] = "cpu"
            return func(*("cpu" if _is_cuda(a) else a for a in args), **given)

    return OnCpu()


def _is_cuda(value: Any) -> bool:
    import torch

    if isinstance(value, torch.device):
        return str(value.type) == "cuda"
    return isinstance(value, str) and (value == "cuda" or value.startswith("cuda:"))
