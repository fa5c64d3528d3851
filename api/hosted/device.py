"""torch's questions about a CUDA device, answered for a chip of the catalogue; tensors stay on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from foretile.hwmodels import Chip

_NVIDIA_LIKE = (9, 0)  # what chips without a compute capability answer: the newest most kernels know


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
    """CUDA's name of a chip's architecture, as numbers."""
    for feature in (chip.architecture or "", *getattr(chip, "aliases", ())):
        if feature.startswith("sm_"):
            digits = "".join(c for c in feature[3:] if c.isdigit())
            return int(digits[:-1]), int(digits[-1])
    return _NVIDIA_LIKE


def _properties(chip: Chip) -> SimpleNamespace:
    raise NotImplementedError


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
