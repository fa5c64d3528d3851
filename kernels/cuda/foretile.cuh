// What all kernels share: element types and their conversions, loads of eight elements, block reductions.
//
// Compiles with nvcc, with NVRTC (no host headers are needed) and, for the tests, with a host compiler and
// a header that stands for the device (FORETILE_HOST). Rounding is to nearest even throughout; fp8 saturates.
#pragma once

#ifdef FORETILE_HOST
#include "host_device.hpp"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#if __has_include(<cuda_fp4.h>)
#include <cuda_fp4.h>  // since CUDA 12.8
#define HAS_FP4_HEADER
#endif

using Half = __half;
using Bf16 = __nv_bfloat16;
using Fp8 = __nv_fp8_e4m3;
using Int8 = signed char;

#define DEVICE __device__ __forceinline__

// Result types that a launch chooses by number (foretile.kernels.cuda.registry.OUT_TYPES).
enum OutType { OUT_FP32 = 0, OUT_FP16 = 1, OUT_BF16 = 2, OUT_FP8 = 3, OUT_INT32 = 4 };

constexpr float FP8_MAX = 448.0f;        // largest finite e4m3
constexpr float FP4_MAX = 6.0f;          // largest e2m1
constexpr float ABSMAX_FLOOR = 1e-4f;    // least absolute maximum that a scale is made of

DEVICE float infinity() { return __int_as_float(0x7f800000); }

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(int x) { return static_cast<float>(x); }
DEVICE float to_float(Half x) { return __half2float(x); }
DEVICE float to_float(Bf16 x) { return __bfloat162float(x); }
DEVICE float to_float(Int8 x) { return static_cast<float>(x); }

template <class T> DEVICE T from_float(float x);
template <> DEVICE float from_float<float>(float x) { return x; }
template <> DEVICE Half from_float<Half>(float x) { return __float2half_rn(x); }
template <> DEVICE Bf16 from_float<Bf16>(float x) { return __float2bfloat16_rn(x); }
template <> DEVICE Fp8 from_float<Fp8>(float x) { return Fp8(x); }  // saturates to ±448
template <> DEVICE int from_float<int>(float x) { return static_cast<int>(x); }

// An element of another type; of equal ones no conversion, so that nothing changes (NaN payloads, int8).
template <class T, class S> struct Convert {
    static DEVICE T of(S x) { return from_float<T>(to_float(x)); }
};
template <class T> struct Convert<T, T> {
    static DEVICE T of(T x) { return x; }
};

// e4m3 as fp16, exactly, for chips without an instruction for it: the bits in fp16's places mean a number
// 2^8 too small, subnormal or not; all ones are NaN.
DEVICE Half fp8_by_bits(unsigned char bits) {
    const unsigned magnitude = bits & 0x7fu;
    __half_raw raw;
    raw.x = static_cast<unsigned short>((bits & 0x80u) << 8 | (magnitude == 0x7fu ? 0x7fffu : magnitude << 7));
    return __hmul(Half(raw), __float2half_rn(256.0f));
}
template <> struct Convert<Half, Fp8> {
    static DEVICE Half of(Fp8 x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 890
        return fp8_by_bits(x.__x);
#else
        return Half(__nv_cvt_fp8_to_halfraw(x.__x, __NV_E4M3));
#endif
    }
};
DEVICE float to_float(Fp8 x) { return __half2float(Convert<Half, Fp8>::of(x)); }
template <class T, class S> DEVICE T convert(S x) { return Convert<T, S>::of(x); }
template <class T> DEVICE T zero() { return convert<T>(0.0f); }
template <> DEVICE Int8 zero<Int8>() { return 0; }
template <> DEVICE Fp8 zero<Fp8>() {
    Fp8 x;
    x.__x = 0;
    return x;
}

// The value of a packed e2m1 number, and the number (of four bits) nearest to a value, ties to even: by their
// bits, for toolkits that do not know the type.
DEVICE float fp4_value_by_bits(unsigned nibble) {
    const unsigned m = nibble & 7u;
    const float magnitude = m < 4 ? 0.5f * m : m == 7 ? 6.0f : m - 2.0f;
    return nibble & 8u ? -magnitude : magnitude;
}
DEVICE unsigned fp4_number_by_bits(float x) {
    const float a = fabsf(x);
    const unsigned m = (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) + (a >= 3.5f) + (a > 5.0f);
    return m | (__float_as_int(x) < 0 ? 8u : 0u);
}
#ifdef HAS_FP4_HEADER
DEVICE float fp4_value(unsigned nibble) {
    return __half2float(Half(__nv_cvt_fp4_to_halfraw(static_cast<__nv_fp4_storage_t>(nibble & 15u), __NV_E2M1)));
}
DEVICE unsigned fp4_number(float x) {
    return __nv_cvt_float_to_fp4(fminf(fmaxf(x, -FP4_MAX), FP4_MAX), __NV_E2M1, cudaRoundNearest) & 15u;
}
#else
DEVICE float fp4_value(unsigned nibble) { return fp4_value_by_bits(nibble); }
DEVICE unsigned fp4_number(float x) { return fp4_number_by_bits(x); }
#endif

// 2^(exponent - 127): a scale in e8m0.
DEVICE float e8m0_value(unsigned char exponent) {
    return exponent == 0 ? __int_as_float(0x00400000) : __int_as_float(static_cast<int>(exponent) << 23);
}

// An element of ``out`` at ``index`` in the type that the launch chose. Called, not inlined: tiles store 32 times.
static __device__ __noinline__ void store_as(void* out, long long index, float value, int type) {
    switch (type) {
        case OUT_FP32: static_cast<float*>(out)[index] = value; break;
        case OUT_FP16: static_cast<Half*>(out)[index] = from_float<Half>(value); break;
        case OUT_BF16: static_cast<Bf16*>(out)[index] = from_float<Bf16>(value); break;
        case OUT_FP8: static_cast<Fp8*>(out)[index] = from_float<Fp8>(value); break;
        default: static_cast<int*>(out)[index] = static_cast<int>(value); break;
    }
}
DEVICE void store_as(void* out, long long index, int value, int type) {
    if (type == OUT_INT32) {
        static_cast<int*>(out)[index] = value;
    } else {
        store_as(out, index, static_cast<float>(value), type);
    }
}

// N elements that are loaded and stored as one access where their address allows.
template <class T, int N> struct __align__(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
    T v[N];
};

template <class T, int N> DEVICE bool aligned(const T* p) {
    return reinterpret_cast<size_t>(p) % alignof(Pack<T, N>) == 0;
}

// Eight elements from ``p``, converted; those from ``count`` on are zero and not read.
template <class T, class S> DEVICE void load8(const S* p, int count, T out[8]) {
    Pack<S, 8> pack;
    if (count >= 8 && aligned<S, 8>(p)) {
        pack = *reinterpret_cast<const Pack<S, 8>*>(p);
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) pack.v[i] = i < count ? p[i] : zero<S>();
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) out[i] = convert<T>(pack.v[i]);
}

// The first ``count`` of eight values to ``p``.
template <class S> DEVICE void store8(S* p, int count, const float in[8]) {
    Pack<S, 8> pack;
#pragma unroll
    for (int i = 0; i < 8; ++i) pack.v[i] = from_float<S>(in[i]);
    if (count >= 8 && aligned<S, 8>(p)) {
        *reinterpret_cast<Pack<S, 8>*>(p) = pack;
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i)
            if (i < count) p[i] = pack.v[i];
    }
}

// f(first column, eight values, how many of them exist) for the block's share of a row.
template <class T, class F> DEVICE void each_eight(const T* row, int cols, F f) {
    for (int col = threadIdx.x * 8; col < cols; col += blockDim.x * 8) {
        float x[8];
        const int count = min(8, cols - col);
        load8(row + col, count, x);
        f(col, x, count);
    }
}

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int MAX_WARPS = 32;

struct Sum { template <class T> DEVICE T operator()(T a, T b) const { return a + b; } };
struct Max { template <class T> DEVICE T operator()(T a, T b) const { return a > b ? a : b; } };
struct Min { template <class T> DEVICE T operator()(T a, T b) const { return a < b ? a : b; } };

template <class T, class Op> DEVICE T warp_reduce(T value, Op op) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) value = op(value, __shfl_xor_sync(ALL_LANES, value, step));
    return value;
}

// ``op`` over the values of all threads of the block, in a fixed order; every thread gets the result.
template <class T, class Op> DEVICE T block_reduce(T value, Op op, T identity) {
    __shared__ T partial[MAX_WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
    value = warp_reduce(value, op);
    __syncthreads();  // nobody still reads what an earlier call left
    if (lane == 0) partial[warp] = value;
    __syncthreads();
    return warp_reduce(lane < warps ? partial[lane] : identity, op);
}

// The sum over the threads before this one; ``total`` becomes that over all.
template <class T> DEVICE T block_exclusive_sum(T value, T& total) {
    __shared__ T partial[MAX_WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
    T inclusive = value;
#pragma unroll
    for (int step = 1; step < 32; step <<= 1) {
        const T before = __shfl_up_sync(ALL_LANES, inclusive, step);
        if (lane >= step) inclusive += before;
    }
    __syncthreads();
    if (lane == 31) partial[warp] = inclusive;
    __syncthreads();
    T offset = T(0);
    total = T(0);
    for (int w = 0; w < warps; ++w) {
        if (w == warp) offset = total;
        total += partial[w];
    }
    return offset + inclusive - value;
}

// The scale of a group with this absolute maximum; ``power`` rounds it up to a power of two.
DEVICE float scale_of(float absmax, bool power) {
    const float quotient = fmaxf(absmax, ABSMAX_FLOOR) / FP8_MAX;
    if (!power) return quotient;
    const int bits = __float_as_int(quotient);  // positive and normal: exponent, and one more if a bit is set
    return __int_as_float(((bits >> 23) + ((bits & 0x7fffff) != 0)) << 23);
}

DEVICE Fp8 quantised(float x, float scale) {
    return from_float<Fp8>(fminf(fmaxf(x / scale, -FP8_MAX), FP8_MAX));
}
