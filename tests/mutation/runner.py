"""Runs test suites on mutants: one forked child for each, in which the mutated text takes the place of the file.

NumPy and pytest are imported once, here; a child imports gpubp and the tests, and the working tree is never touched.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

SECONDS = 60
"""CPU time after which a mutant counts as hung; the slowest unmutated list of suites takes about half of it."""
MEMORY = 8 << 30
"""Bytes of address space after which an allocation fails."""
PYTEST = ["-x", "-q", "--tb=no", "--no-header", "--no-summary", "-m", "not gpu", "-p", "no:cacheprovider"]


class Outcome(StrEnum):
    """What became of a mutant."""

    SURVIVED = "survived"
    KILLED = "killed"
    ON_IMPORT = "killed on import"
    ON_TIME = "killed by the time limit"
    CRASHED = "killed by a crash"


@dataclass(frozen=True)
class Job:
    """Suites to run, with the text of one module replaced where there is one."""

    suites: tuple[str, ...]
    path: Path | None = None
    module: str = ""
    text: str = ""


class MutantFinder(importlib.abc.MetaPathFinder):
    """Gives the mutated text when the mutated module is imported."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.job.module:
            return None
        return importlib.util.spec_from_file_location(fullname, self.job.path, loader=MutantLoader(self.job))


class MutantLoader(importlib.abc.Loader):
    """Executes the mutated text; nothing is read from or written to a bytecode cache."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def exec_module(self, module: Any) -> None:
        exec(compile(self.job.text, str(self.job.path), "exec", dont_inherit=True), module.__dict__)


def prepare(root: Path) -> None:
    """Import what every child needs, with one thread for each, so that forking is safe and children do not compete."""
    os.chdir(root)
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    os.environ.update(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", CI="1")  # Hypothesis: the same examples in each child
    sys.path.insert(0, str(root))
    for name in ("numpy.testing", "pytest", "hypothesis", "rich.progress", "safetensors.numpy", "typer"):
        importlib.import_module(name)


def run(jobs: Iterable[Job], processes: int) -> Iterator[tuple[Job, Outcome]]:
    """Every job with its outcome, as they finish."""
    waiting, running = iter(jobs), {}
    while True:
        while len(running) < processes and (job := next(waiting, None)) is not None:
            running[_start(job)] = job
        if not running:
            return
        pid, status = os.wait()
        yield running.pop(pid), _outcome(status)


def _start(job: Job) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 3
    try:
        code = _in_child(job)
    finally:
        os._exit(code)


def _in_child(job: Job) -> int:
    import resource

    import pytest

    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(null, stream)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(10 * SECONDS)  # a mutant may also hang without working
    os.environ["GPUBP_CPU_KERNELS"] = "numpy"  # the compiled kernels would hide what became of the maths in NumPy
    if job.path is not None:
        sys.meta_path.insert(0, MutantFinder(job))
    for suite in job.suites:
        code = int(pytest.main([*PYTEST, suite]))
        if code:
            return code
    return 0


def _outcome(status: int) -> Outcome:
    if os.WIFSIGNALED(status):
        ended_by_limit = os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGALRM, signal.SIGKILL)
        return Outcome.ON_TIME if ended_by_limit else Outcome.CRASHED
    # pytest: 0 all passed, 1 a test failed; the rest means that tests could not be collected.
    return {0: Outcome.SURVIVED, 1: Outcome.KILLED}.get(os.WEXITSTATUS(status), Outcome.ON_IMPORT)
