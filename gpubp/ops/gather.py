"""Picking examples out of data: by slice, and by index into a preallocated minibatch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from gpubp.backend import Array, array_module


def example_axis(array: Array) -> int:
    """The axis that counts examples: the last one of class indices (..., N), else the one before the last."""
    return -1 if array.dtype.kind in "iu" else -2


def example_rows(array: Array, rows: slice) -> tuple[Any, ...]:
    """The index that selects a slice of examples, all else kept."""
    return (..., rows) if example_axis(array) == -1 else (..., rows, slice(None))


def row_slices(N: int, size: int) -> Iterator[slice]:
    """Slices of `size` rows that cover N rows, the last one as short as it comes; one empty slice for N = 0."""
    return (slice(start, min(start + size, N)) for start in range(0, max(1, N), size))


def gather(data: Array, index: Array, out: Array, axis: int) -> Array:
    """``out = data`` at the given examples: (..., N, n) -> (..., B, n) along `axis`.

    Args:
        data: Where to pick from.
        index: (B,) whole numbers within 0 to N - 1, on the same device.
        out: Receives the examples; C-contiguous.
        axis: The axis of the examples.
    """
    xp = array_module(data, index, out)
    if xp is np:
        # mode="clip" writes straight into `out`; the default checks every index first, through a buffer of its size.
        return np.take(data, index, axis=axis, out=out, mode="clip")
    return xp.take(data, index, axis=axis, out=out)
