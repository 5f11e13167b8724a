"""Matrix products by SciPy's BLAS, called without a detour through Python: see `gpubp.ops.gemm`."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numba.extending import get_cython_function_address, register_jitable

from gpubp import cpu
from gpubp.backend import Array
from gpubp.cpu_kernels.activation import add_up
from gpubp.cpu_kernels.memory import call_gemm, itemsize, kernel, matrix, rows_of, vector

GRAIN = 16
"""Rows, or columns, of the result in a work item: a full vector register of float32."""
SMALL_RESULT = 128 * 128
"""Elements up to which a result is too small to be split between threads, ..."""
DEPTH = 512
"""... and its sum is split instead, into so many terms each, ..."""
MOST_PIECES = 32
"""... but not into more sums than this."""
SMALL_PRODUCT = 1_000_000
"""Multiplications up to which OpenBLAS computes without copying its factors first (its ``interface/gemm.c``,
``SMALL_MATRIX_OPT``), which is faster than what it does with larger products. So these are cut into tiles: ..."""
TILE = 64, 64, 240
"""... of so many rows and columns of the result and terms of its sum, or more of one where there are few of another,
..."""
WITHOUT_COPIES = {"SkylakeX", "Cooperlake", "SapphireRapids"}
"""... on processors that it knows by these names, ..."""
MOST_FACTOR = 2**20
"""... with a second factor of so many elements at most, which the caches hold, and which does not lie transposed."""
WORTH_TURNING = 512, 128 * 128
"""Rows of a product from which on it pays to lay a second factor that lies transposed out anew, if that has so many
elements at most: OpenBLAS is good at larger ones as they are."""
FEW = 32
"""Elsewhere it pays where a factor has so few rows, or columns, that the copy outweighs the arithmetic: then the result
is cut into small products, of so many rows, or columns, at least."""
FLOPS_PER_NANOSECOND = 100
"""About what a core does, to tell work worth sharing between threads."""

_GEMM = {"f": "sgemm", "d": "dgemm"}


@register_jitable
def _in_tiles(Real: Any, gemm: int, a: Any, sizes: Any, matrices: Any) -> None:
    """``C = A @ B`` of sizes (M, N, K), matrices at addresses (A, B, C), tile by tile.

    ``a`` holds, from its begin, whether A is transposed and its leading dimension; the same of B; bytes from one row of
    A to the next, from one column, from one row of B, from one column; the same of C; the sizes of a tile.
    """
    M, N, K = sizes
    A, B, C = matrices
    for i in range(0, M, a[10]):
        for k in range(0, K, a[12]):
            for j in range(0, N, a[11]):
                # BLAS counts along columns first. What it sees is C.mT = B.mT @ A.mT.
                part = min(a[11], N - j), min(a[10], M - i), min(a[12], K - k), a[3], a[1], a[8]
                places = B + k * a[6] + j * a[7], A + i * a[4] + k * a[5], C + (i * a[8] + j) * a[9]
                call_gemm(gemm, Real, (a[2], a[0]), part, places, k > 0)


@kernel
def _matmul(Real: Any) -> Any:
    def matmul(a: Any, begin: int, end: int, step: int) -> None:
        M, N, K, by_rows, pieces = a[3], a[4], a[5], a[6], a[7]
        layout = vector(np.int64, a[12], LAYOUT)
        extent = M if by_rows else N
        for e in range(begin // pieces, (end - 1) // pieces + 1):
            first, last = max(begin - e * pieces, 0) * GRAIN, min((end - e * pieces) * GRAIN, extent)
            A, B, C = a[0] + e * a[8], a[1] + e * a[9], a[2] + e * a[10]
            if by_rows:
                matrices = A + first * layout[4], B, C + first * layout[8] * layout[9]
                _in_tiles(Real, a[11], layout, (last - first, N, K), matrices)
            else:
                matrices = A, B + first * layout[7], C + first * layout[9]
                _in_tiles(Real, a[11], layout, (M, last - first, K), matrices)

    return matmul


@kernel
def _matmul_by_depth(Real: Any) -> Any:
    def matmul_by_depth(a: Any, begin: int, end: int, step: int) -> None:
        M, N, K, pieces, depth = a[3], a[4], a[5], a[6], a[7]
        layout = vector(np.int64, a[11], LAYOUT)
        for item in range(begin, end):
            e, start = item // pieces, item % pieces * depth
            A, B = a[0] + e * a[8] + start * layout[5], a[1] + e * a[9] + start * layout[6]
            matrices = A, B, a[2] + item * M * N * layout[9]
            _in_tiles(Real, a[10], layout, (M, N, min(depth, K - start)), matrices)

    return matmul_by_depth


@kernel
def _turn(Real: Any) -> Any:
    def turn(a: Any, begin: int, end: int, step: int) -> None:
        rows, columns, apart = a[2], a[3], a[4]
        for e in range(begin // rows, (end - 1) // rows + 1):
            first, last = max(begin, e * rows), min(end, (e + 1) * rows)
            source = matrix(Real, a[0] + e * a[5], columns, apart)
            target = rows_of(
                Real, a[1] + e * rows * columns * itemsize(Real), first - e * rows, last - e * rows, columns
            )
            for i in range(last - first):
                for j in range(columns):
                    target[i, j] = source[j, first - e * rows + i]

    return turn


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
    (M, N), K = out.shape[-2:], A.shape[-1]
    if M * N <= SMALL_RESULT and K >= 2 * DEPTH:
        return _by_depth(A, B, out)
    if K == 1 and (N == 1 or B.strides[-1] == B.itemsize):
        return _outer(A, B, out)
    by_rows = M >= N
    pieces = -(-(M if by_rows else N) // GRAIN)
    if M >= WORTH_TURNING[0] and N * K <= WORTH_TURNING[1] and _layout(B)[0] and _has_small_kernels():
        B = _turned(B)
    strides = map(_member_stride, (A, B, out))
    layout = _layouts(A, B, out, _tile(M, N, K, _layout(B)[0]))
    arguments = (A, B, out, M, N, K, by_rows, pieces, *strides, _gemm(out.dtype.char), layout)
    nanoseconds = 2 * M * N * K / pieces / FLOPS_PER_NANOSECOND
    items = math.prod(out.shape[:-2]) * pieces
    cpu.launch(_matmul(out.dtype.type), arguments, items, nanoseconds, calls_blas=True)
    return out


def _tile(M: int, N: int, K: int, B_transposed: bool) -> tuple[int, int, int]:
    """How many rows and columns of the result, and terms of its sum, to give to BLAS at a time."""
    if not B_transposed and N * K <= MOST_FACTOR and _has_small_kernels():
        rows, columns, terms = TILE
        terms = -(-K // -(-K // terms))  # parts of about one size
        columns = min(N, max(columns, SMALL_PRODUCT // (rows * terms) // GRAIN * GRAIN))
        return max(rows, SMALL_PRODUCT // (columns * terms) // GRAIN * GRAIN), columns, terms
    extent, other, few = (M, N, K) if M >= N else (N, M, M)
    if 1 < few <= FEW:
        extent = max(FEW, SMALL_PRODUCT // (other * K) // FEW * FEW)
    return (extent, N, K) if M >= N else (M, extent, K)


@functools.cache
def _has_small_kernels() -> bool:
    return any(library.kernels in WITHOUT_COPIES for library in cpu.kernel_libraries())


LAYOUT = 13
"""How many numbers `_layouts` gives."""


def _layouts(A: Array, B: Array, out: Array, tile: tuple[int, int, int]) -> Array:
    """What `_in_tiles` takes."""
    leading = max(1, out.shape[-1])
    return np.array(
        [*_layout(A), *_layout(B), *A.strides[-2:], *B.strides[-2:], leading, out.itemsize, *tile], np.int64
    )


def _turned(B: Array) -> Array:
    """A copy of a matrix that lies column by column, row by row."""
    rows, columns = B.shape[-2:]
    turned = np.empty(B.shape, B.dtype)
    arguments = (B, turned, rows, columns, _layout(B)[1], _member_stride(B))
    cpu.launch(_turn(B.dtype.type), arguments, math.prod(B.shape[:-1]), float(columns))
    return turned


def _outer(A: Array, B: Array, out: Array) -> Array:
    """A product of one column with one row, which BLAS computes at a tenth of the speed: dL_dW of a single example."""
    M, N = out.shape[-2:]
    strides = (_member_stride(A), _member_stride(B), _member_stride(out))
    arguments = (A, B, out, M, N, *strides, N * out.itemsize, A.strides[-2])
    cpu.launch(_outer_product(out.dtype.type), arguments, math.prod(out.shape[:-1]), 0.2 * N)
    return out


def _by_depth(A: Array, B: Array, out: Array) -> Array:
    """A product with a small result and a long sum, as a weight gradient over many examples: the sum is split."""
    (M, N), K = out.shape[-2:], A.shape[-1]
    E = math.prod(out.shape[:-2])
    depth = max(DEPTH, -(-K // MOST_PIECES))
    pieces = -(-K // depth)
    partial = np.empty((*out.shape[:-2], pieces, M * N), out.dtype)
    layout = _layouts(A, B, out, _tile(M, N, depth, _layout(B)[0]))
    strides = map(_member_stride, (A, B))
    arguments = (A, B, partial, M, N, K, pieces, depth, *strides, _gemm(out.dtype.char), layout)
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
