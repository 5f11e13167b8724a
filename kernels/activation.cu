// Bias plus activation, and its backward: the two elementwise halves of a dense layer, one pass over memory each.
//
//     forward     Y = f(Z + b)
//     backward    dL_dZ = dL_dY * f'(saved),   dL_db = sum of dL_dZ over the N rows
//
// E members of a stack, N examples (rows), n columns; all matrices are contiguous. tiles.cuh says how blocks and threads
// share them, and what `joined` and W are; the launcher is gpubp/cuda_kernels/activation.py. Every grid dimension is
// looped over, so that a grid of any size is correct. Where nothing depends on the column, the launcher passes a matrix
// as a single column of E * N * n rows.
//
// The sum has two stages, without atomics: rows are cut into C chunks, activation_backward sums within a chunk, and
// sum_partials adds the chunks up. C depends on the shape alone, so runs repeat bit for bit.
#include "activations.cuh"
#include "common.cuh"
#include "tiles.cuh"

template <typename Activation, int W, typename T = typename Activation::Scalar>
struct BiasActivation {
    static constexpr int in_flight = IN_FLIGHT<W>;
    const Activation f;
    T *const Z, *const Y;
    const T* const b;
    const Index n, b_stride;
    T b_tile[PACK<T>], z[in_flight][PACK<T>];

    __device__ void begin(Index e, Index left) { load_row<W>(b ? b + e * b_stride : b, left, n, b_tile); }
    __device__ void read(int u, Index begin, Index end) { load<W>(Z, begin, end, z[u]); }
    __device__ void write(int u, Index begin, Index end) {
        T y[PACK<T>];
#pragma unroll
        for (int k = 0; k < PACK<T>; ++k) {
            z[u][k] += b_tile[k];
            y[k] = f.value(z[u][k]);
        }
        if (b && !Activation::from_output) store<W>(Z, begin, end, z[u]);
        store<W>(Y, begin, end, y);
    }
};

template <typename Activation, int W, typename T = typename Activation::Scalar>
__global__ void __launch_bounds__(MAX_THREADS, RESIDENT)
    bias_activation(T* Z,        // (E, N, n); becomes Z + b where the derivative needs it
                    const T* b,  // (E, n), members b_stride apart; null: no bias, Z stays as it is
                    T* Y,        // (E, N, n); may be Z
                    Index E, Index N, Index n, Index joined, Index b_stride, T parameter) {
    BiasActivation<Activation, W> g = {Activation(parameter), Z, Y, b, n, b_stride, {}, {}};
    map_bands<W, T>(g, E, N, n, joined);
}

template <typename Activation, int W, typename T = typename Activation::Scalar>
struct ActivationBackward {
    static constexpr int in_flight = IN_FLIGHT<W>;
    const Activation f;
    const T *const dL_dY, *const saved;
    T* const dL_dZ;
    T d[in_flight][PACK<T>], s[in_flight][PACK<T>];

    __device__ void member(Index) {}
    __device__ void read(int u, Index begin, Index end) {
        load<W>(dL_dY, begin, end, d[u]);
        load<W>(saved, begin, end, s[u]);
    }
    __device__ void add(int u, Index begin, Index end, T (&sum)[PACK<T>]) {
#pragma unroll
        for (int k = 0; k < PACK<T>; ++k) {
            d[u][k] *= f.derivative(s[u][k]);
            if (begin + place<W, T>(k) < end) sum[k] += d[u][k];
        }
        store<W>(dL_dZ, begin, end, d[u]);
    }
};

template <typename Activation, int W, typename T = typename Activation::Scalar>
__global__ void __launch_bounds__(MAX_THREADS, RESIDENT)
    activation_backward(const T* dL_dY,   // (E, N, n)
                        const T* saved,   // (E, N, n); Y, or Z + b where the derivative needs that
                        T* dL_dZ,         // (E, N, n); may be dL_dY
                        T* partial_sums,  // (E, C, n), members sums_stride apart; null: no sums
                        Index E, Index N, Index n, Index joined, Index C, Index sums_stride, T parameter) {
    ActivationBackward<Activation, W> g = {Activation(parameter), dL_dY, saved, dL_dZ, {}, {}};
    sum_bands<W>(g, partial_sums, E, N, n, joined, C, sums_stride);
}

template <typename T>
__global__ void sum_partials(const T* partial_sums,  // (E, C, n)
                             T* dL_db,               // (E, n), members dL_db_stride apart
                             Index E, Index C, Index n, Index dL_db_stride) {
    for (Index e = blockIdx.z; e < E; e += gridDim.z) {
        for (Index left = blockIdx.x * Index(blockDim.x); left < n; left += Index(gridDim.x) * blockDim.x) {
            const Index j = left + threadIdx.x;
            T sum = 0;
            for (Index c = threadIdx.y; j < n && c < C; c += blockDim.y) sum += partial_sums[(e * C + c) * n + j];
            sum = sum_over_block_rows(sum);
            if (j < n && threadIdx.y == 0) dL_db[e * dL_db_stride + j] = sum;
        }
    }
}
