"""The L2 penalty on the weights, part of a network's loss."""

from __future__ import annotations

import math

import numpy as np

from gpubp import compiled
from gpubp.backend import Array, array_module
from gpubp.cost import Cost
from gpubp.ops import tiles
from gpubp.rules import Rule

RULE = Rule(
    "dL_dW",
    "alpha * W",
    "dL_dW[i,o] = alpha * W[i,o]",
    "each weight is squared once, and half the derivative of a square is its base; biases are left alone",
)


def add_l2(W: Array, alpha: float, dL_dW: Array | None, L: Array, scratch: Array | None = None) -> Array:
    """``L += 0.5 * alpha * sum(W^2)`` of each row, and its gradient ``dL_dW += alpha * W``.

    Args:
        W: (..., P'), the decayed columns of the flat parameter buffer.
        alpha: The strength.
        dL_dW: (..., P'), to be added to; None computes the value alone.
        L: (...), the loss so far, to be added to.
        scratch: What `scratch_for` gives for W; None for a fresh one.

    Returns:
        L.

    Raises:
        ShapeError: On a CUDA device: the arrays do not fit each other.
    """
    xp = array_module(W, L, *(() if dL_dW is None else (dL_dW,)))
    scratch = scratch_for(W) if scratch is None else scratch
    if (kernels := compiled.kernels_of(xp)) and kernels.penalty.takes(W, dL_dW, L):
        return kernels.penalty.add_l2(W, alpha, dL_dW, L, scratch)
    total = xp.zeros(W.shape[:-1], W.dtype)
    for tile, part in tiles.over(W, scratch):
        xp.multiply(W[tile], W[tile], out=part)
        total[tile[:-1]] += part.sum(axis=-1)
        if dL_dW is not None:
            xp.multiply(W[tile], alpha, out=part)
            xp.add(dL_dW[tile], part, out=dL_dW[tile])
    return xp.add(L, 0.5 * alpha * total, out=L)


def scratch_for(W: Array) -> Array:
    """The scratch space that `add_l2` needs for W: a tile, or on a device one number for each sum of a part."""
    xp = array_module(W)
    if xp is np:
        return tiles.prepare(W)[1]
    return xp.empty(compiled.kernels_of(xp).penalty.partial_sums_shape(W.shape), W.dtype)


def cost(name: str, shape: tuple[int, ...], itemsize: int) -> Cost:
    """The cost of `add_l2` with the gradient for weights of this shape: squares summed up, products added."""
    size = math.prod(shape)
    return Cost(name, 4 * size, 3 * size * itemsize)
