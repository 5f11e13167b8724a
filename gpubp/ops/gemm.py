"""Matrix products on the last two axes, with a free leading axis for stacks of networks."""

from __future__ import annotations

import numpy as np

from gpubp.backend import Array, array_module


def matmul(A: Array, B: Array, out: Array) -> Array:
    """``out = A @ B``: (..., M, K) @ (..., K, N) -> (..., M, N).

    For NumPy a transposed view (``.mT``) costs nothing: the BLAS reads it as it lies. CuPy does so for single matrices
    and copies those of a stack. A shared factor without the leading
    axis is used by every member of the stack.
    """
    xp = array_module(A, B, out)
    if xp is np and A.shape[-1] == 1:  # an outer product, which numpy.matmul computes at a tenth of the speed
        return np.dot(A, B, out=out) if A.ndim == B.ndim == 2 else np.multiply(A, B, out=out)
    return xp.matmul(A, B, out=out)
