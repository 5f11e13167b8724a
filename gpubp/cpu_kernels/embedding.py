"""Lookups in a table, their backward, and columns that are copied: see `gpubp.ops.embedding`."""

from __future__ import annotations

import math
from typing import Any

from numba.extending import register_jitable

from gpubp import cpu
from gpubp.backend import Array
from gpubp.cpu_kernels.memory import kernel, matrix, part, rows_of

SHARES = 8
"""Work items of a member's backward: each has some of the categories, looks at all indices, and adds its own rows."""


@register_jitable
def _index(x: Any, categories: int) -> int:
    """The category that a number stands for, or -1."""
    if x >= 0 and x < categories:
        whole = int(x)
        if whole == x:
            return whole
    return -1


@kernel
def _lookup(Real: Any) -> Any:
    def lookup(a: Any, begin: int, end: int, step: int) -> None:
        rows, n_in, n_out, column, start, categories, width = a[3], a[4], a[5], a[6], a[7], a[8], a[9]
        for item in range(begin, end):
            e = item // rows
            row = item - e * rows if a[10] else item
            W = matrix(Real, a[1] + e * a[11], categories, width)
            c = _index(part(Real, a[0], row * n_in + column, row * n_in + column + 1)[0], categories)
            Y = part(Real, a[2], item * n_out + start, item * n_out + start + width)
            for j in range(width):
                Y[j] = W[c, j] if c >= 0 else Real(0)

    return lookup


@kernel
def _lookup_backward(Real: Any) -> Any:
    def lookup_backward(a: Any, begin: int, end: int, step: int) -> None:
        rows, n_in, n_out, column, start, categories, width = a[3], a[4], a[5], a[6], a[7], a[8], a[9]
        shares = a[12]
        for item in range(begin, end):
            e, share = item // shares, item % shares
            first, last = categories * share // shares, categories * (share + 1) // shares
            dL_dW = rows_of(Real, a[2] + e * a[11], first, last, width)
            X = rows_of(Real, a[1], 0 if a[10] else e * rows, rows if a[10] else (e + 1) * rows, n_in)
            dL_dW[:] = 0
            for n in range(rows):
                c = _index(X[n, column], categories)
                if c >= first and c < last:
                    at = (e * rows + n) * n_out + start
                    d = part(Real, a[0], at, at + width)
                    for j in range(width):
                        dL_dW[c - first, j] += d[j]

    return lookup_backward


@kernel
def _pass_columns(Real: Any) -> Any:
    def pass_columns(a: Any, begin: int, end: int, step: int) -> None:
        rows, n_in, n_out, column, start, width = a[2], a[3], a[4], a[5], a[6], a[7]
        for item in range(begin, end):
            row = item % rows if a[8] else item
            X = part(Real, a[0], row * n_in + column, row * n_in + column + width)
            Y = part(Real, a[1], item * n_out + start, item * n_out + start + width)
            for j in range(width):
                Y[j] = X[j]

    return pass_columns


def chunks(shape: tuple[int, ...], table: tuple[int, int]) -> int:
    """How many chunks of rows are summed apart: none."""
    return 0


def takes(X: Array, W: Array | None, Y: Array) -> bool:
    """Whether dtype, shapes and strides fit the kernels: X (..., N, n_in) or (N, n_in), W (..., C, width), Y."""
    return (
        cpu.is_plain(X, Y)
        and X.shape[:-1] in (Y.shape[:-1], Y.shape[-2:-1])
        and (W is None or (W.ndim <= 3 and W.shape[:-2] == Y.shape[:-2] and _is_plain_table(W, Y)))
    )


def lookup(X: Array, column: int, W: Array, Y: Array, start: int) -> Array:
    """Launch; see `gpubp.ops.embedding.lookup`."""
    arguments = (X, W, Y, *_sizes(X, Y, column, start), *W.shape[-2:], *_strides(X, W, Y))
    cpu.launch(_lookup(Y.dtype.type), arguments, math.prod(Y.shape[:-1]), 3 + 0.3 * W.shape[-1])
    return Y


def lookup_backward(dL_dY: Array, start: int, X: Array, column: int, dL_dW: Array, partial_sums: Array) -> Array:
    """Launch; see `gpubp.ops.embedding.lookup_backward`."""
    N, (C, width) = dL_dY.shape[-2], dL_dW.shape[-2:]
    shares = min(SHARES, C)
    arguments = (dL_dY, X, dL_dW, *_sizes(X, dL_dY, column, start), C, width, *_strides(X, dL_dW, dL_dY), shares)
    nanoseconds = N * (1 + 0.5 * width / shares) + 0.1 * C * width / shares
    cpu.launch(_lookup_backward(dL_dW.dtype.type), arguments, math.prod(dL_dW.shape[:-2]) * shares, nanoseconds)
    return dL_dW


def pass_columns(X: Array, column: int, width: int, Y: Array, start: int) -> Array:
    """Launch; see `gpubp.ops.embedding.pass_columns`."""
    arguments = (X, Y, *_sizes(X, Y, column, start), width, int(X.ndim < Y.ndim))
    cpu.launch(_pass_columns(Y.dtype.type), arguments, math.prod(Y.shape[:-1]), 2 + 0.2 * width)
    return Y


def _sizes(X: Array, Y: Array, column: int, start: int) -> tuple[int, ...]:
    return Y.shape[-2], X.shape[-1], Y.shape[-1], column, start


def _strides(X: Array, W: Array, Y: Array) -> tuple[int, int]:
    """Whether members share X, and bytes from one member's table to the next."""
    return int(X.ndim < Y.ndim), 0 if W.ndim == 2 else int(W.strides[0])


def _is_plain_table(W: Array, Y: Array) -> bool:
    """Whether each member's table lies in one piece, in the dtype of Y; members may lie apart."""
    return bool(W.dtype == Y.dtype and cpu.is_native(W) and W.size > 0 and W[(0,) * (W.ndim - 2)].flags.c_contiguous)
