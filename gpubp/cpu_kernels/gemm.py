"""Matrix products by SciPy's BLAS, called without a detour through Python: see `gpubp.ops.gemm`."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba.extending import get_cython_function_address

from gpubp import cpu
from gpubp.backend import Array
from gpubp.cpu_kernels.activation import add_up
from gpubp.cpu_kernels.memory import call_gemm, kernel, matrix, vector

GRAIN = 16
"""Rows, or columns, of the result in a work item: a full vector register of float32."""
SMALL_RESULT = 128 * 128
"""Elements up to which a result is too small to be split between threads, ..."""
DEPTH = 512
"""... and its sum is split instead, into so many terms each, ..."""
MOST_PIECES = 32
"""... but not into more sums than this."""
SMALL_PRODUCT = 1_000_000
"""Multiplications up to which OpenBLAS computes without copying its factors first, ..."""
FEW = 32
"""... which doubles its speed where a factor has so few rows, or columns, that the copy outweighs the arithmetic."""
FLOPS_PER_NANOSECOND = 100
"""About what a core does, to tell work worth sharing between threads."""

_GEMM = {"f": "sgemm", "d": "dgemm"}


@kernel
def _matmul(Real: Any) -> Any:
    def matmul(a: Any, begin: int, end: int, step: int) -> None:
        by_rows, pieces, width = a[6], a[7], a[20]
        extent = a[3] if by_rows else a[4]
        for e in range(begin // pieces, (end - 1) // pieces + 1):
            first, last = max(begin - e * pieces, 0) * GRAIN, min((end - e * pieces) * GRAIN, extent)
            for start in range(first, last, width):
                size = min(width, last - start)
                A, B, C = a[0] + e * a[8], a[1] + e * a[9], a[2] + e * a[10] + start * a[17]
                # BLAS counts along columns first. What it sees is C.mT = B.mT @ A.mT.
                if by_rows:
                    matrices, sizes = (B, A + start * a[15], C), (a[4], size, a[5], a[14], a[12], a[18])
                else:
                    matrices, sizes = (B + start * a[16], A, C), (size, a[3], a[5], a[14], a[12], a[18])
                call_gemm(a[19], Real, (a[13], a[11]), sizes, matrices)

    return matmul


@kernel
def _matmul_by_depth(Real: Any) -> Any:
    def matmul_by_depth(a: Any, begin: int, end: int, step: int) -> None:
        M, N, K, pieces, depth = a[3], a[4], a[5], a[6], a[7]
        for item in range(begin, end):
            e, start = item // pieces, item % pieces * depth
            A, B, C = a[0] + e * a[8] + start * a[14], a[1] + e * a[9] + start * a[15], a[2] + item * a[16]
            call_gemm(a[17], Real, (a[13], a[11]), (N, M, min(depth, K - start), a[12], a[10], N), (B, A, C))

    return matmul_by_depth


@kernel
def _outer_product(Real: Any) -> Any:
    def outer_product(a: Any, begin: int, end: int, step: int) -> None:
        M, N = a[3], a[4]
        for e in range(begin // M, (end - 1) // M + 1):
            B = vector(Real, a[1] + e * a[6], N)
            first, last = max(begin, e * M), min(end, (e + 1) * M)
            C = matrix(Real, a[2] + e * a[7] + (first - e * M) * a[8], last - first, N)
            for i in range(last - first):
                x = vector(Real, a[0] + e * a[5] + (first - e * M + i) * a[9], 1)[0]
                for j in range(N):
                    C[i, j] = x * B[j]

    return outer_product


def takes(A: Array, B: Array, out: Array) -> bool:
    """Whether the arrays are of one real dtype, and each matrix lies in memory row by row or column by column."""
    return (
        A.dtype == B.dtype == out.dtype
        and out.dtype.char in _GEMM
        and all(map(cpu.is_native, (A, B, out)))
        and out.ndim <= 3
        and out.size > 0
        and A.shape[-1] > 0
        and (out.shape[-1] == 1 or out.strides[-1] == out.itemsize)
        and (out.shape[-2] == 1 or out.strides[-2] == out.itemsize * out.shape[-1])
        and all(_lies_close(array) for array in (A, B))
    )


def _lies_close(array: Array) -> bool:
    """Whether the rows, or else the columns, of each matrix are in one piece, one after the other."""
    (rows, columns), (down, right) = array.shape[-2:], array.strides[-2:]
    by_rows = (columns == 1 or right == array.itemsize) and (rows == 1 or down >= columns * array.itemsize)
    by_columns = (rows == 1 or down == array.itemsize) and (columns == 1 or right >= rows * array.itemsize)
    return by_rows or by_columns


def matmul(A: Array, B: Array, out: Array, precision: str) -> Array:
    """Launch; see `gpubp.ops.gemm.matmul`. Computed in the dtype of the arrays, whatever the precision."""
    (M, N), K, size = out.shape[-2:], A.shape[-1], out.itemsize
    if M * N <= SMALL_RESULT and K >= 2 * DEPTH:
        return _by_depth(A, B, out)
    if K == 1 and (N == 1 or B.strides[-1] == B.itemsize):
        return _outer(A, B, out)
    E = math.prod(out.shape[:-2])
    by_rows = M >= N
    pieces = -(-(M if by_rows else N) // GRAIN)
    A_transposed, lda = _layout(A)
    B_transposed, ldb = _layout(B)
    arguments = (
        *(A, B, out, M, N, K, by_rows, pieces),
        *(_member_stride(A), _member_stride(B), _member_stride(out)),
        *(A_transposed, lda, B_transposed, ldb),
        A.strides[-2],  # bytes to the next row of A,
        B.strides[-1],  # the next column of B,
        N * size if by_rows else size,  # and the next row, or column, of the result
        max(1, N),
        _gemm(out.dtype.char),
        _width(M, N, K, by_rows),
    )
    nanoseconds = 2 * M * N * K / pieces / FLOPS_PER_NANOSECOND
    cpu.launch(_matmul(out.dtype.type), arguments, E * pieces, nanoseconds, calls_blas=True)
    return out


def _width(M: int, N: int, K: int, by_rows: bool) -> int:
    """How many rows, or columns, of the result to give to BLAS at a time."""
    extent, other, few = (M, N, K) if by_rows else (N, M, M)
    if not 1 < few <= FEW:
        return extent
    return max(2 * GRAIN, SMALL_PRODUCT // (other * K) // (2 * GRAIN) * 2 * GRAIN)


def _outer(A: Array, B: Array, out: Array) -> Array:
    """A product of one column with one row, which BLAS computes at a tenth of the speed: dL_dW of a single example."""
    M, N = out.shape[-2:]
    strides = (_member_stride(A), _member_stride(B), _member_stride(out))
    arguments = (A, B, out, M, N, *strides, N * out.itemsize, A.strides[-2])
    cpu.launch(_outer_product(out.dtype.type), arguments, math.prod(out.shape[:-1]), 0.2 * N)
    return out


def _by_depth(A: Array, B: Array, out: Array) -> Array:
    """A product with a small result and a long sum, as a weight gradient over many examples: the sum is split."""
    (M, N), K, size = out.shape[-2:], A.shape[-1], out.itemsize
    E = math.prod(out.shape[:-2])
    depth = max(DEPTH, -(-K // MOST_PIECES))
    pieces = -(-K // depth)
    partial = np.empty((*out.shape[:-2], pieces, M * N), out.dtype)
    arguments = (
        *(A, B, partial, M, N, K, pieces, depth, _member_stride(A), _member_stride(B)),
        *(_layout(A)[1], _layout(A)[0], _layout(B)[1], _layout(B)[0]),
        A.strides[-1],  # bytes to the next column of A,
        B.strides[-2],  # and the next row of B
        M * N * size,
        _gemm(out.dtype.char),
    )
    nanoseconds = 2 * M * N * depth / FLOPS_PER_NANOSECOND
    cpu.launch(_matmul_by_depth(out.dtype.type), arguments, E * pieces, nanoseconds, calls_blas=True)
    add_up(partial, out, M * N, _member_stride(out))
    return out


def _layout(array: Array) -> tuple[bool, int]:
    """Whether a matrix lies in memory column by column, and how many elements apart its rows or columns begin."""
    (rows, columns), (down, right) = array.shape[-2:], array.strides[-2:]
    if (columns == 1 or right == array.itemsize) and (rows == 1 or down >= columns * array.itemsize):
        return False, columns if rows == 1 else down // array.itemsize
    return True, rows if columns == 1 else right // array.itemsize


def _member_stride(array: Array) -> int:
    return 0 if array.ndim == 2 else int(array.strides[0])


@functools.cache
def _gemm(character: str) -> int:
    return int(get_cython_function_address("scipy.linalg.cython_blas", _GEMM[character]))
