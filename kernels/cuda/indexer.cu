// Index scores of DeepSeek-V3.2: Σ_h W[h] · relu(Q[h] · K[t]) · K_scale[t] of a query and 64 keys a block.
// fp8 is widened to fp16 on its way; products are exact, sums float32.
#include "tile.cuh"

constexpr int INDEX_DIM = 128;

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    indexer_logits(const Fp8* Q, const Fp8* K, const float* K_scale, const float* W, float* Logits, long long seq,
                   long long kv_len, int heads, int causal) {
    __shared__ float halves[2][TILE];  // of the heads: warps 0 and 1, warps 2 and 3
    const long long s = blockIdx.x, key0 = blockIdx.y * (long long)TILE, batch = blockIdx.z, query = batch * seq + s;
    const long long seen = causal ? kv_len - seq + s + 1 : kv_len;  // keys that the query sees
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float score[8] = {};  // of the thread's eight keys, over the heads it has seen
    if (key0 < seen) {
        const Dense<Half, Fp8> q{Q + query * heads * INDEX_DIM, heads, INDEX_DIM, INDEX_DIM};
        const Dense<Half, Fp8> k{K + batch * kv_len * INDEX_DIM, kv_len, INDEX_DIM, INDEX_DIM};
        for (int head0 = 0; head0 < heads; head0 += TILE) {
            Tile<float> tile;
            tile.clear();
            multiply<Half>(tile, q, false, k, false, head0, key0, 0, INDEX_DIM);
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        const int head = head0 + warp / 2 * 32 + 16 * i + lane / 4 + 8 * (e / 2);
                        const float weight = head < heads ? W[query * heads + head] : 0.0f;
                        score[2 * j + e % 2] += weight * fmaxf(tile.sums[i][j][e], 0.0f);
                    }
        }
    }
#pragma unroll
    for (int c = 0; c < 8; ++c) {
#pragma unroll
        for (int step = 4; step < 32; step <<= 1) score[c] += __shfl_xor_sync(ALL_LANES, score[c], step);
        if (lane < 4) halves[warp / 2][warp % 2 * 32 + c / 2 * 8 + 2 * lane + c % 2] = score[c];
    }
    __syncthreads();
    for (int c = threadIdx.x; c < TILE; c += TILE_THREADS) {
        const long long key = key0 + c;
        if (key < kv_len)
            Logits[query * kv_len + key] =
                key < seen ? (halves[0][c] + halves[1][c]) * K_scale[batch * kv_len + key] : -infinity();
    }
}
