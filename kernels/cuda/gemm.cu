// Matrix products: a block a tile of 64 × 64 results. Operands of one byte or less are widened to fp16 on
// their way to the matrix units, which loses nothing (e4m3 has four significant bits, nvfp4 with its scales
// five), so that every product is exact and every sum float32; int8 multiplies as it is, into int32.
#include "tile.cuh"

struct Sizes {
    long long m, n, k;
};

// Results of a tile inside of C (m, n), through ``f``, to the type that the launch chose.
template <class Acc, class F>
DEVICE void write_tile(Tile<Acc>& tile, void* C, const Sizes& s, long long m0, long long n0, int out_type, F f) {
    tile.each([&](int row, int column, Acc sum) {
        const long long m = m0 + row, n = n0 + column;
        if (m < s.m && n < s.n) store_as(C, m * s.n + n, f(m, n, sum), out_type);
    });
}

// C[b] = op(A[b]) · op(B[b]); S is the stored type, T that of the products.
template <class T, class S>
DEVICE void plain(const S* A, const S* B, void* C, Sizes s, int trans_a, int trans_b, int out_type) {
    using Acc = typename Accumulator<T>::Type;
    const long long batch = blockIdx.z, m0 = blockIdx.y * (long long)TILE, n0 = blockIdx.x * (long long)TILE;
    const S* a = A + batch * s.m * s.k;
    const S* b = B + batch * s.k * s.n;
    const Dense<T, S> a_view = trans_a ? Dense<T, S>{a, s.k, s.m, s.m} : Dense<T, S>{a, s.m, s.k, s.k};
    const Dense<T, S> b_view = trans_b ? Dense<T, S>{b, s.n, s.k, s.k} : Dense<T, S>{b, s.k, s.n, s.n};
    Tile<Acc> tile;
    tile.clear();
    multiply<T>(tile, a_view, trans_a != 0, b_view, trans_b == 0, m0, n0, 0, s.k);
    const long long at = batch * s.m * s.n;
    tile.each([&](int row, int column, Acc sum) {
        const long long m = m0 + row, n = n0 + column;
        if (m < s.m && n < s.n) store_as(C, at + m * s.n + n, sum, out_type);
    });
}

#define GEMM(NAME, T, S)                                                                                        \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS)                                                 \
        gemm_##NAME(const S* A, const S* B, void* C, long long m, long long n, long long k, int trans_a,        \
                    int trans_b, int out_type) {                                                              \
        plain<T, S>(A, B, C, Sizes{m, n, k}, trans_a, trans_b, out_type);                                      \
    }
GEMM(bf16, Bf16, Bf16)
GEMM(fp16, Half, Half)
GEMM(fp8, Half, Fp8)
GEMM(int8, Int8, Int8)

// C = (A Bᵀ) · a_scale ⊗ b_scale: scales of the tensors, or (per_row) of the rows of A and of B.
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    gemm_fp8_scaled(const Fp8* A, const float* A_scale, const Fp8* B, const float* B_scale, void* C, long long m,
                    long long n, long long k, int per_row, int out_type) {
    const long long m0 = blockIdx.y * (long long)TILE, n0 = blockIdx.x * (long long)TILE;
    Tile<float> tile;
    tile.clear();
    multiply<Half>(tile, Dense<Half, Fp8>{A, m, k, k}, false, Dense<Half, Fp8>{B, n, k, k}, false, m0, n0, 0, k);
    write_tile(tile, C, Sizes{m, n, k}, m0, n0, out_type, [&](long long row, long long column, float sum) {
        return per_row ? sum * A_scale[row] * B_scale[column] : sum * (A_scale[0] * B_scale[0]);
    });
}

// Two-level accumulation, as DeepGEMM on Hopper: float32 scales a row and 128 of A, a 128 × 128 block of B.
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    gemm_fp8_block(const Fp8* A, const float* A_scale, const Fp8* B, const float* B_scale, void* C, long long m,
                   long long n, long long k, int out_type) {
    const long long m0 = blockIdx.y * (long long)TILE, n0 = blockIdx.x * (long long)TILE;
    const long long blocks = (k + BLOCK - 1) / BLOCK;
    Tile<float> total;
    total.clear();
    multiply_by_blocks<Half>(
        total, Dense<Half, Fp8>{A, m, k, k}, Dense<Half, Fp8>{B, n, k, k},
        [&](long long row, long long block) { return row < m ? A_scale[row * blocks + block] : 0.0f; },
        [&](long long row, long long block) { return row < n ? B_scale[row / BLOCK * blocks + block] : 0.0f; }, m0,
        n0, k);
    write_tile(total, C, Sizes{m, n, k}, m0, n0, out_type, [](long long, long long, float sum) { return sum; });
}

// As DeepGEMM on Blackwell: e8m0 scales, a row and 128 of A and of B, packed as (ceil(k / 512), rows, 4).
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    gemm_fp8_e8m0(const Fp8* A, const unsigned char* A_scale, const Fp8* B, const unsigned char* B_scale, void* C,
                  long long m, long long n, long long k, int out_type) {
    const long long m0 = blockIdx.y * (long long)TILE, n0 = blockIdx.x * (long long)TILE;
    Tile<float> total;
    total.clear();
    const auto packed = [](const unsigned char* scales, long long rows, long long row, long long block) {
        return row < rows ? e8m0_value(scales[(block / 4 * rows + row) * 4 + block % 4]) : 0.0f;
    };
    multiply_by_blocks<Half>(
        total, Dense<Half, Fp8>{A, m, k, k}, Dense<Half, Fp8>{B, n, k, k},
        [&](long long row, long long block) { return packed(A_scale, m, row, block); },
        [&](long long row, long long block) { return packed(B_scale, n, row, block); }, m0, n0, k);
    write_tile(total, C, Sizes{m, n, k}, m0, n0, out_type, [](long long, long long, float sum) { return sum; });
}

// C = alpha · A Bᵀ of nvfp4 operands.
extern "C" __global__ void __launch_bounds__(TILE_THREADS)
    gemm_nvfp4(const unsigned char* A, const Fp8* A_scale, const unsigned char* B, const Fp8* B_scale,
               const float* Alpha, void* C, long long m, long long n, long long k, int out_type) {
    const long long m0 = blockIdx.y * (long long)TILE, n0 = blockIdx.x * (long long)TILE;
    Tile<float> tile;
    tile.clear();
    multiply<Half>(tile, Nvfp4<Half>{A, A_scale, m, k}, false, Nvfp4<Half>{B, B_scale, n, k}, false, m0, n0, 0, k);
    write_tile(tile, C, Sizes{m, n, k}, m0, n0, out_type,
               [&](long long, long long, float sum) { return sum * Alpha[0]; });
}

// C = A Wᵀ with four-bit weights, which are rounded to A's type once their scale is applied.
template <class T>
DEVICE void dequant(const T* A, const unsigned char* W, const T* W_scale, T* C, Sizes s, int group, int is_int) {
    const long long m0 = blockIdx.y * (long long)TILE, n0 = blockIdx.x * (long long)TILE;
    Tile<float> tile;
    tile.clear();
    multiply<T>(tile, Dense<T, T>{A, s.m, s.k, s.k}, false, Dequantised<T>{W, W_scale, s.n, s.k, group, is_int},
                false, m0, n0, 0, s.k);
    tile.each([&](int row, int column, float sum) {
        const long long m = m0 + row, n = n0 + column;
        if (m < s.m && n < s.n) C[m * s.n + n] = from_float<T>(sum);
    });
}

// Y = X unfolded · F: a row of the left operand is a result pixel.
template <class T> DEVICE void convolve(const T* F, T* Y, const Unfolded<T>& view, long long filters) {
    const long long m0 = blockIdx.y * (long long)TILE, n0 = blockIdx.x * (long long)TILE;
    Tile<float> tile;
    tile.clear();
    multiply<T>(tile, view, false, Dense<T, T>{F, view.depth, filters, filters}, true, m0, n0, 0, view.depth);
    tile.each([&](int row, int column, float sum) {
        const long long m = m0 + row, n = n0 + column;
        if (m < view.pixels && n < filters) Y[m * filters + n] = from_float<T>(sum);
    });
}

#define SIXTEEN_BIT(NAME, T)                                                                                    \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS)                                                 \
        gemm_dequant_##NAME(const T* A, const unsigned char* W, const T* W_scale, T* C, long long m, long long n, \
                            long long k, int group, int is_int) {                                             \
        dequant<T>(A, W, W_scale, C, Sizes{m, n, k}, group, is_int);                                           \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(TILE_THREADS)                                                 \
        conv2d_##NAME(const T* X, const T* F, T* Y, long long pixels, long long depth, long long filters,       \
                      int height, int width, int channels, int kernel, int stride, int padding, int out_height, \
                      int out_width) {                                                                        \
        const Unfolded<T> view{X, pixels, depth, height, width, channels, kernel, stride, padding, out_height,  \
                               out_width};                                                                    \
        convolve<T>(F, Y, view, filters);                                                                      \
    }
SIXTEEN_BIT(bf16, Bf16)
SIXTEEN_BIT(fp16, Half)
