// What is the same for every row: a mean and a scale taken out of each, and the sum of all.
//
//     standardize    Y = (X - mean) / scale
//     column_sum     sum of X over the N rows, summed within C chunks of rows; see activation.cu, also for the rest
//     product_sum    sum of A * B over the N rows, likewise
#include "common.cuh"
#include "tiles.cuh"

template <typename T, int W>
struct Standardize {
    static constexpr int in_flight = IN_FLIGHT<W>;
    const T* const X;
    T* const Y;
    const T *const mean, *const scale;
    const Index n, stride;
    T mean_tile[PACK<T>], scale_tile[PACK<T>], x[in_flight][PACK<T>];

    __device__ void begin(Index e, Index left) {
        load_row<W>(mean + e * stride, left, n, mean_tile);
        load_row<W>(scale + e * stride, left, n, scale_tile);
    }
    __device__ void read(int u, Index begin, Index end) { load<W>(X, begin, end, x[u]); }
    __device__ void write(int u, Index begin, Index end) {
#pragma unroll
        for (int k = 0; k < PACK<T>; ++k) x[u][k] = (x[u][k] - mean_tile[k]) / scale_tile[k];
        store<W>(Y, begin, end, x[u]);
    }
};

template <typename T, int W>
__global__ void __launch_bounds__(MAX_THREADS, RESIDENT)
    standardize(const T* X,      // (E, N, n)
                const T* mean,   // (n,) for stride 0, else (E, n)
                const T* scale,  // as mean
                T* Y,            // (E, N, n); may be X
                Index E, Index N, Index n, Index joined, Index stride) {
    Standardize<T, W> g = {X, Y, mean, scale, n, stride, {}, {}, {}};
    map_bands<W, T>(g, E, N, n, joined);
}

template <typename T, int W>
struct ColumnSum {
    static constexpr int in_flight = IN_FLIGHT<W>;
    const T* const X;
    T x[in_flight][PACK<T>];

    __device__ void member(Index) {}
    __device__ void read(int u, Index begin, Index end) { load<W>(X, begin, end, x[u]); }
    __device__ void add(int u, Index begin, Index end, T (&sum)[PACK<T>]) {
#pragma unroll
        for (int k = 0; k < PACK<T>; ++k) sum[k] += x[u][k];  // 0 beyond the end
    }
};

template <typename T, int W>
__global__ void __launch_bounds__(MAX_THREADS, RESIDENT)
    column_sum(const T* X,       // (E, N, n)
               T* partial_sums,  // (E, C, n), members sums_stride apart
               Index E, Index N, Index n, Index joined, Index C, Index sums_stride) {
    ColumnSum<T, W> g = {X, {}};
    sum_bands<W>(g, partial_sums, E, N, n, joined, C, sums_stride);
}

template <typename T, int W>
struct ProductSum {
    static constexpr int in_flight = IN_FLIGHT<W>;
    const T *const A, *const B;
    const Index B_back;
    Index back;
    T a[in_flight][PACK<T>], b[in_flight][PACK<T>];

    __device__ void member(Index e) { back = e * B_back; }
    __device__ void read(int u, Index begin, Index end) {
        load<W>(A, begin, end, a[u]);
        load<W>(B, begin - back, end - back, b[u]);
    }
    __device__ void add(int u, Index begin, Index end, T (&sum)[PACK<T>]) {
#pragma unroll
        for (int k = 0; k < PACK<T>; ++k) sum[k] += a[u][k] * b[u][k];  // 0 beyond the end
    }
};

template <typename T, int W>
__global__ void __launch_bounds__(MAX_THREADS, RESIDENT)
    product_sum(const T* A,       // (E, N, n)
                const T* B,       // (E, N, n), or (N, n) for B_back = N * n: how far each member goes back in it
                T* partial_sums,  // (E, C, n), members sums_stride apart
                Index E, Index N, Index n, Index joined, Index C, Index sums_stride, Index B_back) {
    ProductSum<T, W> g = {A, B, B_back, 0, {}, {}};
    sum_bands<W>(g, partial_sums, E, N, n, joined, C, sums_stride);
}
