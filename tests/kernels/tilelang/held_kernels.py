"""Kernels as their users hold them; the file asks for a device when it is loaded."""

import tilelang
import tilelang.language as T
import torch

CORES = torch.cuda.get_device_properties("cuda").multi_processor_count
ON_DEVICE = torch.ones(2, device="cuda")
print("a file may print")


@tilelang.jit(out_idx=[-1], pass_configs={tilelang.PassConfigKey.TL_ENABLE_FAST_MATH: True})
def lazy(rows, cols=64, dtype="float16"):
    @T.prim_func
    def scale(A: T.Tensor((rows, cols), dtype), B: T.Tensor((rows, cols), dtype)):
        with T.Kernel(CORES, threads=64) as bx:
            x = T.alloc_fragment((cols,), dtype)
            T.copy(A[bx, 0], x)
            T.copy(x, B[bx, 0])

    return scale


@tilelang.jit
def eager(A, B, block: int = 32):
    M, N = T.const("M N")
    A: T.Tensor[[M, N], T.float32]
    B: T.Tensor[[M, N], T.float32]
    with T.Kernel(T.ceildiv(M, block), threads=64) as bx:
        x = T.alloc_fragment((block, N), T.float32)
        T.copy(A[bx * block, 0], x)
        T.copy(x, B[bx * block, 0])


def symbolic(cols=64):
    m = T.dynamic("m")

    @T.prim_func
    def copy(A: T.Tensor((m, cols), "float32"), B: T.Tensor((m, cols), "float32")):
        with T.Kernel(m, threads=64) as bx:
            T.copy(A[bx, 0:cols], B[bx, 0:cols])

    return copy


def compiled(rows=8):
    kernel = lazy(rows)
    kernel(torch.empty(rows, 64, device="cuda"))
    return kernel


def wrong(rows=8):
    @T.prim_func
    def broken(A: T.Tensor((rows, 64), "float32")):
        with T.Kernel(rows, threads=64) as bx:
            x = T.alloc_fragment((64,), "float32")
            T.kopy(A[bx, 0], x)

    return broken


def unknown(rows=8):
    @T.prim_func
    def rare(A: T.Tensor((rows, 64), "float32")):
        with T.Kernel(rows, threads=64) as bx:
            for i in T.Parallel(64):
                A[bx, i] = T.nextafter(A[bx, i], A[bx, i])

    return rare


@tilelang.jit
def symbolic_rows(N):
    m = T.dynamic("m")

    @T.prim_func
    def main(A: T.Tensor((m, N), "float32"), B: T.Tensor((m, N), "float32")):
        with T.Kernel(T.ceildiv(m, 4), threads=32) as bx:
            tile = T.alloc_fragment((4, N), "float32")
            T.copy(A[bx * 4, 0], tile)
            T.copy(tile, B[bx * 4, 0])

    return main


def uneven(rows=8):
    @T.prim_func
    def extents(A: T.Tensor((rows, 64), "float32")):
        with T.Kernel(1, threads=64) as bx:
            tiles = T.alloc_shared((2, rows, 64), "float32")
            T.copy(A[0, 0], tiles[bx, :, :])

    return extents
