"""The softmax of each row and its backward in one pass each: see `gpubp.ops.softmax`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from gpubp import cpu
from gpubp.backend import Array
from gpubp.cpu_kernels.losses import CHUNK_ROWS, LANES, NARROW, softmax_row, softmax_side_by_side
from gpubp.cpu_kernels.memory import kernel, rows_of


@register_jitable
def row_dot(A: Any, B: Any, lanes: Any) -> Any:
    """The sum of A * B, lane by lane, as additions in a row would wait for each other; `lanes` (LANES,) is scratch."""
    whole = A.size // LANES * LANES
    lanes[:] = 0
    for k in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += A[k + lane] * B[k + lane]
    for k in range(whole, A.size):
        lanes[0] += A[k] * B[k]
    return lanes.sum()


@kernel
def _softmax(Real: Any) -> Any:
    def softmax(a: Any, begin: int, end: int, step: int) -> None:
        rows, n = a[2], a[3]
        scratch, top, total = (
            np.empty(CHUNK_ROWS * NARROW, Real),
            np.empty(CHUNK_ROWS, Real),
            np.empty(CHUNK_ROWS, Real),
        )
        lanes = np.empty((2, LANES), Real)
        for item in range(begin, end):  # a chunk of rows
            first, last = item * CHUNK_ROWS, min((item + 1) * CHUNK_ROWS, rows)
            X, Y = rows_of(Real, a[0], first, last, n), rows_of(Real, a[1], first, last, n)
            if n <= NARROW:
                softmax_side_by_side(X, Y, scratch[: n * (last - first)].reshape(n, last - first), top, total)
            else:
                for k in range(last - first):
                    softmax_row(X[k], Y[k], lanes[0], lanes[1])

    return softmax


@kernel
def _softmax_backward(Real: Any) -> Any:
    def softmax_backward(a: Any, begin: int, end: int, step: int) -> None:
        rows, n = a[3], a[4]
        lanes = np.empty(LANES, Real)
        first, last = begin * CHUNK_ROWS, min(end * CHUNK_ROWS, rows)
        dL_dY, Y = rows_of(Real, a[0], first, last, n), rows_of(Real, a[1], first, last, n)
        dL_dX = rows_of(Real, a[2], first, last, n)
        for k in range(last - first):
            dot = row_dot(dL_dY[k], Y[k], lanes)
            if a[0] == a[2]:  # in place: only a name that is the same lets the compiler vectorise
                for j in range(n):
                    dL_dX[k, j] = Y[k, j] * (dL_dX[k, j] - dot)
            else:
                for j in range(n):
                    dL_dX[k, j] = Y[k, j] * (dL_dY[k, j] - dot)

    return softmax_backward


def takes(X: Array, *others: Array) -> bool:
    """Whether dtype, shapes and strides of these arrays (..., N, n) fit the kernels."""
    return cpu.is_plain(X, *others) and X.size > 0 and all(other.shape == X.shape for other in others)


def softmax(X: Array, Y: Array) -> Array:
    """Launch; see `gpubp.ops.softmax.softmax`."""
    _launch(_softmax(Y.dtype.type), (X, Y), Y.shape, 3.0)
    return Y


def softmax_backward(dL_dY: Array, Y: Array, dL_dX: Array) -> Array:
    """Launch; see `gpubp.ops.softmax.softmax_backward`."""
    _launch(_softmax_backward(Y.dtype.type), (dL_dY, Y, dL_dX), Y.shape, 0.6)
    return dL_dX


def _launch(compiled: Any, arrays: tuple[Array, ...], shape: tuple[int, ...], nanoseconds: float) -> None:
    n = shape[-1]
    rows = arrays[0].size // n
    cpu.launch(compiled, (*arrays, rows, n), -(-rows // CHUNK_ROWS), nanoseconds * n * min(rows, CHUNK_ROWS))
