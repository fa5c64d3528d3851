// Copies and transpositions: bytes as they are.
#include "foretile.cuh"

// Sixteen bytes a thread and step; the last few one by one. Buffers are aligned to sixteen.
extern "C" __global__ void copy(const unsigned char* Src, unsigned char* Dst, long long bytes) {
    const long long chunks = bytes / 16, step = static_cast<long long>(gridDim.x) * blockDim.x;
    const long long first = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    for (long long i = first; i < chunks; i += step) reinterpret_cast<uint4*>(Dst)[i] = reinterpret_cast<const uint4*>(Src)[i];
    for (long long i = chunks * 16 + first; i < bytes; i += step) Dst[i] = Src[i];
}

constexpr int SIDE = 32;  // of a tile, which is read and written along rows; a block has SIDE × 8 threads

template <class T> DEVICE void transpose_tile(const T* X, T* Y, long long rows, long long cols) {
    __shared__ T tile[SIDE][SIDE + 4 / sizeof(T)];  // padded by a bank: columns are read without conflicts
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    const long long across = (cols + SIDE - 1) / SIDE;
    const long long row0 = blockIdx.x / across * SIDE, col0 = blockIdx.x % across * SIDE;
    for (int i = y; i < SIDE; i += 8)
        if (row0 + i < rows && col0 + x < cols) tile[i][x] = X[(row0 + i) * cols + col0 + x];
    __syncthreads();
    for (int i = y; i < SIDE; i += 8)
        if (col0 + i < cols && row0 + x < rows) Y[(col0 + i) * rows + row0 + x] = tile[x][i];
}
extern "C" __global__ void transpose_1(const unsigned char* X, unsigned char* Y, long long rows, long long cols) {
    transpose_tile(X, Y, rows, cols);
}
extern "C" __global__ void transpose_2(const unsigned short* X, unsigned short* Y, long long rows, long long cols) {
    transpose_tile(X, Y, rows, cols);
}
extern "C" __global__ void transpose_4(const unsigned* X, unsigned* Y, long long rows, long long cols) {
    transpose_tile(X, Y, rows, cols);
}
