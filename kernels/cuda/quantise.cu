// Quantisation: absolute maxima in float32, scales and quotients by IEEE division, one rounding to the result.
#include "foretile.cuh"

template <class T> DEVICE float absmax_of(const T* row, int cols) {
    float largest = 0.0f;
    each_eight(row, cols, [&](int, float* x, int) {
        for (int i = 0; i < 8; ++i) largest = fmaxf(largest, fabsf(x[i]));
    });
    return block_reduce(largest, Max(), 0.0f);
}

template <class T> DEVICE void quantise_row(const T* row, Fp8* out, int cols, float scale) {
    each_eight(row, cols, [&](int col, float* x, int count) {
        for (int i = 0; i < count; ++i) out[col + i] = quantised(x[i], scale);
    });
}

// A block a group of ``group`` columns of a row: e4m3 numbers and the group's scale, max(|X|, 1e-4) / 448, with
// ``power`` rounded up to a power of two.
template <class T>
DEVICE void by_group(const T* X, Fp8* Y, float* S, int cols, int group, int power) {
    const int groups = (cols + group - 1) / group;
    const long long row = blockIdx.x / groups;
    const int first = static_cast<int>(blockIdx.x % groups) * group, width = min(group, cols - first);
    const T* x = X + row * cols + first;
    const float scale = scale_of(absmax_of(x, width), power != 0);
    if (threadIdx.x == 0) S[blockIdx.x] = scale;
    quantise_row(x, Y + row * cols + first, width, scale);
}

// A block a 128 × 128 block of weights.
template <class T>
DEVICE void by_block(const T* X, Fp8* Y, float* S, long long rows, int cols, int power) {
    const long long row0 = blockIdx.y * 128LL;
    const int col0 = static_cast<int>(blockIdx.x) * 128, width = min(128, cols - col0);
    const int height = static_cast<int>(rows - row0 < 128 ? rows - row0 : 128);
    float largest = 0.0f;
    for (int i = threadIdx.x; i < height * width; i += blockDim.x)
        largest = fmaxf(largest, fabsf(to_float(X[(row0 + i / width) * cols + col0 + i % width])));
    const float scale = scale_of(block_reduce(largest, Max(), 0.0f), power != 0);
    if (threadIdx.x == 0) S[blockIdx.y * static_cast<long long>(gridDim.x) + blockIdx.x] = scale;
    for (int i = threadIdx.x; i < height * width; i += blockDim.x) {
        const long long at = (row0 + i / width) * cols + col0 + i % width;
        Y[at] = quantised(to_float(X[at]), scale);
    }
}

#define FOR_TYPE(NAME, T)                                                                                       \
    extern "C" __global__ void quantize_##NAME(const T* X, Fp8* Y, float* S, int cols, int group, int power) {   \
        by_group<T>(X, Y, S, cols, group, power);                                                              \
    }                                                                                                          \
    extern "C" __global__ void quantize_weight_##NAME(const T* X, Fp8* Y, float* S, long long rows, int cols,    \
                                                      int power) {                                             \
        by_block<T>(X, Y, S, rows, cols, power);                                                               \
    }
FOR_TYPE(bf16, Bf16)
FOR_TYPE(fp16, Half)
FOR_TYPE(fp32, float)

// As quantize by groups of 128 with scales that are powers of two, e8m0, packed as (ceil(cols / 512), rows, 4).
// Behind the last group scales are one.
extern "C" __global__ void quantize_e8m0(const Bf16* X, Fp8* Y, unsigned char* S, long long rows, int cols) {
    const int groups = (cols + 127) / 128, padded = (groups + 3) / 4 * 4;
    const long long row = blockIdx.x / padded;
    const int group = static_cast<int>(blockIdx.x % padded);
    unsigned char exponent = 127;
    if (group < groups) {
        const int first = group * 128, width = min(128, cols - first);
        const Bf16* x = X + row * cols + first;
        const float scale = scale_of(absmax_of(x, width), true);
        exponent = static_cast<unsigned char>(__float_as_int(scale) >> 23);
        quantise_row(x, Y + row * cols + first, width, scale);
    }
    if (threadIdx.x == 0) S[(group / 4 * rows + row) * 4 + group % 4] = exponent;
}

// By the tensor's scale; a block a row.
template <class T> DEVICE void by_tensor(const T* X, const float* scale, Fp8* Y, int cols) {
    const long long row = static_cast<long long>(blockIdx.x) * cols;
    quantise_row(X + row, Y + row, cols, scale[0]);
}
extern "C" __global__ void quantize_tensor_bf16(const Bf16* X, const float* scale, Fp8* Y, int cols) {
    by_tensor(X, scale, Y, cols);
}
extern "C" __global__ void quantize_tensor_fp32(const float* X, const float* scale, Fp8* Y, int cols) {
    by_tensor(X, scale, Y, cols);
}

// The tensor's own scale, in two launches: each row's largest, then the largest of those.
extern "C" __global__ void row_absmax(const Bf16* X, float* largest, int cols) {
    const float found = absmax_of(X + static_cast<long long>(blockIdx.x) * cols, cols);
    if (threadIdx.x == 0) largest[blockIdx.x] = found;
}
extern "C" __global__ void tensor_scale(const float* largest, float* scale, int rows) {
    const float found = absmax_of(largest, rows);
    if (threadIdx.x == 0) scale[0] = scale_of(found, false);
}

// nvfp4: a block a row, a thread a group of 16: e4m3 scale max |X| / (6 · tensor's), then e2m1 numbers.
template <class T>
DEVICE void to_nvfp4(const T* X, float tensor, unsigned char* Y, Fp8* S, long long row, int cols) {
    const int groups = (cols + 15) / 16;
    for (int g = threadIdx.x; g < groups; g += blockDim.x) {
        const int width = min(16, cols - g * 16);
        const T* x = X + row * cols + g * 16;
        float largest = 0.0f;
        for (int i = 0; i < width; ++i) largest = fmaxf(largest, fabsf(to_float(x[i])));
        const Fp8 scale = from_float<Fp8>(fminf(largest / (FP4_MAX * tensor), FP8_MAX));
        S[row * groups + g] = scale;
        const float step = to_float(scale) * tensor;
        for (int i = 0; i < width; i += 2) {  // rows are of even length
            const float low = step > 0.0f ? to_float(x[i]) / step : 0.0f;
            const float high = step > 0.0f ? to_float(x[i + 1]) / step : 0.0f;
            Y[(row * cols + g * 16 + i) / 2] = static_cast<unsigned char>(fp4_number(low) | fp4_number(high) << 4);
        }
    }
}
extern "C" __global__ void quantize_nvfp4_bf16(const Bf16* X, const float* tensor, unsigned char* Y, Fp8* S,
                                               int cols) {
    to_nvfp4(X, tensor[0], Y, S, blockIdx.x, cols);
}
extern "C" __global__ void quantize_nvfp4_fp32(const float* X, const float* tensor, unsigned char* Y, Fp8* S,
                                               int cols) {
    to_nvfp4(X, tensor[0], Y, S, blockIdx.x, cols);
}
