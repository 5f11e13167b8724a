"""The softmax of each row, and its backward.

forward     Y = exp(X - top) / total,   top the maximum of a row of X, total the sum of its exp(X - top)
backward    dL_dX = Y * (dL_dY - (dL_dY * Y).sum(axis=-1, keepdims=True))
"""

from __future__ import annotations

import math

from gpubp import compiled
from gpubp.backend import Array, array_module
from gpubp.cost import Cost
from gpubp.ops import elementary


def softmax(X: Array, Y: Array, of_rows: Array) -> Array:
    """``Y = exp(X) / sum_k exp(X)`` over the last axis, without overflow.

    Args:
        X: (..., N, n).
        Y: (..., N, n), the result; not X.
        of_rows: (..., N), scratch.

    Raises:
        ShapeError: With a CUDA kernel: X and Y do not fit each other, or Y is not contiguous.
    """
    xp = array_module(X, Y)
    if (kernels := compiled.kernels_of(xp)) and kernels.softmax.takes(X, Y):
        return kernels.softmax.softmax(X, Y)
    column = of_rows[..., None]  # (..., N, 1), a view
    elementary.row_max(X, of_rows, Y)
    xp.subtract(X, column, out=Y)
    xp.exp(Y, out=Y)
    elementary.row_sum(Y, of_rows)
    return xp.divide(Y, column, out=Y)


def softmax_backward(dL_dY: Array, Y: Array, dL_dX: Array, of_rows: Array) -> Array:
    """``dL_dX = Y * (dL_dY - sum_k dL_dY * Y)``.

    Args:
        dL_dY: (..., N, n).
        Y: (..., N, n).
        dL_dX: (..., N, n), the result. It may be dL_dY itself.
        of_rows: (..., N), scratch.

    Raises:
        ShapeError: With a CUDA kernel: the arrays do not fit each other, or dL_dX is not contiguous.
    """
    xp = array_module(dL_dY, Y, dL_dX)
    if (kernels := compiled.kernels_of(xp)) and kernels.softmax.takes(dL_dY, Y, dL_dX):
        return kernels.softmax.softmax_backward(dL_dY, Y, dL_dX)
    elementary.row_dot(dL_dY, Y, of_rows)
    xp.subtract(dL_dY, of_rows[..., None], out=dL_dX)
    return xp.multiply(dL_dX, Y, out=dL_dX)


def cost(name: str, shape: tuple[int, ...], itemsize: int) -> Cost:
    """The cost of `softmax`: a comparison, less the maximum, exp, into the sum, divided by it."""
    size = math.prod(shape)
    return Cost(name, 5 * size, 2 * size * itemsize)


def backward_cost(name: str, shape: tuple[int, ...], itemsize: int) -> Cost:
    """The cost of `softmax_backward`: a product, into the sum, less the sum, times Y."""
    size = math.prod(shape)
    return Cost(name, 4 * size, 3 * size * itemsize)
