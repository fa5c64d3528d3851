// Matrix instructions of a warp: D = A·B + D with A of 16 × K and B of K × 8 elements, K = 32 bytes.
//
// Fragments are those of PTX's mma.sync.m16n8k16 (16-bit elements) and m16n8k32 (8-bit): with g = lane / 4
// and t = lane % 4, in words of four bytes along K,
//   a[0] = A[g][t], a[1] = A[g + 8][t], a[2] = A[g][t + 4], a[3] = A[g + 8][t + 4],
//   b[0] = B[t][g], b[1] = B[t + 4][g],  d[0..3] = D[g][2t], D[g][2t + 1], D[g + 8][2t], D[g + 8][2t + 1].
// PTX ISA, "Matrix Fragments for mma.m16n8k16" and "… mma.m16n8k32". Products are exact, sums are float32
// (int32 for int8).
#pragma once
#include "foretile.cuh"

template <class T> struct Accumulator { using Type = float; };
template <> struct Accumulator<Int8> { using Type = int; };

#ifndef FORETILE_HOST
template <class T> DEVICE void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
template <> DEVICE void mma<Bf16>(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <> DEVICE void mma<Half>(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <class T> DEVICE void mma(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// The fragments of a warp from rows of ``stride`` words: A of sixteen rows, B of eight (its columns).
DEVICE void load_a(unsigned (&a)[4], const unsigned* rows, int stride) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    a[0] = rows[g * stride + t];
    a[1] = rows[(g + 8) * stride + t];
    a[2] = rows[g * stride + t + 4];
    a[3] = rows[(g + 8) * stride + t + 4];
}
DEVICE void load_b(unsigned (&b)[2], const unsigned* columns, int stride) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    b[0] = columns[g * stride + t];
    b[1] = columns[g * stride + t + 4];
}

// As load_b, of a 16-bit tile stored (k, n): the two elements of a word are in two rows.
template <class T> DEVICE void load_b_rows(unsigned (&b)[2], const T* tile, int stride) {
    const int g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const unsigned short* raw = reinterpret_cast<const unsigned short*>(tile) + g;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int k = 2 * t + 8 * i;
        b[i] = raw[k * stride] | static_cast<unsigned>(raw[(k + 1) * stride]) << 16;
    }
}
