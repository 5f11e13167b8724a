"""Bias plus activation, and its backward with the column sum, each in one pass: see `gpubp.ops.activation`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gpubp import cpu
from gpubp.backend import Array
from gpubp.cpu_kernels.functions import BY_NAME, derivative, evaluate
from gpubp.cpu_kernels.memory import kernel, matrix, number, part, rows_of, vector

CHUNK_ROWS = 128
"""Rows that are summed one after the other; the sums of the chunks are added up afterwards."""
NANOSECONDS = 0.3
"""About what an element takes, to tell work worth sharing between threads."""


def takes(function: Any, Y: Array, row: Array | None, *others: Array) -> bool:
    """Whether there is a kernel for this activation, and for dtype, shapes and strides of these arrays.

    Args:
        function: The activation.
        Y: (..., N, n).
        row: (..., n), a bias or its gradient, or None.
        others: Of the shape of Y.
    """
    return (
        function.functor in BY_NAME
        and cpu.is_plain(Y, *others)
        and all(other.shape == Y.shape for other in others)
        and (row is None or takes_row(Y, row))
    )


def takes_row(Y: Array, row: Array) -> bool:
    """Whether dtype, shapes and strides of Y (..., N, n) and of a bias or its gradient (..., n) fit the kernels."""
    return cpu.is_plain(Y) and cpu.has_plain_rows(row, Y) and row.shape == Y.shape[:-2] + Y.shape[-1:]


def takes_statistics(X: Array, mean: Array, scale: Array, Y: Array) -> bool:
    """Whether dtype, shapes and strides fit the kernel: X, Y (..., N, n), mean and scale (n,) or (..., n)."""
    fits = mean.shape in (X.shape[-1:], X.shape[:-2] + X.shape[-1:]) and mean.shape == scale.shape
    return cpu.is_plain(X, mean, scale, Y) and fits and X.shape == Y.shape


def takes_product(A: Array, B: Array, row: Array) -> bool:
    """Whether dtype, shapes and strides of A (..., N, n), B (the same, or (N, n)) and their sum (..., n) fit."""
    return takes_row(A, row) and cpu.is_plain(A, B) and B.shape in (A.shape, A.shape[-2:])


@kernel
def _bias_activation(F: Any, Real: Any) -> Any:
    def bias_activation(a: Any, begin: int, end: int, step: int) -> None:
        rows, columns = a[3], a[4]
        f = F(Real(number(a[6])))
        for e in range(begin // rows, (end - 1) // rows + 1):
            b = vector(Real, a[1] + e * a[5], columns)
            first, last = max(begin, e * rows), min(end, (e + 1) * rows)
            Z, Y = rows_of(Real, a[0], first, last, columns), rows_of(Real, a[2], first, last, columns)
            if a[7]:  # the derivative needs Z + b
                for n in range(last - first):
                    for j in range(columns):
                        z = Z[n, j] + b[j]
                        Z[n, j] = z
                        Y[n, j] = evaluate(f, z)
            elif a[0] == a[2]:  # in place: only a name that is the same lets the compiler vectorise
                for n in range(last - first):
                    for j in range(columns):
                        Y[n, j] = evaluate(f, Y[n, j] + b[j])
            else:
                for n in range(last - first):
                    for j in range(columns):
                        Y[n, j] = evaluate(f, Z[n, j] + b[j])

    return bias_activation


@kernel
def _activation(F: Any, Real: Any) -> Any:
    def activation(a: Any, begin: int, end: int, step: int) -> None:
        f = F(Real(number(a[2])))
        Z, Y = part(Real, a[0], begin, end), part(Real, a[1], begin, end)
        if a[0] == a[1]:
            for n in range(end - begin):
                Y[n] = evaluate(f, Y[n])
        else:
            for n in range(end - begin):
                Y[n] = evaluate(f, Z[n])

    return activation


@kernel
def _standardize(Real: Any) -> Any:
    def standardize(a: Any, begin: int, end: int, step: int) -> None:
        rows, columns = a[4], a[5]
        for e in range(begin // rows, (end - 1) // rows + 1):
            mean, scale = vector(Real, a[1] + e * a[6], columns), vector(Real, a[2] + e * a[6], columns)
            first, last = max(begin, e * rows), min(end, (e + 1) * rows)
            X, Y = rows_of(Real, a[0], first, last, columns), rows_of(Real, a[3], first, last, columns)
            for n in range(last - first):
                for j in range(columns):
                    Y[n, j] = (X[n, j] - mean[j]) / scale[j]

    return standardize


@kernel
def _activation_backward(F: Any, Real: Any) -> Any:
    def activation_backward(a: Any, begin: int, end: int, step: int) -> None:
        rows, columns, chunks = a[4], a[5], a[6]
        f = F(Real(number(a[8])))
        total = (end // chunks + 1) * rows
        dL_dY, saved = matrix(Real, a[0], total, columns), matrix(Real, a[1], total, columns)
        dL_dZ = matrix(Real, a[2], total, columns)
        for item in range(begin, end):  # a chunk of rows of one member
            e, chunk = item // chunks, item % chunks
            sums = vector(Real, a[3] + (e * chunks + chunk) * a[7], columns)
            sums[:] = 0
            first = e * rows + chunk * CHUNK_ROWS
            for n in range(first, min(first + CHUNK_ROWS, (e + 1) * rows)):
                if a[0] == a[2]:
                    for j in range(columns):
                        d = dL_dZ[n, j] * derivative(f, saved[n, j])
                        dL_dZ[n, j] = d
                        sums[j] += d
                else:
                    for j in range(columns):
                        d = dL_dY[n, j] * derivative(f, saved[n, j])
                        dL_dZ[n, j] = d
                        sums[j] += d

    return activation_backward


@kernel
def _derivative_product(F: Any, Real: Any) -> Any:
    def derivative_product(a: Any, begin: int, end: int, step: int) -> None:
        f = F(Real(number(a[3])))
        dL_dY, saved = part(Real, a[0], begin, end), part(Real, a[1], begin, end)
        dL_dZ = part(Real, a[2], begin, end)
        if a[0] == a[2]:
            for n in range(end - begin):
                dL_dZ[n] = dL_dZ[n] * derivative(f, saved[n])
        else:
            for n in range(end - begin):
                dL_dZ[n] = dL_dY[n] * derivative(f, saved[n])

    return derivative_product


@kernel
def _column_sums(Real: Any) -> Any:
    def column_sums(a: Any, begin: int, end: int, step: int) -> None:
        rows, columns, chunks = a[2], a[3], a[4]
        X = matrix(Real, a[0], (end // chunks + 1) * rows, columns)
        for item in range(begin, end):
            e, chunk = item // chunks, item % chunks
            sums = vector(Real, a[1] + (e * chunks + chunk) * a[5], columns)
            sums[:] = 0
            first = e * rows + chunk * CHUNK_ROWS
            for n in range(first, min(first + CHUNK_ROWS, (e + 1) * rows)):
                for j in range(columns):
                    sums[j] += X[n, j]

    return column_sums


@kernel
def _product_sums(Real: Any) -> Any:
    def product_sums(a: Any, begin: int, end: int, step: int) -> None:
        rows, columns, chunks = a[3], a[4], a[5]
        total = (end // chunks + 1) * rows
        A, B = matrix(Real, a[0], total, columns), matrix(Real, a[1], total, columns)
        for item in range(begin, end):
            e, chunk = item // chunks, item % chunks
            sums = vector(Real, a[2] + (e * chunks + chunk) * a[6], columns)
            sums[:] = 0
            first, back = e * rows + chunk * CHUNK_ROWS, e * a[7]
            for n in range(first, min(first + CHUNK_ROWS, (e + 1) * rows)):
                for j in range(columns):
                    sums[j] += A[n, j] * B[n - back, j]

    return product_sums


@kernel
def _sum_chunks(Real: Any) -> Any:
    def sum_chunks(a: Any, begin: int, end: int, step: int) -> None:
        chunks, columns = a[2], a[3]
        partial = matrix(Real, a[0], end * chunks, columns)
        for e in range(begin, end):
            sums = vector(Real, a[1] + e * a[4], columns)
            sums[:] = 0
            for chunk in range(e * chunks, (e + 1) * chunks):
                for j in range(columns):
                    sums[j] += partial[chunk, j]

    return sum_chunks


def chunks(shape: tuple[int, ...]) -> int:
    """How many chunks of rows of a matrix (..., N, n) are summed apart."""
    return max(1, -(-shape[-2] // CHUNK_ROWS))


def bias_activation(function: Any, Z: Array, b: Array | None, Y: Array) -> Array:
    """Launch; see `gpubp.ops.activation.bias_activation`."""
    F, Real = BY_NAME[function.functor], Y.dtype.type
    if b is None:
        cpu.launch(_activation(F, Real), (Z, Y, function.parameter), Y.size, NANOSECONDS)
        return Y
    _add_bias(_bias_activation(F, Real), Z, b, Y, function.parameter, function.derivative_of == "X")
    return Y


def add_bias(Y: Array, b: Array) -> Array:
    """Launch; see `gpubp.ops.rows.add_bias`."""
    _add_bias(_bias_activation(BY_NAME["Identity"], Y.dtype.type), Y, b, Y, 0.0, False)
    return Y


def standardize(X: Array, mean: Array, scale: Array, Y: Array) -> Array:
    """Launch; see `gpubp.ops.rows.standardize`."""
    rows, columns = Y.shape[-2:]
    arguments = (X, mean, scale, Y, rows, columns, _stride(mean))
    cpu.launch(_standardize(Y.dtype.type), arguments, Y.size // max(1, columns), NANOSECONDS * columns)
    return Y


def _add_bias(compiled: Any, Z: Array, b: Array, Y: Array, parameter: float, keeps_sum: bool) -> None:
    rows, columns = Y.shape[-2:]
    arguments = (Z, b, Y, rows, columns, _stride(b), parameter, int(keeps_sum))
    cpu.launch(compiled, arguments, Y.size // max(1, columns), NANOSECONDS * columns)


def activation_backward(
    function: Any, dL_dY: Array, saved: Array, dL_dZ: Array, dL_db: Array | None, workspace: Mapping[str, Array]
) -> Array:
    """Launch; see `gpubp.ops.activation.activation_backward`."""
    F, Real = BY_NAME[function.functor], dL_dZ.dtype.type
    if dL_db is None:
        arguments = (dL_dY, saved, dL_dZ, function.parameter)
        cpu.launch(_derivative_product(F, Real), arguments, dL_dZ.size, NANOSECONDS)
    else:
        compiled = _activation_backward(F, Real)
        _summed(compiled, (dL_dY, saved, dL_dZ), dL_dZ, dL_db, workspace["partial_sums"], (function.parameter,))
    return dL_dZ


def column_sum(X: Array, out: Array, partial_sums: Array) -> Array:
    """Launch; see `gpubp.ops.rows.column_sum`."""
    return _summed(_column_sums(X.dtype.type), (X,), X, out, partial_sums, ())


def product_sum(A: Array, B: Array, out: Array, partial_sums: Array) -> Array:
    """Launch; see `gpubp.ops.rows.product_sum`. A B that members share is read anew for each: they go back in it."""
    back = 0 if B.ndim == A.ndim else B.shape[-2]
    return _summed(_product_sums(A.dtype.type), (A, B), A, out, partial_sums, (back,))


def _summed(
    compiled: Any, arrays: tuple[Array, ...], X: Array, out: Array, partial_sums: Array, more: tuple[float, ...]
) -> Array:
    """Launch a kernel that sums the columns of each chunk of X (..., N, n), then add the chunks up in `out`."""
    rows, columns = X.shape[-2:]
    E, count = math.prod(X.shape[:-2]), chunks(X.shape)
    sums, stride = (out, _stride(out)) if count == 1 else (partial_sums, columns * X.itemsize)
    arguments = (*arrays, sums, rows, columns, count, stride, *more)
    cpu.launch(compiled, arguments, E * count, NANOSECONDS * columns * min(rows, CHUNK_ROWS))
    if count > 1:
        add_up(partial_sums, out, columns, _stride(out))
    return out


def add_up(partial: Array, out: Array, columns: int, stride: int) -> None:
    """Launch: ``out = partial.sum(axis=-2)``, (..., C, columns) -> (..., columns), in order.

    Args:
        partial: The sums of C chunks.
        out: The result, `columns` elements a member.
        columns: How many there are.
        stride: Bytes from one member's result to the next.
    """
    E, count = math.prod(partial.shape[:-2]), partial.shape[-2]
    cpu.launch(_sum_chunks(out.dtype.type), (partial, out, count, columns, stride), E, NANOSECONDS * count * columns)


def _stride(array: Array) -> int:
    """Bytes from one member's row to the next in an array (n,) or (E, n)."""
    return 0 if array.ndim == 1 else int(array.strides[0])
