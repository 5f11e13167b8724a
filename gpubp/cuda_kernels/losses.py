"""Losses with their gradients, in one pass: see `gpubp.losses`, ``kernels/losses.cu``."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from gpubp import cuda
from gpubp.backend import Array, array_module
from gpubp.cuda_kernels.memory import GRID_LIMIT, c_type, check_written, pointer, readable
from gpubp.cuda_kernels.tiles import BLOCK_THREADS, BLOCKS, WARP, pack_width
from gpubp.errors import ShapeError

BLOCK_CLASSES = 2048
"""Most numbers of a row that a warp works on; beyond, the whole block does."""
CLASSES_PER_LANE = 4
"""Numbers of a row that a thread has at least: with fewer than a warp could share, a warp has several rows."""
ELEMENTS_PER_THREAD = 4
"""Outputs that a thread walks at least before a sum of elementwise losses is split into one more chunk."""


def takes(Y: Array, T: Array, sample_weight: Array | None, heads: int = 1) -> bool:
    """Whether there are kernels for these arrays: for all, and what does not fit is told at the launch."""
    return True


def row_block(K: int) -> tuple[int, int]:
    """How many threads work on a row of K numbers, and on how many rows a block does."""
    threads = (
        min(WARP, 1 << max(0, -(-K // CLASSES_PER_LANE) - 1).bit_length()) if K <= BLOCK_CLASSES else BLOCK_THREADS
    )
    return threads, BLOCK_THREADS // threads


def chunks(members: int, blocks: int, most: int) -> int:
    """Into how many chunks a sum for each member is split: a function of shapes alone, so that sums repeat.

    Args:
        members: How many members there are.
        blocks: Blocks of threads that would have work at once, for one member.
        most: Chunks that there is space for, for one member.
    """
    return max(1, min(blocks, BLOCKS // max(1, members), most))


def chunk_of(size: int, C: int, W: int = 1) -> int:
    """How many of `size` numbers each of C chunks has: whole packs of W."""
    return -(-size // (C * W)) * W


def softmax_cross_entropy(
    Y: Array, T: Array, sample_weight: Array | None, settings: tuple[Array | None, float], out: Mapping[str, Array]
) -> Array:
    """Launch; see `gpubp.losses.softmax_cross_entropy`.

    Args:
        Y: (..., N, K).
        T: Rows (N, K) or (..., N, K), or class indices without the last axis: int64, others are copied first.
        sample_weight: (N,) or (..., N); None for none.
        settings: The weights of the classes (K,), or None; and the label smoothing.
        out: Receives the gradient ``dL_dY`` (..., N, K) and the loss ``L`` (...); ``losses`` (..., N) is scratch.

    Returns:
        L.

    Raises:
        ShapeError: The arrays do not fit each other, or one that is written is not contiguous.
    """
    N, K = Y.shape[-2:]
    E, block = math.prod(Y.shape[:-2]), row_block(K)
    Y, sample_weight = _read(Y, sample_weight)
    if T.dtype.kind in "iu":
        T = T if T.dtype == np.int64 else T.astype(np.int64)
        T = _shared_or_own("T", T, Y.shape[:-1], np.int64)
        targets, classes, T_stride, W = None, T, N if T.ndim > 1 else 0, pack_width(Y, out["dL_dY"], step=K)
    else:
        T = _shared_or_own("T", T, Y.shape, Y.dtype)
        targets, classes, T_stride, W = T, None, N * K if T.ndim > 2 else 0, pack_width(Y, out["dL_dY"], T, step=K)
    class_weight, share = settings
    if class_weight is not None:
        class_weight = readable(array_module(Y), "class_weight", class_weight, (K,), Y.dtype)
    C = chunks(E, -(-N // block[1]), N)
    arguments = (Y, pointer(targets), pointer(classes), pointer(sample_weight))
    real = Y.dtype.type
    sizes = (E, N, K, C, chunk_of(N, C), T_stride, _weight_stride(sample_weight), pointer(class_weight))
    kernel = f"softmax_cross_entropy<{c_type(Y.dtype, 'a loss')}, {W}>"
    return _launch(kernel, Y, arguments, (*sizes, real(1 - share), real(share / max(1, K))), out, C, block)


def elementwise_loss(
    functor: str,
    Y: Array,
    T: Array,
    sample_weight: Array | None,
    settings: tuple[float, float, Array | None, int, bool],
    out: Mapping[str, Array],
) -> Array:
    """Launch; see `gpubp.losses.elementwise`.

    Args:
        functor: Which loss.
        Y: (..., N, K).
        T: (N, M) or (..., N, M), where K is a multiple of M: output k has the target ``k % M``.
        sample_weight: (N,) or (..., N); None for none.
        settings: The functor's parameters; the first one for each output or each K / M of them, instead of one for
            all, or None; K / M; and whether a NaN among the targets costs nothing.
        out: As for `softmax_cross_entropy`.

    Returns:
        L.

    Raises:
        ShapeError: The arrays do not fit each other, or one that is written is not contiguous.
    """
    first, second, each, heads, allow_missing = settings
    N, K = Y.shape[-2:]
    E, size, M = math.prod(Y.shape[:-2]), N * K, K // heads
    Y, sample_weight = _read(Y, sample_weight)
    T = _shared_or_own("T", T, (*Y.shape[:-1], M), Y.dtype)
    own = T.ndim > 2
    C = chunks(E, -(-size // (BLOCK_THREADS * ELEMENTS_PER_THREAD)), N)
    W = min(pack_width(Y, out["dL_dY"], step=size if E > 1 else 0), pack_width(T, step=size if E > 1 and own else 0))
    real, parts = Y.dtype.type, heads if each is None else len(each)
    if parts not in (heads, K) or M * heads != K:
        raise ShapeError(f"{functor} has {parts} parameters and {heads} outputs for a target, but {K} outputs")
    sizes = (E, N, heads, M, C, chunk_of(size, C, W), N * M if own else 0, _weight_stride(sample_weight))
    strides = (1, 0) if parts == heads else (M, 1)
    more = (int(allow_missing), pointer(each), *strides, real(first), real(second))
    kernel = f"elementwise_loss<{functor}<{c_type(Y.dtype, 'a loss')}>, {W}>"
    return _launch(kernel, Y, (Y, T, pointer(sample_weight)), (*sizes, *more), out, C)


def pair_loss(
    functor: str,
    Y: Array,
    T: Array,
    sample_weight: Array | None,
    settings: tuple[float, float, Array | None, int, bool],
    out: Mapping[str, Array],
) -> Array:
    """Launch a loss of two outputs for each target; see `elementwise_loss` for the arguments, `each` must be None."""
    first, second, _, heads, allow_missing = settings
    N, K = Y.shape[-2:]
    E, M = math.prod(Y.shape[:-2]), K // heads
    if 2 * M != K:
        raise ShapeError(f"{functor} takes 2 outputs for each target, not {K} for {M}")
    Y, sample_weight = _read(Y, sample_weight)
    T = _shared_or_own("T", T, (*Y.shape[:-1], M), Y.dtype)
    C = chunks(E, -(-N * M // (BLOCK_THREADS * ELEMENTS_PER_THREAD)), N)
    T_stride, real = N * M if T.ndim > 2 else 0, Y.dtype.type
    sizes = (E, N, M, C, chunk_of(N * M, C), T_stride, _weight_stride(sample_weight), int(allow_missing))
    kernel = f"pair_loss<{functor}<{c_type(Y.dtype, 'a loss')}>>"
    return _launch(kernel, Y, (Y, T, pointer(sample_weight)), (*sizes, real(first), real(second)), out, C)


def _read(Y: Array, sample_weight: Array | None) -> tuple[Array, Array | None]:
    """Y and the weights, each in one piece."""
    if sample_weight is not None:
        sample_weight = _shared_or_own("sample_weight", sample_weight, Y.shape[:-1], Y.dtype)
    return array_module(Y).ascontiguousarray(Y), sample_weight


def _shared_or_own(name: str, array: Array, own: tuple[int, ...], dtype: object) -> Array:
    """An array of one member's shape or of all of theirs, in one piece.

    Raises:
        ShapeError: It has another shape or dtype.
    """
    shared = own[-array.ndim :] if 0 < array.ndim < len(own) else own
    return readable(array_module(array), name, array, shared, dtype)


def _weight_stride(sample_weight: Array | None) -> int:
    return 0 if sample_weight is None or sample_weight.ndim == 1 else int(sample_weight.shape[-1])


def _launch(
    kernel: str,
    Y: Array,
    arguments: tuple[object, ...],
    sizes: tuple[object, ...],
    out: Mapping[str, Array],
    C: int,
    block: tuple[int, int] = (BLOCK_THREADS, 1),
) -> Array:
    """Launch a kernel of a loss with C chunks, and add them up."""
    dL_dY, L, losses = out["dL_dY"], out["L"], out["losses"]
    check_written("dL_dY", dL_dY, Y.shape, Y.dtype)
    check_written("L", L, Y.shape[:-2], Y.dtype)
    check_written("losses", losses, Y.shape[:-1], Y.dtype)
    if L.size:
        # A single chunk has nothing to add up: its sum goes to L at once.
        sums = L if C == 1 else losses
        grid = (C, min(L.size, GRID_LIMIT), 1)
        cuda.launch("losses", kernel, grid, block, (*arguments, dL_dY, sums, *sizes))
        if C > 1:
            add_up(losses, L, C)
    return L


def add_up(sums: Array, L: Array, C: int, *, onto: bool = False) -> None:
    """Launch: L (...) receives the sums of C numbers each from `sums`, or has them added to it."""
    kernel = f"add_up<{c_type(L.dtype, 'a loss')}>"
    cuda.launch("losses", kernel, (L.size, 1, 1), (BLOCK_THREADS, 1), (sums, L, L.size, C, int(onto)))
