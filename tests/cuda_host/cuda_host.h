// Runs CUDA kernels on the host, for tests: one fiber for each thread of a block, blocks one after the other.
//
// A thread runs until it meets a barrier (__syncthreads, __syncwarp, a shuffle), then another one does. A barrier that
// some thread of the block (of the warp) never reaches is an error, as is one reached at two places at once. Threads and
// blocks run in many orders: a kernel that misses a barrier may show it by its results in one of them.
//
// Built with -fsanitize=thread, a missing barrier shows in every order. ThreadSanitizer keeps a clock for each CUDA
// thread of all blocks of a launch. Only barriers carry what one thread has seen to another, within a block: what two
// threads write, or one writes and one reads, with no barrier between is a race, whoever came first. A shuffle and a
// ballot are no such barriers, as CUDA promises no order of memory for them.

namespace cuda_host {

constexpr size_t STACK_BYTES = 64 * 1024;
constexpr unsigned int FULL_MASK = 0xffffffffu, WARP = 32, MOST_THREADS = 1024, MOST_WARPS = MOST_THREADS / WARP;

struct Barrier {
    unsigned int size, arrived, passed;
    int line;
    char clocks[2];  // of even and odd passes, as the first thread may reach it again before the last has left
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    void* clock;          // what ThreadSanitizer knows it by
    unsigned int thread;  // the thread that it runs
    bool begun, ended;
    const Barrier* barrier;  // where it waits
    unsigned int passed;     // how often that had been passed before
};

// Of the block that runs: `line_up` has its threads in the order in which they begin.
__shared__ Fiber *fibers, *current;
__shared__ ucontext_t scheduler;
__shared__ Barrier barriers[MOST_WARPS + 1];  // of the warps, then of the block
__shared__ unsigned char shuffled[MOST_WARPS][WARP][8];
__shared__ unsigned int line_up[MOST_THREADS], started, ended;

#if defined(__SANITIZE_THREAD__)
constexpr bool FIBERS_ARE_SHARED = false;   // by threads, of which one ends before the next one begins
constexpr unsigned int MOST_FIBERS = 8000;  // ThreadSanitizer can tell 8191 from each other
#else
constexpr bool FIBERS_ARE_SHARED = true;
constexpr unsigned int MOST_FIBERS = MOST_THREADS;
#endif
static Fiber all_fibers[MOST_FIBERS];
static unsigned int taken;  // fibers, by the blocks of this launch so far, each of which needs fibers of its own

static unsigned int threads, order;
constexpr int MOST_LINES = 5000;
static bool reached[MOST_LINES];  // the lines of __syncthreads and __syncwarp that threads came to
static int removed;               // the line of one that is passed over as if it were not there; 0 for none
static unsigned long long drawn;
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

// ThreadSanitizer must be told of it too, and of what happens before what: whoever acquires a mark comes after all that
// those who released it before have done.
#if defined(__SANITIZE_THREAD__)
static char end_mark;
__shared__ char begin_mark;
__shared__ void* scheduler_clock;
#define NEW_CLOCK() __tsan_create_fiber(0)
#define GO_TO(clock) __tsan_switch_to_fiber(clock, __tsan_switch_to_fiber_no_sync)
#define RELEASE(mark) __tsan_release(mark)
#define ACQUIRE(mark) __tsan_acquire(mark)
extern "C" UNSEEN void __tsan_on_report(void*) { error = "race"; }  // ThreadSanitizer calls it
#else
#define NEW_CLOCK() nullptr
#define GO_TO(clock) (void)0
#define RELEASE(mark) (void)0
#define ACQUIRE(mark) (void)0
#endif

UNSEEN inline void set_thread(unsigned int thread) {
    threadIdx = {thread % blockDim.x, thread / blockDim.x % blockDim.y, thread / (blockDim.x * blockDim.y)};
}

UNSEEN inline unsigned int draw(unsigned int below) {
    drawn = drawn * 6364136223846793005u + 1442695040888963407u;
    return (drawn >> 33) % below;
}

// All numbers below `count`, in the order of this launch.
UNSEEN inline void arrange(unsigned int* numbers, unsigned int count) {
    for (unsigned int i = 0; i < count; ++i) numbers[i] = order == 1 ? count - 1 - i : i;
    for (unsigned int i = count; order > 1 && i > 1; --i) {
        const unsigned int other = draw(i), number = numbers[i - 1];
        numbers[i - 1] = numbers[other];
        numbers[other] = number;
    }
}

UNSEEN inline void resume(Fiber& fiber) {
    current = &fiber;
    set_thread(fiber.thread);
    [[maybe_unused]] void* fake_stack = nullptr;
    LEAVE(&fake_stack, fiber.stack.get(), STACK_BYTES);
    GO_TO(fiber.clock);
    swapcontext(&scheduler, &fiber.context);
    ARRIVE(fake_stack, nullptr, nullptr);
}

UNSEEN inline void yield() {
    Fiber* self = current;
    [[maybe_unused]] void* fake_stack = nullptr;
    LEAVE(&fake_stack, scheduler_stack, scheduler_stack_bytes);
    GO_TO(scheduler_clock);
    swapcontext(&self->context, &scheduler);
    ARRIVE(fake_stack, nullptr, nullptr);
}

// A fiber whose thread ends without a barrier takes the next thread that has not started: no switch, no new stack.
UNSEEN inline void fiber_main() {
    ARRIVE(nullptr, &scheduler_stack, &scheduler_stack_bytes);
    ACQUIRE(&begin_mark);
    Fiber* self = current;
    do {
        self->thread = line_up[started++];
        set_thread(self->thread);
        run_thread(run_argument);
        ++ended;
    } while (FIBERS_ARE_SHARED && started < threads);
    self->ended = true;
    RELEASE(&end_mark);
    LEAVE(nullptr, scheduler_stack, scheduler_stack_bytes);
    GO_TO(scheduler_clock);
    setcontext(&scheduler);
}

UNSEEN inline bool can_go_on(const Fiber& fiber) {
    if (!fiber.begun) return started < threads;
    return !fiber.ended && (!fiber.barrier || fiber.barrier->passed != fiber.passed);
}

UNSEEN inline void begin(Fiber& fiber) {
    if (!fiber.stack) {
        fiber.stack.reset(new char[STACK_BYTES]);
        fiber.clock = NEW_CLOCK();
    }
    fiber.begun = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
    RELEASE(&begin_mark);
}

UNSEEN inline void wait(Barrier& barrier, int line, bool orders_memory) {
    if (orders_memory) reached[line % MOST_LINES] = true;
    if (orders_memory && line == removed) return;
    if (barrier.arrived > 0 && barrier.line != line) error = "threads wait at two different barriers";
    barrier.line = line;
    current->barrier = &barrier;
    current->passed = barrier.passed;
    [[maybe_unused]] char* const clock = &barrier.clocks[barrier.passed % 2];
    if (orders_memory) RELEASE(clock);
    if (++barrier.arrived == barrier.size) {
        barrier.arrived = 0;
        ++barrier.passed;
    }
    if (barrier.arrived > 0 || order > 1) yield();  // at random, the last one to come need not be the first to leave
    if (orders_memory) ACQUIRE(clock);
}

// Line the threads up; the fiber at each place of the line takes the thread there.
UNSEEN inline void prepare_block() {
    for (unsigned int warp = 0; warp < MOST_WARPS; ++warp)
        barriers[warp] = {min(WARP, threads - WARP * warp), 0, 0, 0, {}};
    barriers[MOST_WARPS] = {threads, 0, 0, 0, {}};
    started = ended = 0;
    if (order < 2 || order % 2 == 0) {
        arrange(line_up, threads);
    } else {  // whole warps
        unsigned int warps[MOST_WARPS], count = 0;
        arrange(warps, (threads + WARP - 1) / WARP);
        for (unsigned int i = 0; count < threads; ++i)
            for (unsigned int thread = WARP * warps[i]; thread < min(WARP * (warps[i] + 1), threads); ++thread)
                line_up[count++] = thread;
    }
    fibers = all_fibers + taken;
    if (!FIBERS_ARE_SHARED) taken += threads;
    if (taken > MOST_FIBERS) {
        error = "more threads than ThreadSanitizer knows";
        return;
    }
    for (unsigned int place = 0; place < threads; ++place) {
        Fiber& fiber = fibers[place];
        fiber.begun = fiber.ended = false;
        fiber.barrier = nullptr;
    }
}

UNSEEN inline void run_block() {
    prepare_block();
    for (unsigned int place = threads - 1; ended < threads && !error;) {
        // In turn; or whoever, at random; or the warp that comes first, as far ahead as barriers let it.
        place = order < 2 ? (place + 1) % threads : order % 2 == 0 ? draw(threads) : 0;
        unsigned int tried = 0;
        for (; tried < threads && !can_go_on(fibers[place]); ++tried) place = (place + 1) % threads;
        if (tried == threads) {
            error = "a barrier was not reached by all threads";
            break;
        }
        if (!fibers[place].begun) begin(fibers[place]);
        resume(fibers[place]);
    }
    for (unsigned int place = 0; place < threads && taken <= MOST_FIBERS; ++place) {  // an error leaves some
        if (fibers[place].ended || !fibers[place].begun) continue;
        GO_TO(fibers[place].clock);
        RELEASE(&end_mark);
        GO_TO(scheduler_clock);
    }
}

UNSEEN inline void set_block(unsigned int block) {
    blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
}

#if defined(__SANITIZE_THREAD__)
UNSEEN inline void host_main() {
    scheduler_clock = __tsan_get_current_fiber();
    run_block();
}

// That its thread is waited for does not order a block before the next one: it has not acquired what its fibers did.
inline void run_in_own_memory() { std::thread(host_main).join(); }
#else
inline void run_in_own_memory() { run_block(); }
#endif

template <typename... Parameters, size_t... I>
void apply(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_const_t<Parameters>*>(arguments[I])...);
}

// Run a kernel on arguments given as cuLaunchKernel takes them: pointers to values. Returns nullptr or what is wrong.
//
// Threads and blocks run in one of these orders: 0 forward, 1 backward, and from 2 on at random, the same for the same
// number. With even ones whoever can go on is drawn at every barrier. With odd ones a line is drawn, of warps and of
// blocks, and whoever comes first in it runs as far ahead of all others as barriers allow.
template <typename... Parameters>
UNSEEN const char* launch(void (*kernel)(Parameters...), const unsigned int* grid, const unsigned int* block,
                          void** arguments, const size_t* sizes, size_t count, unsigned int ordered) {
    const size_t expected[] = {sizeof(Parameters)..., 0};
    if (count != sizeof...(Parameters)) return "wrong number of arguments";
    for (size_t i = 0; i < count; ++i)
        if (sizes[i] != expected[i]) return "an argument has the wrong size";
    gridDim = dim3(grid[0], grid[1], grid[2]);
    blockDim = dim3(block[0], block[1], block[2]);
    threads = blockDim.x * blockDim.y * blockDim.z;
    if (threads == 0 || threads > MOST_THREADS) return "a block has 1 to 1024 threads";
    if (gridDim.y > 65535 || gridDim.z > 65535) return "a grid has at most 65535 blocks along y and z";
    struct Call {
        void (*kernel)(Parameters...);
        void** arguments;
    } call{kernel, arguments};
    run_argument = &call;
    run_thread = [](void* argument) {
        Call* call = static_cast<Call*>(argument);
        apply(call->kernel, call->arguments, std::index_sequence_for<Parameters...>());
    };
    order = ordered;
    drawn = ordered;
    error = nullptr;
    taken = 0;
    std::vector<unsigned int> blocks(1ull * gridDim.x * gridDim.y * gridDim.z);
    arrange(blocks.data(), (unsigned int)blocks.size());
    for (unsigned int block : blocks) {
        set_block(block);
        run_in_own_memory();
        if (error) break;
    }
    ACQUIRE(&end_mark);
    return error;
}

UNSEEN inline unsigned int warp() { return current->thread / WARP; }
UNSEEN inline unsigned int lane() { return current->thread % WARP; }

// The value that the lane `source` of this warp holds; its own where there is no such lane.
template <typename T>
UNSEEN T shuffle(unsigned int mask, T value, unsigned int source, int line) {
    static_assert(sizeof(T) <= 8, "shuffles move up to 8 bytes");
    if (mask != FULL_MASK) error = "shuffles are there for whole warps only";
    const unsigned int warp = cuda_host::warp(), lane = cuda_host::lane();
    memcpy(shuffled[warp][lane], &value, sizeof(T));
    wait(barriers[warp], line, false);
    if (source < barriers[warp].size) memcpy(&value, shuffled[warp][source], sizeof(T));
    wait(barriers[warp], line, false);
    return value;
}

// A bit for each lane of this warp: whether its condition holds.
UNSEEN inline unsigned int ballot(unsigned int mask, bool condition, int line) {
    if (mask != FULL_MASK) error = "ballots are there for whole warps only";
    const unsigned int warp = cuda_host::warp();
    shuffled[warp][lane()][0] = condition;
    wait(barriers[warp], line, false);
    unsigned int bits = 0;
    for (unsigned int lane = 0; lane < barriers[warp].size; ++lane) bits |= unsigned(shuffled[warp][lane][0]) << lane;
    wait(barriers[warp], line, false);
    return bits;
}

}  // namespace cuda_host

#define __syncthreads() cuda_host::wait(cuda_host::barriers[cuda_host::MOST_WARPS], __LINE__, true)
#define __syncwarp(...) cuda_host::wait(cuda_host::barriers[cuda_host::warp()], __LINE__, true)
#define __shfl_sync(mask, value, lane) cuda_host::shuffle(mask, value, lane, __LINE__)
#define __shfl_down_sync(mask, value, by) cuda_host::shuffle(mask, value, cuda_host::lane() + (by), __LINE__)
#define __ballot_sync(mask, condition) cuda_host::ballot(mask, condition, __LINE__)
#define __shfl_xor_sync(mask, value, by) cuda_host::shuffle(mask, value, cuda_host::lane() ^ (by), __LINE__)
