"""Each row less its mean, over its standard deviation, then scaled and shifted; and its backward.

    forward     X_hat = (X - mean) * inverse_std,   Y = X_hat * gamma[..., None, :] + beta[..., None, :]
    backward    dL_dX_hat = dL_dY * gamma[..., None, :]
                dL_dX = inverse_std * (dL_dX_hat - mean(dL_dX_hat) - X_hat * mean(dL_dX_hat * X_hat))

with the means over the last axis, and ``inverse_std = 1 / sqrt(mean((X - mean)^2) + epsilon)``. The array maths runs in
blocks of rows that stay in cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType

import numpy as np

from gpubp import compiled
from gpubp.backend import Array, array_module
from gpubp.cost import Cost
from gpubp.ops import elementary
from gpubp.ops.activation import block_rows, row_blocks


def workspace(xp: ModuleType, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the scratch arrays that `layer_norm_backward` needs for a dL_dY of this shape."""
    return {"scratch": (*shape[:-2], block_rows(xp, shape), shape[-1])} if xp is np else {}


def layer_norm(
    X: Array, gamma: Array, beta: Array, epsilon: float, Y: Array, X_hat: Array, inverse_std: Array
) -> Array:
    """``Y = X_hat * gamma + beta``; X is read once, and left as it is.

    Args:
        X: (..., N, n), or (N, n) where the members of a stack share it.
        gamma: (..., n).
        beta: (..., n).
        epsilon: Added to the variance of each row.
        Y: (..., N, n), the result.
        X_hat: The shape of X, written.
        inverse_std: The same without the last axis, written.

    Raises:
        ShapeError: With a CUDA kernel: the arrays do not fit each other, or one that is written is not contiguous.
    """
    xp = array_module(X, gamma, Y)
    if (kernels := compiled.kernels_of(xp)) and kernels.layer_norm.takes(Y, (gamma, beta), X, X_hat):
        return kernels.layer_norm.layer_norm(X, gamma, beta, epsilon, Y, X_hat, inverse_std)
    n = X.shape[-1]
    for Y_rows, X_rows, hat_rows, column in row_blocks(xp, Y, X, X_hat, inverse_std[..., None]):
        of_rows = column[..., 0]
        elementary.row_sum(X_rows, of_rows)
        xp.divide(of_rows, n, out=of_rows)
        xp.subtract(X_rows, column, out=hat_rows)
        elementary.row_dot(hat_rows, hat_rows, of_rows)
        xp.divide(of_rows, n, out=of_rows)
        xp.add(of_rows, epsilon, out=of_rows)
        xp.sqrt(of_rows, out=of_rows)
        xp.divide(1, of_rows, out=of_rows)
        xp.multiply(hat_rows, column, out=hat_rows)
        xp.multiply(hat_rows, gamma[..., None, :], out=Y_rows)
        xp.add(Y_rows, beta[..., None, :], out=Y_rows)
    return Y


def layer_norm_backward(
    dL_dY: Array, gamma: Array, X_hat: Array, inverse_std: Array, dL_dX: Array, workspace: Mapping[str, Array]
) -> Array:
    """``dL_dX = inverse_std * (dL_dX_hat - mean(dL_dX_hat) - X_hat * mean(dL_dX_hat * X_hat))``.

    Args:
        dL_dY: (..., N, n).
        gamma: (..., n).
        X_hat: (..., N, n), or (N, n) where the members of a stack share it.
        inverse_std: The same without the last axis.
        dL_dX: (..., N, n), the result. It may be dL_dY itself.
        workspace: The arrays that `workspace` names.

    Raises:
        ShapeError: With a CUDA kernel: the arrays do not fit each other, or dL_dX is not contiguous.
    """
    xp = array_module(dL_dY, gamma, dL_dX)
    if (kernels := compiled.kernels_of(xp)) and kernels.layer_norm.takes(dL_dX, (gamma,), X_hat, dL_dY):
        return kernels.layer_norm.layer_norm_backward(dL_dY, gamma, X_hat, inverse_std, dL_dX)
    scratch, n = workspace["scratch"], dL_dY.shape[-1]
    for dL_dY_rows, hat_rows, column, D in row_blocks(xp, dL_dY, X_hat, inverse_std[..., None], dL_dX):
        xp.multiply(dL_dY_rows, gamma[..., None, :], out=D)  # dL_dX_hat
        product = xp.multiply(D, hat_rows, out=scratch[..., : D.shape[-2], :])
        of_rows = product.sum(axis=-1, keepdims=True) / n  # (..., rows, 1)
        xp.multiply(hat_rows, of_rows, out=product)
        xp.subtract(D, D.sum(axis=-1, keepdims=True) / n, out=D)
        xp.subtract(D, product, out=D)
        xp.multiply(D, column, out=D)
    return dL_dX


def cost(name: str, shape: tuple[int, ...], itemsize: int) -> Cost:
    """The cost of `layer_norm`: the mean, less it, squares, their sum, over the deviation, times gamma, plus beta."""
    size = math.prod(shape)
    return Cost(name, 7 * size, 3 * size * itemsize)


def backward_cost(name: str, shape: tuple[int, ...], itemsize: int) -> Cost:
    """The cost of `layer_norm_backward`: times gamma, the sum, X_hat times it and the sum of that; then four more."""
    size = math.prod(shape)
    return Cost(name, 8 * size, 3 * size * itemsize)
