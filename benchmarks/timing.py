"""How the benchmarks time: blocks of calls long enough for the clock, in rounds that take the parts in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import gpubp

BLOCK_SECONDS = 5e-3
"""A block holds as many calls as take this long, so that a clock read and a synchronisation are nothing beside it."""
ROUNDS = (5, 200)
"""Fewest and most rounds of a cell."""
WARMUP_ROUNDS = 1

Part = Callable[[int], None]
"""Something to time: does its work so many times, and returns when all of it is done."""


def synchronize(device: gpubp.Device) -> None:
    """Wait until the device has done what it was given; the CPU has done so already."""
    if device.is_cuda:
        device.module.cuda.Device(device.index).synchronize()


def seconds_of(part: Part, times: int) -> float:
    """The time that a part takes, done so many times."""
    began = time.perf_counter()
    part(times)
    return time.perf_counter() - began


def block_of(part: Part) -> tuple[int, float]:
    """How many times a part is done in one block, and how long a block takes.

    Each length is tried twice, so that one disturbance does not make the blocks too short for good.
    """
    times = 1
    while (taken := min(seconds_of(part, times) for _ in range(2))) < BLOCK_SECONDS and times < 2**20:
        times *= 2
    return times, taken


def schedule(part: Part, seconds: float, *, blocks_a_round: float = 1.0) -> tuple[int, int]:
    """How many times a part is done in one block, and how many rounds fill the time.

    Args:
        part: What is timed; it has run before, so that nothing is done for the first time.
        seconds: About how long all rounds together shall take.
        blocks_a_round: What a round takes, in blocks of this part: other parts are timed in the same round.
    """
    times, taken = block_of(part)
    return times, min(max(round(seconds / (blocks_a_round * taken)), ROUNDS[0]), ROUNDS[1])


def median_seconds(part: Part, seconds: float) -> float:
    """The median time of a part done once, from rounds that take about so many seconds; it has run before."""
    times, rounds = schedule(part, seconds)
    return median(seconds_of(part, times) for _ in range(rounds)) / times
