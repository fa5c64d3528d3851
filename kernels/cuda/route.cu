// Where a mixture of experts' rows go: the gate of every token, the rows of its experts, rows moved and combined.
#include "foretile.cuh"

constexpr float TAKEN = -2e30f, OUTSIDE = -1e30f;  // marks below every score: chosen before; not in a chosen group
constexpr float WEIGHT_EPS = 1e-20f, SCALING = 2.5f;  // DeepSeek-V3's gate

// The largest of ``count`` values and the lowest index that has it; a warp.
DEVICE void best_of(const float* values, int count, float& best, int& index) {
    best = -infinity();
    index = count;
    for (int i = threadIdx.x % 32; i < count; i += 32)
        if (values[i] > best) {
            best = values[i];
            index = i;
        }
    const float largest = warp_reduce(best, Max());
    index = warp_reduce(best == largest ? index : count, Min());
    best = largest;
}

// A warp a token: scores s = sigmoid(logit); of the best groups the best experts by s + bias, weights
// s / (Σ s + eps) · 2.5, best first. Shared: scores and choices of the experts, sums of the groups.
extern "C" __global__ void moe_route(const float* Logits, const float* Bias, int* Indices, float* Weights, int experts,
                                     int topk, int groups, int topk_groups) {
    DYNAMIC_SHARED(memory);
    float* score = reinterpret_cast<float*>(memory);
    float* choice = score + experts;
    float* group_score = choice + experts;
    const int lane = threadIdx.x;
    const long long token = blockIdx.x;
    for (int e = lane; e < experts; e += 32) {
        score[e] = 1.0f / (1.0f + expf(-Logits[token * experts + e]));
        choice[e] = score[e] + Bias[e];
    }
    __syncwarp();
    if (topk_groups < groups) {
        const int members = experts / groups;
        for (int g = lane; g < groups; g += 32) {  // the sum of a group's two best
            float best = OUTSIDE, second = OUTSIDE;
            for (int e = g * members; e < (g + 1) * members; ++e) {
                const float x = choice[e];
                second = fmaxf(second, fminf(best, x));
                best = fmaxf(best, x);
            }
            group_score[g] = best + second;
        }
        __syncwarp();
        for (int g = lane; g < groups; g += 32) {
            int beaten = 0;  // by how many groups, the lower index winning a tie
            for (int h = 0; h < groups; ++h)
                beaten += group_score[h] > group_score[g] || (group_score[h] == group_score[g] && h < g);
            if (beaten >= topk_groups)
                for (int e = g * members; e < (g + 1) * members; ++e) choice[e] = OUTSIDE;
        }
        __syncwarp();
    }
    float total = 0.0f;
    for (int k = 0; k < topk; ++k) {
        float best;
        int index;
        best_of(choice, experts, best, index);
        total += score[index];
        if (lane == 0) {
            Indices[token * topk + k] = index;
            choice[index] = TAKEN;
        }
        __syncwarp();
    }
    __syncthreads();  // Indices are read by other lanes than wrote them
    for (int k = lane; k < topk; k += 32)
        Weights[token * topk + k] = score[Indices[token * topk + k]] / (total + WEIGHT_EPS) * SCALING;
}

// One block: experts' rows in one piece each, padded to ``align``. Rows[t, j] is the row of a token's choice,
// Token[row] the token of a row; TileExpert and TileRows describe every ``align`` rows. The order of an expert's
// rows is that in which threads get there: results do not depend on it.
extern "C" __global__ void __launch_bounds__(1024)
    moe_place(const int* Indices, int* Rows, int* Token, int* TileExpert, int* TileRows, long long choices, int topk,
              int experts, int align, int tiles) {
    DYNAMIC_SHARED(memory);
    int* count = reinterpret_cast<int*>(memory);
    int* start = count + experts;
    int* next = start + experts;
    for (int e = threadIdx.x; e < experts; e += blockDim.x) count[e] = next[e] = 0;
    __syncthreads();
    for (long long i = threadIdx.x; i < choices; i += blockDim.x) atomicAdd(&count[Indices[i]], 1);
    __syncthreads();
    if (threadIdx.x == 0) {
        int row = 0;
        for (int e = 0; e < experts; ++e) {
            start[e] = row;
            row += (count[e] + align - 1) / align * align;
        }
    }
    for (int tile = threadIdx.x; tile < tiles; tile += blockDim.x) {
        TileExpert[tile] = 0;
        TileRows[tile] = 0;
    }
    __syncthreads();
    for (int e = threadIdx.x; e < experts; e += blockDim.x)
        for (int done = 0; done < count[e]; done += align) {
            const int tile = (start[e] + done) / align;
            TileExpert[tile] = e;
            TileRows[tile] = min(align, count[e] - done);
        }
    for (long long i = threadIdx.x; i < choices; i += blockDim.x) {
        const int e = Indices[i], row = start[e] + atomicAdd(&next[e], 1);
        Rows[i] = row;
        Token[row] = static_cast<int>(i / topk);
    }
}

// X_sorted[Rows[t, j]] = X[t], rows as bytes; Used marks them for moe_permute_pad. A block a token.
extern "C" __global__ void moe_permute(const unsigned char* X, const int* Rows, unsigned char* X_sorted, int* Used,
                                       long long row_bytes, int topk) {
    const unsigned char* source = X + blockIdx.x * row_bytes;
    for (int j = 0; j < topk; ++j) {
        const long long row = Rows[static_cast<long long>(blockIdx.x) * topk + j];
        for (long long i = threadIdx.x * 4LL; i < row_bytes; i += blockDim.x * 4LL) {
            const bool whole = i + 4 <= row_bytes && row_bytes % 4 == 0;
            if (whole) *reinterpret_cast<unsigned*>(X_sorted + row * row_bytes + i) = *reinterpret_cast<const unsigned*>(source + i);
            else for (long long b = i; b < i + 4 && b < row_bytes; ++b) X_sorted[row * row_bytes + b] = source[b];
        }
        if (threadIdx.x == 0) Used[row] = 1;
    }
}

// Zeros to rows that no token went to; the marks are left zero for the next call. A block a row.
extern "C" __global__ void moe_permute_pad(unsigned char* X_sorted, int* Used, long long row_bytes) {
    const bool used = Used[blockIdx.x] != 0;
    __syncthreads();  // all threads have read the mark
    if (threadIdx.x == 0) Used[blockIdx.x] = 0;
    if (used) return;
    for (long long i = threadIdx.x; i < row_bytes; i += blockDim.x) X_sorted[blockIdx.x * row_bytes + i] = 0;
}

// H = silu(gate) · up of products (2, elements) in float32, in ``out_type``: fp32 where H is to be quantised.
extern "C" __global__ void moe_swiglu(const float* products, void* H, long long elements, int out_type) {
    for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < elements;
         i += static_cast<long long>(gridDim.x) * blockDim.x) {
        const float gate = products[i], up = products[elements + i];
        store_as(H, i, gate / (1.0f + expf(-gate)) * up, out_type);
    }
}

// O[t] = Σ_j Weights[t, j] · Y[Rows[t, j]] in float32, in the order of j. A block a token.
template <class T>
DEVICE void combine(const T* Y, const int* Rows, const float* Weights, T* O, int hidden, int topk) {
    const long long token = blockIdx.x;
    for (int col = threadIdx.x * 8; col < hidden; col += blockDim.x * 8) {
        const int count = min(8, hidden - col);
        float sum[8] = {};
        for (int j = 0; j < topk; ++j) {
            float y[8];
            load8(Y + Rows[token * topk + j] * static_cast<long long>(hidden) + col, count, y);
            for (int i = 0; i < 8; ++i) sum[i] += Weights[token * topk + j] * y[i];
        }
        store8(O + token * hidden + col, count, sum);
    }
}
#define COMBINE(NAME, T)                                                                                        \
    extern "C" __global__ void moe_combine_##NAME(const T* Y, const int* Rows, const float* Weights, T* O,       \
                                                  int hidden, int topk) {                                      \
        combine<T>(Y, Rows, Weights, O, hidden, topk);                                                         \
    }
COMBINE(bf16, Bf16)
COMBINE(fp16, Half)
COMBINE(fp32, float)
