"""Sums and products of two arrays: see `gpubp.ops.elementwise`."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubp import cpu
from gpubp.backend import Array
from gpubp.cpu_kernels.memory import kernel, part

NANOSECONDS = 0.3
"""About what an element takes, to tell work worth sharing between threads."""


@kernel
def _add(Real: Any) -> Any:
    def add(a: Any, begin: int, end: int, step: int) -> None:
        A, B, out = part(Real, a[0], begin, end), part(Real, a[1], begin, end), part(Real, a[2], begin, end)
        if a[0] == a[2]:  # in place: only a name that is the same lets the compiler vectorise
            for i in range(end - begin):
                out[i] += B[i]
        else:
            for i in range(end - begin):
                out[i] = A[i] + B[i]

    return add


@kernel
def _multiply(Real: Any) -> Any:
    def multiply(a: Any, begin: int, end: int, step: int) -> None:
        A, B, out = part(Real, a[0], begin, end), part(Real, a[1], begin, end), part(Real, a[2], begin, end)
        if a[0] == a[2]:
            for i in range(end - begin):
                out[i] *= B[i]
        else:
            for i in range(end - begin):
                out[i] = A[i] * B[i]

    return multiply


def takes(A: Array, B: Array, out: Array) -> bool:
    """Whether there is a kernel for dtypes, shapes and strides of these arrays."""
    return cpu.is_plain(A, B, out) and A.shape == B.shape == out.shape


def add(A: Array, B: Array, out: Array) -> Array:
    """Launch; see `gpubp.ops.elementwise.add`."""
    return _launched(_add, A, B, out)


def multiply(A: Array, B: Array, out: Array) -> Array:
    """Launch; see `gpubp.ops.elementwise.multiply`."""
    return _launched(_multiply, A, B, out)


def _launched(family: Any, A: Array, B: Array, out: Array) -> Array:
    if np.may_share_memory(B, out):  # either order gives the same
        A, B = B, A
    cpu.launch(family(out.dtype.type), (A, B, out), out.size, NANOSECONDS)
    return out
