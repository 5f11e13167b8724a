"""Elementary functions in forms that neither overflow nor lose digits, shared by layers, losses and links."""

from __future__ import annotations

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


def log1p_exp_minus_abs(xp: ModuleType, X: Array, out: Array) -> Array:
    """``log(1 + exp(-abs(X)))``, elementwise: what ``log(1 + exp(X))`` is above ``max(X, 0)``. `out` may be X."""
    xp.absolute(X, out=out)
    xp.negative(out, out=out)
    xp.exp(out, out=out)
    return xp.log1p(out, out=out)
