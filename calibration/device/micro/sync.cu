// Barriers, hand-overs and atomics.
#include "micro.cuh"

// __syncthreads of blockDim / 32 warps: four an iteration.
MICRO_KERNEL(block_barrier) {
    Stopwatch watch;
    watch.start();
#pragma unroll 1
    for (int i = 0; i < iterations; ++i) {
        asm volatile("bar.sync 0;" ::: "memory");
        asm volatile("bar.sync 0;" ::: "memory");
        asm volatile("bar.sync 0;" ::: "memory");
        asm volatile("bar.sync 0;" ::: "memory");
    }
    watch.stop(ticks);
}

// Barriers of groups of `a` warps each, one number a group (at most 15): four an iteration.
MICRO_KERNEL(named_barrier) {
    const u32 number = 1 + threadIdx.x / (32 * a), threads = 32 * a;
    Stopwatch watch;
    watch.start();
#pragma unroll 1
    for (int i = 0; i < iterations; ++i) {
        asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
        asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
        asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
        asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
    }
    watch.stop(ticks);
}

#if ARCH_AT_LEAST(900)
__device__ __forceinline__ void arrive(u32 barrier) {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}\n" ::"r"(barrier)
                 : "memory");
}

// Two groups of blockDim / 2 threads hand a stage to each other through mbarriers: an iteration is two hand-overs.
// One thread of a group arrives and all wait, as a producer and its consumers do.
MICRO_KERNEL(hand_over) {
    __shared__ u64 full, free_again;
    const u32 ready = shared_address(&full), done = shared_address(&free_again);
    if (threadIdx.x == 0) {
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(ready) : "memory");
        asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(done) : "memory");
    }
    const int half = blockDim.x / 2;
    const bool producer = threadIdx.x < half;
    const bool elected = threadIdx.x % half == 0;
    Stopwatch watch;
    watch.start();
#pragma unroll 1
    for (int i = 0; i < iterations; ++i) {
        if (producer) {
            if (elected) arrive(ready);
            wait_for(done, i & 1);
        } else {
            wait_for(ready, i & 1);
            if (elected) arrive(done);
        }
    }
    watch.stop(ticks);
}

// A barrier of all threads of a cluster of two blocks, four blocks: one an iteration.
#define CLUSTER_BARRIER(blocks)                                                                              \
    extern "C" __global__ void __cluster_dims__(blocks, 1, 1)                                                \
        cluster_barrier_##blocks(unsigned char* data, u64 bytes, u64* ticks, int iterations, int a, int b) { \
        Stopwatch watch;                                                                                     \
        watch.start();                                                                                       \
        _Pragma("unroll 1") for (int i = 0; i < iterations; ++i) {                                           \
            asm volatile("barrier.cluster.arrive.aligned;" ::: "memory");                                    \
            asm volatile("barrier.cluster.wait.aligned;" ::: "memory");                                      \
        }                                                                                                    \
        watch.stop(ticks);                                                                                   \
    }
CLUSTER_BARRIER(2)
CLUSTER_BARRIER(4)
#else
// Where pipelines are kept in step by block barriers: an asynchronous copy of 16 bytes a thread that has long
// arrived is waited for, then the block: one an iteration.
MICRO_KERNEL(hand_over) {
    Stopwatch watch;
    watch.start();
#pragma unroll 1
    for (int i = 0; i < iterations; ++i) {
        asm volatile("cp.async.wait_group 0;" ::: "memory");
        asm volatile("bar.sync 0;" ::: "memory");
    }
    watch.stop(ticks);
}
#endif

// fp32 additions in the L2: a warp adds to 128 consecutive bytes, the grid to all of the buffer in turn.
// `bytes`: a multiple of grid x threads x 4.
MICRO_KERNEL(atomic_global) {
    const u64 step = 4ull * gridDim.x * blockDim.x;
    const u64 first = 4ull * (blockIdx.x * (u64)blockDim.x + threadIdx.x);
    Stopwatch watch;
    watch.start();
    for (int pass = 0; pass < iterations; ++pass)
        for (u64 at = first; at < bytes; at += step)
            asm volatile("red.global.add.f32 [%0], %1;" ::"l"(data + at), "f"(1.0f) : "memory");
    watch.stop(ticks);
}

// All threads of the grid add to one address.
MICRO_KERNEL(atomic_one_address) {
    Stopwatch watch;
    watch.start();
    for (int pass = 0; pass < iterations; ++pass)
        asm volatile("red.global.add.u32 [%0], %1;" ::"l"(data), "r"(1u) : "memory");
    watch.stop(ticks);
}

// Additions in shared memory; `a` lanes of a warp share an address (1: none, 32: all).
MICRO_KERNEL(atomic_shared) {
    __shared__ u32 counters[1024];
    for (int i = threadIdx.x; i < 1024; i += blockDim.x) counters[i] = 0;
    const u32 lane = threadIdx.x & 31;
    const u32 at = shared_address(counters + ((threadIdx.x & ~31u) + lane / a) % 1024);
    Stopwatch watch;
    watch.start();
#pragma unroll 1
    for (int i = 0; i < iterations; ++i) {
        asm volatile("red.shared.add.u32 [%0], %1;" ::"r"(at), "r"(1u) : "memory");
        asm volatile("red.shared.add.u32 [%0], %1;" ::"r"(at), "r"(1u) : "memory");
    }
    watch.stop(ticks);
    keep(ticks, counters[a & 1023]);
}
