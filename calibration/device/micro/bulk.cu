// Asynchronous copies from global to shared memory: one at a time (latency) and a ring of them (throughput).
// Dynamic shared memory: b x a bytes of stages, at most 32 of them.
#include "micro.cuh"

extern __shared__ __align__(128) unsigned char stages[];

// cp.async, 16 bytes a thread: a group of a bytes (a / 16 / blockDim copies a thread) is issued and waited for.
// Steps go through `bytes`, a multiple of grid x a; b stages are in flight.
MICRO_KERNEL(async_ring) {
    const u64 own = bytes / gridDim.x;
    const unsigned char* mine = data + blockIdx.x * own;
    const u32 pad = shared_address(stages) + 16 * threadIdx.x;
    const int span = 16 * blockDim.x;
    u64 from = 16 * threadIdx.x;
    Stopwatch watch;
    watch.start();
    for (int i = 0; i < iterations + b - 1; ++i) {
        if (i < iterations) {
            for (int at = 0; at < a; at += span)
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(pad + (i % b) * a + at),
                             "l"(mine + from + at)
                             : "memory");
            from = from + a < own ? from + a : 16 * threadIdx.x;
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        if (i >= b - 1) {
            // The oldest of b groups must have landed; the count is an immediate.
            switch (b) {
                case 1: asm volatile("cp.async.wait_group 0;" ::: "memory"); break;
                case 2: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
                case 4: asm volatile("cp.async.wait_group 3;" ::: "memory"); break;
                default: asm volatile("cp.async.wait_group 7;" ::: "memory"); break;  // 8
            }
            __syncthreads();
        }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    watch.stop(ticks);
}

#if ARCH_AT_LEAST(900)
__device__ __forceinline__ void bulk_copy(u32 to, const unsigned char* from, u32 size, u32 barrier) {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}\n" ::"r"(barrier),
                 "r"(size)
                 : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(size), "r"(barrier)
                 : "memory");
}

// Bulk copies of a bytes (a multiple of 16), b in flight, issued and waited for by one thread of a block.
// With b = 1 a step is the latency of a copy of a bytes.
MICRO_KERNEL(bulk_ring) {
    __shared__ u64 barriers[32];
    const u64 own = bytes / gridDim.x;
    const unsigned char* mine = data + blockIdx.x * own;
    if (threadIdx.x == 0) {
        for (int s = 0; s < b; ++s)
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barriers + s)) : "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    Stopwatch watch;
    watch.start();
    if (threadIdx.x == 0) {
        const u32 pad = shared_address(stages);
        u64 from = 0;
        for (int i = 0; i < b && i < iterations; ++i) {
            bulk_copy(pad + i * a, mine + from, a, shared_address(barriers + i));
            from = from + a < own ? from + a : 0;
        }
        int stage = 0;
        u32 parity = 0;
        for (int i = 0; i < iterations; ++i) {
            wait_for(shared_address(barriers + stage), parity);
            if (i + b < iterations) {
                bulk_copy(pad + stage * a, mine + from, a, shared_address(barriers + stage));
                from = from + a < own ? from + a : 0;
            }
            if (++stage == b) stage = 0, parity ^= 1;
        }
    }
    watch.stop(ticks);
}
#endif
