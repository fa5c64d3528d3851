// The gated delta rule, step by step in float32: S = e^g S + β k (v − e^g Sᵀk)ᵀ, o = Sᵀq / √head_dim.
// A block has 32 columns of a head's state in shared memory; its four warps share the rows.
#include "foretile.cuh"

constexpr int COLUMNS = 32, DELTA_THREADS = 128, PARTS = DELTA_THREADS / COLUMNS;

template <class T>
DEVICE void delta_rule(const T* Q, const T* K, const T* V, const float* Gate, const float* Beta, const float* State,
                       T* O, float* Final, long long seq, int heads, int head_dim, int value_dim, float scale) {
    DYNAMIC_SHARED(memory);
    float* state = reinterpret_cast<float*>(memory);  // (head_dim, COLUMNS)
    float* k = state + head_dim * COLUMNS;
    float* q = k + head_dim;
    float* partial = q + head_dim;  // (2, PARTS, COLUMNS)
    const long long head = blockIdx.y % heads, batch = blockIdx.y / heads;
    const int column = threadIdx.x % COLUMNS, part = threadIdx.x / COLUMNS;
    const int value = static_cast<int>(blockIdx.x) * COLUMNS + column;
    const bool there = value < value_dim;
    const long long state_at = blockIdx.y * static_cast<long long>(head_dim) * value_dim + value;
    for (int i = part; i < head_dim; i += PARTS)
        state[i * COLUMNS + column] = there ? State[state_at + static_cast<long long>(i) * value_dim] : 0.0f;
    for (long long t = 0; t < seq; ++t) {
        const long long step = (batch * seq + t) * heads + head;
        __syncthreads();  // k, q and sums of the step before have been read
        for (int i = threadIdx.x; i < head_dim; i += DELTA_THREADS) {
            k[i] = to_float(K[step * head_dim + i]);
            q[i] = to_float(Q[step * head_dim + i]);
        }
        __syncthreads();
        float sum = 0.0f;
        for (int i = part; i < head_dim; i += PARTS) sum += k[i] * state[i * COLUMNS + column];
        partial[part * COLUMNS + column] = sum;
        __syncthreads();
        float read = 0.0f;
        for (int p = 0; p < PARTS; ++p) read += partial[p * COLUMNS + column];
        const float decay = expf(Gate[step]);
        const float v = there ? to_float(V[step * value_dim + value]) : 0.0f;
        const float change = Beta[step] * (v - decay * read);
        float result = 0.0f;
        for (int i = part; i < head_dim; i += PARTS) {
            const float s = decay * state[i * COLUMNS + column] + k[i] * change;
            state[i * COLUMNS + column] = s;
            result += q[i] * s;
        }
        partial[(PARTS + part) * COLUMNS + column] = result;
        __syncthreads();
        if (part == 0 && there) {
            float total = 0.0f;
            for (int p = 0; p < PARTS; ++p) total += partial[(PARTS + p) * COLUMNS + column];
            O[step * value_dim + value] = from_float<T>(total * scale);
        }
    }
    for (int i = part; i < head_dim; i += PARTS)
        if (there) Final[state_at + static_cast<long long>(i) * value_dim] = state[i * COLUMNS + column];
}

#define FOR_TYPE(NAME, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(DELTA_THREADS)                                                \
        linear_attention_##NAME(const T* Q, const T* K, const T* V, const float* Gate, const float* Beta,       \
                                const float* State, T* O, float* Final, long long seq, int heads, int head_dim, \
                                int value_dim, float scale) {                                                 \
        delta_rule<T>(Q, K, V, Gate, Beta, State, O, Final, seq, heads, head_dim, value_dim, scale);           \
    }
FOR_TYPE(bf16, Bf16)
FOR_TYPE(fp16, Half)
