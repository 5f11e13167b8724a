// Sums over groups of threads, and numbers read and written 16 bytes at a time: what the losses and the penalty share.
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

// The sum, or the largest, of the values of `lanes` neighbouring threads: a power of two up to a warp, or the block, of
// whole warps. Each of them gets the same result to the last bit. Every thread of the block must call this.
template <typename Operation, typename T>
__device__ T over_group(T value, int lanes) {
    constexpr int WARP = 32;
    for (int by = min(lanes, WARP) / 2; by > 0; by /= 2) {
        value = Operation::of(value, __shfl_xor_sync(0xffffffffu, value, by));
    }
    if (lanes <= WARP) return value;
    __shared__ T of_warps[MAX_THREADS / WARP];
    __syncthreads();  // a slower thread may still be reading what the call before has left
    if (threadIdx.x % WARP == 0) of_warps[threadIdx.x / WARP] = value;
    __syncthreads();
    value = of_warps[0];
    for (int warp = 1; warp < lanes / WARP; ++warp) value = Operation::of(value, of_warps[warp]);
    return value;
}

template <typename T>
constexpr int PACK = 16 / sizeof(T);  // numbers that a thread reads at once

template <typename T, int V>
struct alignas(V * sizeof(T)) Pack {
    T at[V];
};

// The next V numbers, in one access; of the last ones one by one as many as there are, and zeros.
template <int V, typename T>
__device__ Pack<T, V> load(const T* from, Index there) {
    if (there >= V) return *reinterpret_cast<const Pack<T, V>*>(from);
    Pack<T, V> pack;
#pragma unroll
    for (int v = 0; v < V; ++v) pack.at[v] = v < there ? from[v] : T(0);
    return pack;
}

template <int V, typename T>
__device__ void store(T* to, const Pack<T, V>& pack, Index there) {
    if (there >= V) {
        *reinterpret_cast<Pack<T, V>*>(to) = pack;
        return;
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
        if (v < there) to[v] = pack.at[v];
    }
}

// How many of `size` numbers each of C chunks has, whole packs.
__device__ inline Index chunk_of(Index size, Index C, int pack) {
    return (size + C * pack - 1) / (C * pack) * pack;
}
