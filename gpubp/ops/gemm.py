"""Matrix products on the last two axes, with a free leading axis for stacks of networks."""

from __future__ import annotations

from gpubp.backend import Array, array_module


def matmul(A: Array, B: Array, out: Array) -> Array:
    """``out = A @ B``: (..., M, K) @ (..., K, N) -> (..., M, N).

    A transposed view (``.mT``) costs nothing: the BLAS reads it as it lies. A shared factor without the leading
    axis is used by every member of the stack.
    """
    return array_module(A, B, out).matmul(A, B, out=out)
