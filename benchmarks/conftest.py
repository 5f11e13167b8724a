"""Options of the benchmarks, and the machine's facts in their JSON."""

from __future__ import annotations

import shlex
from typing import Any

import machine
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long to measure, and on how much data."""
    group = parser.getgroup("gpubp")
    group.addoption("--cell-seconds", type=float, default=2.0, help="about how long to measure one cell (default 2)")
    group.addoption("--data-rows", type=int, default=65536, help="examples in the data set, 3 KiB each (default 65536)")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add the facts and the command that made the figures; leave out the machine's network name."""
    machine_info.pop("node", None)
    command = shlex.join(["python", "-m", "pytest", *map(str, config.invocation_params.args)])
    machine_info["facts"] = {**machine.facts(), "command": command}
