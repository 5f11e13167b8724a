// Dropout: mask = 0 where u < rate, else scale; Y = X * mask, with the uniform numbers u of random.cu.
//
// A thread makes the numbers of 16 bytes of X from one block of Philox. The number of the draw is read from memory, so
// that a captured graph makes a new mask each time it is launched. With W > 1 all three begin at multiples of 16 bytes.
#include "common.cuh"
#include "philox.cuh"
#include "sums.cuh"

template <typename T, int W>
__global__ void __launch_bounds__(MAX_THREADS)
    dropout(const T* X,         // (size,)
            T* mask,            // (size,)
            T* Y,               // (size,); may be X
            const Index* draw,  // (1,)
            Index size, unsigned long long seed, Index offset, T rate, T scale) {
    const unsigned long long counter = (unsigned long long)*draw + (unsigned long long)offset;
    const Index step = Index(gridDim.x) * blockDim.x * PACK<T>;
    for (Index i = (blockIdx.x * Index(blockDim.x) + threadIdx.x) * PACK<T>; i < size; i += step) {
        T u[PACK<T>];
        uniforms(random_words(seed, counter, (unsigned long long)(i / PACK<T>)), u);
#pragma unroll
        for (int k = 0; k < PACK<T>; k += W) {
            Pack<T, W> x = load<W>(X + i + k, size - i - k), m;
#pragma unroll
            for (int v = 0; v < W; ++v) {
                m.at[v] = u[k + v] < rate ? T(0) : scale;
                x.at[v] *= m.at[v];
            }
            store(mask + i + k, m, size - i - k);
            store(Y + i + k, x, size - i - k);
        }
    }
}
