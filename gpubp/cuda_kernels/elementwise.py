"""Sums and products of two arrays on a device: see `gpubp.ops.elementwise`, ``kernels/elementwise.cu``."""

from __future__ import annotations

from gpubp import cuda
from gpubp.backend import Array
from gpubp.cuda_kernels.memory import C_TYPES, c_type
from gpubp.cuda_kernels.tiles import BLOCK_THREADS, BLOCKS, IN_FLIGHT, PACK_BYTES, pack_width


def takes(A: Array, B: Array, out: Array) -> bool:
    """Whether there is a kernel for dtypes, shapes and strides of these arrays."""
    return A.shape == B.shape == out.shape and are_plain(A, B, out)


def are_plain(*arrays: Array) -> bool:
    """Whether the arrays are C-contiguous, and all float32 or all float64."""
    dtype = arrays[0].dtype
    return dtype.name in C_TYPES and all(array.flags.c_contiguous and array.dtype == dtype for array in arrays)


def grid_of(size: int, itemsize: int, *, in_flight: int = IN_FLIGHT) -> tuple[int, int, int]:
    """Blocks for an array of which each thread takes 16 bytes at a time."""
    blocks = -(-size * itemsize // (PACK_BYTES * BLOCK_THREADS))
    return max(1, min(blocks, max(BLOCKS, -(-blocks // in_flight)))), 1, 1


def add(A: Array, B: Array, out: Array) -> Array:
    """Launch; see `gpubp.ops.elementwise.add`."""
    return _launched("add", A, B, out)


def multiply(A: Array, B: Array, out: Array) -> Array:
    """Launch; see `gpubp.ops.elementwise.multiply`."""
    return _launched("multiply", A, B, out)


def _launched(name: str, A: Array, B: Array, out: Array) -> Array:
    if out.size:
        kernel = f"{name}<{c_type(out.dtype, name)}, {pack_width(A, B, out)}>"
        grid = grid_of(out.size, out.itemsize)
        cuda.launch("elementwise", kernel, grid, (BLOCK_THREADS, 1), (A, B, out, out.size))
    return out
