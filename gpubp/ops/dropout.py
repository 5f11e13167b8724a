"""Dropout: a random part of a matrix becomes zero, and the rest is scaled so that the mean stays.

    mask = 0 where u < rate, else 1 / (1 - rate);   Y = X * mask

with the uniform numbers u of `gpubp.ops.random`, so that a mask depends on seed, draw and place alone.
"""

from __future__ import annotations

import numpy as np

from gpubp import compiled
from gpubp.backend import Array, array_module
from gpubp.cost import Cost
from gpubp.ops import elementwise, random


def dropout(X: Array, mask: Array, Y: Array, rate: float, seed: int, draw: Array, offset: int = 0) -> Array:
    """``Y = X * mask``, with a mask that is made on the way.

    Args:
        X: (..., N, n).
        mask: As X, contiguous; the result.
        Y: As X, contiguous; the result. It may be X itself.
        rate: The share that becomes zero, at least 0 and below 1.
        seed: See `gpubp.ops.random.uniform`, also for what follows.
        draw: int64, of one element.
        offset: Added to `draw`.

    Raises:
        SettingError, ShapeError: See `gpubp.ops.random.uniform`.
    """
    xp = array_module(X, mask, Y, draw)
    random.require_drawable(mask, seed, draw)
    scale = mask.dtype.type(1 / (1 - rate))
    if (kernels := compiled.kernels_of(xp)) and kernels.dropout.takes(X, mask, Y, draw):
        return kernels.dropout.dropout(X, mask, Y, rate, float(scale), seed, draw, offset)
    random.uniform(mask, seed, draw, offset)
    xp.greater_equal(mask, mask.dtype.type(rate), out=mask)
    xp.multiply(mask, scale, out=mask)
    return elementwise.multiply(X, mask, Y)


def cost(name: str, shape: tuple[int, ...], itemsize: int) -> Cost:
    """The cost of `dropout`; operations on whole numbers are left out."""
    size = int(np.prod(shape, dtype=np.int64))
    return Cost(name, 2 * size, 3 * size * itemsize)  # compare, multiply
