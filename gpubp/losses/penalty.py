"""The L2 penalty on the weights, part of a network's loss."""

from __future__ import annotations

from gpubp.backend import Array
from gpubp.ops import tiles
from gpubp.rules import Rule

RULE = Rule(
    "dL_dW",
    "alpha * W",
    "dL_dW[i,o] = alpha * W[i,o]",
    "each weight is squared once, and half the derivative of a square is its base; biases are left alone",
)


def add_l2(W: Array, alpha: float, dL_dW: Array | None, scratch: Array | None = None) -> Array:
    """``0.5 * alpha * sum(W^2)`` of each row, and its gradient added onto `dL_dW`.

    Args:
        W: (..., P'), the decayed columns of the flat parameter buffer.
        alpha: The strength.
        dL_dW: (..., P'), to be added to; None computes the value alone.
        scratch: What `tiles.scratch` gives for W; None for a fresh one.

    Returns:
        The penalty, of shape (...).
    """
    xp, scratch = tiles.prepare(W, scratch)
    total = xp.zeros(W.shape[:-1], W.dtype)
    for tile, part in tiles.over(W, scratch):
        xp.multiply(W[tile], W[tile], out=part)
        total[tile[:-1]] += part.sum(axis=-1)
        if dL_dW is not None:
            xp.multiply(W[tile], alpha, out=part)
            xp.add(dL_dW[tile], part, out=dL_dW[tile])
    return 0.5 * alpha * total
