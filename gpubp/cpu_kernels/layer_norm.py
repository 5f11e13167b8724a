"""Layer normalisation and its backward in one pass each: see `gpubp.ops.layer_norm`. A work item is a row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.extending import register_jitable

from gpubp import cpu
from gpubp.backend import Array
from gpubp.cpu_kernels.losses import LANES
from gpubp.cpu_kernels.memory import kernel, number, part, vector
from gpubp.cpu_kernels.softmax import row_dot


@register_jitable
def _row_sum(A: Any, lanes: Any) -> Any:
    """The sum of A, as `row_dot`."""
    whole = A.size // LANES * LANES
    lanes[:] = 0
    for k in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += A[k + lane]
    for k in range(whole, A.size):
        lanes[0] += A[k]
    return lanes.sum()


@kernel
def _layer_norm(Real: Any) -> Any:
    def layer_norm(a: Any, begin: int, end: int, step: int) -> None:
        rows, n, shared = a[6], a[7], a[8]
        count, epsilon, lanes = Real(n), Real(number(a[11])), np.empty(LANES, Real)
        for item in range(begin, end):
            e = item // rows
            row = item - e * rows if shared else item
            gamma, beta = vector(Real, a[1] + e * a[9], n), vector(Real, a[2] + e * a[10], n)
            X, Y = part(Real, a[0], row * n, (row + 1) * n), part(Real, a[3], item * n, (item + 1) * n)
            mean = _row_sum(X, lanes) / count
            for j in range(n):
                Y[j] = X[j] - mean
            inverse = Real(1) / np.sqrt(row_dot(Y, Y, lanes) / count + epsilon)
            if not shared or e == 0:  # else another member writes them, and maybe just now
                X_hat = part(Real, a[4], row * n, (row + 1) * n)
                for j in range(n):
                    X_hat[j] = Y[j] * inverse
                vector(Real, a[5], row + 1)[row] = inverse
            for j in range(n):
                Y[j] = Y[j] * inverse * gamma[j] + beta[j]

    return layer_norm


@kernel
def _layer_norm_backward(Real: Any) -> Any:
    def layer_norm_backward(a: Any, begin: int, end: int, step: int) -> None:
        rows, n, shared = a[5], a[6], a[7]
        count, lanes = Real(n), np.empty(LANES, Real)
        for item in range(begin, end):
            e = item // rows
            row = item - e * rows if shared else item
            gamma, X_hat = vector(Real, a[1] + e * a[8], n), part(Real, a[2], row * n, (row + 1) * n)
            D = part(Real, a[4], item * n, (item + 1) * n)  # dL_dX_hat, from which dL_dX is made in its place
            if a[0] == a[4]:  # in place: only a name that is the same lets the compiler vectorise
                for j in range(n):
                    D[j] = D[j] * gamma[j]
            else:
                dL_dY = part(Real, a[0], item * n, (item + 1) * n)
                for j in range(n):
                    D[j] = dL_dY[j] * gamma[j]
            mean, along = _row_sum(D, lanes) / count, row_dot(D, X_hat, lanes) / count
            inverse = vector(Real, a[3], row + 1)[row]
            for j in range(n):
                D[j] = inverse * (D[j] - mean - X_hat[j] * along)

    return layer_norm_backward


def takes(Y: Array, rows: tuple[Array, ...], X: Array, other: Array) -> bool:
    """Whether dtype, shapes and strides fit the kernels.

    Args:
        Y: (..., N, n).
        rows: Gamma and beta, (..., n).
        X: (..., N, n), or (N, n) where members share it.
        other: The shape of one or the other.
    """
    shapes = Y.shape, Y.shape[-2:]
    return (
        Y.size > 0
        and cpu.is_plain(Y, X, other)
        and X.shape in shapes
        and other.shape in shapes
        and all(row.shape == Y.shape[:-2] + Y.shape[-1:] and cpu.has_plain_rows(row, Y) for row in rows)
    )


def layer_norm(
    X: Array, gamma: Array, beta: Array, epsilon: float, Y: Array, X_hat: Array, inverse_std: Array
) -> Array:
    """Launch; see `gpubp.ops.layer_norm.layer_norm`."""
    sizes = (*Y.shape[-2:], int(X.ndim < Y.ndim), _stride(gamma), _stride(beta), epsilon)
    _launch(_layer_norm(Y.dtype.type), (X, gamma, beta, Y, X_hat, inverse_std, *sizes), Y.shape, 0.8)
    return Y


def layer_norm_backward(dL_dY: Array, gamma: Array, X_hat: Array, inverse_std: Array, dL_dX: Array) -> Array:
    """Launch; see `gpubp.ops.layer_norm.layer_norm_backward`."""
    sizes = (*dL_dY.shape[-2:], int(X_hat.ndim < dL_dY.ndim), _stride(gamma))
    compiled = _layer_norm_backward(dL_dX.dtype.type)
    _launch(compiled, (dL_dY, gamma, X_hat, inverse_std, dL_dX, *sizes), dL_dY.shape, 0.8)
    return dL_dX


def _launch(compiled: Any, arguments: tuple[Any, ...], shape: tuple[int, ...], nanoseconds: float) -> None:
    cpu.launch(compiled, arguments, math.prod(shape[:-1]), nanoseconds * shape[-1])


def _stride(array: Array) -> int:
    """Bytes from one member's row to the next in an array (n,) or (E, n)."""
    return 0 if array.ndim == 1 else int(array.strides[0])
