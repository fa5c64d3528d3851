// Latency: chains in which every load's address is the value of the one before.
#include "micro.cuh"

// One of the permutations of 0 .. 2^bits - 1: odd multiplications and shifted exclusive ors are bijections.
__device__ __forceinline__ u64 permuted(u64 k, int bits) {
    const u64 mask = (1ull << bits) - 1;
    const int half = (bits + 1) / 2;
    k = (k * 0x9e3779b97f4a7c15ull) & mask;
    k ^= k >> half;
    k = (k * 0xd1342543de82ef95ull) & mask;
    k ^= k >> half;
    k = (k * 0xaf251af3b0f025b5ull) & mask;
    return k ^ (k >> half);
}

// Writes one closed chain of addresses through 2^a places that are b bytes apart, in an order that no prefetcher foresees.
MICRO_KERNEL(fill_chain) {
    const u64 places = 1ull << a;
    const u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 k = blockIdx.x * (u64)blockDim.x + threadIdx.x; k < places; k += step)
        *(u64*)(data + permuted(k, a) * b) = (u64)(data + permuted((k + 1) & (places - 1), a) * b);
}

// Goes along the chain, one thread a block, each block from another place of it on. `b` as in fill_chain;
// `a` > 0: steps taken before the clock starts, which bring what is walked into the cache.
#define CHASE(name, cache)                                                                                   \
    MICRO_KERNEL(name) {                                                                                     \
        const u64 places = bytes / (u64)b;                                                                   \
        const u64 begin = (u64)data + places * blockIdx.x / gridDim.x * (u64)b;                              \
        u64 at = begin;                                                                                      \
        for (int i = 0; i < a; ++i)                                                                          \
            asm volatile("ld.global." cache ".u64 %0, [%1];" : "=l"(at) : "l"(at)        : "memory");        \
        if (a > 0) at = at == ~0ull ? at : begin; /* what was walked is walked again */                      \
        Stopwatch watch;                                                                                     \
        watch.start();                                                                                       \
        for (int i = 0; i < iterations; i += 4) {                                                            \
            asm volatile("ld.global." cache ".u64 %0, [%1];" : "=l"(at) : "l"(at)        : "memory");        \
            asm volatile("ld.global." cache ".u64 %0, [%1];" : "=l"(at) : "l"(at)        : "memory");        \
            asm volatile("ld.global." cache ".u64 %0, [%1];" : "=l"(at) : "l"(at)        : "memory");        \
            asm volatile("ld.global." cache ".u64 %0, [%1];" : "=l"(at) : "l"(at)        : "memory");        \
        }                                                                                                    \
        keep(ticks, at);                                                                                            \
        watch.stop(ticks);                                                                                   \
    }

CHASE(chase_l2, "cg")
CHASE(chase_l1, "ca")

// The same in shared memory: 1024 places of four bytes, walked by one thread.
MICRO_KERNEL(chase_shared) {
    __shared__ u32 chain[1024];
    for (u32 k = threadIdx.x; k < 1024; k += blockDim.x)
        chain[permuted(k, 10)] = shared_address(chain) + 4 * (u32)permuted((k + 1) & 1023, 10);
    u32 at = shared_address(chain);
    Stopwatch watch;
    watch.start();
    for (int i = 0; i < iterations; i += 4) {
#pragma unroll
        for (int j = 0; j < 4; ++j) asm volatile("ld.volatile.shared.u32 %0, [%0];" : "+r"(at)::"memory");
    }
    keep(ticks, at);
    watch.stop(ticks);
}
