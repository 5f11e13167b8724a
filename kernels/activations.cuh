// The activation functions, one functor each.
//
// from_output   true where the derivative is a function of the output Y = f(Z); false where it needs the input Z.
// value         f(z)
// derivative    f'(z), computed from y = f(z) where from_output is true, else from z.
//
// The constructor takes the function's parameter, which most do not have.
#pragma once

template <typename T>
struct Identity {
    using Scalar = T;
    static constexpr bool from_output = true;
    explicit __device__ Identity(T) {}
    __device__ T value(T z) const { return z; }
    __device__ T derivative(T) const { return 1; }
};

template <typename T>
struct Sigmoid {
    using Scalar = T;
    static constexpr bool from_output = true;
    explicit __device__ Sigmoid(T) {}
    __device__ T value(T z) const {
        const T e = exp(-fabs(z));  // at most 1: no overflow at either end
        const T r = 1 / (1 + e);    // sigmoid(|z|)
        return z >= 0 ? r : e * r;
    }
    __device__ T derivative(T y) const { return y * (1 - y); }
};

template <typename T>
struct Tanh {
    using Scalar = T;
    static constexpr bool from_output = true;
    explicit __device__ Tanh(T) {}
    __device__ T value(T z) const { return tanh(z); }
    __device__ T derivative(T y) const { return 1 - y * y; }
};

template <typename T>
struct ReLU {
    using Scalar = T;
    static constexpr bool from_output = true;
    explicit __device__ ReLU(T) {}
    __device__ T value(T z) const { return z < 0 ? 0 : z; }  // written so that a NaN stays one
    __device__ T derivative(T y) const { return y > 0 ? 1 : 0; }
};

template <typename T>
struct LeakyReLU {
    using Scalar = T;
    static constexpr bool from_output = true;  // y has the sign of z
    T slope;
    explicit __device__ LeakyReLU(T slope) : slope(slope) {}
    __device__ T value(T z) const { return z > 0 ? z : slope * z; }
    __device__ T derivative(T y) const { return y > 0 ? 1 : slope; }
};

template <typename T>
struct ELU {
    using Scalar = T;
    static constexpr bool from_output = true;  // y has the sign of z
    T alpha;
    explicit __device__ ELU(T alpha) : alpha(alpha) {}
    __device__ T value(T z) const { return z > 0 ? z : alpha * expm1(z); }
    __device__ T derivative(T y) const { return y > 0 ? 1 : y + alpha; }
};

template <typename T>
struct GELU {
    using Scalar = T;
    static constexpr bool from_output = false;
    explicit __device__ GELU(T) {}
    // The normal distribution; not by erf, which would make it a difference of numbers near 1 below zero.
    static __device__ T distribution(T z) { return T(0.5) * erfc(z * T(-0.70710678118654752)); }
    __device__ T value(T z) const { return z * distribution(z); }
    __device__ T derivative(T z) const {
        return distribution(z) + z * exp(T(-0.5) * z * z) * T(0.39894228040143268);  // 1 / sqrt(2 pi)
    }
};

template <typename T>
struct SiLU {
    using Scalar = T;
    static constexpr bool from_output = false;
    explicit __device__ SiLU(T) {}
    __device__ T value(T z) const { return z * Sigmoid<T>(0).value(z); }
    __device__ T derivative(T z) const {
        const T s = Sigmoid<T>(0).value(z);
        return s * (1 + z * (1 - s));
    }
};

template <typename T>
struct Softplus {
    using Scalar = T;
    static constexpr bool from_output = false;
    T beta;
    explicit __device__ Softplus(T beta) : beta(beta) {}
    __device__ T value(T z) const {
        const T positive = z < 0 ? 0 : z;  // written so that a NaN stays one
        return positive + log1p(exp(-fabs(beta * z))) / beta;
    }
    __device__ T derivative(T z) const { return Sigmoid<T>(0).value(beta * z); }
};
