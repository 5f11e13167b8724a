// Bias plus activation, and its backward: the two elementwise halves of a dense layer, one pass over memory each.
//
//     forward     Y = f(Z + b)
//     backward    dL_dZ = dL_dY * f'(saved),   dL_db = sum of dL_dZ over the N rows
//
// E members of a stack, N examples (rows), n columns; all matrices are contiguous. threadIdx.x runs along a row, so
// that neighbouring threads read neighbouring numbers; threadIdx.y runs over rows. The launcher in
// gpubp/ops/activation.py makes blocks narrow where n is small. Every grid dimension is looped over, so that a grid of
// any size is correct.
//
// The sum has two stages, without atomics: rows are cut into C chunks, activation_backward sums within a chunk, and
// sum_partials adds the chunks up. C depends on the shape alone, so runs repeat bit for bit.
#include "activations.cuh"
#include "common.cuh"

template <typename Activation, typename T = typename Activation::Scalar>
__global__ void bias_activation(T* Z,        // (E, N, n); becomes Z + b where the derivative needs it
                                const T* b,  // (E, n), members b_stride apart; null: no bias, Z stays as it is
                                T* Y,        // (E, N, n); may be Z
                                Index E, Index N, Index n, Index b_stride, T parameter) {
    const Activation f(parameter);
    for (Index e = blockIdx.z; e < E; e += gridDim.z) {
        for (Index j = blockIdx.x * Index(blockDim.x) + threadIdx.x; j < n; j += Index(gridDim.x) * blockDim.x) {
            const T b_j = b ? b[e * b_stride + j] : 0;
            const Index row_step = Index(gridDim.y) * blockDim.y;
            for (Index row = blockIdx.y * Index(blockDim.y) + threadIdx.y; row < N; row += row_step) {
                const Index i = (e * N + row) * n + j;
                const T z = Z[i] + b_j;
                if (b && !Activation::from_output) Z[i] = z;
                Y[i] = f.value(z);
            }
        }
    }
}

template <typename Activation, typename T = typename Activation::Scalar>
__global__ void activation_backward(const T* dL_dY,   // (E, N, n)
                                    const T* saved,   // (E, N, n); Y, or Z + b where the derivative needs that
                                    T* dL_dZ,         // (E, N, n); may be dL_dY
                                    T* partial_sums,  // (E, C, n), members sums_stride apart; null: no sums
                                    Index E, Index N, Index n, Index C, Index sums_stride, T parameter) {
    const Activation f(parameter);
    const Index chunk_rows = (N + C - 1) / C;
    for (Index e = blockIdx.z; e < E; e += gridDim.z) {
        for (Index c = blockIdx.y; c < C; c += gridDim.y) {
            const Index end = min(N, (c + 1) * chunk_rows);
            // The first column of the block, not of the thread: all threads of a block take part in its sums.
            for (Index left = blockIdx.x * Index(blockDim.x); left < n; left += Index(gridDim.x) * blockDim.x) {
                const Index j = left + threadIdx.x;
                T sum = 0;
                for (Index row = c * chunk_rows + threadIdx.y; j < n && row < end; row += blockDim.y) {
                    const Index i = (e * N + row) * n + j;
                    const T dL_dZ_i = dL_dY[i] * f.derivative(saved[i]);
                    dL_dZ[i] = dL_dZ_i;
                    sum += dL_dZ_i;
                }
                if (!partial_sums) continue;
                sum = sum_over_block_rows(sum);
                if (j < n && threadIdx.y == 0) partial_sums[e * sums_stride + c * n + j] = sum;
            }
        }
    }
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
