// Shared memory: bandwidth, bank conflicts, stores. Dynamic shared memory: blockDim x 64 bytes.
#include "micro.cuh"

extern __shared__ __align__(128) unsigned char pad[];

// 16 bytes a lane, 512 consecutive bytes a warp: no two lanes of a quarter warp meet in a bank.
MICRO_KERNEL(shared_read) {
    const u32 at = shared_address(pad) + 16 * threadIdx.x;
    const u32 step = 16 * blockDim.x;
    u32 seen = 0;
    Stopwatch watch;
    watch.start();
    for (int i = 0; i < iterations; ++i) {
        u32 q[4][4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
            asm volatile("ld.volatile.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                         : "=r"(q[j][0]), "=r"(q[j][1]), "=r"(q[j][2]), "=r"(q[j][3])
                         : "r"(at + j * step)
                         : "memory");
#pragma unroll
        for (int j = 0; j < 4; ++j) seen ^= q[j][0] ^ q[j][1] ^ q[j][2] ^ q[j][3];
    }
    keep(ticks, seen);
    watch.stop(ticks);
}

MICRO_KERNEL(shared_write) {
    const u32 at = shared_address(pad) + 16 * threadIdx.x;
    const u32 step = 16 * blockDim.x;
    Stopwatch watch;
    watch.start();
    for (int i = 0; i < iterations; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j)
            asm volatile("st.shared.v4.u32 [%0], {%1,%1,%1,%1};" ::"r"(at + j * step), "r"(i) : "memory");
    }
    watch.stop(ticks);
}

// Four bytes a lane, lanes `a` words apart (a power of two up to 32): a lanes meet in each bank.
MICRO_KERNEL(shared_stride) {
    const u32 at = shared_address(pad) + 4 * ((threadIdx.x & 31) * a + (threadIdx.x >> 5) % a);
    u32 seen = 0;
    Stopwatch watch;
    watch.start();
    for (int i = 0; i < iterations; ++i) {
        u32 q[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) asm volatile("ld.volatile.shared.u32 %0, [%1];" : "=r"(q[j]) : "r"(at) : "memory");
        seen ^= q[0] ^ q[1] ^ q[2] ^ q[3];
    }
    keep(ticks, seen);
    watch.stop(ticks);
}
