"""Uniform random numbers on a device: see `gpubp.ops.random`, ``kernels/random.cu``."""

from __future__ import annotations

import numpy as np

from gpubp import cuda
from gpubp.backend import Array
from gpubp.cuda_kernels.memory import C_TYPES, c_type
from gpubp.cuda_kernels.tiles import BLOCK_THREADS, BLOCKS, IN_FLIGHT, PACK_BYTES, pack_width


def takes(out: Array, draw: Array) -> bool:
    """Whether there is a kernel for the dtypes, and the result lies in one piece."""
    return out.dtype.name in C_TYPES and out.flags.c_contiguous and draw.dtype.name == "int64"


def uniform(out: Array, seed: int, draw: Array, offset: int) -> Array:
    """Launch; see `gpubp.ops.random.uniform`."""
    if out.size:
        kernel = f"uniform<{c_type(out.dtype, 'uniform')}, {pack_width(out)}>"
        blocks = -(-out.size * out.itemsize // (PACK_BYTES * BLOCK_THREADS))
        grid = min(blocks, max(BLOCKS, -(-blocks // IN_FLIGHT))), 1, 1
        cuda.launch("random", kernel, grid, (BLOCK_THREADS, 1), (out, draw, out.size, np.uint64(seed), offset))
    return out
