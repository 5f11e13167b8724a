"""Options of the benchmarks, what their cells share, and the machine's facts in their JSON."""

from __future__ import annotations

import functools
import os
import shlex
from collections.abc import Callable
from typing import Any

import pytest

import gpubp
from gpubp.cost import Ceilings

from . import ceilings as measured_ceilings
from . import machine
from .cells import DTYPES, FLOAT64_BATCHES


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long to measure, on how much data, and how much of it."""
    group = parser.getgroup("gpubp")
    group.addoption("--cell-seconds", type=float, default=2.0, help="about how long to measure one cell (default 2)")
    group.addoption("--data-rows", type=int, default=65536, help="examples in the data set, 3 KiB each (default 65536)")
    group.addoption("--accuracy", type=float, default=0.95, help="held-out accuracy to train to (default 0.95)")
    group.addoption("--float64", action="store_true", help="every cell in float64 too, not a few of them alone")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test its cells, those of its module's list ``CELLS``, or its dtypes."""
    every = metafunc.config.getoption("--float64")
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES if every else DTYPES[:1])
    if "cell" not in metafunc.fixturenames:
        return
    metafunc.parametrize(
        "cell",
        [
            pytest.param(cell, id=cell.name, marks=[pytest.mark.gpu] if cell.device == "cuda" else [])
            for cell in metafunc.module.CELLS
            if every or cell.dtype == "float32" or cell.batch in FLOAT64_BATCHES
        ],
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a GPU cell where there is no GPU; fail it where one was promised."""
    if item.get_closest_marker("gpu") is None or not (reason := gpubp.why_no_cuda()):
        return
    if os.environ.get("GPUBP_REQUIRE_GPU") == "1":
        pytest.fail(f"GPUBP_REQUIRE_GPU=1, but {reason}", pytrace=False)
    pytest.skip(f"NO GPU FIGURES: {reason}")


@pytest.fixture
def cell_seconds(pytestconfig: pytest.Config) -> float:
    """About how long to measure one cell."""
    return float(pytestconfig.getoption("--cell-seconds"))


@pytest.fixture
def data_rows(pytestconfig: pytest.Config) -> int:
    """Examples in the data set."""
    return int(pytestconfig.getoption("--data-rows"))


@pytest.fixture(scope="session")
def ceilings_of(pytestconfig: pytest.Config) -> Callable[[str, str], Ceilings]:
    """The ceilings of a device in a dtype, measured when they are first asked for."""
    seconds = min(1.0, pytestconfig.getoption("--cell-seconds"))

    @functools.cache
    def of(device: str, dtype: str) -> Ceilings:
        return measured_ceilings.measure(device, dtype, seconds)

    return of


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add the facts and the command that made the figures; leave out the machine's network name."""
    machine_info.pop("node", None)
    command = shlex.join(["python", "-m", "pytest", *map(str, config.invocation_params.args)])
    machine_info["facts"] = {**machine.facts(), "command": command}
