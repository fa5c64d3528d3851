// Attention of a block's rows over its keys, 64 at a time (FlashAttention-2's online softmax, in base two).
//
// Four warps: scores are theirs by keys, the softmax by rows, results by columns; scores and weights meet in
// shared memory. Scores, maxima, sums and results are float32; weights are rounded to T for the second product,
// while their sum is that of unrounded ones, as in the tile programs. A row that sees no key gives zeros.
//
// A problem says what the rows and keys are:
//   query(row, col, out[8]), key(index, col, out[8]), value(index, col, out[8]): eight elements of T, zero
//   outside; visible(row, index): whether a row sees a key; write(row, col, float): a result.
#pragma once
#include "mma.cuh"

constexpr int KEYS = 64;           // of a step
constexpr int FLASH_THREADS = 128;
constexpr float LOWEST = -1e30f;   // start of a running maximum: below every score, yet finite
constexpr float LEAST_SUM = 1e-30f;  // below the sum of any row that sees a key: its largest weight is 1
constexpr float LOG2E = 1.4426950408889634f;

template <class T, int ROWS, int QK, int V, bool SAME_TILE> struct Flash {
    static constexpr int QK_STRIDE = QK + 8, V_STRIDE = (SAME_TILE ? QK : V) + 8, P_STRIDE = KEYS + 8, S_STRIDE = KEYS + 4;
    static constexpr int M_TILES = ROWS / 16, N_TILES = V / 32;
    static_assert(ROWS % 16 == 0 && QK % 16 == 0 && V % 32 == 0, "whole matrix instructions");

    // Bytes of dynamic shared memory (foretile.kernels.cuda.launch_attention computes the same).
    static constexpr int SHARED = 2 * (ROWS * QK_STRIDE + KEYS * QK_STRIDE + (SAME_TILE ? 0 : KEYS * V_STRIDE) + ROWS * P_STRIDE) +
                                  4 * (ROWS * S_STRIDE + 3 * ROWS);

    template <class F> static DEVICE void stage(T* tile, int stride, int rows, int cols, F load) {
        for (int c = threadIdx.x; c < rows * cols / 8; c += FLASH_THREADS) {
            const int row = c / (cols / 8), col = c % (cols / 8) * 8;
            T x[8];
            load(row, col, x);
#pragma unroll
            for (int i = 0; i < 8; ++i) tile[row * stride + col + i] = x[i];
        }
    }

    // ``scale`` includes log2(e); keys first … last - 1.
    template <class Problem>
    static DEVICE void run(const Problem& problem, float scale, long long first, long long last) {
        DYNAMIC_SHARED(memory);
        T* q = reinterpret_cast<T*>(memory);
        T* k = q + ROWS * QK_STRIDE;
        T* v = SAME_TILE ? k : k + KEYS * QK_STRIDE;
        T* p = v + KEYS * V_STRIDE;
        float* s = reinterpret_cast<float*>(p + ROWS * P_STRIDE);
        float* maximum = s + ROWS * S_STRIDE;
        float* sum = maximum + ROWS;
        float* shrink = sum + ROWS;
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;

        stage(q, QK_STRIDE, ROWS, QK, [&](int row, int col, T* x) { problem.query(row, col, x); });
        for (int row = threadIdx.x; row < ROWS; row += FLASH_THREADS) {
            maximum[row] = LOWEST;
            sum[row] = 0.0f;
        }
        float o[M_TILES][N_TILES][4] = {};
        for (long long key0 = first; key0 < last; key0 += KEYS) {
            __syncthreads();  // the tiles of the step before have been read
            stage(k, QK_STRIDE, KEYS, QK, [&](int row, int col, T* x) { problem.key(key0 + row, col, x); });
            if (!SAME_TILE)
                stage(v, V_STRIDE, KEYS, V, [&](int row, int col, T* x) { problem.value(key0 + row, col, x); });
            __syncthreads();
            scores(q, k, s, warp, g, t);
            __syncthreads();
            for (int row = warp; row < ROWS; row += FLASH_THREADS / 32) {
                float x[2], largest = maximum[row];
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const long long key = key0 + lane + 32 * i;
                    const bool seen = key < last && problem.visible(row, key);
                    x[i] = seen ? s[row * S_STRIDE + lane + 32 * i] : -infinity();
                    largest = fmaxf(largest, x[i]);
                }
                largest = warp_reduce(largest, Max());
                float added = 0.0f;
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const float weight = exp2f(x[i] * scale - largest * scale);
                    p[row * P_STRIDE + lane + 32 * i] = from_float<T>(weight);
                    added += weight;
                }
                added = warp_reduce(added, Sum());
                if (lane == 0) {
                    const float factor = exp2f(maximum[row] * scale - largest * scale);
                    shrink[row] = factor;
                    sum[row] = sum[row] * factor + added;
                    maximum[row] = largest;
                }
                __syncwarp();
            }
            __syncthreads();
            results(p, v, shrink, o, warp, g, t);
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < M_TILES; ++i)
#pragma unroll
            for (int j = 0; j < N_TILES; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int row = 16 * i + g + 8 * (e / 2), col = warp * (V / 4) + 8 * j + 2 * t + e % 2;
                    problem.write(row, col, o[i][j][e] / fmaxf(sum[row], LEAST_SUM));
                }
    }

    // s = q · kᵀ; a warp has sixteen keys.
    static DEVICE void scores(const T* q, const T* k, float* s, int warp, int g, int t) {
        const unsigned* q_words = reinterpret_cast<const unsigned*>(q);
        const unsigned* k_words = reinterpret_cast<const unsigned*>(k);
        constexpr int stride = QK_STRIDE / 2;
        float acc[M_TILES][2][4] = {};
        for (int word = 0; word < QK / 2; word += 8) {
            unsigned b[2][2];
#pragma unroll
            for (int j = 0; j < 2; ++j) load_b(b[j], k_words + (warp * 16 + 8 * j) * stride + word, stride);
#pragma unroll
            for (int i = 0; i < M_TILES; ++i) {
                unsigned a[4];
                load_a(a, q_words + 16 * i * stride + word, stride);
#pragma unroll
                for (int j = 0; j < 2; ++j) mma<T>(acc[i][j], a, b[j]);
            }
        }
#pragma unroll
        for (int i = 0; i < M_TILES; ++i)
#pragma unroll
            for (int j = 0; j < 2; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e)
                    s[(16 * i + g + 8 * (e / 2)) * S_STRIDE + warp * 16 + 8 * j + 2 * t + e % 2] = acc[i][j][e];
    }

    // o = o · shrink + p · v; a warp has a quarter of the columns.
    static DEVICE void results(const T* p, const T* v, const float* shrink, float (&o)[M_TILES][N_TILES][4], int warp,
                               int g, int t) {
        const unsigned* p_words = reinterpret_cast<const unsigned*>(p);
#pragma unroll
        for (int i = 0; i < M_TILES; ++i)
#pragma unroll
            for (int j = 0; j < N_TILES; ++j)
#pragma unroll
                for (int e = 0; e < 4; ++e) o[i][j][e] *= shrink[16 * i + g + 8 * (e / 2)];
        for (int key = 0; key < KEYS; key += 16) {
            unsigned a[M_TILES][4];
#pragma unroll
            for (int i = 0; i < M_TILES; ++i) load_a(a[i], p_words + 16 * i * (P_STRIDE / 2) + key / 2, P_STRIDE / 2);
#pragma unroll
            for (int j = 0; j < N_TILES; ++j) {
                unsigned b[2];
                load_b_rows(b, v + key * V_STRIDE + warp * (V / 4) + 8 * j, V_STRIDE);
#pragma unroll
                for (int i = 0; i < M_TILES; ++i) mma<T>(o[i][j], a[i], b);
            }
        }
    }
};
