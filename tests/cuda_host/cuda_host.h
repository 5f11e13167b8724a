// Runs CUDA kernels on the host, for tests: one fiber for each thread of a block, blocks one after the other.
//
// A thread runs until it meets a barrier (__syncthreads, __syncwarp, a shuffle), then the next one does. A barrier that
// some thread of the block (of the warp) never reaches is an error, as is one reached at two places at once. Both
// orders of running threads and blocks are there: a kernel that misses a barrier shows it in one of them.
#ifndef CUDA_HOST_H
#define CUDA_HOST_H
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#include <cmath>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static

struct uint3 {
    unsigned int x, y, z;
};
struct dim3 : uint3 {
    dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : uint3{x, y, z} {}
};
static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
constexpr int warpSize = 32;

using std::abs;
using std::erfc;
using std::exp;
using std::expm1;
using std::fabs;
using std::fma;
using std::isfinite;
using std::isnan;
using std::log;
using std::log1p;
using std::pow;
using std::sqrt;
using std::tanh;

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
    return b < a ? b : a;
}
template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
    return a < b ? b : a;
}

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) double2 {
    double x, y;
};
struct alignas(16) longlong2 {
    long long x, y;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline longlong2 make_longlong2(long long x, long long y) { return {x, y}; }
template <typename T>
void __stwb(T* address, T value) {
    *address = value;
}
inline unsigned int __umulhi(unsigned int a, unsigned int b) { return (unsigned int)(1ull * a * b >> 32); }
inline int __popc(unsigned int bits) { return __builtin_popcount(bits); }
inline float __uint_as_float(unsigned int bits) {
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

namespace cuda_host {

constexpr size_t STACK_BYTES = 64 * 1024;
constexpr unsigned int FULL_MASK = 0xffffffffu;

struct Barrier {
    unsigned int size = 0, arrived = 0, passed = 0;
    int line = 0;
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    unsigned int thread = 0;  // the thread that it runs
    bool finished = true;
};

static std::vector<Fiber> fibers;
static Fiber* current;
static ucontext_t scheduler;
static std::vector<Barrier> barriers;  // of the warps, then of the block
static unsigned char shuffled[32][32][8];
static unsigned int threads, started, ended;
static bool reversed, progress;
static const char* error;
static void (*run_thread)(void*);
static void* run_argument;

// AddressSanitizer must be told of each change of stack.
#if defined(__SANITIZE_ADDRESS__)
static const void* scheduler_stack;
static size_t scheduler_stack_bytes;
#define LEAVE(save, bottom, bytes) __sanitizer_start_switch_fiber(save, bottom, bytes)
#define ARRIVE(save, bottom, bytes) __sanitizer_finish_switch_fiber(save, bottom, bytes)
#else
#define LEAVE(save, bottom, bytes) (void)0
#define ARRIVE(save, bottom, bytes) (void)0
#endif

inline void set_thread(unsigned int thread) {
    threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y)};
}

inline void resume(Fiber& fiber) {
    current = &fiber;
    set_thread(fiber.thread);
    [[maybe_unused]] void* fake_stack = nullptr;
    LEAVE(&fake_stack, fiber.stack.get(), STACK_BYTES);
    swapcontext(&scheduler, &fiber.context);
    ARRIVE(fake_stack, nullptr, nullptr);
}

inline void yield() {
    Fiber* self = current;
    [[maybe_unused]] void* fake_stack = nullptr;
    LEAVE(&fake_stack, scheduler_stack, scheduler_stack_bytes);
    swapcontext(&self->context, &scheduler);
    ARRIVE(fake_stack, nullptr, nullptr);
}

// A fiber whose thread ends without a barrier takes the next thread that has not started: no switch, no new stack.
inline void fiber_main() {
    ARRIVE(nullptr, &scheduler_stack, &scheduler_stack_bytes);
    Fiber* self = current;
    while (started < threads) {
        const unsigned int position = started++;
        self->thread = reversed ? threads - 1 - position : position;
        set_thread(self->thread);
        run_thread(run_argument);
        ++ended;
        progress = true;
    }
    self->finished = true;
    LEAVE(nullptr, scheduler_stack, scheduler_stack_bytes);
    setcontext(&scheduler);
}

inline void wait(Barrier& barrier, int line) {
    if (barrier.arrived > 0 && barrier.line != line) error = "threads wait at two different barriers";
    barrier.line = line;
    const unsigned int passed = barrier.passed;
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        ++barrier.passed;
        progress = true;
    } else {
        while (barrier.passed == passed) yield();
    }
}

inline void run_block() {
    const unsigned int warps = (threads + 31) / 32;
    barriers.assign(warps + 1, Barrier());
    for (unsigned int warp = 0; warp < warps; ++warp) barriers[warp].size = min(32u, threads - 32 * warp);
    barriers[warps].size = threads;
    started = ended = 0;
    for (Fiber& fiber : fibers) fiber.finished = true;
    while (ended < threads && !error) {
        progress = false;
        for (Fiber& fiber : fibers) {
            if (fiber.finished) {
                if (started == threads) continue;
                if (!fiber.stack) fiber.stack.reset(new char[STACK_BYTES]);
                getcontext(&fiber.context);
                fiber.context.uc_stack.ss_sp = fiber.stack.get();
                fiber.context.uc_stack.ss_size = STACK_BYTES;
                fiber.context.uc_link = nullptr;
                makecontext(&fiber.context, fiber_main, 0);
                fiber.finished = false;
                progress = true;
            }
            resume(fiber);
            if (error) return;
        }
        if (!progress) error = "a barrier was not reached by all threads";
    }
}

template <typename... Parameters, size_t... I>
void apply(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_const_t<Parameters>*>(arguments[I])...);
}

// Run a kernel on arguments given as cuLaunchKernel takes them: pointers to values. Returns nullptr or what is wrong.
template <typename... Parameters>
const char* launch(void (*kernel)(Parameters...), const unsigned int* grid, const unsigned int* block,
                   void** arguments, const size_t* sizes, size_t count, bool reverse) {
    const size_t expected[] = {sizeof(Parameters)..., 0};
    if (count != sizeof...(Parameters)) return "wrong number of arguments";
    for (size_t i = 0; i < count; ++i)
        if (sizes[i] != expected[i]) return "an argument has the wrong size";
    gridDim = dim3(grid[0], grid[1], grid[2]);
    blockDim = dim3(block[0], block[1], block[2]);
    threads = blockDim.x * blockDim.y * blockDim.z;
    if (threads == 0 || threads > 1024) return "a block has 1 to 1024 threads";
    if (gridDim.y > 65535 || gridDim.z > 65535) return "a grid has at most 65535 blocks along y and z";
    if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
    struct Call {
        void (*kernel)(Parameters...);
        void** arguments;
    } call{kernel, arguments};
    run_argument = &call;
    run_thread = [](void* argument) {
        Call* call = static_cast<Call*>(argument);
        apply(call->kernel, call->arguments, std::index_sequence_for<Parameters...>());
    };
    reversed = reverse;
    error = nullptr;
    const unsigned long long blocks = 1ull * gridDim.x * gridDim.y * gridDim.z;
    for (unsigned long long position = 0; position < blocks && !error; ++position) {
        const unsigned long long i = reverse ? blocks - 1 - position : position;
        blockIdx.x = i % gridDim.x;
        blockIdx.y = i / gridDim.x % gridDim.y;
        blockIdx.z = i / gridDim.x / gridDim.y;
        run_block();
    }
    return error;
}

// The value that the lane `source` of this warp holds; its own where there is no such lane.
template <typename T>
T shuffle(unsigned int mask, T value, unsigned int source, int line) {
    static_assert(sizeof(T) <= 8, "shuffles move up to 8 bytes");
    if (mask != FULL_MASK) error = "shuffles are there for whole warps only";
    const unsigned int warp = current->thread / 32, lane = current->thread % 32;
    memcpy(shuffled[warp][lane], &value, sizeof(T));
    wait(barriers[warp], line);
    if (source < barriers[warp].size) memcpy(&value, shuffled[warp][source], sizeof(T));
    wait(barriers[warp], line);
    return value;
}

// A bit for each lane of this warp: whether its condition holds.
inline unsigned int ballot(unsigned int mask, bool condition, int line) {
    if (mask != FULL_MASK) error = "ballots are there for whole warps only";
    const unsigned int warp = current->thread / 32;
    shuffled[warp][current->thread % 32][0] = condition;
    wait(barriers[warp], line);
    unsigned int bits = 0;
    for (unsigned int lane = 0; lane < barriers[warp].size; ++lane) bits |= unsigned(shuffled[warp][lane][0]) << lane;
    wait(barriers[warp], line);
    return bits;
}

inline unsigned int lane() { return current->thread % 32; }

}  // namespace cuda_host

#define __syncthreads() cuda_host::wait(cuda_host::barriers.back(), __LINE__)
#define __syncwarp(...) cuda_host::wait(cuda_host::barriers[cuda_host::current->thread / 32], __LINE__)
#define __shfl_sync(mask, value, lane) cuda_host::shuffle(mask, value, lane, __LINE__)
#define __shfl_down_sync(mask, value, by) cuda_host::shuffle(mask, value, cuda_host::lane() + (by), __LINE__)
#define __ballot_sync(mask, condition) cuda_host::ballot(mask, condition, __LINE__)
#define __shfl_xor_sync(mask, value, by) cuda_host::shuffle(mask, value, cuda_host::lane() ^ (by), __LINE__)

#endif
