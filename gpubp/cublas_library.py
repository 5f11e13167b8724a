"""cuBLAS by ctypes, where nvmath-python is not installed: what `gpubp.cublas` calls of it, under the names of nvmath.

It is the very library that CuPy calls, found as CuPy finds it. Signatures and numbers of enums are those of
``cublas_api.h`` of CUDA 12 and 13, described at https://docs.nvidia.com/cuda/cublas/#cublas-datatypes-reference and
https://docs.nvidia.com/cuda/cublas/#cublasgemmstridedbatchedex; cuBLAS has had them since CUDA 11.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import sys
from ctypes import c_int, c_longlong, c_size_t, c_void_p
from enum import IntEnum
from pathlib import Path
from typing import Any

from gpubp.backend import Device


class Operation(IntEnum):
    """cublasOperation_t."""

    N, T, C = 0, 1, 2


class PointerMode(IntEnum):
    """cublasPointerMode_t: where alpha and beta are."""

    HOST, DEVICE = 0, 1


class Math(IntEnum):
    """cublasMath_t."""

    DEFAULT_MATH, TENSOR_OP_MATH, PEDANTIC_MATH, TF32_TENSOR_OP_MATH = 0, 1, 2, 3


class ComputeType(IntEnum):
    """cublasComputeType_t."""

    COMPUTE_32F, COMPUTE_32F_PEDANTIC, COMPUTE_64F, COMPUTE_64F_PEDANTIC = 68, 69, 70, 71
    COMPUTE_32F_FAST_16F, COMPUTE_32F_FAST_16BF, COMPUTE_32F_FAST_TF32 = 74, 75, 77


_STATUS = {  # cublasStatus_t
    1: "NOT_INITIALIZED",
    3: "ALLOC_FAILED",
    7: "INVALID_VALUE",
    8: "ARCH_MISMATCH",
    11: "MAPPING_ERROR",
    13: "EXECUTION_FAILED",
    14: "INTERNAL_ERROR",
    15: "NOT_SUPPORTED",
    16: "LICENSE_ERROR",
}
_FACTOR = (c_void_p, c_int, c_int)  # address, cudaDataType, elements from one column to the next
_STRIDED = (*_FACTOR, c_longlong)  # and from one member's matrix to the next
_PRODUCT = (c_void_p, c_int, c_int, c_int, c_int, c_int)  # handle, transa, transb, m, n, k
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cublasCreate_v2": (ctypes.POINTER(c_void_p),),
    "cublasGetVersion_v2": (c_void_p, ctypes.POINTER(c_int)),
    "cublasSetStream_v2": (c_void_p, c_void_p),
    "cublasSetWorkspace_v2": (c_void_p, c_void_p, c_size_t),
    "cublasSetPointerMode_v2": (c_void_p, c_int),
    "cublasSetMathMode": (c_void_p, c_int),
    "cublasGemmEx": (*_PRODUCT, c_void_p, *_FACTOR, *_FACTOR, c_void_p, *_FACTOR, c_int, c_int),
    "cublasGemmStridedBatchedEx": (
        *(*_PRODUCT, c_void_p, *_STRIDED, *_STRIDED, c_void_p, *_STRIDED),
        *(c_int, c_int, c_int),
    ),
}
"""The arguments of each function; all of them return a cublasStatus_t."""


class cuBLASError(Exception):  # noqa: N801 - the name that nvmath has for it
    """A call that cuBLAS refused."""

    def __init__(self, function: str, status: int) -> None:
        super().__init__(f"{function}: CUBLAS_STATUS_{_STATUS.get(status, 'unknown')} ({status})")
        self.status = status


def create() -> int:
    """A new handle on the current device."""
    handle = c_void_p()
    _call("cublasCreate_v2", ctypes.byref(handle))
    return handle.value or 0


def get_version(handle: int) -> int:
    """10000 times the major, 100 times the minor, and the patch version."""
    number = c_int()
    _call("cublasGetVersion_v2", handle, ctypes.byref(number))
    return number.value


def set_stream(handle: int, stream: int) -> None:
    """Where products are enqueued; cuBLAS goes back to a workspace of its own."""
    _call("cublasSetStream_v2", handle, stream)


def set_workspace(handle: int, workspace: int, nbytes: int) -> None:
    """Device memory that products may use."""
    _call("cublasSetWorkspace_v2", handle, workspace, nbytes)


def set_pointer_mode(handle: int, mode: int) -> None:
    """A `PointerMode`."""
    _call("cublasSetPointerMode_v2", handle, mode)


def set_math_mode(handle: int, mode: int) -> None:
    """A `Math`."""
    _call("cublasSetMathMode", handle, mode)


def gemm_ex(*arguments: int) -> None:
    """See ``cublasGemmEx``; the sizes must be below 2^31."""
    _call("cublasGemmEx", *arguments)


def gemm_strided_batched_ex(*arguments: int) -> None:
    """See ``cublasGemmStridedBatchedEx``; the sizes must be below 2^31."""
    _call("cublasGemmStridedBatchedEx", *arguments)


def path() -> str:
    """Where the library that CuPy calls is: its path where cuda-pathfinder, which CuPy asks, has it; else its name."""
    major = Device("cuda").module.cuda.runtime.runtimeGetVersion() // 1000
    name = f"cublas64_{major}.dll" if sys.platform == "win32" else f"libcublas.so.{major}"
    try:
        path = found("cublas")
    except (ImportError, RuntimeError):  # the system's loader may find it, and says so if not
        return name
    return path if Path(path).name.startswith(name) else name  # it may be that of another CUDA


def found(library: str) -> str:
    """Where cuda-pathfinder, which CuPy asks, finds a library of CUDA; "" where it does not tell.

    Raises:
        ImportError: cuda-pathfinder is not installed.
        RuntimeError: It finds none.
    """
    return importlib.import_module("cuda.pathfinder").load_nvidia_dynamic_lib(library).abs_path or ""


@functools.cache
def library(path: str) -> Any:
    """The library, with the signatures of what is called.

    Raises:
        OSError: It can't be loaded.
        AttributeError: It has not all functions.
    """
    loaded = ctypes.CDLL(path)
    for name, arguments in _SIGNATURES.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, c_int
    return loaded


@functools.cache
def _function(name: str) -> Any:
    return getattr(library(path()), name)


def clear_cache() -> None:
    """Look for the library again; for tests that change it."""
    _function.cache_clear()


def _call(name: str, *arguments: Any) -> None:
    """Call a function of cuBLAS.

    Raises:
        OSError: The library can't be loaded.
        cuBLASError: It returned something else than success.
    """
    if status := _function(name)(*arguments):
        raise cuBLASError(name, status)
