"""Peak memory of a training beyond its data, against what the plan says that it needs; each cell in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from . import memory
from .cells import Cell, grid

CELLS = [
    cell
    for cell in grid(optimizers=["adam"], batches=[32, 2048, 8192])
    if cell.dtype == "float32" or cell.batch > 32  # another precision says nothing new there, and takes long
]


def in_a_fresh_process(**settings: Any) -> dict[str, int]:
    """What `memory.measure` returns in a process of its own that finds the modules that this one finds.

    Raises:
        RuntimeError: The process failed; the message holds what it said.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", memory.__name__, json.dumps(settings)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise RuntimeError(f"{settings} failed:\n{done.stderr}")
    return json.loads(done.stdout)


@pytest.mark.parametrize("through", ["steps", "fit"])
def test_peak_memory(benchmark: Any, cell: Cell, through: str, data_rows: int) -> None:
    """The benchmark's own statistics are of one whole process, and of no interest."""
    settings = {
        "widths": cell.widths,
        "optimizer": cell.optimizer,
        "batch": cell.batch,
        "rows": max(cell.batch, data_rows),
        "dtype": cell.dtype,
        "device": cell.device,
        "through": through,
    }
    benchmark.group = f"memory {cell.dtype} {cell.device}"
    measured = benchmark.pedantic(in_a_fresh_process, kwargs={**settings, "counter": "resident"}, rounds=1)
    if benchmark.disabled:
        return
    planned, peak = measured["planned_bytes"], measured["peak_bytes"]
    beside = measured.get("undo_bytes", 0) + measured.get("order_bytes", 0)
    ratios = {"peak_over_plan": peak / planned, "peak_over_training": peak / (planned + beside)}
    if cell.device == "cpu":
        traced = in_a_fresh_process(**settings, counter="traced")["peak_bytes"]
        over = {"traced_over_plan": traced / planned, "traced_over_training": traced / (planned + beside)}
        ratios |= {"traced_bytes": traced, **over}
    benchmark.extra_info.update(
        {"kind": "memory", **cell.info, "through": through, "examples": settings["rows"], **measured, **ratios}
    )
