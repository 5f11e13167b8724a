"""Running kernels: one after the other, each shared between threads that wait for each other at its end."""

from __future__ import annotations

import os
from typing import Any

from numba import njit, types
from numba.extending import register_jitable

from gpubp import cpu
from gpubp.cpu_kernels.memory import FLAGS, atomic_add, atomic_load, cached, call

KERNEL, ARGUMENTS, ITEMS, THREADS = range(4)
"""The columns of a program: addresses of a kernel and its arguments, its work items, threads worth using for it."""
ARRIVED, ROUND, ABORT, LINE = 0, 8, 16, 24
"""Where in `sync` are the count of threads, of rounds, the word to give up, each on a cache line; its length."""
SPINS = 4000
"""Looks at the counter before a waiting thread offers its core to others: some microseconds."""

if os.name == "posix":
    _yield_core = types.ExternalFunction("sched_yield", types.int32())
else:

    @njit
    def _yield_core() -> int:
        return 0


def _run(program: Any, steps: int, thread: int, threads: int, sync: Any) -> None:
    """Run a program so many times, as one of so many threads.

    Args:
        program: (kernels, 4) int64, see the columns above.
        steps: How many times to run the program; kernels are told which, from 0.
        thread: Which thread this is, from 0.
        threads: How many run the same program; all of them must call.
        sync: (LINE,) int64 that they share, of zeros before the first call; left fit for the next.
    """
    for step in range(steps):
        for k in range(program.shape[0]):
            _run_share(program[k], step, thread, threads)
            if threads > 1 and not _all_arrive(sync, threads):
                return


def _run_alone(program: Any, steps: int, threads: int) -> None:
    """Run a program as one thread in the place of so many: the same shares, one after the other, and the same results.

    Args:
        program: As for `_run`.
        steps: As for `_run`.
        threads: In whose place.
    """
    for step in range(steps):
        for k in range(program.shape[0]):
            for thread in range(threads):
                _run_share(program[k], step, thread, threads)


@register_jitable
def _run_share(line: Any, step: int, thread: int, threads: int) -> None:
    """What one of so many threads does of a line of a program, (kernels' columns,)."""
    workers = min(threads, line[THREADS])
    if thread < workers:
        items = line[ITEMS]
        begin, end = items * thread // workers, items * (thread + 1) // workers
        if begin < end:
            call(line[KERNEL], line[ARGUMENTS], begin, end, step)


@njit(nogil=True, **FLAGS)
def _all_arrive(sync: Any, threads: int) -> bool:
    """Wait for the others; False if one of them will never come."""
    this_round = atomic_load(sync, ROUND)
    if atomic_add(sync, ARRIVED, 1) == threads - 1:
        atomic_add(sync, ARRIVED, -threads)
        atomic_add(sync, ROUND, 1)
        return True
    spins = 0
    while atomic_load(sync, ROUND) == this_round:
        spins += 1
        if spins > SPINS:
            if atomic_load(sync, ABORT) != 0:
                return False
            _yield_core()
    return True


_NUMBERS = types.int64
_PROGRAM = _NUMBERS[:, ::1]
_TYPES = types.void(_PROGRAM, _NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS[::1])
_TYPES_ALONE = types.void(_PROGRAM, _NUMBERS, _NUMBERS)

with cpu.compiling:
    run = cached(lambda options: njit(_TYPES, nogil=True, **options)(_run))
    run_alone = cached(lambda options: njit(_TYPES_ALONE, nogil=True, **options)(_run_alone))
