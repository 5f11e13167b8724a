"""The throughput benchmark runs, takes a step apart rightly, and its report can be read."""

from __future__ import annotations

import importlib
import itertools
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gpubp
from gpubp import plan
from gpubp.ops import gemm

ROOT = Path(__file__).resolve().parents[2]
WIDTHS, BATCH, ROWS = (784, 128, 10), 32, 64


@pytest.fixture
def throughput(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, imported as pytest imports it: from the root of the repository."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.throughput")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON of one cell, made with the command that the benchmark's own page gives."""
    pytest.importorskip("pytest_benchmark")
    path = tmp_path_factory.mktemp("benchmark") / "results.json"
    cell = f"benchmarks/test_throughput.py::test_training_step[cpu-float32-784-128-10-sgd-{BATCH}]"
    small = ["-p", "no:cacheprovider", "--cell-seconds=0.01", f"--data-rows={ROWS}", f"--benchmark-json={path}"]
    command = [sys.executable, "-m", "pytest", cell, *small]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def make_step(throughput: ModuleType, widths: tuple[int, ...] = WIDTHS, device: str = "cpu") -> Any:
    cells = importlib.import_module("benchmarks.cells")
    X, T = cells.random_data(ROWS, widths[0], widths[-1], device)
    return throughput.Step(cells.Cell(widths, "adam", device, BATCH), X, T)


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
    assert [(data.shape, out.shape) for data, _, out, *_ in step.gathers] == [
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


@pytest.mark.parametrize("batch", [8, 1024])
def test_parts_are_programs_of_some_of_the_steps_lines(throughput, cpu_kernels, monkeypatch, batch):
    """With 1,024 examples a weight gradient is a kernel of sums of some of its terms, and another that adds them up.

    The second layer's weights, which lie transposed in its backward pass, are laid out anew before that product, where
    the BLAS has kernels for small products.
    """
    cells, cpu = importlib.import_module("benchmarks.cells"), importlib.import_module("gpubp.cpu")
    X, T = cells.random_data(batch, 20, 4, "cpu")
    step, ran, run = throughput.Step(cells.Cell((20, 8, 4), "adam", "cpu", batch), X, T), [], cpu.Program.run
    monkeypatch.setattr(cpu.Program, "run", lambda self, steps: ran.append(self) or run(self, steps))

    def lines_of(part):
        ran.clear()
        part(1)
        return Counter((line.kernel, line.items) for line in ran[-1]._lines), ran[-1].nanoseconds

    whole, nanoseconds = lines_of(step.whole)
    bare, nanoseconds_of_bare = lines_of(step.bare)
    gather, _ = lines_of(step.gather)
    assert gather < bare < whole
    assert (gather.total(), bare.total()) == (
        2,
        2 + 5 + (2 + cpu_kernels.gemm._has_small_kernels() if batch == 1024 else 0),
    )
    assert nanoseconds_of_bare == pytest.approx(
        nanoseconds, rel=0.01
    )  # what decides on threads, but for the loss's store


def test_without_kernels_parts_are_calls_of_some_of_the_steps(throughput, monkeypatch, numpy_ops):
    step = make_step(throughput)
    with throughput.recorded(gemm, "matmul") as products, throughput.recorded(plan, "gather") as gathers:
        step.bare(1)
        counts = len(products), len(gathers)
        step.whole(1)
    assert counts == (len(products) / 2, len(gathers) / 2) == (5, 2)


def test_the_passes_compute_what_the_network_computes(throughput):
    step = make_step(throughput)
    X, T = (out.copy() for _, _, out, *_ in step.gathers)
    expected_Y = step.network.forward(X)
    expected_loss, expected = step.network.loss_and_gradients(X, T)
    with throughput.recorded(step.network, "run_forward") as calls:
        step.forward(1)
    ((given, buffers),) = calls
    assert np.shares_memory(given, step.gathers[0][2])
    np.testing.assert_allclose(buffers[-1]["Y"], expected_Y, rtol=1e-6)
    step.network.dL_dtheta[...] = 0
    step.gradients(2)
    assert step.loss() == pytest.approx(expected_loss, rel=1e-6)
    for name, gradient in step.network.named_gradients(step.network.dL_dtheta).items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-5, atol=1e-8)


def test_the_copy_moves_the_bytes_of_the_gather(throughput):
    step = make_step(throughput)
    (X, _, X_batch, *_), (T, _, T_batch, *_) = step.gathers
    for first in (0, BATCH, 0):  # slice after slice, and around
        step.copies(1)
        np.testing.assert_array_equal(X_batch, X[first : first + BATCH])
        np.testing.assert_array_equal(T_batch, T[first : first + BATCH])


def test_rows_are_taken_around_and_around(throughput):
    rows = throughput.Around(np.arange(3))
    assert [[part.tolist() for part in rows.take(times)] for times in (2, 5, 0, 1)] == [
        [[0, 1]],
        [[2], [0, 1, 2], [0]],
        [],
        [[1]],
    ]


def test_each_gather_takes_other_examples(throughput):
    step = make_step(throughput)
    (X, _, X_batch, *_), (T, _, T_batch, *_) = step.gathers
    seen = []
    for times in (1, 1, 2):  # an epoch in two calls, and in one
        step.gather(times)
        seen.append([np.flatnonzero((X == row).all(axis=1)).item() for row in X_batch])
        np.testing.assert_array_equal(T_batch, T[seen[-1]])
    assert sorted(np.concatenate(seen[:2])) == list(range(ROWS))  # each example once
    assert seen[2] == seen[1]


def test_whole_steps_visit_every_example(throughput, monkeypatch):
    step = make_step(throughput)
    visited = []
    steps = gpubp.StepPlan.steps

    def noted(self, X, T, weight, index, optimizer):
        visited.extend(index.ravel().tolist())
        return steps(self, X, T, weight, index, optimizer)

    monkeypatch.setattr(gpubp.StepPlan, "steps", noted)
    step.whole(1)
    step.whole(2 * ROWS // BATCH - 1)
    assert sorted(visited) == sorted([*range(ROWS)] * 2)


def test_timing_parts_alone_leaves_training_as_it_was(throughput):
    plain, timed = make_step(throughput), make_step(throughput)
    for _ in range(3):
        plain.whole(2)
        timed.bare(2)
        timed.gather(5)
        timed.copies(3)
        timed.forward(1)
        timed.gradients(1)
        timed.whole(2)
    np.testing.assert_array_equal(plain.network.theta, timed.network.theta)
    assert plain.loss() == timed.loss()


@pytest.mark.usefixtures("fake_cupy")
def test_the_same_step_on_a_device(throughput):
    on_device, on_host = make_step(throughput, (20, 8, 4), "cuda"), make_step(throughput, (20, 8, 4))
    for step in (on_device, on_host):
        step.bare(2)
        step.gather(2)
        step.copies(2)
        step.forward(2)
        step.gradients(2)
        step.whole(3)
    assert on_device.flops == on_host.flops
    assert on_device.loss() == pytest.approx(on_host.loss(), rel=1e-5)


def test_the_products_of_a_step_are_of_its_precision(fake_cupy, throughput):
    from fake_cupy import cublas as fake

    cells = importlib.import_module("benchmarks.cells")
    step = throughput.Step(
        cells.Cell((6, 5, 3), "sgd", "cuda", 4, precision="tf32"), *cells.random_data(8, 6, 3, "cuda")
    )
    for part in (step.whole, step.bare):
        fake.calls.clear()
        part(1)
        assert {compute for _, compute in fake.calls} == {fake.ComputeType.COMPUTE_32F_FAST_TF32}
    assert step.cell.name == "cuda-float32-tf32-6-5-3-sgd-4"


def test_recording_leaves_the_library_as_it_was(throughput):
    before = gemm.matmul, plan.gather
    make_step(throughput)
    assert (gemm.matmul, plan.gather) == before


def test_a_product_computed_elsewhere_is_an_error(throughput, monkeypatch):
    def matrix_backward(self, dL_dY, X, out, input_gradient):
        self.gradients["W"][...] = X.mT @ dL_dY

    monkeypatch.setattr(gpubp.Dense, "matrix_backward", matrix_backward)
    with pytest.raises(RuntimeError, match=r"some product is computed elsewhere"):
        make_step(throughput, (5, 3))


def test_a_loss_that_is_not_finite_is_an_error(throughput):
    step = make_step(throughput)
    step.whole(1)
    step.network.theta[...] = np.nan
    step.whole(1)
    with pytest.raises(RuntimeError, match=r"the loss is nan"):
        step.loss()


def test_what_is_noted_about_a_cell(results):
    (entry,) = json.loads(results.read_text())["benchmarks"]
    info = entry["extra_info"]
    assert (info["kind"], info["dtype"]) == ("step", "float32")
    assert (info["net"], info["optimizer"], info["device"], info["batch"]) == ("784-128-10", "sgd", "cpu", BATCH)
    assert info["samples_per_second"] == pytest.approx(BATCH / info["step_seconds"])
    assert info["matmul_seconds"] == pytest.approx(info["bare_seconds"] - info["gather_seconds"])
    assert info["other_share"] == pytest.approx(1 - info["bare_seconds"] / info["step_seconds"])
    assert info["matmul_share"] == pytest.approx(
        info["matmul_seconds"] / (info["step_seconds"] - info["gather_seconds"])
    )
    assert info["matmul_flops_per_second"] == pytest.approx(info["matmul_flops"] / info["matmul_seconds"])
    assert info["gather_over_copy"] == pytest.approx(info["gather_seconds"] / info["copy_seconds"])
    assert info["share_of_floor"] == pytest.approx(info["floor_seconds"] / info["step_seconds"])
    # The floor is at least that of the products' arithmetic, and of reading and writing the minibatch.
    assert info["floor_seconds"] >= info["matmul_flops"] / info["ceiling_flops_per_second"]
    rate = max(info["ceiling_bytes_per_second"], info["ceiling_cache_bytes_per_second"] or 0)
    assert info["floor_seconds"] >= 2 * BATCH * 784 * 4 / rate
    assert entry["stats"]["median"] == pytest.approx(info["step_seconds"] * info["steps_per_round"])
    assert info["matmul_flops"] == 6 * BATCH * (784 * 128 + 128 * 10) - 2 * BATCH * 784 * 128


def test_the_report_prints_facts_and_table_and_draws(results, tmp_path):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "throughput.png"
    printed = run_report(results, "--plot", str(picture))
    for fact in ("CPU: ", "cores: ", "BLAS: ", "NumPy: ", "GPU: ", "date: ", "command: python -m pytest "):
        assert f"\n{fact}" in f"\n{printed}"
    heading, row = (next(line for line in printed.splitlines() if key in line) for key in ("batch  ", f"   {BATCH}  "))
    assert heading.split() == ["batch", "784-128-10", "sgd", "cpu"]
    assert row.split()[0] == str(BATCH)
    assert row.endswith("%)")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_report_says_that_gpu_figures_are_missing(results):
    assert "\nNO GPU FIGURES. GPU: " in run_report(results)


def test_the_report_as_markdown(results):
    lines = run_report(results, "--markdown").splitlines()
    start = lines.index("| batch | 784-128-10 sgd cpu |")
    assert lines[start + 1] == "| ---: | ---: |"
    assert lines[start + 2].startswith(f"| {BATCH} | ")


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
