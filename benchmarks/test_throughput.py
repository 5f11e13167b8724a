"""Throughput against batch size: samples per second of whole training steps, and where a step's time goes.

Run ``python -m pytest benchmarks/test_throughput.py --benchmark-json=results.json``, then
``python benchmarks/report.py results.json --plot throughput.png``.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import pytest
from throughput import Cell, Step, measure, random_data

import gpubp

BATCHES = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
NETS = ((784, 128, 10), (784, 512, 512, 10))
OPTIMIZERS = ("sgd", "adam")
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))


@pytest.fixture
def usable(device: str) -> str:
    """The device, if there is one."""
    reason = gpubp.why_no_cuda() if device == "cuda" else None
    if reason and os.environ.get("GPUBP_REQUIRE_GPU") == "1":
        pytest.fail(reason)
    if reason:
        pytest.skip(f"NO GPU FIGURES: {reason}")
    return device


@functools.lru_cache(maxsize=1)
def data_set(rows: int, n_in: int, classes: int, device: str) -> tuple[Any, Any]:
    """One data set at a time: the largest is 196 MiB."""
    return random_data(rows, n_in, classes, device)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("net", NETS, ids=lambda widths: "-".join(map(str, widths)))
@pytest.mark.parametrize("device", DEVICES)
def test_training_step(
    benchmark: Any, pytestconfig: pytest.Config, usable: str, net: tuple[int, ...], optimizer: str, batch: int
) -> None:
    """One cell of the table."""
    rows = max(batch, pytestconfig.getoption("--data-rows"))
    X, T = data_set(rows, net[0], net[-1], usable)
    benchmark.group = f"{'-'.join(map(str, net))} {optimizer} {usable}"
    measure(benchmark, Step(Cell(net, optimizer, usable, batch), X, T), pytestconfig.getoption("--cell-seconds"))
