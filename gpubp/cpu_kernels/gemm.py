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
"""Multiplications up to which OpenBLAS computes without copying its factors first, where it has kernels for that: see
``SMALL_MATRIX_OPT`` in its ``interface/gemm.c``, and ``sgemm_small_kernel_permit_skylakex.c``. Larger products are cut
into tiles that are so small, where that was measured to be faster: up to 1.4 times with many rows, 6 times with few."""
WITH_SMALL_KERNELS = {"skylakex", "cooperlake", "sapphirerapids"}
"""The processors that it has them for, by its own names: those with AVX-512, of AMD too."""
TILE_ROWS, TILE_COLUMNS, TILE_TERMS = 64, 64, 240
"""Rows and columns of the result in a tile, and terms of its sum; more of one where there are few of another."""
NEAR_ROWS, NEAR_FACTOR = 2048, 2**22
"""Bytes of a row of the second factor, and of all of it, up to which tiles of many rows are faster: each of them reads
it anew, row after row. BLAS's own copy of it is in one piece."""
TURNED_ELEMENTS, TURNED_TERMS, LEAST_TURNED_TERMS = 1200, 833, 64
"""Elements of a result in a tile, and terms of its sum, where the second factor lies transposed: OpenBLAS refuses more
elements, and more terms would be no small product. Fewer terms than the least are no faster so, ..."""
TERMS_TO_ROWS = 2
"""... nor are fewer than so many for each row of the result."""
LEAST_ROWS_TO_TURN, MOST_ELEMENTS_TO_TURN = 512, 128 * 128
"""Rows of a result from which on it pays to lay a second factor that lies transposed out anew, and the elements that
this has at most: OpenBLAS is good at larger ones as they are."""
FLOPS_PER_NANOSECOND = 100
"""About what a core does, to tell work worth sharing between threads."""

_GEMM = {"f": "sgemm", "d": "dgemm"}

LAYOUT = 14
A_TURNED, A_LEADING, B_TURNED, B_LEADING, C_LEADING, *_BYTES = range(LAYOUT)
A_DOWN, A_RIGHT, B_DOWN, B_RIGHT, C_DOWN, ITEMSIZE, ROWS, COLUMNS, TERMS = _BYTES
"""Where `_layouts` has what: whether a matrix lies transposed, and its leading dimension, in elements, as BLAS takes
them; bytes to the next row and to the next column; the sizes of a tile."""


@register_jitable
def _in_tiles(Real: Any, gemm: int, a: Any, sizes: Any, matrices: Any) -> None:
    """``C = A @ B``, (M, K) @ (K, N) -> (M, N), tile by tile.

    Args:
        Real: NumPy scalar type of the elements.
        gemm: Address of ``sgemm`` or ``dgemm``.
        a: What `_layouts` gives.
        sizes: (M, N, K).
        matrices: Addresses of A, B and C.
    """
    M, N, K = sizes
    A, B, C = matrices
    for i in range(0, M, a[ROWS]):
        for k in range(0, K, a[TERMS]):
            for j in range(0, N, a[COLUMNS]):
                tile = min(a[COLUMNS], N - j), min(a[ROWS], M - i), min(a[TERMS], K - k)
                places = (
                    B + k * a[B_DOWN] + j * a[B_RIGHT],
                    A + i * a[A_DOWN] + k * a[A_RIGHT],
                    C + i * a[C_DOWN] + j * a[ITEMSIZE],
                )
                # BLAS counts along columns first. What it sees is C.mT = B.mT @ A.mT.
                strides = a[B_LEADING], a[A_LEADING], a[C_LEADING]
                call_gemm(gemm, Real, (a[B_TURNED], a[A_TURNED]), tile + strides, places, k > 0)


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
                matrices = A + first * layout[A_DOWN], B, C + first * layout[C_DOWN]
                _in_tiles(Real, a[11], layout, (last - first, N, K), matrices)
            else:
                matrices = A, B + first * layout[B_RIGHT], C + first * layout[ITEMSIZE]
                _in_tiles(Real, a[11], layout, (M, last - first, K), matrices)

    return matmul


@kernel
def _matmul_by_depth(Real: Any) -> Any:
    def matmul_by_depth(a: Any, begin: int, end: int, step: int) -> None:
        M, N, K, pieces, depth = a[3], a[4], a[5], a[6], a[7]
        layout = vector(np.int64, a[11], LAYOUT)
        for item in range(begin, end):
            e, start = item // pieces, item % pieces * depth
            A, B = a[0] + e * a[8] + start * layout[A_RIGHT], a[1] + e * a[9] + start * layout[B_DOWN]
            matrices = A, B, a[2] + item * M * layout[C_DOWN]
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
    if M >= LEAST_ROWS_TO_TURN and N * K <= MOST_ELEMENTS_TO_TURN and _layout(B)[0] and _has_small_kernels():
        B = _turned(B)
    strides = map(_member_stride, (A, B, out))
    layout = _layouts(A, B, out, K)
    arguments = (A, B, out, M, N, K, by_rows, pieces, *strides, _gemm(out.dtype.char), layout)
    nanoseconds = 2 * M * N * K / pieces / FLOPS_PER_NANOSECOND
    items = math.prod(out.shape[:-2]) * pieces
    cpu.launch(_matmul(out.dtype.type), arguments, items, nanoseconds, calls_blas=True)
    return out


def _layouts(A: Array, B: Array, out: Array, terms: int) -> Array:
    """What `_in_tiles` takes, for sums of so many terms."""
    (M, N), (A_turned, A_leading), (B_turned, B_leading) = out.shape[-2:], _layout(A), _layout(B)
    tile = _tile(M, N, terms, A_turned, B_turned, out.itemsize)
    leading = A_turned, A_leading, B_turned, B_leading, max(1, N)
    return np.array([*leading, *A.strides[-2:], *B.strides[-2:], N * out.itemsize, out.itemsize, *tile], np.int64)


def _tile(M: int, N: int, K: int, A_turned: bool, B_turned: bool, itemsize: int) -> tuple[int, int, int]:
    """How many rows and columns of a result (M, N), and of the K terms of its sum, to give to BLAS at a time."""
    whole = M, N, K
    if not _has_small_kernels() or (A_turned and B_turned):
        return whole
    if B_turned:
        if M > TILE_ROWS or K < max(LEAST_TURNED_TERMS, TERMS_TO_ROWS * M):
            return whole
        return M, TURNED_ELEMENTS // M // GRAIN * GRAIN, _part(K, TURNED_TERMS)
    is_near = N * itemsize <= NEAR_ROWS and K * N * itemsize <= NEAR_FACTOR
    if M * N * K <= SMALL_PRODUCT or (M > TILE_ROWS and not is_near):
        return whole
    rows, terms = min(M, TILE_ROWS), _part(K, TILE_TERMS)
    columns = min(N, max(TILE_COLUMNS, SMALL_PRODUCT // (rows * terms) // GRAIN * GRAIN))
    return max(rows, SMALL_PRODUCT // (columns * terms) // GRAIN * GRAIN), columns, terms


def _part(size: int, most: int) -> int:
    """The size of parts of about one size, of which none is larger than the most."""
    return -(-size // -(-size // most))


@functools.cache
def _has_small_kernels() -> bool:
    names = [(library.architecture or "").lower() for library in cpu.kernel_libraries()]
    return bool(names) and all(name in WITH_SMALL_KERNELS for name in names)


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
    layout = _layouts(A, B, out, depth)
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
