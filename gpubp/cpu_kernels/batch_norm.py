"""Batch normalisation: see `gpubp.ops.batch_norm`. Sums are taken by chunks of rows, and added up in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubp import cpu
from gpubp.backend import Array
from gpubp.cpu_kernels.memory import itemsize, kernel, matrix, number, rows_of, vector

CHUNK_ROWS = 128
"""Rows that are summed one after the other; the sums of the chunks are added up afterwards."""
NANOSECONDS = 0.5
"""About what an element takes, to tell work worth sharing between threads."""


def chunks(shape: tuple[int, ...]) -> int:
    """How many chunks of rows of a matrix (..., N, n) are summed apart."""
    return max(1, -(-shape[-2] // CHUNK_ROWS))


def takes(matrices: tuple[Array, ...], rows: tuple[Array, ...]) -> bool:
    """Whether dtypes, shapes and strides fit the kernels: matrices (..., N, n) all, rows (..., n)."""
    first = matrices[0]
    return (
        first.ndim <= 3
        and cpu.is_plain(*matrices)
        and all(other.shape == first.shape for other in matrices)
        and all(row.shape == first.shape[:-2] + first.shape[-1:] and cpu.has_plain_rows(row, first) for row in rows)
    )


@kernel
def _sums(Real: Any) -> Any:
    def batch_sums(a: Any, begin: int, end: int, step: int) -> None:
        rows, columns, chunks = a[2], a[3], a[4]
        X = matrix(Real, a[0], (end // chunks + 1) * rows, columns)
        for item in range(begin, end):  # a chunk of rows of one member
            e, chunk = item // chunks, item % chunks
            begins = a[1] + item * 2 * columns * itemsize(Real)
            sums, squares = vector(Real, begins, columns), vector(Real, begins + columns * itemsize(Real), columns)
            sums[:] = 0
            squares[:] = 0
            first = e * rows + chunk * CHUNK_ROWS
            for n in range(first, min(first + CHUNK_ROWS, (e + 1) * rows)):
                for j in range(columns):
                    d = X[n, j] - X[e * rows, j]
                    sums[j] += d
                    squares[j] += d * d

    return batch_sums


@kernel
def _moments(Real: Any) -> Any:
    def batch_moments(a: Any, begin: int, end: int, step: int) -> None:
        rows, columns, chunks = a[10], a[11], a[12]
        momentum, epsilon = number(a[13]), number(a[14])
        for e in range(begin, end):
            partial = matrix(Real, a[0] + e * chunks * 2 * columns * itemsize(Real), 2 * chunks, columns)
            first = vector(Real, a[1] + e * rows * columns * itemsize(Real), columns)
            mean, r = vector(Real, a[2] + e * a[3], columns), vector(Real, a[4] + e * a[5], columns)
            running_mean = vector(Real, a[6] + e * a[7], columns)
            running_variance = vector(Real, a[8] + e * a[9], columns)
            for j in range(columns):
                s, q = np.float64(0), np.float64(0)
                for c in range(chunks):
                    s += partial[2 * c, j]
                    q += partial[2 * c + 1, j]
                shifted, start = np.float64(0), np.float64(0)
                variance = np.float64(0)
                if rows > 0:
                    shifted, start = s / rows, np.float64(first[j])
                    variance = q / rows - shifted * shifted
                    if variance < 0:  # by rounding; written so that a NaN stays one
                        variance = np.float64(0)
                mean[j] = start + shifted
                r[j] = 1 / math.sqrt(variance + epsilon)
                if rows > 1:
                    running_mean[j] = (1 - momentum) * running_mean[j] + momentum * (start + shifted)
                    unbiased = variance * rows / (rows - 1)
                    running_variance[j] = (1 - momentum) * running_variance[j] + momentum * unbiased

    return batch_moments


@kernel
def _normalize(Real: Any) -> Any:
    def batch_normalize(a: Any, begin: int, end: int, step: int) -> None:
        rows, columns = a[10], a[11]
        for e in range(begin // rows, (end - 1) // rows + 1):
            mean, r = vector(Real, a[1] + e * a[2], columns), vector(Real, a[3] + e * a[4], columns)
            gamma, beta = vector(Real, a[5] + e * a[6], columns), vector(Real, a[7] + e * a[8], columns)
            first, last = max(begin, e * rows), min(end, (e + 1) * rows)
            X, Y = rows_of(Real, a[0], first, last, columns), rows_of(Real, a[9], first, last, columns)
            for n in range(last - first):
                for j in range(columns):
                    Y[n, j] = (X[n, j] - mean[j]) * r[j] * gamma[j] + beta[j]

    return batch_normalize


@kernel
def _gradient_sums(Real: Any) -> Any:
    def batch_gradient_sums(a: Any, begin: int, end: int, step: int) -> None:
        rows, columns, chunks = a[7], a[8], a[9]
        total = (end // chunks + 1) * rows
        dL_dY, X = matrix(Real, a[0], total, columns), matrix(Real, a[1], total, columns)
        for item in range(begin, end):
            e, chunk = item // chunks, item % chunks
            mean, r = vector(Real, a[2] + e * a[3], columns), vector(Real, a[4] + e * a[5], columns)
            begins = a[6] + item * 2 * columns * itemsize(Real)
            of_gamma, of_beta = vector(Real, begins, columns), vector(Real, begins + columns * itemsize(Real), columns)
            of_gamma[:] = 0
            of_beta[:] = 0
            first = e * rows + chunk * CHUNK_ROWS
            for n in range(first, min(first + CHUNK_ROWS, (e + 1) * rows)):
                for j in range(columns):
                    of_gamma[j] += dL_dY[n, j] * (X[n, j] - mean[j]) * r[j]
                    of_beta[j] += dL_dY[n, j]

    return batch_gradient_sums


@kernel
def _gradients(Real: Any) -> Any:
    def batch_gradients(a: Any, begin: int, end: int, step: int) -> None:
        columns, chunks = a[5], a[6]
        for e in range(begin, end):
            partial = matrix(Real, a[0] + e * chunks * 2 * columns * itemsize(Real), 2 * chunks, columns)
            dL_dgamma, dL_dbeta = vector(Real, a[1] + e * a[2], columns), vector(Real, a[3] + e * a[4], columns)
            for j in range(columns):
                g, b = np.float64(0), np.float64(0)
                for c in range(chunks):
                    g += partial[2 * c, j]
                    b += partial[2 * c + 1, j]
                dL_dgamma[j] = g
                dL_dbeta[j] = b

    return batch_gradients


@kernel
def _input_gradient(Real: Any) -> Any:
    def batch_input_gradient(a: Any, begin: int, end: int, step: int) -> None:
        rows, columns, share = a[13], a[14], Real(number(a[15]))
        for e in range(begin // rows, (end - 1) // rows + 1):
            mean, r = vector(Real, a[2] + e * a[3], columns), vector(Real, a[4] + e * a[5], columns)
            gamma = vector(Real, a[6] + e * a[7], columns)
            of_gamma, of_beta = vector(Real, a[8] + e * a[9], columns), vector(Real, a[10] + e * a[11], columns)
            first, last = max(begin, e * rows), min(end, (e + 1) * rows)
            dL_dY, X = rows_of(Real, a[0], first, last, columns), rows_of(Real, a[1], first, last, columns)
            dL_dX = rows_of(Real, a[12], first, last, columns)
            for n in range(last - first):
                for j in range(columns):
                    X_hat = (X[n, j] - mean[j]) * r[j]
                    through = dL_dY[n, j] - share * (of_beta[j] + X_hat * of_gamma[j])
                    dL_dX[n, j] = gamma[j] * r[j] * through

    return batch_input_gradient


def statistics(
    X: Array,
    mean: Array,
    r: Array,
    running_mean: Array,
    running_variance: Array,
    momentum: float,
    epsilon: float,
    partial_sums: Array,
) -> None:
    """Launch; see `gpubp.ops.batch_norm.statistics`."""
    E, rows, columns = _sizes(X)
    Real, count = X.dtype.type, chunks(X.shape)
    work = NANOSECONDS * columns * min(rows, CHUNK_ROWS)
    cpu.launch(_sums(Real), (X, partial_sums, rows, columns, count), E * count, work)
    arrays = (partial_sums, X, *_with_strides(mean, r, running_mean, running_variance))
    sizes = (rows, columns, count, float(momentum), float(epsilon))
    cpu.launch(_moments(Real), (*arrays, *sizes), E, NANOSECONDS * count * columns)


def normalize(X: Array, mean: Array, r: Array, gamma: Array, beta: Array, Y: Array) -> Array:
    """Launch; see `gpubp.ops.batch_norm.normalize`."""
    E, rows, columns = _sizes(X)
    arguments = (X, *_with_strides(mean, r, gamma, beta), Y, rows, columns)
    cpu.launch(_normalize(X.dtype.type), arguments, E * rows if columns else 0, NANOSECONDS * columns)
    return Y


def gradients(
    dL_dY: Array, X: Array, mean: Array, r: Array, dL_dgamma: Array, dL_dbeta: Array, partial_sums: Array
) -> None:
    """Launch; see `gpubp.ops.batch_norm.gradients`."""
    E, rows, columns = _sizes(X)
    Real, count = X.dtype.type, chunks(X.shape)
    arguments = (dL_dY, X, *_with_strides(mean, r), partial_sums, rows, columns, count)
    work = NANOSECONDS * columns * min(rows, CHUNK_ROWS)
    cpu.launch(_gradient_sums(Real), arguments, E * count, work)
    arguments = (partial_sums, *_with_strides(dL_dgamma, dL_dbeta), columns, count)
    cpu.launch(_gradients(Real), arguments, E, NANOSECONDS * count * columns)


def input_gradient(
    dL_dY: Array,
    X: Array,
    mean: Array,
    r: Array,
    gamma: Array,
    dL_dgamma: Array,
    dL_dbeta: Array,
    dL_dX: Array,
    share: float,
) -> Array:
    """Launch; see `gpubp.ops.batch_norm.input_gradient`."""
    E, rows, columns = _sizes(X)
    arrays = (dL_dY, X, *_with_strides(mean, r, gamma, dL_dgamma, dL_dbeta), dL_dX)
    arguments = (*arrays, rows, columns, float(share))
    cpu.launch(_input_gradient(X.dtype.type), arguments, E * rows if columns else 0, NANOSECONDS * columns)
    return dL_dX


def _sizes(X: Array) -> tuple[int, int, int]:
    """Members, rows, columns."""
    return math.prod(X.shape[:-2]), X.shape[-2], X.shape[-1]


def _with_strides(*rows: Array) -> tuple[Any, ...]:
    """Each row (n,) or (E, n), followed by the bytes from one member's to the next."""
    return tuple(part for row in rows for part in (row, 0 if row.ndim == 1 else int(row.strides[0])))
