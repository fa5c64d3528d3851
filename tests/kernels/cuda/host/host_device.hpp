// Stands for a CUDA device in the tests: the kernels' own source, compiled by a host compiler, run on the CPU.
//
// The threads of a block are fibres of one thread, run one after the other up to their next barrier, shuffle
// or matrix instruction, in an order that is drawn anew in every round: a missing barrier shows as a wrong
// result that depends on the seed. Shared memory starts poisoned (NaN). Matrix instructions take and give the
// fragments that PTX documents. Blocks run one after the other.
#pragma once
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#undef __shared__
#define __shared__ static
#undef __align__
#define __align__(n) __attribute__((aligned(n)))
#undef __noinline__
#define __noinline__ __attribute__((noinline))
#undef __launch_bounds__
#define __launch_bounds__(...)
#undef __forceinline__
#define __forceinline__ inline

#if defined(__x86_64__)
// Saves what the System V calling convention keeps over a call, and goes on where ``to`` was saved.
extern "C" void host_switch(void** from, void* to);
asm(R"(
.text
.local host_switch
.type host_switch, @function
host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size host_switch, .-host_switch
)");
#endif

namespace host {

constexpr std::size_t STACK = 192 * 1024;

// A place in the execution of a fibre (or of the scheduler).
struct Context {
#if defined(__x86_64__)
    void* stack = nullptr;
    void begin(char* memory, void (*entry)()) {
        auto top = (reinterpret_cast<std::uintptr_t>(memory) + STACK) / 16 * 16;
        void** at = reinterpret_cast<void**>(top);
        *--at = nullptr;  // entry never returns; this keeps the alignment that a call would leave
        *--at = reinterpret_cast<void*>(entry);
        stack = at - 6;  // the registers that are popped first
    }
    void leave_for(Context& other) { host_switch(&stack, other.stack); }
#else
    ucontext_t context;
    void begin(char* memory, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = memory;
        context.uc_stack.ss_size = STACK;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
    void leave_for(Context& other) { swapcontext(&context, &other.context); }
#endif
};

struct Fibre {
    Context context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    dim3 thread;
    int linear = 0;
    bool done = false;
    int waits = 0;  // 0: may run, 1: at a barrier of the block, 2: at one of its warp
    int phase = 0;  // of the warp's exchange buffers
};

struct Warp {
    int live = 0, arrived = 0;
    unsigned char slot[2][32][64];
};

struct Block {
    std::vector<Fibre> fibres;
    std::vector<Warp> warps;
    std::vector<unsigned char> shared;
    dim3 grid, block, index;
    int live = 0, arrived = 0;
    Fibre* now = nullptr;
    Context scheduler;
    std::uint64_t seed = 1;
    void (*body)(void*) = nullptr;
    void* args = nullptr;
};

inline Block* current = nullptr;

inline void release_block() {
    if (current->arrived == current->live && current->live > 0) {
        current->arrived = 0;
        for (Fibre& f : current->fibres)
            if (f.waits == 1) f.waits = 0;
    }
}

inline void release_warp(int w) {
    Warp& warp = current->warps[w];
    if (warp.arrived == warp.live && warp.live > 0) {
        warp.arrived = 0;
        const int last = std::min<int>(32 * (w + 1), current->fibres.size());
        for (int i = 32 * w; i < last; ++i)
            if (current->fibres[i].waits == 2) current->fibres[i].waits = 0;
    }
}

inline void pause() { current->now->context.leave_for(current->scheduler); }

inline void sync_block() {
    current->now->waits = 1;
    ++current->arrived;
    release_block();
    if (current->now->waits) pause();
}

inline void sync_warp() {
    const int w = current->now->linear / 32;
    current->now->waits = 2;
    ++current->warps[w].arrived;
    release_warp(w);
    if (current->now->waits) pause();
}

// Every lane gives ``mine`` and sees what all gave; buffers alternate, so that one barrier is enough.
template <class T> struct Exchange {
    const unsigned char (*slots)[64];
    explicit Exchange(const T& mine) {
        static_assert(sizeof(T) <= 64);
        Fibre& f = *current->now;
        Warp& warp = current->warps[f.linear / 32];
        slots = warp.slot[f.phase];
        std::memcpy(warp.slot[f.phase][f.linear % 32], &mine, sizeof(T));
        f.phase ^= 1;
        sync_warp();
    }
    T operator[](int lane) const {
        T value;
        std::memcpy(static_cast<void*>(&value), slots[lane], sizeof(T));
        return value;
    }
};

inline int lane() { return current->now->linear % 32; }

inline void entry() {
    current->body(current->args);
    Fibre& f = *current->now;
    f.done = true;
    --current->live;
    --current->warps[f.linear / 32].live;
    release_block();
    release_warp(f.linear / 32);
    pause();
}

inline std::uint64_t draw(std::uint64_t& state) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return state >> 33;
}

// One block; false if its threads wait for each other for ever.
inline bool run_block(Block& b) {
    const int n = b.fibres.size();
    current = &b;
    b.live = n;
    b.arrived = 0;
    std::memset(b.shared.data(), 0xff, b.shared.size());
    for (Warp& w : b.warps) w.live = w.arrived = 0;
    for (int i = 0; i < n; ++i) {
        Fibre& f = b.fibres[i];
        f.linear = i;
        f.thread = dim3(i % b.block.x, i / b.block.x % b.block.y, i / (b.block.x * b.block.y));
        f.done = false;
        f.waits = f.phase = 0;
        ++b.warps[i / 32].live;
        f.context.begin(f.stack.get(), entry);
    }
    std::vector<int> order(n);
    for (int i = 0; i < n; ++i) order[i] = i;
    while (b.live > 0) {
        for (int i = n - 1; i > 0; --i) std::swap(order[i], order[draw(b.seed) % (i + 1)]);
        bool ran = false;
        for (int i : order) {
            Fibre& f = b.fibres[i];
            if (f.done || f.waits) continue;
            ran = true;
            b.now = &f;
            b.scheduler.leave_for(f.context);
        }
        if (!ran) return false;
    }
    return true;
}

template <class... P, std::size_t... I>
void call(void (*kernel)(P...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<P>*>(args[I])...);
}

// 0: ran through; 1: a deadlock, in block ``where``.
template <class... P>
int launch(void (*kernel)(P...), const int* grid, const int* block, int shared, std::uint64_t seed, void** args,
           int* where) {
    struct Call { void (*kernel)(P...); void** args; } call_now{kernel, args};
    Block b;
    b.grid = dim3(grid[0], grid[1], grid[2]);
    b.block = dim3(block[0], block[1], block[2]);
    const int threads = block[0] * block[1] * block[2];
    b.fibres = std::vector<Fibre>(threads);
    b.warps = std::vector<Warp>((threads + 31) / 32);
    b.shared.resize(shared + 16);
    b.seed = seed;
    b.args = &call_now;
    b.body = [](void* data) {
        Call& c = *static_cast<Call*>(data);
        call(c.kernel, c.args, std::index_sequence_for<P...>());
    };
    for (int z = 0; z < grid[2]; ++z)
        for (int y = 0; y < grid[1]; ++y)
            for (int x = 0; x < grid[0]; ++x) {
                b.index = dim3(x, y, z);
                where[0] = x, where[1] = y, where[2] = z;
                if (!run_block(b)) return 1;
            }
    return 0;
}

inline unsigned char* shared_memory() {
    const auto at = reinterpret_cast<std::uintptr_t>(current->shared.data());
    return current->shared.data() + (16 - at % 16) % 16;
}

}  // namespace host

#define DYNAMIC_SHARED(name) unsigned char* name = host::shared_memory()
#define threadIdx (host::current->now->thread)
#define blockIdx (host::current->index)
#define blockDim (host::current->block)
#define gridDim (host::current->grid)
#define __syncthreads host::sync_block
#define __syncwarp host::sync_warp

template <class T> T __shfl_xor_sync(unsigned, T value, int mask) {
    return host::Exchange<T>(value)[host::lane() ^ mask];
}
template <class T> T __shfl_up_sync(unsigned, T value, int step) {
    const host::Exchange<T> all(value);
    return all[host::lane() >= step ? host::lane() - step : host::lane()];
}
template <class T> T __shfl_sync(unsigned, T value, int from) { return host::Exchange<T>(value)[from]; }
inline unsigned __ballot_sync(unsigned, int predicate) {
    const host::Exchange<int> all(predicate);
    unsigned bits = 0;
    for (int i = 0; i < 32; ++i) bits |= static_cast<unsigned>(all[i] != 0) << i;
    return bits;
}
template <class T> T atomicAdd(T* at, T value) {
    const T old = *at;
    *at = old + value;
    return old;
}
template <class T> T atomicMax(T* at, T value) {
    const T old = *at;
    *at = old < value ? value : old;
    return old;
}
inline int __float_as_int(float x) {
    int bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
inline float __int_as_float(int bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
using std::max;
using std::min;

// mma.sync: D = A·B + D on the documented fragments; sums in double, rounded once, then to the accumulator.
namespace host {
template <class T, int PER_WORD, class Acc, class Wide>
void matrix_multiply(Acc (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], float (*value)(const T&)) {
    struct Raw { unsigned a[4], b[2]; } raw;
    std::memcpy(raw.a, a, sizeof a);
    std::memcpy(raw.b, b, sizeof b);
    const Exchange<Raw> all(raw);
    const int g = lane() / 4, t = lane() % 4;
    const auto element = [&](unsigned word, int i) {
        T x;
        std::memcpy(static_cast<void*>(&x), reinterpret_cast<const char*>(&word) + i * sizeof(T), sizeof(T));
        return static_cast<Wide>(value(x));
    };
    for (int i = 0; i < 4; ++i) {
        const int row = g + 8 * (i / 2), col = 2 * t + i % 2;
        Wide sum = d[i];
        for (int word = 0; word < 8; ++word) {
            const unsigned x = all[row % 8 * 4 + word % 4].a[row / 8 + 2 * (word / 4)];
            const unsigned y = all[col * 4 + word % 4].b[word / 4];
            for (int e = 0; e < PER_WORD; ++e) sum += element(x, e) * element(y, e);
        }
        d[i] = static_cast<Acc>(sum);
    }
}
}  // namespace host
template <class T> void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    host::matrix_multiply<T, 2, float, double>(d, a, b, [](const T& x) { return static_cast<float>(x); });
}
template <class T> void mma(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    host::matrix_multiply<T, 4, int, long long>(d, a, b, [](const T& x) { return static_cast<float>(x); });
}

#define EXPORT(kernel)                                                                                          \
    extern "C" int launch_##kernel(const int* grid, const int* block, int shared, std::uint64_t seed, void** args, \
                                   int* where) {                                                               \
        return host::launch(kernel, grid, block, shared, seed, args, where);                                    \
    }
