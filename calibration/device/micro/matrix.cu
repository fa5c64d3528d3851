// The warp-synchronous matrix instruction (mma.sync): rate from registers by type, latency, and a main loop with
// asynchronous copies and ldmatrix. All types but fp64 hold A in four registers of a thread and B in two.
#include "micro.cuh"

#define CHAINS 8
#define REPEATS 4
#define FMA_OPERANDS "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"

// One iteration: REPEATS x CHAINS instructions a warp, CHAINS of them independent (or one after another).
// `b`: 0 operands of zeros, else random ones.
#define MMA(name, chains, T, letter, instruction)                                                            \
    MICRO_KERNEL(name) {                                                                                     \
        T d[chains][4];                                                                                      \
        for (int i = 0; i < chains; ++i)                                                                     \
            for (int j = 0; j < 4; ++j) d[i][j] = 0;                                                         \
        u32 x[4], y[2];                                                                                      \
        for (int j = 0; j < 4; ++j) x[j] = b ? random_pair(threadIdx.x * 8 + j, b == 2) : 0u;                \
        for (int j = 0; j < 2; ++j) y[j] = b ? random_pair(threadIdx.x * 8 + 4 + j, b == 2) : 0u;            \
        Stopwatch watch;                                                                                     \
        watch.start();                                                                                       \
        _Pragma("unroll 1") for (int n = 0; n < iterations; ++n) {                                           \
            _Pragma("unroll") for (int r = 0; r < REPEATS * CHAINS / chains; ++r) {                          \
                _Pragma("unroll") for (int i = 0; i < chains; ++i) {                                         \
                    T* e = d[i];                                                                             \
                    asm volatile("mma.sync.aligned." instruction " " FMA_OPERANDS                            \
                                 : "+" letter(e[0]), "+" letter(e[1]), "+" letter(e[2]), "+" letter(e[3])    \
                                 : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));        \
                }                                                                                            \
            }                                                                                                \
        }                                                                                                    \
        for (int i = 0; i < chains; ++i) keep(ticks, d[i][0]);                                                      \
        watch.stop(ticks);                                                                                   \
    }

MMA(mma_bf16, CHAINS, float, "f", "m16n8k16.row.col.f32.bf16.bf16.f32")
MMA(mma_fp16, CHAINS, float, "f", "m16n8k16.row.col.f32.f16.f16.f32")
MMA(mma_tf32, CHAINS, float, "f", "m16n8k8.row.col.f32.tf32.tf32.f32")
MMA(mma_int8, CHAINS, u32, "r", "m16n8k32.row.col.s32.s8.s8.s32")
MMA(mma_latency_bf16, 1, float, "f", "m16n8k16.row.col.f32.bf16.bf16.f32")
#if ARCH_AT_LEAST(890)
MMA(mma_fp8, CHAINS, float, "f", "m16n8k32.row.col.f32.e4m3.e4m3.f32")
#endif
#if !ARCH_AT_LEAST(890)
MMA(mma_int4, CHAINS, u32, "r", "m16n8k64.row.col.s32.s4.s4.s32")
#endif

// fp64: m8n8k4 before compute capability 9.0 (256 multiply-adds), m16n8k8 since (1024).
MICRO_KERNEL(mma_fp64) {
    double d[CHAINS][4];
    for (int i = 0; i < CHAINS; ++i)
        for (int j = 0; j < 4; ++j) d[i][j] = 0.0;
    double x[4], y[2];
    for (int j = 0; j < 4; ++j) x[j] = b ? 1.0 + 1e-3 * (threadIdx.x + j) : 0.0;
    for (int j = 0; j < 2; ++j) y[j] = b ? 1.0 - 1e-3 * (threadIdx.x + j) : 0.0;
    Stopwatch watch;
    watch.start();
#pragma unroll 1
    for (int n = 0; n < iterations; ++n) {
#pragma unroll
        for (int r = 0; r < REPEATS; ++r) {
#pragma unroll
            for (int i = 0; i < CHAINS; ++i) {
                double* e = d[i];
#if ARCH_AT_LEAST(900)
                asm volatile(
                    "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                    "{%0,%1,%2,%3};"
                    : "+d"(e[0]), "+d"(e[1]), "+d"(e[2]), "+d"(e[3])
                    : "d"(x[0]), "d"(x[1]), "d"(x[2]), "d"(x[3]), "d"(y[0]), "d"(y[1]));
#else
                asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0,%1}, {%2}, {%3}, {%0,%1};"
                             : "+d"(e[0]), "+d"(e[1])
                             : "d"(x[0]), "d"(y[0]));
#endif
            }
        }
    }
    for (int i = 0; i < CHAINS; ++i) keep(ticks, d[i][0]);
    watch.stop(ticks);
}

// A main loop as kernels for warp-synchronous instructions have it: 256 threads, a tile of 128 x 128 x 32 in bf16,
// eight warps of 64 x 32, a ring of three stages filled by cp.async, fragments by ldmatrix, rows swizzled so that no
// two lanes meet in a bank. Of a stage's 16384 bytes the first half, A, is copied anew in every step; B stays as it
// was, so that the L2 is no limit. Two blocks a core, one of which works while the other is at its barrier.
// An iteration is a step: 2 x 128 x 128 x 32 FLOP a block. Dynamic shared memory: 3 x 16384 bytes. `bytes`: at least grid x 16384.
#define STAGES 3
#define STAGE_BYTES 16384

__device__ __forceinline__ void ldmatrix(u32* r, u32 at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

extern __shared__ __align__(128) unsigned char stages[];

__device__ __forceinline__ void copy_stage(const unsigned char* from, u32 to) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int at = 16 * threadIdx.x + 4096 * i;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to + at), "l"(from + at) : "memory");
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

extern "C" __global__ void __launch_bounds__(256, 2)
    mainloop_mma_bf16(unsigned char* data, u64 bytes, u64* ticks, int iterations, int a, int b) {
    const u32 pad = shared_address(stages);
    for (int i = threadIdx.x; i < STAGES * STAGE_BYTES / 4; i += 256)
        ((u32*)stages)[i] = b ? random_pair(i + 7919 * blockIdx.x, false) : 0u;
    const unsigned char* mine = data + (u64)blockIdx.x * STAGE_BYTES;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row_a = 64 * (warp / 4) + lane % 16, row_b = 32 * (warp % 4) + lane % 8 + 8 * (lane / 16);
    float d[4][4][4];
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j)
            for (int k = 0; k < 4; ++k) d[i][j][k] = 0.0f;
    Stopwatch watch;
    watch.start();
    for (int s = 0; s < STAGES - 1; ++s) copy_stage(mine, pad + s * STAGE_BYTES);
#pragma unroll 1
    for (int n = 0; n < iterations; ++n) {
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        copy_stage(mine, pad + (n + STAGES - 1) % STAGES * STAGE_BYTES);
        const u32 tile_a = pad + n % STAGES * STAGE_BYTES, tile_b = tile_a + STAGE_BYTES / 2;
#pragma unroll
        for (int k = 0; k < 2; ++k) {
            u32 x[4][4], y[2][4];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int row = row_a + 16 * i, chunk = 2 * k + lane / 16;
                ldmatrix(x[i], tile_a + row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4));
            }
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const int row = row_b + 16 * j, chunk = 2 * k + lane / 8 % 2;
                ldmatrix(y[j], tile_b + row * 64 + ((chunk ^ ((row >> 1) & 3)) << 4));
            }
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    float* e = d[i][j];
                    const u32* p = y[j / 2] + 2 * (j % 2);
                    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 " FMA_OPERANDS
                                 : "+f"(e[0]), "+f"(e[1]), "+f"(e[2]), "+f"(e[3])
                                 : "r"(x[i][0]), "r"(x[i][1]), "r"(x[i][2]), "r"(x[i][3]), "r"(p[0]), "r"(p[1]));
                }
        }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) keep(ticks, d[i][j][0]);
    watch.stop(ticks);
}
