"""The functions of the CUDA driver that are called directly: machine code, tensor maps, launches.

CuPy has no launch with attributes (clusters) and no tensor maps. Signatures, structures and enumerations
are those of ``cuda.h`` 13.0 (CUDA Driver API); the tests compile them against that header and compare.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int, c_ubyte, c_uint, c_uint32, c_uint64, c_void_p
from typing import Any

from foretile.calibration.device.driver import TENSOR_MAP_BYTES, DeviceError, Parameter
from foretile.kernels.cuda.recipe import Extent, TensorMapArg

MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_CLUSTER_DIMENSION = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
# CUtensorMapDataType. Types of eight bits without an entry of their own travel as bytes.
_DATA_TYPES = {
    "uint8": 0, "int8": 0, "bool": 0, "float8_e4m3": 0, "float8_e5m2": 0, "float8_e8m0": 0,
    "uint16": 1, "int16": 1, "uint32": 2, "int32": 3, "uint64": 4, "int64": 5, "float16": 6,
    "float32": 7, "float64": 8, "bfloat16": 9, "tfloat32": 11,
}  # fmt: skip
_INTERLEAVE = {"none": 0, "16B": 1, "32B": 2}
_SWIZZLE = {"none": 0, "32B": 1, "64B": 2, "128B": 3}
_L2_PROMOTION = {"none": 0, "64B": 1, "128B": 2, "256B": 3}
_OUT_OF_BOUNDS = {"zeros": 0, "nan": 1}


class _ClusterDimension(ctypes.Structure):
    _fields_ = (("x", c_uint), ("y", c_uint), ("z", c_uint))


class _AttributeValue(ctypes.Union):
    _fields_ = (("pad", ctypes.c_char * 64), ("cluster", _ClusterDimension))


class _Attribute(ctypes.Structure):
    """``CUlaunchAttribute``."""

    _fields_ = (("id", c_int), ("pad", ctypes.c_char * 4), ("value", _AttributeValue))


class _LaunchConfig(ctypes.Structure):
    """``CUlaunchConfig``."""

    _fields_ = (
        *((name, c_uint) for name in ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z")),
        ("shared_bytes", c_uint),
        ("stream", c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("attribute_count", c_uint),
    )


class LibCuda:
    """The driver's library; everything happens in the context that is current in the calling thread."""

    def __init__(self, library: Any = None) -> None:
        self._lib = library if library is not None else _open()

    def load(self, cubin: bytes) -> int:
        """A handle of loaded machine code."""
        module = c_void_p()
        self._call("cuModuleLoadData", byref(module), c_char_p(cubin))
        return int(module.value or 0)

    def unload(self, module: int) -> None:
        """Unload machine code."""
        self._call("cuModuleUnload", c_void_p(module))

    def function(self, module: int, symbol: str) -> int:
        """A handle of a kernel."""
        found = c_void_p()
        self._call("cuModuleGetFunction", byref(found), c_void_p(module), c_char_p(symbol.encode()))
        return int(found.value or 0)

    def allow_shared(self, function: int, dynamic_bytes: int) -> None:
        """Let a kernel be launched with so much dynamic shared memory (an attribute of the kernel alone)."""
        self._call("cuFuncSetAttribute", c_void_p(function), c_int(MAX_DYNAMIC_SHARED), c_int(dynamic_bytes))

    def tensor_map(self, spec: TensorMapArg, address: int) -> bytes:
        """``cuTensorMapEncodeTiled``."""
        if spec.dtype not in _DATA_TYPES:
            raise DeviceError(f"tensor map of {spec.tensor}: {spec.dtype} is not supported")
        store = (c_ubyte * (TENSOR_MAP_BYTES + 64))()  # the descriptor is to be aligned to 64
        place = -(-ctypes.addressof(store) // 64) * 64
        self._call(
            "cuTensorMapEncodeTiled",
            c_void_p(place),
            c_int(_DATA_TYPES[spec.dtype]),
            c_uint32(spec.rank),
            c_void_p(address),
            (c_uint64 * spec.rank)(*spec.global_dim),
            (c_uint64 * max(1, spec.rank - 1))(*spec.global_strides_bytes),
            (c_uint32 * spec.rank)(*spec.box_dim),
            (c_uint32 * spec.rank)(*spec.element_strides),
            c_int(_INTERLEAVE[spec.interleave]),
            c_int(_SWIZZLE[spec.swizzle]),
            c_int(_L2_PROMOTION[spec.l2_promotion]),
            c_int(_OUT_OF_BOUNDS[spec.oob_fill]),
        )
        return ctypes.string_at(place, TENSOR_MAP_BYTES)

    def launch(
        self,
        function: int,
        grid: Extent,
        block: Extent,
        parameters: Sequence[Parameter],
        *,
        cluster: Extent,
        shared_bytes: int,
        stream: int,
    ) -> None:
        """``cuLaunchKernelEx``."""
        stores = [_stored(value) for value in parameters]
        addresses = (c_void_p * max(1, len(stores)))(*(place for _, place in stores))
        config = _LaunchConfig(*grid, *block, shared_bytes, stream, None, 0)
        attribute = _Attribute(id=_CLUSTER_DIMENSION)
        if cluster != (1, 1, 1):
            attribute.value.cluster = _ClusterDimension(*cluster)
            config.attributes, config.attribute_count = ctypes.pointer(attribute), 1
        self._call("cuLaunchKernelEx", byref(config), c_void_p(function), addresses, None)

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._lib, name)
        except AttributeError:
            raise DeviceError(
                f"the CUDA driver has no {name}: it is too old; 12.0 or later is needed"
            ) from None
        status = int(function(*arguments))
        if status:
            raise DeviceError(f"{name}: {self._said(status)}")

    def _said(self, status: int) -> str:
        """An error's name and meaning."""
        parts = []
        for name in ("cuGetErrorName", "cuGetErrorString"):
            text = c_char_p()
            if not getattr(self._lib, name)(c_int(status), byref(text)) and text.value:
                parts.append(text.value.decode())
        return f"{': '.join(parts) or 'unknown error'} ({status})"


def _stored(value: Parameter) -> tuple[Any, int]:
    """A parameter's bytes in memory that is kept, aligned to 64 as tensor maps need, and their address."""
    raw = (
        value if isinstance(value, bytes) else (value.buffer.address + value.start).to_bytes(8, sys.byteorder)
    )
    store = (c_ubyte * (len(raw) + 64))()
    place = -(-ctypes.addressof(store) // 64) * 64
    ctypes.memmove(place, raw, len(raw))
    return store, place


def _open() -> Any:
    names = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise DeviceError(
        f"the CUDA driver ({names[0]}) was not found: this machine has no NVIDIA GPU, or its driver is not "
        "installed (https://www.nvidia.com/drivers)"
    )
