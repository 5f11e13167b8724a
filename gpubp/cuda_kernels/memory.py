"""Device arrays as arguments of a kernel: a kernel can't look, so what it will take them for is checked here."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from gpubp.backend import Array
from gpubp.errors import ShapeError

GRID_LIMIT = 65535
"""Most blocks along y and z; the kernels loop over what is beyond."""

C_TYPES = {"float32": "float", "float64": "double"}
"""How C++ names the dtypes that are computed in."""


def c_type(dtype: Any, what: str) -> str:
    """How C++ names a dtype.

    Raises:
        ShapeError: `what` is not computed in this dtype.
    """
    if dtype.name not in C_TYPES:
        raise ShapeError(f"{what} on {dtype} arrays: the kernels compute in float32 or float64")
    return C_TYPES[dtype.name]


def pointer(array: Array | None) -> Any:
    """The array, or a null pointer for None."""
    return 0 if array is None else array


def member_stride(array: Array | None) -> int:
    """Elements from one member's row to the next in an array (n,) or (E, n)."""
    return 0 if array is None or array.ndim == 1 else array.strides[0] // array.itemsize


def is_rows_contiguous(array: Array) -> bool:
    """Whether an array (n,) or (E, n) has each row in one piece; the rows themselves may lie apart."""
    return bool(array.ndim <= 2 and (array.shape[-1] == 1 or array.strides[-1] == array.itemsize))


def are_rows_in_order(array: Array) -> bool:
    """Whether an array (n,) or (E, n) has each row in one piece, and behind the row before."""
    return is_rows_contiguous(array) and (array.ndim == 1 or len(array) < 2 or member_stride(array) >= array.shape[1])


def rows_contiguous(xp: ModuleType, array: Array) -> Array:
    """The array, or a contiguous copy where its rows are not in one piece."""
    return array if is_rows_contiguous(array) else xp.ascontiguousarray(array)


def checked(name: str, array: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """The array.

    Raises:
        ShapeError: Its shape or dtype is another.
    """
    if tuple(array.shape) != tuple(shape) or array.dtype != dtype:
        raise ShapeError(f"{name} is {array.dtype} {array.shape}; {dtype} {tuple(shape)} is needed")
    return array


def readable(xp: ModuleType, name: str, array: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """The array, or a contiguous copy of it; ShapeError as `checked`."""
    return xp.ascontiguousarray(checked(name, array, shape, dtype))


def check_written(name: str, array: Array, shape: tuple[int, ...], dtype: Any) -> None:
    """Raise a ShapeError where an array that a kernel is to write has another shape or dtype, or gaps."""
    if not checked(name, array, shape, dtype).flags.c_contiguous:
        raise ShapeError(f"{name} with strides {array.strides} can't be written by a kernel: it must be contiguous")
