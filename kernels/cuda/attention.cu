// Softmax attention of heads of HEAD_DIM elements. Macros, given when it is compiled:
//   MATH: type of the products (Bf16 or Half), Q_TYPE and KV_TYPE: stored types, fp8 ones are widened;
//   HEAD_DIM: a multiple of 16.
#include "flash.cuh"

#ifndef HEAD_DIM
#define HEAD_DIM 128
#define MATH Bf16
#define Q_TYPE Bf16
#define KV_TYPE Bf16
#endif

constexpr int V_COLUMNS = (HEAD_DIM + 31) / 32 * 32;
constexpr int PREFILL_ROWS = HEAD_DIM <= 128 ? 64 : 16;

// Eight elements of a head's row, or zeros.
template <class S> DEVICE void head_row(const S* row, bool there, int col, MATH out[8]) {
    load8(row + col, there ? max(0, min(8, HEAD_DIM - col)) : 0, out);
}

// Rows are queries of one head. Query i is key prefix + i; ``window`` keys are seen at most (0: all).
struct Prefill {
    const Q_TYPE* Q;
    const KV_TYPE *K, *V;
    void* O;
    long long q_stride, kv_stride, seq, kv_len, query0, prefix, window;  // strides between positions
    int causal, out_type;
    DEVICE void query(int row, int col, MATH* x) const {
        head_row(Q + (query0 + row) * q_stride, query0 + row < seq, col, x);
    }
    DEVICE void key(long long at, int col, MATH* x) const { head_row(K + at * kv_stride, at < kv_len, col, x); }
    DEVICE void value(long long at, int col, MATH* x) const { head_row(V + at * kv_stride, at < kv_len, col, x); }
    DEVICE bool visible(int row, long long at) const {
        const long long position = prefix + query0 + row;
        return !causal || (at <= position && (window == 0 || at > position - window));
    }
    DEVICE void write(int row, int col, float result) const {
        if (query0 + row < seq && col < HEAD_DIM) store_as(O, (query0 + row) * q_stride + col, result, out_type);
    }
};

extern "C" __global__ void __launch_bounds__(FLASH_THREADS)
    attention_prefill(const Q_TYPE* Q, const KV_TYPE* K, const KV_TYPE* V, void* O, long long seq, long long prefix,
                      long long window, int heads, int kv_heads, int causal, int out_type, float scale) {
    const int head = blockIdx.y, kv_head = head / (heads / kv_heads);
    const long long batch = blockIdx.z, kv_len = prefix + seq, query0 = blockIdx.x * static_cast<long long>(PREFILL_ROWS);
    const long long q_at = (batch * seq * heads + head) * HEAD_DIM, kv_at = (batch * kv_len * kv_heads + kv_head) * HEAD_DIM;
    const int out_bytes = out_type == OUT_FP32 ? 4 : 2;
    const Prefill problem{Q + q_at, K + kv_at, V + kv_at, static_cast<unsigned char*>(O) + q_at * out_bytes,
                          static_cast<long long>(heads) * HEAD_DIM, static_cast<long long>(kv_heads) * HEAD_DIM, seq,
                          kv_len, query0, prefix, window, causal, out_type};
    const long long end = prefix + query0 + PREFILL_ROWS, oldest = prefix + query0 + 1 - window;
    const long long first = causal && window && oldest > 0 ? oldest : 0;
    Flash<MATH, PREFILL_ROWS, HEAD_DIM, V_COLUMNS, false>::run(problem, scale, first, causal && end < kv_len ? end : kv_len);
}

// Rows are the query heads that share a key/value head.
struct Decode {
    const Q_TYPE* Q;
    const KV_TYPE *K, *V;
    void* O;
    long long kv_stride, kv_len;
    int row0, rows, out_type;
    DEVICE void query(int row, int col, MATH* x) const { head_row(Q + (row0 + row) * HEAD_DIM, row0 + row < rows, col, x); }
    DEVICE void key(long long at, int col, MATH* x) const { head_row(K + at * kv_stride, at < kv_len, col, x); }
    DEVICE void value(long long at, int col, MATH* x) const { head_row(V + at * kv_stride, at < kv_len, col, x); }
    DEVICE bool visible(int, long long) const { return true; }
    DEVICE void write(int row, int col, float result) const {
        if (row0 + row < rows && col < HEAD_DIM) store_as(O, (row0 + row) * HEAD_DIM + col, result, out_type);
    }
};

extern "C" __global__ void __launch_bounds__(FLASH_THREADS)
    attention_decode(const Q_TYPE* Q, const KV_TYPE* K, const KV_TYPE* V, void* O, long long kv_len, long long window,
                     int group, int out_type, float scale) {
    const long long kv_head = blockIdx.y, kv_heads = gridDim.y, batch = blockIdx.z;
    const long long q_at = (batch * kv_heads + kv_head) * group * HEAD_DIM, kv_at = (batch * kv_len * kv_heads + kv_head) * HEAD_DIM;
    const int out_bytes = out_type == OUT_FP32 ? 4 : 2;
    const Decode problem{Q + q_at, K + kv_at, V + kv_at, static_cast<unsigned char*>(O) + q_at * out_bytes,
                         kv_heads * HEAD_DIM, kv_len, static_cast<int>(blockIdx.x) * 16, group, out_type};
    const long long first = window && kv_len > window ? kv_len - window : 0;
    Flash<MATH, 16, HEAD_DIM, V_COLUMNS, false>::run(problem, scale, first, kv_len);
}
