"""Rows of a table by an index, and the sum of gradients over the examples that share one.

    Y[n] = sum over c of one_hot[n,c] * W[c]            one_hot[n,c] = 1 where index[n] is c, else 0
    dL_dW[c] = sum over n of one_hot[n,c] * dL_dY[n]

The index is a column of a matrix of floating-point numbers, as examples have it, and what was looked up goes to some
columns of another. A number that is no whole one from 0 to C - 1 stands for none of the rows: it gives zeros.
"""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np

from gpubp import compiled
from gpubp.backend import Array, array_module
from gpubp.cost import Cost


def partial_sums_shape(xp: ModuleType, shape: tuple[int, ...], table: tuple[int, int]) -> tuple[int, ...]:
    """The shape of the scratch that `lookup_backward` needs.

    Args:
        xp: The array module that computes.
        shape: (..., N, n_out), that of dL_dY.
        table: (C, width), that of one member's table.
    """
    kernels = compiled.kernels_of(xp)
    return (*shape[:-2], kernels.embedding.chunks(shape, table) if kernels else 0, math.prod(table))


def lookup(X: Array, column: int, W: Array, Y: Array, start: int) -> Array:
    """``Y[..., start : start + width] = W[X[..., column]]``, and zeros where X holds no index.

    Args:
        X: (..., N, n_in), or (N, n_in) where the members of a stack share it.
        column: Which column of X holds the index.
        W: (..., C, width), each member's table in one piece.
        Y: (..., N, n_out), of which these columns are written.
        start: The first of them.
    """
    xp = array_module(X, W, Y)
    if (kernels := compiled.kernels_of(xp)) and kernels.embedding.takes(X, W, Y):
        return kernels.embedding.lookup(X, column, W, Y, start)
    index, is_index = indices(X[..., column], W.shape[-2])  # (..., N)
    strip = Y[..., start : start + W.shape[-1]]  # (..., N, width)
    for member in np.ndindex(W.shape[:-2]):
        own = member if X.ndim == Y.ndim else ()
        strip[member] = np.where(is_index[own][..., None], W[member][index[own]], 0)
    return Y


def lookup_backward(dL_dY: Array, start: int, X: Array, column: int, dL_dW: Array, partial_sums: Array) -> Array:
    """``dL_dW[c] = dL_dY[..., start : start + width]`` summed over the examples of index c, in a fixed order.

    Args:
        dL_dY: (..., N, n_out).
        start: The first of its columns that the table gave.
        X: (..., N, n_in), or (N, n_in) where the members of a stack share it.
        column: Which column of X holds the index.
        dL_dW: (..., C, width), the result; each member's in one piece.
        partial_sums: Scratch of the shape that `partial_sums_shape` gives.
    """
    xp = array_module(dL_dY, X, dL_dW)
    if (kernels := compiled.kernels_of(xp)) and kernels.embedding.takes(X, dL_dW, dL_dY):
        return kernels.embedding.lookup_backward(dL_dY, start, X, column, dL_dW, partial_sums)
    index, is_index = indices(X[..., column], dL_dW.shape[-2])  # (..., N)
    strip = dL_dY[..., start : start + dL_dW.shape[-1]]  # (..., N, width)
    dL_dW[...] = 0
    for member in np.ndindex(dL_dW.shape[:-2]):
        own = member if X.ndim == dL_dY.ndim else ()
        np.add.at(dL_dW[member], index[own][is_index[own]], strip[member][is_index[own]])
    return dL_dW


def pass_columns(X: Array, column: int, width: int, Y: Array, start: int) -> Array:
    """``Y[..., start : start + width] = X[..., column : column + width]``.

    Args:
        X: (..., N, n_in), or (N, n_in) where the members of a stack share it.
        column: The first of the columns that are copied.
        width: How many they are.
        Y: (..., N, n_out).
        start: Where they go.
    """
    xp = array_module(X, Y)
    if (kernels := compiled.kernels_of(xp)) and kernels.embedding.takes(X, None, Y):
        return kernels.embedding.pass_columns(X, column, width, Y, start)
    Y[..., start : start + width] = X[..., column : column + width]
    return Y


def indices(x: Array, C: int) -> tuple[Array, Array]:
    """Numbers x as whole ones, 0 where they are none from 0 to C - 1; and where they are some."""
    is_index = (x >= 0) & (x < C) & (x == np.floor(x))
    return np.where(is_index, x, 0).astype(np.int64), is_index


def cost(name: str, rows: int, width: int, itemsize: int) -> Cost:
    """The cost of a lookup of so many rows: the index is read, a row of the table too, and a row is written."""
    return Cost(name, 0, rows * (1 + 2 * width) * itemsize)


def backward_cost(name: str, rows: int, size: int, width: int, itemsize: int) -> Cost:
    """The cost of `lookup_backward`: index and gradient are read and added up, tables of `size` numbers are written."""
    return Cost(name, rows * width, (rows * (1 + width) + size) * itemsize)


def pass_cost(name: str, rows: int, width: int, itemsize: int) -> Cost:
    """The cost of `pass_columns`: a number is read, and written."""
    return Cost(name, 0, rows * 2 * width * itemsize)
