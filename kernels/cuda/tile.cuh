// A block's tile of a matrix product: 64 × 64 results, four warps of 32 × 32 each, staged through shared memory.
//
// Operands come through *views*, of which one is asked for eight elements along its inner (contiguous)
// dimension: that is where types are widened, scales applied and rows gathered. Out of bounds they give zero.
#pragma once
#include "mma.cuh"

constexpr int TILE = 64;                     // rows and columns of a block's tile
constexpr int TILE_THREADS = 128;
constexpr int DEPTH_BYTES = 64;              // of a row of a staged tile
constexpr int STRIDE_WORDS = DEPTH_BYTES / 4 + 4;  // rows are padded, so that eight of them meet no bank twice
template <class T> constexpr int DEPTH = DEPTH_BYTES / static_cast<int>(sizeof(T));

// A dense row-major matrix (outer, inner) of S, given as T.
template <class T, class S> struct Dense {
    const S* data;
    long long outer, inner, stride;
    DEVICE void eight(long long row, long long first, T out[8]) const {
        const long long left = row < outer && first < inner ? inner - first : 0;
        load8(data + row * stride + first, static_cast<int>(left < 8 ? left : 8), out);
    }
};

// e2m1 numbers, two a byte, times e4m3 scales of 16 along a row: at most five significant bits, exact in T.
template <class T> struct Nvfp4 {
    const unsigned char* data;
    const Fp8* scales;
    long long outer, inner;  // inner is even
    DEVICE void eight(long long row, long long first, T out[8]) const {
        const bool inside = row < outer && first < inner;
        const long long groups = (inner + 15) / 16;
        const float scale = inside ? to_float(scales[row * groups + first / 16]) : 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const bool there = inside && first + i < inner;
            const unsigned byte = there ? data[(row * inner + first + i) / 2] : 0;
            out[i] = from_float<T>(there ? fp4_value(byte >> (i % 2 * 4)) * scale : 0.0f);
        }
    }
};

// Four-bit weights (int4 or e2m1) times a scale of their type T a row and group; the product is rounded to T.
template <class T> struct Dequantised {
    const unsigned char* data;
    const T* scales;
    long long outer, inner;
    int group, is_int;
    DEVICE void eight(long long row, long long first, T out[8]) const {
        const long long groups = (inner + group - 1) / group;
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const long long k = first + i;
            float value = 0.0f;
            if (row < outer && k < inner) {
                const long long at = row * inner + k;
                const unsigned nibble = data[at / 2] >> (at % 2 * 4) & 15u;
                value = is_int ? static_cast<float>(static_cast<int>(nibble ^ 8u) - 8) : fp4_value(nibble);
                value *= to_float(scales[row * groups + k / group]);
            }
            out[i] = from_float<T>(value);
        }
    }
};

// An NHWC image as the matrix (result pixels, taps) of a convolution; taps on the padding are zero.
template <class T> struct Unfolded {
    const T* data;
    long long pixels, depth;
    int height, width, channels, kernel, stride, padding, out_height, out_width;
    DEVICE void eight(long long pixel, long long first, T out[8]) const {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            const long long k = first + i;
            out[i] = zero<T>();
            if (pixel >= pixels || k >= depth) continue;
            const long long image = pixel / (out_height * out_width);
            const int at = static_cast<int>(pixel % (out_height * out_width)), tap = static_cast<int>(k / channels);
            const int row = at / out_width * stride + tap / kernel - padding;
            const int column = at % out_width * stride + tap % kernel - padding;
            if (row >= 0 && row < height && column >= 0 && column < width)
                out[i] = data[((image * height + row) * width + column) * channels + k % channels];
        }
    }
};

// 64 rows of an operand, from row ``row0`` and depth ``k0``, to shared memory as (row, depth); what is at or
// behind ``k_end`` is zero. ``across`` says that the view's outer dimension is the depth.
template <class T, class View>
DEVICE void stage(unsigned* shared, const View& view, bool across, long long row0, long long k0, long long k_end) {
    T* tile = reinterpret_cast<T*>(shared);
    constexpr int stride = STRIDE_WORDS * 4 / static_cast<int>(sizeof(T));
    constexpr int chunks = TILE * DEPTH<T> / 8;
#pragma unroll 1
    for (int c = threadIdx.x; c < chunks; c += TILE_THREADS) {
        T x[8];
        if (across) {
            const int k = c / (TILE / 8), row = c % (TILE / 8) * 8;
            view.eight(k0 + k, row0 + row, x);
#pragma unroll
            for (int i = 0; i < 8; ++i) tile[(row + i) * stride + k] = k0 + k < k_end ? x[i] : zero<T>();
        } else {
            const int row = c / (DEPTH<T> / 8), k = c % (DEPTH<T> / 8) * 8;
            view.eight(row0 + row, k0 + k, x);
#pragma unroll
            for (int i = 0; i < 8; ++i) tile[row * stride + k + i] = k0 + k + i < k_end ? x[i] : zero<T>();
        }
    }
}

// A thread's share of a tile: sums[i][j] are the four of mma.cuh's fragment at rows 16 i, columns 8 j of its warp.
template <class Acc> struct Tile {
    Acc sums[2][4][4];
    DEVICE void clear() {
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) sums[i][j][e] = 0;
    }
    // f(row, column, sum) for the thread's results; row and column are within the tile.
    template <class F> DEVICE void each(F f) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int row = warp / 2 * 32 + lane / 4, column = warp % 2 * 32 + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    f(row + 16 * i + 8 * (e / 2), column + 8 * j + e % 2, sums[i][j][e]);
    }
};

// tile += A[m0 …, k0 … k_end) · B[n0 …, k0 … k_end)ᵀ.
template <class T, class ViewA, class ViewB>
DEVICE void multiply(Tile<typename Accumulator<T>::Type>& tile, const ViewA& A, bool a_across, const ViewB& B,
                     bool b_across, long long m0, long long n0, long long k0, long long k_end) {
    __shared__ __align__(16) unsigned a_shared[TILE * STRIDE_WORDS];
    __shared__ __align__(16) unsigned b_shared[TILE * STRIDE_WORDS];
    const int warp = threadIdx.x / 32;
    const unsigned* a_rows = a_shared + warp / 2 * 32 * STRIDE_WORDS;
    const unsigned* b_rows = b_shared + warp % 2 * 32 * STRIDE_WORDS;
    for (long long k = k0; k < k_end; k += DEPTH<T>) {
        __syncthreads();  // the tiles of the step before have been read
        stage<T>(a_shared, A, a_across, m0, k, k_end);
        stage<T>(b_shared, B, b_across, n0, k, k_end);
        __syncthreads();
#pragma unroll
        for (int word = 0; word < DEPTH_BYTES / 4; word += 8) {
            unsigned a[2][4], b[4][2];
#pragma unroll
            for (int i = 0; i < 2; ++i) load_a(a[i], a_rows + 16 * i * STRIDE_WORDS + word, STRIDE_WORDS);
#pragma unroll
            for (int j = 0; j < 4; ++j) load_b(b[j], b_rows + 8 * j * STRIDE_WORDS + word, STRIDE_WORDS);
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) mma<T>(tile.sums[i][j], a[i], b[j]);
        }
    }
}

constexpr int BLOCK = 128;  // elements of the depth, and rows of B, that share an fp8 scale

// total += Σ over blocks of 128 of the depth of a_scale(row, block) · b_scale(block) · partial product
// (two-level accumulation: every partial product is a float32 sum of its own).
template <class T, class ViewA, class ViewB, class ScaleA, class ScaleB>
DEVICE void multiply_by_blocks(Tile<float>& total, const ViewA& A, const ViewB& B, ScaleA a_scale, ScaleB b_scale,
                               long long m0, long long n0, long long depth) {
    for (long long block = 0; block * BLOCK < depth; ++block) {
        Tile<float> part;
        part.clear();
        const long long end = (block + 1) * BLOCK;
        multiply<T>(part, A, false, B, false, m0, n0, block * BLOCK, end < depth ? end : depth);
#pragma unroll
        for (int i = 0; i < 2; ++i)
#pragma unroll
            for (int j = 0; j < 4; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
                    const int row = warp / 2 * 32 + lane / 4 + 16 * i + 8 * (e / 2);
                    const int column = warp % 2 * 32 + lane % 4 * 2 + 8 * j + e % 2;
                    total.sums[i][j][e] +=
                        part.sums[i][j][e] * (a_scale(m0 + row, block) * b_scale(n0 + column, block));
                }
    }
}
