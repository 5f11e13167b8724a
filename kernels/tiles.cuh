// Walking over matrices (E, N, n) in tiles, with 16 bytes a thread at once.
//
// A member's matrix is cut into bands of `joined` rows: as many as make whole packs of 16 bytes, where that is few, else
// one. A tile is blockDim.x packs wide and blockDim.y bands high; a thread has one pack of each of its bands. Thus a
// block of a narrow matrix is full of threads that have something to do, and odd n is read 16 bytes at once too. Which
// numbers are summed in which order follows from these sizes alone, never from where the arrays lie.
//
// W is the width of a memory access: PACK<T> numbers, where the launcher has seen that all packs begin at multiples of
// 16 bytes, or 1. With W = 1 the numbers of a thread lie blockDim.x apart, so that threads side by side still read side
// by side.
#pragma once
#include "common.cuh"

// Bands that a thread reads before it computes. Memory takes 800 ns to answer, so that 4.8 TB/s want 29 KB under way in
// each of 132 multiprocessors: 32 bytes in 1024 threads. Where numbers are read one by one, a band has several already.
template <int W>
constexpr int IN_FLIGHT = W > 1 ? 2 : 1;
constexpr int RESIDENT = 2;  // blocks that a multiprocessor must have registers for, at least

// Where the k-th number of this thread lies within a row of its tile.
template <int W, typename T>
__device__ Index place(int k) {
    return W == 1 ? Index(k) * blockDim.x + threadIdx.x : Index(threadIdx.x) * PACK<T> + k;
}

// x[k] = X[begin + place(k)] where that is before `end`, else 0.
template <int W, typename T>
__device__ void load(const T* X, Index begin, Index end, T (&x)[PACK<T>]) {
    const Index first = begin + place<W, T>(0), apart = place<W, T>(1) - place<W, T>(0);
    if (W > 1 && first + PACK<T> <= end) {
        const auto v = *reinterpret_cast<const Pack<T, PACK<T>>*>(X + first);
#pragma unroll
        for (int k = 0; k < PACK<T>; ++k) x[k] = v.at[k];
        return;
    }
#pragma unroll
    for (int k = 0; k < PACK<T>; ++k) x[k] = first + k * apart < end ? X[first + k * apart] : T(0);
}

// 16 bytes written at once. An assignment will not do: the compiler takes it apart into numbers, and leaves it so.
__device__ inline void store_pack(float* X, const float (&x)[4]) {
    __stwb(reinterpret_cast<float4*>(X), make_float4(x[0], x[1], x[2], x[3]));
}
__device__ inline void store_pack(double* X, const double (&x)[2]) {
    __stwb(reinterpret_cast<double2*>(X), make_double2(x[0], x[1]));
}
__device__ inline void store_pack(Index* X, const Index (&x)[2]) {
    __stwb(reinterpret_cast<longlong2*>(X), make_longlong2(x[0], x[1]));
}

// X[begin + place(k)] = x[k] where that is before `end`.
template <int W, typename T>
__device__ void store(T* X, Index begin, Index end, const T (&x)[PACK<T>]) {
    const Index first = begin + place<W, T>(0), apart = place<W, T>(1) - place<W, T>(0);
    if (W > 1 && first + PACK<T> <= end) {
        store_pack(X + first, x);
        return;
    }
#pragma unroll
    for (int k = 0; k < PACK<T>; ++k)
        if (first + k * apart < end) X[first + k * apart] = x[k];
}

// What a row (n,) has for each of this thread's numbers in a tile whose first column is `left`; 0 without a row.
template <int W, typename T>
__device__ void load_row(const T* row, Index left, Index n, T (&x)[PACK<T>]) {
#pragma unroll
    for (int k = 0; k < PACK<T>; ++k) {
        Index j = left + place<W, T>(k);
        while (j >= n) j -= n;  // a band has few rows
        x[k] = row ? row[j] : T(0);
    }
}

// Call g.begin(e, left) for each tile, then g.read and g.write for each band of it; blockIdx.y runs over bands.
template <int W, typename T, typename Function>
__device__ void map_bands(Function& g, Index E, Index N, Index n, Index joined) {
    const Index length = joined * n, width = Index(blockDim.x) * PACK<T>;
    const Index step = Index(gridDim.y) * blockDim.y * length;
    for (Index e = blockIdx.z; e < E; e += gridDim.z) {
        const Index member_end = (e + 1) * N * n;
        for (Index left = blockIdx.x * width; left < length; left += gridDim.x * width) {
            g.begin(e, left);
            Index row = e * N * n + (blockIdx.y * Index(blockDim.y) + threadIdx.y) * length;
            for (; row < member_end; row += g.in_flight * step) {
#pragma unroll
                for (int u = 0; u < g.in_flight; ++u)
                    g.read(u, row + u * step + left, min(row + u * step + length, member_end));
#pragma unroll
                for (int u = 0; u < g.in_flight; ++u)
                    g.write(u, row + u * step + left, min(row + u * step + length, member_end));
            }
        }
    }
}

// The sum over the rows of a tile, and over those of its bands; only threads with threadIdx.y == 0 get it, for their
// numbers below n. Every thread of the block must call this. The order of the additions is fixed.
template <int W, typename T>
__device__ void sum_over_tile(T (&sum)[PACK<T>], Index n, Index joined) {
    __shared__ T sums[MAX_THREADS * PACK<T>];
    const Index width = Index(blockDim.x) * PACK<T>, row = threadIdx.y * width;
    __syncthreads();  // a slower thread may still read the sums of the tile before
#pragma unroll
    for (int k = 0; k < PACK<T>; ++k) sums[row + place<W, T>(k)] = sum[k];
    for (unsigned int rows = blockDim.y; rows > 1;) {
        const unsigned int half = (rows + 1) / 2;
        __syncthreads();
#pragma unroll
        for (int k = 0; k < PACK<T>; ++k) {
            const Index i = row + place<W, T>(k);
            if (threadIdx.y + half < rows) sums[i] += sums[i + half * width];
        }
        rows = half;
    }
    __syncthreads();  // the rows of a band were summed by other threads
#pragma unroll
    for (int k = 0; k < PACK<T>; ++k) {
        const Index j = place<W, T>(k);
        sum[k] = sums[j];
        for (Index m = 1; m < joined && j < n; ++m) sum[k] += sums[m * n + j];
    }
}

// Call g.member(e) for each member, g.read for each band of each chunk, then g.add, and write the sums of each chunk;
// blockIdx.y runs over chunks.
template <int W, typename T, typename Function>
__device__ void sum_bands(Function& g,
                          T* partial_sums,  // (E, C, n), members sums_stride apart; null: no sums
                          Index E, Index N, Index n, Index joined, Index C, Index sums_stride) {
    const Index length = joined * n, width = Index(blockDim.x) * PACK<T>, step = blockDim.y * length;
    const Index bands = (N + joined - 1) / joined, chunk = (bands + C - 1) / C * length;
    for (Index e = blockIdx.z; e < E; e += gridDim.z) {
        g.member(e);
        for (Index c = blockIdx.y; c < C; c += gridDim.y) {
            const Index begin = e * N * n + c * chunk, end = min((e + 1) * N * n, begin + chunk);
            // The first column of the tile, not of the thread: all threads of a block take part in its sums.
            for (Index left = blockIdx.x * width; left < length; left += gridDim.x * width) {
                T sum[PACK<T>] = {};
                for (Index row = begin + threadIdx.y * length; row < end; row += g.in_flight * step) {
#pragma unroll
                    for (int u = 0; u < g.in_flight; ++u)
                        g.read(u, row + u * step + left, min(row + u * step + length, end));
#pragma unroll
                    for (int u = 0; u < g.in_flight; ++u)
                        g.add(u, row + u * step + left, min(row + u * step + length, end), sum);
                }
                if (!partial_sums) continue;
                sum_over_tile<W>(sum, n, joined);
#pragma unroll
                for (int k = 0; k < PACK<T>; ++k) {
                    const Index j = left + place<W, T>(k);
                    if (j < n && threadIdx.y == 0) partial_sums[e * sums_stride + c * n + j] = sum[k];
                }
            }
        }
    }
}
