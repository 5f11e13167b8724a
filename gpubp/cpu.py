"""Finds the CPU kernels, launches them, and records launches as a program that runs without Python.

The kernels of `gpubp.cpu_kernels` are compiled by Numba, lazily, never at import. Without Numba and SciPy (the extra
``cpu``) there are none, and the ops compute in NumPy. A launch runs at once, shared between threads where that pays;
within `recorded` it also becomes a line of a `Program`, which runs many training steps in one call.
"""

from __future__ import annotations

import _thread
import contextlib
import contextvars
import ctypes
import functools
import importlib
import importlib.util
import itertools
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpubp.backend import Array
from gpubp.errors import SettingError

SETTING = "GPUBP_CPU_KERNELS"
"""Environment variable: ``numpy`` turns the kernels off, ``numba`` insists on them, ``auto`` takes what there is."""
ALONE_NANOSECONDS = 150_000
"""Work up to which waking other threads does not pay."""
STEP_NANOSECONDS = 40_000
"""Work of a step up to which waiting for each other after every kernel does not pay either."""
SHARE_NANOSECONDS = 3_000
"""Least work of a thread that is awake, to pay for waiting for the others afterwards."""


def why_no_kernels() -> str | None:
    """Why the ops compute in NumPy on the CPU, with the way out; None where compiled kernels are used."""
    wanted = os.environ.get(SETTING, "auto")
    if wanted not in ("auto", "numba", "numpy"):
        raise SettingError(f"{SETTING}={wanted!r}: use 'auto', 'numba' or 'numpy'")
    if wanted == "numpy":
        return f"{SETTING}=numpy turns them off"
    needed = ("numba", "scipy", "platformdirs", "threadpoolctl")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing and wanted == "numba":
        raise SettingError(f"{SETTING}=numba, but {', '.join(missing)} can't be found: pip install 'gpubp[cpu]'")
    if missing:
        return f"{', '.join(missing)}: not installed. pip install 'gpubp[cpu]'"
    try:
        importlib.import_module("gpubp.cpu_kernels")
    except Exception as error:  # a Numba that does not go with this NumPy, a broken install: the ops work without
        reason = f"Numba is installed but can't be used ({str(error).strip().splitlines()[0]})"
        if wanted == "numba":
            raise SettingError(f"{SETTING}=numba, but {reason}") from error
        return reason
    return None


@functools.cache
def kernels() -> Any:
    """The package of the compiled kernels, or None."""
    return None if why_no_kernels() else importlib.import_module("gpubp.cpu_kernels")


def is_plain(*arrays: Array | None) -> bool:
    """Whether the arrays are NumPy's, C-contiguous, and all float32 or all float64."""
    kinds = set()
    for array in arrays:
        if array is not None:
            if type(array) is not np.ndarray or not array.flags.c_contiguous or not is_native(array):
                return False
            kinds.add(array.dtype.char)
    return len(kinds) == 1 and kinds <= {"f", "d"}


def is_native(array: Array) -> bool:
    """Whether the elements lie in memory as the processor reads them."""
    return bool(array.dtype.isnative and array.flags.aligned)


def has_plain_rows(array: Array, like: Array) -> bool:
    """Whether an array (n,) or (E, n) has the dtype of another, and each row in one piece; rows may lie apart."""
    close = array.shape[-1] == 1 or array.strides[-1] == array.itemsize
    return bool(array.dtype == like.dtype and array.ndim <= 2 and close and is_native(array))


# Launching.

_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)
_local = threading.local()


def launch(
    compiled: Any, arguments: Sequence[Any], items: int, nanoseconds: float, *, calls_blas: bool = False
) -> None:
    """Run a kernel over its work items now; within `recorded`, note it too.

    Args:
        compiled: What a `gpubp.cpu_kernels.memory.kernel` gave.
        arguments: Arrays (passed as addresses; None as 0), whole numbers, and floats (passed as their bits).
        items: How many work items there are.
        nanoseconds: About what one of them takes.
        calls_blas: Whether the kernel calls BLAS, which must stay on the thread that calls it.
    """
    if items <= 0:
        return
    words = (ctypes.c_int64 * len(arguments))(*map(_word, arguments))
    line = _Line(compiled.address, ctypes.addressof(words), items, items * nanoseconds, (words, compiled, arguments))
    lines, runs = getattr(_local, "recorded", (None, True))
    if lines is not None:
        lines.append(line)
    if not runs:
        return
    if line.nanoseconds < ALONE_NANOSECONDS or threads() == 1:
        with _one_blas_thread() if calls_blas else contextlib.nullcontext():
            _FUNCTION(line.kernel)(line.words, 0, items, 0)
    else:
        Program([line]).run(1)


def _word(argument: Any) -> int:
    if isinstance(argument, int):
        return argument
    if isinstance(argument, np.ndarray):
        return int(argument.__array_interface__["data"][0])
    if argument is None:
        return 0
    return int(_BITS.unpack(_DOUBLE.pack(argument))[0])


_BITS, _DOUBLE = struct.Struct("q"), struct.Struct("d")


class _Line(NamedTuple):
    """A launch: addresses, work items, about how long they take, and what must not be freed as long as it may run."""

    kernel: int
    words: int
    items: int
    nanoseconds: float
    kept: tuple[Any, ...]


@contextlib.contextmanager
def recorded(*, run: bool = True) -> Iterator[list[_Line]]:
    """The launches of this thread within the block, as lines for a `Program`; they run as ever, or not at all."""
    lines: list[_Line] = []
    _local.recorded = lines, run
    try:
        yield lines
    finally:
        del _local.recorded


class Program:
    """Recorded launches, to be run again and again in one call that needs no Python.

    The launches see the addresses that they were recorded with: what is in the arrays may change, the arrays may not.

    Args:
        lines: What `recorded` gave.
    """

    def __init__(self, lines: Sequence[_Line]) -> None:
        self._lines = list(lines)  # keeps the arrays alive
        self.nanoseconds = sum(line.nanoseconds for line in lines)
        """About what one step takes."""
        workers = [max(1, int(line.nanoseconds / SHARE_NANOSECONDS)) for line in lines]
        columns = [(line.kernel, line.words, line.items, count) for line, count in zip(lines, workers, strict=True)]
        self.code = np.array(columns, np.int64).reshape(-1, 4)
        self._widest = max(workers, default=1)

    def run(self, steps: int) -> None:
        """Run all lines so many times; kernels are told the step, from 0."""
        # By the work of one step alone, not of all: results must not depend on how many steps go together.
        alone = self.nanoseconds <= STEP_NANOSECONDS
        _team.run(self, steps, 1 if alone else min(threads(), self._widest))


class _Team:
    """Threads that run a program together. One program at a time has the team; another does the same on one thread."""

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._members: list[_Member] = []

    def run(self, program: Program, steps: int, workers: int) -> None:
        with _one_blas_thread():
            if workers == 1 or not self._busy.acquire(blocking=False):
                kernels().team.run_alone(program.code, steps, workers)
                return
            try:
                self._run_together(program, steps, workers)
            finally:
                self._busy.release()

    def _run_together(self, program: Program, steps: int, workers: int) -> None:
        team = kernels().team
        sync = np.zeros(team.LINE, np.int64)
        started, done = [], False
        try:
            for number in range(1, workers):
                if number > len(self._members):
                    self._members.append(_Member(number))
                started.append(self._members[number - 1])
                started[-1].start(program, steps, workers, sync)
            team.run(program.code, steps, 0, workers, sync)
            for member in started:
                member.wait()
            done = True
        finally:
            if not done:  # a Ctrl-C came between: whoever waits in the program must not wait for ever
                sync[team.ABORT] = 1
                for member in started:
                    member.dismiss()
                self._members = []


class _Member:
    """One more thread of the team; it sleeps between programs.

    It is woken and waited for by plain locks: a Ctrl-C may come between any two lines of Python, and a lock, unlike a
    semaphore, is none.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._go, self._done = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._done.acquire()
        self._job: tuple[Any, ...] | None = None
        _thread.start_new_thread(self._work, ())

    def start(self, program: Program, steps: int, workers: int, sync: Array) -> None:
        self._job = program, steps, workers, sync
        self._go.release()

    def wait(self) -> None:
        self._done.acquire()

    def dismiss(self) -> None:
        """Let the thread end, once it has left its program."""
        self._job = None
        with contextlib.suppress(RuntimeError):  # it was told to go, and has not heard it yet
            self._go.release()

    def _work(self) -> None:
        while True:
            self._go.acquire()
            if (job := self._job) is None:
                return
            program, steps, workers, sync = job  # keeps the program's arrays alive while it runs, and no longer
            self._job = None
            try:
                kernels().team.run(program.code, steps, self._number, workers, sync)
            finally:
                self._done.release()
            del job, program


_team = _Team()


def _begin_anew() -> None:
    """In a forked child there are no other threads."""
    global _team
    _team = _Team()
    if _libraries.cache_info().currsize:
        for library in _libraries():
            library.begin_anew()
    compiling.release()


compiling = threading.RLock()
"""Held while a kernel is compiled: a fork waits for it, as the child could never take Numba's own lock.

The thread that compiles may fork, in a log handler that hears of it: the child goes on as that thread, with its locks.
"""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=compiling.acquire, after_in_parent=compiling.release, after_in_child=_begin_anew)


# Threads.

_limit: contextvars.ContextVar[int | None] = contextvars.ContextVar("gpubp_threads", default=None)


def threads() -> int:
    """How many threads the kernels may use: `limited_threads`, else OMP_NUM_THREADS, else the usable cores."""
    return _limit.get() or _default_threads()


@functools.cache
def _default_threads() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_threads(count: int | None) -> int | None:
    """The number of threads that was asked for, or None.

    Raises:
        SettingError: It is not a whole number of at least 1.
    """
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise SettingError(f"threads={count!r}: a whole number of at least 1 is needed")
    return count


@contextlib.contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Within the block kernels and BLAS use at most so many threads each, never both at once; None changes nothing.

    It is this thread's own limit for the kernels; BLAS knows one for the process, the smallest of those in force.

    Raises:
        SettingError: The count is not a whole number of at least 1, or threadpoolctl is not installed.
    """
    count = require_threads(count)
    if count is None:
        yield
        return
    token, key = _limit.set(count), (threading.get_ident(), object())
    try:
        for library in _libraries():
            library.limit(key, count)
        yield
    finally:
        _limit.reset(token)
        for library in _libraries():
            library.release(key)


@contextlib.contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Within the block the BLAS that the kernels call computes on the thread that calls it.

    Kernels split products between threads themselves: more threads of BLAS would only wait for each other. NumPy keeps
    its threads, where its BLAS is another library.
    """
    key = threading.get_ident(), None  # kernels do not nest: what a Ctrl-C left behind, the next launch ends
    try:
        for library in kernel_libraries():
            library.limit(key, 1)
        yield
    finally:
        for library in kernel_libraries():
            library.release(key)


class _Library:
    """A BLAS library: it may use as many threads as the smallest of the limits in force, whoever asked for them.

    Args:
        controller: What threadpoolctl knows it as.
    """

    def __init__(self, controller: Any) -> None:
        self.path = Path(controller.filepath)
        self.architecture: str | None = getattr(controller, "architecture", None)
        """The processor whose kernels it uses, by its own name; None where it does not tell."""
        self._controller, self._set = controller, _setter(controller)
        self._lock = threading.Lock()
        self._limits: dict[tuple[int, object], int] = {}  # by the thread that asked, and what it asked for
        self._before = 0  # its threads without a limit

    @property
    def threads(self) -> int:
        """How many threads it uses now."""
        return int(self._controller.num_threads)

    def limit(self, key: tuple[int, object], count: int) -> None:
        """Use at most so many threads until the `release` of this key."""
        with self._lock:
            if not self._limits:
                self._before = self.threads
            self._limits[key] = count
            self._set(min(self._before, *self._limits.values()))

    def release(self, key: tuple[int, object]) -> None:
        """End a limit; none of that key is as well."""
        with self._lock:
            if key in self._limits:
                self._set(min([self._before, *(count for other, count in self._limits.items() if other != key)]))
                del self._limits[key]

    def begin_anew(self) -> None:
        """In a forked child: keep the limits of the thread that forked, as there is no other."""
        self._lock = threading.Lock()
        if self._limits:
            self._limits = {key: count for key, count in self._limits.items() if key[0] == threading.get_ident()}
            self._set(min([self._before, *self._limits.values()]))


def _setter(controller: Any) -> Callable[[int], object]:
    """What sets the threads of a library, from any thread.

    From version 3.8 on, threadpoolctl lets the first thread alone set those of OpenBLAS, for as long as that thread
    lives; the calls of all others do nothing. So where OpenBLAS has one number for the process, it is asked directly.
    """
    if controller.internal_api == "openblas" and controller.threading_layer == "pthreads":
        for prefix, suffix in itertools.product(("", "scipy_"), ("", "64_", "_64")):
            function = getattr(controller.dynlib, f"{prefix}openblas_set_num_threads{suffix}", None)
            if function is not None:
                return function  # type: ignore[no-any-return]
    return controller.set_num_threads  # type: ignore[no-any-return]


@functools.cache
def _libraries() -> list[_Library]:
    """The BLAS libraries of this process.

    Raises:
        SettingError: threadpoolctl, which finds them, is not installed: no limit would be kept.
    """
    try:
        import threadpoolctl
    except ImportError as error:
        raise SettingError("threads can't be limited without threadpoolctl: pip install threadpoolctl") from error
    if kernels() is not None:
        importlib.import_module("scipy.linalg.cython_blas")  # loads the library that the products go to
    return list(map(_Library, threadpoolctl.ThreadpoolController().select(user_api="blas").lib_controllers))


@functools.cache
def kernel_libraries() -> list[_Library]:
    """The BLAS libraries that the kernels may call: the one that SciPy's wheel brings, or all where it brings none."""
    own = [library for library in _libraries() if any(part.startswith("scipy") for part in library.path.parts[-3:-1])]
    return own or _libraries()
