"""Dropout with the mask made on the way: see `gpubp.ops.dropout`, and ``kernels/dropout.cu`` for the same in CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubp import cpu
from gpubp.backend import Array
from gpubp.cpu_kernels.memory import kernel, number, part, vector
from gpubp.cpu_kernels.random import NANOSECONDS, philox, uniforms


@kernel
def _dropout(Real: Any) -> Any:
    def dropout(a: Any, begin: int, end: int, step: int) -> None:
        low, half, pack = np.uint64(0xFFFFFFFF), np.uint64(32), a[7]
        draw = np.uint64(vector(np.int64, a[3], 1)[0] + a[6] + step)
        rate, scale = Real(number(a[8])), Real(number(a[9]))
        for block in range(begin, end):
            counter = np.uint64(block)
            words = philox(counter & low, counter >> half, draw & low, draw >> half, np.uint64(a[5]))
            u = uniforms(Real, words)
            first, last = block * pack, min((block + 1) * pack, a[4])
            X, mask, Y = part(Real, a[0], first, last), part(Real, a[1], first, last), part(Real, a[2], first, last)
            for k in range(len(Y)):
                m = Real(0) if u[k] < rate else scale
                mask[k] = m
                Y[k] = X[k] * m

    return dropout


def takes(X: Array, mask: Array, Y: Array, draw: Array) -> bool:
    """Whether dtypes, shapes and strides fit the kernel."""
    return cpu.is_plain(X, mask, Y) and X.shape == mask.shape == Y.shape and cpu.is_native(draw)


def dropout(X: Array, mask: Array, Y: Array, rate: float, scale: float, seed: int, draw: Array, offset: int) -> Array:
    """Launch; see `gpubp.ops.dropout.dropout`. Each step of a program makes the mask that follows."""
    pack = 16 // Y.itemsize
    arguments = (X, mask, Y, draw, Y.size, seed, offset, pack, float(rate), scale)
    cpu.launch(_dropout(Y.dtype.type), arguments, -(-Y.size // pack), NANOSECONDS + 0.3 * pack)
    return Y
