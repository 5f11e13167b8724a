// Weighted sums of buffers: out = kept * out + factor * X, where out is not read if kept is 0.
//
// E rows of P numbers each, `out_pitch` and `X_pitch` numbers apart; blockIdx.y runs over rows. With packed != 0 each row
// of both begins at a multiple of 16 bytes.
#include "sums.cuh"

template <int V, typename T>
__device__ void combine_packs(T* out, const T* X, Index size, T kept, T factor) {
    const Index step = Index(gridDim.x) * blockDim.x * V;
    for (Index i = (blockIdx.x * Index(blockDim.x) + threadIdx.x) * V; i < size; i += step) {
        Pack<T, V> sum = load<V>(X + i, size - i);
#pragma unroll
        for (int v = 0; v < V; ++v) sum.at[v] *= factor;
        if (kept != 0) {
            const Pack<T, V> old = load<V>(static_cast<const T*>(out) + i, size - i);
#pragma unroll
            for (int v = 0; v < V; ++v) sum.at[v] += kept * old.at[v];
        }
        store(out + i, sum, size - i);
    }
}

template <typename T>
__global__ void combine(T* out,      // (E, P)
                        const T* X,  // (E, P)
                        Index E, Index P, Index out_pitch, Index X_pitch, Index packed, T kept, T factor) {
    for (Index e = blockIdx.y; e < E; e += gridDim.y) {
        if (packed) {
            combine_packs<PACK<T>>(out + e * out_pitch, X + e * X_pitch, P, kept, factor);
        } else {
            combine_packs<1>(out + e * out_pitch, X + e * X_pitch, P, kept, factor);
        }
    }
}
