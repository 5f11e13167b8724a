"""Finds, compiles and launches the CUDA kernels of ``kernels/``; captures what is launched as a CUDA graph.

Nothing is compiled, and CuPy is not imported, before a kernel is first launched. The ``.cuh`` headers are put into
the source text before it is compiled: the disk cache of compiled kernels looks at the text alone, and would miss a
change in a header that the compiler reads from a path.
"""

from __future__ import annotations

import contextlib
import functools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from gpubp.backend import Device
from gpubp.errors import DeviceError

OPTIONS = ("--std=c++17",)

_INCLUDE = re.compile(r'^[ \t]*#include "([^"]+)".*\n?', re.MULTILINE)
_PRAGMA_ONCE = re.compile(r"^[ \t]*#pragma once.*\n?", re.MULTILINE)


def kernel_directory() -> Path:
    """Where the kernel sources are: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    packaged = package / "kernels"
    return packaged if packaged.is_dir() else package.parent / "kernels"


def source(stem: str) -> str:
    """The text of ``kernels/<stem>.cu`` with each header that it includes put in its place, once.

    Raises:
        DeviceError: A source file is missing.
    """
    included: set[str] = set()

    def inlined(name: str) -> str:
        if name in included:
            return ""
        included.add(name)
        return _INCLUDE.sub(lambda match: inlined(match[1]), _PRAGMA_ONCE.sub("", read(name)))

    return inlined(f"{stem}.cu")


def read(name: str) -> str:
    """The text of one file of the kernel directory.

    Raises:
        DeviceError: The file is missing.
    """
    path = kernel_directory() / name
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DeviceError(
            f"the CUDA source {name} is missing from {path.parent}: this installation of gpubp is incomplete. "
            "Reinstall it with pip install --force-reinstall gpubp, or use device='cpu'"
        ) from error


def launch(
    stem: str, kernel: str, grid: tuple[int, int, int], block: tuple[int, int], arguments: Sequence[Any]
) -> None:
    """Launch a kernel on the current CuPy stream.

    Args:
        stem: The source file, without ``.cu``.
        kernel: The kernel as C++ names it, template arguments included: ``"sum_partials<float>"``.
        grid: Blocks along x, y and z.
        block: Threads of a block along x and y.
        arguments: CuPy arrays for pointers, 0 for a null pointer, int for a 64-bit integer, NumPy scalars for the rest.

    Raises:
        DeviceError: The source is missing, or the kernel does not compile.
    """
    function(stem, kernel)(grid, (*block, 1), tuple(arguments))


def function(stem: str, kernel: str) -> Any:
    """The compiled kernel, as ``cupy.RawModule.get_function`` returns it; compiled once per device.

    Raises:
        DeviceError: The source is missing, or the kernel does not compile.
    """
    cupy = _cupy()
    return _compiled(cupy.cuda.runtime.getDevice(), stem, kernel)


@functools.cache
def _compiled(device: int, stem: str, kernel: str) -> Any:
    cupy = _cupy()
    module = cupy.RawModule(code=source(stem), options=OPTIONS, name_expressions=(kernel,))
    try:
        return module.get_function(kernel)
    except cupy.cuda.compiler.CompileException as error:
        raise DeviceError(f"kernel {kernel} of {stem}.cu does not compile on cuda:{device}: {error}") from error


def event() -> Any:
    """An event of the current device, without the clock that CuPy gives it unasked.

    It is made once and recorded again and again: who was told to wait for it waits for what it stood for then.
    """
    return _cupy().cuda.Event(disable_timing=True)


@contextlib.contextmanager
def ordered(stream: Any, event: Any) -> Iterator[None]:
    """Make a stream the current one: after all that was enqueued before, and before all that will be afterwards.

    Args:
        stream: The stream.
        event: One that nobody but the stream's owner records, see `event`.
    """
    caller = _cupy().cuda.get_current_stream()
    event.record(caller)
    stream.wait_event(event)
    try:
        with stream:
            yield
    finally:  # what was enqueued before an error goes on, too
        event.record(stream)
        caller.wait_event(event)


def wait(event: Any) -> None:
    """Wait until the device has passed an event, and hear Ctrl-C meanwhile, as a wait within the driver does not."""
    began = time.perf_counter()
    while not event.done:
        time.sleep((time.perf_counter() - began) / 50)  # seen at most that much too late


def captured(stream: Any, work: Callable[[], None]) -> Any:
    """The launches that `work` makes on a stream, as a CUDA graph; nothing is computed.

    Raises:
        Exception: Whatever can't be captured, memory that `work` asks for above all: the graph would go on writing it
            when it is somebody else's.
    """
    with stream, _cupy().cuda.using_allocator(_refuse_memory):
        stream.begin_capture()
        try:
            work()
        except BaseException:
            with contextlib.suppress(Exception):  # the capture is broken already, and the first error says why
                stream.end_capture()
            raise
        return stream.end_capture()


def _refuse_memory(nbytes: int) -> Any:
    raise DeviceError(f"{nbytes:,} bytes of device memory were asked for within a step")


def clear_cache() -> None:
    """Forget the compiled kernels; for tests that change the sources or the device."""
    _compiled.cache_clear()


def _cupy() -> ModuleType:
    return Device("cuda").module
