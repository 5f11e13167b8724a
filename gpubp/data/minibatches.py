"""Minibatches: which examples a step sees, and where they come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpubp.backend import Array, Device, array_module
from gpubp.errors import DataError, ShapeError
from gpubp.examples import RowsOf
from gpubp.ops.gather import example_axis, gather

Order = Callable[[int, int], NDArray[np.intp] | None]
"""An order provider: (epoch, N) to the N example indices in the order to visit, or None for their own order.

A pure function: an epoch that went wrong is gone through again to say where."""


def shuffled(seed: int) -> Order:
    """The default order: a permutation that is a function of (seed, epoch) alone."""
    return lambda epoch, N: np.random.default_rng([seed, epoch]).permutation(N)


def in_order(epoch: int, N: int) -> None:
    """The examples as they stand, every epoch."""


class Part(NamedTuple):
    """Some steps of an epoch: step s is on the examples ``index[s]`` of X, T and sample_weight.

    Attributes:
        X: (N, n), or (E, N, n).
        T: Targets with the examples on the axis that `gpubp.ops.gather.example_axis` names.
        sample_weight: (N,) or (E, N), or None.
        index: (S, examples of a batch) int64, on the device.
    """

    X: Array
    T: Array
    sample_weight: Array | None
    index: Array


class Minibatches:
    """The minibatches of a data set that lives on one device.

    Args:
        X: (N, n), or (E, N, n) with other examples for each member of a stack, all visited in the same order; of a
            `RowsOf`, the minibatches are picked from its data, which is what `X` is then.
        T: Targets with the examples on the axis that `gpubp.ops.gather.example_axis` names.
        sample_weight: (N,) or (E, N), or None.
        batch_size: Examples in a batch; the last batch of an epoch holds what is left. Larger than N means N.
        order: See `Order`.
        device: Where the steps run.
    """

    def __init__(
        self, X: Array, T: Array, sample_weight: Array | None, batch_size: int, order: Order, device: Device
    ) -> None:
        self.N, self._rows = int(X.shape[-2]), None
        if isinstance(X, RowsOf):
            self._rows, axis = X.rows, example_axis(T)
            T = _spread(T, X, axis)
            sample_weight = None if sample_weight is None else _spread(sample_weight, X, -1)
            X = X.data
        self.X, self.T, self.sample_weight = X, T, sample_weight
        self.batch_size = min(batch_size, self.N)
        self._order, self._device = order, device

    def __len__(self) -> int:
        """How many batches an epoch has."""
        return -(-self.N // self.batch_size)

    def parts(self, epoch: int, launches: Iterable[int] | None = None) -> Iterator[Part]:
        """The steps of one epoch.

        Args:
            epoch: Which one.
            launches: How many full batches to take at a time, all of them in the end; None for all at once. The
                smaller last batch is a part by itself.

        Raises:
            ShapeError, DataError: The order provider gave something else than N indices of examples.
        """
        xp, order = self._device.module, self.order(epoch)
        index = xp.arange(self.N) if order is None else xp.asarray(order)
        full = self.N // self.batch_size
        start = 0
        for steps in [full] if launches is None else launches:
            stop = start + steps * self.batch_size
            yield Part(self.X, self.T, self.sample_weight, index[start:stop].reshape(steps, self.batch_size))
            start = stop
        if start < self.N:
            yield Part(self.X, self.T, self.sample_weight, index[None, start:])

    def order(self, epoch: int) -> NDArray[np.int64] | None:
        """The order of an epoch, (N,), as indices into `X`; None for the examples' own.

        Raises:
            ShapeError, DataError: See `parts`.
        """
        given = self._order(epoch, self.N)
        if given is None:
            return self._rows
        order = np.asarray(given)
        if order.shape != (self.N,) or order.dtype.kind not in "iu":
            raise ShapeError(
                f"the order of an epoch is {order.dtype} {order.shape}; whole numbers ({self.N},) are needed"
            )
        if order.min() < 0 or order.max() >= self.N:
            raise DataError(
                f"the order of an epoch runs from {order.min()} to {order.max()}, not within 0 to {self.N - 1}"
            )
        order = order.astype(np.int64, copy=False)
        return order if self._rows is None else self._rows[order]


class StreamedMinibatches(Minibatches):
    """The minibatches of examples that stay on the host, because they are too many for the device.

    Some steps' examples at a time are gathered into page-locked memory and copied to the device, where two such parts
    have room: while the device trains on one, the next is gathered and copied. Targets and weights are on the device.

    Args:
        X: As for `Minibatches`, a NumPy array, in memory or mapped from a file.
        T, sample_weight, batch_size, order, device: As for `Minibatches`.
    """

    STEPS = 32
    """Most steps in a part: those of the longest CUDA graph."""
    BYTES = 2**26
    """Most bytes of examples in a part, as long as that is more than one step."""

    def __init__(
        self, X: Array, T: Array, sample_weight: Array | None, batch_size: int, order: Order, device: Device
    ) -> None:
        super().__init__(X, T, sample_weight, batch_size, order, device)
        row_bytes = self.X.nbytes // self.X.shape[-2]
        self._steps = max(1, min(self.STEPS, self.N // self.batch_size, self.BYTES // (self.batch_size * row_bytes)))
        with device.activate():
            self._slots = [_Slot(self, self._steps * self.batch_size, device) for _ in range(2)]
            self._stream = device.module.cuda.Stream(non_blocking=True)

    def parts(self, epoch: int, launches: Iterable[int] | None = None) -> Iterator[Part]:
        """See `Minibatches.parts`; how many steps a part has follows from its bytes, not from `launches`."""
        xp, order = self._device.module, self.order(epoch)
        rows_of_part = self._steps * self.batch_size
        full = self.N // self.batch_size * self.batch_size
        bounds = [*range(0, full, rows_of_part), full, *([self.N] if full < self.N else [])]
        for number, (start, stop) in enumerate(pairwise(bounds)):
            rows = np.arange(start, stop) if order is None else order[start:stop]
            slot = self._slots[number % len(self._slots)]
            with self._device.activate("streaming the examples"):
                X, T, w = slot.filled(rows, self._stream)
            yield Part(X, T, w, xp.arange(stop - start).reshape(-1, min(self.batch_size, stop - start)))
            slot.in_use.record()


class _Slot:
    """Room for one part of the examples, on the host and on the device."""

    def __init__(self, batches: StreamedMinibatches, rows: int, device: Device) -> None:
        self._batches, cuda = batches, device.module.cuda
        X, T, w = batches.X, batches.T, batches.sample_weight
        shape = (*X.shape[:-2], rows, X.shape[-1])
        count = math.prod(shape)
        self._memory = cuda.alloc_pinned_memory(count * X.itemsize)
        self._host = np.frombuffer(self._memory, X.dtype, count)
        self._X = device.module.empty(count, X.dtype)
        self._views: dict[int, tuple[Array, ...]] = {}
        self._axis = example_axis(T)
        self._T = device.module.empty(T.size // X.shape[-2] * rows, T.dtype)
        self._w = None if w is None else device.module.empty(w.size // X.shape[-2] * rows, w.dtype)
        self._copied, self.in_use = cuda.Event(disable_timing=True), cuda.Event(disable_timing=True)
        """Passed when the examples are on the device; when the steps that read them are done."""
        self.in_use.record()  # the memory may have been somebody else's, on this stream

    def filled(self, rows: NDArray[np.int64], stream: Any) -> tuple[Array, Array, Array | None]:
        """X, T and sample_weight of some examples, on the device.

        Args:
            rows: Which ones.
            stream: Where to copy, so that it overlaps with the steps before.
        """
        batches, xp = self._batches, array_module(self._X)
        if len(rows) not in self._views:  # the same arrays each time: a recorded step is known by them
            self._views[len(rows)] = (
                _shaped(self._host, batches.X, -2, len(rows)),
                _shaped(self._X, batches.X, -2, len(rows)),
                _shaped(self._T, batches.T, self._axis, len(rows)),
                *(() if self._w is None else (_shaped(self._w, batches.sample_weight, -1, len(rows)),)),
            )
        host, X, T, *w = self._views[len(rows)]
        self._copied.synchronize()  # the copy before the last, long done: its memory on the host is free
        gather(batches.X, rows, host, -2)
        stream.wait_event(self.in_use)
        X.set(host, stream=stream)
        self._copied.record(stream)
        xp.cuda.get_current_stream().wait_event(self._copied)
        index = xp.asarray(rows)
        gather(batches.T, index, T, self._axis)
        return X, T, gather(batches.sample_weight, index, w[0], -1) if w else None


def _shaped(flat: Array, like: Array, axis: int, rows: int) -> Array:
    """The beginning of a flat array in the shape of another, but for the number of examples on an axis."""
    axis += like.ndim
    shape = (*like.shape[:axis], rows, *like.shape[axis + 1 :])
    return flat[: math.prod(shape)].reshape(shape)


def _spread(array: Array, X: RowsOf, axis: int) -> Array:
    """An array with the rows of X as one with all rows of its data, 0 elsewhere, so that one index serves both."""
    xp, axis = array_module(array), axis + array.ndim
    whole = xp.zeros((*array.shape[:axis], X.data.shape[-2], *array.shape[axis + 1 :]), array.dtype)
    whole[(slice(None),) * axis + (xp.asarray(X.rows),)] = array
    return whole
