"""Every benchmark runs, and what it notes agrees with formulas of its own; the report shows all of it."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gpubp
from gpubp import cpu, recording

ROOT = Path(__file__).resolve().parents[2]
WIDTHS, BATCH, ROWS = (784, 128, 10), 32, 80
CELL = f"cpu-float32-784-128-10-adam-{BATCH}"
CELLS = (
    f"test_passes.py::test_pass[cpu-float32-784-128-10-{BATCH}-forward]",
    f"test_passes.py::test_pass[cpu-float32-784-128-10-{BATCH}-gradients]",
    f"test_epochs.py::test_epoch[cpu-float32-64-64-64-64-10-adam-{BATCH}]",
    "test_accuracy.py::test_time_to_accuracy[adam-cpu]",
    f"test_memory.py::test_peak_memory[{CELL}-steps]",
    "test_import.py::test_import",
    "test_kernels.py::test_operation[float32-64 KiB-cpu-bias_activation Sigmoid]",
    f"test_kernels.py::test_matmul[float32-dL_dW 784-128-{BATCH}-cpu]",
)
SMALL = ("-p", "no:cacheprovider", "--cell-seconds=0.01", f"--data-rows={ROWS}")


@pytest.fixture(autouse=True)
def repository_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``import benchmarks`` find the package, as pytest does when it collects it."""
    monkeypatch.syspath_prepend(str(ROOT))


def module(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.{name}")


def run_pytest(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", *arguments]
    env = {**os.environ, **(environment or {})}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JSON of one cell of each benchmark."""
    pytest.importorskip("pytest_benchmark")
    pytest.importorskip("sklearn")
    path = tmp_path_factory.mktemp("suite") / "results.json"
    done = run_pytest(*(f"benchmarks/{cell}" for cell in CELLS), *SMALL, f"--benchmark-json={path}")
    assert done.returncode == 0, done.stdout + done.stderr
    return path


@pytest.fixture(scope="module")
def noted(results: Path) -> dict[str, list[dict[str, Any]]]:
    """What was noted, by kind."""
    infos: dict[str, list[dict[str, Any]]] = {}
    for entry in json.loads(results.read_text())["benchmarks"]:
        infos.setdefault(entry["extra_info"]["kind"], []).append({**entry["extra_info"], "stats": entry["stats"]})
    return infos


def test_a_block_is_long_enough_though_the_first_call_was_slow(monkeypatch):
    """One call takes 1 ms, but the very first one 1 s: eight calls are a block of 5 ms or more."""
    timing = module("timing")
    slow = iter([1.0])
    monkeypatch.setattr(timing, "seconds_of", lambda part, times: 1e-3 * times + next(slow, 0.0))
    assert timing.block_of(None) == (8, 8e-3)
    slow = iter([1.0])
    assert timing.schedule(None, 1.6, blocks_a_round=2) == (8, 100)
    assert timing.schedule(None, 1e-3) == (8, timing.ROUNDS[0])
    assert timing.schedule(None, 1e3) == (8, timing.ROUNDS[1])


def test_a_pass(noted):
    (forward,), (gradients,) = noted["forward"], noted["gradients"]
    for info in (forward, gradients):
        assert (info["net"], info["optimizer"], info["batch"]) == ("784-128-10", None, BATCH)
        assert info["samples_per_second"] == pytest.approx(BATCH / info["pass_seconds"])
        assert info["stats"]["median"] == pytest.approx(info["pass_seconds"] * info["passes_per_round"])
        assert info["share_of_floor"] == pytest.approx(info["floor_seconds"] / info["pass_seconds"])
    weights = 784 * 128 + 128 * 10
    rate = forward["ceiling_flops_per_second"]
    assert forward["floor_seconds"] >= 2 * BATCH * weights / rate
    assert gradients["floor_seconds"] >= (6 * weights - 2 * 784 * 128) * BATCH / rate
    assert gradients["floor_seconds"] > forward["floor_seconds"]


def test_an_epoch(noted):
    (info,) = noted["epoch"]
    assert (info["examples"], info["steps"], info["epochs"]) == (ROWS, 3, 2)  # 32 + 32 + 16
    assert info["samples_per_second"] == pytest.approx(2 * ROWS / info["fit_seconds"])
    assert info["bare_samples_per_second"] == pytest.approx(2 * ROWS / info["bare_seconds"])
    assert info["stats"]["median"] == pytest.approx(info["fit_seconds"])
    fit, bare, last = np.transpose(info["rounds"])
    assert len(fit) == info["stats"]["rounds"]
    assert (last < fit).all()  # one epoch of a call that does more
    assert info["last_epoch_seconds"] == pytest.approx(np.median(last))
    assert info["loop_overhead"] == pytest.approx(np.median(fit / bare) - 1)
    assert info["last_epoch_overhead"] == pytest.approx(np.median(last / (bare / 2)) - 1)


def test_an_overhead_is_that_of_the_median_round():
    """A round in which both were slow changes nothing, and one outlier does not count."""
    overhead = module("test_epochs").overhead
    assert overhead([1.1, 3.3, 1.1], [1.0, 3.0, 1.0]) == pytest.approx(0.1)
    assert overhead([1.2, 9.0, 1.1], [1.0, 1.0, 1.0]) == pytest.approx(0.2)


def test_the_bare_epochs_take_the_steps_of_fit():
    """From the same state, both ways of two epochs end with the same weights: the same work is compared."""
    cells, epochs = module("cells"), module("test_epochs")
    X, T = cells.random_data(ROWS, 20, 4, "cpu")
    ends = []
    for way in ("fit", "bare"):
        epoch = epochs.Epoch(cells.Cell((20, 8, 4), "adam", "cpu", BATCH), X, T)
        epoch.fit(1)
        getattr(epoch, way)(2)
        ends.append(epoch.network.theta)
    np.testing.assert_array_equal(*ends)


def test_time_to_accuracy(noted):
    (info,) = noted["accuracy"]
    assert (info["data"], info["accuracy"], info["seeds"]) == ("digits", 0.95, 5)
    assert 0 < info["train_seconds"] <= info["slowest_seconds"] <= info["stats"]["max"]
    assert info["epochs"] >= 1


def test_an_accuracy_that_is_not_reached_is_an_error(monkeypatch):
    accuracy = module("test_accuracy")
    monkeypatch.setattr(accuracy, "MOST_EPOCHS", 1)
    rng = np.random.default_rng(0)
    X, t = rng.normal(size=(200, 64)), rng.integers(10, size=200)
    with pytest.raises(RuntimeError, match=r"seed 3, sgd: 0\.\d+ is the best held-out accuracy of 1 epochs, 1.0 was"):
        accuracy.train(3, "sgd", "cpu", 1.0, X, t)


def test_training_stops_where_the_accuracy_is_reached():
    accuracy = module("test_accuracy")
    rng = np.random.default_rng(0)
    t = rng.integers(10, size=400)
    X = np.eye(64)[t] + 0.1 * rng.normal(size=(400, 64))
    stops = [len(accuracy.train(0, "adam", "cpu", target, X, t)) for target in (0.5, 1.0)]
    assert 1 <= stops[0] < stops[1] < accuracy.MOST_EPOCHS


def test_peak_memory(noted):
    (info,) = noted["memory"]
    parameters = sum((n_in + 1) * n_out for n_in, n_out in itertools.pairwise(WIDTHS))
    assert info["parameter_bytes"] == info["gradient_bytes"] == 4 * parameters
    assert info["state_bytes"] == 2 * 4 * parameters  # Adam's two moments
    net = gpubp.mlp(WIDTHS, activation="sigmoid")
    plan = gpubp.StepPlan(net, BATCH)
    recorded = 0 if cpu.kernels() is None else min(recording.MOST_STEPS, recording.MOST_INDICES // BATCH)
    launches = recorded * (8 * BATCH + 4)  # indices, and a loss
    assert info["plan_bytes"] == plan.workspace_bytes + 4 + BATCH * (784 * 4 + 8) + launches
    parts = [f"{part}_bytes" for part in ("plan", "parameter", "gradient", "state")]
    assert info["planned_bytes"] == sum(info[part] for part in parts)
    assert info["peak_over_plan"] == pytest.approx(info["peak_bytes"] / info["planned_bytes"])
    assert info["traced_over_plan"] == pytest.approx(info["traced_bytes"] / info["planned_bytes"])
    assert info["traced_over_plan"] >= 1  # what is planned is allocated, and nothing of it escapes the count


@pytest.mark.parametrize("counter", ["ResidentPeak", "TracedPeak"])
def test_a_peak_is_seen_after_it_has_gone(counter):
    memory, size = module("memory"), 64 * 2**20
    peak = getattr(memory, counter)()
    try:
        np.ones(size, np.uint8)  # gone at once
        small = np.ones(size // 8, np.uint8)
        assert peak.bytes() == pytest.approx(size, rel=0.05)
        del small
    finally:
        memory.tracemalloc.stop()


@pytest.mark.parametrize("through", ["steps", "fit"])
def test_the_resident_peak_holds_all_that_is_planned(through):
    """Every array of the plan is written, so all of it must show, and nothing may be given back meanwhile."""
    settings = {"optimizer": "adam", "rows": 4096, "dtype": "float32", "device": "cpu", "counter": "resident"}
    # Kernels that must be compiled, and the buffer that BLAS takes for a second thread when it first comes in its way,
    # take memory of their own in a process that meets them late: not all three do.
    ratios = []
    for _ in range(3):
        measured = module("test_memory").in_a_fresh_process(widths=WIDTHS, batch=2048, through=through, **settings)
        if through == "fit":
            assert measured["undo_bytes"] == measured["parameter_bytes"] + measured["state_bytes"]
            assert measured["order_bytes"] == 8 * settings["rows"]
        ratios.append(measured["peak_bytes"] / measured["planned_bytes"])
    assert min(ratios) >= 1, ratios
    assert min(ratios) < 2, ratios


def test_a_product_that_threads_share():
    """If it were computed by one thread, what the others hold would stay."""
    memory, cpu = module("memory"), importlib.import_module("gpubp.cpu")
    with cpu.recorded(run=False) as lines:
        A = np.ones((memory.SHARED_WIDTH, memory.SHARED_WIDTH), np.float32)
        module("kernels").gemm.matmul(A, A, np.empty_like(A))
    assert cpu.kernels() is None or lines[0].nanoseconds >= cpu.ALONE_NANOSECONDS


def test_a_memory_process_that_fails_is_an_error():
    with pytest.raises(RuntimeError, match=r"(?s)'optimizer': 'sdg'.*unknown optimizer 'sdg'"):
        module("test_memory").in_a_fresh_process(
            widths=[4, 2],
            optimizer="sdg",
            batch=2,
            rows=4,
            dtype="float32",
            device="cpu",
            through="steps",
            counter="traced",
        )


def test_import_time(noted):
    (info,) = noted["import"]
    assert info["import_seconds"] == pytest.approx(info["with_numpy_seconds"] - info["numpy_seconds"])
    assert 0 < info["numpy_seconds"] < info["stats"]["max"]
    assert info["with_numpy_seconds"] < info["stats"]["max"]  # of a whole process


def test_kernels(noted):
    operation, product = noted["kernel"]
    assert (operation["kernel"], operation["size"]) == ("bias_activation Sigmoid", "64 KiB")
    assert operation["bytes"] == pytest.approx(2 * 2**16, rel=0.05)  # reads Z, writes Y; b is small
    assert (product["kernel"], product["batch"]) == ("matmul dL_dW 784-128", BATCH)
    assert product["flops"] == 2 * BATCH * 784 * 128
    assert product["bytes"] == 4 * (BATCH * 784 + BATCH * 128 + 784 * 128)
    for info in (operation, product):
        assert info["stats"]["median"] == pytest.approx(info["call_seconds"] * info["calls_per_round"])
        assert info["bytes_per_second"] == pytest.approx(info["bytes"] / info["call_seconds"])
        assert info["flops_per_second"] == pytest.approx(info["flops"] / info["call_seconds"])
        arithmetic = info["flops"] / info["ceiling_flops_per_second"]
        in_cache = info["bytes"] <= info["ceiling_cache_bytes"]
        rates = [info["ceiling_bytes_per_second"], info["ceiling_cache_bytes_per_second"] or 0]
        traffic = info["bytes"] / (max(rates) if in_cache else rates[0])
        assert info["floor_seconds"] == pytest.approx(max(arithmetic, traffic))
        assert info["share_of_ceiling"] == pytest.approx(info["floor_seconds"] / info["call_seconds"])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_operation_runs_and_stays_alive(fake_cupy, device, dtype, monkeypatch):
    """After many runs no array has become infinite, NaN or denormal, which would change the speed."""
    kernels = module("kernels")
    written: list[Any] = []
    for owner, name, position in (
        (kernels.activation_op, "bias_activation", 3),
        (kernels.activation_op, "activation_backward", 3),
        (kernels.gather_op, "gather", 2),
        (kernels.rows_op, "add_bias", 0),
        (kernels.rows_op, "standardize", 3),
        (kernels.rows_op, "column_sum", 1),
        (kernels.combine_op, "combine", 0),
        (kernels.random_op, "uniform", 0),
        (kernels.penalty, "add_l2", 2),
        (gpubp.Optimizer, "update", 1),
    ):
        function = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *args, f=function, k=position: (written.append(args[k]), f(*args))[1], raising=True
        )
    operations = kernels.operations()
    assert {"gather", "loss softmax_cross_entropy", "update adam", "bias_activation Sigmoid"} <= set(operations)
    for name, make in operations.items():
        kernel = make(2**12, device, dtype, ROWS)
        written.clear()
        for _ in range(40 if device == "cpu" else 2):
            kernel.run(2)
            if name.startswith("layer "):  # its ops are many: what counts is what its backward returns, made from all
                written.append(kernel.calls[0]())
            for array in written[-1:]:
                values = np.abs(gpubp.to_host(array))
                assert np.isfinite(values).all(), name
                assert not ((values > 0) & (values < np.finfo(dtype).tiny)).any(), name
        assert written or name.startswith("loss "), name
        costs = kernel.costs()
        assert costs, name
        for cost in costs:
            assert cost.bytes > 0, name


def test_every_cuda_kernel_has_its_cell():
    kernels, cuda = module("kernels"), importlib.import_module("gpubp.cuda")
    fake = importlib.import_module("fake_cupy")
    written = set()
    for path in cuda.kernel_directory().glob("*.cu"):
        written |= set(re.findall(r"__global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\(", path.read_text()))
    assert len(written) > 10
    with fake.installed(record=True):
        for make in kernels.operations().values():
            make(2**17, "cuda", "float32", ROWS).run(1)
        launched = {launch.kernel.split("<")[0] for launch in fake.machine.launches}
    assert launched == written


def test_on_a_gpu_large_operations_are_timed_from_memory(fake_cupy, monkeypatch):
    kernels = module("kernels")
    monkeypatch.setattr(kernels, "FROM_MEMORY", 2**12)
    monkeypatch.setattr(kernels, "ROTATED", 2**14)
    make = kernels.operations()["update sgd momentum"]
    assert [len(make(size, "cuda", "float32", ROWS).calls) for size in (2**11, 2**12, 2**13, 2**15)] == [1, 4, 2, 1]
    assert len(make(2**13, "cpu", "float32", ROWS).calls) == 1


def test_a_kernel_is_timed_as_a_graph_of_whole_rounds(fake_cupy):
    machine = importlib.import_module("fake_cupy").machine
    kernels, done = module("kernels"), []
    xp = gpubp.resolve_device("cuda").module
    arrays = [xp.zeros(3) for _ in range(3)]

    def calls(capturable):
        def call(k):
            done.append(k)
            return xp.add(arrays[k], 1, out=arrays[k]) if capturable else xp.empty(3)

        return tuple(lambda k=k: call(k) for k in range(3))

    part, count = kernels.Kernel(gpubp.resolve_device("cuda"), calls(True), list).timed()
    assert count == 18  # of three calls, the next multiple after 16
    assert done == [0, 1, 2, 0] + [0, 1, 2] * 6
    before = machine.graph_launches
    part(2)
    assert machine.graph_launches == before + 2
    assert [array.tolist() for array in arrays] == [[14.0] * 3, [13.0] * 3, [13.0] * 3]
    kernel = kernels.Kernel(gpubp.resolve_device("cuda"), calls(False), list)
    assert kernel.timed() == (kernel.run, 1)
    kernel = kernels.Kernel(gpubp.resolve_device("cpu"), calls(True), list)
    assert kernel.timed() == (kernel.run, 1)


@pytest.mark.parametrize("what", ["Y", "dL_dW", "dL_dX"])
def test_a_product_is_that_of_the_layer(what, monkeypatch):
    kernels = module("kernels")
    X_shape, W_shape, Y_shape = (6, 5), (5, 4), (6, 4)
    calls: list[Any] = []
    monkeypatch.setattr(kernels.gemm, "matmul", lambda *operands: calls.append(operands))
    kernel = kernels.Product(what, batch=6, n_in=5, n_out=4).kernel("cpu", "float64")
    kernel.run(1)
    ((A, B, out),) = calls
    expected = {
        "Y": (X_shape, W_shape, Y_shape),
        "dL_dW": (X_shape[::-1], Y_shape, W_shape),
        "dL_dX": (Y_shape, W_shape[::-1], X_shape),
    }
    assert (A.shape, B.shape, out.shape) == expected[what]
    transposed = {"Y": (True, True), "dL_dW": (False, True), "dL_dX": (True, False)}  # backward has one transpose each
    assert (A.flags.c_contiguous, B.flags.c_contiguous) == transposed[what]
    assert [cost.flops for cost in kernel.costs()] == [2 * 6 * 5 * 4]


def test_the_cells_that_are_measured():
    cells = module("cells")
    every = cells.grid()
    assert len({cell.name for cell in every}) == len(every)
    assert {cell.net for cell in every if cell.device == "cpu"} == {"784-128-10", "784-512-512-10", "64-64-64-64-10"}
    assert {cell.net for cell in every if cell.device == "cuda"} >= {"4096x4"}
    assert sorted({cell.batch for cell in every}) == [1, 8, 32, 128, 512, 2048, 8192, 32768, 65536]

    def collected(*options: str) -> list[str]:
        done = run_pytest("benchmarks/test_throughput.py", "--collect-only", "-q", "-p", "no:cacheprovider", *options)
        assert done.returncode == 0, done.stdout + done.stderr
        return [line for line in done.stdout.splitlines() if "[cpu-" in line]

    default, complete = collected(), collected("--float64")
    assert [len([line for line in default if dtype in line]) for dtype in ("float32", "float64")] == [54, 12]
    assert len(complete) == 2 * 54


@pytest.mark.skipif(gpubp.why_no_cuda() is None, reason="there is a GPU")
def test_a_gpu_cell_without_a_gpu_is_skipped_loudly_or_fails():
    cell = "benchmarks/test_kernels.py::test_matmul[float32-Y 64-10-32-cuda]"
    skipped = run_pytest(cell, *SMALL, environment={"GPUBP_REQUIRE_GPU": ""})
    assert skipped.returncode == 0
    assert "NO GPU FIGURES: CuPy" in skipped.stdout
    failed = run_pytest(cell, *SMALL, environment={"GPUBP_REQUIRE_GPU": "1"})
    assert failed.returncode == 1
    assert "GPUBP_REQUIRE_GPU=1, but" in failed.stdout


def test_the_report_shows_every_kind(results, noted, capsys):
    report = module("report")
    report.main([str(results)])
    printed = capsys.readouterr().out
    (forward,), (memory,), (accuracy,) = noted["forward"], noted["memory"], noted["accuracy"]
    for words in (
        "forward only: samples/s",
        f"{forward['samples_per_second']:,.0f} ({forward['share_of_floor']:.0%})",
        "forward, loss and backward, no update: samples/s",
        f"{noted['epoch'][0]['loop_overhead']:+.1%}",
        f"{accuracy['train_seconds']:.3f}",
        f"{memory['peak_over_plan']:.2f}   {memory['traced_over_plan']:>13.2f}",
        f"{noted['import'][0]['import_seconds'] * 1e3:.1f} ms",
        f"{noted['kernel'][0]['bytes_per_second'] / 1e9:,.1f} ({noted['kernel'][0]['share_of_ceiling']:.0%})",
        f"{noted['kernel'][1]['flops_per_second'] / 1e9:,.1f} ({noted['kernel'][1]['share_of_ceiling']:.0%})",
        f"ceilings of cpu, float32: {forward['ceiling_flops_per_second'] / 1e9:,.0f} GFLOP/s",
    ):
        assert words in printed, words


def test_the_report_keeps_dtypes_apart_and_batches_in_order():
    report = module("report")
    step = {"kind": "step", "net": "5-3", "optimizer": "sgd", "device": "cpu", "other_share": 0.25}
    infos = [
        {**step, "dtype": "float32", "batch": 512, "samples_per_second": 2e6},
        {**step, "dtype": "float32", "batch": 32, "samples_per_second": 1e6},
        {**step, "dtype": "float64", "batch": 32, "samples_per_second": 5e5},
        {**step, "dtype": "float32", "batch": 8, "samples_per_second": 3e5, "net": "4-2"},
    ]
    (_, single), (_, double) = report.tables(infos)
    assert single == [
        ["batch", "5-3 sgd cpu", "4-2 sgd cpu"],
        ["8", "-", "300,000 (25%)"],
        ["32", "1,000,000 (25%)", "-"],
        ["512", "2,000,000 (25%)", "-"],
    ]
    assert double == [["batch", "5-3 sgd cpu float64"], ["32", "500,000 (25%)"]]


def test_the_report_tells_the_ceilings():
    report = module("report")
    place = {"device": "cpu", "dtype": "float32"}
    ceilings = {"ceiling_flops_per_second": 2e11, "ceiling_bytes_per_second": 4e10}
    in_cache = {**place, **ceilings, "ceiling_cache_bytes_per_second": 9e10, "ceiling_cache_bytes": 2**25}
    line = "ceilings of cpu, float32: 200 GFLOP/s (matrix product), 40.0 GB/s (copy, read and written)"
    assert report.ceilings([{**place, **ceilings}]) == [line]
    assert report.ceilings([in_cache]) == [f"{line}, 90.0 GB/s in the caches"]


def test_a_plot_without_steps_is_refused(results, tmp_path):
    pytest.importorskip("matplotlib")
    report = module("report")
    with pytest.raises(SystemExit, match=r"no plot: the file holds no training step"):
        report.main([str(results), "--plot", str(tmp_path / "plot.png")])
