"""Picking examples by index: see `gpubp.ops.gather`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubp import cpu
from gpubp.backend import Array
from gpubp.cpu_kernels.memory import kernel, prefetch, vector

BYTES_PER_NANOSECOND = 8
AHEAD = 8
"""How many rows before its turn a row is fetched into cache: which comes next, only the index knows."""
FETCHED = 4096
"""Bytes of such a row at most; the processor sees by itself how the rest of a long one goes on."""
LINE = 64
"""Bytes of a cache line."""

_INTO = {
    "float32": ("float64",),
    "float64": ("float32",),
    "uint8": ("float32", "float64", "int64"),
    "int32": ("int64",),
}
"""What dtypes are converted into."""


@kernel
def _gather(From: Any, To: Any) -> Any:
    def gather(a: Any, begin: int, end: int, step: int) -> None:
        rows, columns, N = a[3], a[4], a[5]
        index = vector(np.int64, a[1] + step * a[6], rows)
        for item in range(begin, end):
            e, n = item // rows, item % rows
            if n + AHEAD < rows:
                ahead = a[0] + (e * N + min(max(index[n + AHEAD], 0), N - 1)) * a[7]
                for k in range(0, min(a[7], FETCHED), LINE):
                    prefetch(ahead + k)
            row = min(max(index[n], 0), N - 1)  # never outside the data, whatever the index
            source = vector(From, a[0] + (e * N + row) * a[7], columns)
            target = vector(To, a[2] + item * a[8], columns)
            for j in range(columns):
                target[j] = To(source[j])

    return gather


def takes(data: Array, index: Array, out: Array) -> bool:
    """Whether the arrays lie in one piece, and the kernel knows their dtypes; Numba has no float16."""
    return (
        index.dtype == np.int64
        and index.flags.c_contiguous
        and index.size > 0
        and (data.dtype == out.dtype or out.dtype.name in _INTO.get(data.dtype.name, ()))
        and data.size > 0
        and all(map(cpu.is_native, (data, index, out)))
        and data.flags.c_contiguous
        and out.flags.c_contiguous
        and data.dtype.char in "fdilqBbhH"
    )


def gather(data: Array, index: Array, out: Array, axis: int, apart: int | None = None) -> Array:
    """Launch; see `gpubp.ops.gather.gather`. Each step of a program reads the index that is so far away."""
    columns = data.shape[-1] if axis == -2 else 1
    E = math.prod(data.shape[:axis])
    sizes = index.shape[0], columns, data.shape[axis]
    step = (index.shape[0] if apart is None else apart) * index.itemsize
    strides = step, columns * data.itemsize, columns * out.itemsize
    item = max(30.0, columns * out.itemsize / BYTES_PER_NANOSECOND)
    cpu.launch(_gather(data.dtype.type, out.dtype.type), (data, index, out, *sizes, *strides), E * index.shape[0], item)
    return out
