// Losses with their gradients, in one pass over memory:
//
//     L = sum_n w[n] * l(Y[n], T[n]),   dL_dY[n] = w[n] * dl/dY[n],   w[n] = sample_weight[n] / N, 1/N without weights
//
// E members of a stack, N examples (rows), K outputs; Y and dL_dY are (E, N, K), contiguous. Members share targets and
// weights where their stride is 0.
//
// The sum over examples has two stages, without atomics: a block sums one of C chunks of a member, add_up adds the
// chunks up. C depends on shapes alone, so runs repeat bit for bit. Sums are in T: they are sums of few numbers a thread
// and then a tree, which float32 bears, and many cards have a 64th of the units for double.
//
// With packed != 0 all that is read by the pack begins at a multiple of 16 bytes. With missing != 0 a target that is NaN
// costs nothing, and its outputs have no gradient.
#include "loss_functions.cuh"
#include "sums.cuh"

template <typename T>
__device__ T weight_of(const T* sample_weight, Index n, Index N) {
    return (sample_weight ? sample_weight[n] : T(1)) / T(N);
}

// How the targets of a row count: smoothed, t becoming keep * t + add, and times the weights of their classes.
template <typename T>
struct Counting {
    const T* class_weight;  // (K,); null: none
    T keep, add;
};

// The targets of a row as they count: probabilities, or where there are none 1 for the class and 0 for all others. A
// class outside 0 .. K-1 is none of them, and its row counts nothing.
template <int V, typename T>
__device__ Pack<T, V> targets_of(const T* targets, Index one, const Counting<T>& counting, Index k, Index K) {
    Pack<T, V> t;
    if (targets) t = load<V>(targets + k, K - k);
    const T add = targets || (one >= 0 && one < K) ? counting.add : T(0);
#pragma unroll
    for (int v = 0; v < V; ++v) {
        if (!targets) t.at[v] = k + v == one;
        t.at[v] = counting.keep * t.at[v] + add;
        if (counting.class_weight) t.at[v] *= counting.class_weight[k + v];
    }
    return t;
}

// One row of K scores, by a group of `lanes` threads; K = 0 for a group that has none. The scores are shifted by their
// maximum, so that no exp overflows. Rows are read three times, but from memory once.
template <int V, typename T>
__device__ T softmax_row(const T* Y, const T* targets, Index one, const Counting<T>& counting, T w, T* dL_dY, Index K,
                         int lane, int lanes) {
    T top = K > 0 ? Y[0] : T(0);
    for (Index k = lane * V; k < K; k += lanes * V) {
        const Pack<T, V> y = load<V>(Y + k, K - k);
#pragma unroll
        for (int v = 0; v < V; ++v) top = Largest::of(top, y.at[v]);
    }
    top = over_group<Largest>(top, lanes);
    T total = 0, of_targets = 0, mass = 0;  // sum_k exp(Y[k] - top), sum_k t[k] (Y[k] - top), sum_k t[k]
    for (Index k = lane * V; k < K; k += lanes * V) {
        const Pack<T, V> y = load<V>(Y + k, K - k), t = targets_of<V>(targets, one, counting, k, K);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            total += exp(y.at[v] - top);
            mass += t.at[v];
            if (t.at[v] != 0) of_targets += t.at[v] * (y.at[v] - top);
        }
    }
    total = over_group<Sum>(total, lanes);
    of_targets = over_group<Sum>(of_targets, lanes);
    mass = over_group<Sum>(mass, lanes);
    const T inverse = mass / total;
    for (Index k = lane * V; k < K; k += lanes * V) {
        Pack<T, V> y = load<V>(Y + k, K - k);
        const Pack<T, V> t = targets_of<V>(targets, one, counting, k, K);
#pragma unroll
        for (int v = 0; v < V; ++v) y.at[v] = w * (exp(y.at[v] - top) * inverse - t.at[v]);
        store(dL_dY + k, y, K - k);
    }
    return w * (mass * log(total) - of_targets);
}

template <int V, typename T>
__device__ void softmax_rows(const T* Y, const T* targets, const Index* classes, const T* sample_weight, T* dL_dY,
                             T* sums, Index E, Index N, Index K, Index C, Index targets_stride, Index weight_stride,
                             int lanes, const Counting<T>& counting) {
    const int lane = threadIdx.x % lanes, group = threadIdx.x / lanes, groups = blockDim.x / lanes;
    const Index chunk_rows = chunk_of(N, C, 1);
    for (Index e = blockIdx.y; e < E; e += gridDim.y) {
        const T* const weights = sample_weight ? sample_weight + e * weight_stride : nullptr;
        for (Index c = blockIdx.x; c < C; c += gridDim.x) {
            const Index end = min(N, (c + 1) * chunk_rows);
            T loss = 0;
            // The first row of the block, not of the thread: all threads of a block take part in its sums.
            for (Index first = c * chunk_rows; first < end; first += groups) {
                const bool there = first + group < end;
                const Index n = there ? first + group : first, row = (e * N + n) * K;
                const T of_row = softmax_row<V>(
                    Y + row, targets ? targets + e * targets_stride + n * K : nullptr,
                    classes ? classes[e * targets_stride + n] : 0, counting, weight_of(weights, n, N), dL_dY + row,
                    there ? K : 0, lane, lanes);
                if (there && lane == 0) loss += of_row;
            }
            loss = over_group<Sum>(loss, blockDim.x);
            if (threadIdx.x == 0) sums[e * C + c] = loss;
        }
    }
}

template <typename T>
__global__ void softmax_cross_entropy(const T* Y,              // (E, N, K)
                                      const T* targets,        // (E, N, K), members targets_stride apart; or null
                                      const Index* classes,    // (E, N), members targets_stride apart; where null
                                      const T* sample_weight,  // (E, N), members weight_stride apart; null: none
                                      T* dL_dY,                // (E, N, K)
                                      T* sums,                 // (E, C)
                                      Index E, Index N, Index K, Index C, Index targets_stride, Index weight_stride,
                                      Index lanes,  // threads for a row, as over_group takes them
                                      Index packed,
                                      const T* class_weight,  // (K,); null: none
                                      T keep, T add) {        // smoothing: a target t is keep * t + add
    const Counting<T> counting{class_weight, keep, add};
    if (packed) {
        softmax_rows<PACK<T>>(Y, targets, classes, sample_weight, dL_dY, sums, E, N, K, C, targets_stride,
                              weight_stride, int(lanes), counting);
    } else {
        softmax_rows<1>(Y, targets, classes, sample_weight, dL_dY, sums, E, N, K, C, targets_stride, weight_stride,
                        int(lanes), counting);
    }
}

template <int V, typename Loss, typename T>
__device__ void elementwise_rows(const T* Y, const T* targets, const T* sample_weight, T* dL_dY, T* sums, Index E,
                                 Index N, Index K, Index C, Index targets_stride, Index weight_stride, Index M,
                                 Index missing, const T* each, Index parts, T first, T second) {
    const Index size = N * K, chunk = chunk_of(size, C, V);
    for (Index e = blockIdx.y; e < E; e += gridDim.y) {
        for (Index c = blockIdx.x; c < C; c += gridDim.x) {
            const Index end = min(size, (c + 1) * chunk);
            T loss = 0;
            for (Index i = c * chunk + threadIdx.x * V; i < end; i += blockDim.x * V) {
                const Pack<T, V> y = load<V>(Y + e * size + i, end - i);
                Pack<T, V> gradient = y, t;
                if (M == K) t = load<V>(targets + e * targets_stride + i, end - i);
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    if (i + v >= end) continue;
                    T w = T(1) / T(N);
                    if (sample_weight) w *= sample_weight[e * weight_stride + (i + v) / K];  // a slow division
                    if (M != K) t.at[v] = targets[e * targets_stride + (i + v) / K * M + (i + v) % K % M];
                    const Loss f(each ? each[(i + v) % K / (K / parts)] : first, second);
                    const bool there = !(missing && t.at[v] != t.at[v]);
                    loss += there ? w * f.value(y.at[v], t.at[v]) : T(0);
                    gradient.at[v] = there ? w * f.derivative(y.at[v], t.at[v]) : T(0);
                }
                store(dL_dY + e * size + i, gradient, end - i);
            }
            loss = over_group<Sum>(loss, blockDim.x);
            if (threadIdx.x == 0) sums[e * C + c] = loss;
        }
    }
}

template <typename Loss, typename T = typename Loss::Scalar>
__global__ void elementwise_loss(const T* Y,              // (E, N, K)
                                 const T* targets,        // (E, N, M), members targets_stride apart
                                 const T* sample_weight,  // (E, N), members weight_stride apart; null: none
                                 T* dL_dY,                // (E, N, K)
                                 T* sums,                 // (E, C)
                                 Index E, Index N, Index K, Index C, Index targets_stride, Index weight_stride,
                                 Index packed,
                                 Index M,  // targets of a row: output k has the target k % M
                                 Index missing,
                                 const T* each,  // (parts,), the functor's first parameter for each part of a row
                                 Index parts,
                                 T first, T second) {  // where `each` is null; and its second
    if (packed) {
        elementwise_rows<PACK<T>, Loss>(Y, targets, sample_weight, dL_dY, sums, E, N, K, C, targets_stride,
                                        weight_stride, M, missing, each, parts, first, second);
    } else {
        elementwise_rows<1, Loss>(Y, targets, sample_weight, dL_dY, sums, E, N, K, C, targets_stride, weight_stride, M,
                                  missing, each, parts, first, second);
    }
}

// Losses of two outputs for each target, in one: output m and output M + m of the 2 M of a row. Neighbouring threads
// have neighbouring targets, so that memory is read in one piece where a row has many, and in pairs where it has one.
template <typename Pair, typename T = typename Pair::Scalar>
__global__ void pair_loss(const T* Y,              // (E, N, 2 M)
                          const T* targets,        // (E, N, M), members targets_stride apart
                          const T* sample_weight,  // (E, N), members weight_stride apart; null: none
                          T* dL_dY,                // (E, N, 2 M)
                          T* sums,                 // (E, C)
                          Index E, Index N, Index M, Index C, Index targets_stride, Index weight_stride, Index missing,
                          T first, T second) {  // what the functor takes
    const Index size = N * M, chunk = chunk_of(size, C, 1);
    const Pair f(first, second);
    for (Index e = blockIdx.y; e < E; e += gridDim.y) {
        for (Index c = blockIdx.x; c < C; c += gridDim.x) {
            const Index end = min(size, (c + 1) * chunk);
            T loss = 0;
            for (Index i = c * chunk + threadIdx.x; i < end; i += blockDim.x) {
                const Index n = i / M, at = (e * N + n) * 2 * M + i % M;
                const T t = targets[e * targets_stride + i];
                T dL_dfirst = 0, dL_dsecond = 0;
                if (!(missing && t != t)) {
                    T w = T(1) / T(N);
                    if (sample_weight) w *= sample_weight[e * weight_stride + n];
                    loss += w * f.value(Y[at], Y[at + M], t, dL_dfirst, dL_dsecond);
                    dL_dfirst *= w;
                    dL_dsecond *= w;
                }
                dL_dY[at] = dL_dfirst;
                dL_dY[at + M] = dL_dsecond;
            }
            loss = over_group<Sum>(loss, blockDim.x);
            if (threadIdx.x == 0) sums[e * C + c] = loss;
        }
    }
}

template <typename T>
__global__ void add_up(const T* sums,  // (E, C)
                       T* L,           // (E,)
                       Index E, Index C,
                       Index onto) {  // whether the sums are added to what is in L
    for (Index e = blockIdx.x; e < E; e += gridDim.x) {
        T sum = 0;
        for (Index c = threadIdx.x; c < C; c += blockDim.x) sum += sums[e * C + c];
        sum = over_group<Sum>(sum, blockDim.x);
        if (threadIdx.x == 0) L[e] = onto ? L[e] + sum : sum;
    }
}
