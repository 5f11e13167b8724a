"""A stand-in for ``nvmath.bindings.cublas``: the same arguments, computed by NumPy in the memory at the addresses.

What cuBLAS would refuse is refused here, and what it would get wrong too: a handle of another device, a stream that is
gone, a call without a workspace of its own in a captured stream.
"""

from __future__ import annotations

import contextlib
import ctypes
import types
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from fake_cupy.driver import Stream, machine, memory_at


class Operation(IntEnum):
    N, T, C = 0, 1, 2


class PointerMode(IntEnum):
    HOST, DEVICE = 0, 1


class Math(IntEnum):
    DEFAULT_MATH, TENSOR_OP_MATH, PEDANTIC_MATH, TF32_TENSOR_OP_MATH = 0, 1, 2, 3


class ComputeType(IntEnum):
    COMPUTE_32F, COMPUTE_32F_PEDANTIC, COMPUTE_64F, COMPUTE_64F_PEDANTIC = 68, 69, 70, 71
    COMPUTE_32F_FAST_16F, COMPUTE_32F_FAST_16BF, COMPUTE_32F_FAST_TF32 = 74, 75, 77


BITS = {ComputeType.COMPUTE_32F_FAST_TF32: 10, ComputeType.COMPUTE_32F_FAST_16BF: 7}
"""Binary digits behind the point that are left of a factor."""
DATA_TYPES = {0: (np.dtype("float32"), range(68, 78)), 1: (np.dtype("float64"), range(70, 72))}
"""Of cudaDataType_t: how NumPy calls it, and what it can be computed in."""


class cuBLASError(Exception):  # noqa: N801 - the name of nvmath
    """What cuBLAS refuses."""

    def __init__(self, status: str) -> None:
        super().__init__(f"CUBLAS_STATUS_{status}")


@dataclass
class Handle:
    """What cuBLAS knows of a handle."""

    device: int
    stream: int = 0
    workspace: tuple[int, int] | None = None
    pointer_mode: int = PointerMode.HOST
    math_mode: int = Math.DEFAULT_MATH


handles: dict[int, Handle] = {}
calls: list[tuple[str, int]] = []
"""The function and the compute type of every product."""


def create() -> int:
    _call()
    if machine.stream is not None and machine.stream.captured is not None:
        raise cuBLASError("NOT_INITIALIZED")  # it allocates
    number = 1 + max(handles, default=1000)
    handles[number] = Handle(machine.current_device)
    return number


def destroy(handle: int) -> None:
    _of(handle)
    del handles[handle]


def get_version(handle: int) -> int:
    _of(handle)
    return 130102


def set_stream(handle: int, stream_id: int) -> None:
    of = _of(handle)
    of.stream, of.workspace = stream_id, None


def set_workspace(handle: int, workspace: int, workspace_size_in_bytes: int) -> None:
    memory_at(workspace, (workspace_size_in_bytes,), (1,), "uint8")
    _of(handle).workspace = workspace, workspace_size_in_bytes


def set_pointer_mode(handle: int, mode: int) -> None:
    _of(handle).pointer_mode = PointerMode(mode)


def set_math_mode(handle: int, mode: int) -> None:
    _of(handle).math_mode = Math(mode)


def gemm_ex(
    handle: int,
    transa: int,
    transb: int,
    m: int,
    n: int,
    k: int,
    alpha: int,
    a: int,
    atype: int,
    lda: int,
    b: int,
    btype: int,
    ldb: int,
    beta: int,
    c: int,
    ctype: int,
    ldc: int,
    compute_type: int,
    algo: int,
) -> None:
    calls.append(("gemm_ex", compute_type))
    factors = (a, atype, lda, 0), (b, btype, ldb, 0), (c, ctype, ldc, 0)
    _gemm(handle, (transa, transb), (m, n, k), (alpha, beta), factors, 1, compute_type, algo)


def gemm_strided_batched_ex(
    handle: int,
    transa: int,
    transb: int,
    m: int,
    n: int,
    k: int,
    alpha: int,
    a: int,
    atype: int,
    lda: int,
    stride_a: int,
    b: int,
    btype: int,
    ldb: int,
    stride_b: int,
    beta: int,
    c: int,
    ctype: int,
    ldc: int,
    stride_c: int,
    batch_count: int,
    compute_type: int,
    algo: int,
) -> None:
    calls.append(("gemm_strided_batched_ex", compute_type))
    factors = (a, atype, lda, stride_a), (b, btype, ldb, stride_b), (c, ctype, ldc, stride_c)
    _gemm(handle, (transa, transb), (m, n, k), (alpha, beta), factors, batch_count, compute_type, algo)


def _gemm(
    handle: int,
    transposes: tuple[int, int],
    sizes: tuple[int, int, int],
    scalars: tuple[int, int],
    matrices: tuple[tuple[int, int, int, int], ...],
    count: int,
    compute_type: int,
    algo: int,
) -> None:
    of = _of(handle)
    (m, n, k), kinds = sizes, {kind for _, kind, _, _ in matrices}
    if any(not 0 <= value < 2**31 for value in (*sizes, count, *(leading for _, _, leading, _ in matrices))):
        raise OverflowError("value too large to convert to int")
    if not set(transposes) <= set(Operation) or compute_type not in set(ComputeType) or len(kinds) != 1 or algo != -1:
        raise cuBLASError("INVALID_VALUE")
    dtype, computed_in = DATA_TYPES[kinds.pop()]
    if compute_type not in computed_in or of.pointer_mode != PointerMode.HOST or of.math_mode != Math.DEFAULT_MATH:
        raise cuBLASError("NOT_SUPPORTED")
    stored = [(k, m) if transposes[0] else (m, k), (n, k) if transposes[1] else (k, n), (m, n)]
    if any(leading < max(1, rows) for (_, _, leading, _), (rows, _) in zip(matrices, stored, strict=True)):
        raise cuBLASError("INVALID_VALUE")
    if count > 1 and matrices[2][3] < (n - 1) * matrices[2][2] + m:
        raise cuBLASError("INVALID_VALUE")  # the members of the result overlap; cuBLAS would not notice
    size = dtype.itemsize
    A, B, C = (  # column by column
        memory_at(address, (count, rows, columns), (stride * size, size, leading * size), dtype)
        for (address, _, leading, stride), (rows, columns) in zip(matrices, stored, strict=True)
    )
    alpha, beta = (np.frombuffer((ctypes.c_char * size).from_address(at), dtype)[0] for at in scalars)
    bits = BITS.get(ComputeType(compute_type))

    def work(A: np.ndarray, B: np.ndarray, C: np.ndarray) -> None:
        if bits is not None:
            A, B = rounded(A, bits), rounded(B, bits)
        product = alpha * ((A.mT if transposes[0] else A) @ (B.mT if transposes[1] else B))
        C[...] = product + beta * C if beta else product

    with Stream.known[of.stream] if of.stream else _no_stream():
        if machine.stream is not None and machine.stream.captured is not None and of.workspace is None:
            raise cuBLASError("ALLOC_FAILED")
        if of.workspace is not None:
            memory_at(of.workspace[0], (of.workspace[1],), (1,), "uint8")  # it must be there still
        machine.submit(work, A, B, C)


def rounded(X: np.ndarray, bits: int) -> np.ndarray:
    """float32 numbers with so many binary digits behind the point, rounded to nearest, ties to even."""
    raw, drop = X.view(np.uint32), 23 - bits
    lowest = (raw >> np.uint32(drop)) & np.uint32(1)  # of those that are kept
    half = np.uint32((1 << (drop - 1)) - 1)
    cut = (raw + half + lowest) & np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)
    return np.where(np.isfinite(X), cut.view(np.float32), X)


@contextlib.contextmanager
def _no_stream() -> Any:
    before, machine.stream = machine.stream, None
    try:
        yield
    finally:
        machine.stream = before


def _call() -> None:
    """What goes to the driver; cuBLAS has a word of its own for what comes back."""
    try:
        machine.call("cublas")
    except RuntimeError as error:
        raise cuBLASError("EXECUTION_FAILED") from error


def _of(handle: int) -> Handle:
    _call()
    if handle not in handles:
        raise cuBLASError("NOT_INITIALIZED")
    if handles[handle].device != machine.current_device:
        raise cuBLASError("MAPPING_ERROR")
    return handles[handle]


def modules() -> dict[str, types.ModuleType]:
    """The modules to show as ``nvmath``, with no handles."""
    handles.clear()
    calls.clear()
    shown = {name: types.ModuleType(name) for name in ("nvmath", "nvmath.bindings", "nvmath.bindings.cublas")}
    names = (
        "Operation PointerMode Math ComputeType cuBLASError create destroy get_version set_stream set_workspace "
        "set_pointer_mode set_math_mode gemm_ex gemm_strided_batched_ex"
    )
    for name in names.split():
        setattr(shown["nvmath.bindings.cublas"], name, globals()[name])
    return shown
