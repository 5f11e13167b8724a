// Sums over groups of threads, and numbers read and written 16 bytes at a time.
//
// W is the width of a memory access: PACK<T> numbers, where the launcher has seen that all packs begin at multiples of
// 16 bytes, or 1.
#pragma once
#include "common.cuh"

struct Sum {
    template <typename T>
    static __device__ T of(T a, T b) {
        return a + b;
    }
};

struct Largest {
    template <typename T>
    static __device__ T of(T a, T b) {
        return a > b ? a : b;
    }
};

// The sum, or the largest, of the values of a group of threads: the first 2^k lanes of a warp, the next 2^k and so on,
// or all threads of a block of whole warps. Each of them gets the same result to the last bit. Every thread of the block
// must call this.
template <typename Operation, typename T>
__device__ T over_group(T value, unsigned int threads) {
    constexpr unsigned int WARP = 32;
    for (unsigned int by = min(threads, WARP) / 2; by > 0; by /= 2) {
        value = Operation::of(value, __shfl_xor_sync(0xffffffffu, value, by));
    }
    if (threads <= WARP) return value;
    __shared__ T of_warps[MAX_THREADS / WARP];
    const unsigned int thread = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();  // a slower thread may still be reading what the call before has left
    if (thread % WARP == 0) of_warps[thread / WARP] = value;
    __syncthreads();
    value = of_warps[0];
    for (unsigned int warp = 1; warp < threads / WARP; ++warp) value = Operation::of(value, of_warps[warp]);
    return value;
}

// The next W numbers, in one access; where only `there` are left, these one by one, and zeros.
template <int W, typename T>
__device__ Pack<T, W> load(const T* from, Index there = W) {
    if (there >= W) return *reinterpret_cast<const Pack<T, W>*>(from);
    Pack<T, W> pack;
#pragma unroll
    for (int v = 0; v < W; ++v) pack.at[v] = v < there ? from[v] : T(0);
    return pack;
}

template <int W, typename T>
__device__ void store(T* to, const Pack<T, W>& pack, Index there = W) {
    if (there >= W) {
        *reinterpret_cast<Pack<T, W>*>(to) = pack;
        return;
    }
#pragma unroll
    for (int v = 0; v < W; ++v) {
        if (v < there) to[v] = pack.at[v];
    }
}
