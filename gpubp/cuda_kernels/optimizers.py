"""Updates of the flat parameter buffer on a device: see `gpubp.optimizers`, ``kernels/optimizers.cu``."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubp import cuda
from gpubp.backend import Array, array_module
from gpubp.cuda_kernels.losses import chunk_of, chunks
from gpubp.cuda_kernels.memory import C_TYPES, GRID_LIMIT, pointer
from gpubp.cuda_kernels.tiles import pack_width

BLOCK_THREADS = 256
"""Threads of a CUDA block."""
WARP = 32
"""Threads that exchange numbers without a barrier."""
BLOCKS = 1024
"""Blocks along the rows and over the members together after which a thread takes more than one pack: about as many as
a large card runs at once, so that what each computes first, once for all its threads, is not done again and again."""
PACK_BYTES = 16
"""What a thread loads at once; ``PACK`` of ``kernels/sums.cuh``."""
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
        and theta.flags.c_contiguous
        and dL_dtheta.flags.c_contiguous
    )
    return Update(theta, dL_dtheta) if taken else None


class Update:
    """Launches of an update of one pair of buffers, and what they read anew in each step from device memory.

    Args:
        theta: (P,) or (E, P), contiguous.
        dL_dtheta: The same shape and dtype, contiguous.

    Attributes:
        weight_decay: How strongly theta is drawn to zero, as a share of it for each unit of the learning rate.
        decayed: How many leading columns of theta are.
    """

    def __init__(self, theta: Array, dL_dtheta: Array) -> None:
        xp = array_module(theta, dL_dtheta)
        self._buffers = theta, dL_dtheta
        E, P = math.prod(theta.shape[:-1]), theta.shape[-1]
        self._sizes = E, P
        self._rates = xp.zeros((MOST_STEPS, E), np.float64)  # a row for each step after `begin`
        self._rows = [self._rates[k] for k in range(MOST_STEPS)]
        self._rates_there: Any = None  # as `begin` was given them
        self._steps = xp.zeros(1, np.int64)  # done before `begin`
        self._launched = 0  # since `begin`
        self._factors: Array | None = None  # (E,), what the gradient is multiplied by; None where never clipped
        self._squares: Array | None = None  # (E, C)
        self._clipped = False  # whether the factors count
        self.weight_decay, self.decayed = 0.0, 0
        self._block = _block(P, theta.itemsize)
        self._grid = _grid(E, P, theta.itemsize)

    def begin(self, steps: int, rates: Any) -> None:
        """Set how many steps were done before, and the learning rates of those that follow.

        The launches that follow take the steps after those, one each. Nothing here waits for the device.

        Args:
            steps: How many were done.
            rates: A number, or a list with one of each member, for all steps; or an array with a row for each of at
                most `MOST_STEPS` steps, (steps, 1) or (steps, E).
        """
        self._launched = 0
        self._steps.fill(steps)
        if np.array_equal(rates, self._rates_there):
            return
        if isinstance(rates, float):
            self._rates.fill(rates)
        elif isinstance(rates, np.ndarray):
            self._rates[: len(rates)] = array_module(self._rates).asarray(rates)
        else:
            self._rates[...] = array_module(self._rates).asarray(rates, dtype=np.float64)
        self._rates_there = rates

    def clip(self, norm: float | None) -> None:
        """Launch what keeps the gradient of each member from being longer than this; None for as long as it is."""
        self._clipped = norm is not None
        E, P = self._sizes
        if norm is None or not E * P:
            return
        gradient, C = self._buffers[1], chunks(E, -(-P // (BLOCK_THREADS * SQUARES_PER_THREAD)), P)
        if self._factors is None:
            xp = array_module(gradient)
            self._factors, self._squares = xp.empty(E, gradient.dtype), xp.empty((E, C), np.float64)
        grid = C, min(E, GRID_LIMIT), 1
        W = pack_width(gradient, step=P if E > 1 else 0)
        arguments: tuple[Any, ...] = (gradient, self._squares, E, P, C, chunk_of(P, C, W))
        cuda.launch("optimizers", f"squares<{self._c_type}, {W}>", grid, _warps(P), arguments)
        arguments = (self._squares, self._factors, E, C, np.float64(norm))
        cuda.launch("optimizers", f"clip_factors<{self._c_type}>", (min(E, BLOCKS), 1, 1), _warps(C), arguments)

    def sgd(self, V: Array | None, momentum: float, nesterov: bool) -> None:
        """Launch; see `gpubp.optimizers.sgd.SGD`. V: of theta's shape, or None without momentum."""
        self._launch("sgd", (pointer(V),), (*self._scalars(momentum), int(nesterov)))

    def adam(self, M: Array, V: Array, beta1: float, beta2: float, epsilon: float) -> None:
        """Launch; see `gpubp.optimizers.adam.Adam`. M and V: of theta's shape."""
        logarithms = (math.log(beta) if beta else -math.inf for beta in (beta1, beta2))
        numbers = (np.float64(number) for number in (beta1, beta2, *logarithms, epsilon))
        self._launch("adam", (M, V), (self._steps, self._launched + 1, *numbers))

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
        if not math.prod(self._sizes):
            return
        arguments = (
            *self._buffers,
            *state,
            *(self._rows[min(self._launched, MOST_STEPS - 1)], int(self._rates.shape[1] > 1)),
            pointer(self._factors if self._clipped else None),
            *(*self._sizes, self.decayed, np.float64(self.weight_decay)),
            *settings,
        )
        self._launched += 1
        cuda.launch("optimizers", f"{name}<{self._c_type}>", self._grid, self._block, arguments)


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
