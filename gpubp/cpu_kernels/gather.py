"""Picking examples by index: see `gpubp.ops.gather`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpubp import cpu
from gpubp.backend import Array
from gpubp.cpu_kernels.memory import copy, kernel, prefetch, vector

BYTES_PER_NANOSECOND = 8
AHEAD = 4096
"""How many bytes before its turn a row is fetched into cache: which comes next, only the index knows, and memory is
slow to answer one question, but answers many at once."""
ROWS_AHEAD = 2, 32
"""How many rows that is at least and at most."""
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
        rows, columns, N, size = a[3], a[4], a[5], a[7]
        index = vector(np.int64, a[1] + step * a[6], rows)
        ahead = min(max(AHEAD // size, ROWS_AHEAD[0]), ROWS_AHEAD[1])
        e, n = begin // rows, begin % rows
        for item in range(begin, end):
            examples = a[0] + e * N * size
            if n + ahead < rows:
                later = examples + min(max(index[n + ahead], 0), N - 1) * size
                for line in range(later // LINE, (later + size - 1) // LINE + 1):
                    prefetch(line * LINE)
            row = examples + min(max(index[n], 0), N - 1) * size  # never outside the data, whatever the index
            if From is To:
                copy(a[2] + item * a[8], row, size)
            else:
                source, target = vector(From, row, columns), vector(To, a[2] + item * a[8], columns)
                for j in range(columns):
                    target[j] = To(source[j])
            n += 1
            if n == rows:
                e, n = e + 1, 0

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
