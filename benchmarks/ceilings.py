"""What this machine can do at most: the rates of a large copy, of one in the cache, and of a large matrix product.

All are measured, and are the best of several repetitions: a ceiling is a maximum, and whatever disturbs a measurement
makes it slower. An operation whose data fits in the caches is held against the copy there, see
`gpubp.cost.Ceilings.rate_of`; on a GPU there is none, and such an operation can be faster than the large copy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

import gpubp
from gpubp.backend import Array
from gpubp.cost import Ceilings
from gpubp.errors import SettingError
from gpubp.ops import gemm

from . import machine
from .timing import Part, block_of, seconds_of, synchronize

COPY_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""What is copied: far more than the caches hold (on the CPU at least `CACHES` times what they hold)."""
CACHES = 4
CACHED_COPY_BYTES = 2**18
"""What is copied in the cache: source and target fit into that of one core."""
PRODUCT_WIDTH = {"cpu": 2048, "cuda": 8192}
"""Rows and columns of the square factors: enough work for every thread, and little beside it."""
FEWEST_BLOCKS = 3


def measure(
    device: str | gpubp.Device = "cpu", dtype: str = "float32", seconds: float = 1.0, precision: str = "float32"
) -> Ceilings:
    """Measure all rates.

    The copy on the CPU is `numpy.copyto` in as many threads as there are usable cores, each with a slice of its own,
    because one thread can't saturate the memory of many machines; it is tried with one thread too, and the faster
    counts. The copy in the caches is one thread's, times the cores, as each has a cache of its own; it is left out on a
    GPU, and where the system does not tell how much the caches hold. The product is `gpubp.ops.gemm.matmul`, so SciPy's
    BLAS as the CPU kernels call it, NumPy's where there are none, or cuBLAS.

    Args:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"auto"`` or a `gpubp.Device`.
        dtype: ``"float32"`` or ``"float64"``, of the product.
        seconds: About how long to measure, in all; each rate takes three repetitions at least.
        precision: Of a float32 product, as `gpubp.ops.gemm.matmul` takes it.

    Raises:
        SettingError: The device, the dtype or the precision is unknown, or the time is not positive.
        DeviceError: The device can't be used.
    """
    if dtype not in ("float32", "float64"):
        raise SettingError(f"dtype={dtype!r}: use 'float32' or 'float64'")
    if precision not in gemm.PRECISIONS:
        raise SettingError(f"precision={precision!r}: use one of {', '.join(gemm.PRECISIONS)}")
    if not 0 < seconds < math.inf:
        raise SettingError(f"seconds={seconds!r}: a positive number is needed")
    target = gpubp.resolve_device(device)
    with target.activate():
        # The copy goes first: the threads of a BLAS keep spinning for a while after a product.
        bytes_per_second = copy_rate(target, seconds / 4)
        held = 0 if target.is_cuda else machine.last_level_cache_bytes()
        cached = cached_copy_rate(seconds / 4) if held else None
        flops_per_second = product_rate(target, dtype, seconds / 2, precision)
    return Ceilings(flops_per_second, bytes_per_second, cached, held)


def copy_rate(device: gpubp.Device, seconds: float) -> float:
    """Bytes read plus bytes written, per second, by a copy of far more than the caches hold."""
    size = COPY_BYTES[device.kind]
    if device.is_cuda:
        source, target = (device.module.full(size // 8, value, dtype="float64") for value in (1.0, 0.0))
        best = _best(_repeated(lambda: device.module.copyto(target, source), device), seconds)
        return 2 * source.nbytes / best
    elements = max(size, CACHES * machine.last_level_cache_bytes()) // 8
    source, target = np.ones(elements), np.empty(elements)
    counts = sorted({1, machine.usable_cores()})
    times = []
    for threads in counts:
        with _copy_in_threads(source, target, threads) as copy:
            times.append(_best(_repeated(copy, device), seconds / len(counts)))
    return 2 * source.nbytes / min(times)


def cached_copy_rate(seconds: float) -> float:
    """Bytes read plus bytes written, per second, by copies in the caches of all usable cores."""
    source, target = (np.full(CACHED_COPY_BYTES // 8, value) for value in (1.0, 0.0))
    best = _best(_repeated(lambda: np.copyto(target, source), gpubp.resolve_device("cpu")), seconds)
    return machine.usable_cores() * 2 * source.nbytes / best


@contextmanager
def _copy_in_threads(source: Array, target: Array, threads: int) -> Iterator[Callable[[], None]]:
    """A copy of an array (n,), with a slice for each thread; NumPy lets go of the interpreter's lock meanwhile."""
    bounds = [k * len(source) // threads for k in range(threads + 1)]
    slices = [slice(*pair) for pair in pairwise(bounds)]
    with ThreadPoolExecutor(threads) as pool:

        def copy() -> None:
            for done in [pool.submit(np.copyto, target[k], source[k]) for k in slices]:
                done.result()

        yield copy


def product_rate(device: gpubp.Device, dtype: str, seconds: float, precision: str = "float32") -> float:
    """Multiplications and additions per second, in a large square product."""
    width = PRODUCT_WIDTH[device.kind]
    rng = np.random.default_rng(0)
    # Random factors: a GPU multiplies zeros at a higher clock.
    A, B = (gpubp.to_device(rng.standard_normal((width, width)).astype(dtype), device) for _ in range(2))
    out = device.module.empty_like(A)
    return 2 * width**3 / _best(_repeated(lambda: gemm.matmul(A, B, out, precision=precision), device), seconds)


def _repeated(call: Callable[[], Any], device: gpubp.Device) -> Part:
    def part(times: int) -> None:
        for _ in range(times):
            call()
        synchronize(device)

    return part


def _best(part: Part, seconds: float) -> float:
    """The shortest time of one call, in blocks that go on for so many seconds."""
    part(1)  # memory is touched, threads start, kernels are loaded
    times, taken = block_of(part)
    blocks, stop = [taken], time.perf_counter() + seconds
    while len(blocks) < FEWEST_BLOCKS or time.perf_counter() < stop:
        blocks.append(seconds_of(part, times))
    return min(blocks) / times
