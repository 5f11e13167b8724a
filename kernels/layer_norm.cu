// Each row less its mean, over its deviation, then scaled and shifted; and the backward; one pass over memory each:
//
//     forward     X_hat = (X - mean) * inverse_std,   inverse_std = 1 / sqrt(mean of (X - mean)^2 + epsilon),
//                 Y = X_hat * gamma + beta
//     backward    dL_dX = inverse_std * (D - mean of D - X_hat * (mean of D * X_hat)),   D = dL_dY * gamma
//
// The sums over rows that are dL_dgamma and dL_dbeta are those of rows.cu. E members of a stack, N examples (rows), n
// columns; where X_stride is 0, members share X, X_hat and inverse_std. The threads with one threadIdx.y have a row, as
// a group that over_group takes; blockIdx.y runs over members. Rows are read two or three times, but from memory once.
// With W > 1, n is divisible by W, and each row of a matrix begins at a multiple of 16 bytes; gamma and beta, parts of
// the parameter buffer, begin anywhere.
#include "sums.cuh"

// One row, by a group of threads; n = 0 for a group that has none. X_hat is null where another member writes it.
template <int W, typename T>
__device__ void normalize_row(const T* X, const T* gamma, const T* beta, T epsilon, T* Y, T* X_hat, T* inverse_std,
                              Index n) {
    const unsigned int begin = threadIdx.x * W, step = blockDim.x * W;
    T sum = 0;
    for (Index k = begin; k < n; k += step) {
        const Pack<T, W> x = load<W>(X + k);
#pragma unroll
        for (int v = 0; v < W; ++v) sum += x.at[v];
    }
    const T mean = over_group<Sum>(sum, blockDim.x) / T(n);
    T squares = 0;
    for (Index k = begin; k < n; k += step) {
        const Pack<T, W> x = load<W>(X + k);
#pragma unroll
        for (int v = 0; v < W; ++v) squares += (x.at[v] - mean) * (x.at[v] - mean);
    }
    const T inverse = 1 / sqrt(over_group<Sum>(squares, blockDim.x) / T(n) + epsilon);
    for (Index k = begin; k < n; k += step) {
        Pack<T, W> hat = load<W>(X + k), y;
#pragma unroll
        for (int v = 0; v < W; ++v) {
            hat.at[v] = (hat.at[v] - mean) * inverse;
            y.at[v] = hat.at[v] * gamma[k + v] + beta[k + v];
        }
        if (X_hat) store(X_hat + k, hat);
        store(Y + k, y);
    }
    if (X_hat && n > 0 && threadIdx.x == 0) *inverse_std = inverse;
}

template <int W, typename T>
__device__ void normalize_row_backward(const T* dL_dY, const T* gamma, const T* X_hat, const T* inverse_std, T* dL_dX,
                                       Index n) {
    const unsigned int begin = threadIdx.x * W, step = blockDim.x * W;
    T sum = 0, products = 0;
    for (Index k = begin; k < n; k += step) {
        const Pack<T, W> d = load<W>(dL_dY + k), hat = load<W>(X_hat + k);
#pragma unroll
        for (int v = 0; v < W; ++v) {
            sum += d.at[v] * gamma[k + v];
            products += d.at[v] * gamma[k + v] * hat.at[v];
        }
    }
    const T mean = over_group<Sum>(sum, blockDim.x) / T(n), along = over_group<Sum>(products, blockDim.x) / T(n);
    const T inverse = n > 0 ? *inverse_std : T(0);
    for (Index k = begin; k < n; k += step) {
        Pack<T, W> d = load<W>(dL_dY + k);
        const Pack<T, W> hat = load<W>(X_hat + k);
#pragma unroll
        for (int v = 0; v < W; ++v) d.at[v] = inverse * (d.at[v] * gamma[k + v] - mean - hat.at[v] * along);
        store(dL_dX + k, d);
    }
}

template <typename T, int W>
__global__ void layer_norm(const T* X,      // (E, N, n), or (N, n)
                           const T* gamma,  // (E, n), members gamma_stride apart
                           const T* beta,   // (E, n), members beta_stride apart
                           T* Y,            // (E, N, n)
                           T* X_hat,        // as X
                           T* inverse_std,  // (E, N), or (N,)
                           Index E, Index N, Index n, Index X_stride, Index gamma_stride, Index beta_stride,
                           T epsilon) {
    for (Index e = blockIdx.y; e < E; e += gridDim.y) {
        const bool writes = e == 0 || X_stride != 0;
        // The first row of the block, not of the thread: all threads of a block take part in its sums.
        for (Index first = blockIdx.x * Index(blockDim.y); first < N; first += gridDim.x * Index(blockDim.y)) {
            const Index row = first + threadIdx.y, there = row < N ? n : 0, begin = e * X_stride + row * n;
            const T *const g = gamma + e * gamma_stride, *const b = beta + e * beta_stride;
            T* const hat = writes ? X_hat + begin : nullptr;
            T* const inverse = inverse_std + (X_stride ? e * N : 0) + row;
            normalize_row<W>(X + begin, g, b, epsilon, Y + (e * N + row) * n, hat, inverse, there);
        }
    }
}

template <typename T, int W>
__global__ void layer_norm_backward(const T* dL_dY,        // (E, N, n)
                                    const T* gamma,        // (E, n), members gamma_stride apart
                                    const T* X_hat,        // (E, N, n), or (N, n)
                                    const T* inverse_std,  // (E, N), or (N,)
                                    T* dL_dX,              // (E, N, n); may be dL_dY
                                    Index E, Index N, Index n, Index X_stride, Index gamma_stride) {
    for (Index e = blockIdx.y; e < E; e += gridDim.y) {
        for (Index first = blockIdx.x * Index(blockDim.y); first < N; first += gridDim.x * Index(blockDim.y)) {
            const Index row = first + threadIdx.y, there = row < N ? n : 0, begin = (e * N + row) * n;
            const T *const g = gamma + e * gamma_stride, *const hat = X_hat + e * X_stride + row * n;
            const T* const inverse = inverse_std + (X_stride ? e * N : 0) + row;
            normalize_row_backward<W>(dL_dY + begin, g, hat, inverse, dL_dX + begin, there);
        }
    }
}
