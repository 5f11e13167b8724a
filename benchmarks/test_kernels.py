"""Single operations: bytes and FLOPs per second, and the share of what the machine's ceilings allow.

An array of 64 KiB or 1 MiB stays in the cache: on the CPU it is held against a copy there; on a GPU its share of the
ceiling, which is a copy in memory, may be above 100 %.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gpubp.cost import Ceilings, floor_seconds

from . import kernels
from .throughput import ceilings_info
from .timing import WARMUP_ROUNDS, schedule

SHARE_OF_SECONDS = 0.25
"""There are many of them, and none is noisy in itself: each takes this part of the time of another cell."""

OPERATIONS = kernels.operations()
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
PLACES = pytest.mark.parametrize(
    ("size", "device"),
    [(size, "cpu") for size in kernels.SIZES]
    + [pytest.param(size, "cuda", marks=pytest.mark.gpu) for size in kernels.GPU_SIZES],
)


def measure(benchmark: Any, kernel: kernels.Kernel, ceilings: Ceilings, seconds: float, info: dict[str, Any]) -> None:
    """Time a kernel and note the result, with what `info` says about it, in ``extra_info``."""
    with kernel.device.activate():
        part, count = kernel.timed()
        parts, rounds = schedule(part, seconds * SHARE_OF_SECONDS)
        benchmark.pedantic(part, args=(parts,), rounds=rounds, warmup_rounds=WARMUP_ROUNDS)
    costs, calls = kernel.costs(), parts * count
    if benchmark.disabled:
        return
    taken = benchmark.stats.stats.median / calls
    flops, moved = sum(cost.flops for cost in costs), sum(cost.bytes for cost in costs)
    floor = floor_seconds(costs, ceilings)
    benchmark.extra_info.update(
        {
            "kind": "kernel",
            **info,
            "call_seconds": taken,
            "flops": flops,
            "bytes": moved,
            "flops_per_second": flops / taken,
            "bytes_per_second": moved / taken,
            "floor_seconds": floor,
            "share_of_ceiling": floor / taken,
            "calls_per_round": calls,
            **ceilings_info(ceilings),
        }
    )


@pytest.mark.parametrize("operation", OPERATIONS)
@PLACES
def test_operation(
    benchmark: Any,
    operation: str,
    size: str,
    device: str,
    dtype: str,
    data_rows: int,
    cell_seconds: float,
    ceilings_of: Callable[[str, str], Ceilings],
) -> None:
    """Everything but the matrix products, by the size of the array that it is about."""
    benchmark.group = f"{operation} {dtype} {device}"
    kernel = OPERATIONS[operation](kernels.GPU_SIZES[size], device, dtype, data_rows)
    info = {"kernel": operation, "size": size, "device": device, "dtype": dtype}
    measure(benchmark, kernel, ceilings_of(device, dtype), cell_seconds, info)


@DEVICES
@pytest.mark.parametrize("product", kernels.products(), ids=lambda product: f"{product.layer}-{product.batch}")
def test_matmul(
    benchmark: Any,
    product: kernels.Product,
    device: str,
    dtype: str,
    cell_seconds: float,
    ceilings_of: Callable[[str, str], Ceilings],
) -> None:
    """The matrix products of the nets, by batch size."""
    benchmark.group = f"matmul {product.layer} {dtype} {device}"
    info = {"kernel": f"matmul {product.layer}", "batch": product.batch, "device": device, "dtype": dtype}
    measure(benchmark, product.kernel(device, dtype), ceilings_of(device, dtype), cell_seconds, info)
