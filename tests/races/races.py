"""Races of the CUDA kernels, found on the host by ThreadSanitizer; and every barrier removed, to see that it is missed.

    python tests/races/races.py -j 2                # every kernel, in every type and width
    python tests/races/races.py --kernels softmax   # those of one file

What ``tests/every_kernel.py`` launches is launched again, in several orders of threads and blocks, with shapes that
make several blocks, warps and passes of each loop; ``cuda_host.h`` says what a race is. A launch must be free of races,
and its results the same to the last bit in every order. Then each barrier that a kernel comes to is removed, one at a
time and from that kernel alone: one of a header is removed from each kernel that uses it. A launch must race then. If
none does, the barrier must be in `EQUIVALENT`, which says why nothing could. The exit code is 1 where a launch was not
fine, a barrier was not missed, no kernel came to it, or an entry of `EQUIVALENT` is stale.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

import cuda_host  # noqa: E402
import every_kernel  # noqa: E402
import fake_cupy  # noqa: E402
from cuda_host import replay  # noqa: E402
from fake_cupy import Launch  # noqa: E402

from gpubp import cpu, cuda  # noqa: E402

ORDERS = (3, 0, 1, 2)
"""Of threads and blocks: in each a race shows, and all have to have the same result."""
MEMBERS = 2
SHAPES = ((700, 12), (2, 2052))
"""Examples and columns of each member: for chunks of rows, and for rows that a whole block shares."""
PARAMETERS = 70_000
"""Of each member, for a sum of so many squares that its chunks take more than a warp."""
BLOCKS = 4
"""Of a launch, at most: ThreadSanitizer takes long where many threads are there at once."""
BARRIER = re.compile(r"__sync(?:threads|warp)\(")
EQUIVALENT = {
    ("softmax", "sums.cuh", 1): "The largest and the sum lie in two arrays, and take turns: who writes one of them has "
    "passed the second barrier of the other since, as have all who read the first.",
}
"""Kernel, file, number of the barrier in that file; and why it need not be there for that kernel."""

Barrier = tuple[str, int]
"""A file, and which of its barriers, from 1."""


def recorded(dtypes: Sequence[str] = every_kernel.DTYPES) -> list[Launch]:
    """What the operations and the optimizers launch, on arrays that begin at 16 bytes and on others; nothing is run."""

    def nothing(*arguments: object, **settings: object) -> None:
        """In place of compiling and of launching."""

    with (
        mock.patch.object(cuda_host, "library", nothing),
        mock.patch.object(cuda_host, "launch", nothing),
        mock.patch.object(cpu, "kernels", nothing),  # for what is computed on the host to compare with
        np.errstate(all="ignore"),
        fake_cupy.installed(record=True),
    ):
        for dtype, off, shape in itertools.product(dtypes, (0, 1), SHAPES):
            every_kernel.operations(every_kernel.Checks(), every_kernel.Place(dtype, off), MEMBERS, shape)
        for dtype, off, optimizer in itertools.product(dtypes, (0, 1), every_kernel.OPTIMIZERS.values()):
            place = every_kernel.Place(dtype, off)
            theta, dL_dtheta = (place.normal(MEMBERS, PARAMETERS)[0] for _ in range(2))
            optimizer().update(theta, dL_dtheta, PARAMETERS // 2)
        assert fake_cupy.machine.launches is not None
        return [filled(launch) for launch in fake_cupy.machine.launches]


def filled(launch: Launch) -> Launch:
    """The launch with numbers wherever its arrays hold none, as no kernel has computed them."""
    rng = np.random.default_rng(0)
    for array in launch.arguments:
        if isinstance(array, np.ndarray) and array.dtype.kind == "f":
            np.copyto(array, rng.standard_normal(array.shape), where=np.isnan(array), casting="same_kind")
    return launch


def few(launches: Iterable[Launch], blocks: int) -> list[Launch]:
    """Of the launches of one kernel, one for each grid, with at most so many blocks.

    Each block goes through loops more than once then, as kernels loop over what is beyond the grid. A launch that has
    no more blocks anyway is there with fewer, too.
    """
    chosen: dict[object, Launch] = {}
    for launch in launches:
        grid = launch.grid if math.prod(launch.grid) > blocks else halved(launch.grid)
        while math.prod(grid) > blocks:
            grid = halved(grid)
        for key in (launch.grid, grid):
            if math.prod(key) <= blocks:
                chosen.setdefault((launch.grid, launch.block, key), replace(launch, grid=key))
    return list(chosen.values())


def halved(grid: tuple[int, ...]) -> tuple[int, ...]:
    """Half as many blocks, rounded up, along the dimension that has most."""
    along = max(range(len(grid)), key=lambda axis: (grid[axis], axis))
    return tuple(-(-size // 2) if axis == along else size for axis, size in enumerate(grid))


@dataclass
class Case:
    """One source with launches of its kernels, and what came of them.

    Attributes:
        stem: The source file, without ``.cu``.
        source: Its text, which includes nothing.
        launches: To make, of any of its kernels.
        wrong: What came of launches that were not fine.
        missed: Whether a race showed that a barrier was not there, for each kernel and each barrier it came to.
        seconds: How long it took.
    """

    stem: str
    source: str
    launches: list[Launch]
    wrong: list[str] = field(default_factory=list)
    missed: dict[tuple[str, Barrier], bool] = field(default_factory=dict)
    seconds: float = 0.0

    def examine(self, orders: Sequence[int] = ORDERS) -> Case:
        """Make the launches, with all barriers and without any one; return itself."""
        began, at = time.perf_counter(), barriers_of(self.stem, self.source)
        result = replay.run(self.launches, self.source, replay.RACES, orders=orders, remove=True, names=False)
        lines = result.stdout.splitlines()
        for launch, line in itertools.zip_longest(self.launches, lines, fillvalue="crashed"):
            outcome, *removed = line.split("\t")
            if outcome != "fine":
                self.wrong.append(f"{launch.kernel}, grid {launch.grid}, block {launch.block}: {outcome}")
                again = replay.run([launch], self.source, replay.RACES, orders=orders)  # to say where
                self.wrong.append(again.stderr or result.stderr)
            for number, without in zip(removed[::2], removed[1::2], strict=True):
                key = launch.kernel, at[int(number)]
                self.missed[key] = self.missed.get(key, False) or without == "race"
        self.seconds = time.perf_counter() - began
        return self

    def faults(self) -> list[str]:
        """What is wrong with the launches, the barriers, and the list of equivalents."""
        found = list(self.wrong)
        for (kernel, barrier), missed in self.missed.items():
            if missed == is_equivalent(kernel, barrier):
                what = "EQUIVALENT is wrong: a race shows" if missed else "no race shows"
                found.append(f"{what} where {kernel} lacks barrier {barrier[1]} of {barrier[0]}")
        return found


def is_equivalent(kernel: str, barrier: Barrier) -> bool:
    """Whether nothing could show that a kernel lacks a barrier."""
    return (kernel.partition("<")[0], *barrier) in EQUIVALENT


def barriers_of(stem: str, source: str) -> dict[int, Barrier]:
    """The barriers of a source, by their lines in the text that has its headers within."""
    named: dict[tuple[str, ...], Barrier] = {}
    for path in (cuda.kernel_directory() / f"{stem}.cu", *sorted(cuda.kernel_directory().glob("*.cuh"))):
        lines = path.read_text(encoding="utf-8").splitlines()
        for count, number in enumerate((n for n, line in enumerate(lines) if BARRIER.search(line)), 1):
            named[around(lines, number)] = path.name, count
    lines = source.splitlines()
    return {n + 1: named[around(lines, n)] for n, line in enumerate(lines) if BARRIER.search(line)}


def around(lines: Sequence[str], number: int) -> tuple[str, ...]:
    """A line with its neighbours, which tells it from others that read the same."""
    return tuple(lines[number - 1 : number + 2])


def cases(launches: Iterable[Launch], each: bool = True, blocks: int = BLOCKS) -> dict[str, Case]:
    """What there is to examine, by the source file.

    Args:
        launches: Of all sources.
        each: Take every kernel in every type and width, not one of each name.
        blocks: Of a launch, at most.
    """
    of_source: dict[str, dict[str, list[Launch]]] = defaultdict(lambda: defaultdict(list))
    for launch in launches:
        of_source[launch.source][launch.kernel].append(launch)
    made = {}
    for stem in sorted(path.stem for path in cuda.kernel_directory().glob("*.cu")):
        kernels = of_source[cuda.source(stem)]
        names = sorted(kernels)
        if not each:
            names = list({name.partition("<")[0]: name for name in names}.values())
        made[stem] = Case(stem, cuda.source(stem), [launch for name in names for launch in few(kernels[name], blocks)])
    return made


def never_met(examined: Sequence[Case]) -> list[str]:
    """The barriers of all sources that no kernel came to, and the entries of `EQUIVALENT` that name none."""
    there = {barrier for case in examined for barrier in barriers_of(case.stem, case.source).values()}
    met = {(kernel.partition("<")[0], *barrier) for case in examined for kernel, barrier in case.missed}
    unmet = there - {(name, number) for _, name, number in met}
    return [
        *(f"no kernel came to barrier {number} of {name}" for name, number in sorted(unmet)),
        *(f"EQUIVALENT is stale: {kernel} has no barrier {n} of {name}" for kernel, name, n in EQUIVALENT.keys() - met),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", nargs="+", default=(), metavar="STEM", help="files of kernels/, without .cu")
    parser.add_argument("-j", type=int, default=os.cpu_count() or 1, dest="processes", help="sources at a time")
    options = parser.parse_args(arguments)
    if unknown := [stem for stem in options.kernels if not (cuda.kernel_directory() / f"{stem}.cu").is_file()]:
        parser.error(f"there is no kernels/{unknown[0]}.cu")
    if options.processes < 1:
        parser.error("-j: a positive number is needed")
    began, faults = time.perf_counter(), []
    print(f"{'source':<14}{'kernels':>9}{'launches':>10}{'removed':>9}{'found':>7}{'equivalent':>12}{'seconds':>9}")
    rows, every = [], cases(recorded())
    todo = [case for stem, case in every.items() if stem in (options.kernels or every)]
    with ThreadPoolExecutor(options.processes) as pool:
        for case in pool.map(Case.examine, todo):
            faults += case.faults()
            equivalent = sum(is_equivalent(*key) for key in case.missed)
            kernels = len({launch.kernel for launch in case.launches})
            row = kernels, len(case.launches), len(case.missed), sum(case.missed.values()), equivalent, case.seconds
            rows.append(row)
            print(line_of(case.stem, row), flush=True)
    faults += never_met(todo) if len(todo) == len(every) else []
    print(line_of("all", (*map(sum, zip(*(row[:-1] for row in rows), strict=True)), time.perf_counter() - began)))
    print(*faults, sep="\n")
    return 1 if faults else 0


def line_of(name: str, row: Sequence[float]) -> str:
    """A row of the table."""
    return f"{name:<14}" + "".join(f"{n:>{width}.0f}" for n, width in zip(row, (9, 10, 9, 7, 12, 9), strict=True))


if __name__ == "__main__":
    sys.exit(main())
