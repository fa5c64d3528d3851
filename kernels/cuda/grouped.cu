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

// Mixture of experts, either product: rows of A by the weights W (experts, parts, n, k) of their expert, parts
// along the grid's z axis; C is (parts, rows, n). Tiles of ``align`` rows belong to an expert, of which the first
// TileRows[tile] exist; a block takes 64 of them. ``index`` has the row of A (of a_rows) for every row of C; null:
// the same row.
#define MOE_ARGS const int *index, const int *TileExpert, const int *TileRows, void *C
#define MOE_SIZES long long a_rows, long long rows, long long n, long long k, int align, int out_type
#define EXPERT_KERNEL extern "C" __global__ void __launch_bounds__(TILE_THREADS)

struct Share {
    long long expert, matrix, m0, n0, end, base;  // rows m0 … end - 1; the part's first element of C
    DEVICE Share(const int* tile_expert, const int* filled, int align, long long rows, long long n) {
        const int parts = (align + TILE - 1) / TILE, tile = blockIdx.y / parts, part = blockIdx.y % parts;
        const long long first = static_cast<long long>(tile) * align;
        expert = tile_expert[tile];
        matrix = expert * gridDim.z + blockIdx.z;
        m0 = first + part * TILE;
        n0 = blockIdx.x * (long long)TILE;
        end = first + filled[tile];
        if (end > m0 + TILE) end = m0 + TILE;
        base = blockIdx.z * rows * n;
    }
};

template <class F>
DEVICE void expert_product(const F& format, const Share& at, void* C, long long n, long long k, float scale,
                           int out_type) {
    if (at.m0 >= at.end) return;  // the same for all threads of the block
    write_product(format, true, offset(C, at.base, out_type), at.end, n, k, at.m0, at.n0, out_type,
                  [&](long long) { return scale; });
}

#define MOE(NAME, T)                                                                                            \
    EXPERT_KERNEL moe_product_##NAME(const T* A, const T* W, MOE_ARGS, MOE_SIZES) {                             \
        const Share at(TileExpert, TileRows, align, rows, n);                                                  \
        const Plain<T, T> format{{{A, a_rows, k, k}, index, at.end}, {W + at.matrix * n * k, n, k, k}};         \
        expert_product(format, at, C, n, k, 1.0f, out_type);                                                   \
    }
MOE(bf16, Bf16)
MOE(fp16, Half)

// A float32 scale for A, one for each matrix of weights.
EXPERT_KERNEL moe_product_fp8(const Fp8* A, const float* A_scale, const Fp8* W, const float* W_scale, MOE_ARGS,
                              MOE_SIZES) {
    const Share at(TileExpert, TileRows, align, rows, n);
    const Plain<Half, Fp8> format{{{A, a_rows, k, k}, index, at.end}, {W + at.matrix * n * k, n, k, k}};
    expert_product(format, at, C, n, k, A_scale[0] * W_scale[at.matrix], out_type);
}

EXPERT_KERNEL moe_product_fp8_block(const Fp8* A, const float* A_scale, const Fp8* W, const float* W_scale, MOE_ARGS,
                                    MOE_SIZES) {
    const Share at(TileExpert, TileRows, align, rows, n);
    const long long scales = ((n + BLOCK - 1) / BLOCK) * ((k + BLOCK - 1) / BLOCK);
    const ByBlocks format{{{A, a_rows, k, k}, index, at.end}, A_scale, {W + at.matrix * n * k, n, k, k},
                          W_scale + at.matrix * scales};
    expert_product(format, at, C, n, k, 1.0f, out_type);
}

// Scales of groups of 16, of A as a whole, and of each matrix of weights.
EXPERT_KERNEL moe_product_nvfp4(const unsigned char* A, const Fp8* A_groups, const float* A_scale,
                                const unsigned char* W, const Fp8* W_scale, const float* W_global, MOE_ARGS, MOE_SIZES) {
    const Share at(TileExpert, TileRows, align, rows, n);
    const Four format{{{A, A_groups, a_rows, k}, index, at.end},
                      {W + at.matrix * n * k / 2, W_scale + at.matrix * n * ((k + 15) / 16), n, k}};
    expert_product(format, at, C, n, k, A_scale[0] * W_global[at.matrix], out_type);
}
