// The softmax of each row, and its backward, in one pass over memory each:
//
//     forward     Y = exp(X - top) / total,   top the maximum of a row, total the sum of its exp(X - top)
//     backward    dL_dX = Y * (dL_dY - sum of dL_dY * Y over the row)
//
// Rows of n numbers, one after the other; those of a stack too. A group of `lanes` threads has a row, see over_group.
// Rows are read two or three times, but from memory once. With packed != 0 each row begins at a multiple of 16 bytes.
#include "sums.cuh"

// One row, by a group of threads; n = 0 for a group that has none.
template <int V, typename T>
__device__ void softmax_of_row(const T* X, T* Y, Index n, int lane, int lanes) {
    T top = n > 0 ? X[0] : T(0);
    for (Index k = lane * V; k < n; k += lanes * V) {
        const Pack<T, V> x = load<V>(X + k, n - k);
#pragma unroll
        for (int v = 0; v < V; ++v) top = Largest::of(top, x.at[v]);
    }
    top = over_group<Largest>(top, lanes);
    T total = 0;
    for (Index k = lane * V; k < n; k += lanes * V) {
        const Pack<T, V> x = load<V>(X + k, n - k);
#pragma unroll
        for (int v = 0; v < V; ++v) total += exp(x.at[v] - top);
    }
    const T inverse = 1 / over_group<Sum>(total, lanes);
    for (Index k = lane * V; k < n; k += lanes * V) {
        Pack<T, V> x = load<V>(X + k, n - k);
#pragma unroll
        for (int v = 0; v < V; ++v) x.at[v] = exp(x.at[v] - top) * inverse;
        store(Y + k, x, n - k);
    }
}

template <int V, typename T>
__device__ void softmax_backward_of_row(const T* dL_dY, const T* Y, T* dL_dX, Index n, int lane, int lanes) {
    T dot = 0;
    for (Index k = lane * V; k < n; k += lanes * V) {
        const Pack<T, V> d = load<V>(dL_dY + k, n - k), y = load<V>(Y + k, n - k);
#pragma unroll
        for (int v = 0; v < V; ++v) dot += d.at[v] * y.at[v];
    }
    dot = over_group<Sum>(dot, lanes);
    for (Index k = lane * V; k < n; k += lanes * V) {
        Pack<T, V> d = load<V>(dL_dY + k, n - k);
        const Pack<T, V> y = load<V>(Y + k, n - k);
#pragma unroll
        for (int v = 0; v < V; ++v) d.at[v] = y.at[v] * (d.at[v] - dot);
        store(dL_dX + k, d, n - k);
    }
}

template <typename T>
__global__ void softmax(const T* X,  // (rows, n)
                        T* Y,        // (rows, n)
                        Index rows, Index n, Index lanes, Index packed) {
    const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = blockDim.x / lanes;
    // The first row of the block, not of the thread: all threads of a block take part in its sums.
    for (Index first = blockIdx.x * Index(groups); first < rows; first += gridDim.x * Index(groups)) {
        const Index begin = (first + group) * n, there = first + group < rows ? n : 0;
        if (packed) {
            softmax_of_row<PACK<T>>(X + begin, Y + begin, there, lane, int(lanes));
        } else {
            softmax_of_row<1>(X + begin, Y + begin, there, lane, int(lanes));
        }
    }
}

template <typename T>
__global__ void softmax_backward(const T* dL_dY,  // (rows, n)
                                 const T* Y,      // (rows, n)
                                 T* dL_dX,        // (rows, n); may be dL_dY
                                 Index rows, Index n, Index lanes, Index packed) {
    const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = blockDim.x / lanes;
    for (Index first = blockIdx.x * Index(groups); first < rows; first += gridDim.x * Index(groups)) {
        const Index begin = (first + group) * n, there = first + group < rows ? n : 0;
        if (packed) {
            softmax_backward_of_row<PACK<T>>(dL_dY + begin, Y + begin, dL_dX + begin, there, lane, int(lanes));
        } else {
            softmax_backward_of_row<1>(dL_dY + begin, Y + begin, dL_dX + begin, there, lane, int(lanes));
        }
    }
}
