// What CUDA C++ has beyond C++, for g++: the kernels run on host memory, block after block, and
// the threads of a block are fibers that take turns at barriers, shuffles and ballots. A warp runs
// ahead of the next ones as far as barriers let it; in reverse, blocks and threads begin with the
// last. A kernel that lacks a barrier then computes another thing.
//
// A thread that waits for one that has ended or waits elsewhere is an error here, and so is memory
// read or written at an address that its type's size does not divide.

#include <math.h>
#include <setjmp.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __launch_bounds__(threads)
#define __shared__ static
#define __restrict__ __restrict

using std::exp;
using std::fmax;
using std::fmin;
using std::log;
using std::max;
using std::min;
using std::sqrt;
using std::tanh;

struct Dim3 {
    unsigned int x, y, z;
};

static Dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace shim {

enum Outcome { DONE, LOST_THREAD, MISALIGNED };
enum Place { RUNNING, AT_WARP, AT_BLOCK, ENDED };

struct Fiber {
    ucontext_t context;
    jmp_buf here;
    bool begun;
    Place place;
    Dim3 index;
    unsigned long long sent;
};

constexpr int LANES = 32, MOST = 1024, STACK = 65536;
static Fiber fibers[MOST];
static std::unique_ptr<char[]> stacks;
static jmp_buf back;
static int current;
static void (*body)(void **);
static void **arguments;
static bool misaligned;

static void begin()
{
    body(arguments);
    fibers[current].place = ENDED;
    _longjmp(back, 1);
}

static void wait(Place place)
{
    fibers[current].place = place;
    if (!_setjmp(fibers[current].here))  // unlike swapcontext it makes no system call
        _longjmp(back, 1);
}

// Let threads first ... last - 1 go on if all of them wait at this place.
static bool release(int first, int last, Place place)
{
    for (int k = first; k < last; ++k)
        if (fibers[k].place != place)
            return false;
    for (int k = first; k < last; ++k)
        fibers[k].place = RUNNING;
    return true;
}

// Run each thread of a warp until it waits or ends.
static void run_warp(int warp, bool reverse)
{
    for (int n = 0; n < LANES; ++n) {
        current = warp + (reverse ? LANES - 1 - n : n);
        if (fibers[current].place != RUNNING)
            continue;
        threadIdx = fibers[current].index;
        if (_setjmp(back))
            continue;
        if (fibers[current].begun)
            _longjmp(fibers[current].here, 1);
        fibers[current].begun = true;
        setcontext(&fibers[current].context);
    }
}

static bool run_block(int threads, bool reverse)
{
    if (!stacks)
        stacks.reset(new char[(size_t)MOST * STACK]);
    for (int k = 0; k < threads; ++k) {
        Fiber &fiber = fibers[k];
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = stacks.get() + (size_t)k * STACK;
        fiber.context.uc_stack.ss_size = STACK;
        makecontext(&fiber.context, begin, 0);
        fiber.begun = false;
        fiber.place = RUNNING;
        fiber.index = {(unsigned int)k, 0, 0};
    }
    for (;;) {
        bool all_ended = true;
        for (int n = 0; n < threads; n += LANES) {
            int warp = reverse ? threads - LANES - n : n;
            do
                run_warp(warp, reverse);
            while (release(warp, warp + LANES, AT_WARP));
            for (int k = warp; k < warp + LANES; ++k)
                all_ended = all_ended && fibers[k].place == ENDED;
        }
        if (all_ended)
            return true;
        if (!release(0, threads, AT_BLOCK))
            return false;
    }
}

// Send a value to the threads of the warp, every one of which must come here, and read theirs.
template <typename T, typename Read> auto exchange(T value, Read read)
{
    static_assert(sizeof(T) <= sizeof(fibers[0].sent), "");
    memcpy(&fibers[current].sent, &value, sizeof(T));
    wait(AT_WARP);
    auto result = read([](int lane) {
        T theirs;
        memcpy(&theirs, &fibers[current / LANES * LANES + lane].sent, sizeof(T));
        return theirs;
    });
    wait(AT_WARP);
    return result;
}

template <typename T> std::string code()
{
    using V = std::remove_cv_t<std::remove_pointer_t<T>>;
    char kind = std::is_same_v<V, bool>         ? 'b'
                : std::is_floating_point_v<V>   ? 'f'
                : std::is_unsigned_v<V>         ? 'u'
                                                : 'i';
    return (std::is_pointer_v<T> ? "*" : "") + std::string(1, kind) + std::to_string(sizeof(V));
}

template <typename... P> const char *signature(void (*)(P...))
{
    static std::string text;
    text.clear();
    ((text += code<P>() + " "), ...);
    return text.c_str();
}

template <auto kernel, typename... P, size_t... k>
void unpack(void (*)(P...), void **values, std::index_sequence<k...>)
{
    kernel(*(P *)values[k]...);
}

template <auto kernel, typename... P> void call(void **values)
{
    unpack<kernel>(kernel, values, std::make_index_sequence<sizeof...(P)>());
}

template <auto kernel, bool synchronizes, typename... P>
Outcome launch(void (*)(P...), const int *grid, int threads, bool reverse, void **values)
{
    body = call<kernel, P...>;
    arguments = values;
    misaligned = false;
    gridDim = {(unsigned int)grid[0], (unsigned int)grid[1], 1};
    blockDim = {(unsigned int)threads, 1, 1};
    long long blocks = (long long)grid[0] * grid[1];
    for (long long n = 0; n < blocks && !misaligned; ++n) {
        long long block = reverse ? blocks - 1 - n : n;
        blockIdx = {(unsigned int)(block % grid[0]), (unsigned int)(block / grid[0]), 0};
        if (synchronizes) {
            if (!run_block(threads, reverse))
                return LOST_THREAD;
            continue;
        }
        for (int k = 0; k < threads; ++k) {
            threadIdx = {(unsigned int)(reverse ? threads - 1 - k : k), 0, 0};
            body(values);
        }
    }
    return misaligned ? MISALIGNED : DONE;
}

}  // namespace shim

// What g++ calls, asked by -fsanitize=alignment.
extern "C" void __ubsan_handle_type_mismatch_v1(void *, void *)
{
    shim::misaligned = true;
}

static inline void __syncthreads()
{
    shim::wait(shim::AT_BLOCK);
}

template <typename T> T __shfl_xor_sync(unsigned int, T value, int mask)
{
    int partner = shim::current % shim::LANES ^ mask;
    return shim::exchange(value, [=](auto of_lane) { return of_lane(partner); });
}

static inline unsigned int __ballot_sync(unsigned int, bool here)
{
    return shim::exchange(here, [](auto of_lane) {
        unsigned int bits = 0;
        for (int lane = 0; lane < shim::LANES; ++lane)
            bits |= (unsigned int)of_lane(lane) << lane;
        return bits;
    });
}

static inline int __popc(unsigned int bits)
{
    return __builtin_popcount(bits);
}

static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
