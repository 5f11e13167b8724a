"""Throughput against batch size: samples per second of whole training steps, and where a step's time goes.

Run ``python -m pytest benchmarks/test_throughput.py --benchmark-json=results.json``, then
``python benchmarks/report.py results.json --plot throughput.png``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpubp.cost import Ceilings

from .cells import Cell, data_set, grid
from .throughput import Step, measure

CELLS = grid()


def test_training_step(
    benchmark: Any, cell: Cell, data_rows: int, cell_seconds: float, ceilings_of: Callable[[str, str], Ceilings]
) -> None:
    """One cell of the table."""
    X, T = data_set(max(cell.batch, data_rows), cell.widths[0], cell.widths[-1], cell.device, cell.dtype)
    benchmark.group = f"step {cell.net} {cell.optimizer} {cell.dtype} {cell.device}"
    measure(benchmark, Step(cell, X, T), ceilings_of(cell.device, cell.dtype), cell_seconds)
