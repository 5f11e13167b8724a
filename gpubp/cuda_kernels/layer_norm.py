"""Layer normalisation and its backward: see `gpubp.ops.layer_norm`, ``kernels/layer_norm.cu``."""

from __future__ import annotations

import math
from typing import Any

from gpubp import cuda
from gpubp.backend import Array, array_module
from gpubp.cuda_kernels.losses import row_block
from gpubp.cuda_kernels.memory import (
    GRID_LIMIT,
    c_type,
    check_written,
    checked,
    member_stride,
    readable,
    rows_contiguous,
)
from gpubp.cuda_kernels.softmax import blocks
from gpubp.cuda_kernels.tiles import pack_width


def takes(Y: Array, rows: tuple[Array, ...], X: Array, other: Array) -> bool:
    """Whether there are kernels for these arrays: for all, and what does not fit is told at the launch."""
    return True


def layer_norm(
    X: Array, gamma: Array, beta: Array, epsilon: float, Y: Array, X_hat: Array, inverse_std: Array
) -> Array:
    """Launch; see `gpubp.ops.layer_norm.layer_norm`.

    Raises:
        ShapeError: The arrays do not fit each other, or one that is written is not contiguous.
    """
    xp, dtype = array_module(Y), Y.dtype
    X = readable(xp, "X", X, _shared_or_own(X, Y), dtype)
    check_written("X_hat", X_hat, X.shape, dtype)
    check_written("inverse_std", inverse_std, X.shape[:-1], dtype)
    check_written("Y", Y, Y.shape, dtype)
    gamma, beta = (_row(name, array, Y) for name, array in (("gamma", gamma), ("beta", beta)))
    strides = _stride(X, Y), member_stride(gamma), member_stride(beta)
    arrays = (X, gamma, beta, Y, X_hat, inverse_std)
    return _launch("layer_norm", arrays, (X, Y, X_hat), strides, (dtype.type(epsilon),))


def layer_norm_backward(dL_dY: Array, gamma: Array, X_hat: Array, inverse_std: Array, dL_dX: Array) -> Array:
    """Launch; see `gpubp.ops.layer_norm.layer_norm_backward`.

    Raises:
        ShapeError: The arrays do not fit each other, or dL_dX is not contiguous.
    """
    xp, dtype = array_module(dL_dX), dL_dX.dtype
    dL_dY = readable(xp, "dL_dY", dL_dY, dL_dX.shape, dtype)
    X_hat = readable(xp, "X_hat", X_hat, _shared_or_own(X_hat, dL_dX), dtype)
    inverse_std = readable(xp, "inverse_std", inverse_std, X_hat.shape[:-1], dtype)
    check_written("dL_dX", dL_dX, dL_dX.shape, dtype)
    gamma = _row("gamma", gamma, dL_dX)
    arrays = (dL_dY, gamma, X_hat, inverse_std, dL_dX)
    _launch("layer_norm_backward", arrays, (dL_dY, dL_dX, X_hat), (_stride(X_hat, dL_dX), member_stride(gamma)), ())
    return dL_dX


def _launch(
    kernel: str,
    arrays: tuple[Array, ...],
    matrices: tuple[Array, ...],
    strides: tuple[int, ...],
    more: tuple[Any, ...],
) -> Array:
    """Launch a kernel on rows; the second of the matrices has all of them, and is returned."""
    full = matrices[1]
    if full.size:
        *members, N, n = full.shape
        E, block = math.prod(members), row_block(n)
        name = f"{kernel}<{c_type(full.dtype, kernel)}, {pack_width(*matrices, step=n)}>"
        grid = blocks(N, block), min(E, GRID_LIMIT), 1
        cuda.launch("layer_norm", name, grid, block, (*arrays, E, N, n, *strides, *more))
    return full


def _shared_or_own(X: Array, Y: Array) -> tuple[int, ...]:
    """The shape that X must have: that of Y, or of one member's part of it."""
    shape: tuple[int, ...] = Y.shape
    return shape if X.ndim == len(shape) else shape[-2:]


def _stride(X: Array, Y: Array) -> int:
    """Elements from one member's matrix to the next; 0 where they share one."""
    return 0 if X.ndim < Y.ndim else int(X.shape[-2] * X.shape[-1])


def _row(name: str, row: Array, Y: Array) -> Array:
    """Gamma or beta, each row in one piece."""
    return rows_contiguous(array_module(Y), checked(name, row, (*Y.shape[:-2], Y.shape[-1]), Y.dtype))
