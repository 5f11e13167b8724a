"""What `conftest.py` does where a test loses the device: the process ends, and the run says with which test."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = """
import fake_cupy, pytest
from gpubp import to_device, to_host

pytestmark = pytest.mark.gpu

def on_the_device():
    assert to_host(to_device([1.0], "cuda")) == 1

def test_before():
    on_the_device()

def test_a_kernel_fails():
    on_the_device()
    fake_cupy.machine.running_into = 700

@pytest.mark.parametrize("k", range(6))
def test_after(k):
    on_the_device()
"""
ON_THE_STAND_IN = """
import fake_cupy

installed = fake_cupy.installed()
installed.__enter__()
"""


def run(folder: Path, *options: str) -> tuple[int, str]:
    """The exit code and the output of a test run on the stand-in, in which one test makes a kernel fail."""
    shutil.copy(HERE / "conftest.py", folder)
    (folder / "test_some.py").write_text(TESTS)
    (folder / "on_the_stand_in.py").write_text(ON_THE_STAND_IN)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    paths = os.pathsep.join(map(str, (folder, HERE, HERE.parent)))
    command = [sys.executable, "-m", "pytest", "-p", "on_the_stand_in", "-p", "no:cacheprovider", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ended = subprocess.run(
        command, cwd=folder, env={**environment, "PYTHONPATH": paths}, capture_output=True, text=True, timeout=120
    )
    return ended.returncode, ended.stdout + ended.stderr


FIRST = (
    "the device was lost first in test_some.py::test_a_kernel_fails: cuda:0 failed while waiting for what a test has"
)


def test_a_run_ends_with_the_test_that_loses_the_device(tmp_path: Path) -> None:
    code, output = run(tmp_path)
    assert code == 1
    assert FIRST in output
    assert "Exit: the device was lost in test_some.py::test_a_kernel_fails: no other test can use it" in output
    assert "2 passed, 1 error in" in output


def test_the_tests_that_are_left_go_on_in_another_process(tmp_path: Path) -> None:
    code, output = run(tmp_path, "-n", "2")
    assert code == 1
    assert FIRST in output
    assert output.count("replacing crashed worker") == 1
    assert "1 failed, 8 passed, 1 error in" in output  # failed: what pytest-xdist says of a worker that is gone
