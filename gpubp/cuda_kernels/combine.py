"""Weighted sums of buffers: see `gpubp.ops.combine`, ``kernels/combine.cu``."""

from __future__ import annotations

from gpubp import cuda
from gpubp.backend import Array
from gpubp.cuda_kernels.losses import BLOCK_THREADS, is_packed
from gpubp.cuda_kernels.memory import C_TYPES, c_type

BLOCKS = 4096
"""Most blocks; the kernel loops over what is beyond."""


def takes(out: Array, X: Array) -> bool:
    """Whether there is a kernel for dtypes, shapes and strides of these arrays."""
    plain = all(array.flags.c_contiguous and array.dtype.name in C_TYPES for array in (out, X))
    return plain and out.shape == X.shape and out.dtype == X.dtype


def combine(out: Array, kept: float, X: Array, factor: float) -> Array:
    """Launch; see `gpubp.ops.combine.combine`."""
    packed = is_packed(0, out, X)
    numbers = out.size if not packed else -(-out.size * out.itemsize // 16)
    blocks = min(-(-numbers // BLOCK_THREADS), BLOCKS)
    if out.size:
        scalar = out.dtype.type
        arguments = (out, X, out.size, int(packed), scalar(kept), scalar(factor))
        cuda.launch(
            "combine", f"combine<{c_type(out.dtype, 'combine')}>", (blocks, 1, 1), (BLOCK_THREADS, 1), arguments
        )
    return out
