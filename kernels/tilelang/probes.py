"""A process without a GPU that answers as if it had one: for files that ask at import.

Only questions are answered (which device, how many cores, how much memory), tensors that are asked for
on the device are made without memory, and nothing runs. It is done to the whole process, which
loads one file and ends.
"""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

from foretile.kernels.tilelang.device import Device


def answer(device: Device) -> None:
    """Let torch answer for ``device`` from now on; TileLang asks torch."""
    import torch

    cuda = torch.cuda
    properties = _properties(device)

    def returning(value: Any) -> Any:
        return lambda *_args, **_kwargs: value

    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": properties,
        "get_device_capability": device.capability,
        "get_device_name": device.name,
        "is_initialized": True,
        "is_bf16_supported": True,
        "get_arch_list": [device.arch],
        "mem_get_info": (device.memory_bytes, device.memory_bytes),
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "memory_reserved": 0,
        **dict.fromkeys(("synchronize", "empty_cache", "set_device", "init", "_lazy_init", "manual_seed")),
        **dict.fromkeys(("manual_seed_all", "reset_peak_memory_stats", "ipc_collect")),
    }
    for name, value in answers.items():
        setattr(cuda, name, returning(value))
    stream = SimpleNamespace(cuda_stream=0, synchronize=returning(None), wait_stream=returning(None))
    for name in ("current_stream", "default_stream", "Stream"):
        setattr(cuda, name, returning(stream))
    cuda.stream = returning(contextlib.nullcontext())
    cuda.Event = lambda *_a, **_k: SimpleNamespace(
        record=returning(None),
        synchronize=returning(None),
        elapsed_time=returning(1.0),
        query=returning(True),
    )
    if torch.version.cuda is None:
        torch.version.cuda = "12.8"
    _place_tensors_nowhere()


def _properties(device: Device) -> SimpleNamespace:
    major, minor = device.capability
    return SimpleNamespace(
        name=device.name,
        major=major,
        minor=minor,
        total_memory=device.memory_bytes,
        multi_processor_count=device.cores,
        L2_cache_size=device.l2_bytes,
        warp_size=32,
        max_threads_per_multi_processor=device.threads_per_core,
        max_threads_per_block=1024,
        regs_per_multiprocessor=device.registers_per_core,
        shared_memory_per_multiprocessor=device.shared_bytes_per_core,
        shared_memory_per_block=49_152,
        shared_memory_per_block_optin=device.shared_bytes_per_block,
        clock_rate=device.clock_hz // 1000,
        is_integrated=0,
        is_multi_gpu_board=0,
        gcnArchName="",
        uuid="",
    )


def _place_tensors_nowhere() -> None:
    """Tensors on the device become tensors of the CPU that hold no memory until they are written."""
    import torch
    from torch.overrides import TorchFunctionMode

    def elsewhere(value: Any) -> Any:
        text = str(value) if isinstance(value, str | torch.device) else ""
        return torch.device("cpu") if text.startswith(("cuda", "npu", "musa")) else value

    class OnCpu(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if "device" in kwargs:
                kwargs["device"] = elsewhere(kwargs["device"])
            if getattr(func, "__name__", "") == "cuda":
                return args[0]
            return func(*(elsewhere(a) for a in args), **kwargs)

    OnCpu().__enter__()
