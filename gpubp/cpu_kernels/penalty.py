"""The L2 penalty and its gradient in one pass: see `gpubp.losses.penalty`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubp import cpu
from gpubp.backend import Array
from gpubp.cpu_kernels.losses import add_up
from gpubp.cpu_kernels.memory import kernel, number, part, vector

BLOCK = 4096
"""Weights in a work item."""


@kernel
def _add_l2(Real: Any, with_gradient: Any) -> Any:
    def add_l2(a: Any, begin: int, end: int, step: int) -> None:
        P, blocks = a[3], a[4]
        alpha, sums = number(a[7]), vector(np.float64, a[2], end)
        for item in range(begin, end):
            e, block = item // blocks, item % blocks
            first, size = block * BLOCK, min(BLOCK, P - block * BLOCK)
            W = part(Real, a[0] + e * a[5], first, first + size)
            dL_dW = part(Real, a[1] + e * a[6], first, first + size)
            squares = 0.0
            for i in range(size):
                squares += np.float64(W[i]) * np.float64(W[i])
            sums[item] = 0.5 * alpha * squares
            if with_gradient:
                for i in range(size):
                    dL_dW[i] += Real(alpha) * W[i]

    return add_l2


def takes(W: Array, dL_dW: Array | None, L: Array) -> bool:
    """Whether dtypes and strides of these arrays fit the kernel: W and dL_dW (..., P'), L (...)."""
    return bool(
        W.size > 0
        and W.dtype.char in "fd"
        and cpu.is_plain(L)
        and L.dtype == W.dtype
        and all(cpu.has_plain_rows(array, W) for array in (W, dL_dW) if array is not None)
    )


def add_l2(W: Array, alpha: float, dL_dW: Array | None, L: Array, scratch: Array) -> Array:
    """Launch; see `gpubp.losses.penalty.add_l2`. Sums are in float64, in space of their own; `scratch` is not used."""
    P = W.shape[-1]
    E, blocks = math.prod(W.shape[:-1]), -(-P // BLOCK)
    partial = np.empty((E, blocks))
    strides = (_stride(W), 0 if dL_dW is None else _stride(dL_dW))
    arguments = (W, dL_dW, partial, P, blocks, *strides, alpha)
    cpu.launch(_add_l2(W.dtype.type, dL_dW is not None), arguments, E * blocks, min(P, BLOCK))
    return add_up(partial, L, onto=True)


def _stride(array: Array) -> int:
    """Bytes from one member's row to the next in an array (P,) or (E, P)."""
    return 0 if array.ndim == 1 else int(array.strides[0])
