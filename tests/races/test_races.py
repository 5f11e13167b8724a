"""No kernel has a race, and each barrier that is removed from one is missed: a sample of what `races.py` runs."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import races
from cuda_host import replay
from fake_cupy import Launch

from gpubp import cuda

STEMS = sorted(path.stem for path in cuda.kernel_directory().glob("*.cu"))


@functools.cache
def sample() -> dict[str, races.Case]:
    """One kernel of each name, two blocks at a time."""
    return races.cases(races.recorded(("float32",)), each=False, blocks=2)


def launches_of(stem: str, kernel: str) -> list[Launch]:
    """The launches of one kernel in the sample."""
    return [launch for launch in sample()[stem].launches if launch.kernel.partition("<")[0] == kernel]


@pytest.mark.parametrize("stem", STEMS)
def test_no_kernel_races_and_every_barrier_is_missed(stem: str) -> None:
    case = sample()[stem].examine(orders=(3,))
    assert case.faults() == []
    own = {barrier for barrier in races.barriers_of(stem, case.source).values() if barrier[0] == f"{stem}.cu"}
    assert own <= {barrier for _, barrier in case.missed}


def test_launches_have_several_blocks_and_blocks_several_passes() -> None:
    launches = [Launch("", "", grid, (64,), ()) for grid in ((1, 2, 2), (11, 1, 1), (1, 2, 1))]
    assert [launch.grid for launch in races.few(launches[:1], 4)] == [(1, 2, 2), (1, 2, 1)]
    assert [launch.grid for launch in races.few(launches, 2)] == [(1, 2, 1), (2, 1, 1), (1, 2, 1), (1, 1, 1)]
    for case in sample().values():
        for kernel in {launch.kernel for launch in case.launches}:
            assert max(math.prod(launch.grid) for launch in case.launches if launch.kernel == kernel) == 2, kernel


# Faults that are planted in kernels.


@pytest.mark.parametrize(
    ("stem", "kernel", "right", "wrong"),
    [
        # A block writes where another block writes.
        ("rows", "column_sum", "sums_stride + c * n + j] = sum[k]", "sums_stride + j] = sum[k]"),
        # Two threads share a place in shared memory.
        ("activation", "sum_partials", "blockDim.x + threadIdx.x;\n", "blockDim.x + threadIdx.x / 2;\n"),
        # All threads write the same number to the same place, where one should: no result is another one.
        ("losses", "add_up", "if (threadIdx.x == 0) L[e]", "L[e]"),
        # The threads of a warp wait for each other, those of the block do not.
        ("embedding", "lookup_backward", "__syncthreads();  // the list is there", "__syncwarp();"),
    ],
)
def test_a_planted_race_is_found(stem: str, kernel: str, right: str, wrong: str) -> None:
    launches, source = launches_of(stem, kernel), sample()[stem].source
    assert source.count(right) == 1
    result = replay.run(launches, source.replace(right, wrong), replay.RACES, orders=(3,))
    assert "race" in result.stdout.splitlines()
    assert "ThreadSanitizer: data race" in result.stderr


def test_only_a_clock_finds_a_race_that_changes_no_result() -> None:
    launches, right = launches_of("losses", "add_up"), "if (threadIdx.x == 0) L[e]"
    source = sample()["losses"].source.replace(right, "L[e]")
    assert replay.run(launches, source, ("-O1",), orders=range(8)).returncode == 0


def test_a_warp_far_ahead_shows_a_missing_barrier_that_forward_and_backward_hide() -> None:
    case, first = sample()["penalty"], ("sums.cuh", 1)
    (line,) = (line for line, barrier in races.barriers_of("penalty", case.source).items() if barrier == first)

    def shows(*orders: int) -> bool:
        printed = replay.run(case.launches, case.source, ("-O1",), orders=orders, remove=True).stdout
        assert f"\t{line}\t" in printed
        return f"\t{line}\tanother result" in printed

    assert not shows(0, 1)
    assert shows(0, 1, 3)


BODIES = {
    "s[t] = *x; __syncthreads(); *x = s[63 - t];": "fine",
    "s[t] = *x; __syncwarp(); *x = s[t ^ 31];": "fine",
    "s[t] = *x; __syncwarp(); *x = s[63 - t];": "race",  # with the other warp
    "for (int i = 0; i < 2; ++i) { s[t] = i; __syncthreads(); *x = s[63 - t]; }": "race",  # the next pass writes
    "s[t] = *x; *x = s[t] + __shfl_sync(0xffffffff, *x, 0);": "fine",
    # A shuffle and a ballot are no barriers for memory.
    "s[t] = *x; __shfl_sync(0xffffffff, *x, 0); *x = s[t ^ 1];": "race",
    "s[t] = *x; __ballot_sync(0xffffffff, true); *x = s[t ^ 1];": "race",
    # Blocks have shared memory of their own, and nothing else.
    "s[t] = *x; if (t == 0) X[0] = s[0];": "race",
    "s[t] = *x; __syncthreads(); if (t == 0) X[0] = s[1];": "race",
    "s[t] = *x; if (t == 0) *x = s[0] + X[64 - 64 * blockIdx.x];": "race",
}
"""What 2 blocks of 64 threads do, each thread with its number and its place in X, and what comes of it."""


def test_what_a_race_is() -> None:
    kernel = "__global__ void k{}(float* X) {{ __shared__ float s[64]; const int t = threadIdx.x; {}{} }}"
    x = "float* const x = X + blockIdx.x * 64 + t; "
    source = "\n".join(kernel.format(number, x, body) for number, body in enumerate(BODIES))
    X = np.zeros(128, "float32")
    launches = [Launch(source, f"k{number}", (2,), (64,), (X,)) for number in range(len(BODIES))]
    for orders in ((0,), (1,), (2,), (3,)):
        result = replay.run(launches, source, replay.RACES, orders=orders, names=False)
        assert dict(zip(BODIES, result.stdout.splitlines(), strict=True)) == BODIES


TWICE = """
__global__ void twice(float* X, int n) {
    __shared__ float s[64];
    s[threadIdx.x] = X[threadIdx.x];
    __syncthreads();
    __syncthreads();  // one too many
    X[threadIdx.x] = s[63 - threadIdx.x];
    if (n > 1) __syncthreads();
}
"""


def test_barriers_that_nobody_misses_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "twice.cu").write_text(TWICE)
    launch = Launch(TWICE, "twice", (1, 1, 1), (64, 1), (np.ones(64, "float32"), np.int32(1)))
    monkeypatch.setattr(cuda, "kernel_directory", lambda: tmp_path)
    monkeypatch.setattr(races, "recorded", lambda: [launch])
    equivalent = {("twice", "twice.cu", 1): "The second one is there.", ("gone", "twice.cu", 1): "It was there."}
    monkeypatch.setattr(races, "EQUIVALENT", equivalent)
    assert races.main([]) == 1
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "no race shows where twice lacks barrier 2 of twice.cu",
        "no kernel came to barrier 3 of twice.cu",
        "EQUIVALENT is stale: gone has no barrier 1 of twice.cu",
    ]
