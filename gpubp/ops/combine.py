"""Weighted sums of buffers: a gradient that is added up over micro-batches, say."""

from __future__ import annotations

from gpubp import compiled
from gpubp.backend import Array, array_module


def combine(out: Array, kept: float, X: Array, factor: float) -> Array:
    """``out = kept * out + factor * X``, elementwise.

    Args:
        out: Any shape, contiguous, or rows (E, P) that are; not read where `kept` is 0.
        kept: A number.
        X: Of the shape of `out`, likewise.
        factor: A number.
    """
    xp = array_module(out, X)
    if (kernels := compiled.kernels_of(xp)) and kernels.combine.takes(out, X):
        return kernels.combine.combine(out, kept, X, factor)
    if kept == 0:
        return xp.multiply(X, factor, out=out)
    xp.multiply(out, kept, out=out)
    return xp.add(out, factor * X, out=out)
