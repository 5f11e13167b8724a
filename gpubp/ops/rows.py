"""What is the same for every row of a matrix: a bias added to each, a mean and a scale taken out, the sum of all."""

from __future__ import annotations

import math
from types import ModuleType

from gpubp import compiled
from gpubp.backend import Array, array_module
from gpubp.cost import Cost
from gpubp.ops import elementary


def add_bias(Y: Array, b: Array) -> Array:
    """``Y += b[..., None, :]``: Y (..., N, n), b (..., n)."""
    xp = array_module(Y, b)
    if (kernels := compiled.kernels_of(xp)) and kernels.activation.takes_row(Y, b):
        return kernels.activation.add_bias(Y, b)
    return xp.add(Y, b[..., None, :], out=Y)


def standardize(X: Array, mean: Array, scale: Array, Y: Array) -> Array:
    """``Y = (X - mean[..., None, :]) / scale[..., None, :]``: X, Y (..., N, n), mean and scale (n,) or (..., n)."""
    xp = array_module(X, Y)
    if (kernels := compiled.kernels_of(xp)) and kernels.activation.takes_statistics(X, mean, scale, Y):
        return kernels.activation.standardize(X, mean, scale, Y)
    xp.subtract(X, mean[..., None, :], out=Y)
    return xp.divide(Y, scale[..., None, :], out=Y)


def column_sum(X: Array, out: Array, partial_sums: Array) -> Array:
    """``out = X.sum(axis=-2)``: (..., N, n) -> (..., n).

    Args:
        X: (..., N, n).
        out: (..., n), the result.
        partial_sums: Scratch of the shape that `partial_sums_shape` gives.
    """
    if (kernels := compiled.kernels_for(X, out)) and kernels.activation.takes_row(X, out):
        return kernels.activation.column_sum(X, out, partial_sums)
    return elementary.column_sum(X, out)


def product_sum(A: Array, B: Array, out: Array, partial_sums: Array) -> Array:
    """``out = (A * B).sum(axis=-2)``: (..., N, n) -> (..., n).

    Args:
        A: (..., N, n).
        B: (..., N, n), or (N, n) where the members of a stack share it.
        out: (..., n), the result.
        partial_sums: Scratch of the shape that `partial_sums_shape` gives for A.
    """
    if (kernels := compiled.kernels_for(A, B, out)) and kernels.activation.takes_product(A, B, out):
        return kernels.activation.product_sum(A, B, out, partial_sums)
    return (A * B).sum(axis=-2, out=out)


def partial_sums_shape(xp: ModuleType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scratch that `column_sum` and `product_sum` need for an X of this shape."""
    *members, _, columns = shape
    kernels = compiled.kernels_of(xp)
    return (*members, kernels.activation.chunks(shape) if kernels else 0, columns)


def cost(name: str, shape: tuple[int, ...], itemsize: int, *, written: bool) -> Cost:
    """The cost of one operation on each element of a matrix that is read once, and `written` again or summed."""
    size = math.prod(shape)
    return Cost(name, size, (2 if written else 1) * size * itemsize)
