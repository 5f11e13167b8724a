"""Weighted sums of buffers: see `gpubp.ops.combine`, ``kernels/combine.cu``."""

from __future__ import annotations

from gpubp import cuda
from gpubp.backend import Array
from gpubp.cuda_kernels.memory import C_TYPES, GRID_LIMIT, are_rows_in_order, c_type, member_stride
from gpubp.cuda_kernels.tiles import BLOCK_THREADS, pack_width

BLOCKS = 4096
"""Most blocks along a row; the kernel loops over what is beyond."""


def takes(out: Array, X: Array) -> bool:
    """Whether there is a kernel for dtypes, shapes and strides of these arrays."""
    plain = all(
        (array.flags.c_contiguous or are_rows_in_order(array)) and array.dtype.name in C_TYPES for array in (out, X)
    )
    return plain and out.shape == X.shape and out.dtype == X.dtype


def combine(out: Array, kept: float, X: Array, factor: float) -> Array:
    """Launch; see `gpubp.ops.combine.combine`."""
    if not out.size:
        return out
    as_rows = out.ndim == 2 and not (out.flags.c_contiguous and X.flags.c_contiguous)
    E, P = out.shape if as_rows else (1, out.size)
    pitches = (member_stride(out), member_stride(X)) if as_rows else (0, 0)
    W = min(pack_width(out, step=pitches[0]), pack_width(X, step=pitches[1]))
    scalar = out.dtype.type
    grid = min(-(-P // (W * BLOCK_THREADS)), BLOCKS), min(E, GRID_LIMIT), 1
    arguments = (out, X, E, P, *pitches, scalar(kept), scalar(factor))
    cuda.launch("combine", f"combine<{c_type(out.dtype, 'combine')}, {W}>", grid, (BLOCK_THREADS, 1), arguments)
    return out
