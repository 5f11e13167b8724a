"""Dropout on a device: see `gpubp.ops.dropout`, ``kernels/dropout.cu``."""

from __future__ import annotations

import numpy as np

from gpubp import cuda
from gpubp.backend import Array
from gpubp.cuda_kernels.elementwise import are_plain, grid_of
from gpubp.cuda_kernels.memory import c_type
from gpubp.cuda_kernels.tiles import BLOCK_THREADS, pack_width


def takes(X: Array, mask: Array, Y: Array, draw: Array) -> bool:
    """Whether there is a kernel for dtypes, shapes and strides of these arrays."""
    return X.shape == mask.shape == Y.shape and are_plain(X, mask, Y)


def dropout(X: Array, mask: Array, Y: Array, rate: float, scale: float, seed: int, draw: Array, offset: int) -> Array:
    """Launch; see `gpubp.ops.dropout.dropout`."""
    if Y.size:
        scalar = Y.dtype.type
        arguments = (X, mask, Y, draw, Y.size, np.uint64(seed), offset, scalar(rate), scalar(scale))
        kernel = f"dropout<{c_type(Y.dtype, 'dropout')}, {pack_width(X, mask, Y)}>"
        cuda.launch("dropout", kernel, grid_of(Y.size, Y.itemsize), (BLOCK_THREADS, 1), arguments)
    return Y
