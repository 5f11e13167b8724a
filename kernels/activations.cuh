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
