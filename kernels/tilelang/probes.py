"""A process without a GPU that answers as if it had one: for files that ask at import.

Only questions are answered (which device, how many cores, how much memory), tensors that are asked for
on the device are made without memory, and nothing runs. It is done to the whole process, which
loads one file and ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

from foretile.kernels.tilelang.device import Device

_KEPT: list[Any] = []
_MODES: list[Any] = []


def answer(device: Device) -> None:
    """Let torch answer for ``device`` from now on; TileLang asks torch."""
    patches = answered(device)
    patches.__enter__()
    _KEPT.append(patches)  # it would be undone with the object


@contextlib.contextmanager
def answered(device: Device) -> Iterator[None]:
    """While it lasts, torch answers for ``device``, and tensors made on it are tensors of the CPU."""
    import torch

    with contextlib.ExitStack() as patches:
        for name, value in _answers(device).items():
            patches.enter_context(mock.patch.object(torch.cuda, name, value, create=True))
        for name, value in _accelerator().items():
            patches.enter_context(mock.patch.object(torch.accelerator, name, value))
        if torch.version.cuda is None:
            patches.enter_context(mock.patch.object(torch.version, "cuda", "12.8"))
        # Outside of the mode below, a default device would be asked for after it.
        patches.enter_context(mock.patch.object(torch, "set_default_device", _nothing()))
        patches.enter_context(mock.patch.object(torch, "Generator", _generator()))
        mode = _on_cpu()
        for patch in (*_runtime(device), *_operators(mode)):
            patches.enter_context(patch)
        patches.enter_context(mode)
        yield


def target_of(device: Device) -> Any:
    """The compiler's target of the device (a context), for kernels that ask which it is."""
    from tilelang.backend.target import determine_target

    return determine_target({"kind": "cuda", "arch": device.arch}, return_object=True)


def _answers(device: Device) -> dict[str, Any]:
    """Functions of ``torch.cuda``, by name, as a process with the device would have them."""

    def returning(value: Any) -> Any:
        return lambda *_args, **_kwargs: value

    values = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": _properties(device),
        "get_device_capability": device.capability,
        "get_device_name": device.name,
        "is_initialized": True,
        "is_bf16_supported": True,
        "is_current_stream_capturing": False,
        "get_arch_list": [device.arch],
        "mem_get_info": (device.memory_bytes, device.memory_bytes),
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "memory_reserved": 0,
        **dict.fromkeys(("synchronize", "empty_cache", "set_device", "init", "_lazy_init", "manual_seed")),
        **dict.fromkeys(("manual_seed_all", "reset_peak_memory_stats", "ipc_collect")),
    }
    stream = SimpleNamespace(cuda_stream=0, synchronize=returning(None), wait_stream=returning(None))
    event = SimpleNamespace(
        record=returning(None),
        synchronize=returning(None),
        elapsed_time=returning(1.0),
        query=returning(True),
    )
    return {
        **{name: returning(value) for name, value in values.items()},
        **{name: returning(stream) for name in ("current_stream", "default_stream", "Stream")},
        **{name: returning(contextlib.nullcontext()) for name in ("stream", "device")},
        "Event": returning(event),
    }


def _accelerator() -> dict[str, Any]:
    """Functions of ``torch.accelerator``, by name."""
    import torch

    def current(*_args: Any, **_kwargs: Any) -> Any:
        return torch.device("cuda")

    def number(*_args: Any, **_kwargs: Any) -> int:
        return 0

    def context(*_args: Any, **_kwargs: Any) -> Any:
        return contextlib.nullcontext()

    found = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_accelerator": current,
        "current_device_index": number,
        "device_index": context,
        "set_device_index": _nothing(),
        "synchronize": _nothing(),
    }
    return {name: value for name, value in found.items() if hasattr(torch.accelerator, name)}


def _runtime(device: Device) -> list[Any]:
    """What TileLang's own runtime says of its CUDA device, which its tile recommender (carver) asks."""
    import json

    from tilelang import tvm
    from tilelang.carver.arch.driver import cuda_driver

    # By the number of the question: tvm's DeviceAttrKind (include/tvm/runtime/device_api.h).
    attributes: dict[int, Any] = {
        0: 1,
        1: 1024,
        2: 32,
        3: 49_152,
        4: f"{device.capability[0]}.{device.capability[1]}",
        5: device.name,
        6: device.clock_hz // 1000,
        7: device.cores,
        8: json.dumps([1024, 1024, 64]),
        9: 65_536,
        13: device.l2_bytes,
        14: device.memory_bytes,
        15: device.memory_bytes,
    }
    # And by CUDA's cudaDeviceAttr (CUDA Runtime API, "Data types used by CUDA Runtime").
    numbers = {1: 1024, 12: 65_536, 81: device.shared_bytes_per_core}
    kind, ask = tvm.cuda(0).dlpack_device_type(), tvm.runtime.Device._GetDeviceAttr

    def attribute(self: Any, device_type: int, device_id: int, number: int) -> Any:
        if device_type != kind or number not in attributes:
            return ask(self, device_type, device_id, number)
        return attributes[number]

    def by_number(number: int, device_id: int = 0) -> int | None:
        return numbers.get(number)

    return [
        mock.patch.object(tvm.runtime.Device, "_GetDeviceAttr", attribute),
        mock.patch.object(cuda_driver, "get_device_attribute", by_number),
    ]


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


def _on_cpu() -> contextlib.AbstractContextManager[Any]:
    """Tensors on the device become tensors of the CPU, and every tensor says that it is on the device."""
    import torch
    from torch.overrides import TorchFunctionMode

    answers = {
        torch.Tensor.is_cuda.__get__: True,
        torch.Tensor.device.__get__: torch.device("cuda", 0),
        torch.Tensor.get_device: 0,
        torch.Tensor.is_pinned: True,
    }

    class OnCpu(TorchFunctionMode):  # type: ignore[misc]
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if "device" in kwargs:
                kwargs["device"] = _elsewhere(kwargs["device"])
            if func in (torch.Tensor.cuda, torch.Tensor.pin_memory):
                return args[0]
            for asked, answer in answers.items():  # equal, but a new object at every mention
                if func == asked:
                    return answer
            if func is torch.Tensor.to and len(args) > 1:
                return func(args[0], _elsewhere(args[1]), *args[2:], **kwargs)
            if func is torch.device:
                return torch.device("cuda", args[0]) if _numbered(*args) else func(*args, **kwargs)
            kwargs.pop("pin_memory", None)  # asks for a device
            return func(*(a if isinstance(a, int) else _elsewhere(a) for a in args), **kwargs)

    mode: contextlib.AbstractContextManager[Any] = OnCpu()
    return mode


def _elsewhere(device: Any) -> Any:
    """The CPU for a device that is not there: by name, as an object, or by its number."""
    import torch

    if _numbered(device):
        return torch.device("cpu")
    text = str(device) if isinstance(device, str | torch.device) else ""
    return torch.device("cpu") if text.startswith(("cuda", "npu", "musa")) else device


def _operators(mode: Any) -> list[Any]:
    """Torch operators written in Python: what they do inside is answered, and the CPU stands for the device.

    Torch leaves a mode before it calls them; so those that are registered meanwhile go back into it.
    """
    import functools

    import torch
    from torch._library.custom_ops import CustomOpDef

    _MODES.append(mode)
    register, implement = CustomOpDef.register_kernel, torch.library.Library.impl

    def inside(function: Any) -> Any:
        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            with _MODES[-1]:
                return function(*args, **kwargs)

        return called

    def registered(self: Any, device_types: Any, fn: Any = None, /) -> Any:
        if fn is None:
            return lambda function: registered(self, device_types, function)
        return register(self, None if device_types == "cuda" else device_types, inside(fn))

    def implemented(self: Any, name: Any, fn: Any, dispatch_key: str = "", **how: Any) -> Any:
        if str(getattr(fn, "__module__", "")).split(".")[0] == "torch":  # its own, on whatever device
            return implement(self, name, fn, dispatch_key, **how)
        return implement(self, name, inside(fn), dispatch_key.replace("CUDA", "CPU"), **how)

    return [
        mock.patch.object(CustomOpDef, "register_kernel", registered),
        mock.patch.object(torch.library.Library, "impl", implemented),
    ]


def _numbered(*device: Any) -> bool:
    """Whether a device is named by nothing but its number."""
    return len(device) == 1 and isinstance(device[0], int) and not isinstance(device[0], bool)


def _generator() -> type:
    """Random generators of the device are those of the CPU."""
    import torch

    class Generator(torch.Generator):  # type: ignore[misc]
        def __new__(cls, device: Any = None) -> Any:
            return super().__new__(torch.Generator, device=_elsewhere(device or "cpu"))

    return Generator


def _nothing() -> Any:
    """A function that does nothing, a new one each time: torch's tables want one object to have one name."""
    return lambda *_args, **_kwargs: None
