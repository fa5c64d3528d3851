// Rates and latencies of the arithmetic outside of the matrix engine. A thread has CHAINS independent chains and
// does one instruction of each in turn, so that neither latency nor order limits it; with 1024 threads a core the
// pipe does. One iteration: REPEATS x CHAINS instructions a thread.
#include "micro.cuh"

#define CHAINS 8
#define REPEATS 4

template <typename T>
__device__ __forceinline__ T seeded(int i);
template <>
__device__ __forceinline__ float seeded<float>(int i) {
    return 1.0f + 0.001f * (float)(threadIdx.x + i);
}
template <>
__device__ __forceinline__ double seeded<double>(int i) {
    return 1.0 + 0.001 * (double)(threadIdx.x + i);
}
template <>
__device__ __forceinline__ u32 seeded<u32>(int i) {
    return random_pair(threadIdx.x * CHAINS + i, true);
}

// `statement` advances x, which has the register constraint of T; y and z are two further operands.
#define RATE(name, T, statement)                                                                             \
    MICRO_KERNEL(rate_##name) {                                                                              \
        T chain[CHAINS];                                                                                     \
        for (int i = 0; i < CHAINS; ++i) chain[i] = seeded<T>(i);                                            \
        const T y = seeded<T>(a), z = seeded<T>(b);                                                          \
        Stopwatch watch;                                                                                     \
        watch.start();                                                                                       \
        _Pragma("unroll 1") for (int n = 0; n < iterations; ++n) {                                           \
            _Pragma("unroll") for (int r = 0; r < REPEATS; ++r) {                                            \
                _Pragma("unroll") for (int i = 0; i < CHAINS; ++i) {                                         \
                    T& x = chain[i];                                                                         \
                    statement;                                                                               \
                }                                                                                            \
            }                                                                                                \
        }                                                                                                    \
        for (int i = 0; i < CHAINS; ++i) keep(ticks, chain[i]);                                                     \
        keep(ticks, y);                                                                                             \
        keep(ticks, z);                                                                                             \
        watch.stop(ticks);                                                                                   \
    }

// Multiply-adds.
RATE(fma_f32, float, asm volatile("fma.rn.f32 %0, %0, %1, %2;" : "+f"(x) : "f"(y), "f"(z)))
RATE(fma_f64, double, asm volatile("fma.rn.f64 %0, %0, %1, %2;" : "+d"(x) : "d"(y), "d"(z)))
RATE(fma_f16x2, u32, asm volatile("fma.rn.f16x2 %0, %0, %1, %2;" : "+r"(x) : "r"(y), "r"(z)))
RATE(fma_bf16x2, u32, asm volatile("fma.rn.bf16x2 %0, %0, %1, %2;" : "+r"(x) : "r"(y), "r"(z)))
// Integers, comparisons, selections.
RATE(add3_s32, u32,
     asm volatile("{.reg .s32 p; add.s32 p, %0, %1; add.s32 %0, p, %2;}" : "+r"(x) : "r"(y), "r"(z)))
RATE(logic_b32, u32, asm volatile("lop3.b32 %0, %0, %1, %2, 0x6a;" : "+r"(x) : "r"(y), "r"(z)))
// (Maximum and minimum in turn: two maxima would become one instruction of three operands on 10.0.)
RATE(max_f32, float, if (r & 1) asm volatile("min.f32 %0, %0, %1;" : "+f"(x) : "f"(z));
     else asm volatile("max.f32 %0, %0, %1;" : "+f"(x) : "f"(y)))
RATE(mad_s32, u32, asm volatile("mad.lo.s32 %0, %0, %1, %2;" : "+r"(x) : "r"(y), "r"(z)))
// Special functions.
RATE(ex2_f32, float, asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(x)))
RATE(lg2_f32, float, asm volatile("lg2.approx.ftz.f32 %0, %0;" : "+f"(x)))
// (A reciprocal of a reciprocal is no work for an optimiser, so a bit is turned over in between.)
RATE(rcp_f32, float,
     asm volatile("{.reg .b32 p; rcp.approx.ftz.f32 %0, %0; mov.b32 p, %0; xor.b32 p, p, 1; mov.b32 %0, p;}" : "+f"(x)))
RATE(rsqrt_f32, float, asm volatile("rsqrt.approx.ftz.f32 %0, %0;" : "+f"(x)))
RATE(sin_f32, float, asm volatile("sin.approx.ftz.f32 %0, %0;" : "+f"(x)))
RATE(tanh_f32, float, asm volatile("tanh.approx.f32 %0, %0;" : "+f"(x)))
// Conversions: narrowing two fp32 in one instruction (each way of the result is used as the next operand).
RATE(f32_to_bf16x2, float,
     asm volatile("{.reg .b32 p; cvt.rn.bf16x2.f32 p, %0, %1; mov.b32 %0, p;}" : "+f"(x) : "f"(y)))
RATE(f32_to_f16x2, float,
     asm volatile("{.reg .b32 p; cvt.rn.f16x2.f32 p, %0, %1; mov.b32 %0, p;}" : "+f"(x) : "f"(y)))
#if ARCH_AT_LEAST(890)
// (Two conversions, whose halves are put together by the second.)
RATE(f32_to_e4m3x2, float,
     asm volatile("{.reg .b16 p, q; .reg .b32 r; cvt.rn.satfinite.e4m3x2.f32 p, %0, %1; cvt.rn.satfinite.e4m3x2.f32 q, "
                  "%1, %0; mov.b32 r, {p, q}; mov.b32 %0, r;}"
                  : "+f"(x)
                  : "f"(y)))
RATE(e4m3x2_to_f16x2, u32,
     asm volatile("{.reg .b16 p, q; mov.b32 {p, q}, %0; cvt.rn.f16x2.e4m3x2 %0, p;}" : "+r"(x)))
#endif
#if defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM103_ALL) || defined(__CUDA_ARCH_FEAT_SM120_ALL)
RATE(f32_to_e2m1x2, float,
     asm volatile("{.reg .b8 p; .reg .b32 q; cvt.rn.satfinite.e2m1x2.f32 p, %0, %1; cvt.u32.u8 q, p; mov.b32 %0, "
                  "q;}"
                  : "+f"(x)
                  : "f"(y)))
#endif

// Instructions of two pipes, one of each in turn: multiply-adds and logic. What the schedulers issue, not a pipe, is
// the limit. One iteration: 2 x REPEATS x CHAINS instructions a thread.
MICRO_KERNEL(rate_issue) {
    float f[CHAINS];
    u32 n[CHAINS];
    for (int i = 0; i < CHAINS; ++i) f[i] = seeded<float>(i);
    for (int i = 0; i < CHAINS; ++i) n[i] = seeded<u32>(i);
    const float y = seeded<float>(a), z = seeded<float>(b);
    const u32 m = seeded<u32>(a);
    Stopwatch watch;
    watch.start();
#pragma unroll 1
    for (int k = 0; k < iterations; ++k) {
#pragma unroll
        for (int r = 0; r < REPEATS; ++r) {
#pragma unroll
            for (int i = 0; i < CHAINS; ++i) {
                asm volatile("fma.rn.f32 %0, %0, %1, %2;" : "+f"(f[i]) : "f"(y), "f"(z));
                asm volatile("lop3.b32 %0, %0, %1, %2, 0x6a;" : "+r"(n[i]) : "r"(m), "r"(m));
            }
        }
    }
    for (int i = 0; i < CHAINS; ++i) keep(ticks, f[i]);
    for (int i = 0; i < CHAINS; ++i) keep(ticks, n[i]);
    watch.stop(ticks);
}

// One chain: the latency of a multiply-add. 32 instructions an iteration.
MICRO_KERNEL(latency_fma_f32) {
    float x = seeded<float>(0);
    const float y = seeded<float>(a), z = seeded<float>(b);
    Stopwatch watch;
    watch.start();
#pragma unroll 1
    for (int n = 0; n < iterations; ++n) {
#pragma unroll
        for (int r = 0; r < 32; ++r) asm volatile("fma.rn.f32 %0, %0, %1, %2;" : "+f"(x) : "f"(y), "f"(z));
    }
    keep(ticks, x);
    watch.stop(ticks);
}

// The softmax of an attention kernel between its two products, on ELEMENTS scores of a thread: new maximum,
// exponentials of the scaled differences, their sum, probabilities as bf16. Few warps run it (256 threads a core),
// with the dependent steps that such code has. Compilers may schedule it: it is plain C++ but for exp2 and the
// conversion. An iteration does ELEMENTS elements a thread.
#define ELEMENTS 64
MICRO_KERNEL(softmax_code) {
    float scores[ELEMENTS];
    for (int i = 0; i < ELEMENTS; ++i) scores[i] = (float)mixed(threadIdx.x * ELEMENTS + i) * 2.3e-10f;
    const float scale = 0.125f + 1e-6f * (float)b;
    float largest = -1e30f, sum = 0.0f;
    u32 pairs = 0;
    Stopwatch watch;
    watch.start();
#pragma unroll 1
    for (int n = 0; n < iterations; ++n) {
#pragma unroll
        for (int i = 0; i < ELEMENTS; ++i) asm volatile("" : "+f"(scores[i]));  // new scores, as a product leaves them
        float found = largest;
#pragma unroll
        for (int i = 0; i < ELEMENTS; ++i) found = fmaxf(found, scores[i]);
        found = fmaxf(found, __shfl_xor_sync(0xffffffffu, found, 1));
        found = fmaxf(found, __shfl_xor_sync(0xffffffffu, found, 2));
        const float shift = found * scale;
        float rescale;
        asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(rescale) : "f"(largest * scale - shift));
        float part = 0.0f;
#pragma unroll
        for (int i = 0; i < ELEMENTS; i += 2) {
            float p, q;
            u32 pair;
            asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(p) : "f"(scores[i] * scale - shift));
            asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(q) : "f"(scores[i + 1] * scale - shift));
            part += p;
            part += q;
            asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(q), "f"(p));
            pairs ^= pair;
        }
        sum = sum * rescale + part;
        largest = found;
    }
    keep(ticks, sum);
    keep(ticks, pairs);
    watch.stop(ticks);
}
