"""Launches that make fp8 activations of bf16 ones: by a given scale, the rows' own, or the tensor's own."""

# Annotations of kernels are calls, as in TileLang.
# mypy: disable-error-code="valid-type"

from typing import Any

from foretile.kernels import language as T
from foretile.kernels.ir import TileProgram
from foretile.kernels.operators._quant import ABSMAX_FLOOR, FP8_MAX, saturated, scale_of

FP8 = "float8_e4m3fn"
_ROWS, _COLS, _THREADS = 4, 2048, 256  # of a block that quantises
# As TensorRT-LLM finds a tensor's maximum (cudaFp8Utils.cu): so many blocks, few elements a thread and step.
_MAX_BLOCKS, _MAX_ROWS, _MAX_COLS, _MAX_THREADS = 1024, 16, 128, 1024


def by_tensor(M: Any, K: Any) -> TileProgram:
    """By the tensor's scale."""

    @T.prim_func
    def quantise_fp8_tensor(
        X: T.Tensor((M, K), "bfloat16"), A_scale: T.Tensor((1,), "float32"), A: T.Tensor((M, K), FP8)
    ) -> None:
        with T.Kernel(T.ceildiv(K, _COLS), T.ceildiv(M, _ROWS), threads=_THREADS) as (bx, by):
            X_local = T.alloc_fragment((_ROWS, _COLS), "bfloat16")
            A_local = T.alloc_fragment((_ROWS, _COLS), FP8)
            T.copy(X[by * _ROWS, bx * _COLS], X_local)
            for i, j in T.Parallel(_ROWS, _COLS):
                A_local[i, j] = saturated(T.cast(X_local[i, j], "float32"), A_scale[0])
            T.copy(A_local, A[by * _ROWS, bx * _COLS])

    traced: TileProgram = quantise_fp8_tensor
    return traced


def by_tensor_in_turn(M: Any, K: Any, cores: int) -> TileProgram:
    """By the tensor's scale, row after row on every core, none beginning before the one before has ended."""

    @T.prim_func
    def quantise_fp8_in_turn(
        X: T.Tensor((M, K), "bfloat16"), A_scale: T.Tensor((1,), "float32"), A: T.Tensor((M, K), FP8)
    ) -> None:
        with T.Kernel(cores, threads=_THREADS) as core:
            X_local = T.alloc_fragment((1, _COLS), "bfloat16")
            A_local = T.alloc_fragment((1, _COLS), FP8)
            scale = T.alloc_fragment((1,), "float32")
            for row in T.Persistent([M], cores, core, group_size=1):
                T.copy(A_scale, scale)
                for step in T.serial(T.ceildiv(K, _COLS)):
                    T.copy(X[row, step * _COLS], X_local)
                    for i, j in T.Parallel(1, _COLS):
                        A_local[i, j] = saturated(T.cast(X_local[i, j], "float32"), scale[0])
                    T.copy(A_local, A[row, step * _COLS])

    traced: TileProgram = quantise_fp8_in_turn
    return traced


def by_rows(M: Any, K: Any) -> TileProgram:
    """By the rows' own scales, of two passes over each."""

    @T.prim_func
    def quantise_fp8_rows(
        X: T.Tensor((M, K), "bfloat16"), A_scale: T.Tensor((M,), "float32"), A: T.Tensor((M, K), FP8)
    ) -> None:
        with T.Kernel(M, threads=_THREADS) as row:
            X_shared = T.alloc_shared((1, _COLS), "bfloat16")
            X_local = T.alloc_fragment((1, _COLS), "float32")
            A_local = T.alloc_fragment((1, _COLS), FP8)
            absmax = T.alloc_fragment((1,), "float32")
            scale = T.alloc_fragment((1,), "float32")
            T.clear(absmax)
            for step in T.Pipelined(T.ceildiv(K, _COLS), num_stages=2):
                T.copy(X[row, step * _COLS], X_shared)
                T.copy(X_shared, X_local)
                T.reduce_absmax(X_local, absmax, dim=1, clear=False)
            scale[0] = scale_of(absmax[0], False)
            T.copy(scale, A_scale[row])
            for step in T.Pipelined(T.ceildiv(K, _COLS), num_stages=2):
                T.copy(X[row, step * _COLS], X_shared)
                T.copy(X_shared, X_local)
                for i, j in T.Parallel(1, _COLS):
                    A_local[i, j] = saturated(X_local[i, j], scale[0])
                T.copy(A_local, A[row, step * _COLS])

    traced: TileProgram = quantise_fp8_rows
    return traced


def tensor_scale(M: Any, K: Any) -> tuple[TileProgram, TileProgram]:
    """Two launches that find the tensor's scale: one sets it to its least, one raises it block by block."""

    @T.prim_func
    def clear_fp8_scale(A_scale: T.Tensor((1,), "float32")) -> None:
        with T.Kernel(1, threads=32) as _:
            least = T.alloc_fragment((1,), "float32")
            T.fill(least, ABSMAX_FLOOR / FP8_MAX)
            T.copy(least, A_scale[0])

    tiles, across = T.ceildiv(M, _MAX_ROWS) * T.ceildiv(K, _MAX_COLS), T.ceildiv(K, _MAX_COLS)

    @T.prim_func
    def find_fp8_scale(X: T.Tensor((M, K), "bfloat16"), A_scale: T.Tensor((1,), "float32")) -> None:
        with T.Kernel(T.min(_MAX_BLOCKS, tiles), threads=_MAX_THREADS) as block:
            X_local = T.alloc_fragment((_MAX_ROWS, _MAX_COLS), "bfloat16")
            rows = T.alloc_fragment((_MAX_ROWS,), "float32")
            absmax = T.alloc_fragment((1,), "float32")
            T.clear(rows)
            for step in T.serial(T.ceildiv(tiles, _MAX_BLOCKS)):
                tile = step * _MAX_BLOCKS + block
                T.copy(X[tile // across * _MAX_ROWS, tile % across * _MAX_COLS], X_local)
                T.reduce_absmax(X_local, rows, dim=1, clear=False)
            T.reduce_max(rows, absmax, dim=0)
            T.atomic_max(A_scale[0], absmax[0] / FP8_MAX)

    return clear_fp8_scale, find_fp8_scale
