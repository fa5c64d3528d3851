// What every microbenchmark shares. No header is included, so that any CUDA compiler takes the files as they are.
//
// All kernels have one signature (MICRO_KERNEL): a buffer of `bytes` bytes, four 64-bit ticks a block, the number
// of iterations of the timed loop, and two numbers whose meaning the kernel says. A block writes
//   ticks[4 * block] = {SM clock at the start, SM clock at the end, nanoseconds at the start, nanoseconds at the end}
// of its timed loop. The host's events time the launch as a whole.
//
// Timed instructions are `asm volatile`, which the front end neither removes nor moves across another; their results
// end in keep(), so that the assembler does not remove them either.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;

#define MICRO_KERNEL(name)                                                                                   \
    extern "C" __global__ void name(unsigned char* __restrict__ data, u64 bytes, u64* __restrict__ ticks,    \
                                    int iterations, int a, int b)

__device__ __forceinline__ u64 clock_now() {
    u64 t;
    asm volatile("mov.u64 %0, %%clock64;" : "=l"(t)::"memory");
    return t;
}

__device__ __forceinline__ u64 nanoseconds_now() {
    u64 t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)::"memory");
    return t;
}

// Makes `x` count: it would be stored if this SM had a number that none has. Neither compiler can know, so what `x`
// was computed from is not dead. (An empty asm statement is not enough: it leaves no trace in the PTX, and ptxas
// removes whatever feeds it, matrix instructions included.)
template <typename T>
__device__ __forceinline__ void keep(u64* ticks, T x) {
    u32 sm;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
    if (sm == ~0u) *(volatile T*)ticks = x;
}

// Start and end of the timed part of a block: all its threads have arrived at both.
struct Stopwatch {
    u64 clock, nanoseconds;
    __device__ __forceinline__ void start() {
        __syncthreads();
        nanoseconds = nanoseconds_now();
        clock = clock_now();
    }
    __device__ __forceinline__ void stop(u64* ticks) {
        __syncthreads();
        const u64 clock_end = clock_now();
        const u64 nanoseconds_end = nanoseconds_now();
        if (threadIdx.x == 0) {
            u64* mine = ticks + 4ull * blockIdx.x;
            mine[0] = clock;
            mine[1] = clock_end;
            mine[2] = nanoseconds;
            mine[3] = nanoseconds_end;
        }
    }
};

// A well-mixed 32-bit number of `x` (the finaliser of MurmurHash3, public domain).
__device__ __forceinline__ u32 mixed(u32 x) {
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    x *= 0xc2b2ae35u;
    return x ^ (x >> 16);
}

// Two random 16-bit floats (bfloat16 or half) of magnitude 2^-7 to 1, either sign: operands that switch as many
// bits as a network's do. The exponents of the two formats differ; `half` says which is meant.
__device__ __forceinline__ u32 random_pair(u32 seed, bool half) {
    const u32 r = mixed(seed);
    const u32 keep_bits = half ? 0x9fff9fffu : 0x83ff83ffu;  // sign and the low exponent and mantissa bits
    const u32 base = half ? 0x20002000u : 0x3c003c00u;
    return (r & keep_bits) | base;
}

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

#define ARCH_AT_LEAST(n) (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= (n))
#define PATIENCE_NS 2000000000ull

#if ARCH_AT_LEAST(900)
// Waits until the mbarrier's phase of this parity is over. What never comes ends the kernel with an error after two
// seconds, instead of holding the device for ever; the clock is looked at only after a wait in vain.
__device__ __forceinline__ void wait_for(u32 barrier, u32 parity) {
    u64 since = 0;
    while (true) {
        u32 done;
        asm volatile(
            "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
        if (done) return;
        const u64 now = nanoseconds_now();
        if (since == 0) since = now;
        if (now - since > PATIENCE_NS) __trap();
    }
}
#endif
