// Uniform random numbers: element i is a function of (seed, draw, i), whatever the launch.
//
// A thread makes 16 bytes of numbers, from one block of Philox. The number of the draw is read from memory, so that a
// captured graph draws new numbers each time it is launched.
#include "common.cuh"
#include "philox.cuh"
#include "tiles.cuh"

template <typename T, int W>
__global__ void __launch_bounds__(MAX_THREADS)
    uniform(T* out,             // (size,)
            const Index* draw,  // (1,)
            Index size, unsigned long long seed, Index offset) {
    const unsigned long long counter = (unsigned long long)*draw + (unsigned long long)offset;
    const Index blocks = (size + PACK<T> - 1) / PACK<T>, step = Index(gridDim.x) * blockDim.x;
    for (Index block = blockIdx.x * Index(blockDim.x) + threadIdx.x; block < blocks; block += step) {
        T u[PACK<T>];
        uniforms(random_words(seed, counter, (unsigned long long)block), u);
        if (W > 1 && (block + 1) * PACK<T> <= size) {
            store_pack(out + block * PACK<T>, u);
        } else {
#pragma unroll
            for (int k = 0; k < PACK<T>; ++k)
                if (block * PACK<T> + k < size) out[block * PACK<T> + k] = u[k];
        }
    }
}
