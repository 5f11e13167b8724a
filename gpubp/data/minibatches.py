"""Minibatches: which examples a step sees, and how they come together in one preallocated array."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpubp.backend import Array, Device
from gpubp.errors import DataError, ShapeError
from gpubp.ops.gather import example_axis, example_rows, gather, row_slices

Order = Callable[[int, int], NDArray[np.intp] | None]
"""An order provider: (epoch, N) to the N example indices in the order to visit, or None for their own order.

A pure function: an epoch that went wrong is gone through again to say where."""


def shuffled(seed: int) -> Order:
    """The default order: a permutation that is a function of (seed, epoch) alone."""
    return lambda epoch, N: np.random.default_rng([seed, epoch]).permutation(N)


def in_order(epoch: int, N: int) -> None:
    """The examples as they stand, every epoch."""


class Minibatches:
    """The minibatches of a data set that lives on one device.

    Args:
        X: (N, n), or (E, N, n) with other examples for each member of a stack, all visited in the same order.
        T: Targets with the examples on the axis that `example_axis` names.
        sample_weight: (N,) or (E, N), or None.
        batch_size: Examples in a batch; the last batch of an epoch holds what is left. Larger than N means N.
        order: See `Order`.
        device: Where the arrays live.
    """

    def __init__(
        self, X: Array, T: Array, sample_weight: Array | None, batch_size: int, order: Order, device: Device
    ) -> None:
        self.X, self.T, self.sample_weight = X, T, sample_weight
        self.N = int(X.shape[-2])
        self.batch_size = min(batch_size, self.N)
        self._order, self._device = order, device
        self._batch: dict[tuple[str, int], Array] = {}

    def __len__(self) -> int:
        """How many batches an epoch has."""
        return -(-self.N // self.batch_size)

    def epoch(self, epoch: int) -> Iterator[tuple[Array, Array, Array | None]]:
        """The batches X, T, sample_weight of one epoch; the arrays are valid until the next batch is asked for.

        Raises:
            ShapeError, DataError: The order provider gave something else than N indices of examples.
        """
        order = self._order(epoch, self.N)
        index: Array = None if order is None else self._device.module.asarray(self._checked(order))
        for rows in row_slices(self.N, self.batch_size):
            yield (
                self._take("X", self.X, rows, index),
                self._take("T", self.T, rows, index),
                None if self.sample_weight is None else self._take("w", self.sample_weight, rows, index),
            )

    def _checked(self, order: NDArray[np.intp]) -> NDArray[np.intp]:
        order = np.asarray(order)
        if order.shape != (self.N,) or order.dtype.kind not in "iu":
            raise ShapeError(
                f"the order of an epoch is {order.dtype} {order.shape}; whole numbers ({self.N},) are needed"
            )
        if order.min() < 0 or order.max() >= self.N:
            raise DataError(
                f"the order of an epoch runs from {order.min()} to {order.max()}, not within 0 to {self.N - 1}"
            )
        return order

    def _take(self, name: str, data: Array, rows: slice, index: Array) -> Array:
        selected: Any = (..., rows) if name == "w" else example_rows(data, rows)
        if index is None:
            return data[selected]
        axis = -1 if name == "w" else example_axis(data)
        size = rows.stop - rows.start
        if (name, size) not in self._batch:
            shape = list(data.shape)
            shape[axis] = size
            self._batch[name, size] = self._device.module.empty(tuple(shape), data.dtype)
        return gather(data, index[rows], self._batch[name, size], axis)
