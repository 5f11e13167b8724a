"""Finds, compiles and launches the CUDA kernels of ``kernels/``; captures what is launched as a CUDA graph.

Nothing is compiled, and CuPy is not imported, before a kernel is first launched. The ``.cuh`` headers are put into
the source text before it is compiled: the disk cache of compiled kernels looks at the text alone, and would miss a
change in a header that the compiler reads from a path.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from types import ModuleType
from typing import Any

from gpubp.backend import Device
from gpubp.errors import DeviceError

OPTIONS = ("--std=c++17",)
NOT_READY = 600
"""What the driver says of an event that the device has still to pass: cudaErrorNotReady."""

ANNOUNCED_AFTER = 1.0
"""Seconds of compiling after which it is said what takes so long."""

_local = threading.local()

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
    if (kernels := getattr(_local, "noted", None)) is not None:
        kernels[stem, kernel] = None
        return
    function(stem, kernel)(grid, (*block, 1), tuple(arguments))


@contextlib.contextmanager
def noted() -> Iterator[Collection[tuple[str, str]]]:
    """Within the block this thread launches no kernel: the source and the name of each are noted instead."""
    before, _local.noted = getattr(_local, "noted", None), {}
    try:
        yield _local.noted
    finally:
        _local.noted = before


def compile_ahead(kernels: Collection[tuple[str, str]]) -> None:
    """Compile kernels for the current device in several threads; those that are compiled already cost nothing.

    Args:
        kernels: The source and the name of each, as `launch` takes them.

    Raises:
        DeviceError: See `function`.
    """
    device = _cupy().cuda.runtime.getDevice()
    missing = [kernel for kernel in kernels if (device, *kernel) not in _compiled_kernels]
    if not missing:
        return

    def compile_one(stem: str, kernel: str) -> None:
        with Device("cuda", device).activate("compiling kernels"):
            function(stem, kernel)

    pool = futures.ThreadPoolExecutor(thread_name_prefix="gpubp-compile")
    try:
        # An error says what was being done, in this thread too.
        running = [
            pool.submit(contextvars.copy_context().run, functools.partial(compile_one, *kernel)) for kernel in missing
        ]
        if futures.wait(running, timeout=ANNOUNCED_AFTER).not_done:
            names = ", ".join(sorted({kernel.partition("<")[0] for _, kernel in missing}))
            # A warning, as nothing below that level is seen where no logging is set up.
            logging.getLogger("gpubp").warning(
                "compiling %d CUDA kernels for cuda:%d, once: CuPy keeps them for later (%s)",
                len(missing),
                device,
                names,
            )
        for one in running:
            one.result()
    finally:
        pool.shutdown(cancel_futures=True)


def function(stem: str, kernel: str) -> Any:
    """The compiled kernel, as ``cupy.RawModule.get_function`` returns it; compiled once per device.

    Raises:
        DeviceError: The source is missing, or the kernel does not compile.
    """
    key = _cupy().cuda.runtime.getDevice(), stem, kernel
    if key not in _compiled_kernels:
        _compiled_kernels[key] = _compiled(*key)
    return _compiled_kernels[key]


_compiled_kernels: dict[tuple[int, str, str], Any] = {}  # by device, source and name


def _compiled(device: int, stem: str, kernel: str) -> Any:
    cupy = _cupy()
    module = cupy.RawModule(code=source(stem), options=OPTIONS, name_expressions=(kernel,))
    with Device("cuda", device).activate():  # which says what is missing, if it is the compiler
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
    query, began = _cupy().cuda.runtime.eventQuery, time.perf_counter()
    while (status := query(event.ptr)) == NOT_READY:
        time.sleep((time.perf_counter() - began) / 50)  # seen at most that much too late
    if status:  # the device failed, and the event will never be passed
        event.synchronize()  # raises, and says how


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
    _compiled_kernels.clear()


def _cupy() -> ModuleType:
    return Device("cuda").module
