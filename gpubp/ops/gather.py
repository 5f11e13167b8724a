"""Picking examples out of data: by slice, and by index into a preallocated minibatch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from gpubp import compiled
from gpubp.backend import Array, array_module
from gpubp.cost import Cost


def converts(dtype: Any, into: Any) -> bool:
    """Whether `gather` turns examples of a dtype into another, and they take no more memory as they are."""
    known = dtype.name in ("float16", "float32", "float64", "uint8") and dtype.isnative
    return bool(known and dtype.itemsize <= into.itemsize)


def example_axis(array: Array) -> int:
    """The axis that counts examples: the last one of class indices (..., N), else the one before the last."""
    return -1 if array.dtype.kind in "iu" else -2


def example_rows(array: Array, rows: slice) -> tuple[Any, ...]:
    """The index that selects a slice of examples, all else kept."""
    return (..., rows) if example_axis(array) == -1 else (..., rows, slice(None))


def row_slices(N: int, size: int) -> Iterator[slice]:
    """Slices of `size` rows that cover N rows, the last one as short as it comes; one empty slice for N = 0."""
    return (slice(start, min(start + size, N)) for start in range(0, max(1, N), size))


def gather(data: Array, index: Array, out: Array, axis: int, apart: int | None = None) -> Array:
    """``out = data`` at the given examples: (..., N, n) -> (..., B, n) along `axis`.

    Args:
        data: Where to pick from. Where `out` has another dtype, numbers are converted to it.
        index: (B,) whole numbers within 0 to N - 1, on the same device. The kernels take others for 0 or N - 1.
        out: Receives the examples; C-contiguous.
        axis: The axis of the examples.
        apart: In a recorded program, how many whole numbers lie between the beginning of this index and of that of the
            next step; None for its length.
    """
    xp = array_module(data, index, out)
    if (kernels := compiled.kernels_of(xp)) and kernels.gather.takes(data, index, out):
        return kernels.gather.gather(data, index, out, axis, apart)
    if data.dtype != out.dtype:
        out[...] = data.take(index, axis=axis)
        return out
    if xp is np:
        # mode="clip" writes straight into `out`; the default checks every index first, through a buffer of its size.
        return data.take(index, axis=axis, out=out, mode="clip")
    return xp.take(data, index, axis=axis, out=out)


def cost(name: str, shape: tuple[int, ...], itemsize: int, data_itemsize: int | None = None) -> Cost:
    """The cost of a `gather` into an array of this shape; the index is left out.

    Args:
        name: Of the operation.
        shape: Of the result.
        itemsize: Bytes of a number of the result.
        data_itemsize: Bytes of a number where it is picked from; None for as many.
    """
    return Cost(name, 0, math.prod(shape) * (itemsize + (itemsize if data_itemsize is None else data_itemsize)))
