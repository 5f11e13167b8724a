"""Uniform random numbers that depend on seed, draw and place alone: the same on every executor.

They come from Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011), a
function from a counter and a key to random words, without a state. The key is the seed; the counter is the number of
16 bytes of the array, and the number of the draw. So it does not matter who computes which part of an array, or when.
"""

from __future__ import annotations

import functools
import math
from types import ModuleType
from typing import Any

import numpy as np

from gpubp import compiled
from gpubp.backend import Array, array_module
from gpubp.cost import Cost
from gpubp.errors import SettingError, ShapeError

ROUNDS = 10
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
WORD = 0xFFFFFFFF
PIECE = 65536
"""Numbers that are made at a time, so that arrays stay in cache; a multiple of 4."""


def uniform(out: Array, seed: int, draw: Array, offset: int = 0) -> Array:
    """Fill `out` with numbers from 0 to 1, 1 excluded: multiples of 2^-24 in float32, of 2^-53 in float64.

    Args:
        out: Any shape, contiguous; a stack is one array, so that its members get different numbers.
        seed: 0 to 2^64 - 1.
        draw: int64, of one element, on the device of `out`: which draw this is. It is read when the numbers are made,
            so that a recorded step makes new ones each time. A step of a CPU program adds its own number.
        offset: Added to `draw`.

    Raises:
        SettingError: The seed is out of range.
        ShapeError: `out` is neither float32 nor float64, or has gaps, or `draw` is no single int64.
    """
    xp = array_module(out, draw)
    require_drawable(out, seed, draw)
    if (kernels := compiled.kernels_of(xp)) and kernels.random.takes(out, draw):
        return kernels.random.uniform(out, seed, draw, offset)
    flat, number = out.ravel(), draw.item() + offset  # of a contiguous array, ravel is a view
    for first in range(0, flat.size, PIECE):
        piece = flat[first : first + PIECE]
        piece[...] = numbers(first, piece.size, out.dtype, seed, number)
    return out


def require_drawable(out: Array, seed: int, draw: Array) -> None:
    """Look at the arguments of `uniform`; its errors."""
    if not 0 <= seed < 2**64:
        raise SettingError(f"seed={seed}: a whole number from 0 to 2^64 - 1 is needed")
    if draw.size != 1 or draw.dtype != np.int64:
        raise ShapeError(f"draw is {draw.dtype} {draw.shape}: a single int64 is needed")
    if out.dtype.name not in ("float32", "float64") or not out.flags.c_contiguous:
        raise ShapeError(f"out is {out.dtype} with strides {out.strides}: contiguous float32 or float64 is needed")


def numbers(first: int, size: int, dtype: Any, seed: int, draw: int) -> Array:
    """Some of the numbers of a draw, (size,), from number `first` on, which is a multiple of 4."""
    pack = 4 if dtype == np.float32 else 2
    blocks = np.arange(first // pack, -(-(first + size) // pack), dtype=np.uint64)
    words = philox(blocks & WORD, blocks >> 32, draw & WORD, draw >> 32 & WORD, seed)
    return _uniforms(words, dtype).ravel()[:size]


def philox(c0: Any, c1: Any, c2: Any, c3: Any, key: int) -> tuple[Array, Array, Array, Array]:
    """Four random words of 32 bits, in uint64, for counters of four words each and a key of 64 bits."""
    c0, c1, c2, c3 = np.broadcast_arrays(*(np.asarray(c, np.uint64) for c in (c0, c1, c2, c3)))
    k0, k1 = key & WORD, key >> 32
    for _ in range(ROUNDS):
        p0, p1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ np.uint64(k0), p1 & WORD, (p0 >> 32) ^ c3 ^ np.uint64(k1), p0 & WORD
        k0, k1 = k0 + KEY_STEPS[0] & WORD, k1 + KEY_STEPS[1] & WORD
    return c0, c1, c2, c3


def _uniforms(words: tuple[Array, ...], dtype: Any) -> Array:
    """(B, 4) float32 or (B, 2) float64 from the words of B counters."""
    w = np.stack(words).T  # (B, 4)
    if dtype == np.float32:
        return (w >> 8).astype(dtype) * dtype.type(2**-24)
    return ((w[:, 0::2] >> 5) << 26 | w[:, 1::2] >> 6).astype(dtype) * 2.0**-53


def cost(name: str, shape: tuple[int, ...], itemsize: int) -> Cost:
    """The cost of `uniform`: an array is written; its operations are on whole numbers."""
    return Cost(name, 0, math.prod(shape) * itemsize)


class Draws:
    """What the random layers of a network draw in training: something new in each step, and in each of its parts.

    The number of the step lies in device memory, so that steps that were recorded once draw anew each time. Until the
    next step begins, the same is drawn again.

    Args:
        seed: 0 to 2^64 - 1.
        xp: The array module that computes; None where nothing is drawn, and steps are counted alone.
        steps: How many steps have begun.

    Attributes:
        draw: The number of the step, int64 of one element.
        offset: Steps of a launch before the one that is enqueued now.
        part: Which micro-batch of the step is computed.
    """

    def __init__(self, seed: int, xp: ModuleType | None = np, steps: int = 0) -> None:
        self.seed, self.steps, self.offset, self.part = seed, steps, 0, 0
        self.draw: Array = None if xp is None else xp.full(1, steps, np.int64)

    @classmethod
    def of(cls, rng: Draws | np.random.Generator | None, layer: object, xp: ModuleType) -> Draws:
        """What a layer was given as `rng`; from a generator a seed is drawn.

        Raises:
            SettingError: It was given nothing.
        """
        if isinstance(rng, Draws):
            return rng
        if rng is None:
            raise SettingError(f"{layer!r} is random in training: give it rng=numpy.random.default_rng(seed)")
        return cls(int(rng.integers(2**63)), xp)

    def begin_steps(self, count: int) -> None:
        """Count so many steps; with 0, what is drawn is what the next step will draw. Nothing waits for the device."""
        if self.draw is not None:
            self.draw.fill(self.steps)
        self.steps += count

    def seed_of(self, number: int) -> int:
        """The seed of layer `number` in this part of the step."""
        return _mixed(self.seed, number, self.part)


@functools.cache
def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
