"""The elementary functions of the CPU kernels against float64 and extended precision."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gpubp import cpu

if cpu.kernels() is None:
    pytest.skip(f"no CPU kernels: {cpu.why_no_kernels()}", allow_module_level=True)

from numba import njit
from scipy import special

from gpubp.cpu_kernels import functions
from gpubp.cpu_kernels.memory import FLAGS, float32_of_bits

LOWEST, HIGHEST = np.float32(-87.33654), np.float32(88.37626)
"""Between these exp is a normal float32 number, and computed as such."""
SMALL = np.float32(2.0**-26)
"""Up to here exp(x) rounds to 1 or a neighbour of it."""


def bits(x: np.float32) -> int:
    return int(np.float32(x).view(np.int32))


@njit(nogil=True, **FLAGS)
def worst_ulps(first: int, last: int) -> float:
    """The largest error of exp over the float32 numbers of these bits, in units of the last place of the true value."""
    worst = 0.0
    for k in range(first, last):
        x = float32_of_bits(np.int32(k))
        true = math.exp(np.float64(x))
        exponent = math.floor(math.log2(true))
        worst = max(worst, abs(np.float64(functions.exp(x)) - true) / 2.0 ** (exponent - 23))
    return worst


@njit(nogil=True, **FLAGS)
def worst_ulps_of_the_normal_distribution(first: int, last: int) -> float:
    """As `worst_ulps`, over every 13th number."""
    worst = 0.0
    for k in range(first, last, 13):
        x = float32_of_bits(np.int32(k))
        true = 0.5 * math.erfc(-np.float64(x) / math.sqrt(2.0))
        exponent = math.floor(math.log2(true))
        worst = max(worst, abs(np.float64(functions.normal_distribution(x)) - true) / 2.0 ** (exponent - 23))
    return worst


def test_the_normal_distribution_is_within_the_stated_error():
    negative = int(np.int32(-(2**31)))
    above = worst_ulps_of_the_normal_distribution(bits(SMALL), bits(np.float32(20)))
    below = worst_ulps_of_the_normal_distribution(negative + bits(SMALL), negative + bits(np.float32(12.9)))
    assert max(above, below) <= functions.NORMAL_ULPS


@njit(nogil=True, **FLAGS)
def worst_ulps_of_the_sigmoid(first: int, last: int) -> float:
    """As `worst_ulps`, over every third number."""
    worst = 0.0
    for k in range(first, last, 3):
        x = float32_of_bits(np.int32(k))
        true = 1.0 / (1.0 + math.exp(-np.float64(x)))
        exponent = math.floor(math.log2(true))
        worst = max(worst, abs(np.float64(functions.sigmoid(x)) - true) / 2.0 ** (exponent - 23))
    return worst


def test_the_sigmoid_is_within_the_stated_error():
    negative = int(np.int32(-(2**31)))
    above = worst_ulps_of_the_sigmoid(bits(SMALL), bits(np.float32(100)))
    below = worst_ulps_of_the_sigmoid(negative + bits(SMALL), negative + bits(-LOWEST))
    assert max(above, below) <= functions.SIGMOID_ULPS


def test_the_normal_distribution_has_its_ends_and_its_middle():
    X = np.float32([0.0, 1e-30, -1e-45, -14, -1e30, -np.inf, 14, 1e30, np.inf])
    for dtype in ("float32", "float64"):
        expected = [0.5] * 3 + [0.0] * 3 + [1.0] * 3
        np.testing.assert_allclose(values(functions.normal_distribution, X.astype(dtype)), expected, atol=1e-40)


def over(first: int, last: int, parts: int = 8) -> float:
    """`worst_ulps` on several threads."""
    edges = np.linspace(first, last, parts + 1).astype(np.int64)
    with ThreadPoolExecutor(2) as pool:
        return max(pool.map(worst_ulps, edges[:-1], edges[1:]))


def test_exp_is_within_the_stated_error_for_every_float32_number_of_its_range():
    negative = int(np.int32(-(2**31)))  # the sign bit
    worst = max(
        over(bits(SMALL), bits(HIGHEST)),  # every number from 2^-26 to 88.4
        over(negative + bits(SMALL), negative + bits(-LOWEST)),  # and from -87.3 to -2^-26
    )
    assert worst <= functions.EXP_ULPS


def values(f, X):
    @njit(**FLAGS)
    def each(X, out):
        for n in range(X.size):
            out[n] = f(X[n])

    out = np.empty_like(X)
    each(X, out)
    return out


def test_exp_of_the_smallest_numbers_is_one():
    X = np.float32([0.0, -0.0, 1e-45, -1e-45, 1e-30, -1e-30, 2.0**-27, -(2.0**-27)])
    np.testing.assert_allclose(values(functions.exp, X), 1, rtol=2.0**-23)


def test_exp_ends_in_zero_and_stays_finite():
    X = np.float32([-88, -1e30, -np.inf, LOWEST, HIGHEST])
    Y = values(functions.exp, X)
    np.testing.assert_array_equal(Y[:3], 0)
    assert np.isfinite(Y).all()
    assert Y[3] >= np.finfo(np.float32).tiny


@pytest.mark.parametrize(
    ("name", "true", "X", "ulps"),
    [
        ("exp", np.exp, np.linspace(-708, 709, 200_001), 2),
        ("expm1", np.expm1, np.concatenate([np.linspace(-40, 0, 100_001), -np.logspace(-300, 0, 10_001)]), 3),
        ("tanh", np.tanh, np.concatenate([np.linspace(-30, 30, 100_001), np.logspace(-300, 1, 10_001)]), 4),
        ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), np.linspace(-700, 700, 200_001), 4),
        ("normal_distribution", lambda x: special.ndtr(x.astype(float)), np.linspace(-6, 12, 200_001), 40),
        ("log", np.log, np.concatenate([np.linspace(1, 2, 50_001), np.logspace(-37, 38, 50_001)]), 3),
        ("log1p_of_fraction", np.log1p, np.concatenate([np.linspace(0, 1, 100_001), np.logspace(-300, 0, 10_001)]), 3),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions_are_accurate_in_relative_terms(name, true, X, ulps, dtype):
    low, high = (-87, 88) if dtype == "float32" and name == "exp" else (-np.inf, np.inf)
    X = X[(low < X) & (high > X)].astype(dtype)
    exact = true(X.astype(np.longdouble))
    normal = np.abs(exact) > 1e5 * np.finfo(dtype).tiny  # below that numbers have fewer digits
    Y = values(getattr(functions, name), X)
    error = np.abs(Y - exact)[normal] / np.abs(exact)[normal]
    assert float(error.max()) <= ulps * np.finfo(dtype).eps
    assert np.isfinite(Y).all()


def test_the_logarithm_passes_nan_on():
    assert np.isnan(values(functions.log, np.float32([np.nan]))[0])


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("times", [1, 33])  # one by one, and in vector registers
def test_activations_pass_nan_on_and_saturate_at_infinity(name, dtype, times):
    X = np.tile(np.array([-np.inf, np.inf, np.nan], dtype), times)
    low, high, nan = values(getattr(functions, name), X).reshape(times, 3).T
    np.testing.assert_array_equal(low, 0 if name == "sigmoid" else -1)
    np.testing.assert_array_equal(high, 1)
    assert np.isnan(nan).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_sigmoid_of_a_constant_nan_is_nan(dtype):
    """A conversion of NaN to a whole number may become anything where the compiler sees it coming."""
    number = getattr(np, dtype)

    @njit(**FLAGS)
    def of_nan():
        return functions.sigmoid(number(np.nan))

    assert np.isnan(of_nan())
