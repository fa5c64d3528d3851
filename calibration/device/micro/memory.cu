// Global memory: reads, writes and copies with a chosen number of bytes in flight. Over gigabytes they show DRAM,
// over a buffer that fits the L2, and run several times, the L2.
//
// A thread issues UNROLL independent accesses of 16 bytes before it waits for the first: a core has
//   blocks a core x threads x UNROLL x 16 bytes in flight.
// `bytes` must be a multiple of grid x threads x UNROLL x 16; `iterations`: times the buffer is gone through.
#include "micro.cuh"

struct Quad {
    u32 x, y, z, w;
};

__device__ __forceinline__ Quad load_cached_in_l2(const unsigned char* p) {
    Quad q;
    asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(q.x), "=r"(q.y), "=r"(q.z), "=r"(q.w)
                 : "l"(p)
                 : "memory");
    return q;
}

__device__ __forceinline__ Quad load_cached_in_l1(const unsigned char* p) {
    Quad q;
    asm volatile("ld.global.ca.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(q.x), "=r"(q.y), "=r"(q.z), "=r"(q.w)
                 : "l"(p)
                 : "memory");
    return q;
}

__device__ __forceinline__ void store(unsigned char* p, Quad q) {
    asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(p), "r"(q.x), "r"(q.y), "r"(q.z), "r"(q.w)
                 : "memory");
}

template <int UNROLL>
__device__ __forceinline__ void read_all(unsigned char* data, u64 bytes, u64* ticks, int iterations) {
    const u64 stride = 16ull * gridDim.x * blockDim.x;
    const u64 first = 16ull * (blockIdx.x * (u64)blockDim.x + threadIdx.x);
    u32 seen = 0;
    Stopwatch watch;
    watch.start();
    for (int pass = 0; pass < iterations; ++pass) {
        for (u64 at = first; at < bytes; at += UNROLL * stride) {
            Quad q[UNROLL];
#pragma unroll
            for (int i = 0; i < UNROLL; ++i) q[i] = load_cached_in_l2(data + at + i * stride);
#pragma unroll
            for (int i = 0; i < UNROLL; ++i) seen ^= q[i].x ^ q[i].y ^ q[i].z ^ q[i].w;
        }
    }
    keep(ticks, seen);
    watch.stop(ticks);
}

template <int UNROLL>
__device__ __forceinline__ void write_all(unsigned char* data, u64 bytes, u64* ticks, int iterations) {
    const u64 stride = 16ull * gridDim.x * blockDim.x;
    const u64 first = 16ull * (blockIdx.x * (u64)blockDim.x + threadIdx.x);
    Stopwatch watch;
    watch.start();
    for (int pass = 0; pass < iterations; ++pass) {
        const Quad q = {mixed(threadIdx.x), mixed(blockIdx.x), (u32)pass, 3u};  // equal bytes might be compressed
        for (u64 at = first; at < bytes; at += UNROLL * stride) {
#pragma unroll
            for (int i = 0; i < UNROLL; ++i) store(data + at + i * stride, q);
        }
    }
    watch.stop(ticks);
}

// The first half of the buffer to the second: `bytes` counts both.
template <int UNROLL>
__device__ __forceinline__ void copy_all(unsigned char* data, u64 bytes, u64* ticks, int iterations) {
    const u64 half = bytes / 2;
    const u64 stride = 16ull * gridDim.x * blockDim.x;
    const u64 first = 16ull * (blockIdx.x * (u64)blockDim.x + threadIdx.x);
    Stopwatch watch;
    watch.start();
    for (int pass = 0; pass < iterations; ++pass) {
        for (u64 at = first; at < half; at += UNROLL * stride) {
            Quad q[UNROLL];
#pragma unroll
            for (int i = 0; i < UNROLL; ++i) q[i] = load_cached_in_l2(data + at + i * stride);
#pragma unroll
            for (int i = 0; i < UNROLL; ++i) store(data + half + at + i * stride, q[i]);
        }
    }
    watch.stop(ticks);
}

#define STREAMS(unroll)                                                                                      \
    MICRO_KERNEL(read_##unroll) { read_all<unroll>(data, bytes, ticks, iterations); }                        \
    MICRO_KERNEL(write_##unroll) { write_all<unroll>(data, bytes, ticks, iterations); }                      \
    MICRO_KERNEL(copy_##unroll) { copy_all<unroll>(data, bytes, ticks, iterations); }

STREAMS(1)
STREAMS(2)
STREAMS(4)
STREAMS(8)

// Every block reads the whole buffer, each from a place of its own on: where parts of an L2 keep copies of what
// their cores read, it fits only while it fits each part. `bytes`: a multiple of threads x 64.
MICRO_KERNEL(read_by_all) {
    const u64 step = 16ull * blockDim.x;
    const u64 steps = bytes / step;
    const u64 start = steps * blockIdx.x / gridDim.x;
    u32 seen = 0;
    Stopwatch watch;
    watch.start();
    for (int pass = 0; pass < iterations; ++pass) {
        for (u64 i = 0; i < steps; i += 4) {
            Quad q[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                u64 at = start + i + j;
                at = at < steps ? at : at - steps;
                q[j] = load_cached_in_l2(data + at * step + 16 * threadIdx.x);
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) seen ^= q[j].x ^ q[j].y ^ q[j].z ^ q[j].w;
        }
    }
    keep(ticks, seen);
    watch.stop(ticks);
}

// Every block reads `a` bytes of its own (a multiple of threads x 64) again and again, through the L1.
MICRO_KERNEL(read_in_l1) {
    const unsigned char* mine = data + (u64)blockIdx.x * a + 16 * threadIdx.x;
    const int step = 16 * blockDim.x;
    u32 seen = 0;
    for (int at = 0; at < a; at += step) seen ^= load_cached_in_l1(mine + at).x;
    Stopwatch watch;
    watch.start();
    for (int pass = 0; pass < iterations; ++pass) {
        for (int at = 0; at < a; at += 4 * step) {
            Quad q[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) q[i] = load_cached_in_l1(mine + at + i * step);
#pragma unroll
            for (int i = 0; i < 4; ++i) seen ^= q[i].x ^ q[i].y ^ q[i].z ^ q[i].w;
        }
    }
    keep(ticks, seen);
    watch.stop(ticks);
}
