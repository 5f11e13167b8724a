// The L2 penalty and its gradient, in one pass over memory:
//
//     0.5 * alpha * sum(W^2),   dL_dW += alpha * W
//
// E members of a stack, P weights each, the leading columns of longer rows. The sum has two stages, as those of
// losses.cu, and its second one is that of the losses.
//
// With W > 1 each row of W and of dL_dW begins at a multiple of 16 bytes.
#include "sums.cuh"

template <typename T, int W>
__global__ void add_l2(const T* weights,  // (E, P), members weights_stride apart
                       T* dL_dW,          // (E, P), members dL_dW_stride apart; null: the value alone
                       T* sums,           // (E, C)
                       Index E, Index P, Index C,
                       Index chunk,  // weights of each of the C, a multiple of W
                       Index weights_stride, Index dL_dW_stride,
                       Index onto,  // whether the value is added to what is in sums
                       T alpha) {
    for (Index e = blockIdx.y; e < E; e += gridDim.y) {
        for (Index c = blockIdx.x; c < C; c += gridDim.x) {
            const Index end = min(P, (c + 1) * chunk);
            T squares = 0;
            for (Index i = c * chunk + threadIdx.x * W; i < end; i += blockDim.x * W) {
                const Pack<T, W> w = load<W>(weights + e * weights_stride + i, end - i);
#pragma unroll
                for (int v = 0; v < W; ++v) squares += w.at[v] * w.at[v];
                if (!dL_dW) continue;
                Pack<T, W> gradient = load<W>(dL_dW + e * dL_dW_stride + i, end - i);
#pragma unroll
                for (int v = 0; v < W; ++v) gradient.at[v] += alpha * w.at[v];
                store(dL_dW + e * dL_dW_stride + i, gradient, end - i);
            }
            squares = over_group<Sum>(squares, blockDim.x);
            if (threadIdx.x == 0) sums[e * C + c] = (onto ? sums[e * C + c] : T(0)) + T(0.5) * alpha * squares;
        }
    }
}
