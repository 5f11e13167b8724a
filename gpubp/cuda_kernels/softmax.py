"""The softmax of each row and its backward: see `gpubp.ops.softmax`, ``kernels/softmax.cu``."""

from __future__ import annotations

from gpubp import cuda
from gpubp.backend import Array, array_module
from gpubp.cuda_kernels.losses import row_block
from gpubp.cuda_kernels.memory import c_type, check_written, readable
from gpubp.cuda_kernels.tiles import pack_width

BLOCKS = 4096
"""Most blocks along x; the kernels loop over what is beyond."""


def takes(X: Array, *others: Array) -> bool:
    """Whether there are kernels for these arrays: for all, and what does not fit is told at the launch."""
    return True


def softmax(X: Array, Y: Array) -> Array:
    """Launch; see `gpubp.ops.softmax.softmax`."""
    X = readable(array_module(Y), "X", X, Y.shape, Y.dtype)
    return _launch("softmax", (X,), "Y", Y)


def softmax_backward(dL_dY: Array, Y: Array, dL_dX: Array) -> Array:
    """Launch; see `gpubp.ops.softmax.softmax_backward`."""
    xp = array_module(dL_dX)
    dL_dY, Y = (readable(xp, name, array, dL_dX.shape, dL_dX.dtype) for name, array in (("dL_dY", dL_dY), ("Y", Y)))
    return _launch("softmax_backward", (dL_dY, Y), "dL_dX", dL_dX)


def _launch(kernel: str, arrays: tuple[Array, ...], name: str, out: Array) -> Array:
    check_written(name, out, out.shape, out.dtype)
    if out.size:
        n = out.shape[-1]
        rows, block = out.size // n, row_block(n)
        typed = f"{kernel}<{c_type(out.dtype, kernel)}, {pack_width(*arrays, out, step=n)}>"
        cuda.launch("softmax", typed, (blocks(rows, block), 1, 1), block, (*arrays, out, rows, n))
    return out


def blocks(rows: int, block: tuple[int, int]) -> int:
    """Blocks along x for so many rows, each of which has those of the threads along x."""
    return min(-(-rows // block[1]), BLOCKS)
