// Products of rows with the weights of their group (expert): grouped_gemm, and both products of a mixture of
// experts. Every tile of rows belongs to one group. fp8 and nvfp4 are widened to fp16, as in gemm.cu.
#include "tile.cuh"

// Rows that are taken from ``index`` (or as they are, without one); those at or behind ``limit`` are zero.
template <class T, class View> struct Rows {
    View view;
    const int* index;
    long long limit;
    DEVICE long long at(long long row) const { return index != nullptr ? index[row] : row; }
    DEVICE void eight(long long row, long long first, T out[8]) const {
        if (row < limit) return view.eight(at(row), first, out);
#pragma unroll
        for (int i = 0; i < 8; ++i) out[i] = zero<T>();
    }
};

// The formats of both operands: ``product`` adds A[m0 …]·B[n0 …]ᵀ of ``depth`` to a tile.
template <class T, class S> struct Plain {
    using Type = T;
    Rows<T, Dense<T, S>> A;
    Dense<T, S> B;
    DEVICE void product(Tile<float>& tile, long long m0, long long n0, long long depth) const {
        multiply<T>(tile, A, false, B, false, m0, n0, 0, depth);
    }
};
struct ByBlocks {  // float32 scales a row and 128 of A, a 128 × 128 block of B
    Rows<Half, Dense<Half, Fp8>> A;
    const float* A_scale;
    Dense<Half, Fp8> B;
    const float* B_scale;
    DEVICE void product(Tile<float>& tile, long long m0, long long n0, long long depth) const {
        const long long blocks = (depth + BLOCK - 1) / BLOCK;
        multiply_by_blocks<Half>(
            tile, A, B,
            [&](long long row, long long block) { return row < A.limit ? A_scale[A.at(row) * blocks + block] : 0.0f; },
            [&](long long row, long long block) { return row < B.outer ? B_scale[row / BLOCK * blocks + block] : 0.0f; },
            m0, n0, depth);
    }
};
struct Four {
    Rows<Half, Nvfp4<Half>> A;
    Nvfp4<Half> B;
    DEVICE void product(Tile<float>& tile, long long m0, long long n0, long long depth) const {
        multiply<Half>(tile, A, false, B, false, m0, n0, 0, depth);
    }
};

// C = the format's product times ``scale(row)``; zeros where the tile is not used.
template <class F, class Scale>
DEVICE void write_product(const F& format, bool used, void* C, long long rows, long long n, long long k, long long m0,
                          long long n0, int out_type, Scale scale) {
    Tile<float> tile;
    tile.clear();
    if (used) format.product(tile, m0, n0, k);  // the same for all threads of the block
    tile.each([&](int row, int column, float sum) {
        const long long m = m0 + row, c = n0 + column;
        if (m < rows && c < n) store_as(C, m * n + c, used ? sum * scale(m) : 0.0f, out_type);
    });
}

// The group of the block's rows and the buffer's first row: ``groups_of_rows`` has the group of every row or -1
// (contiguous layout), or ``filled`` how many of each group's ``rows`` rows exist (masked, groups along z).
struct Place {
    long long group, base, m0, n0;
    bool used;
    DEVICE Place(const int* groups_of_rows, const int* filled, long long rows) {
        m0 = blockIdx.y * (long long)TILE;
        n0 = blockIdx.x * (long long)TILE;
        group = filled != nullptr ? static_cast<long long>(blockIdx.z) : groups_of_rows[m0];
        used = filled != nullptr ? m0 < filled[group] : group >= 0;
        base = filled != nullptr ? group * rows : 0;
        if (group < 0) group = 0;
    }
};

DEVICE void* offset(void* out, long long elements, int type) {
    return static_cast<unsigned char*>(out) + elements * (type == OUT_FP32 ? 4 : 2);
}

template <class T>
DEVICE void grouped_plain(const T* A, const T* B, const int* layout, const int* filled, void* C, long long rows,
                          long long n, long long k, int out_type) {
    const Place at(layout, filled, rows);
    const Plain<T, T> format{{{A + at.base * k, rows, k, k}, nullptr, rows}, {B + at.group * n * k, n, k, k}};
    write_product(format, at.used, offset(C, at.base * n, out_type), rows, n, k, at.m0, at.n0, out_type,
                  [](long long) { return 1.0f; });
}

#define GROUPED(NAME, T)                                                                                        \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS)                                                 \
        grouped_gemm_##NAME(const T* A, const T* B, const int* m_indices, void* C, long long rows, long long n,  \
                            long long k, int out_type) {                                                      \
        grouped_plain<T>(A, B, m_indices, nullptr, C, rows, n, k, out_type);                                   \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS)                                                 \
        grouped_gemm_masked_##NAME(const T* A, const T* B, const int* masked_m, void* C, long long rows,         \
                                   long long n, long long k, int out_type) {                                  \
        grouped_plain<T>(A, B, nullptr, masked_m, C, rows, n, k, out_type);                                    \
    }
GROUPED(bf16, Bf16)
GROUPED(fp16, Half)

// fp8: a float32 scale a row of A and a group of B, or (by_blocks) as gemm_fp8_block. ``masked`` is the layout.
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    grouped_gemm_fp8(const Fp8* A, const float* A_scale, const Fp8* B, const float* B_scale, const int* layout,
                     void* C, long long rows, long long n, long long k, int masked, int out_type) {
    const Place at(layout, masked ? layout : nullptr, rows);
    const Plain<Half, Fp8> format{{{A + at.base * k, rows, k, k}, nullptr, rows}, {B + at.group * n * k, n, k, k}};
    write_product(format, at.used, offset(C, at.base * n, out_type), rows, n, k, at.m0, at.n0, out_type,
                  [&](long long row) { return A_scale[at.base + row] * B_scale[at.group]; });
}
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    grouped_gemm_fp8_block(const Fp8* A, const float* A_scale, const Fp8* B, const float* B_scale, const int* layout,
                           void* C, long long rows, long long n, long long k, int masked, int out_type) {
    const Place at(layout, masked ? layout : nullptr, rows);
    const long long blocks = (k + BLOCK - 1) / BLOCK, column_blocks = (n + BLOCK - 1) / BLOCK;
    const ByBlocks format{{{A + at.base * k, rows, k, k}, nullptr, rows}, A_scale + at.base * blocks,
                          {B + at.group * n * k, n, k, k}, B_scale + at.group * column_blocks * blocks};
    write_product(format, at.used, offset(C, at.base * n, out_type), rows, n, k, at.m0, at.n0, out_type,
                  [](long long) { return 1.0f; });
}

// Mixture of experts. Tiles of ``align`` rows belong to an expert, the first filled[tile] of them exist; a
// block takes 64 of them. ``token`` has the token of every row.
struct Tokens {
    long long expert, m0, n0, end;  // rows m0 … end - 1
    DEVICE Tokens(const int* tile_expert, const int* filled, int align) {
        const int parts = (align + TILE - 1) / TILE, tile = blockIdx.y / parts, part = blockIdx.y % parts;
        const long long first = static_cast<long long>(tile) * align;
        expert = tile_expert[tile];
        m0 = first + part * TILE;
        n0 = blockIdx.x * (long long)TILE;
        end = first + filled[tile];
        if (end > m0 + TILE) end = m0 + TILE;
    }
};

// H = silu(gate · gate_scale) · (up · up_scale), in ``out_type``: fp32 where H is to be quantised.
template <class F>
DEVICE void gate_up(const F& gate, const F& up, const Tokens& at, void* H, long long inter, long long hidden,
                    float gate_scale, float up_scale, int out_type) {
    if (at.m0 >= at.end) return;  // the same for all threads of the block
    Tile<float> g, u;
    g.clear();
    u.clear();
    gate.product(g, at.m0, at.n0, hidden);
    up.product(u, at.m0, at.n0, hidden);
    // The fragments of both products lie alike: the gate's are walked, the up's taken from the same place.
    const float* other = &u.sums[0][0][0];
    int place = 0;
    g.each([&](int row, int column, float sum) {
        const long long m = at.m0 + row, n = at.n0 + column;
        const float x = sum * gate_scale, y = other[place++] * up_scale;
        if (m < at.end && n < inter) store_as(H, m * inter + n, x / (1.0f + expf(-x)) * y, out_type);
    });
}

// Y = H · W_downᵀ · scale, in bf16 or fp16.
template <class F>
DEVICE void down(const F& format, const Tokens& at, void* Y, long long hidden, long long inter, float scale,
                 int out_type) {
    if (at.m0 >= at.end) return;
    write_product(format, true, Y, at.end, hidden, inter, at.m0, at.n0, out_type,
                  [&](long long) { return scale; });
}

#define MOE_ARGS const int *token, const int *TileExpert, const int *TileRows
#define MOE_SIZES long long tokens, long long inter, long long hidden, int align, int out_type

#define MOE(NAME, T)                                                                                            \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS)                                                 \
        moe_gate_up_##NAME(const T* X, const T* W, MOE_ARGS, void* H, MOE_SIZES) {                             \
        const Tokens at(TileExpert, TileRows, align);                                                          \
        const T* w = W + at.expert * 2 * inter * hidden;                                                       \
        const Rows<T, Dense<T, T>> x{{X, tokens, hidden, hidden}, token, at.end};                              \
        gate_up(Plain<T, T>{x, {w, inter, hidden, hidden}},                                                    \
                Plain<T, T>{x, {w + inter * hidden, inter, hidden, hidden}}, at, H, inter, hidden, 1.0f, 1.0f,   \
                out_type);                                                                                     \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS)                                                 \
        moe_down_##NAME(const T* H, const T* W, const int* TileExpert, const int* TileRows, void* Y,            \
                        long long inter, long long hidden, int align, int out_type) {                         \
        const Tokens at(TileExpert, TileRows, align);                                                          \
        down(Plain<T, T>{{{H, at.end, inter, inter}, nullptr, at.end},                                         \
                         {W + at.expert * hidden * inter, hidden, inter, inter}},                              \
             at, Y, hidden, inter, 1.0f, out_type);                                                            \
    }
MOE(bf16, Bf16)
MOE(fp16, Half)

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    moe_gate_up_fp8(const Fp8* X, const float* X_scale, const Fp8* W, const float* W_scale, MOE_ARGS, void* H, MOE_SIZES) {
    const Tokens at(TileExpert, TileRows, align);
    const Fp8* w = W + at.expert * 2 * inter * hidden;
    const Rows<Half, Dense<Half, Fp8>> x{{X, tokens, hidden, hidden}, token, at.end};
    gate_up(Plain<Half, Fp8>{x, {w, inter, hidden, hidden}},
            Plain<Half, Fp8>{x, {w + inter * hidden, inter, hidden, hidden}}, at, H, inter, hidden,
            X_scale[0] * W_scale[2 * at.expert], X_scale[0] * W_scale[2 * at.expert + 1], out_type);
}
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    moe_down_fp8(const Fp8* H, const float* H_scale, const Fp8* W, const float* W_scale, const int* TileExpert,
                 const int* TileRows, void* Y, long long inter, long long hidden, int align, int out_type) {
    const Tokens at(TileExpert, TileRows, align);
    down(Plain<Half, Fp8>{{{H, at.end, inter, inter}, nullptr, at.end},
                          {W + at.expert * hidden * inter, hidden, inter, inter}},
         at, Y, hidden, inter, H_scale[0] * W_scale[at.expert], out_type);
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    moe_gate_up_fp8_block(const Fp8* X, const float* X_scale, const Fp8* W, const float* W_scale, MOE_ARGS, void* H,
                          MOE_SIZES) {
    const Tokens at(TileExpert, TileRows, align);
    const long long scales = ((inter + BLOCK - 1) / BLOCK) * ((hidden + BLOCK - 1) / BLOCK);
    const Fp8* w = W + at.expert * 2 * inter * hidden;
    const float* s = W_scale + at.expert * 2 * scales;
    const Rows<Half, Dense<Half, Fp8>> x{{X, tokens, hidden, hidden}, token, at.end};
    gate_up(ByBlocks{x, X_scale, {w, inter, hidden, hidden}, s},
            ByBlocks{x, X_scale, {w + inter * hidden, inter, hidden, hidden}, s + scales}, at, H, inter, hidden, 1.0f,
            1.0f, out_type);
}
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    moe_down_fp8_block(const Fp8* H, const float* H_scale, const Fp8* W, const float* W_scale, const int* TileExpert,
                       const int* TileRows, void* Y, long long inter, long long hidden, int align, int out_type) {
    const Tokens at(TileExpert, TileRows, align);
    const long long scales = ((inter + BLOCK - 1) / BLOCK) * ((hidden + BLOCK - 1) / BLOCK);
    down(ByBlocks{{{H, at.end, inter, inter}, nullptr, at.end}, H_scale,
                  {W + at.expert * hidden * inter, hidden, inter, inter}, W_scale + at.expert * scales},
         at, Y, hidden, inter, 1.0f, out_type);
}

extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    moe_gate_up_nvfp4(const unsigned char* X, const Fp8* X_groups, const float* X_scale, const unsigned char* W,
                      const Fp8* W_scale, const float* W_global, MOE_ARGS, void* H, MOE_SIZES) {
    const Tokens at(TileExpert, TileRows, align);
    const long long matrix = inter * hidden / 2, groups = inter * ((hidden + 15) / 16);
    const unsigned char* w = W + at.expert * 2 * matrix;
    const Fp8* s = W_scale + at.expert * 2 * groups;
    const Rows<Half, Nvfp4<Half>> x{{X, X_groups, tokens, hidden}, token, at.end};
    gate_up(Four{x, {w, s, inter, hidden}}, Four{x, {w + matrix, s + groups, inter, hidden}}, at, H, inter, hidden,
            X_scale[0] * W_global[2 * at.expert], X_scale[0] * W_global[2 * at.expert + 1], out_type);
}
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    moe_down_nvfp4(const unsigned char* H, const Fp8* H_groups, const float* H_scale, const unsigned char* W,
                   const Fp8* W_scale, const float* W_global, const int* TileExpert, const int* TileRows, void* Y,
                   long long inter, long long hidden, int align, int out_type) {
    const Tokens at(TileExpert, TileRows, align);
    const long long matrix = hidden * inter / 2, groups = hidden * ((inter + 15) / 16);
    down(Four{{{H, H_groups, at.end, inter}, nullptr, at.end},
              {W + at.expert * matrix, W_scale + at.expert * groups, hidden, inter}},
         at, Y, hidden, inter, H_scale[0] * W_global[at.expert], out_type);
}
