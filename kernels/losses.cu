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
// With W > 1 all that is read by the pack begins at a multiple of 16 bytes. With missing != 0 a target that is NaN costs
// nothing, and its outputs have no gradient.
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
template <int W, typename T>
__device__ Pack<T, W> targets_of(const T* targets, Index one, const Counting<T>& counting, Index k, Index K) {
    Pack<T, W> t;
    if (targets) t = load<W>(targets + k);
    const T add = targets || (one >= 0 && one < K) ? counting.add : T(0);
#pragma unroll
    for (int v = 0; v < W; ++v) {
        if (!targets) t.at[v] = k + v == one;
        t.at[v] = counting.keep * t.at[v] + add;
        if (counting.class_weight) t.at[v] *= counting.class_weight[k + v];
    }
    return t;
}

// One row of K scores, by the threads with one threadIdx.y; K = 0 where they have none. The scores are shifted by their
// maximum, so that no exp overflows. Rows are read three times, but from memory once.
template <int W, typename T>
__device__ T softmax_row(const T* Y, const T* targets, Index one, const Counting<T>& counting, T w, T* dL_dY,
                         Index K) {
    const unsigned int begin = threadIdx.x * W, step = blockDim.x * W;
    T top = K > 0 ? Y[0] : T(0);
    for (Index k = begin; k < K; k += step) {
        const Pack<T, W> y = load<W>(Y + k);
#pragma unroll
        for (int v = 0; v < W; ++v) top = Largest::of(top, y.at[v]);
    }
    top = over_group<Largest>(top, blockDim.x);
    T total = 0, of_targets = 0, mass = 0;  // sum_k exp(Y[k] - top), sum_k t[k] (Y[k] - top), sum_k t[k]
    for (Index k = begin; k < K; k += step) {
        const Pack<T, W> y = load<W>(Y + k), t = targets_of<W>(targets, one, counting, k, K);
#pragma unroll
        for (int v = 0; v < W; ++v) {
            total += exp(y.at[v] - top);
            mass += t.at[v];
            if (t.at[v] != 0) of_targets += t.at[v] * (y.at[v] - top);
        }
    }
    total = over_group<Sum>(total, blockDim.x);
    of_targets = over_group<Sum>(of_targets, blockDim.x);
    mass = over_group<Sum>(mass, blockDim.x);
    const T inverse = mass / total;
    for (Index k = begin; k < K; k += step) {
        Pack<T, W> y = load<W>(Y + k);
        const Pack<T, W> t = targets_of<W>(targets, one, counting, k, K);
#pragma unroll
        for (int v = 0; v < W; ++v) y.at[v] = w * (exp(y.at[v] - top) * inverse - t.at[v]);
        store(dL_dY + k, y);
    }
    return w * (mass * log(total) - of_targets);
}

template <typename T, int W>
__global__ void softmax_cross_entropy(const T* Y,              // (E, N, K)
                                      const T* targets,        // (E, N, K), members targets_stride apart; or null
                                      const Index* classes,    // (E, N), members targets_stride apart; where null
                                      const T* sample_weight,  // (E, N), members weight_stride apart; null: none
                                      T* dL_dY,                // (E, N, K)
                                      T* sums,                 // (E, C)
                                      Index E, Index N, Index K, Index C,
                                      Index chunk,  // rows of each of the C
                                      Index targets_stride, Index weight_stride,
                                      const T* class_weight,  // (K,); null: none
                                      T keep, T add) {        // smoothing: a target t is keep * t + add
    const Counting<T> counting{class_weight, keep, add};
    for (Index e = blockIdx.y; e < E; e += gridDim.y) {
        const T* const weights = sample_weight ? sample_weight + e * weight_stride : nullptr;
        for (Index c = blockIdx.x; c < C; c += gridDim.x) {
            const Index end = min(N, (c + 1) * chunk);
            T loss = 0;
            // The first row of the block, not of the thread: all threads of a block take part in its sums.
            for (Index first = c * chunk; first < end; first += blockDim.y) {
                const bool there = first + threadIdx.y < end;
                const Index n = there ? first + threadIdx.y : first, row = (e * N + n) * K;
                const T of_row = softmax_row<W>(
                    Y + row, targets ? targets + e * targets_stride + n * K : nullptr,
                    classes ? classes[e * targets_stride + n] : 0, counting, weight_of(weights, n, N), dL_dY + row,
                    there ? K : 0);
                if (there && threadIdx.x == 0) loss += of_row;
            }
            loss = over_group<Sum>(loss, blockDim.x * blockDim.y);
            if (threadIdx.x == 0 && threadIdx.y == 0) sums[e * C + c] = loss;
        }
    }
}

// Where an output stands: output h * M + m of row n, of H * M. Threads walk from place to place, as the divisions that
// tell one cost more than all else that is done for an output.
struct Position {
    Index n, h, m;
    __device__ Position(Index n, Index h, Index m) : n(n), h(h), m(m) {}
    __device__ static Position of(Index i, Index H, Index M) {
        const Index heads = i / max(M, Index(1)), n = heads / H;  // a row may have no outputs at all
        return {n, heads - n * H, i - heads * M};
    }
    __device__ void advance(const Position& by, Index H, Index M) {
        n += by.n;
        h += by.h;
        m += by.m;
        if (m >= M) {
            m -= M;
            ++h;
        }
        if (h >= H) {
            h -= H;
            ++n;
        }
    }
};

template <typename Loss, int W, typename T = typename Loss::Scalar>
__global__ void elementwise_loss(const T* Y,              // (E, N, H, M)
                                 const T* targets,        // (E, N, M), members targets_stride apart
                                 const T* sample_weight,  // (E, N), members weight_stride apart; null: none
                                 T* dL_dY,                // (E, N, H, M)
                                 T* sums,                 // (E, C)
                                 Index E, Index N, Index H, Index M, Index C,
                                 Index chunk,  // outputs of each of the C, a multiple of W
                                 Index targets_stride, Index weight_stride, Index missing,
                                 const T* each,  // the functor's first parameter, strides for h and m
                                 Index each_h, Index each_m,
                                 T first, T second) {  // where `each` is null; and its second
    const Index size = N * H * M;
    const bool walks = sample_weight || H != 1 || each;  // else nothing follows from where an output stands
    const Position start(0, 0, 0), next(0, 0, 1), step = walks ? Position::of(blockDim.x * W, H, M) : start;
    for (Index e = blockIdx.y; e < E; e += gridDim.y) {
        for (Index c = blockIdx.x; c < C; c += gridDim.x) {
            const Index begin = c * chunk + threadIdx.x * W, end = min(size, (c + 1) * chunk);
            Position at = walks ? Position::of(begin, H, M) : start;
            T loss = 0;
            for (Index i = begin; i < end; i += blockDim.x * W, at.advance(step, H, M)) {
                const Pack<T, W> y = load<W>(Y + e * size + i, end - i);
                Pack<T, W> gradient = y, t;
                if (H == 1) t = load<W>(targets + e * targets_stride + i, end - i);
                Position own = at;
#pragma unroll
                for (int v = 0; v < W; ++v, own.advance(next, H, M)) {
                    if (i + v >= end) continue;
                    T w = T(1) / T(N);
                    if (sample_weight) w *= sample_weight[e * weight_stride + own.n];
                    if (H != 1) t.at[v] = targets[e * targets_stride + own.n * M + own.m];
                    const Loss f(each ? each[own.h * each_h + own.m * each_m] : first, second);
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

// Losses of two outputs for each target, in one: output m and output M + m of the 2 M of a row. Neighbouring threads
// have neighbouring targets, so that memory is read in one piece where a row has many, and in pairs where it has one.
template <typename Pair, typename T = typename Pair::Scalar>
__global__ void pair_loss(const T* Y,              // (E, N, 2 M)
                          const T* targets,        // (E, N, M), members targets_stride apart
                          const T* sample_weight,  // (E, N), members weight_stride apart; null: none
                          T* dL_dY,                // (E, N, 2 M)
                          T* sums,                 // (E, C)
                          Index E, Index N, Index M, Index C,
                          Index chunk,  // targets of each of the C
                          Index targets_stride, Index weight_stride, Index missing,
                          T first, T second) {  // what the functor takes
    const Index size = N * M;
    const Pair f(first, second);
    const Position step = Position::of(blockDim.x, 1, M);
    for (Index e = blockIdx.y; e < E; e += gridDim.y) {
        for (Index c = blockIdx.x; c < C; c += gridDim.x) {
            const Index begin = c * chunk + threadIdx.x, end = min(size, (c + 1) * chunk);
            Position target = Position::of(begin, 1, M);
            T loss = 0;
            for (Index i = begin; i < end; i += blockDim.x, target.advance(step, 1, M)) {
                const Index n = target.n, at = (e * N + n) * 2 * M + target.m;
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
