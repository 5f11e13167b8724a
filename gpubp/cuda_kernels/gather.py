"""Picking examples by index, and converting them, on a device: see `gpubp.ops.gather`, ``kernels/gather.cu``."""

from __future__ import annotations

import math

from gpubp import cuda
from gpubp.backend import Array
from gpubp.cuda_kernels.memory import GRID_LIMIT
from gpubp.cuda_kernels.tiles import PACK_BYTES, are_aligned, blocks_down, row_tiles

FROM_TYPES = {"float32": "float", "float64": "double", "float16": "Half", "uint8": "unsigned char"}
FROM_INTEGERS = {"int64": "long long", "int32": "int", "uint8": "unsigned char"}
CONVERSIONS = {
    ("float32", "float"): FROM_TYPES,
    ("float64", "double"): FROM_TYPES,
    ("int64", "long long"): FROM_INTEGERS,  # class indices
}
"""By dtype of the result and how C++ names it, what it can be made from."""


def kernel_types(data: Array, out: Array) -> tuple[str, str] | None:
    """How C++ names the dtypes of the data and of the result; None where there is no kernel for them."""
    for (name, to), sources in CONVERSIONS.items():
        if out.dtype.name == name and data.dtype.name in sources:
            return sources[data.dtype.name], to
    return None


def takes(data: Array, index: Array, out: Array) -> bool:
    """Whether there is a kernel for the dtypes, and the arrays lie in one piece."""
    return (
        index.dtype.name == "int64"
        and index.ndim == 1
        and data.size > 0
        and kernel_types(data, out) is not None
        and all(array.flags.c_contiguous for array in (data, index, out))
    )


def gather(data: Array, index: Array, out: Array, axis: int, apart: int | None = None) -> Array:
    """Launch; see `gpubp.ops.gather.gather`. Steps of a graph are launches of their own, with an index each."""
    types = kernel_types(data, out)
    if out.size == 0 or types is None:
        return out
    columns = data.shape[-1] if axis == -2 else 1
    E, N, B = math.prod(data.shape[:axis]), data.shape[axis], index.shape[0]
    pack = PACK_BYTES // out.itemsize
    count, width, height = row_tiles(columns, out.itemsize)
    aligned = are_aligned(out) and are_aligned(data, nbytes=min(PACK_BYTES, pack * data.itemsize))
    W = pack if columns % pack == 0 and aligned else 1
    grid = count, blocks_down(B, height, E * count), min(E, GRID_LIMIT)
    kernel = f"gather<{types[0]}, {types[1]}, {W}>"
    cuda.launch("gather", kernel, grid, (width, height), (data, index, out, E, N, B, columns))
    return out
