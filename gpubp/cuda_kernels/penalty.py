"""The L2 penalty and its gradient in one pass: see `gpubp.losses.penalty`, ``kernels/penalty.cu``."""

from __future__ import annotations

import math

from gpubp import cuda
from gpubp.backend import Array, array_module
from gpubp.cuda_kernels.losses import add_up, chunk_of, chunks
from gpubp.cuda_kernels.memory import (
    GRID_LIMIT,
    c_type,
    check_written,
    checked,
    is_rows_contiguous,
    member_stride,
    pointer,
    rows_contiguous,
)
from gpubp.cuda_kernels.tiles import BLOCK_THREADS, pack_width
from gpubp.errors import ShapeError

WEIGHTS_PER_THREAD = 8
"""Weights that a thread walks at least before the sum is split into one more chunk."""


def takes(W: Array, dL_dW: Array | None, L: Array) -> bool:
    """Whether there is a kernel for these arrays: for all, and what does not fit is told at the launch."""
    return True


def partial_sums_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scratch that `add_l2` needs for W of this shape (..., P'): a number for each chunk."""
    *lead, P = shape
    blocks = -(-P // (BLOCK_THREADS * WEIGHTS_PER_THREAD))
    return (*lead, chunks(math.prod(lead), blocks, P))


def add_l2(W: Array, alpha: float, dL_dW: Array | None, L: Array, scratch: Array) -> Array:
    """Launch; see `gpubp.losses.penalty.add_l2`. `scratch` is of the shape `partial_sums_shape`.

    Raises:
        ShapeError: The arrays do not fit each other, or the rows of one that is written are not in one piece.
    """
    dtype, sums_shape = W.dtype, partial_sums_shape(W.shape)
    check_written("L", L, W.shape[:-1], dtype)
    if not W.size:
        return L
    W = rows_contiguous(array_module(W), W)
    if dL_dW is not None and not is_rows_contiguous(checked("dL_dW", dL_dW, W.shape, dtype)):
        raise ShapeError(f"dL_dW with strides {dL_dW.strides} can't be written: its rows must be contiguous")
    E, P, C = L.size, W.shape[-1], sums_shape[-1]
    if C > 1:
        check_written("scratch", scratch, sums_shape, dtype)
    strides = member_stride(W), member_stride(dL_dW)
    width = min(
        pack_width(array, step=stride if E > 1 else 0)
        for array, stride in zip((W, dL_dW), strides, strict=True)
        if array is not None
    )
    # A single chunk has nothing to add up: its sum goes onto L at once.
    sums, onto = (L, 1) if C == 1 else (scratch, 0)
    cuda.launch(
        "penalty",
        f"add_l2<{c_type(dtype, 'the penalty')}, {width}>",
        (C, min(E, GRID_LIMIT), 1),
        (BLOCK_THREADS, 1),
        (W, pointer(dL_dW), sums, E, P, C, chunk_of(P, C, width), *strides, onto, dtype.type(alpha)),
    )
    if C > 1:
        add_up(scratch, L, C, onto=True)
    return L
