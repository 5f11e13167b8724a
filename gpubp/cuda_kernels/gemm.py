"""Matrix products by cuBLAS: see `gpubp.ops.gemm`, `gpubp.cublas`."""

from __future__ import annotations

from gpubp import cublas
from gpubp.backend import Array
from gpubp.cuda_kernels.memory import C_TYPES
from gpubp.errors import ShapeError


def takes(A: Array, B: Array, out: Array) -> bool:
    """Whether arrays are of one real dtype, each matrix lies row by row or column by column, and cuBLAS is there."""
    return (
        A.dtype == B.dtype == out.dtype
        and out.dtype.name in C_TYPES
        and max(A.ndim, B.ndim) == out.ndim <= 3
        and min(A.ndim, B.ndim) >= 2
        and all(_lies_close(array) for array in (A, B, out))
        # Members do not write the same numbers.
        and (out.ndim == 2 or out.shape[0] <= 1 or not out.size or out.strides[0] > 0)
        and cublas.why_no_handle() is None
    )


def matmul(A: Array, B: Array, out: Array, precision: str, *, alpha: float = 1.0, beta: float = 0.0) -> Array:
    """Launch ``out = alpha * A @ B + beta * out``; see `gpubp.ops.gemm.matmul`.

    Raises:
        ShapeError: The arrays do not fit each other, or have more rows or columns than cuBLAS can count.
        DeviceError: cuBLAS was not used before on a stream that is now captured.
    """
    (M, K), N, lead = A.shape[-2:], B.shape[-1], out.shape[:-2]
    fits = all(array.shape[:-2] in (lead, (1,), ()) for array in (A, B))
    if not fits or B.shape[-2] != K or out.shape[-2:] != (M, N):
        raise ShapeError(f"{A.shape} @ {B.shape} can't be written to {out.shape}")
    if not out.size:
        return out
    if _leading(out) is None:  # out lies column by column: out.mT = B.mT @ A.mT does not
        matmul(B.mT, A.mT, out.mT, precision, alpha=alpha, beta=beta)
        return out
    if K == 0:  # a sum of nothing
        if beta:
            out *= beta
        else:
            out.fill(0)
        return out
    members = lead[0] if lead else 1
    cublas.gemm(_matrix(A), _matrix(B), _matrix(out), (M, N, K), members, out.dtype.name, precision, alpha, beta)
    return out


def _leading(array: Array) -> int | None:
    """Elements from one row of a matrix to the next; None where rows are not in one piece, or not one after another."""
    rows, columns, itemsize = int(array.shape[-2]), int(array.shape[-1]), int(array.itemsize)
    down, right = map(int, array.strides[-2:])
    if columns > 1 and right != itemsize:
        return None
    if rows <= 1:
        return max(1, columns)
    return down // itemsize if down % itemsize == 0 and down >= itemsize * max(1, columns) else None


def _lies_close(array: Array) -> bool:
    """Whether rows or columns are in one piece, and the members of a stack whole elements apart, forward in memory."""
    if not array.size:  # never looked at, whatever its strides
        return True
    by_rows_or_columns = _leading(array) is not None or _leading(array.mT) is not None
    apart = array.ndim == 2 or (array.strides[0] >= 0 and array.strides[0] % array.itemsize == 0)
    return bool(by_rows_or_columns and apart)


def _matrix(array: Array) -> cublas.Matrix:
    stride = array.strides[0] // array.itemsize if array.ndim == 3 and array.shape[0] > 1 else 0
    leading = _leading(array)
    if leading is not None:
        return cublas.Matrix(array.data.ptr, leading, stride, False)
    return cublas.Matrix(array.data.ptr, _leading(array.mT) or 1, stride, True)
