"""Sums and products of two matrices, element by element."""

from __future__ import annotations

import math

from gpubp import compiled
from gpubp.backend import Array, array_module
from gpubp.cost import Cost


def add(A: Array, B: Array, out: Array) -> Array:
    """``out = A + B``; `out` may be one of them. All of one shape, or A and B broadcast to that of `out`."""
    xp = array_module(A, B, out)
    if (kernels := compiled.kernels_of(xp)) and kernels.elementwise.takes(A, B, out):
        return kernels.elementwise.add(A, B, out)
    return xp.add(A, B, out=out)


def multiply(A: Array, B: Array, out: Array) -> Array:
    """``out = A * B``; as `add`."""
    xp = array_module(A, B, out)
    if (kernels := compiled.kernels_of(xp)) and kernels.elementwise.takes(A, B, out):
        return kernels.elementwise.multiply(A, B, out)
    return xp.multiply(A, B, out=out)


def cost(name: str, shape: tuple[int, ...], itemsize: int) -> Cost:
    """The cost of either on arrays of this shape."""
    size = math.prod(shape)
    return Cost(name, size, 3 * size * itemsize)
