// Rows of a table by index, their backward, and columns that are copied.
//
//     lookup             Y[n, start + j] = W[index, j] with the index that X holds in a column, 0 where it holds none
//     lookup_backward    dL_dW[c, j] = sum of dL_dY[n, start + j] over the examples n of index c, within chunks of rows;
//                        sum_partials of activation.cu adds the chunks up
//     pass_columns       Y[n, start + j] = X[n, column + j]
//
// E members of a stack, N examples, C categories; where X_stride is 0 all members read one X. The order of the additions
// follows from the sizes alone: there are no atomics.
#include "common.cuh"

// The category that a number stands for; C where it stands for none.
template <typename T>
__device__ Index category_of(T x, Index C) {
    if (!(x >= T(0) && x < T(C))) return C;
    const Index whole = Index(x);
    return T(whole) == x ? whole : C;
}

template <typename T>
__global__ void __launch_bounds__(MAX_THREADS)
    lookup(const T* X,  // (E, N, n_in), or (N, n_in)
           const T* W,  // (E, C, width), members W_stride apart
           T* Y,        // (E, N, n_out)
           Index E, Index N, Index n_in, Index n_out, Index column, Index start, Index X_stride, Index C, Index width,
           Index W_stride) {
    for (Index e = blockIdx.z; e < E; e += gridDim.z) {
        for (Index n = blockIdx.x * Index(blockDim.y) + threadIdx.y; n < N; n += Index(gridDim.x) * blockDim.y) {
            const Index c = category_of(X[e * X_stride + n * n_in + column], C);
            for (Index j = threadIdx.x; j < width; j += blockDim.x)
                Y[(e * N + n) * n_out + start + j] = c < C ? W[e * W_stride + c * width + j] : T(0);
        }
    }
}

// A thread has one number of dL_dW: blockDim.x columns, and blockDim.y categories from blockIdx.x on. The block looks at
// MAX_THREADS indices at a time, lists those of its categories in their order, and walks through the list.
template <typename T>
__global__ void __launch_bounds__(MAX_THREADS)
    lookup_backward(const T* dL_dY,   // (E, N, n_out)
                    const T* X,       // (E, N, n_in), or (N, n_in)
                    T* partial_sums,  // (E, chunks, C, width), members sums_stride apart
                    Index E, Index N, Index n_in, Index n_out, Index column, Index start, Index X_stride, Index C,
                    Index width, Index chunks, Index sums_stride) {
    constexpr int WARP = 32;
    __shared__ Index examples[MAX_THREADS];
    __shared__ int categories[MAX_THREADS], found[MAX_THREADS / WARP];
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, warp = thread / WARP, lane = thread % WARP;
    const Index first = blockIdx.x * Index(blockDim.y), chunk_rows = (N + chunks - 1) / chunks;
    for (Index e = blockIdx.z; e < E; e += gridDim.z) {
        for (Index chunk = blockIdx.y; chunk < chunks; chunk += gridDim.y) {
            const Index end = min(N, (chunk + 1) * chunk_rows);
            for (Index left = 0; left < width; left += blockDim.x) {
                const Index j = left + threadIdx.x;
                T sum = 0;
                for (Index begin = chunk * chunk_rows; begin < end; begin += MAX_THREADS) {
                    const Index n = begin + thread;
                    const Index c = n < end ? category_of(X[e * X_stride + n * n_in + column], C) : C;
                    const bool is_ours = c < C && c >= first && c < first + blockDim.y;
                    const unsigned int ours = __ballot_sync(0xffffffffu, is_ours);
                    if (lane == 0) found[warp] = __popc(ours);
                    __syncthreads();  // and the list before has been walked through
                    int place = __popc(ours & ((1u << lane) - 1)), count = 0;
                    for (int w = 0; w < MAX_THREADS / WARP; ++w) {
                        if (w < warp) place += found[w];
                        count += found[w];
                    }
                    if (is_ours) {
                        examples[place] = n;
                        categories[place] = int(c - first);
                    }
                    __syncthreads();  // the list is there
                    for (int k = 0; j < width && k < count; ++k)
                        if (categories[k] == int(threadIdx.y))
                            sum += dL_dY[(e * N + examples[k]) * n_out + start + j];
                }
                if (j < width && first + threadIdx.y < C)
                    partial_sums[e * sums_stride + (chunk * C + first + threadIdx.y) * width + j] = sum;
            }
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(MAX_THREADS)
    pass_columns(const T* X,  // (E, N, n_in), or (N, n_in)
                 T* Y,        // (E, N, n_out)
                 Index E, Index N, Index n_in, Index n_out, Index column, Index start, Index X_stride, Index width) {
    for (Index e = blockIdx.z; e < E; e += gridDim.z)
        for (Index n = blockIdx.x * Index(blockDim.y) + threadIdx.y; n < N; n += Index(gridDim.x) * blockDim.y)
            for (Index j = threadIdx.x; j < width; j += blockDim.x)
                Y[(e * N + n) * n_out + start + j] = X[e * X_stride + n * n_in + column + j];
}
