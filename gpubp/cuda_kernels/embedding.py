"""Lookups in a table, their backward, and columns that pass: see `gpubp.ops.embedding`, ``kernels/embedding.cu``."""

from __future__ import annotations

import math
from typing import Any

from gpubp import cuda
from gpubp.backend import Array, array_module
from gpubp.cuda_kernels.memory import GRID_LIMIT, c_type, check_written, checked, readable
from gpubp.cuda_kernels.tiles import BLOCK_THREADS, BLOCKS, WARP
from gpubp.errors import ShapeError


def chunks(shape: tuple[int, ...], table: tuple[int, int]) -> int:
    """How many chunks of rows are summed apart: a function of the shapes alone, so that sums repeat bit for bit.

    Args:
        shape: (..., N, n_out), that of dL_dY.
        table: (C, width), that of one member's table.
    """
    *members, N, _ = shape
    blocks = max(1, math.prod(members) * -(-table[0] // _block(table[1])[1]))  # of one chunk
    return max(1, min(-(-N // BLOCK_THREADS), BLOCKS // blocks))


def takes(X: Array, W: Array | None, Y: Array) -> bool:
    """Whether there are kernels for these arrays: for all, and what does not fit is told at the launch."""
    return True


def lookup(X: Array, column: int, W: Array, Y: Array, start: int) -> Array:
    """Launch; see `gpubp.ops.embedding.lookup`.

    Raises:
        ShapeError: The arrays do not fit each other, Y is not contiguous, or a member's table is not.
    """
    check_written("Y", Y, Y.shape, Y.dtype)
    X, table = _readable_inputs(X, Y), _table("W", W, Y)
    if Y.size:
        sizes = (*_sizes(X, Y, column, start), *table)
        cuda.launch("embedding", _kernel("lookup", Y), *_by_rows(Y, W.shape[-1]), (X, W, Y, *sizes))
    return Y


def lookup_backward(dL_dY: Array, start: int, X: Array, column: int, dL_dW: Array, partial_sums: Array) -> Array:
    """Launch; see `gpubp.ops.embedding.lookup_backward`.

    Raises:
        ShapeError: The arrays do not fit each other, or a member's dL_dW is not contiguous.
    """
    dL_dY = readable(array_module(dL_dY), "dL_dY", dL_dY, dL_dY.shape, dL_dW.dtype)
    X, (C, width, stride) = _readable_inputs(X, dL_dY), _table("dL_dW", dL_dW, dL_dY)
    E, count = math.prod(dL_dY.shape[:-2]), chunks(dL_dY.shape, (C, width))
    if not E:
        return dL_dW
    # A single chunk has nothing to add up: its sum goes to dL_dW at once.
    sums, sums_stride = (dL_dW, stride) if count == 1 else (partial_sums, count * C * width)
    block = _block(width)
    grid = -(-C // block[1]), min(count, GRID_LIMIT), min(E, GRID_LIMIT)
    sizes = (*_sizes(X, dL_dY, column, start), C, width, count, sums_stride)
    cuda.launch("embedding", _kernel("lookup_backward", dL_dY), grid, block, (dL_dY, X, sums, *sizes))
    if count > 1:
        across = min(WARP, 1 << (C * width - 1).bit_length())
        cuda.launch(
            "activation",
            _kernel("sum_partials", dL_dY),
            (-(-C * width // across), 1, min(E, GRID_LIMIT)),
            (across, BLOCK_THREADS // across),
            (sums, dL_dW, E, count, C * width, stride),
        )
    return dL_dW


def pass_columns(X: Array, column: int, width: int, Y: Array, start: int) -> Array:
    """Launch; see `gpubp.ops.embedding.pass_columns`.

    Raises:
        ShapeError: The arrays do not fit each other, or Y is not contiguous.
    """
    check_written("Y", Y, Y.shape, Y.dtype)
    X = _readable_inputs(X, Y)
    if Y.size:
        arguments = (X, Y, *_sizes(X, Y, column, start), width)
        cuda.launch("embedding", _kernel("pass_columns", Y), *_by_rows(Y, width), arguments)
    return Y


def _kernel(name: str, Y: Array) -> str:
    return f"{name}<{c_type(Y.dtype, name)}>"


def _block(width: int) -> tuple[int, int]:
    """Threads along a row of the table, and rows: of all BLOCK_THREADS."""
    across = min(WARP, 1 << (width - 1).bit_length())
    return across, BLOCK_THREADS // across


def _by_rows(Y: Array, width: int) -> tuple[tuple[int, int, int], tuple[int, int]]:
    """Grid and block of a kernel that writes `width` columns of each row of Y."""
    block, E = _block(width), math.prod(Y.shape[:-2])
    return (-(-Y.shape[-2] // block[1]), 1, min(E, GRID_LIMIT)), block


def _readable_inputs(X: Array, Y: Array) -> Array:
    """X, in one piece."""
    own = Y.shape[:-1] if X.ndim == Y.ndim else Y.shape[-2:-1]
    return readable(array_module(X), "X", X, (*own, X.shape[-1]), Y.dtype)


def _sizes(X: Array, Y: Array, column: int, start: int) -> tuple[int, ...]:
    """E, N, n_in, n_out, column, start, and elements from one member's X to the next."""
    X_stride = 0 if X.ndim < Y.ndim else X.shape[-2] * X.shape[-1]
    return math.prod(Y.shape[:-2]), Y.shape[-2], X.shape[-1], Y.shape[-1], column, start, X_stride


def _table(name: str, W: Any, Y: Array) -> tuple[int, int, int]:
    """Categories, width, and elements from one member's table to the next."""
    C, width = W.shape[-2:]
    checked(name, W, (*Y.shape[:-2], C, width), Y.dtype)
    members, gaps = W.ndim - 2, (width * W.itemsize, W.itemsize)
    if members > 1 or W.size == 0 or any(W.shape[-2 + k] > 1 and W.strides[-2 + k] != gaps[k] for k in (0, 1)):
        raise ShapeError(f"{name} {W.shape} with strides {W.strides}: each member's table must lie in one piece")
    return C, width, W.strides[0] // W.itemsize if members else 0
