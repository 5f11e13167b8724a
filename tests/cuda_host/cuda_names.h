// What CUDA C++ has and C++ has not, for kernels that run on the host. cuda_host.h goes on from here, and has these
// includes from here: they come before the macros.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
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
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>

#include <thread>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#if defined(__SANITIZE_THREAD__)
#define __shared__ static thread_local  // each block runs in a thread of the host that is its own
#define UNSEEN __attribute__((no_sanitize("thread")))  // what is no part of a kernel
#else
#define __shared__ static
#define UNSEEN
#endif

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
