// The asynchronous matrix instruction of compute capability 9.0 (wgmma): rate by type, width and operand source,
// latency, and a main loop fed by bulk copies. The timed loops are PTX as a whole, so that 128 accumulators a thread
// need no name in C++ (PTX ISA 8.x, "Asynchronous warpgroup level matrix instructions").
#include "micro.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)

// Lists of accumulators, their numbers in octal: D32 is %d0 ... %d37.
#define R8(p) "%%d" p "0,%%d" p "1,%%d" p "2,%%d" p "3,%%d" p "4,%%d" p "5,%%d" p "6,%%d" p "7"
#define D4 "%%d0,%%d1,%%d2,%%d3"
#define D8 R8("")
#define D16 D8 "," R8("1")
#define D32 D16 "," R8("2") "," R8("3")
#define D64 D32 "," R8("4") "," R8("5") "," R8("6") "," R8("7")
#define D128 D64 "," R8("10") "," R8("11") "," R8("12") "," R8("13") "," R8("14") "," R8("15") "," R8("16") "," R8("17")

extern __shared__ __align__(1024) unsigned char tiles[];

// Shared-memory matrix descriptor: rows of 128 bytes, swizzled, groups of eight rows 1024 bytes apart.
__device__ __forceinline__ u64 descriptor(u32 address) {
    return (u64)((address & 0x3ffff) >> 4) | (1ull << 16) | (64ull << 32) | (1ull << 62);
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

// Every warpgroup multiplies its own 64 rows of A with the N columns that all share: four instructions, the depth of a
// row of 128 bytes, are a group, and one group is in flight beside the one that is waited for.
// An iteration: 4 instructions a warpgroup. Shared memory: N x 128 bytes of B, then 8192 bytes of A a warpgroup.
#define WGMMA(name, N, REGISTERS, T, A, operation, tail)                                                     \
    extern "C" __global__ void __launch_bounds__(256)                                                        \
        name(unsigned char* data, u64 bytes, u64* ticks, int iterations, int a, int b) {                     \
        fill_tiles(N * 128 + 8192 * (blockDim.x / 128), b);                                                  \
        const u64 right = descriptor(shared_address(tiles));                                                 \
        const u64 left = descriptor(shared_address(tiles + N * 128 + 8192 * (threadIdx.x / 128)));           \
        u32 used;                                                                                            \
        Stopwatch watch;                                                                                     \
        watch.start();                                                                                       \
        asm volatile(                                                                                        \
            "{\n.reg ." T " %%d<178>;\n.reg .pred add, more;\n.reg .b32 n, r0, r1, r2, r3;\n"                \
            ".reg .b64 a0, a1, a2, a3, b0, b1, b2, b3;\n"                                                    \
            "mov.b64 a0, %1;\nadd.s64 a1, a0, 2;\nadd.s64 a2, a0, 4;\nadd.s64 a3, a0, 6;\n"                  \
            "mov.b64 b0, %2;\nadd.s64 b1, b0, 2;\nadd.s64 b2, b0, 4;\nadd.s64 b3, b0, 6;\n"                  \
            "mov.b32 r0, %4;\nmov.b32 r1, %4;\nmov.b32 r2, %4;\nmov.b32 r3, %4;\n"                           \
            "mov.b32 n, %3;\nsetp.ne.b32 add, 0, 0;\n"                                                       \
            "wgmma.fence.sync.aligned;\n" operation " {" REGISTERS "}, " A("0") ", b0, add" tail ";\n"       \
            "wgmma.commit_group.sync.aligned;\nsetp.eq.b32 add, 0, 0;\n"                                     \
            "again:\nwgmma.fence.sync.aligned;\n" operation " {" REGISTERS "}, " A("0") ", b0, add" tail ";\n"      \
            operation " {" REGISTERS "}, " A("1") ", b1, add" tail ";\n" operation " {" REGISTERS "}, " A("2") ", b2, add" tail ";\n" \
            operation " {" REGISTERS "}, " A("3") ", b3, add" tail ";\n"                                     \
            "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;\n"                           \
            "sub.s32 n, n, 1;\nsetp.gt.s32 more, n, 0;\n@more bra again;\n"                                  \
            "wgmma.wait_group.sync.aligned 0;\nmov.b32 %0, %%d0;\n}\n"                                       \
            : "=r"(used)                                                                                     \
            : "l"(left), "l"(right), "r"(iterations), "r"(0x3c003c00 + b)                                    \
            : "memory");                                                                                     \
        keep(ticks, used);                                                                                          \
        watch.stop(ticks);                                                                                   \
    }
#define FROM_SHARED(i) "a" i
#define FROM_REGISTERS(i) "{r0, r1, r2, r3}"
#define BF16(N) "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16"
#define TAIL16 ", 1, 1, 0, 0"

WGMMA(wgmma_bf16_ss_8, 8, D4, "f32", FROM_SHARED, BF16(8), TAIL16)
WGMMA(wgmma_bf16_ss_16, 16, D8, "f32", FROM_SHARED, BF16(16), TAIL16)
WGMMA(wgmma_bf16_ss_32, 32, D16, "f32", FROM_SHARED, BF16(32), TAIL16)
WGMMA(wgmma_bf16_ss_64, 64, D32, "f32", FROM_SHARED, BF16(64), TAIL16)
WGMMA(wgmma_bf16_ss_128, 128, D64, "f32", FROM_SHARED, BF16(128), TAIL16)
WGMMA(wgmma_bf16_ss_256, 256, D128, "f32", FROM_SHARED, BF16(256), TAIL16)
WGMMA(wgmma_bf16_rs_64, 64, D32, "f32", FROM_REGISTERS, BF16(64), ", 1, 1, 0")
WGMMA(wgmma_bf16_rs_256, 256, D128, "f32", FROM_REGISTERS, BF16(256), ", 1, 1, 0")
WGMMA(wgmma_fp16_ss_256, 256, D128, "f32", FROM_SHARED, "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16", TAIL16)
WGMMA(wgmma_tf32_ss_256, 256, D128, "f32", FROM_SHARED, "wgmma.mma_async.sync.aligned.m64n256k8.f32.tf32.tf32", ", 1, 1")
WGMMA(wgmma_fp8_ss_256, 256, D128, "f32", FROM_SHARED, "wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3", ", 1, 1")
WGMMA(wgmma_int8_ss_256, 256, D128, "s32", FROM_SHARED, "wgmma.mma_async.sync.aligned.m64n256k32.s32.s8.s8", "")

// One instruction at a time: issued, committed, waited for.
MICRO_KERNEL(wgmma_latency_bf16_256) {
    fill_tiles(256 * 128 + 8192, b);
    u32 used;
    Stopwatch watch;
    watch.start();
    asm volatile(
        "{\n.reg .f32 %%d<178>;\n.reg .pred add, more;\n.reg .b32 n;\nmov.b32 n, %3;\nsetp.ne.b32 add, 0, 0;\n"
        "again:\nwgmma.fence.sync.aligned;\n" BF16(256) " {" D128 "}, %1, %2, add" TAIL16 ";\n"
        "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\nsetp.eq.b32 add, 0, 0;\n"
        "sub.s32 n, n, 1;\nsetp.gt.s32 more, n, 0;\n@more bra again;\nmov.b32 %0, %%d0;\n}\n"
        : "=r"(used)
        : "l"(descriptor(shared_address(tiles + 256 * 128))), "l"(descriptor(shared_address(tiles))),
          "r"(iterations)
        : "memory");
    keep(ticks, used);
    watch.stop(ticks);
}

// A main loop as well-made kernels have it: 288 threads, two warpgroups that multiply 128 x 256 x 64 in bf16 a step,
// one thread that fills a ring of four stages by bulk copies, mbarriers between them. Of a stage's 49152 bytes `a` (a
// multiple of 16) are copied anew in every step; what is not copied stays, so that the L2 is no limit.
// An iteration is a step: 2 x 128 x 256 x 64 FLOP a block. Dynamic shared memory: 4 x 49152 bytes.
// `bytes`: at least grid x 49152.
#define STAGES 4
#define STAGE_BYTES 49152

extern "C" __global__ void __launch_bounds__(288)
    mainloop_wgmma_bf16(unsigned char* data, u64 bytes, u64* ticks, int iterations, int a, int b) {
    __shared__ u64 full[STAGES], empty[STAGES];
    fill_tiles(STAGES * STAGE_BYTES, b);
    if (threadIdx.x == 0)
        for (int s = 0; s < STAGES; ++s) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(full + s)) : "memory");
            asm volatile("mbarrier.init.shared::cta.b64 [%0], 2;" ::"r"(shared_address(empty + s)) : "memory");
        }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    Stopwatch watch;
    watch.start();
    if (threadIdx.x == 256) {
        const unsigned char* mine = data + (u64)blockIdx.x * STAGE_BYTES;
        for (int n = 0; n < iterations; ++n) {
            const int stage = n % STAGES;
            const u32 ready = shared_address(full + stage);
            if (n >= STAGES) wait_for(shared_address(empty + stage), (n / STAGES - 1) & 1);
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
    } else if (threadIdx.x < 256) {
        const u64 right = descriptor(shared_address(tiles + 16384));
        const u64 left = descriptor(shared_address(tiles + 8192 * (threadIdx.x / 128)));
        u32 used;
        // A step: wait for the stage, four instructions, wait for those of the step before, give its stage back.
        asm volatile(
            "{\n.reg .f32 %%d<178>;\n.reg .pred add, more, done, elected, first, late;\n"
            ".reg .b32 n, stage, parity, ready, back, before;\n.reg .b64 a0, a1, a2, a3, b0, b1, b2, b3, at, state;\n"
            "mov.b32 n, 0;\nmov.b32 stage, 0;\nmov.b32 parity, 0;\nmov.b32 before, 0;\nsetp.ne.b32 add, 0, 0;\n"
            "setp.eq.b32 elected, %6, 0;\n"
            "again:\n"
            "mad.lo.u32 ready, stage, 8, %4;\n"
            "spin:\nmbarrier.try_wait.parity.shared::cta.b64 done, [ready], parity;\n@done bra come;\n"
            "mov.u64 at, %%globaltimer;\nsetp.gt.u64 late, at, %7;\n@late trap;\nbra spin;\ncome:\n"
            "mul.wide.u32 at, stage, 3072;\n"
            "add.s64 a0, %1, at;\nadd.s64 a1, a0, 2;\nadd.s64 a2, a0, 4;\nadd.s64 a3, a0, 6;\n"
            "add.s64 b0, %2, at;\nadd.s64 b1, b0, 2;\nadd.s64 b2, b0, 4;\nadd.s64 b3, b0, 6;\n"
            "wgmma.fence.sync.aligned;\n"
            BF16(256) " {" D128 "}, a0, b0, add" TAIL16 ";\nsetp.eq.b32 add, 0, 0;\n"
            BF16(256) " {" D128 "}, a1, b1, add" TAIL16 ";\n"
            BF16(256) " {" D128 "}, a2, b2, add" TAIL16 ";\n"
            BF16(256) " {" D128 "}, a3, b3, add" TAIL16 ";\n"
            "wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;\n"
            "setp.eq.b32 first, n, 0;\n@first bra kept;\n"
            "mad.lo.u32 back, before, 8, %5;\n"
            "@elected mbarrier.arrive.shared::cta.b64 state, [back];\n"
            "kept:\nmov.b32 before, stage;\n"
            "add.s32 stage, stage, 1;\nsetp.eq.s32 done, stage, 4;\n@done mov.b32 stage, 0;\n@done xor.b32 parity, parity, 1;\n"
            "add.s32 n, n, 1;\nsetp.lt.s32 more, n, %3;\n@more bra again;\n"
            "wgmma.wait_group.sync.aligned 0;\nmov.b32 %0, %%d0;\n}\n"
            : "=r"(used)
            : "l"(left), "l"(right), "r"(iterations), "r"(shared_address(full)), "r"(shared_address(empty)),
              "r"(threadIdx.x % 128), "l"(nanoseconds_now() + PATIENCE_NS)
            : "memory");
        keep(ticks, used);
    }
    watch.stop(ticks);
}
#endif
