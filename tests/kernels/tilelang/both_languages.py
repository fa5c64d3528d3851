"""Kernels of which both languages make the same program: each takes the language as ``T``."""

from typing import Any


def product(T: Any) -> Any:
    M = T.dynamic("m")
    K, N = 256, 512

    @T.prim_func
    def main(A: T.Tensor((M, K), "float16"), B: T.Tensor((K, N), "float16"), C: T.Tensor((M, N), "float16")):
        with T.Kernel(T.ceildiv(N, 128), T.ceildiv(M, 128), threads=128) as (bx, by):
            a = T.alloc_shared((128, 32), "float16")
            b = T.alloc_shared((32, 128), "float16")
            c = T.alloc_fragment((128, 128), "float32")
            T.use_swizzle(10)
            T.clear(c)
            for k in T.Pipelined(T.ceildiv(K, 32), num_stages=3):
                T.copy(A[by * 128, k * 32], a)
                T.copy(B[k * 32, bx * 128], b, coalesced_width=4)
                T.gemm(a, b, c)
            T.copy(c, C[by * 128 : (by + 1) * 128, bx * 128 : (bx + 1) * 128])

    return main


def arithmetic(T: Any) -> Any:
    """Types that meet, literals, choices, values read before they are overwritten."""

    @T.prim_func
    def main(
        A: T.Tensor((64, 32), "float16"),
        N: T.Tensor((64,), "int32"),
        C: T.Tensor((64, 32), "float32"),
        s: T.float32,
    ):
        with T.Kernel(2, threads=64) as bx:
            f = T.alloc_fragment((32, 32), "float32")
            m = T.alloc_fragment((32,), "float32")
            T.copy(A[bx * 32, 0], f)
            T.reduce_max(f, m, dim=1)
            for i, j in T.Parallel(32, 32):
                y = f[i, j] * s - m[i]
                f[i, j] = T.if_then_else(y > 0, y * 2, T.exp2(y * 1.44269504) + N[bx * 32 + i])
            for i in T.serial(N[bx]):
                if i % 2 == 0 and N[i] > 3:
                    C[i, 0] = -f[0, 0] + T.max(f[0, 1], 1) * A[i, 1]
                elif N[i] == 2 or i > 40:
                    C[i, 1] = T.cast(N[i], "float32") / 3
                else:
                    C[i, 2] = T.clamp(f[0, 1], 0.0, 1.0)
            T.copy(f, C[bx * 32, 0])

    return main


def lanes(T: Any) -> Any:
    """What single threads do: indices, shuffles, variables, jumps, atomics."""

    @T.prim_func
    def main(A: T.Tensor((8, 128), "float32"), N: T.Tensor((8,), "int32"), C: T.Tensor((8, 128), "float32")):
        with T.Kernel(8, threads=128) as bx:
            tx = T.get_thread_binding(0)
            x = T.alloc_local((4,), "float32")
            total = T.alloc_var("float32", init=0.0)
            for v in T.vectorized(4):
                x[v] = A[bx, (tx % 32) * 4 + v]
            for j in T.serial(N[bx]):
                if x[0] > j:
                    continue
                total += x[1] * j
                if total > 100:
                    break
            total = T.warp_reduce_sum(total)
            x[1] = T.shfl_xor(x[0], 16)
            if tx < 32:
                T.atomic_add(C[bx, tx], total)
            T.sync_threads()
            while x[2] < 3:
                x[2] = x[2] + 1
            if T.get_lane_idx() == 0:
                C[bx, T.get_warp_idx()] = x[1]

    return main


def roles(T: Any) -> Any:
    """A producer and a consumer with memory barriers, bulk copies, asynchronous products."""

    @T.prim_func
    def main(
        A: T.Tensor((128, 256), "float16"),
        B: T.Tensor((256, 128), "float16"),
        C: T.Tensor((128, 128), "float32"),
    ):
        with T.Kernel(1, threads=256) as bx:
            a = T.alloc_shared((2, 128, 64), "float16")
            b = T.alloc_shared((2, 64, 128), "float16")
            c = T.alloc_fragment((128, 128), "float32")
            full = T.alloc_barrier([128] * 2)
            empty = T.alloc_barrier([128] * 2)
            tx = T.get_thread_binding(0)
            if tx < 128:
                T.set_max_nreg(24, 0)
                for k in T.serial(4):
                    T.mbarrier_wait_parity(empty[k % 2], ((k // 2) % 2) ^ 1)
                    T.tma_copy(A[0:128, k * 64 : (k + 1) * 64], a[k % 2, :, :], barrier=full[k % 2])
                    T.tma_copy(B[k * 64 : (k + 1) * 64, 0:128], b[k % 2, :, :], barrier=full[k % 2])
                    T.mbarrier_arrive(full[k % 2])
            else:
                T.clear(c)
                for k in T.serial(4):
                    T.mbarrier_wait_parity(full[k % 2], (k // 2) % 2)
                    T.wgmma_gemm(a[k % 2, :, :], b[k % 2, :, :], c)
                    T.wait_wgmma(0)
                    T.mbarrier_arrive(empty[k % 2])
                T.copy(c, C[0, bx])

    return main


def dealt(T: Any) -> Any:
    @T.prim_func
    def main(A: T.Tensor((1024, 2048), "float16"), C: T.Tensor((1024, 2048), "float16")):
        with T.Kernel(24, threads=128) as b:
            s = T.alloc_shared((64, 64), "float16")
            for i, j in T.Persistent([16, 32], 24, b, group_size=4):
                T.copy(A[i * 64, j * 64], s)
                T.copy(s, C[i * 64, j * 64])

    return main


def memory(T: Any) -> Any:
    """Views, workspace, strides, reducers, scans, scratch that TileLang puts in, layouts."""
    n, stride = T.dynamic("n"), T.dynamic("stride")

    @T.prim_func
    def main(
        A: T.StridedTensor((n, 64), (stride, 1), "float32"),
        C: T.Tensor((n, 64), "float32"),
        D: T.Tensor((64,), "float32"),
    ):
        with T.Kernel(T.ceildiv(n, 32), threads=128) as bx:
            s = T.alloc_shared((32, 64), "float32")
            m = T.alloc_shared((32,), "float32")
            r = T.alloc_reducer((64,), "float32", op="sum", replication="all")
            T.annotate_layout({s: T.Layout((32, 64), lambda i, j: (i, j ^ (i % 8)))})
            T.copy(A[bx * 32, 0], s)
            T.reduce_sum(s, m, dim=1)
            T.cumsum(s, dim=1)
            T.clear(r)
            for i, j in T.Parallel(32, 64):
                r[j] += s[i, j]
            T.finalize_reducer(r)
            flat = T.reshape(s, (64, 32))
            for i, j in T.Parallel(32, 64):
                C[bx * 32 + i, j] = s[i, j] * m[i] + flat[j, i]
            T.atomic_add(D, r)

    return main


def bits(T: Any) -> Any:
    @T.prim_func
    def main(X: T.Tensor((256,), "uint32"), Y: T.Tensor((256,), "float32"), Z: T.Tensor((256,), "int32")):
        with T.Kernel(1, threads=256):
            for i in T.Parallel(256):
                Z[i] = T.cast((X[i] >> 3) & 7, "int32") ^ (i << 2)
                Y[i] = T.reinterpret(X[i] | 1, "float32")

    return main


KERNELS = (product, arithmetic, lanes, roles, dealt, memory, bits)
