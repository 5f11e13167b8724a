"""Weighted sums of buffers: see `gpubp.ops.combine`."""

from __future__ import annotations

from typing import Any

from gpubp import cpu
from gpubp.backend import Array
from gpubp.cpu_kernels.memory import kernel, number, part


@kernel
def _combine(Real: Any, reads: Any) -> Any:
    def combine(a: Any, begin: int, end: int, step: int) -> None:
        out, X = part(Real, a[0], begin, end), part(Real, a[1], begin, end)
        kept, factor = Real(number(a[2])), Real(number(a[3]))
        for i in range(end - begin):
            out[i] = kept * out[i] + factor * X[i] if reads else factor * X[i]

    return combine


def takes(out: Array, X: Array) -> bool:
    """Whether there is a kernel for dtypes and strides of these arrays."""
    return cpu.is_plain(out, X) and out.shape == X.shape


def combine(out: Array, kept: float, X: Array, factor: float) -> Array:
    """Launch; see `gpubp.ops.combine.combine`."""
    cpu.launch(_combine(out.dtype.type, kept != 0), (out, X, float(kept), float(factor)), out.size, 0.2)
    return out
