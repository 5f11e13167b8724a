// Each row less its mean, over its deviation, then scaled and shifted; and the backward; one pass over memory each:
//
//     forward     X_hat = (X - mean) * inverse_std,   inverse_std = 1 / sqrt(mean of (X - mean)^2 + epsilon),
//                 Y = X_hat * gamma + beta
//     backward    dL_dX = inverse_std * (D - mean of D - X_hat * (mean of D * X_hat)),   D = dL_dY * gamma
//
// The sums over rows that are dL_dgamma and dL_dbeta are those of rows.cu. E members of a stack, N examples (rows), n
// columns; where X_stride is 0, members share X, X_hat and inverse_std. A group of `lanes` threads has a row, see
// over_group; blockIdx.y runs over members. Rows are read two or three times, but from memory once. With packed != 0 each
// row of a matrix begins at a multiple of 16 bytes; gamma and beta, parts of the parameter buffer, begin anywhere.
#include "sums.cuh"

// One row, by a group of threads; n = 0 for a group that has none. X_hat is null where another member writes it.
template <int V, typename T>
__device__ void normalize_row(const T* X, const T* gamma, const T* beta, T epsilon, T* Y, T* X_hat, T* inverse_std,
                              Index n, int lane, int lanes) {
    T sum = 0;
    for (Index k = lane * V; k < n; k += lanes * V) {
        const Pack<T, V> x = load<V>(X + k, n - k);
#pragma unroll
        for (int v = 0; v < V; ++v) sum += x.at[v];
    }
    const T mean = over_group<Sum>(sum, lanes) / T(n);
    T squares = 0;
    for (Index k = lane * V; k < n; k += lanes * V) {
        const Pack<T, V> x = load<V>(X + k, n - k);
#pragma unroll
        for (int v = 0; v < V; ++v) squares += (x.at[v] - mean) * (x.at[v] - mean);
    }
    const T inverse = 1 / sqrt(over_group<Sum>(squares, lanes) / T(n) + epsilon);
    for (Index k = lane * V; k < n; k += lanes * V) {
        Pack<T, V> hat = load<V>(X + k, n - k), y;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            hat.at[v] = (hat.at[v] - mean) * inverse;
            y.at[v] = hat.at[v] * gamma[k + v] + beta[k + v];
        }
        if (X_hat) store(X_hat + k, hat, n - k);
        store(Y + k, y, n - k);
    }
    if (X_hat && n > 0 && lane == 0) *inverse_std = inverse;
}

template <int V, typename T>
__device__ void normalize_row_backward(const T* dL_dY, const T* gamma, const T* X_hat, const T* inverse_std, T* dL_dX,
                                       Index n, int lane, int lanes) {
    T sum = 0, products = 0;
    for (Index k = lane * V; k < n; k += lanes * V) {
        const Pack<T, V> d = load<V>(dL_dY + k, n - k), hat = load<V>(X_hat + k, n - k);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            sum += d.at[v] * gamma[k + v];
            products += d.at[v] * gamma[k + v] * hat.at[v];
        }
    }
    const T mean = over_group<Sum>(sum, lanes) / T(n), along = over_group<Sum>(products, lanes) / T(n);
    const T inverse = n > 0 ? *inverse_std : T(0);
    for (Index k = lane * V; k < n; k += lanes * V) {
        Pack<T, V> d = load<V>(dL_dY + k, n - k);
        const Pack<T, V> hat = load<V>(X_hat + k, n - k);
#pragma unroll
        for (int v = 0; v < V; ++v) d.at[v] = inverse * (d.at[v] * gamma[k + v] - mean - hat.at[v] * along);
        store(dL_dX + k, d, n - k);
    }
}

template <typename T>
__global__ void layer_norm(const T* X,            // (E, N, n), or (N, n)
                           const T* gamma,        // (E, n), members gamma_stride apart
                           const T* beta,         // (E, n), members beta_stride apart
                           T* Y,                  // (E, N, n)
                           T* X_hat,              // as X
                           T* inverse_std,        // (E, N), or (N,)
                           Index E, Index N, Index n, Index X_stride, Index gamma_stride, Index beta_stride,
                           Index lanes, Index packed, T epsilon) {
    const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = blockDim.x / lanes;
    for (Index e = blockIdx.y; e < E; e += gridDim.y) {
        const bool writes = e == 0 || X_stride != 0;
        // The first row of the block, not of the thread: all threads of a block take part in its sums.
        for (Index first = blockIdx.x * Index(groups); first < N; first += gridDim.x * Index(groups)) {
            const Index row = first + group, there = row < N ? n : 0, begin = e * X_stride + row * n;
            const T *const g = gamma + e * gamma_stride, *const b = beta + e * beta_stride;
            T* const hat = writes ? X_hat + begin : nullptr;
            T* const inverse = inverse_std + (X_stride ? e * N : 0) + row;
            T* const y = Y + (e * N + row) * n;
            if (packed) {
                normalize_row<PACK<T>>(X + begin, g, b, epsilon, y, hat, inverse, there, lane, int(lanes));
            } else {
                normalize_row<1>(X + begin, g, b, epsilon, y, hat, inverse, there, lane, int(lanes));
            }
        }
    }
}

template <typename T>
__global__ void layer_norm_backward(const T* dL_dY,        // (E, N, n)
                                    const T* gamma,        // (E, n), members gamma_stride apart
                                    const T* X_hat,        // (E, N, n), or (N, n)
                                    const T* inverse_std,  // (E, N), or (N,)
                                    T* dL_dX,              // (E, N, n); may be dL_dY
                                    Index E, Index N, Index n, Index X_stride, Index gamma_stride, Index lanes,
                                    Index packed) {
    const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = blockDim.x / lanes;
    for (Index e = blockIdx.y; e < E; e += gridDim.y) {
        for (Index first = blockIdx.x * Index(groups); first < N; first += gridDim.x * Index(groups)) {
            const Index row = first + group, there = row < N ? n : 0, begin = (e * N + row) * n;
            const T *const g = gamma + e * gamma_stride, *const hat = X_hat + e * X_stride + row * n;
            const T* const inverse = inverse_std + (X_stride ? e * N : 0) + row;
            if (packed) {
                normalize_row_backward<PACK<T>>(dL_dY + begin, g, hat, inverse, dL_dX + begin, there, lane, int(lanes));
            } else {
                normalize_row_backward<1>(dL_dY + begin, g, hat, inverse, dL_dX + begin, there, lane, int(lanes));
            }
        }
    }
}
