"""Losses with their gradients, in one pass: see `gpubp.losses`, ``kernels/losses.cu``."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from gpubp import cuda
from gpubp.backend import Array, array_module
from gpubp.cuda_kernels.memory import GRID_LIMIT, c_type, check_written, pointer, readable
from gpubp.errors import ShapeError

BLOCK_THREADS = 256
"""Threads of a CUDA block; ``MAX_THREADS`` of ``kernels/common.cuh``."""
WARP_LANES = 32
"""Threads of a warp: as many work on one row of scores at most, ..."""
BLOCK_CLASSES = 2048
"""... up to so many classes; beyond, the whole block does."""
CLASSES_PER_LANE = 4
"""Scores of a row that a thread has at least: with fewer classes than a warp could share, a warp has several rows."""
ELEMENTS_PER_THREAD = 4
"""Outputs that a thread walks at least before a sum of elementwise losses is split into one more chunk."""
BLOCKS = 1024
"""Blocks after which a sum is split no further: about eight for each multiprocessor of a large card."""
PACK_BYTES = 16
"""What a thread reads at once where rows begin at multiples of it."""


def takes(Y: Array, T: Array, sample_weight: Array | None, heads: int = 1) -> bool:
    """Whether there are kernels for these arrays: for all, and what does not fit is told at the launch."""
    return True


def lanes(K: int) -> int:
    """How many threads work on a row of K scores."""
    if K > BLOCK_CLASSES:
        return BLOCK_THREADS
    return min(WARP_LANES, 1 << max(0, -(-K // CLASSES_PER_LANE) - 1).bit_length())


def chunks(members: int, blocks: int, most: int) -> int:
    """Into how many chunks a sum for each member is split: a function of shapes alone, so that sums repeat.

    Args:
        members: How many members there are.
        blocks: Blocks of threads that would have work at once, for one member.
        most: Chunks that there is space for, for one member.
    """
    return max(1, min(blocks, BLOCKS // max(1, members), most))


def is_packed(step: int, *arrays: Array | None) -> bool:
    """Whether all arrays, and what lies `step` elements further in each, begin at multiples of `PACK_BYTES`."""
    return all(
        array is None or (array.data.ptr % PACK_BYTES == 0 and step * array.itemsize % PACK_BYTES == 0)
        for array in arrays
    )


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
    E, width = math.prod(Y.shape[:-2]), lanes(K)
    Y, sample_weight = _read(Y, sample_weight)
    if T.dtype.kind in "iu":
        T = T if T.dtype == np.int64 else T.astype(np.int64)
        T = _shared_or_own("T", T, Y.shape[:-1], np.int64)
        targets, classes, T_stride, packed = None, T, N if T.ndim > 1 else 0, is_packed(K, Y, out["dL_dY"])
    else:
        T = _shared_or_own("T", T, Y.shape, Y.dtype)
        targets, classes, T_stride, packed = T, None, N * K if T.ndim > 2 else 0, is_packed(K, Y, out["dL_dY"], T)
    class_weight, share = settings
    if class_weight is not None:
        class_weight = readable(array_module(Y), "class_weight", class_weight, (K,), Y.dtype)
    C = chunks(E, -(-N // (BLOCK_THREADS // width)), N)
    arguments = (Y, pointer(targets), pointer(classes), pointer(sample_weight))
    real = Y.dtype.type
    sizes = (E, N, K, C, T_stride, _weight_stride(sample_weight), width, int(packed), pointer(class_weight))
    kernel = f"softmax_cross_entropy<{c_type(Y.dtype, 'a loss')}>"
    return _launch(kernel, Y, arguments, (*sizes, real(1 - share), real(share / max(1, K))), out, C)


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
        settings: The functor's parameters; the first one for each of as many equal parts of a row of outputs, instead
            of one for all, or None; K / M; and whether a NaN among the targets costs nothing.
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
    packed = is_packed(size if E > 1 else 0, Y, out["dL_dY"]) and is_packed(size if E > 1 and own else 0, T)
    real, parts = Y.dtype.type, 1 if each is None else len(each)
    if K % parts or M * heads != K:
        raise ShapeError(f"{functor} has {parts} parameters and {heads} outputs for a target, but {K} outputs")
    sizes = (E, N, K, C, N * M if own else 0, _weight_stride(sample_weight), int(packed))
    more = (M, int(allow_missing), pointer(each), parts, real(first), real(second))
    kernel = f"elementwise_loss<{functor}<{c_type(Y.dtype, 'a loss')}>>"
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
    sizes = (E, N, M, C, T_stride, _weight_stride(sample_weight), int(allow_missing), real(first), real(second))
    kernel = f"pair_loss<{functor}<{c_type(Y.dtype, 'a loss')}>>"
    return _launch(kernel, Y, (Y, T, pointer(sample_weight)), sizes, out, C)


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
    kernel: str, Y: Array, arguments: tuple[object, ...], sizes: tuple[object, ...], out: Mapping[str, Array], C: int
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
        cuda.launch("losses", kernel, grid, (BLOCK_THREADS, 1), (*arguments, dL_dY, sums, *sizes))
        if C > 1:
            add_up(losses, L, C)
    return L


def add_up(sums: Array, L: Array, C: int, *, onto: bool = False) -> None:
    """Launch: L (...) receives the sums of C numbers each from `sums`, or has them added to it."""
    kernel = f"add_up<{c_type(L.dtype, 'a loss')}>"
    cuda.launch("losses", kernel, (L.size, 1, 1), (BLOCK_THREADS, 1), (sums, L, L.size, C, int(onto)))
