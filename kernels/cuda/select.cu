// Selection: the k largest of a row by radix, and nucleus (top-p) sampling by bisection. A block a row.
#include "foretile.cuh"

// Unsigned numbers in the order of the floats; -0 counts as 0.
DEVICE unsigned ordered(float x) {
    const unsigned bits = static_cast<unsigned>(__float_as_int(x + 0.0f));
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Four passes over eight bits each find the k-th largest; a fifth writes what is above it, and as many of its
// equals as are missing. Which of them, and in which order, depends on the order of the threads.
extern "C" __global__ void __launch_bounds__(1024) topk_select(const float* X, int* Index, int cols, int k) {
    __shared__ int histogram[256];
    __shared__ unsigned threshold;
    __shared__ int missing, above, equal;
    const float* row = X + static_cast<long long>(blockIdx.x) * cols;
    int* out = Index + static_cast<long long>(blockIdx.x) * k;
    if (threadIdx.x == 0) {
        threshold = 0;
        missing = k;
        above = equal = 0;
    }
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < 256; i += blockDim.x) histogram[i] = 0;
        __syncthreads();
        const unsigned settled = shift == 24 ? 0u : ~0u << (shift + 8), prefix = threshold;
        for (int i = threadIdx.x; i < cols; i += blockDim.x) {
            const unsigned key = ordered(row[i]);
            if ((key & settled) == prefix) atomicAdd(&histogram[key >> shift & 255u], 1);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int digit = 255;
            while (histogram[digit] < missing) missing -= histogram[digit--];
            threshold = prefix | static_cast<unsigned>(digit) << shift;
        }
        __syncthreads();
    }
    const unsigned least = threshold;
    const int needed = missing;
    for (int i = threadIdx.x; i < cols; i += blockDim.x) {
        const unsigned key = ordered(row[i]);
        if (key > least) {
            out[atomicAdd(&above, 1)] = i;
        } else if (key == least) {
            const int place = atomicAdd(&equal, 1);
            if (place < needed) out[k - needed + place] = i;
        }
    }
}

constexpr float LEAST_MASS = 1e-30f;  // of a nucleus: TopP of zero keeps the most probable token

template <class T> DEVICE float mass(const T* row, int cols, float cut) {
    float sum = 0.0f;
    each_eight(row, cols, [&](int, float* x, int count) {
        for (int i = 0; i < count; ++i) sum += x[i] >= cut ? x[i] : 0.0f;
    });
    return block_reduce(sum, Sum(), 0.0f);
}

// The largest threshold whose mass is TopP · S, by bisection of its bits (non-negative floats are ordered as
// integers are); then the first token, in the order of indices, up to which the nucleus sums to more than U of
// its mass. Sums are float32, in an order that is the same for every threshold.
template <class T> DEVICE void sample(const T* P, const float* U, const float* TopP, int* Token, int cols) {
    const T* row = P + static_cast<long long>(blockIdx.x) * cols;
    const float needed = fmaxf(fminf(TopP[blockIdx.x], 1.0f) * mass(row, cols, 0.0f), LEAST_MASS);
    int low = 0, high = __float_as_int(2.0f);  // the mass of low suffices, that of high does not
    while (high - low > 1) {
        const int middle = low + (high - low) / 2;
        if (mass(row, cols, __int_as_float(middle)) >= needed) low = middle;
        else high = middle;
    }
    const float cut = __int_as_float(low), wanted = U[blockIdx.x] * mass(row, cols, cut);
    const int share = (cols + blockDim.x - 1) / blockDim.x, first = min(cols, static_cast<int>(threadIdx.x) * share);
    const int last = min(cols, first + share);
    float mine = 0.0f, total;
    int newest = -1;  // the last token of the nucleus, drawn where rounding lets no sum exceed what is wanted
    for (int i = first; i < last; ++i) {
        const float p = to_float(row[i]);
        if (p >= cut && p > 0.0f) {
            mine += p;
            newest = i;
        }
    }
    float sum = block_exclusive_sum(mine, total);
    int found = cols;
    for (int i = first; i < last && found == cols; ++i) {
        const float p = to_float(row[i]);
        if (p >= cut && p > 0.0f) {
            sum += p;
            if (sum > wanted) found = i;
        }
    }
    found = block_reduce(found, Min(), cols);
    newest = block_reduce(newest, Max(), -1);
    if (threadIdx.x == 0) Token[blockIdx.x] = found < cols ? found : newest;
}

#define FOR_TYPE(NAME, T)                                                                                       \
    extern "C" __global__ void top_p_sample_##NAME(const T* P, const float* U, const float* TopP, int* Token,    \
                                                   int cols) {                                                 \
        sample<T>(P, U, TopP, Token, cols);                                                                    \
    }
FOR_TYPE(bf16, Bf16)
FOR_TYPE(fp16, Half)
FOR_TYPE(fp32, float)
