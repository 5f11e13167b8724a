// The elementwise losses, one functor each: of one output y and its target t.
//
// value         l(y, t)
// derivative    dl/dy
//
// The constructor takes two parameters, of which most losses have one or none.
#pragma once
#include "activations.cuh"

template <typename T>
struct SquaredError {
    using Scalar = T;
    T scale;
    __device__ SquaredError(T scale, T) : scale(scale) {}
    __device__ T value(T y, T t) const { return scale * ((y - t) * (y - t)); }
    __device__ T derivative(T y, T t) const { return 2 * scale * (y - t); }
};

template <typename T>
struct AbsoluteError {
    using Scalar = T;
    __device__ AbsoluteError(T, T) {}
    __device__ T value(T y, T t) const { return fabs(y - t); }
    __device__ T derivative(T y, T t) const { return T(y > t) - T(y < t); }
};

template <typename T>
struct Huber {
    using Scalar = T;
    T delta;
    __device__ Huber(T delta, T) : delta(delta) {}
    __device__ T value(T y, T t) const {
        const T m = derivative(y, t);
        return m * (y - t - m / 2);
    }
    __device__ T derivative(T y, T t) const {
        const T d = y - t;  // written so that a NaN stays one
        return d > delta ? delta : d < -delta ? -delta : d;
    }
};

template <typename T>
struct Quantile {
    using Scalar = T;
    T q;
    __device__ Quantile(T q, T) : q(q) {}
    __device__ T value(T y, T t) const { return (y - t) * (y < t ? -q : 1 - q); }
    __device__ T derivative(T y, T t) const { return y > t ? 1 - q : y < t ? -q : T(0); }
};

template <typename T>
struct PoissonDeviance {  // y is the logarithm of the rate
    using Scalar = T;
    __device__ PoissonDeviance(T, T) {}
    __device__ T value(T y, T t) const { return 2 * ((t > 0 ? t * (log(t) - y) : t) + (exp(y) - t)); }
    __device__ T derivative(T y, T t) const { return 2 * (exp(y) - t); }
};

template <typename T>
struct BinaryCrossEntropy {  // log(1 + exp(y)) - t y, and (c - 1) t log(1 + exp(-y)) for a weight c of the class 1
    using Scalar = T;
    T more, smoothing;
    __device__ BinaryCrossEntropy(T weight, T smoothing) : more(weight - 1), smoothing(smoothing) {}
    __device__ T value(T y, T t) const {
        t = smoothed(t);
        const T positive = y < 0 ? 0 : y;  // written so that a NaN stays one
        const T rest = log1p(exp(-fabs(y)));
        return positive - t * y + rest + (more != 0 ? more * t * (positive - y + rest) : T(0));
    }
    __device__ T derivative(T y, T t) const {
        t = smoothed(t);
        const T p = Sigmoid<T>(0).value(y);
        return p - t + more * t * (p - 1);
    }
    __device__ T smoothed(T t) const { return t + smoothing * (T(0.5) - t); }
};

// Of two outputs for one target: the value, and its derivatives by both.

template <typename T>
struct GaussianNLL {  // of the mean y, and of s, from which the variance is log(1 + exp(s)) + least
    using Scalar = T;
    T least;
    __device__ GaussianNLL(T least, T) : least(least) {}
    __device__ T value(T y, T s, T t, T& by_y, T& by_s) const {
        const T variance = (s < 0 ? 0 : s) + log1p(exp(-fabs(s))) + least;
        const T d = y - t, quotient = d / variance;
        by_y = quotient;
        by_s = T(0.5) * (1 - d * quotient) / variance * Sigmoid<T>(0).value(s);
        return T(0.5) * (log(T(6.283185307179586) * variance) + d * quotient);
    }
};
