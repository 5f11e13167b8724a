"""Runs CUDA kernels on the host: g++ compiles their source text behind ``cuda_names.h`` and ``cuda_host.h``.

A kernel is named as in `cupy.RawModule`, ``"sum_partials<float>"``, and takes its arguments as CUDA's launch does:
host arrays or addresses for pointers, NumPy scalars for the rest, each of exactly the size that the kernel declares.
Libraries are cached in the temporary directory under a hash of all that went into them.
"""

from __future__ import annotations

import ctypes
import functools
import getpass
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HEADERS = [Path(__file__).with_name(name) for name in ("cuda_names.h", "cuda_host.h")]
FLAGS = ("-std=c++17", "-Wall", "-Werror", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-unused-variable")


class CompileError(Exception):
    """g++ does not accept the source."""


class LaunchError(Exception):
    """A launch that a device would not survive, or a barrier that not all threads reached."""


def build(text: str, *flags: str) -> Path:
    """The path of what g++ makes of a C++ text that includes ``cuda_host.h`` first, from the cache where it is there.

    Raises:
        CompileError: g++ does not accept it.
    """
    text_of_header = "".join(header.read_text() for header in HEADERS)
    header = _made(text_of_header, "cuda_host.h.gch", ("-x", "c++-header", *flags))  # parsed once for all kernels
    return _made(text, "program", ("-x", "c++", *flags, "-I", str(header.parent)))


def _made(text: str, name: str, flags: tuple[str, ...]) -> Path:
    key = hashlib.sha256("\0".join([text, _compiler_version(), *FLAGS, *flags]).encode()).hexdigest()[:32]
    target = _cache_directory() / key / name
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made, given = Path(folder) / name, Path(folder) / "source"
            given.write_text(text)
            command = ["g++", *FLAGS, *flags, "-o", str(made), str(given)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                raise CompileError(result.stderr)
            os.replace(made, target)  # at once, for tests that run at the same time
    return target


def _cache_directory() -> Path:
    folder = Path(tempfile.gettempdir()) / f"gpubp-cuda-host-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@functools.cache
def _compiler_version() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout


@functools.cache
def library(source: str, kernel: str) -> Any:
    """The function that launches one kernel of a CUDA source text that includes nothing, compiled.

    Raises:
        CompileError: g++ does not accept it.
    """
    entry = (
        'extern "C" const char* launch(const unsigned* grid, const unsigned* block, void** arguments,'
        " const size_t* sizes, size_t count, bool reverse) {"
        f" return cuda_host::launch({kernel}, grid, block, arguments, sizes, count, reverse); }}"
    )
    text = "\n".join(['#include "cuda_host.h"', source, entry])
    function = ctypes.CDLL(str(build(text, "-O1", "-shared", "-fPIC"))).launch
    function.restype = ctypes.c_char_p
    return function


def launch(
    source: str,
    kernel: str,
    grid: Sequence[int],
    block: Sequence[int],
    arguments: Sequence[object],
    *,
    reverse: bool = False,
) -> None:
    """Run one kernel to its end.

    Args:
        source: CUDA source text that includes nothing.
        kernel: The kernel, template arguments included.
        grid: Blocks along x, y and z.
        block: Threads along x, y and z.
        arguments: NumPy arrays for pointers, Python ints for 64-bit integers, NumPy scalars for the rest.
        reverse: Run threads and blocks in the opposite order.

    Raises:
        LaunchError: The launch or the kernel is wrong.
    """
    function = library(source, kernel)
    values = [_value(argument) for argument in arguments]
    count = len(values)
    message = function(
        (ctypes.c_uint * 3)(*grid, *[1] * (3 - len(grid))),
        (ctypes.c_uint * 3)(*block, *[1] * (3 - len(block))),
        (ctypes.c_void_p * count)(*(value.ctypes.data for value in values)),
        (ctypes.c_size_t * count)(*(value.itemsize for value in values)),
        ctypes.c_size_t(count),
        ctypes.c_bool(reverse),
    )
    if message:
        raise LaunchError(f"{kernel}: {message.decode()}")


def _value(argument: object) -> np.ndarray:
    """The bytes that the kernel's parameter gets, as an array of one element."""
    if isinstance(argument, np.ndarray):
        return np.array(argument.ctypes.data, np.uint64)
    if isinstance(argument, int):
        return np.array(argument, np.int64)
    if isinstance(argument, np.generic):
        return np.array(argument)
    raise TypeError(f"a kernel takes arrays, ints and NumPy scalars, not {type(argument).__name__}")
