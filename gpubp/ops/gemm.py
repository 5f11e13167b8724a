"""Matrix products on the last two axes, with a free leading axis for stacks of networks."""

from __future__ import annotations

import math

import numpy as np

from gpubp import compiled
from gpubp.backend import Array, array_module
from gpubp.cost import Cost

PRECISIONS = ("float32", "tf32", "bf16")
"""What float32 factors are rounded to before they are multiplied: nothing, 10 or 7 binary digits behind the point."""


def matmul(A: Array, B: Array, out: Array, *, precision: str = "float32") -> Array:
    """``out = A @ B``: (..., M, K) @ (..., K, N) -> (..., M, N).

    A transposed view (``.mT``) costs nothing: the BLAS reads it as it lies, but where CuPy computes without a cuBLAS
    handle of ours, and copies those of a stack. A shared factor without the leading axis is used by every member of the
    stack. With the CPU kernels the product is one of them, so that it can be part of a recorded program; with a cuBLAS
    handle of ours it can be captured into a CUDA graph.

    Args:
        A: (..., M, K).
        B: (..., K, N).
        out: (..., M, N); returned.
        precision: One of `PRECISIONS`. The factors and the result are float32 in memory, and sums are float32. It
            counts on a GPU, with a cuBLAS handle of ours, for float32 arrays; elsewhere ``"float32"`` is computed.
    """
    xp = array_module(A, B, out)
    if (kernels := compiled.kernels_of(xp)) and kernels.gemm.takes(A, B, out):
        return kernels.gemm.matmul(A, B, out, precision)
    if xp is np:
        if out.ndim == 2 and out.flags.c_contiguous and A.dtype is B.dtype is out.dtype:
            return np.dot(A, B, out=out)  # which takes no more than that, and half a microsecond less
        if A.shape[-1] == 1:  # an outer product, which numpy.matmul computes at a tenth of the speed
            return np.multiply(A, B, out=out)
    return xp.matmul(A, B, out=out)


def cost(name: str, A_shape: tuple[int, ...], B_shape: tuple[int, ...], itemsize: int) -> Cost:
    """The cost of `matmul`: a product and a sum for each element of A and each column of B."""
    lead = max(A_shape[:-2], B_shape[:-2], key=len)
    (M, K), N = A_shape[-2:], B_shape[-1]
    sizes = math.prod(A_shape) + math.prod(B_shape) + math.prod(lead) * M * N
    return Cost(name, 2 * math.prod(lead) * M * N * K, sizes * itemsize)
