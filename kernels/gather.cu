// Examples picked by index, and converted on the way: out[e, b, j] = data[e, index[b], j].
//
// E members, N examples of n numbers each, B of them picked. threadIdx.x runs over packs of 16 bytes of a row of `out`,
// threadIdx.y over rows; tiles.cuh has the rest. With W > 1, n is divisible by W, and packs of both arrays begin at
// multiples of their size (or 16 bytes).
#include "common.cuh"
#include "tiles.cuh"

// A float16, by its bits: cuda_fp16.h is not there when a kernel is compiled.
struct Half {
    unsigned short bits;
};

template <typename T>
__device__ T number(T x) {
    return x;
}

__device__ inline float number(Half x) {
    const unsigned int sign = (x.bits & 0x8000u) << 16, exponent = x.bits & 0x7c00u, fraction = x.bits & 0x03ffu;
    // By a product, as subnormal float32 are taken for 0; a subnormal float16 is a normal float32.
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * (float(fraction) * 5.9604644775390625e-8f);  // 2^-24
    const unsigned int shifted = exponent == 0x7c00u ? 0x7f800000u : (exponent << 13) + (112u << 23);
    return __uint_as_float(sign | shifted | fraction << 13);
}

template <typename From, typename To, int W>
__global__ void __launch_bounds__(MAX_THREADS, RESIDENT)
    gather(const From* data,    // (E, N, n)
           const Index* index,  // (B,); what is outside 0 to N - 1 is taken for the nearest of them
           To* out,             // (E, B, n)
           Index E, Index N, Index B, Index n) {
    constexpr int in_flight = 2 * IN_FLIGHT<W>, at_once = PACK<To> < PACK<From> ? PACK<To> : PACK<From>;
    const Index width = Index(blockDim.x) * PACK<To>, step = Index(gridDim.y) * blockDim.y;
    for (Index e = blockIdx.z; e < E; e += gridDim.z) {
        for (Index left = blockIdx.x * width; left < n; left += gridDim.x * width) {
            const Index j = left + place<W, To>(0);
            for (Index first = blockIdx.y * Index(blockDim.y) + threadIdx.y; first < B; first += in_flight * step) {
                From x[in_flight][PACK<To>] = {};
#pragma unroll
                for (int u = 0; u < in_flight; ++u) {
                    const Index b = min(first + u * step, B - 1);  // beyond the last one: read it again, and don't write
                    const From* row = data + (e * N + max(min(index[b], N - 1), Index(0))) * n;
                    if (W > 1) {
#pragma unroll
                        for (int v = 0; j < n && v < PACK<To>; v += at_once) {
                            const auto read = *reinterpret_cast<const Pack<From, at_once>*>(row + j + v);
#pragma unroll
                            for (int k = 0; k < at_once; ++k) x[u][v + k] = read.at[k];
                        }
                    } else {
#pragma unroll
                        for (int k = 0; k < PACK<To>; ++k)
                            if (left + place<W, To>(k) < n) x[u][k] = row[left + place<W, To>(k)];
                    }
                }
#pragma unroll
                for (int u = 0; u < in_flight; ++u) {
                    const Index b = first + u * step, row = (e * B + b) * n;
                    To y[PACK<To>];
#pragma unroll
                    for (int k = 0; k < PACK<To>; ++k) y[k] = To(number(x[u][k]));
                    if (b < B) store<W>(out, row + left, row + n, y);
                }
            }
        }
    }
}
