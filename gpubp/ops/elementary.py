"""Elementary functions in forms that neither overflow nor lose digits, shared by layers, losses and links."""

from __future__ import annotations

from types import ModuleType

import numpy as np

from gpubp.backend import Array, array_module


def sigmoid(xp: ModuleType, X: Array, out: Array) -> Array:
    """``1 / (1 + exp(-X))``, elementwise; `out` may be X.

    The exponent is capped where exp would overflow, at sigmoid values below the smallest normal number.
    """
    xp.negative(X, out=out)
    xp.minimum(out, float(np.log(np.finfo(out.dtype).max)) - 1, out=out)
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
    Y.max(axis=-1, keepdims=True, out=column)
    xp.subtract(Y, column, out=S)
    xp.exp(S, out=P)
    P.sum(axis=-1, keepdims=True, out=column)
    xp.divide(P, column, out=P)
    return xp.log(log_total, out=log_total)
