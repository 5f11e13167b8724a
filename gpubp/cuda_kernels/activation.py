"""Bias plus activation, its backward with the column sum, and what is the same for every row.

See `gpubp.ops.activation` and `gpubp.ops.rows`, ``kernels/activation.cu`` and ``kernels/rows.cu``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gpubp import cuda
from gpubp.backend import Array, array_module
from gpubp.cuda_kernels.memory import (
    C_TYPES,
    GRID_LIMIT,
    c_type,
    check_written,
    checked,
    is_rows_contiguous,
    member_stride,
    pointer,
    readable,
    rows_contiguous,
)
from gpubp.cuda_kernels.tiles import (
    BLOCK_THREADS,
    BLOCKS,
    PACK_BYTES,
    WARP,
    are_aligned,
    blocks_down,
    tiles,
)
from gpubp.errors import ShapeError

BANDS_PER_THREAD = 8
"""Bands that a thread walks at least before a column sum is split into one more chunk."""


def chunks(shape: tuple[int, ...]) -> int:
    """How many chunks of rows are summed apart: a function of the shape alone, so that sums repeat bit for bit."""
    *members, rows, columns = shape
    tile = tiles(columns, 4)  # for float64 too: workspaces are declared before a dtype is known
    blocks = max(1, math.prod(members) * tile.across)  # of one chunk
    bands = -(-rows // tile.joined)
    return max(1, min(-(-bands // (BANDS_PER_THREAD * tile.height)), BLOCKS // blocks))


def takes(function: Any, Y: Array, row: Array | None, *others: Array) -> bool:
    """Whether there is a kernel for this activation; the arrays are looked at when it is launched."""
    return function.functor is not None


def takes_row(Y: Array, row: Array) -> bool:
    """Whether dtype, shapes and strides of Y (..., N, n) and of a bias or its gradient (..., n) fit the kernels."""
    fits = row.shape == Y.shape[:-2] + Y.shape[-1:] and is_rows_contiguous(row)
    return fits and _are_plain(Y) and row.dtype == Y.dtype


def takes_statistics(X: Array, mean: Array, scale: Array, Y: Array) -> bool:
    """Whether dtype, shapes and strides fit the kernel: X, Y (..., N, n), mean and scale (n,) or (..., n)."""
    fits = mean.shape in (X.shape[-1:], X.shape[:-2] + X.shape[-1:]) and mean.shape == scale.shape
    return fits and X.shape == Y.shape and _are_plain(X, mean, scale, Y)


def takes_product(A: Array, B: Array, row: Array) -> bool:
    """Whether dtype, shapes and strides of A (..., N, n), B (the same, or (N, n)) and their sum (..., n) fit."""
    return takes_row(A, row) and _are_plain(A, B) and B.shape in (A.shape, A.shape[-2:])


def _are_plain(*arrays: Array) -> bool:
    """Whether the arrays are C-contiguous, and all float32 or all float64."""
    dtype = arrays[0].dtype
    return dtype.name in C_TYPES and all(array.flags.c_contiguous and array.dtype == dtype for array in arrays)


def bias_activation(function: Any, Z: Array, b: Array | None, Y: Array) -> Array:
    """Launch; see `gpubp.ops.activation.bias_activation`.

    Raises:
        ShapeError: Z, b and Y do not fit each other, or one that is written is not contiguous.
    """
    xp = array_module(Y)
    *members, _, columns = Y.shape
    if b is not None and function.derivative_of == "X":
        check_written("Z", Z, Y.shape, Y.dtype)
    Z = readable(xp, "Z", Z, Y.shape, Y.dtype)
    check_written("Y", Y, Y.shape, Y.dtype)
    if b is not None:
        b = rows_contiguous(xp, checked("b", b, (*members, columns), Y.dtype))
    if Y.size:
        launched = _Launch(Y.shape if b is not None else _flat(Y), Z, Y)
        name = launched.kernel("bias_activation", _functor(function.functor, Y.dtype))
        parameter = Y.dtype.type(function.parameter)
        launched.map("activation", name, (Z, pointer(b), Y), (member_stride(b), parameter))
    return Y


def add_bias(Y: Array, b: Array) -> Array:
    """Launch; see `gpubp.ops.rows.add_bias`."""
    if Y.size:
        launched = _Launch(Y.shape, Y)
        name = launched.kernel("bias_activation", _functor("Identity", Y.dtype))
        launched.map("activation", name, (Y, b, Y), (member_stride(b), Y.dtype.type(0)))
    return Y


def standardize(X: Array, mean: Array, scale: Array, Y: Array) -> Array:
    """Launch; see `gpubp.ops.rows.standardize`."""
    if Y.size:
        launched = _Launch(Y.shape, X, Y)
        name = launched.kernel("standardize", c_type(Y.dtype, "standardize"))
        launched.map("rows", name, (X, mean, scale, Y), (member_stride(mean),))
    return Y


def activation_backward(
    function: Any,
    dL_dY: Array,
    saved: Array,
    dL_dZ: Array,
    dL_db: Array | None,
    workspace: Mapping[str, Array],
) -> Array:
    """Launch; see `gpubp.ops.activation.activation_backward`.

    Raises:
        ShapeError: The arrays do not fit each other, or one that is written is not contiguous.
    """
    xp, shape, dtype = array_module(dL_dZ), dL_dZ.shape, dL_dZ.dtype
    *members, _, columns = shape
    dL_dY, saved = (readable(xp, name, array, shape, dtype) for name, array in (("dL_dY", dL_dY), ("saved", saved)))
    check_written("dL_dZ", dL_dZ, shape, dtype)
    if dL_db is not None and not is_rows_contiguous(checked("dL_db", dL_db, (*members, columns), dtype)):
        raise ShapeError(f"dL_db with strides {dL_db.strides} can't be written: its rows must be contiguous")
    if dL_dZ.size == 0 and (dL_db is None or dL_db.size == 0):
        return dL_dZ
    launched = _Launch(shape if dL_db is not None else _flat(dL_dZ), dL_dY, saved, dL_dZ)
    name = launched.kernel("activation_backward", _functor(function.functor, dtype))
    arrays, parameter = (dL_dY, saved, dL_dZ), (dtype.type(function.parameter),)
    launched.sum("activation", name, arrays, dL_db, None if dL_db is None else workspace.get("partial_sums"), parameter)
    return dL_dZ


def column_sum(X: Array, out: Array, partial_sums: Array) -> Array:
    """Launch; see `gpubp.ops.rows.column_sum`."""
    if out.size:
        launched = _Launch(X.shape, X)
        name = launched.kernel("column_sum", c_type(X.dtype, "column_sum"))
        launched.sum("rows", name, (X,), out, partial_sums, ())
    return out


def product_sum(A: Array, B: Array, out: Array, partial_sums: Array) -> Array:
    """Launch; see `gpubp.ops.rows.product_sum`."""
    if out.size:
        launched = _Launch(A.shape, A, B)
        name = launched.kernel("product_sum", c_type(A.dtype, "product_sum"))
        back = 0 if B.ndim == A.ndim else B.size
        launched.sum("rows", name, (A, B), out, partial_sums, (back,))
    return out


class _Launch:
    """A launch over a matrix (..., N, n) in tiles.

    Args:
        shape: The matrix's.
        matrices: All of its shape: they say whether 16 bytes can be read at once.
    """

    def __init__(self, shape: tuple[int, ...], *matrices: Array) -> None:
        *members, self.rows, self.columns = shape
        self.shape, self.dtype = shape, matrices[0].dtype
        self.E = math.prod(members)
        self.tiles = tiles(self.columns, self.dtype.itemsize)
        pack = PACK_BYTES // self.dtype.itemsize
        whole = self.tiles.joined * self.columns % pack == 0 and (self.E == 1 or self.rows * self.columns % pack == 0)
        self.width = pack if whole and are_aligned(*matrices) else 1

    def kernel(self, name: str, argument: str) -> str:
        """The kernel as C++ names it."""
        return f"{name}<{argument}, {self.width}>"

    def map(self, stem: str, kernel: str, arrays: tuple[Any, ...], more: tuple[Any, ...]) -> None:
        """Launch a kernel that computes each element apart."""
        bands = -(-self.rows // self.tiles.joined)
        down = blocks_down(bands, self.tiles.height, self.E * self.tiles.across)
        sizes = (self.E, self.rows, self.columns, self.tiles.joined)
        cuda.launch(stem, kernel, self._grid(down), self.tiles.block, (*arrays, *sizes, *more))

    def sum(
        self, stem: str, kernel: str, arrays: tuple[Any, ...], out: Array | None, partial: Any, more: tuple[Any, ...]
    ) -> None:
        """Launch a kernel that sums each chunk's columns, then add the chunks up; without `out`, nothing is summed."""
        if out is None:
            C = blocks_down(-(-self.rows // self.tiles.joined), self.tiles.height, self.E * self.tiles.across)
        else:
            C = chunks(self.shape)
        # A single chunk has nothing to add up: its sum goes to `out` at once.
        sums = out if out is None or C == 1 else partial  # (..., C, n)
        stride = member_stride(out) if C == 1 else C * self.columns
        sizes = (self.E, self.rows, self.columns, self.tiles.joined, C, stride)
        grid = self._grid(min(C, GRID_LIMIT))
        cuda.launch(stem, kernel, grid, self.tiles.block, (*arrays, pointer(sums), *sizes, *more))
        if out is not None and C > 1:
            width = min(WARP, 1 << (self.columns - 1).bit_length())
            cuda.launch(
                "activation",
                f"sum_partials<{c_type(self.dtype, 'sum_partials')}>",
                (-(-self.columns // width), 1, self._grid(1)[2]),
                (width, BLOCK_THREADS // width),
                (sums, out, self.E, C, self.columns, member_stride(out)),
            )

    def _grid(self, down: int) -> tuple[int, int, int]:
        return self.tiles.across, down, min(self.E, GRID_LIMIT)


def _flat(array: Array) -> tuple[int, int]:
    """A single column: where nothing depends on the column, that is the best shape."""
    return array.size, 1


def _functor(name: str, dtype: Any) -> str:
    return f"{name}<{c_type(dtype, name)}>"
