"""Fixtures that several test files share, what happens to GPU tests without a GPU, and what where one is lost."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterator
from types import ModuleType
from typing import Any

import fake_cupy as fake
import numpy as np
import pytest

from gpubp import cpu
from gpubp.backend import Device, why_no_cuda
from gpubp.errors import DeviceLostError

GPU_HERE = why_no_cuda() is None
LOST = "the device was lost"
"""What a test's report is marked by after which no other can use the device in its process."""


@pytest.fixture(autouse=True)
def auto_means_cpu(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hide CuPy from tests that are not about a GPU, so that they test the CPU on a machine with one too."""
    # With a patch of its own: a test's is then undone before the stand-in goes, and does not put it back.
    with pytest.MonkeyPatch.context() as patch:
        if GPU_HERE and request.node.get_closest_marker("gpu") is None:
            patch.setitem(sys.modules, "cupy", None)
        yield


@pytest.fixture
def numpy_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the ops compute in NumPy, as where the CPU kernels can't be used."""
    monkeypatch.setattr(cpu, "kernels", lambda: None)


@pytest.fixture
def cpu_kernels() -> ModuleType:
    """The CPU kernels; GPUBP_CPU_KERNELS=numpy skips what is about them."""
    if cpu.kernels() is None:
        pytest.skip(f"no CPU kernels: {cpu.why_no_kernels()}")
    return cpu.kernels()


@pytest.fixture
def fake_cupy() -> Iterator[ModuleType]:
    """The stand-in for CuPy, with one device, as ``import cupy`` finds it during the test."""
    with fake.installed() as module:
        yield module


@pytest.fixture(
    params=["numpy", "fake-cupy", "fake-cupy-reversed", pytest.param("cupy", marks=pytest.mark.gpu)],
)
def xp(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """Each executor in turn: NumPy, kernels run on the host with threads in either order, kernels on a GPU."""
    if request.param == "numpy":
        yield np
    elif request.param == "cupy":
        yield Device("cuda").module
    else:
        with fake.installed(reverse_threads=request.param.endswith("reversed")) as module:
            yield module


def pytest_configure() -> None:
    """Let a pytest that a test starts not take itself for a worker of this run."""
    os.environ.pop("PYTEST_XDIST_WORKER", None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a GPU test where there is no GPU; fail it where one was promised."""
    if item.get_closest_marker("gpu") is None or not (reason := why_no_cuda()):
        return
    if os.environ.get("GPUBP_REQUIRE_GPU") == "1":
        pytest.fail(f"GPUBP_REQUIRE_GPU=1, but {reason}", pytrace=False)
    pytest.skip(f"no CUDA device: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, Any, Any]:
    """Wait for what a GPU test has left on the device: it is the test's own error where that fails."""
    try:
        return (yield)
    finally:
        if GPU_HERE and item.get_closest_marker("gpu") is not None:
            try:
                with Device("cuda").activate("waiting for what a test has left there"):
                    Device("cuda").module.cuda.runtime.deviceSynchronize()
            except DeviceLostError as error:
                item.user_properties.append((LOST, str(error)))
                raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """End the process that has lost its device, once the test that was the first to find it so is reported."""
    result = yield
    if any(name == LOST for name, _ in item.user_properties):
        if hasattr(item.config, "workerinput"):
            os._exit(1)  # pytest-xdist calls the test crashed, and starts another process for those that are left
        pytest.exit(f"{LOST} in {item.nodeid}: no other test can use it in this process", returncode=1)
    return result


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say loudly how much was not checked, and in which tests a device was lost."""
    for report in terminalreporter.getreports("error"):
        for name, error in getattr(report, "user_properties", ()):
            if name == LOST:
                terminalreporter.write_line(f"{LOST} first in {report.nodeid}: {error}", red=True, bold=True)
    skipped = [report for report in terminalreporter.getreports("skipped") if "gpu" in getattr(report, "keywords", ())]
    if skipped:
        terminalreporter.write_line(
            f"{len(skipped)} GPU checks skipped: no CUDA device here ({why_no_cuda()})", yellow=True, bold=True
        )
