"""Errors of CuPy, of CUDA and of cuBLAS: which device is told of, what was being done, and whether it is lost.

A kernel fails after its launch has returned, and so what raises is any later call. What the user was waiting for says
more than its name.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from contextvars import ContextVar

from gpubp.errors import DeviceLostError

LOST = frozenset({226, 700, 702, 710, *range(714, 720), 721, 810, 911})
"""Values of cudaError_t, and of CUresult, after which all that follows fails until the process is started anew."""
OUT_OF_MEMORY = 2
"""What CUDA calls a lack of memory."""
ALLOC_FAILED = 3
"""What cuBLAS calls it."""
LACKS_TOOLKIT = ("Failed to find CUDA headers", "Failure finding", "CuPy failed to load")
"""How errors of CuPy and cuda-pathfinder begin when a part of CUDA is missing; they are of no class of their own."""

_CUBLAS = {"CUBLASError", "cuBLASError"}
_KINDS = {"OutOfMemoryError", "CUDARuntimeError", "CUDADriverError", "CompileException", "NVRTCError", *_CUBLAS}

_doing: ContextVar[tuple[str, ...]] = ContextVar("doing", default=())


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Let an error in this block say what was being done; blocks within it say more of it."""
    token = _doing.set((*_doing.get(), what) if what else _doing.get())
    try:
        yield
    finally:
        _doing.reset(token)


def is_of_cuda(error: BaseException) -> bool:
    """Whether CuPy, CUDA or cuBLAS raised it; nvmath-python, with a class of its own, need not be there."""
    return type(error).__name__ in _KINDS


def lacks_toolkit(error: BaseException) -> bool:
    """Whether it says that CUDA's compiler, headers or a library is not there."""
    return isinstance(error, RuntimeError | ImportError) and str(error).startswith(LACKS_TOOLKIT)


def missing_toolkit_message(device: object, error: BaseException, cuda: int) -> str:
    """What is missing of this version of CUDA, with the way out."""
    what = re.split("[.:] ", first_line(error))[0]
    return (
        f"{device} can't be used: {what}. CuPy needs the compiler, headers and libraries of CUDA {cuda}: pip install "
        f"'cupy-cuda{cuda}x[ctk]' brings them, and so does 'gpubp[cuda{cuda}x]'; gpubp info names what does not fit. "
        "Or use device='cpu'"
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says that there is no memory left: CuPy's pool, a call of CUDA, or one of cuBLAS."""
    lack = ALLOC_FAILED if type(error).__name__ in _CUBLAS else OUT_OF_MEMORY
    return isinstance(error, MemoryError) or getattr(error, "status", None) == lack


def failure_message(device: object, error: BaseException, what: str = "failed") -> str:
    """The device, what was being done, and the first line of the error."""
    during = f" while {', '.join(_doing.get())}" if _doing.get() else ""
    return f"{device} {what}{during} ({first_line(error)})"


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def raise_if_lost(error: BaseException, device: object = "the CUDA device") -> None:
    """Ask the driver after an error that might be let pass, or explained otherwise, whether the device is lost.

    Raises:
        DeviceLostError: It is; the one that was raised already, where cleaning up has failed after it.
    """
    before: BaseException | None = error
    while before is not None:
        if isinstance(before, DeviceLostError):
            raise before
        before = before.__context__
    cupy = sys.modules.get("cupy")
    lost = getattr(error, "status", None) in LOST
    # cuBLAS, and whoever tripped over the consequences, do not know. The query gives the status as it is.
    if lost or (cupy is not None and cupy.cuda.runtime.streamQuery(0) in LOST):
        raise DeviceLostError(
            f"{failure_message(device, error)}. The device is lost to this process, which has to be restarted"
        ) from error
