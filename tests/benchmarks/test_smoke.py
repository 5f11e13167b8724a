"""The throughput benchmark runs, takes a step apart rightly, and its report can be read."""

from __future__ import annotations

import importlib
import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gpubp
from gpubp.data import minibatches
from gpubp.ops import gemm

ROOT = Path(__file__).resolve().parents[2]
WIDTHS, BATCH, ROWS = (784, 128, 10), 16, 64


@pytest.fixture
def throughput(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, imported as pytest imports it: from its own folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "throughput", raising=False)
    return importlib.import_module("throughput")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON of one cell, made with the command that the benchmark's own page gives."""
    pytest.importorskip("pytest_benchmark")
    path = tmp_path_factory.mktemp("benchmark") / "results.json"
    cell = f"benchmarks/test_throughput.py::test_training_step[cpu-784-128-10-sgd-{BATCH}]"
    small = ["-p", "no:cacheprovider", "--cell-seconds=0.01", f"--data-rows={ROWS}", f"--benchmark-json={path}"]
    command = [sys.executable, "-m", "pytest", cell, *small]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def make_step(throughput: ModuleType, widths: tuple[int, ...] = WIDTHS, device: str = "cpu") -> Any:
    X, T = throughput.random_data(ROWS, widths[0], widths[-1], device)
    return throughput.Step(throughput.Cell(widths, "adam", device, BATCH), X, T)


@pytest.mark.parametrize("widths", [(784, 128, 10), (20, 8, 6, 4), (5, 3)])
def test_the_recorded_products_are_those_of_the_network(throughput, widths):
    step = make_step(throughput, widths)
    sizes = [n_in * n_out for n_in, n_out in itertools.pairwise(widths)]
    assert step.flops == 6 * BATCH * sum(sizes) - 2 * BATCH * sizes[0]  # the first layer's dL_dX is not computed
    assert len(step.products) == 3 * len(sizes) - 1
    shapes = [(A.shape, B.shape, out.shape) for A, B, out in step.products]
    assert shapes[0] == ((BATCH, widths[0]), (widths[0], widths[1]), (BATCH, widths[1]))
    assert shapes[-1] == ((widths[0], BATCH), (BATCH, widths[1]), (widths[0], widths[1]))


def test_the_recorded_gathers_are_those_of_a_minibatch(throughput):
    step = make_step(throughput)
    assert [(data.shape, out.shape) for data, _, out, _ in step.gathers] == [
        ((ROWS, WIDTHS[0]), (BATCH, WIDTHS[0])),
        ((ROWS,), (BATCH,)),
    ]


def test_parts_alone_use_the_arrays_of_the_step(throughput):
    """What is replayed is the network's own weights, gradients and minibatch, not copies that lie in the cache."""
    step = make_step(throughput)
    parameters, gradient = step.network.parameters, step.network.dL_dtheta
    (X, W, _), *_, (X_again, _, dL_dW) = step.products
    assert np.shares_memory(W, parameters["0.W"])
    assert np.shares_memory(dL_dW, gradient)
    assert np.shares_memory(X, X_again)
    assert np.shares_memory(X, step.gathers[0][2])


def test_timing_parts_alone_leaves_training_as_it_was(throughput):
    plain, timed = make_step(throughput), make_step(throughput)
    for _ in range(3):
        plain.whole(2)
        timed.matmuls(2)
        timed.gather(5)
        timed.whole(2)
    np.testing.assert_array_equal(plain.network.theta, timed.network.theta)
    assert plain.loss() == timed.loss()


@pytest.mark.usefixtures("fake_cupy")
def test_the_same_step_on_a_device(throughput):
    on_device, on_host = make_step(throughput, (20, 8, 4), "cuda"), make_step(throughput, (20, 8, 4))
    for step in (on_device, on_host):
        step.matmuls(2)
        step.gather(2)
        step.whole(3)
    assert on_device.flops == on_host.flops
    assert on_device.loss() == pytest.approx(on_host.loss(), rel=1e-5)


def test_recording_leaves_the_library_as_it_was(throughput):
    before = gemm.matmul, minibatches.gather
    make_step(throughput)
    assert (gemm.matmul, minibatches.gather) == before


def test_a_product_computed_elsewhere_is_an_error(throughput, monkeypatch):
    def matrix_backward(self, dL_dY, X, out, input_gradient):
        self.gradients["W"][...] = X.mT @ dL_dY

    monkeypatch.setattr(gpubp.Dense, "matrix_backward", matrix_backward)
    with pytest.raises(RuntimeError, match=r"some product is computed elsewhere"):
        make_step(throughput, (5, 3))


def test_a_loss_that_is_not_finite_is_an_error(throughput):
    step = make_step(throughput)
    step.network.theta[...] = np.nan
    step.whole(1)
    with pytest.raises(RuntimeError, match=r"the loss is nan"):
        step.loss()


def test_what_is_noted_about_a_cell(results):
    (entry,) = json.loads(results.read_text())["benchmarks"]
    info = entry["extra_info"]
    assert (info["net"], info["optimizer"], info["device"], info["batch"]) == ("784-128-10", "sgd", "cpu", BATCH)
    assert info["samples_per_second"] == pytest.approx(BATCH / info["step_seconds"])
    parts = info["matmul_seconds"] + info["gather_seconds"]
    assert info["other_share"] == pytest.approx(1 - parts / info["step_seconds"])
    assert entry["stats"]["median"] == pytest.approx(info["step_seconds"] * info["steps_per_round"])
    assert info["matmul_flops"] == 6 * BATCH * (784 * 128 + 128 * 10) - 2 * BATCH * 784 * 128


def test_the_report_prints_facts_and_table_and_draws(results, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "throughput.png"
    printed = run_report(results, "--plot", str(picture))
    for fact in ("CPU: ", "cores: ", "BLAS: ", "NumPy: ", "GPU: ", "date: ", "command: python -m pytest "):
        assert f"\n{fact}" in f"\n{printed}"
    heading, row = (next(line for line in printed.splitlines() if key in line) for key in ("batch  ", "   16  "))
    assert heading.split() == ["batch", "784-128-10", "sgd", "cpu"]
    assert row.split()[0] == "16"
    assert row.endswith("%)")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_report_says_that_gpu_figures_are_missing(results):
    assert "\nNO GPU FIGURES. GPU: " in run_report(results)


def test_the_report_as_markdown(results):
    lines = run_report(results, "--markdown").splitlines()
    start = lines.index("| batch | 784-128-10 sgd cpu |")
    assert lines[start + 1] == "| ---: | ---: |"
    assert lines[start + 2].startswith("| 16 | ")


def test_a_file_without_figures_is_refused(tmp_path):
    empty = tmp_path / "empty.json"
    empty.write_text('{"benchmarks": []}')
    done = subprocess.run(
        [sys.executable, "benchmarks/report.py", str(empty)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert "holds no throughput figure" in done.stderr


def run_report(*arguments: object) -> str:
    command = [sys.executable, "benchmarks/report.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
