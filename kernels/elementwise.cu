// Sums and products of two arrays, element by element: out = A + B, out = A * B, where out may be A or B.
//
// With W > 1 all three begin at a multiple of 16 bytes.
#include "sums.cuh"

struct Product {
    template <typename T>
    static __device__ T of(T a, T b) {
        return a * b;
    }
};

template <typename Operation, int W, typename T>
__device__ void combine_elements(const T* A, const T* B, T* out, Index size) {
    constexpr int in_flight = 2;  // packs that a thread reads before it computes
    const Index threads = Index(gridDim.x) * blockDim.x, step = threads * W;
#pragma unroll 1  // the compiler would divide to find out how often
    for (Index i = (blockIdx.x * Index(blockDim.x) + threadIdx.x) * W; i < size; i += in_flight * step) {
        Pack<T, W> a[in_flight], b[in_flight];
#pragma unroll
        for (int u = 0; u < in_flight; ++u) {
            a[u] = load<W>(A + i + u * step, size - i - u * step);
            b[u] = load<W>(B + i + u * step, size - i - u * step);
        }
#pragma unroll
        for (int u = 0; u < in_flight; ++u) {
#pragma unroll
            for (int v = 0; v < W; ++v) a[u].at[v] = Operation::of(a[u].at[v], b[u].at[v]);
            store(out + i + u * step, a[u], size - i - u * step);
        }
    }
}

template <typename T, int W>
__global__ void __launch_bounds__(MAX_THREADS) add(const T* A, const T* B, T* out, Index size) {
    combine_elements<Sum, W>(A, B, out, size);
}

template <typename T, int W>
__global__ void __launch_bounds__(MAX_THREADS) multiply(const T* A, const T* B, T* out, Index size) {
    combine_elements<Product, W>(A, B, out, size);
}
