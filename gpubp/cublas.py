"""Matrix products by cuBLAS, with handles of our own: CuPy refuses its own while a stream is captured as a CUDA graph.

A handle belongs to one stream of one device, is made at the first product there, and has a workspace of its own: what
cuBLAS would take from a pool of its own instead can't be taken while a stream is captured. The functions come from
nvmath-python where it is installed, else from CuPy's cuBLAS itself, by `gpubp.cublas_library`; either is looked for at
the first product, and neither need be there: `why_no_handle` says why.
"""

from __future__ import annotations

import functools
import importlib
import threading
import weakref
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpubp import cublas_library, faults
from gpubp.backend import Array, Device
from gpubp.errors import DeviceError, ShapeError

COMPUTE_TYPES = {"float32": "COMPUTE_32F", "tf32": "COMPUTE_32F_FAST_TF32", "bf16": "COMPUTE_32F_FAST_16BF"}
"""How float32 numbers are multiplied; products are added up in float32 whatever it is."""
MOST = 2**31 - 1
"""Rows, columns, members, and elements from one row to the next: cuBLAS counts them in 32 bits."""

_DATA_TYPES = {"float32": 0, "float64": 1}  # CUDA_R_32F and CUDA_R_64F of cudaDataType_t
_DEFAULT_ALGORITHM = -1
_MIB = 2**20


class Matrix(NamedTuple):
    """A matrix of each member as it lies in memory.

    Attributes:
        address: Of its first element.
        leading: Elements from one row to the next; from one column to the next where it lies transposed.
        member_stride: Elements from one member's to the next; 0 where all share one.
        transposed: Whether it lies column by column.
    """

    address: int
    leading: int
    member_stride: int
    transposed: bool


class Handle(NamedTuple):
    """A handle of cuBLAS, and the memory that it works in."""

    number: int
    workspace: Array


_handles: dict[tuple[int, int], Handle] = {}  # by device and stream
_spare: dict[int, list[int]] = {}  # by device: handles whose stream is gone. Destroying one would wait for the device.
_failure: tuple[Any, str] | None = None  # the CuPy with which no handle was to be had, and why
_lock = threading.RLock()


def why_no_handle() -> str | None:
    """Why there is no cuBLAS here but by way of CuPy, with the way out; None where there is."""
    global _failure
    cupy: Any = None
    try:
        cupy = _cupy()
        if _failure is not None and _failure[0] is cupy:
            return _failure[1]
        device, stream = cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream()
        if (device, stream.ptr) in _handles or _spare.get(device):
            return None
        if stream.is_capturing():
            return "the stream is being captured, and had no product before"
        _spare.setdefault(device, []).append(_bindings().create())
    except (ImportError, OSError, AttributeError) as error:  # of CuPy; of the library, with nvmath-python or without
        reason = f"{error}. To install it: pip install 'gpubp[cuda13x]' (or 'gpubp[cuda12x]')"
    except Exception as error:
        faults.raise_if_lost(error)
        reason = faults.first_line(error)
        if not faults.lacks_toolkit(error):  # a capture broken off, no memory for a handle: there may be one next time
            return reason
    else:
        return None
    _failure = cupy, reason
    return reason


def version() -> str:
    """Which cuBLAS is called, and by what.

    Raises:
        DeviceError: There is none: see `why_no_handle`.
    """
    bindings = _bindings()
    number = bindings.get_version(handle().number)
    if bindings is cublas_library:
        by = f"in {cublas_library.path()}, as nvmath-python is not installed"
    else:
        from importlib import metadata  # slow to import, and rarely needed

        by = f"through nvmath-python {metadata.version('nvmath-python')}"
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}, called {by}"


def handle() -> Handle:
    """The handle for the current stream of the current device; made where there is none yet.

    Raises:
        DeviceError: cuBLAS can't be had, or the stream is being captured and has no handle.
    """
    cupy = _cupy()
    device, stream = cupy.cuda.runtime.getDevice(), cupy.cuda.get_current_stream()
    key = device, stream.ptr
    if key in _handles:
        return _handles[key]
    with _lock:
        if key not in _handles:  # another thread may have been first
            if reason := why_no_handle():
                raise DeviceError(f"no cuBLAS on cuda:{device}: {reason}")
            if stream.is_capturing():
                raise DeviceError("a cuBLAS handle was needed for the first time within a captured step")
            _handles[key] = _made(cupy, device, stream)
            # A later stream may get the same address.
            weakref.finalize(stream, _release, key, _handles[key]).atexit = False
        return _handles[key]


def workspace_bytes() -> int:
    """Size of a handle's workspace on the current device."""
    runtime = _cupy().cuda.runtime
    return (32 if runtime.getDeviceProperties(runtime.getDevice())["major"] >= 9 else 8) * _MIB


def _made(cupy: ModuleType, device: int, stream: Any) -> Handle:
    cublas = _bindings()
    workspace = cupy.empty(workspace_bytes(), np.uint8)
    spare = _spare.get(device)
    number = spare.pop() if spare else cublas.create()
    cublas.set_stream(number, stream.ptr)  # takes the workspace away, so that comes after it
    cublas.set_workspace(number, workspace.data.ptr, workspace.nbytes)
    cublas.set_pointer_mode(number, cublas.PointerMode.HOST)
    cublas.set_math_mode(number, cublas.Math.DEFAULT_MATH)  # in which float32 products are of float32 numbers
    return Handle(number, workspace)


def _release(key: tuple[int, int], gone: Handle) -> None:
    if _handles.get(key) is gone:
        del _handles[key]
        _spare.setdefault(key[0], []).append(gone.number)


def gemm(
    A: Matrix,
    B: Matrix,
    out: Matrix,
    sizes: tuple[int, int, int],
    members: int,
    dtype: str,
    precision: str,
    alpha: float = 1.0,
    beta: float = 0.0,
) -> None:
    """Enqueue ``out = alpha * A @ B + beta * out`` on the current stream, for each member.

    Args:
        A: (M, K).
        B: (K, N).
        out: (M, N), row by row; not read where `beta` is 0.
        sizes: M, N and K, all at least 1.
        members: How many products there are.
        dtype: ``"float32"`` or ``"float64"``, of all three.
        precision: A key of `COMPUTE_TYPES`; for float64 it does not count.
        alpha: A factor, which a captured call holds fast.
        beta: Likewise.

    Raises:
        ShapeError: A size is more than cuBLAS can count.
        DeviceError: There is no handle.
    """
    M, N, K = sizes
    if max(M, N, K, members, A.leading, B.leading, out.leading) > MOST:
        raise ShapeError(
            f"a product of {members} x ({M}, {K}) by ({K}, {N}): cuBLAS takes at most {MOST:,} rows, columns, members, "
            "and elements from one row to the next. Use smaller batches"
        )
    cublas, number = _bindings(), handle().number
    compute = cublas.ComputeType["COMPUTE_64F" if dtype == "float64" else COMPUTE_TYPES[precision]]
    kind, scalars = _DATA_TYPES[dtype], _scalars(alpha, beta, dtype)
    at_alpha = scalars.ctypes.data
    at_beta = at_alpha + scalars.itemsize
    operations = (cublas.Operation.N, cublas.Operation.T)
    # cuBLAS counts along columns first. What it sees is out.mT = B.mT @ A.mT.
    transposes = operations[B.transposed], operations[A.transposed]
    single = members == 1
    in_B, in_A, in_out = (
        (matrix.address, kind, matrix.leading)
        if single
        else (matrix.address, kind, matrix.leading, matrix.member_stride)
        for matrix in (B, A, out)
    )
    arguments = (number, *transposes, N, M, K, at_alpha, *in_B, *in_A, at_beta, *in_out)
    if single:
        cublas.gemm_ex(*arguments, compute, _DEFAULT_ALGORITHM)
    else:
        cublas.gemm_strided_batched_ex(*arguments, members, compute, _DEFAULT_ALGORITHM)


@functools.lru_cache(maxsize=64)
def _scalars(alpha: float, beta: float, dtype: str) -> Array:
    return np.array([alpha, beta], dtype)


def clear_cache() -> None:
    """Forget all handles; for tests that change the library or the device."""
    global _failure
    _handles.clear()
    _spare.clear()
    _failure = None
    _installed.cache_clear()
    cublas_library.clear_cache()


def _bindings() -> Any:
    return _installed()


@functools.cache
def _installed() -> Any:
    """The functions of cuBLAS: those of nvmath-python, or where that is not installed those of `cublas_library`."""
    try:
        return importlib.import_module("nvmath.bindings.cublas")
    except ImportError:
        return cublas_library


def _cupy() -> ModuleType:
    return Device("cuda").module
