"""Weighted sums of buffers: see `gpubp.ops.combine`, ``kernels/combine.cu``."""

from __future__ import annotations

from gpubp import cuda
from gpubp.backend import Array
from gpubp.cuda_kernels.losses import BLOCK_THREADS, is_packed
from gpubp.cuda_kernels.memory import C_TYPES, GRID_LIMIT, are_rows_in_order, c_type, member_stride

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
    packed = is_packed(pitches[0], out) and is_packed(pitches[1], X)
    blocks = -(-P * (out.itemsize if packed else 16) // (16 * BLOCK_THREADS))
    scalar = out.dtype.type
    arguments = (out, X, E, P, *pitches, int(packed), scalar(kept), scalar(factor))
    kernel = f"combine<{c_type(out.dtype, 'combine')}>"
    cuda.launch("combine", kernel, (min(blocks, BLOCKS), min(E, GRID_LIMIT), 1), (BLOCK_THREADS, 1), arguments)
    return out
