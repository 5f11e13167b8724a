"""The passes of a training step by themselves: forward only, and forward + loss + backward, against batch size.

Both run on a minibatch that is there already, into the buffers of the plan: no gather, no update, no allocation.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from gpubp.cost import Ceilings

from .cells import Cell, data_set, grid
from .throughput import Step, measure_pass

CELLS = grid(optimizers=[None])


@pytest.mark.parametrize("kind", ["forward", "gradients"])
def test_pass(
    benchmark: Any,
    cell: Cell,
    kind: str,
    data_rows: int,
    cell_seconds: float,
    ceilings_of: Callable[[str, str], Ceilings],
) -> None:
    """One cell of a table."""
    X, T = data_set(max(cell.batch, data_rows), cell.widths[0], cell.widths[-1], cell.device, cell.dtype)
    benchmark.group = f"{kind} {cell.net} {cell.dtype} {cell.device}"
    step = Step(cell, X, T)
    costs = step.network.costs(cell.batch, gather=False)  # forward, loss and backward
    if kind == "forward":
        costs = [cost for cost in costs if re.match(r"\d+ forward ", cost.name)]  # of the layers
    measure_pass(benchmark, step, kind, costs, ceilings_of(cell.device, cell.dtype), cell_seconds)
