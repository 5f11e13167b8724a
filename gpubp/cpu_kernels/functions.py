"""Elementary functions that vectorise, and the activations as functors: the CPU's ``kernels/activations.cuh``.

``exp`` splits ``x = k log 2 + r`` with ``abs(r) <= log(2) / 2``, the product ``k log 2`` in two parts so that no digit
of r is lost (Cody and Waite, "Software manual for the elementary functions", 1980), takes exp(r) by a polynomial, and
puts k into the exponent's bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from gpubp.cpu_kernels.memory import bits_of_float32, bits_of_float64, float32_of_bits, float64_of_bits

EXP_ULPS = 1.02
"""Error of `exp` in float32, in units of the last place, for every x from -87.3 to 88.3."""
SIGMOID_ULPS = 2.5
"""Error of `sigmoid` in float32, in units of the last place, for every x from -87.3 on."""
NORMAL_ULPS = 6.0
"""Error of `normal_distribution` in float32, in units of the last place, for every x from -12.9 on."""


@register_jitable
def _split32(x: Any) -> Any:
    """``exp(r) - 1`` and ``2^k``; x is brought into the range where both are normal numbers."""
    x = min(max(x, np.float32(-87.33654)), np.float32(88.37626))
    k = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - k * np.float32(0.693145751953125)  # log 2 rounded to 16 bits: the product is exact
    return _exp_parts32(k, r - k * np.float32(1.428606765330187e-6))


@register_jitable
def _exp_parts32(k: Any, r: Any) -> Any:
    p = np.float32(1.9875691500e-4)  # minimax coefficients of Cephes' expf
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    power = float32_of_bits(np.int32(np.int32(np.int32(k) + np.int32(127)) << np.int32(23)))
    return p * (r * r) + r, power


@register_jitable
def _split64(x: Any) -> Any:
    x = min(max(x, -708.39), 709.0)
    k = np.floor(x * 1.4426950408889634 + 0.5)
    r = x - k * 6.93147180369123816490e-01  # log 2 rounded to 33 bits: the product is exact
    r = r - k * 1.90821492927058770002e-10
    p = 1.0 / 6227020800.0  # the Taylor series to r^13 / 13!, whose rest is below 2^-57
    p = p * r + 1.0 / 479001600.0
    p = p * r + 1.0 / 39916800.0
    p = p * r + 1.0 / 3628800.0
    p = p * r + 1.0 / 362880.0
    p = p * r + 1.0 / 40320.0
    p = p * r + 1.0 / 5040.0
    p = p * r + 1.0 / 720.0
    p = p * r + 1.0 / 120.0
    p = p * r + 1.0 / 24.0
    p = p * r + 1.0 / 6.0
    p = p * r + 0.5
    return p * (r * r) + r, float64_of_bits(np.int64(np.int64(k) + 1023) << 52)


def _split(x: Any) -> Any:
    raise NotImplementedError


@overload(_split)
def _(x):
    return (lambda x: _split32(x)) if x == types.float32 else (lambda x: _split64(x))


def _lowest(x: Any) -> Any:
    raise NotImplementedError


@overload(_lowest)
def _(x):
    return (lambda x: np.float32(-87.33654)) if x == types.float32 else (lambda x: -708.39)


@register_jitable
def exp(x: Any) -> Any:
    """``e^x`` up to 88.3 (in float64 709); 0 where that is no normal number, some number for NaN or a larger x.

    Every caller here passes an x of at most 0, and looks for NaN.
    """
    q, power = _split(x)
    return type(x)(0) if x < _lowest(x) else (q + type(x)(1)) * power


@register_jitable
def expm1(x: Any) -> Any:
    """``e^x - 1`` without loss of digits near 0."""
    q, power = _split(x)
    return power * q + (power - type(x)(1))


@register_jitable
def sigmoid(x: Any) -> Any:
    """``1 / (1 + exp(-x))``; 0 where that is no normal number."""
    one = type(x)(1)
    q, power = _split(-x)  # which does not overflow
    quotient = one / (one + (q + one) * power)
    return x if x != x else (type(x)(0) if x < _lowest(x) else quotient)


@register_jitable
def tanh(x: Any) -> Any:
    """``(1 - exp(-2 abs(x))) / (1 + exp(-2 abs(x)))`` with the sign of x."""
    m = expm1(-(abs(x) + abs(x)))
    size = -m / (type(x)(2) + m)
    return x if x != x else (size if x >= 0 else -size)


@register_jitable
def _gauss32(x: Any) -> Any:
    """``exp(-x^2 / 2)``; 0 where that is no normal number."""
    # x^2 = high^2 + rest, and high^2 is exact: a rounding of x^2 would be one of the exponent.
    high = float32_of_bits(np.int32(bits_of_float32(x) & np.int32(-4096)))
    rest = (x - high) * (x + high)
    exponent = min(max(np.float32(-0.5) * high * high, np.float32(-87.33654)), np.float32(0))
    k = np.floor(exponent * np.float32(1.44269504) + np.float32(0.5))
    r = exponent - k * np.float32(0.693145751953125)
    q, power = _exp_parts32(k, r - k * np.float32(1.428606765330187e-6) - np.float32(0.5) * rest)
    return np.float32(0) if abs(x) > np.float32(13.2) else (q + np.float32(1)) * power


@register_jitable
def _normal32(x: Any) -> Any:
    # Phi(-t) = exp(-t^2 / 2) p(w) / (t + 3.5) with w = (t - 3.5) / (t + 3.5): p varies little over all t above 0. Its
    # coefficients are those of least relative error, 9e-9, found by weighted least squares on Chebyshev nodes.
    gauss, t = _gauss32(x), min(abs(x), np.float32(14))
    inverse = np.float32(1) / (t + np.float32(3.5))
    w = (t - np.float32(3.5)) * inverse
    p = np.float32(-4.9165659e-05)
    p = p * w + np.float32(3.5258698e-05)
    p = p * w + np.float32(4.5116727e-04)
    p = p * w + np.float32(-4.1915456e-04)
    p = p * w + np.float32(-3.1776197e-03)
    p = p * w + np.float32(6.4662580e-03)
    p = p * w + np.float32(1.7405554e-02)
    p = p * w + np.float32(-1.1604932e-01)
    p = p * w + np.float32(3.1542513e-01)
    p = p * w + np.float32(-5.6556189e-01)
    p = p * w + np.float32(7.4441606e-01)
    tail = gauss * (p * inverse)
    return tail if x < 0 else np.float32(1) - tail, gauss * np.float32(0.3989422804)


@register_jitable
def _normal64(x: Any) -> Any:
    return 0.5 * math.erfc(-0.7071067811865476 * x), exp(-0.5 * x * x) * 0.3989422804014327


def normal(x: Any) -> Any:
    """The standard normal distribution ``(1 + erf(x / sqrt(2))) / 2``, and its density; some numbers for NaN."""
    raise NotImplementedError


@overload(normal)
def _(x):
    return (lambda x: _normal32(x)) if x == types.float32 else (lambda x: _normal64(x))


@register_jitable
def normal_distribution(x: Any) -> Any:
    """``(1 + erf(x / sqrt(2))) / 2``; some number for NaN."""
    return normal(x)[0]


@register_jitable
def _gelu_slope(x: Any) -> Any:
    distribution, density = normal(x)
    return distribution + x * density


@register_jitable
def _silu_slope(x: Any) -> Any:
    s, one = sigmoid(x), type(x)(1)
    return s * (one + x * (one - s))


@register_jitable
def log1p_of_fraction(z: Any) -> Any:
    """``log(1 + z)`` for z from 0 to 1."""
    return _log_series(z / (type(z)(2) + z), 19)


@register_jitable
def _log_series(s: Any, terms: int) -> Any:
    """``log((1 + s) / (1 - s))``, twice the area tangent of s: the first terms of its series in ``s^2``."""
    real = type(s)
    square = s * s
    p = real(1) / real(2 * terms - 1)
    for k in range(terms - 2, -1, -1):
        p = p * square + real(1) / real(2 * k + 1)
    return real(2) * s * p


@register_jitable
def _log32(x: Any) -> Any:
    # x = 2^k m with m from sqrt(1/2) to sqrt(2), so that abs(s) < 0.172 below.
    bits = bits_of_float32(x)
    k = np.int32(np.int32(bits - np.int32(0x3F3504F3)) >> np.int32(23))
    m = float32_of_bits(np.int32(bits - np.int32(k << np.int32(23))))
    power = np.float32(k)
    series = _log_series((m - np.float32(1)) / (m + np.float32(1)), 6)
    return power * np.float32(0.693145751953125) + (series + power * np.float32(1.428606765330187e-6))


@register_jitable
def _log64(x: Any) -> Any:
    bits = bits_of_float64(x)
    k = np.int64(bits - np.int64(0x3FE6A09E667F3BCD)) >> np.int64(52)
    m = float64_of_bits(np.int64(bits - np.int64(k << np.int64(52))))
    power = np.float64(k)
    series = _log_series((m - 1.0) / (m + 1.0), 12)
    return power * 6.93147180369123816490e-01 + (series + power * 1.90821492927058770002e-10)


def log(x: Any) -> Any:
    """The logarithm of a normal number above 0; of anything else some number, and of NaN NaN."""
    raise NotImplementedError


@overload(log)
def _(x):
    return (lambda x: x if x != x else _log32(x)) if x == types.float32 else (lambda x: x if x != x else _log64(x))


# The activations. A functor holds the number that the activation takes; its type says which one it is.


class Identity(NamedTuple):
    """``f(x) = x``."""

    parameter: Any


class Sigmoid(NamedTuple):
    """``f(x) = 1 / (1 + exp(-x))``."""

    parameter: Any


class Tanh(NamedTuple):
    """``f(x) = tanh(x)``."""

    parameter: Any


class ReLU(NamedTuple):
    """``f(x) = max(x, 0)``."""

    parameter: Any


class LeakyReLU(NamedTuple):
    """``f(x) = x`` above zero, else the parameter times x."""

    parameter: Any


class ELU(NamedTuple):
    """``f(x) = x`` above zero, else the parameter times ``exp(x) - 1``."""

    parameter: Any


class GELU(NamedTuple):
    """``f(x) = x (1 + erf(x / sqrt(2))) / 2``."""

    parameter: Any


class SiLU(NamedTuple):
    """``f(x) = x / (1 + exp(-x))``."""

    parameter: Any


class Softplus(NamedTuple):
    """``f(x) = log(1 + exp(p x)) / p`` with p the parameter."""

    parameter: Any


BY_NAME: dict[str, Any] = {
    kind.__name__: kind for kind in (Identity, Sigmoid, Tanh, ReLU, LeakyReLU, ELU, GELU, SiLU, Softplus)
}


def evaluate(f: Any, x: Any) -> Any:
    """f(x)."""
    raise NotImplementedError


def derivative(f: Any, saved: Any) -> Any:
    """F' from the output y, or from x where the activation saves that."""
    raise NotImplementedError


_EVALUATE: dict[Any, Callable[..., Any]] = {
    Identity: lambda f, x: x,
    Sigmoid: lambda f, x: sigmoid(x),
    Tanh: lambda f, x: tanh(x),
    ReLU: lambda f, x: type(x)(0) if x <= 0 else x,
    LeakyReLU: lambda f, x: x if x > 0 else type(x)(f.parameter) * x,
    ELU: lambda f, x: type(x)(f.parameter) * expm1(x) if x <= 0 else x,  # so that a NaN stays one
    GELU: lambda f, x: x * normal_distribution(x),
    SiLU: lambda f, x: x * sigmoid(x),
    Softplus: lambda f, x: (
        (type(x)(0) if x <= 0 else x) + log1p_of_fraction(exp(-abs(type(x)(f.parameter) * x))) / type(x)(f.parameter)
    ),
}
_DERIVATIVE: dict[Any, Callable[..., Any]] = {
    Identity: lambda f, saved: type(saved)(1),
    Sigmoid: lambda f, saved: saved * (type(saved)(1) - saved),
    Tanh: lambda f, saved: type(saved)(1) - saved * saved,
    ReLU: lambda f, saved: type(saved)(1) if saved > 0 else type(saved)(0),
    LeakyReLU: lambda f, saved: type(saved)(1) if saved > 0 else type(saved)(f.parameter),
    ELU: lambda f, saved: type(saved)(1) if saved > 0 else saved + type(saved)(f.parameter),
    GELU: lambda f, saved: _gelu_slope(saved),
    SiLU: lambda f, saved: _silu_slope(saved),
    Softplus: lambda f, saved: sigmoid(type(saved)(f.parameter) * saved),
}


@overload(evaluate)
def _(f, x):
    return _EVALUATE[f.instance_class]


@overload(derivative)
def _(f, saved):
    return _DERIVATIVE[f.instance_class]
