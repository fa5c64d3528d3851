// Multi-head latent attention (DeepSeek-V3, V3.2). Absorbed: one latent key of 576 elements serves all heads,
// its first 512 are the value; one staged tile is both. Expanded: keys of 128 and 64 rotary elements, values of 128.
#include "flash.cuh"

constexpr int LATENT = 512, ROPE = 64, ABSORBED = LATENT + ROPE, GROUP = 128, GROUPS = LATENT / GROUP;
constexpr int NOPE = 128, EXPANDED = NOPE + ROPE, VALUE = 128;
constexpr int HEAD_ROWS = 16, QUERY_ROWS = 64;

// Rows are heads of one query; keys are rows of the cache, or those that ``indices`` names (-1: none).
template <class T> struct Absorbed {
    const T *Q, *KV;
    const int* indices;
    T* O;
    int head0, heads;
    long long count;  // keys
    DEVICE void query(int row, int col, T* x) const {
        load8(Q + (head0 + row) * ABSORBED + col, head0 + row < heads ? 8 : 0, x);
    }
    DEVICE void key(long long at, int col, T* x) const {
        const long long row = at >= count ? -1 : indices != nullptr ? indices[at] : at;
        load8(KV + (row > 0 ? row : 0) * ABSORBED + col, row >= 0 ? 8 : 0, x);
    }
    DEVICE void value(long long, int, T*) const {}  // the key's tile
    DEVICE bool visible(int, long long at) const { return indices == nullptr || indices[at] >= 0; }
    DEVICE void write(int row, int col, float result) const {
        if (head0 + row < heads) O[(head0 + row) * LATENT + col] = from_float<T>(result);
    }
};

// The cache in fp8: 512 numbers, a float32 scale for 128 of them, 64 rotary elements of T (FlashMLA's 656 bytes).
template <class T> struct AbsorbedFp8 {
    Absorbed<T> plain;  // KV is not used
    const Fp8* KV;
    const float* scales;
    const T* rope;
    DEVICE void query(int row, int col, T* x) const { plain.query(row, col, x); }
    DEVICE void key(long long at, int col, T* x) const {
        const int there = at < plain.count ? 8 : 0;
        if (col >= LATENT) return load8(rope + at * ROPE + col - LATENT, there, x);
        float values[8];
        load8(KV + at * LATENT + col, there, values);
        const float scale = there ? scales[at * GROUPS + col / GROUP] : 0.0f;
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = from_float<T>(values[i] * scale);
    }
    DEVICE void value(long long, int, T*) const {}
    DEVICE bool visible(int, long long) const { return true; }
    DEVICE void write(int row, int col, float result) const { plain.write(row, col, result); }
};

// Causal, rows are queries of one head.
template <class T> struct Expanded {
    const T *Q, *K, *K_rope, *V;
    T* O;
    long long seq, kv_len, query0, prefix;
    int heads;
    DEVICE void query(int row, int col, T* x) const {
        load8(Q + (query0 + row) * heads * EXPANDED + col, query0 + row < seq ? 8 : 0, x);
    }
    DEVICE void key(long long at, int col, T* x) const {
        const int there = at < kv_len ? 8 : 0;
        if (col < NOPE) load8(K + at * heads * NOPE + col, there, x);
        else load8(K_rope + at * ROPE + col - NOPE, there, x);
    }
    DEVICE void value(long long at, int col, T* x) const { load8(V + at * heads * VALUE + col, at < kv_len ? 8 : 0, x); }
    DEVICE bool visible(int row, long long at) const { return at <= prefix + query0 + row; }
    DEVICE void write(int row, int col, float result) const {
        if (query0 + row < seq) O[(query0 + row) * heads * VALUE + col] = from_float<T>(result);
    }
};

// Blocks of one query, sixteen heads each, are neighbours: they share its keys in the L2.
DEVICE int head_tiles(int heads) { return (heads + HEAD_ROWS - 1) / HEAD_ROWS; }
DEVICE long long query_of_block(int heads) { return blockIdx.x / head_tiles(heads); }

template <class T>
DEVICE Absorbed<T> absorbed(const T* Q, const T* KV, const int* indices, T* O, int heads, long long count) {
    const long long query = query_of_block(heads);
    const int head0 = static_cast<int>(blockIdx.x % head_tiles(heads)) * HEAD_ROWS;
    return Absorbed<T>{Q + query * heads * ABSORBED, KV, indices, O + query * heads * LATENT, head0, heads, count};
}

template <class T> using AbsorbedFlash = Flash<T, HEAD_ROWS, ABSORBED, LATENT, true>;

#define FOR_TYPE(NAME, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(FLASH_THREADS)                                                \
        mla_decode_##NAME(const T* Q, const T* KV, T* O, long long kv_len, int heads, float scale) {            \
        const T* cache = KV + query_of_block(heads) * kv_len * ABSORBED;                                                \
        AbsorbedFlash<T>::run(absorbed<T>(Q, cache, nullptr, O, heads, kv_len), scale, 0, kv_len);             \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(FLASH_THREADS)                                                \
        mla_decode_fp8_##NAME(const T* Q, const Fp8* KV, const float* KV_scale, const T* K_rope, T* O,          \
                              long long kv_len, int heads, float scale) {                                     \
        const long long at = query_of_block(heads) * kv_len;                                                              \
        const AbsorbedFp8<T> problem{absorbed<T>(Q, nullptr, nullptr, O, heads, kv_len), KV + at * LATENT,      \
                                     KV_scale + at * GROUPS, K_rope + at * ROPE};                              \
        AbsorbedFlash<T>::run(problem, scale, 0, kv_len);                                                      \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(FLASH_THREADS)                                                \
        sparse_mla_##NAME(const T* Q, const T* KV, const int* Indices, T* O, long long seq, long long kv_len,   \
                          long long topk, int heads, float scale) {                                           \
        const T* cache = KV + query_of_block(heads) / seq * kv_len * ABSORBED;                                            \
        const int* named = Indices + query_of_block(heads) * topk;                                                        \
        AbsorbedFlash<T>::run(absorbed<T>(Q, cache, named, O, heads, topk), scale, 0, topk);                   \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(FLASH_THREADS)                                                \
        mla_prefill_##NAME(const T* Q, const T* K, const T* K_rope, const T* V, T* O, long long seq,            \
                           long long prefix, int heads, float scale) {                                        \
        const long long head = blockIdx.y, batch = blockIdx.z, kv_len = prefix + seq;                          \
        const long long query0 = blockIdx.x * static_cast<long long>(QUERY_ROWS);                              \
        const Expanded<T> problem{Q + (batch * seq * heads + head) * EXPANDED,                                 \
                                  K + (batch * kv_len * heads + head) * NOPE, K_rope + batch * kv_len * ROPE,   \
                                  V + (batch * kv_len * heads + head) * VALUE,                                 \
                                  O + (batch * seq * heads + head) * VALUE, seq, kv_len, query0, prefix, heads}; \
        const long long end = prefix + query0 + QUERY_ROWS;                                                    \
        Flash<T, QUERY_ROWS, EXPANDED, VALUE, false>::run(problem, scale, 0, end < kv_len ? end : kv_len);      \
    }
FOR_TYPE(bf16, Bf16)
FOR_TYPE(fp16, Half)
