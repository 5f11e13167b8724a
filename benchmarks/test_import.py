"""How long ``import gpubp`` takes beyond the import of NumPy, which it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from statistics import median
from typing import Any

FEWEST_ROUNDS = 3
ROUNDS_A_SECOND = 5
SCRIPT = "import time; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"


def import_seconds(module: str) -> float:
    """The wall time of an import in a process of its own that finds the modules that this one finds."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", SCRIPT.format(module)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return float(done.stdout)


def test_import(benchmark: Any, cell_seconds: float) -> None:
    """Rounds of both imports in turn; the benchmark's own statistics are of whole processes that import gpubp."""
    seconds: dict[str, list[float]] = {"numpy": [], "gpubp": []}

    def time_import(module: str) -> None:
        seconds[module].append(import_seconds(module))

    def numpy_first() -> tuple[tuple[str], dict[str, Any]]:
        time_import("numpy")
        return ("gpubp",), {}

    rounds = max(FEWEST_ROUNDS, round(ROUNDS_A_SECOND * cell_seconds))
    benchmark.pedantic(time_import, setup=numpy_first, rounds=rounds, warmup_rounds=1)
    if benchmark.disabled:
        return
    with_numpy, numpy_alone = (median(seconds[module][1:]) for module in ("gpubp", "numpy"))
    benchmark.extra_info.update(
        {
            "kind": "import",
            "import_seconds": with_numpy - numpy_alone,
            "with_numpy_seconds": with_numpy,
            "numpy_seconds": numpy_alone,
        }
    )
