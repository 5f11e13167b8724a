"""Elementary functions in forms that neither overflow nor lose digits, shared by layers, losses and links."""

from __future__ import annotations

import importlib
import math
from types import ModuleType

import numpy as np

from gpubp.backend import Array, array_module


def sigmoid(xp: ModuleType, X: Array, out: Array) -> Array:
    """``1 / (1 + exp(-X))``, elementwise; `out` may be X.

    Where exp overflows to infinity the quotient is 0, and the sigmoid is below the smallest normal number.
    """
    xp.negative(X, out=out)
    with np.errstate(over="ignore"):
        xp.exp(out, out=out)
    xp.add(out, 1, out=out)
    return xp.divide(1, out, out=out)


def normal_distribution(xp: ModuleType, X: Array, out: Array) -> Array:
    """``(1 + erf(X / sqrt(2))) / 2``, the standard normal distribution, elementwise; `out` may be X."""
    # Not by erf: below zero that would be a difference of numbers near 1.
    special = importlib.import_module("scipy.special" if xp is np else "cupyx.scipy.special")
    return special.ndtr(X, out=out)


def normal_density(xp: ModuleType, X: Array, out: Array) -> Array:
    """``exp(-X^2 / 2) / sqrt(2 pi)``, the standard normal density, elementwise; `out` is not X."""
    xp.multiply(X, -0.5, out=out)
    with np.errstate(over="ignore"):  # to infinity, whose exp is 0
        xp.multiply(out, X, out=out)
    xp.exp(out, out=out)
    return xp.multiply(out, 1 / math.sqrt(2 * math.pi), out=out)


def log_softmax_parts(Y: Array, S: Array, P: Array, log_total: Array) -> Array:
    """Shifted scores, softmax and log-normaliser of each row of Y.

    ``log softmax(Y) = S - log_total[..., None]``.

    Args:
        Y: (..., N, K) scores.
        S: (..., N, K); receives ``Y - max_k Y``, so that no exp overflows and at least one of them is 1.
        P: (..., N, K), not S; receives ``softmax(Y) = exp(S) / sum_k exp(S)``.
        log_total: (..., N); receives ``log(sum_k exp(S))`` and is returned.
    """
    xp = array_module(Y)
    column = log_total[..., None]  # (..., N, 1), a view
    row_max(Y, log_total, S)
    xp.subtract(Y, column, out=S)
    xp.exp(S, out=P)
    row_sum(P, log_total)
    xp.divide(P, column, out=P)
    return xp.log(log_total, out=log_total)


NARROW = 64
"""NumPy reduces a row in 15 to 40 ns and more; many rows up to this length are faster reduced column by column."""


def row_max(Y: Array, out: Array, scratch: Array) -> Array:
    """The maximum of each row: (..., N, K) -> (..., N); `scratch`, contiguous and of the shape of Y, is overwritten."""
    *members, N, K = Y.shape
    if isinstance(Y, np.ndarray) and K <= NARROW < N:
        columns = scratch.reshape(*members, K, N)
        np.copyto(columns, Y.mT)
        return columns.max(axis=-2, out=out)
    return Y.max(axis=-1, out=out)


def row_sum(Y: Array, out: Array) -> Array:
    """The sum of each row: (..., N, K) -> (..., N)."""
    if isinstance(Y, np.ndarray) and Y.shape[-2] > NARROW:
        return np.matmul(Y, np.ones(Y.shape[-1], Y.dtype), out=out)
    return Y.sum(axis=-1, out=out)


MOST_ONES = 16384
"""Up to so many rows a vector of ones takes no memory to speak of."""


def column_sum(X: Array, out: Array) -> Array:
    """The sum of each column: (..., N, n) -> (..., n)."""
    if isinstance(X, np.ndarray) and NARROW < X.shape[-2] <= MOST_ONES:
        return np.matmul(np.ones(X.shape[-2], X.dtype), X, out=out)  # by BLAS, in a third of the time
    return X.sum(axis=-2, out=out)


def row_dot(A: Array, B: Array, out: Array) -> Array:
    """The sum of the products in each row: (..., N, K) and (..., N, K) -> (..., N)."""
    if isinstance(A, np.ndarray):
        return np.einsum("...k,...k->...", A, B, out=out)  # without room for the products
    return (A * B).sum(axis=-1, out=out)


def log1p_exp_minus_abs(xp: ModuleType, X: Array, out: Array) -> Array:
    """``log(1 + exp(-abs(X)))``, elementwise: what ``log(1 + exp(X))`` is above ``max(X, 0)``. `out` may be X."""
    xp.absolute(X, out=out)
    xp.negative(out, out=out)
    xp.exp(out, out=out)
    return xp.log1p(out, out=out)
