// The matrix instruction of compute capability 10.0 (tcgen05.mma): rate by type, width and source of A, latency, a
// main loop fed by bulk copies, and reads of tensor memory (PTX ISA 8.7, "TensorCore 5th Generation Family").
#include "micro.cuh"

#if defined(__CUDA_ARCH_FEAT_SM100_ALL) || defined(__CUDA_ARCH_FEAT_SM103_ALL) || !defined(__CUDA_ARCH__)

extern __shared__ __align__(1024) unsigned char tiles[];

// Shared-memory matrix descriptor: rows of 128 bytes, swizzled, groups of eight rows 1024 bytes apart.
__device__ __forceinline__ u64 descriptor(u32 address) {
    return (u64)((address & 0x3ffff) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 46) | (2ull << 61);
}

// `kind`: 0 zeros, 1 random bfloat16, 2 random half, 3 random bytes below 2 in e4m3.
__device__ __forceinline__ void fill_tiles(int size, int kind) {
    for (int i = threadIdx.x; i < size / 4; i += blockDim.x) {
        const u32 seed = i + 7919 * blockIdx.x;
        ((u32*)tiles)[i] = kind == 0 ? 0u : kind == 3 ? mixed(seed) & 0xbfbfbfbfu : random_pair(seed, kind == 2);
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
}

__device__ __forceinline__ void init_barrier(u64* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void wait_for(u64* barrier, u32 parity) { wait_for(shared_address(barrier), parity); }

__device__ __forceinline__ void commit(u64* barrier) {
    asm volatile("tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [%0];" ::"r"(
                     shared_address(barrier))
                 : "memory");
}

// All 512 columns of tensor memory, by the first warp; the address is left in `where`.
__device__ __forceinline__ u32 allocate(u32* where) {
    if (threadIdx.x < 32) {
        asm volatile("tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%0], 512;" ::"r"(shared_address(where))
                     : "memory");
        asm volatile("tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;" ::: "memory");
    }
    asm volatile("tcgen05.fence::before_thread_sync;" ::: "memory");
    __syncthreads();
    asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
    return *where;
}

__device__ __forceinline__ void release(u32 memory) {
    __syncthreads();
    if (threadIdx.x < 32)
        asm volatile("tcgen05.dealloc.cta_group::1.sync.aligned.b32 %0, 512;" ::"r"(memory) : "memory");
}

// Instruction descriptor: accumulators (0 half, 1 fp32, 2 int32), types of A and B, N columns, 128 rows.
__host__ __device__ constexpr u32 instruction(u32 d, u32 type, u32 n, u32 scaled = 0) {
    return (scaled ? 1u << 23 : d << 4) | type << 7 | type << 10 | (n >> 3) << 17 | (128u >> 4) << 24;
}

#define SHARED_A(k) "l"(left + 2 * (k))
#define TENSOR_A(k) "r"(memory + 256 + 8 * (k))
#define PLAIN(kind, A, left_operand)                                                                         \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %4, 0;\ntcgen05.mma.cta_group::1.kind::" kind         \
                 " [%0], " A ", %2, %3, add;\n}\n" ::"r"(memory),                                            \
                 left_operand, "l"(right + 2 * k), "r"(code), "r"(add)                                       \
                 : "memory")
#define SCALED(kind, A, left_operand)                                                                        \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %4, 0;\ntcgen05.mma.cta_group::1.kind::" kind         \
                 " [%0], " A ", %2, %3, [%5], [%5], add;\n}\n" ::"r"(memory),                                \
                 left_operand, "l"(right + 2 * k), "r"(code), "r"(add), "r"(memory + 448)                    \
                 : "memory")

// One thread issues groups of four instructions of 128 x N x 32 bytes; `a` groups (1 to 8) are in flight (with one
// it is the latency of a group). An iteration: 4 instructions a block, or one where `GROUP` is 1.
// Dynamic shared memory: N x 128 bytes of B, then 16384 of A.
#define TCGEN05(name, N, GROUP, code_of, how, kind, A, left_operand)                                         \
    MICRO_KERNEL(name) {                                                                                     \
        __shared__ u64 finished[8];                                                                          \
        __shared__ u32 where;                                                                                \
        fill_tiles(N * 128 + 16384, b);                                                                      \
        if (threadIdx.x == 0)                                                                                \
            for (int s = 0; s < 8; ++s) init_barrier(finished + s, 1);                                       \
        const u32 memory = allocate(&where);                                                                 \
        const u64 right = descriptor(shared_address(tiles));                                                 \
        const u64 left = descriptor(shared_address(tiles + N * 128));                                        \
        const u32 code = code_of;                                                                            \
        Stopwatch watch;                                                                                     \
        watch.start();                                                                                       \
        if (threadIdx.x == 0) {                                                                              \
            _Pragma("unroll 1") for (int n = 0; n < iterations; ++n) {                                       \
                _Pragma("unroll") for (int k = 0; k < GROUP; ++k) {                                          \
                    const u32 add = n > 0 || k > 0;                                                          \
                    how(kind, A, left_operand(k));                                                           \
                }                                                                                            \
                commit(finished + n % a);                                                                    \
                if (n >= a - 1) wait_for(finished + (n + 1) % a, ((n + 1 - a) / a) & 1);                     \
            }                                                                                                \
            _Pragma("unroll 1") for (int n = iterations > a - 1 ? iterations - (a - 1) : 0; n < iterations; ++n)                 \
                wait_for(finished + n % a, (n / a) & 1);                                                     \
        }                                                                                                    \
        watch.stop(ticks);                                                                                   \
        release(memory);                                                                                     \
    }

TCGEN05(tcgen05_bf16_ss_64, 64, 4, instruction(1, 1, 64), PLAIN, "f16", "%1", SHARED_A)
TCGEN05(tcgen05_bf16_ss_128, 128, 4, instruction(1, 1, 128), PLAIN, "f16", "%1", SHARED_A)
TCGEN05(tcgen05_bf16_ss_256, 256, 4, instruction(1, 1, 256), PLAIN, "f16", "%1", SHARED_A)
TCGEN05(tcgen05_bf16_ts_64, 64, 4, instruction(1, 1, 64), PLAIN, "f16", "[%1]", TENSOR_A)
TCGEN05(tcgen05_bf16_ts_256, 256, 4, instruction(1, 1, 256), PLAIN, "f16", "[%1]", TENSOR_A)
TCGEN05(tcgen05_fp16_ss_256, 256, 4, instruction(1, 0, 256), PLAIN, "f16", "%1", SHARED_A)
TCGEN05(tcgen05_tf32_ss_256, 256, 4, instruction(1, 2, 256), PLAIN, "tf32", "%1", SHARED_A)
TCGEN05(tcgen05_fp8_ss_256, 256, 4, instruction(1, 0, 256), PLAIN, "f8f6f4", "%1", SHARED_A)
#if !defined(__CUDA_ARCH_FEAT_SM103_ALL)  // 10.3 has no integer products
TCGEN05(tcgen05_int8_ss_256, 256, 4, instruction(2, 1, 256), PLAIN, "i8", "%1", SHARED_A)
#endif
TCGEN05(tcgen05_fp4_ss_256, 256, 4, instruction(1, 1, 256, 1), SCALED, "mxf4.block_scale.scale_vec::2X", "%1", SHARED_A)
TCGEN05(tcgen05_latency_bf16_128, 128, 1, instruction(1, 1, 128), PLAIN, "f16", "%1", SHARED_A)

// A main loop: one thread fills a ring of four stages by bulk copies, one multiplies 128 x 256 x 64 in bf16 a step.
// Of a stage's 49152 bytes `a` are copied anew in every step. An iteration is a step: 2 x 128 x 256 x 64 FLOP a block.
// Dynamic shared memory: 4 x 49152 bytes. `bytes`: at least grid x 49152.
#define STAGES 4
#define STAGE_BYTES 49152

MICRO_KERNEL(mainloop_tcgen05_bf16) {
    __shared__ u64 full[STAGES], empty[STAGES], finished;
    __shared__ u32 where;
    fill_tiles(STAGES * STAGE_BYTES, b);
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; ++s) init_barrier(full + s, 1), init_barrier(empty + s, 1);
        init_barrier(&finished, 1);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    const u32 memory = allocate(&where);
    Stopwatch watch;
    watch.start();
    if (threadIdx.x == 32) {
        const unsigned char* mine = data + (u64)blockIdx.x * STAGE_BYTES;
#pragma unroll 1
        for (int n = 0; n < iterations; ++n) {
            const int stage = n % STAGES;
            const u32 ready = shared_address(full + stage);
            if (n >= STAGES) wait_for(empty + stage, (n / STAGES - 1) & 1);
            asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1;\n}\n" ::"r"(
                             ready),
                         "r"(a)
                         : "memory");
            asm volatile(
                "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                    shared_address(tiles + stage * STAGE_BYTES)),
                "l"(mine), "r"(a), "r"(ready)
                : "memory");
        }
    } else if (threadIdx.x == 0) {
        const u32 code = instruction(1, 1, 256);
#pragma unroll 1
        for (int n = 0; n < iterations; ++n) {
            const int stage = n % STAGES;
            wait_for(full + stage, (n / STAGES) & 1);
            asm volatile("tcgen05.fence::after_thread_sync;" ::: "memory");
            const u64 left = descriptor(shared_address(tiles + stage * STAGE_BYTES));
            const u64 right = descriptor(shared_address(tiles + stage * STAGE_BYTES + 16384));
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                const u32 add = n > 0 || k > 0;
                PLAIN("f16", "%1", SHARED_A(k));
            }
            commit(empty + stage);
        }
        commit(&finished);
        wait_for(&finished, 0);
    }
    watch.stop(ticks);
    release(memory);
}

// Reads of tensor memory into registers: each of four warps (or groups of four) reads the 32 lanes that are its own,
// 32 columns of 4 bytes an instruction. An iteration: 4 instructions a warp, 4096 bytes each.
// (Registers %v: the compiler has %r of its own, which a name in a block would hide.)
#define R8(p) "%%v" p "0,%%v" p "1,%%v" p "2,%%v" p "3,%%v" p "4,%%v" p "5,%%v" p "6,%%v" p "7"
#define READ(p, q, r, s, i)                                                                                  \
    "tcgen05.ld.sync.aligned.32x32b.x32.b32 {" R8(p) "," R8(q) "," R8(r) "," R8(s) "}, [%1 + " #i "];\n"
MICRO_KERNEL(tensor_memory_read) {
    __shared__ u32 where;
    const u32 memory = allocate(&where) + ((threadIdx.x / 32 % 4) << 21);
    u32 used = threadIdx.x;
    // Reads of what nobody has written may be removed.
    for (int column = 0; column < 128; ++column)
        asm volatile("tcgen05.st.sync.aligned.32x32b.x1.b32 [%0], {%1};" ::"r"(memory + column), "r"(mixed(column + used))
                     : "memory");
    asm volatile("tcgen05.wait::st.sync.aligned;" ::: "memory");
    Stopwatch watch;
    watch.start();
#pragma unroll 1
    for (int n = 0; n < iterations; ++n) {
        asm volatile("{\n.reg .b32 %%v<178>;\n"
            READ("", "1", "2", "3", 0) READ("4", "5", "6", "7", 32)
            READ("10", "11", "12", "13", 64) READ("14", "15", "16", "17", 96)
            "tcgen05.wait::ld.sync.aligned;\n"
            "mad.lo.u32 %0, %0, %%v0, %%v40;\nmad.lo.u32 %0, %0, %%v100, %%v140;\n}\n"
                     : "+r"(used)
                     : "r"(memory)
                     : "memory");
    }
    keep(ticks, used);
    watch.stop(ticks);
    release(memory - ((threadIdx.x / 32 % 4) << 21));
}
#endif
