"""Weighted sums of buffers: see `gpubp.ops.combine`, ``kernels/combine.cu``."""

from __future__ import annotations

from gpubp import cuda
from gpubp.backend import Array
from gpubp.cuda_kernels.memory import C_TYPES, c_type
from gpubp.cuda_kernels.tiles import BLOCK_THREADS, pack_width

BLOCKS = 4096
"""Most blocks; the kernel loops over what is beyond."""


def takes(out: Array, X: Array) -> bool:
    """Whether there is a kernel for dtypes, shapes and strides of these arrays."""
    plain = all(array.flags.c_contiguous and array.dtype.name in C_TYPES for array in (out, X))
    return plain and out.shape == X.shape and out.dtype == X.dtype


def combine(out: Array, kept: float, X: Array, factor: float) -> Array:
    """Launch; see `gpubp.ops.combine.combine`."""
    if out.size:
        W, scalar = pack_width(out, X), out.dtype.type
        grid = min(-(-out.size // (W * BLOCK_THREADS)), BLOCKS), 1, 1
        kernel = f"combine<{c_type(out.dtype, 'combine')}, {W}>"
        cuda.launch("combine", kernel, grid, (BLOCK_THREADS, 1), (out, X, out.size, scalar(kept), scalar(factor)))
    return out
