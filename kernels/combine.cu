// Weighted sums of buffers: out = kept * out + factor * X, where out is not read if kept is 0.
//
// E rows of P numbers each, `out_pitch` and `X_pitch` numbers apart; blockIdx.y runs over rows. With W > 1 each row of
// both begins at a multiple of 16 bytes.
#include "sums.cuh"

template <typename T, int W>
__global__ void combine(T* out,      // (E, P)
                        const T* X,  // (E, P)
                        Index E, Index P, Index out_pitch, Index X_pitch, T kept, T factor) {
    const Index step = Index(gridDim.x) * blockDim.x * W;
    for (Index e = blockIdx.y; e < E; e += gridDim.y) {
#pragma unroll 1  // the compiler would divide to find out how often
        for (Index i = (blockIdx.x * Index(blockDim.x) + threadIdx.x) * W; i < P; i += step) {
            Pack<T, W> sum = load<W>(X + e * X_pitch + i, P - i);
#pragma unroll
            for (int v = 0; v < W; ++v) sum.at[v] *= factor;
            if (kept != 0) {
                const Pack<T, W> old = load<W>(out + e * out_pitch + i, P - i);
#pragma unroll
                for (int v = 0; v < W; ++v) sum.at[v] += kept * old.at[v];
            }
            store(out + e * out_pitch + i, sum, P - i);
        }
    }
}
