// Updates of the flat parameter buffer in one pass: each number is read once and written once.
//
//     SGD      V = momentum V + g,   theta -= rate V;   rate (momentum V + g) with Nesterov's; rate g without momentum
//     Adam     M = beta1 M + (1 - beta1) g,  V = beta2 V + (1 - beta2) g^2,  theta -= rate M_hat / (sqrt(V_hat) + epsilon)
//     RMSprop  V = kept V + (1 - kept) g^2,  M = momentum M + g / (sqrt(V) + epsilon),  theta -= rate M
//     Lion     theta -= rate sign(beta1 M + (1 - beta1) g),   M = beta2 M + (1 - beta2) g
//
// with g = factor dL_dtheta, and theta -= rate weight_decay theta before in the first `decayed` columns. E members of a
// stack, a row of P parameters each; rows are contiguous, `pitch` numbers apart, and begin anywhere. threadIdx.x runs
// along a row, threadIdx.y over members. Every grid dimension is looped over, so that a grid of any size is correct.
//
// What changes from step to step is read from device memory, so that a CUDA graph holds none of it fast: the rates, and
// what Adam makes of the number of the step. The host computes them in double when a launch begins, a row for each step
// of a graph. So are the factors, which keep a member's gradient from being longer than `clip`:
//
//     factor = min(1, clip / |dL_dtheta|),   1 where the length is no finite number
#include "sums.cuh"

__device__ inline Index elements_to_boundary(const void* address, int itemsize) {
    return static_cast<Index>(-reinterpret_cast<unsigned long long>(address) & 15) / itemsize;
}

// Apply step(j, theta, g, M, V) to all j of a row; those of M and V are left alone that STATES does not count.
template <int STATES, typename T, typename Step>
__device__ void update_row(const Step& step, T* theta, const T* dL_dtheta, T* M, T* V, Index P) {
    constexpr int SIZE = PACK<T>;
    using Pack = Pack<T, SIZE>;
    const Index first = blockIdx.x * Index(blockDim.x) + threadIdx.x, stride = Index(gridDim.x) * blockDim.x;
    // Packs begin at the first 16-byte boundary, if all arrays have theirs at the same place.
    const Index head = elements_to_boundary(theta, sizeof(T));
    const bool together = head <= P && head == elements_to_boundary(dL_dtheta, sizeof(T)) &&
                          (STATES < 2 || head == elements_to_boundary(M, sizeof(T))) &&
                          (STATES < 1 || head == elements_to_boundary(V, sizeof(T)));
    const Index packs = together ? (P - head) / SIZE : 0;
    for (Index i = first; i < packs; i += stride) {
        const Index begin = head + i * SIZE;
        Pack t = *reinterpret_cast<const Pack*>(theta + begin), m, v;
        const Pack g = *reinterpret_cast<const Pack*>(dL_dtheta + begin);
        if (STATES > 1) m = *reinterpret_cast<const Pack*>(M + begin);
        if (STATES > 0) v = *reinterpret_cast<const Pack*>(V + begin);
#pragma unroll
        for (int k = 0; k < SIZE; ++k) step(begin + k, t.at[k], g.at[k], m.at[k], v.at[k]);
        *reinterpret_cast<Pack*>(theta + begin) = t;
        if (STATES > 1) *reinterpret_cast<Pack*>(M + begin) = m;
        if (STATES > 0) *reinterpret_cast<Pack*>(V + begin) = v;
    }
    const Index single = P - packs * SIZE;  // before the first pack and behind the last
    for (Index i = first; i < single; i += stride) {
        const Index j = i < head ? i : i + packs * SIZE;
        T t = theta[j], m = STATES > 1 ? M[j] : T(0), v = STATES > 0 ? V[j] : T(0);
        step(j, t, dL_dtheta[j], m, v);
        theta[j] = t;
        if (STATES > 1) M[j] = m;
        if (STATES > 0) V[j] = v;
    }
}

// What a member's update has of its own.
template <typename T>
struct Member {
    T rate, factor, shrink;
    Index decayed;
    __device__ Member(Index e, T rate, const T* factors, T weight_decay, Index decayed)
        : rate(rate), factor(factors ? factors[e] : T(1)), shrink(rate * weight_decay), decayed(decayed) {}
    __device__ void decay(Index j, T& theta) const {
        if (j < decayed) theta -= shrink * theta;
    }
};

template <typename T>
__global__ void sgd(T* theta, const T* dL_dtheta,  // (E, P)
                    T* V,                          // (E, P); null: no momentum
                    const T* rates,                // (E,)
                    const T* factors,              // (E,) of the gradient; null: 1
                    Index E, Index P, Index pitch, Index decayed, T weight_decay, T momentum, Index nesterov) {
    for (Index e = blockIdx.y * Index(blockDim.y) + threadIdx.y; e < E; e += Index(gridDim.y) * blockDim.y) {
        const Member<T> member(e, rates[e], factors, weight_decay, decayed);
        const auto with_momentum = [&](Index j, T& t, T g, T&, T& v) {
            member.decay(j, t);
            g *= member.factor;
            v = momentum * v + g;
            t -= member.rate * (nesterov ? momentum * v + g : v);
        };
        const auto plain = [&](Index j, T& t, T g, T&, T&) {
            member.decay(j, t);
            t -= member.rate * (member.factor * g);
        };
        T *const own_theta = theta + e * pitch, *const none = nullptr;
        if (V) {
            update_row<1>(with_momentum, own_theta, dL_dtheta + e * pitch, none, V + e * pitch, P);
        } else {
            update_row<0>(plain, own_theta, dL_dtheta + e * pitch, none, none, P);
        }
    }
}

template <typename T>
__global__ void adam(T* theta, const T* dL_dtheta, T* M, T* V,  // (E, P)
                     const T* rates,                            // (E,)
                     const T* factors,                          // (E,) of the gradient; null: 1
                     Index E, Index P, Index pitch, Index decayed, T weight_decay,
                     const T* corrections,  // (2,): what the rate, and what epsilon is multiplied by in this step
                     T kept1, T added1, T kept2, T added2, T epsilon) {
    const T correction = corrections[0], small = epsilon * corrections[1];
    for (Index e = blockIdx.y * Index(blockDim.y) + threadIdx.y; e < E; e += Index(gridDim.y) * blockDim.y) {
        const Member<T> member(e, rates[e], factors, weight_decay, decayed);
        const T scaled_rate = member.rate * correction;
        const auto step = [&](Index j, T& t, T g, T& m, T& v) {
            member.decay(j, t);
            g *= member.factor;
            m = kept1 * m + added1 * g;
            v = kept2 * v + added2 * (g * g);
            t -= scaled_rate * m / (sqrt(v) + small);
        };
        update_row<2>(step, theta + e * pitch, dL_dtheta + e * pitch, M + e * pitch, V + e * pitch, P);
    }
}

template <typename T>
__global__ void rmsprop(T* theta, const T* dL_dtheta,  // (E, P)
                        T* M,                          // (E, P); null: no momentum
                        T* V,                          // (E, P)
                        const T* rates,                // (E,)
                        const T* factors,              // (E,) of the gradient; null: 1
                        Index E, Index P, Index pitch, Index decayed, T weight_decay, T kept, T added, T momentum,
                        T epsilon) {
    for (Index e = blockIdx.y * Index(blockDim.y) + threadIdx.y; e < E; e += Index(gridDim.y) * blockDim.y) {
        const Member<T> member(e, rates[e], factors, weight_decay, decayed);
        const auto scaled = [&](Index j, T& t, T g, T& v) {
            member.decay(j, t);
            g *= member.factor;
            v = kept * v + added * (g * g);
            return g / (sqrt(v) + epsilon);
        };
        const auto with_momentum = [&](Index j, T& t, T g, T& m, T& v) {
            m = momentum * m + scaled(j, t, g, v);
            t -= member.rate * m;
        };
        const auto plain = [&](Index j, T& t, T g, T&, T& v) { t -= member.rate * scaled(j, t, g, v); };
        T *const own_theta = theta + e * pitch, *const own_V = V + e * pitch, *const none = nullptr;
        if (M) {
            update_row<2>(with_momentum, own_theta, dL_dtheta + e * pitch, M + e * pitch, own_V, P);
        } else {
            update_row<1>(plain, own_theta, dL_dtheta + e * pitch, none, own_V, P);
        }
    }
}

template <typename T>
__global__ void lion(T* theta, const T* dL_dtheta, T* M,  // (E, P)
                     const T* rates,                      // (E,)
                     const T* factors,                    // (E,) of the gradient; null: 1
                     Index E, Index P, Index pitch, Index decayed, T weight_decay, T added1, T kept2, T added2) {
    for (Index e = blockIdx.y * Index(blockDim.y) + threadIdx.y; e < E; e += Index(gridDim.y) * blockDim.y) {
        const Member<T> member(e, rates[e], factors, weight_decay, decayed);
        const auto step = [&](Index j, T& t, T g, T&, T& m) {
            member.decay(j, t);
            g *= member.factor;
            const T along = m + added1 * (g - m);
            t -= along > 0 ? member.rate : along < 0 ? -member.rate : along;  // 0 stays, and NaN
            m = kept2 * m + added2 * g;
        };
        T* const none = nullptr;
        update_row<1>(step, theta + e * pitch, dL_dtheta + e * pitch, none, M + e * pitch, P);
    }
}

// The sum of the squares of each row, within C chunks. With W > 1 each row begins at a multiple of 16 bytes.
template <typename T, int W>
__global__ void squares(const T* dL_dtheta,  // (E, P)
                        double* sums,        // (E, C)
                        Index E, Index P, Index pitch, Index C,
                        Index chunk) {  // numbers of each of the C, a multiple of W
    for (Index e = blockIdx.y; e < E; e += gridDim.y) {
        for (Index c = blockIdx.x; c < C; c += gridDim.x) {
            const Index end = min(P, (c + 1) * chunk);
            T squares = 0;
            for (Index i = c * chunk + threadIdx.x * W; i < end; i += blockDim.x * W) {
                const Pack<T, W> g = load<W>(dL_dtheta + e * pitch + i, end - i);
#pragma unroll
                for (int v = 0; v < W; ++v) squares += g.at[v] * g.at[v];
            }
            const double sum = over_group<Sum>(static_cast<double>(squares), blockDim.x);
            if (threadIdx.x == 0) sums[e * C + c] = sum;
        }
    }
}

template <typename T>
__global__ void clip_factors(const double* sums,  // (E, C)
                             T* factors,          // (E,)
                             Index E, Index C, double clip) {
    for (Index e = blockIdx.x; e < E; e += gridDim.x) {
        double sum = 0;
        for (Index c = threadIdx.x; c < C; c += blockDim.x) sum += sums[e * C + c];
        const double norm = sqrt(over_group<Sum>(sum, blockDim.x));
        if (threadIdx.x == 0) factors[e] = norm > clip && isfinite(norm) ? clip / norm : 1;
    }
}
