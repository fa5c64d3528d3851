// The cost of a launch: a kernel that does nothing, and one that is busy for a known time.
#include "micro.cuh"

MICRO_KERNEL(empty) {}

// Every block is busy for `iterations` cycles of its SM.
MICRO_KERNEL(spin) {
    const u64 begin = clock_now();
    while (clock_now() - begin < (u64)iterations) {
    }
}

// As spin, with ticks: the clock of an SM that does little.
MICRO_KERNEL(spin_timed) {
    Stopwatch watch;
    watch.start();
    while (clock_now() - watch.clock < (u64)iterations) {
    }
    watch.stop(ticks);
}
