"""Updates of the flat parameter buffer on a device: see `gpubp.optimizers`, ``kernels/optimizers.cu``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubp import cuda
from gpubp.backend import Array, array_module
from gpubp.cuda_kernels.losses import chunk_of, chunks
from gpubp.cuda_kernels.memory import C_TYPES, GRID_LIMIT, are_rows_in_order, member_stride, pointer
from gpubp.cuda_kernels.tiles import BLOCK_THREADS, PACK_BYTES, WARP, pack_width

BLOCKS = 1024
"""Blocks along the rows and over the members together after which a thread takes more than one pack: about as many as
a large card runs at once."""
SQUARES_PER_THREAD = 8
"""Numbers that a thread squares at least before a sum of squares is split into one more chunk."""
MOST_STEPS = 32
"""Steps that a graph has at most, each with learning rates of its own."""


def of(theta: Array, dL_dtheta: Array) -> Update | None:
    """The kernels that update these buffers; None where they take no such buffers."""
    taken = (
        theta.dtype == dL_dtheta.dtype
        and theta.dtype.name in C_TYPES
        and theta.ndim in (1, 2)
        and theta.strides == dL_dtheta.strides
        and are_rows_in_order(theta)
    )
    return Update(theta, dL_dtheta) if taken else None


class Update:
    """Launches of an update of one pair of buffers, and what they read anew in each step from device memory.

    Args:
        theta: (P,) or (E, P), each row contiguous.
        dL_dtheta: The same shape, dtype and strides; and so is all state, see `gpubp.parameters.zeros_like`.

    Attributes:
        weight_decay: How strongly theta is drawn to zero, as a share of it for each unit of the learning rate.
        decayed: How many leading columns of theta are.
    """

    def __init__(self, theta: Array, dL_dtheta: Array) -> None:
        xp = array_module(theta, dL_dtheta)
        self._buffers = theta, dL_dtheta
        E, P = math.prod(theta.shape[:-1]), theta.shape[-1]
        self._sizes = E, P, member_stride(theta)
        self._rates = Table(xp, E, theta.dtype)
        self._corrections = Table(xp, 2, theta.dtype)
        self._launched = 0  # since `begin`
        self._factors: Array | None = None  # (E,), what the gradient is multiplied by; None where never clipped
        self._squares: Array | None = None  # (E, C)
        self._clipped = False  # whether the factors count
        self.weight_decay, self.decayed = 0.0, 0
        self._block = _block(P, theta.itemsize)
        self._grid = _grid(E, P, theta.itemsize)

    def begin(self, rates: Any, corrections: np.ndarray[Any, Any] | None) -> None:
        """Set what the launches that follow read, one step each. Nothing here waits for the device.

        Args:
            rates: A number, or a list with one of each member, for all steps; or an array with a row for each of at
                most `MOST_STEPS` steps, (steps, 1) or (steps, E).
            corrections: (steps, 2), see `gpubp.optimizers.adam.Adam`; None for an optimizer without.
        """
        self._launched = 0
        self._rates.set(rates)
        if corrections is not None:
            self._corrections.set(corrections)

    def clip(self, norm: float | None) -> None:
        """Launch what keeps the gradient of each member from being longer than this; None for as long as it is."""
        self._clipped = norm is not None
        E, P, pitch = self._sizes
        if norm is None or not E * P:
            return
        gradient, C = self._buffers[1], chunks(E, -(-P // (BLOCK_THREADS * SQUARES_PER_THREAD)), P)
        if self._factors is None:
            xp = array_module(gradient)
            self._factors, self._squares = xp.empty(E, gradient.dtype), xp.empty((E, C), np.float64)
        grid = C, min(E, GRID_LIMIT), 1
        W = pack_width(gradient, step=pitch if E > 1 else 0)
        arguments: tuple[Any, ...] = (gradient, self._squares, E, P, pitch, C, chunk_of(P, C, W))
        cuda.launch("optimizers", f"squares<{self._c_type}, {W}>", grid, _warps(P), arguments)
        arguments = (self._squares, self._factors, E, C, np.float64(norm))
        cuda.launch("optimizers", f"clip_factors<{self._c_type}>", (min(E, BLOCKS), 1, 1), _warps(C), arguments)

    def sgd(self, V: Array | None, momentum: float, nesterov: bool) -> None:
        """Launch; see `gpubp.optimizers.sgd.SGD`. V: of theta's shape, or None without momentum."""
        self._launch("sgd", (pointer(V),), (*self._scalars(momentum), int(nesterov)))

    def adam(self, M: Array, V: Array, beta1: float, beta2: float, epsilon: float) -> None:
        """Launch; see `gpubp.optimizers.adam.Adam`. M and V: of theta's shape."""
        numbers = self._scalars(beta1, 1 - beta1, beta2, 1 - beta2, epsilon)
        self._launch("adam", (M, V), (self._corrections.row(self._launched), *numbers))

    def rmsprop(self, V: Array, M: Array | None, decay: float, epsilon: float, momentum: float) -> None:
        """Launch; see `gpubp.optimizers.rmsprop.RMSprop`. V and M: of theta's shape, M None without momentum."""
        self._launch("rmsprop", (pointer(M), V), self._scalars(decay, 1 - decay, momentum, epsilon))

    def lion(self, M: Array, beta1: float, beta2: float) -> None:
        """Launch; see `gpubp.optimizers.lion.Lion`. M: of theta's shape."""
        self._launch("lion", (M,), self._scalars(1 - beta1, beta2, 1 - beta2))

    @property
    def _c_type(self) -> str:
        return C_TYPES[self._buffers[0].dtype.name]

    def _scalars(self, *numbers: float) -> tuple[Any, ...]:
        return tuple(self._buffers[0].dtype.type(number) for number in numbers)

    def _launch(self, name: str, state: tuple[Any, ...], settings: tuple[Any, ...]) -> None:
        E, P, _ = self._sizes
        if not E * P:
            return
        arguments = (
            *(*self._buffers, *state, self._rates.row(self._launched)),
            pointer(self._factors if self._clipped else None),
            *(*self._sizes, self.decayed, *self._scalars(self.weight_decay)),
            *settings,
        )
        self._launched += 1
        cuda.launch("optimizers", f"{name}<{self._c_type}>", self._grid, self._block, arguments)


class Table:
    """Numbers in device memory that a launch of several steps reads, a row for each step; computed on the host.

    Args:
        xp: CuPy.
        columns: How many numbers a step has.
        dtype: As what kernels read them.
    """

    def __init__(self, xp: Any, columns: int, dtype: Any) -> None:
        self._xp, self._numbers = xp, xp.zeros((MOST_STEPS, columns), dtype)
        self._rows = [self._numbers[s] for s in range(MOST_STEPS)]
        self._there: Any = None  # as `set` last wrote them

    def set(self, numbers: Any) -> None:
        """Write a number, or a list with one for each column, to all rows; or an array of rows to the first ones."""
        rows = slice(len(numbers) if isinstance(numbers, np.ndarray) else None)
        numbers = np.array(numbers, self._numbers.dtype)
        if not np.array_equal(numbers, self._there):
            self._numbers[rows] = self._xp.asarray(numbers)
            self._there = numbers

    def row(self, step: int) -> Array:
        """The numbers of a step after `set`, counted from 0; steps beyond the table take its last row."""
        return self._rows[min(step, MOST_STEPS - 1)]


def _warps(numbers: int) -> tuple[int, int]:
    """Threads of a block that adds up so many numbers: whole warps, and none without work."""
    return min(BLOCK_THREADS, WARP * -(-numbers // WARP)), 1


def _block(P: int, itemsize: int) -> tuple[int, int]:
    """Threads along a row and over members: as many along a row as it has packs, up to all of the block."""
    packs = -(-P * itemsize // PACK_BYTES)
    width = min(BLOCK_THREADS, 1 << max(0, packs - 1).bit_length())
    return width, BLOCK_THREADS // width


def _grid(E: int, P: int, itemsize: int) -> tuple[int, int, int]:
    """Blocks along the rows and over members, at least one."""
    width, height = _block(P, itemsize)
    over_members = max(1, min(-(-E // height), GRID_LIMIT))
    along_rows = -(-P * itemsize // (PACK_BYTES * width))
    return max(1, min(along_rows, BLOCKS // over_members)), over_members, 1
