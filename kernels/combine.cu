// Weighted sums of buffers: out = kept * out + factor * X, where out is not read if kept is 0.
//
// With W > 1 both begin at a multiple of 16 bytes.
#include "sums.cuh"

template <typename T, int W>
__global__ void combine(T* out,      // (size,)
                        const T* X,  // (size,)
                        Index size, T kept, T factor) {
    const Index step = Index(gridDim.x) * blockDim.x * W;
#pragma unroll 1  // the compiler would divide to find out how often
    for (Index i = (blockIdx.x * Index(blockDim.x) + threadIdx.x) * W; i < size; i += step) {
        Pack<T, W> sum = load<W>(X + i, size - i);
#pragma unroll
        for (int v = 0; v < W; ++v) sum.at[v] *= factor;
        if (kept != 0) {
            const Pack<T, W> old = load<W>(static_cast<const T*>(out) + i, size - i);
#pragma unroll
            for (int v = 0; v < W; ++v) sum.at[v] += kept * old.at[v];
        }
        store(out + i, sum, size - i);
    }
}
