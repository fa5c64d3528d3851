// Operators on rows and elements: a block a row (or a piece of one), arithmetic in float32, one rounding to
// the stored type at the end. Rows are read as often as there are passes; they stay in the L1 or L2.
#include "foretile.cuh"

constexpr float RMS_EPS = 1e-6f;    // foretile.kernels.operators._rmsnorm.EPS
constexpr float LAYER_EPS = 1e-5f;  // foretile.kernels.operators.layernorm.EPS

// Y = X / sqrt(mean(X²) + eps) · W; with R the row is X + R, which is also written (rounded) to R_out.
template <class T> DEVICE void rms_row(const T* X, const T* R, const T* W, T* R_out, T* Y, int cols) {
    const long long row = static_cast<long long>(blockIdx.x) * cols;
    float squares = 0.0f;
    each_eight(X + row, cols, [&](int col, float* x, int count) {
        if (R != nullptr) {
            float r[8];
            load8(R + row + col, count, r);
            for (int i = 0; i < 8; ++i) x[i] += r[i];
            store8(R_out + row + col, count, x);
        }
        for (int i = 0; i < 8; ++i) squares += x[i] * x[i];
    });
    const float mean = block_reduce(squares, Sum(), 0.0f) / cols;
    const float rstd = 1.0f / sqrtf(mean + RMS_EPS);
    each_eight(X + row, cols, [&](int col, float* x, int count) {
        float w[8], r[8] = {};
        load8(W + col, count, w);
        if (R != nullptr) load8(R + row + col, count, r);
        for (int i = 0; i < 8; ++i) x[i] = (x[i] + r[i]) * rstd * w[i];
        store8(Y + row + col, count, x);
    });
}

template <class T> DEVICE void layer_row(const T* X, const T* W, const T* B, T* Y, int cols) {
    const long long row = static_cast<long long>(blockIdx.x) * cols;
    float sum = 0.0f, squares = 0.0f;
    each_eight(X + row, cols, [&](int, float* x, int) {
        for (int i = 0; i < 8; ++i) sum += x[i];
    });
    const float mean = block_reduce(sum, Sum(), 0.0f) / cols;
    each_eight(X + row, cols, [&](int, float* x, int count) {
        for (int i = 0; i < count; ++i) squares += (x[i] - mean) * (x[i] - mean);
    });
    const float rstd = 1.0f / sqrtf(block_reduce(squares, Sum(), 0.0f) / cols + LAYER_EPS);
    each_eight(X + row, cols, [&](int col, float* x, int count) {
        float w[8], b[8];
        load8(W + col, count, w);
        load8(B + col, count, b);
        for (int i = 0; i < 8; ++i) x[i] = (x[i] - mean) * rstd * w[i] + b[i];
        store8(Y + row + col, count, x);
    });
}

template <class T> DEVICE float row_max(const T* row, int cols) {
    float best = -infinity();
    each_eight(row, cols, [&](int, float* x, int count) {
        for (int i = 0; i < count; ++i) best = fmaxf(best, x[i]);
    });
    return block_reduce(best, Max(), -infinity());
}

// Σ exp(x − maximum): the difference first, which is exact near the maximum.
template <class T> DEVICE float row_exponentials(const T* row, int cols, float maximum) {
    float sum = 0.0f;
    each_eight(row, cols, [&](int, float* x, int count) {
        for (int i = 0; i < count; ++i) sum += expf(x[i] - maximum);
    });
    return block_reduce(sum, Sum(), 0.0f);
}

template <class T> DEVICE void softmax_row(const T* X, T* Y, int cols) {
    const long long row = static_cast<long long>(blockIdx.x) * cols;
    const float maximum = row_max(X + row, cols);
    const float sum = row_exponentials(X + row, cols, maximum);
    each_eight(X + row, cols, [&](int col, float* x, int count) {
        for (int i = 0; i < 8; ++i) x[i] = expf(x[i] - maximum) / sum;
        store8(Y + row + col, count, x);
    });
}

template <class T> DEVICE void cross_entropy_row(const T* Logits, const int* Target, float* Loss, int cols) {
    const T* row = Logits + static_cast<long long>(blockIdx.x) * cols;
    const float maximum = row_max(row, cols);
    const float sum = row_exponentials(row, cols, maximum);
    if (threadIdx.x == 0) Loss[blockIdx.x] = logf(sum) + (maximum - to_float(row[Target[blockIdx.x]]));
}

template <class T> DEVICE void argmax_row(const T* X, int* Index, int cols) {
    const T* row = X + static_cast<long long>(blockIdx.x) * cols;
    const float maximum = row_max(row, cols);
    int first = cols;
    each_eight(row, cols, [&](int col, float* x, int count) {
        for (int i = 0; i < count; ++i)
            if (x[i] == maximum) first = min(first, col + i);
    });
    first = block_reduce(first, Min(), cols);
    if (threadIdx.x == 0) Index[blockIdx.x] = first;
}

template <class T> DEVICE void reduce_sum_row(const T* X, float* Y, int cols) {
    float sum = 0.0f;
    each_eight(X + static_cast<long long>(blockIdx.x) * cols, cols, [&](int, float* x, int) {
        for (int i = 0; i < 8; ++i) sum += x[i];
    });
    sum = block_reduce(sum, Sum(), 0.0f);
    if (threadIdx.x == 0) Y[blockIdx.x] = sum;
}

// y = A x: a block a row of A.
template <class T> DEVICE void gemv_row(const T* A, const T* x, T* y, int cols) {
    float sum = 0.0f;
    each_eight(A + static_cast<long long>(blockIdx.x) * cols, cols, [&](int col, float* a, int count) {
        float b[8];
        load8(x + col, count, b);
        for (int i = 0; i < 8; ++i) sum += a[i] * b[i];
    });
    sum = block_reduce(sum, Sum(), 0.0f);
    if (threadIdx.x == 0) y[blockIdx.x] = from_float<T>(sum);
}

DEVICE float silu(float x) { return x / (1.0f + expf(-x)); }

// Elements: grid-stride over chunks of eight columns, the rows one after the other.
template <class F> DEVICE void each_chunk(long long rows, int cols, F f) {
    const long long across = (cols + 7) / 8, chunks = rows * across;
    for (long long c = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; c < chunks;
         c += static_cast<long long>(gridDim.x) * blockDim.x) {
        const int col = static_cast<int>(c % across) * 8;
        f(c / across, col, min(8, cols - col));
    }
}

// Out = silu(gate) · up; ``stride`` elements lie between rows of gate and up, ``cols`` between those of Out.
template <class T>
DEVICE void gated(const T* gate, const T* up, T* Out, long long rows, int cols, long long stride) {
    each_chunk(rows, cols, [&](long long row, int col, int count) {
        float g[8], u[8];
        load8(gate + row * stride + col, count, g);
        load8(up + row * stride + col, count, u);
        for (int i = 0; i < 8; ++i) g[i] = silu(g[i]) * u[i];
        store8(Out + row * cols + col, count, g);
    });
}

// Exact, or by tanh(√(2/π)·(x + 0.044715·x³)) (arXiv:1606.08415).
template <class T> DEVICE void gelu_all(const T* X, T* Y, long long rows, int cols, int tanh_form) {
    constexpr float LINEAR = 0.7978845608028654f, CUBIC = 0.044715f * LINEAR;
    each_chunk(rows, cols, [&](long long row, int col, int count) {
        float x[8];
        load8(X + row * cols + col, count, x);
        for (int i = 0; i < 8; ++i) {
            const float y = tanh_form ? tanhf(x[i] * (LINEAR + x[i] * x[i] * CUBIC)) : erff(x[i] * 0.70710678118654752f);
            x[i] = x[i] * 0.5f * (1.0f + y);
        }
        store8(Y + row * cols + col, count, x);
    });
}

// A thread a pair; elements 2j and 2j + 1, or j and cols/2 + j.
template <class T>
DEVICE void rope_all(const T* X, const float* Cos, const float* Sin, T* Y, long long rows, int heads, int cols,
                     int interleaved) {
    const int half = cols / 2;
    const long long pairs = rows * heads * half;
    for (long long p = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; p < pairs;
         p += static_cast<long long>(gridDim.x) * blockDim.x) {
        const int j = static_cast<int>(p % half);
        const long long head = p / half, row = head / heads;
        const long long a = head * cols + (interleaved ? 2 * j : j), b = a + (interleaved ? 1 : half);
        const float cos = Cos[row * half + j], sin = Sin[row * half + j];
        const float x = to_float(X[a]), y = to_float(X[b]);
        Y[a] = from_float<T>(x * cos - y * sin);
        Y[b] = from_float<T>(x * sin + y * cos);
    }
}

#define FOR_TYPE(NAME, T)                                                                                      \
    extern "C" __global__ void rmsnorm_##NAME(const T* X, const T* W, T* Y, int cols) {                         \
        rms_row<T>(X, nullptr, W, nullptr, Y, cols);                                                           \
    }                                                                                                          \
    extern "C" __global__ void add_rmsnorm_##NAME(const T* X, const T* R, const T* W, T* R_out, T* Y, int cols) { \
        rms_row<T>(X, R, W, R_out, Y, cols);                                                                   \
    }                                                                                                          \
    extern "C" __global__ void layernorm_##NAME(const T* X, const T* W, const T* B, T* Y, int cols) {           \
        layer_row<T>(X, W, B, Y, cols);                                                                        \
    }                                                                                                          \
    extern "C" __global__ void softmax_##NAME(const T* X, T* Y, int cols) { softmax_row<T>(X, Y, cols); }        \
    extern "C" __global__ void cross_entropy_##NAME(const T* Logits, const int* Target, float* Loss, int cols) { \
        cross_entropy_row<T>(Logits, Target, Loss, cols);                                                      \
    }                                                                                                          \
    extern "C" __global__ void argmax_##NAME(const T* X, int* Index, int cols) { argmax_row<T>(X, Index, cols); } \
    extern "C" __global__ void reduce_sum_##NAME(const T* X, float* Y, int cols) { reduce_sum_row<T>(X, Y, cols); } \
    extern "C" __global__ void gemv_##NAME(const T* A, const T* x, T* y, int cols) { gemv_row<T>(A, x, y, cols); } \
    extern "C" __global__ void silu_mul_##NAME(const T* Gate, const T* Up, T* Out, long long rows, int cols) {   \
        gated<T>(Gate, Up, Out, rows, cols, cols);                                                             \
    }                                                                                                          \
    extern "C" __global__ void swiglu_##NAME(const T* X, T* Y, long long rows, int cols) {                      \
        gated<T>(X, X + cols, Y, rows, cols, 2LL * cols);                                                      \
    }                                                                                                          \
    extern "C" __global__ void gelu_##NAME(const T* X, T* Y, long long rows, int cols, int tanh_form) {          \
        gelu_all<T>(X, Y, rows, cols, tanh_form);                                                              \
    }                                                                                                          \
    extern "C" __global__ void rope_##NAME(const T* X, const float* Cos, const float* Sin, T* Y, long long rows, \
                                           int heads, int cols, int interleaved) {                             \
        rope_all<T>(X, Cos, Sin, Y, rows, heads, cols, interleaved);                                           \
    }

FOR_TYPE(bf16, Bf16)
FOR_TYPE(fp16, Half)
FOR_TYPE(fp32, float)
