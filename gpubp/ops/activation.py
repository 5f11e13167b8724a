"""Bias plus activation, and its backward: the two elementwise halves of a dense layer, each in one pass.

    forward     Y = f(Z + b[..., None, :])
    backward    dL_dZ = dL_dY * f'(saved),   dL_db = dL_dZ.sum(axis=-2)

``saved`` is Y where f' is a function of Y (sigmoid, tanh, ReLU), else Z + b. On the CPU the array maths runs in blocks
of rows that stay in cache. On a CUDA device with a functor for f, the fused kernels of ``kernels/activation.cu`` run;
without one, the same array maths runs on the whole array.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from gpubp import cuda
from gpubp.backend import Array, array_module
from gpubp.errors import ShapeError

BLOCK_ELEMENTS = 32768
"""Elements of one array in a CPU block; four such float32 arrays take half of a 1 MiB L2 cache."""


class ActivationFunction(Protocol):
    """An elementwise function with its derivative, in array maths."""

    derivative_of: str
    """``"Y"`` where the derivative is a function of the output, ``"X"`` where it needs the input."""
    functor: str | None
    """Name of the functor in ``kernels/activations.cuh``; None where there is no kernel."""
    parameter: float
    """The number that the functor takes (the slope of a leaky ReLU); 0 where it takes none."""

    def evaluate(self, xp: ModuleType, X: Array, out: Array, scratch: Array) -> None:
        """Write f(X) into `out`, which may be X itself; `scratch` is neither and free to use."""

    def derivative(self, xp: ModuleType, saved: Array, out: Array) -> None:
        """Write f' into `out`, from Y or from X as `derivative_of` says; `out` is neither of them."""


def workspace(function: ActivationFunction, xp: ModuleType, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the scratch arrays that both functions below need for a Z of this shape."""
    *members, _, columns = shape
    if _has_kernel(function, xp):
        return {"partial_sums": (*members, _chunks(shape), columns)}
    return {
        "scratch": (*members, _block_rows(xp, shape), columns),
        "partial_sums": (*members, 1, columns),
    }


def bias_activation(
    function: ActivationFunction, Z: Array, b: Array | None, Y: Array, workspace: Mapping[str, Array]
) -> Array:
    """``Y = f(Z + b[..., None, :])``.

    Args:
        function: The activation f.
        Z: (..., N, n), and with a bias Z + b afterwards wherever the derivative needs that; where it does not, the
            kernel saves the write. It may be Y itself.
        b: (..., n), added to every row; None for no bias, and then Z is left as it is.
        Y: (..., N, n), the result.
        workspace: The arrays that `workspace` names.

    Raises:
        ShapeError: With a kernel: Z and Y do not fit each other, or one that is written is not contiguous.
    """
    xp = array_module(Z, Y, *(() if b is None else (b,)))
    if _has_kernel(function, xp):
        return _launch_bias_activation(function, xp, Z, b, Y)
    scratch = workspace["scratch"]
    b_row = None if b is None else b[..., None, :]  # (..., 1, n)
    for Z_rows, Y_rows in _row_blocks(xp, Z, Y):
        if b_row is not None:
            xp.add(Z_rows, b_row, out=Z_rows)
        function.evaluate(xp, Z_rows, Y_rows, scratch[..., : Z_rows.shape[-2], :])
    return Y


def activation_backward(
    function: ActivationFunction,
    dL_dY: Array,
    saved: Array,
    dL_dZ: Array,
    dL_db: Array | None,
    workspace: Mapping[str, Array],
) -> Array:
    """``dL_dZ = dL_dY * f'(saved)`` and, in the same pass, ``dL_db = dL_dZ.sum(axis=-2)``.

    The column sum adds block by block in a fixed order, so that a run repeats bit for bit.

    Args:
        function: The activation f.
        dL_dY: (..., N, n).
        saved: (..., N, n), Y or Z + b as ``function.derivative_of`` says.
        dL_dZ: (..., N, n), the result. It may be dL_dY itself.
        dL_db: (..., n), the column sum; None where there is no bias.
        workspace: The arrays that `workspace` names.

    Raises:
        ShapeError: With a kernel: the arrays do not fit each other, or one that is written is not contiguous.
    """
    xp = array_module(dL_dY, saved, dL_dZ, *(() if dL_db is None else (dL_db,)))
    if _has_kernel(function, xp):
        return _launch_activation_backward(function, xp, dL_dY, saved, dL_dZ, dL_db, workspace)
    scratch, partial_sum = workspace["scratch"], workspace["partial_sums"][..., 0, :]
    if dL_db is not None:
        dL_db[...] = 0
    for dL_dY_rows, saved_rows, dL_dZ_rows in _row_blocks(xp, dL_dY, saved, dL_dZ):
        derivative = scratch[..., : saved_rows.shape[-2], :]
        function.derivative(xp, saved_rows, derivative)
        xp.multiply(dL_dY_rows, derivative, out=dL_dZ_rows)
        if dL_db is not None:
            dL_dZ_rows.sum(axis=-2, out=partial_sum)
            xp.add(dL_db, partial_sum, out=dL_db)
    return dL_dZ


# The array maths: blocks of rows.


def _block_rows(xp: ModuleType, shape: tuple[int, ...]) -> int:
    *members, rows, columns = shape
    if xp is not np:
        return rows
    return min(rows, max(1, BLOCK_ELEMENTS // max(1, math.prod(members) * columns)))


def _row_blocks(xp: ModuleType, *arrays: Array) -> Iterator[tuple[Array, ...]]:
    """The same rows of each array, block by block; the arrays themselves where one block holds all."""
    rows = arrays[0].shape[-2]
    step = max(1, _block_rows(xp, arrays[0].shape))
    if rows <= step:
        yield arrays
    else:
        for start in range(0, rows, step):
            yield tuple(array[..., start : start + step, :] for array in arrays)


# The kernels: shapes of the launch, and its arguments.

BLOCK_THREADS = 256
"""Threads of a CUDA block; ``MAX_THREADS`` of ``kernels/common.cuh``."""
BLOCK_COLUMNS = 32
"""Most columns of a CUDA block: one warp along a row reads 128 bytes or more at once."""
ROWS_PER_THREAD = 8
"""Rows that a thread walks at least before a column sum is split into one more chunk."""
BLOCKS = 1024
"""Blocks after which a column sum is split no further: about eight for each multiprocessor of a large card."""
GRID_LIMIT = 65535
"""Most blocks along y and z; the kernels loop over what is beyond."""


def _has_kernel(function: ActivationFunction, xp: ModuleType) -> bool:
    return xp is not np and function.functor is not None


def _block(columns: int) -> tuple[int, int]:
    """Threads along x and y: as wide as a row up to 32 columns, so that narrow matrices fill a block with rows."""
    width = min(BLOCK_COLUMNS, 1 << max(0, columns - 1).bit_length())
    return width, BLOCK_THREADS // width


def _chunks(shape: tuple[int, ...]) -> int:
    """How many chunks of rows are summed apart: a function of the shape alone, so that sums repeat bit for bit."""
    *members, rows, columns = shape
    width, height = _block(columns)
    blocks = max(1, math.prod(members) * -(-columns // width))  # of one chunk
    return max(1, min(-(-rows // (ROWS_PER_THREAD * height)), BLOCKS // blocks))


def _grid(shape: tuple[int, ...], blocks_of_rows: int) -> tuple[int, int, int]:
    """Blocks along the columns, the rows and the members."""
    *members, _, columns = shape
    blocks_of_columns = -(-columns // _block(columns)[0])
    return blocks_of_columns, min(blocks_of_rows, GRID_LIMIT), min(math.prod(members), GRID_LIMIT)


def _launch_bias_activation(function: ActivationFunction, xp: ModuleType, Z: Array, b: Array | None, Y: Array) -> Array:
    *members, rows, columns = Y.shape
    if b is not None and function.derivative_of == "X":
        _check_written("Z", Z, Y.shape, Y.dtype)
    Z = _readable(xp, "Z", Z, Y.shape, Y.dtype)
    _check_written("Y", Y, Y.shape, Y.dtype)
    if b is not None:
        b = _rows_contiguous(xp, _checked("b", b, (*members, columns), Y.dtype))
    if Y.size:
        height = _block(columns)[1]
        cuda.launch(
            "activation",
            _kernel("bias_activation", function, Y.dtype),
            _grid(Y.shape, -(-rows // height)),
            _block(columns),
            (Z, _pointer(b), Y, math.prod(members), rows, columns, _member_stride(b), Y.dtype.type(function.parameter)),
        )
    return Y


def _launch_activation_backward(
    function: ActivationFunction,
    xp: ModuleType,
    dL_dY: Array,
    saved: Array,
    dL_dZ: Array,
    dL_db: Array | None,
    workspace: Mapping[str, Array],
) -> Array:
    shape, dtype = dL_dZ.shape, dL_dZ.dtype
    *members, rows, columns = shape
    dL_dY, saved = (_readable(xp, name, array, shape, dtype) for name, array in (("dL_dY", dL_dY), ("saved", saved)))
    _check_written("dL_dZ", dL_dZ, shape, dtype)
    if dL_db is not None and not _is_rows_contiguous(_checked("dL_db", dL_db, (*members, columns), dtype)):
        raise ShapeError(f"dL_db with strides {dL_db.strides} can't be written: its rows must be contiguous")
    if dL_dZ.size == 0 and (dL_db is None or dL_db.size == 0):
        return dL_dZ
    E, chunks = math.prod(members), _chunks(shape)
    # A single chunk has nothing to add up: its sum goes to dL_db at once.
    sums = dL_db if dL_db is None or chunks == 1 else workspace["partial_sums"]  # (..., C, n)
    sums_stride = _member_stride(dL_db) if chunks == 1 else chunks * columns
    cuda.launch(
        "activation",
        _kernel("activation_backward", function, dtype),
        _grid(shape, chunks),
        _block(columns),
        (dL_dY, saved, dL_dZ, _pointer(sums), E, rows, columns, chunks, sums_stride, dtype.type(function.parameter)),
    )
    if dL_db is not None and chunks > 1:
        cuda.launch(
            "activation",
            f"sum_partials<{_C_TYPES[dtype.name]}>",
            _grid(shape, 1),
            _block(columns),
            (sums, dL_db, E, chunks, columns, _member_stride(dL_db)),
        )
    return dL_dZ


_C_TYPES = {"float32": "float", "float64": "double"}


def _kernel(name: str, function: ActivationFunction, dtype: Any) -> str:
    if dtype.name not in _C_TYPES:
        raise ShapeError(f"{function.functor} on {dtype} arrays: the kernels compute in float32 or float64")
    return f"{name}<{function.functor}<{_C_TYPES[dtype.name]}>>"


def _pointer(array: Array | None) -> Any:
    return 0 if array is None else array


def _member_stride(array: Array | None) -> int:
    """Elements from one member's row to the next in an array (n,) or (E, n)."""
    return 0 if array is None or array.ndim == 1 else array.strides[0] // array.itemsize


def _is_rows_contiguous(array: Array) -> bool:
    """Whether an array (n,) or (E, n) has each row in one piece; the rows themselves may lie apart."""
    return bool(array.ndim <= 2 and (array.shape[-1] == 1 or array.strides[-1] == array.itemsize))


def _rows_contiguous(xp: ModuleType, array: Array) -> Array:
    return array if _is_rows_contiguous(array) else xp.ascontiguousarray(array)


def _checked(name: str, array: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """The array, if it is what a kernel will take it for: a kernel can't look."""
    if tuple(array.shape) != tuple(shape) or array.dtype != dtype:
        raise ShapeError(f"{name} is {array.dtype} {array.shape}; {dtype} {tuple(shape)} is needed")
    return array


def _readable(xp: ModuleType, name: str, array: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    return xp.ascontiguousarray(_checked(name, array, shape, dtype))


def _check_written(name: str, array: Array, shape: tuple[int, ...], dtype: Any) -> None:
    if not _checked(name, array, shape, dtype).flags.c_contiguous:
        raise ShapeError(f"{name} with strides {array.strides} can't be written by a kernel: it must be contiguous")
