// Batch normalisation of each column over the N rows:
//
//     mean, variance;   r = 1 / sqrt(variance + epsilon)
//     Y = (X - mean) * r * gamma + beta
//     dL_dgamma = sum of dL_dY * (X - mean) * r,   dL_dbeta = sum of dL_dY
//     dL_dX = gamma * r * (dL_dY - share * (dL_dbeta + (X - mean) * r * dL_dgamma)),   share = 1 / N, 0 in inference
//
// E members, N rows, n columns; tiles.cuh says how blocks and threads share matrices, the launcher is
// gpubp/cuda_kernels/batch_norm.py. Rows (E, n) lie as far apart as their stride says, 0 for all members the same.
//
// Sums have two stages, without atomics: of C chunks of rows, then of the chunks; C depends on the shape alone. The sums
// of X are those of X less its first row, so that squares need not cancel: see gpubp/ops/batch_norm.py.
#include "common.cuh"
#include "tiles.cuh"

// Two sums over the rows of each chunk: g.begin(e, left), g.read for a row, g.add onto both.
template <int W, typename T, typename Function>
__device__ void sum_pairs(Function& g, T* partial_sums /* (E, C, 2, n) */, Index E, Index N, Index n, Index C) {
    const Index width = Index(blockDim.x) * PACK<T>, chunk = (N + C - 1) / C, down = blockDim.y;
    for (Index e = blockIdx.z; e < E; e += gridDim.z) {
        for (Index c = blockIdx.y; c < C; c += gridDim.y) {
            const Index first = e * N + c * chunk, last = min((e + 1) * N, first + chunk);
            for (Index left = blockIdx.x * width; left < n; left += gridDim.x * width) {
                g.begin(e, left);
                T one[PACK<T>] = {}, other[PACK<T>] = {};
                for (Index row = first + threadIdx.y; row < last; row += g.in_flight * down) {
#pragma unroll
                    for (int u = 0; u < g.in_flight; ++u) {
                        const Index begin = (row + u * down) * n;
                        g.read(u, begin + left, row + u * down < last ? begin + n : begin);
                    }
#pragma unroll
                    for (int u = 0; u < g.in_flight; ++u)
                        if (row + u * down < last) g.add(u, one, other);
                }
                sum_over_tile<W>(one, n, 1);
                sum_over_tile<W>(other, n, 1);
#pragma unroll
                for (int k = 0; k < PACK<T>; ++k) {
                    const Index j = left + place<W, T>(k);
                    if (j < n && threadIdx.y == 0) {
                        partial_sums[(e * C + c) * 2 * n + j] = one[k];
                        partial_sums[((e * C + c) * 2 + 1) * n + j] = other[k];
                    }
                }
            }
        }
    }
}

template <typename T, int W>
struct Deviations {
    static constexpr int in_flight = IN_FLIGHT<W>;
    const T* const X;
    const Index N, n;
    T shift[PACK<T>], x[in_flight][PACK<T>];

    __device__ void begin(Index e, Index left) { load<W>(X + e * N * n, left, n, shift); }
    __device__ void read(int u, Index begin, Index end) { load<W>(X, begin, end, x[u]); }
    __device__ void add(int u, T (&sum)[PACK<T>], T (&squares)[PACK<T>]) {
#pragma unroll
        for (int k = 0; k < PACK<T>; ++k) {
            const T d = x[u][k] - shift[k];
            sum[k] += d;
            squares[k] += d * d;
        }
    }
};

template <typename T, int W>
__global__ void __launch_bounds__(MAX_THREADS, RESIDENT)
    batch_sums(const T* X,       // (E, N, n)
               T* partial_sums,  // (E, C, 2, n)
               Index E, Index N, Index n, Index C) {
    Deviations<T, W> g = {X, N, n, {}, {}};
    if (N > 0) sum_pairs<W>(g, partial_sums, E, N, n, C);
}

template <typename T>
__global__ void batch_moments(const T* partial_sums,  // (E, C, 2, n)
                              const T* X,             // (E, N, n)
                              T* mean, T* r, T* running_mean, T* running_variance, Index mean_stride, Index r_stride,
                              Index running_mean_stride, Index running_variance_stride, Index E, Index N, Index n,
                              Index C, T momentum, T epsilon) {
    for (Index e = blockIdx.z; e < E; e += gridDim.z) {
        for (Index left = blockIdx.x * Index(blockDim.x); left < n; left += Index(gridDim.x) * blockDim.x) {
            const Index j = left + threadIdx.x;
            T sum = 0, squares = 0;
            for (Index c = threadIdx.y; j < n && N > 0 && c < C; c += blockDim.y) {
                sum += partial_sums[(e * C + c) * 2 * n + j];
                squares += partial_sums[((e * C + c) * 2 + 1) * n + j];
            }
            sum = sum_over_block_rows(sum);
            squares = sum_over_block_rows(squares);
            if (j >= n || threadIdx.y != 0) continue;
            T center = 0, variance = 0;
            if (N > 0) {
                const T shifted = sum / T(N);
                center = X[e * N * n + j] + shifted;
                variance = squares / T(N) - shifted * shifted;
                if (variance < 0) variance = 0;  // by rounding; written so that a NaN stays one
            }
            mean[e * mean_stride + j] = center;
            r[e * r_stride + j] = 1 / sqrt(variance + epsilon);
            if (N > 1) {
                T& m = running_mean[e * running_mean_stride + j];
                T& v = running_variance[e * running_variance_stride + j];
                m = (1 - momentum) * m + momentum * center;
                v = (1 - momentum) * v + momentum * (variance * (T(N) / T(N - 1)));
            }
        }
    }
}

template <typename T, int W>
struct BatchNormalize {
    static constexpr int in_flight = IN_FLIGHT<W>;
    const T* const X;
    T* const Y;
    const T *const mean, *const r, *const gamma, *const beta;
    const Index n, mean_stride, r_stride, gamma_stride, beta_stride;
    T mean_tile[PACK<T>], r_tile[PACK<T>], gamma_tile[PACK<T>], beta_tile[PACK<T>], x[in_flight][PACK<T>];

    __device__ void begin(Index e, Index left) {
        load_row<W>(mean + e * mean_stride, left, n, mean_tile);
        load_row<W>(r + e * r_stride, left, n, r_tile);
        load_row<W>(gamma + e * gamma_stride, left, n, gamma_tile);
        load_row<W>(beta + e * beta_stride, left, n, beta_tile);
    }
    __device__ void read(int u, Index begin, Index end) { load<W>(X, begin, end, x[u]); }
    __device__ void write(int u, Index begin, Index end) {
#pragma unroll
        for (int k = 0; k < PACK<T>; ++k)
            x[u][k] = (x[u][k] - mean_tile[k]) * r_tile[k] * gamma_tile[k] + beta_tile[k];
        store<W>(Y, begin, end, x[u]);
    }
};

template <typename T, int W>
__global__ void __launch_bounds__(MAX_THREADS, RESIDENT)
    batch_normalize(const T* X,  // (E, N, n)
                    const T* mean, const T* r, const T* gamma, const T* beta,
                    T* Y,  // (E, N, n); may be X
                    Index E, Index N, Index n, Index joined, Index mean_stride, Index r_stride, Index gamma_stride,
                    Index beta_stride) {
    BatchNormalize<T, W> g = {X, Y, mean, r, gamma, beta, n, mean_stride, r_stride, gamma_stride, beta_stride,
                              {}, {}, {}, {}, {}};
    map_bands<W, T>(g, E, N, n, joined);
}

template <typename T, int W>
struct GradientSums {
    static constexpr int in_flight = IN_FLIGHT<W>;
    const T *const dL_dY, *const X, *const mean, *const r;
    const Index n, mean_stride, r_stride;
    T mean_tile[PACK<T>], r_tile[PACK<T>], d[in_flight][PACK<T>], x[in_flight][PACK<T>];

    __device__ void begin(Index e, Index left) {
        load_row<W>(mean + e * mean_stride, left, n, mean_tile);
        load_row<W>(r + e * r_stride, left, n, r_tile);
    }
    __device__ void read(int u, Index begin, Index end) {
        load<W>(dL_dY, begin, end, d[u]);
        load<W>(X, begin, end, x[u]);
    }
    __device__ void add(int u, T (&of_gamma)[PACK<T>], T (&of_beta)[PACK<T>]) {
#pragma unroll
        for (int k = 0; k < PACK<T>; ++k) {
            of_gamma[k] += d[u][k] * (x[u][k] - mean_tile[k]) * r_tile[k];
            of_beta[k] += d[u][k];
        }
    }
};

template <typename T, int W>
__global__ void __launch_bounds__(MAX_THREADS, RESIDENT)
    batch_gradient_sums(const T* dL_dY,  // (E, N, n)
                        const T* X,      // (E, N, n)
                        const T* mean, const T* r,
                        T* partial_sums,  // (E, C, 2, n)
                        Index E, Index N, Index n, Index C, Index mean_stride, Index r_stride) {
    GradientSums<T, W> g = {dL_dY, X, mean, r, n, mean_stride, r_stride, {}, {}, {}, {}};
    sum_pairs<W>(g, partial_sums, E, N, n, C);
}

template <typename T>
__global__ void batch_gradients(const T* partial_sums,  // (E, C, 2, n)
                                T* dL_dgamma, T* dL_dbeta, Index dL_dgamma_stride, Index dL_dbeta_stride, Index E,
                                Index n, Index C) {
    for (Index e = blockIdx.z; e < E; e += gridDim.z) {
        for (Index left = blockIdx.x * Index(blockDim.x); left < n; left += Index(gridDim.x) * blockDim.x) {
            const Index j = left + threadIdx.x;
            T of_gamma = 0, of_beta = 0;
            for (Index c = threadIdx.y; j < n && c < C; c += blockDim.y) {
                of_gamma += partial_sums[(e * C + c) * 2 * n + j];
                of_beta += partial_sums[((e * C + c) * 2 + 1) * n + j];
            }
            of_gamma = sum_over_block_rows(of_gamma);
            of_beta = sum_over_block_rows(of_beta);
            if (j < n && threadIdx.y == 0) {
                dL_dgamma[e * dL_dgamma_stride + j] = of_gamma;
                dL_dbeta[e * dL_dbeta_stride + j] = of_beta;
            }
        }
    }
}

template <typename T, int W>
struct InputGradient {
    static constexpr int in_flight = IN_FLIGHT<W>;
    const T *const dL_dY, *const X;
    T* const dL_dX;
    const T *const mean, *const r, *const gamma, *const dL_dgamma, *const dL_dbeta;
    const Index n, mean_stride, r_stride, gamma_stride, dL_dgamma_stride, dL_dbeta_stride;
    const T share;
    T mean_tile[PACK<T>], r_tile[PACK<T>], gamma_tile[PACK<T>], of_gamma[PACK<T>], of_beta[PACK<T>];
    T d[in_flight][PACK<T>], x[in_flight][PACK<T>];

    __device__ void begin(Index e, Index left) {
        load_row<W>(mean + e * mean_stride, left, n, mean_tile);
        load_row<W>(r + e * r_stride, left, n, r_tile);
        load_row<W>(gamma + e * gamma_stride, left, n, gamma_tile);
        load_row<W>(dL_dgamma + e * dL_dgamma_stride, left, n, of_gamma);
        load_row<W>(dL_dbeta + e * dL_dbeta_stride, left, n, of_beta);
    }
    __device__ void read(int u, Index begin, Index end) {
        load<W>(dL_dY, begin, end, d[u]);
        load<W>(X, begin, end, x[u]);
    }
    __device__ void write(int u, Index begin, Index end) {
#pragma unroll
        for (int k = 0; k < PACK<T>; ++k) {
            const T X_hat = (x[u][k] - mean_tile[k]) * r_tile[k];
            d[u][k] = gamma_tile[k] * r_tile[k] * (d[u][k] - share * (of_beta[k] + X_hat * of_gamma[k]));
        }
        store<W>(dL_dX, begin, end, d[u]);
    }
};

template <typename T, int W>
__global__ void __launch_bounds__(MAX_THREADS, RESIDENT)
    batch_input_gradient(const T* dL_dY,  // (E, N, n)
                         const T* X,      // (E, N, n)
                         const T* mean, const T* r, const T* gamma, const T* dL_dgamma, const T* dL_dbeta,
                         T* dL_dX,  // (E, N, n); may be dL_dY
                         Index E, Index N, Index n, Index joined, Index mean_stride, Index r_stride,
                         Index gamma_stride, Index dL_dgamma_stride, Index dL_dbeta_stride, T share) {
    InputGradient<T, W> g = {dL_dY, X, dL_dX, mean, r, gamma, dL_dgamma, dL_dbeta, n, mean_stride, r_stride,
                             gamma_stride, dL_dgamma_stride, dL_dbeta_stride, share, {}, {}, {}, {}, {}, {}, {}};
    map_bands<W, T>(g, E, N, n, joined);
}
