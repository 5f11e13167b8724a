// What the kernels share: the index type, packs of 16 bytes, sums over the rows of a block.
#pragma once

using Index = long long;  // 64 bits: E * N * n may exceed 2^31

constexpr int MAX_THREADS = 256;  // of a block; the launchers in gpubp/cuda_kernels/ keep to it

template <typename T>
constexpr int PACK = 16 / int(sizeof(T));  // numbers that a thread reads at once, where they are aligned

// `count` numbers that are read at once.
template <typename T, int count>
struct alignas(count * sizeof(T)) Pack {
    T at[count];
};

// The sum of `value` over threadIdx.y, separately for each threadIdx.x; only threads with threadIdx.y == 0 get it.
// Every thread of the block must call this, and blockDim.y must be a power of two. The order of the additions is
// fixed, so the result repeats bit for bit.
template <typename T>
__device__ T sum_over_block_rows(T value) {
    __shared__ T sums[MAX_THREADS];
    const unsigned int thread = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();  // a slower thread may still be reading the sums of the call before
    sums[thread] = value;
    for (unsigned int half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y < half) sums[thread] += sums[thread + half * blockDim.x];
    }
    return sums[thread];
}
