// The softmax of each row, and its backward, in one pass over memory each:
//
//     forward     Y = exp(X - top) / total,   top the maximum of a row, total the sum of its exp(X - top)
//     backward    dL_dX = Y * (dL_dY - sum of dL_dY * Y over the row)
//
// Rows of n numbers, one after the other; those of a stack too. The threads with one threadIdx.y have a row, as a group
// that over_group takes. Rows are read two or three times, but from memory once. With W > 1, n is divisible by W, and
// rows begin at multiples of 16 bytes.
#include "sums.cuh"

template <typename T, int W>
__global__ void softmax(const T* X,  // (rows, n)
                        T* Y,        // (rows, n)
                        Index rows, Index n) {
    const unsigned int begin = threadIdx.x * W, step = blockDim.x * W;
    // The first row of the block, not of the thread: all threads of a block take part in its sums.
    for (Index first = blockIdx.x * Index(blockDim.y); first < rows; first += gridDim.x * Index(blockDim.y)) {
        const Index row = first + threadIdx.y, there = row < rows ? n : 0;
        const T* const x_row = X + row * n;
        T top = there > 0 ? x_row[0] : T(0);
        for (Index k = begin; k < there; k += step) {
            const Pack<T, W> x = load<W>(x_row + k);
#pragma unroll
            for (int v = 0; v < W; ++v) top = Largest::of(top, x.at[v]);
        }
        top = over_group<Largest>(top, blockDim.x);
        T total = 0;
        for (Index k = begin; k < there; k += step) {
            const Pack<T, W> x = load<W>(x_row + k);
#pragma unroll
            for (int v = 0; v < W; ++v) total += exp(x.at[v] - top);
        }
        const T inverse = 1 / over_group<Sum>(total, blockDim.x);
        for (Index k = begin; k < there; k += step) {
            Pack<T, W> x = load<W>(x_row + k);
#pragma unroll
            for (int v = 0; v < W; ++v) x.at[v] = exp(x.at[v] - top) * inverse;
            store(Y + row * n + k, x);
        }
    }
}

template <typename T, int W>
__global__ void softmax_backward(const T* dL_dY,  // (rows, n)
                                 const T* Y,      // (rows, n)
                                 T* dL_dX,        // (rows, n); may be dL_dY
                                 Index rows, Index n) {
    const unsigned int begin = threadIdx.x * W, step = blockDim.x * W;
    for (Index first = blockIdx.x * Index(blockDim.y); first < rows; first += gridDim.x * Index(blockDim.y)) {
        const Index row = first + threadIdx.y, there = row < rows ? n : 0;
        T dot = 0;
        for (Index k = begin; k < there; k += step) {
            const Pack<T, W> d = load<W>(dL_dY + row * n + k), y = load<W>(Y + row * n + k);
#pragma unroll
            for (int v = 0; v < W; ++v) dot += d.at[v] * y.at[v];
        }
        dot = over_group<Sum>(dot, blockDim.x);
        for (Index k = begin; k < there; k += step) {
            Pack<T, W> d = load<W>(dL_dY + row * n + k);
            const Pack<T, W> y = load<W>(Y + row * n + k);
#pragma unroll
            for (int v = 0; v < W; ++v) d.at[v] = y.at[v] * (d.at[v] - dot);
            store(dL_dX + row * n + k, d);
        }
    }
}
