"""From a launch recipe to a launch: memory by name, parameters packed as the kernel expects them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from foretile.calibration.device.driver import Buffer, DeviceError, Driver, Kernel, Parameter, Pointer
from foretile.kernels.cuda.recipe import Argument, LaunchRecipe, ScalarArg, TensorArg

_FORMATS = {"int32": "<i", "uint32": "<I", "int64": "<q", "uint64": "<Q", "float32": "<f", "float64": "<d"}


@dataclass(frozen=True, slots=True)
class Bound:
    """A launch that can be enqueued: a kernel with its geometry and parameters."""

    kernel: Kernel
    recipe: LaunchRecipe
    parameters: tuple[Parameter, ...]

    def enqueue(self, driver: Driver) -> None:
        """Ask the driver for it."""
        recipe = self.recipe
        driver.launch(
            self.kernel,
            recipe.grid,
            recipe.block,
            self.parameters,
            cluster=recipe.cluster,
            shared_bytes=recipe.shared_bytes,
        )


def bind(driver: Driver, kernel: Kernel, recipe: LaunchRecipe, memory: Mapping[str, Buffer]) -> Bound:
    """The launch of ``kernel`` with the recipe's tensors at the start of the buffers of their names.

    Raises:
        DeviceError: a tensor without a buffer, or one that is larger than its buffer; a recipe or a tensor
            map that the device refuses.
    """
    problems = recipe.problems(driver.properties.capability)
    if problems:
        raise DeviceError(f"{recipe.symbol}: {'; '.join(problems)}")
    for tensor in recipe.tensors:
        buffer = memory.get(tensor.name)
        if buffer is None:
            have = ", ".join(memory) or "none"
            raise DeviceError(f"{recipe.symbol}: no memory for tensor {tensor.name}; there is: {have}")
        if buffer.size < tensor.bytes:
            raise DeviceError(
                f"{recipe.symbol}: tensor {tensor.name} of {tensor.bytes} bytes in a buffer of {buffer.size}"
            )
    return Bound(kernel, recipe, tuple(_parameter(driver, arg, memory) for arg in recipe.args))


def _parameter(driver: Driver, arg: Argument, memory: Mapping[str, Buffer]) -> Parameter:
    if isinstance(arg, ScalarArg):
        return struct.pack(_FORMATS[arg.ctype], arg.value)
    if isinstance(arg, TensorArg):
        return Pointer(memory[arg.name])
    return driver.tensor_map(arg, memory[arg.tensor])
