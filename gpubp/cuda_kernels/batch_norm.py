"""Batch normalisation on a device: see `gpubp.ops.batch_norm`, ``kernels/batch_norm.cu``."""

from __future__ import annotations

import math
from typing import Any

from gpubp import cuda
from gpubp.backend import Array
from gpubp.cuda_kernels.activation import _Launch
from gpubp.cuda_kernels.elementwise import are_plain
from gpubp.cuda_kernels.memory import GRID_LIMIT, c_type, is_rows_contiguous, member_stride
from gpubp.cuda_kernels.tiles import BLOCK_THREADS, BLOCKS, WARP, pack_width, row_tiles

ROWS_PER_THREAD = 8
"""Rows that a thread walks at least before a sum is split into one more chunk."""


def chunks(shape: tuple[int, ...]) -> int:
    """How many chunks of rows are summed apart: a function of the shape alone, so that sums repeat bit for bit."""
    *members, rows, columns = shape
    across, _, height = row_tiles(columns, 4)  # for float64 too: workspaces are declared before a dtype is known
    blocks = max(1, math.prod(members) * across)  # of one chunk
    return max(1, min(-(-rows // (ROWS_PER_THREAD * height)), BLOCKS // blocks))


def takes(matrices: tuple[Array, ...], rows: tuple[Array, ...]) -> bool:
    """Whether dtypes, shapes and strides fit the kernels: matrices (..., N, n) all, rows (..., n)."""
    first = matrices[0]
    return (
        first.ndim <= 3
        and are_plain(*matrices)
        and all(other.shape == first.shape for other in matrices)
        and all(row.shape == first.shape[:-2] + first.shape[-1:] for row in rows)
        and all(row.dtype == first.dtype and is_rows_contiguous(row) for row in rows)
    )


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
    (E, N, n), C, scalar = _sizes(X), chunks(X.shape), X.dtype.type
    if not E * n:
        return
    _sum("batch_sums", (X,), (partial_sums, E, N, n, C))
    rows = (mean, r, running_mean, running_variance)
    strides = map(member_stride, rows)
    numbers = (scalar(momentum), scalar(epsilon))
    _finish("batch_moments", X, (partial_sums, X, *rows, *strides, E, N, n, C, *numbers))


def normalize(X: Array, mean: Array, r: Array, gamma: Array, beta: Array, Y: Array) -> Array:
    """Launch; see `gpubp.ops.batch_norm.normalize`."""
    if Y.size:
        rows, launched = (mean, r, gamma, beta), _Launch(Y.shape, X, Y)
        name = launched.kernel("batch_normalize", c_type(Y.dtype, "batch_normalize"))
        launched.map("batch_norm", name, (X, *rows, Y), tuple(map(member_stride, rows)))
    return Y


def gradients(
    dL_dY: Array, X: Array, mean: Array, r: Array, dL_dgamma: Array, dL_dbeta: Array, partial_sums: Array
) -> None:
    """Launch; see `gpubp.ops.batch_norm.gradients`."""
    (E, N, n), C = _sizes(X), chunks(X.shape)
    if not E * n:
        return
    _sum("batch_gradient_sums", (dL_dY, X), (mean, r, partial_sums, E, N, n, C, member_stride(mean), member_stride(r)))
    strides = member_stride(dL_dgamma), member_stride(dL_dbeta)
    _finish("batch_gradients", X, (partial_sums, dL_dgamma, dL_dbeta, *strides, E, n, C))


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
    if dL_dX.size:
        rows, launched = (mean, r, gamma, dL_dgamma, dL_dbeta), _Launch(X.shape, dL_dY, X, dL_dX)
        name = launched.kernel("batch_input_gradient", c_type(X.dtype, "batch_input_gradient"))
        more = (*map(member_stride, rows), X.dtype.type(share))
        launched.map("batch_norm", name, (dL_dY, X, *rows, dL_dX), more)
    return dL_dX


def _sizes(X: Array) -> tuple[int, int, int]:
    """Members, rows, columns."""
    return math.prod(X.shape[:-2]), X.shape[-2], X.shape[-1]


def _sum(name: str, matrices: tuple[Array, ...], arguments: tuple[Any, ...]) -> None:
    """Launch a kernel that takes two sums of each chunk."""
    X = matrices[0]
    E, _, n = _sizes(X)
    across, width, height = row_tiles(n, X.itemsize)
    W = pack_width(*matrices, step=n)
    grid = across, min(chunks(X.shape), GRID_LIMIT), min(E, GRID_LIMIT)
    cuda.launch("batch_norm", f"{name}<{c_type(X.dtype, name)}, {W}>", grid, (width, height), (*matrices, *arguments))


def _finish(name: str, X: Array, arguments: tuple[Any, ...]) -> None:
    """Launch a kernel that adds chunks up, a column a thread of each row of a block."""
    E, _, n = _sizes(X)
    width = min(WARP, 1 << (n - 1).bit_length())
    grid = -(-n // width), 1, min(E, GRID_LIMIT)
    cuda.launch("batch_norm", f"{name}<{c_type(X.dtype, name)}>", grid, (width, BLOCK_THREADS // width), arguments)
