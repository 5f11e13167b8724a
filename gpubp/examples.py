"""Some examples of an array, picked when they are looked at."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubp.backend import Array, array_module
from gpubp.errors import DataError


class RowsOf:
    """The examples of X at some rows, in place of the copy ``X[rows]``.

    To train on some rows of a file that is larger than memory and to validate with others:
    ``fit(net, RowsOf(X, train), T[train], validation=(RowsOf(X, rest), T[rest]))`` with X from
    ``numpy.load(path, mmap_mode="r")``. What is looked at, a minibatch or a slice, is copied then.

    Args:
        data: X (..., N, n).
        rows: (M,) whole numbers from 0 to N - 1.

    Raises:
        DataError: The rows are something else.
    """

    def __init__(self, data: Any, rows: Any) -> None:
        index, N = np.asarray(rows), data.shape[-2]
        if index.ndim != 1 or index.dtype.kind not in "iu":
            raise DataError(f"the rows are {index.dtype} {index.shape}; whole numbers (M,) are needed")
        if index.size and not 0 <= index.min() <= index.max() < N:
            raise DataError(f"the rows run from {index.min()} to {index.max()}, not within 0 to {N - 1}")
        self.data, self.rows = data, index.astype(np.int64, copy=False)
        self.dtype, self.ndim = data.dtype, data.ndim
        self.shape = (*data.shape[:-2], len(self.rows), data.shape[-1])

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return int(np.prod(self.shape))

    def __getitem__(self, key: tuple[Any, slice, slice]) -> Array:
        """A copy of ``X[..., rows, :][key]`` for a key ``(..., slice, :)``."""
        everything, some, columns = key
        if everything is not ... or columns != slice(None):
            raise TypeError("of a RowsOf, whole examples are picked: [..., rows, :]")
        xp = array_module(self.data)
        return xp.asarray(self.data).take(
            xp.asarray(self.rows[some]), axis=-2
        )  # asarray: a file's array is a plain one

    def of(self, data: Any) -> RowsOf:
        """The same rows of another array, such as X elsewhere."""
        return RowsOf(data, self.rows)
