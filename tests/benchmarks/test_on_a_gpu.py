"""`benchmarks/on_a_gpu.py`: its stages run on a CPU and on the stand-in, and what they print is read rightly."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import types
import weakref
from pathlib import Path

import pytest

from gpubp.cli.bench import benchmarks_module

report, stages, work = map(benchmarks_module, ("gpu_report", "gpu_stages", "gpu_work"))
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "on_a_gpu.py"


@pytest.fixture(autouse=True)
def in_this_checkout(monkeypatch):
    """The stages run programs of the checkout: those of an installed package would look for them beside themselves."""
    monkeypatch.setattr(stages, "ROOT", ROOT)


def test_pretending_runs_all_that_can_run(tmp_path):
    pytest.importorskip("threadpoolctl")
    command = [sys.executable, str(SCRIPT), "--pretend", "--out", str(tmp_path), "--minutes", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["facts.txt", "jobs.txt", "pytest.txt", "report.md", "results.json"]
    found = json.loads((tmp_path / "results.json").read_text())
    verdicts = {name: stage["verdict"] for name, stage in found["stages"].items()}
    assert list(verdicts) == [stage.name for stage in stages.STAGES]
    assert verdicts["facts"] == "known"
    assert verdicts["smoke"] == "8 of 8 agree with float64, 0 captured"
    assert verdicts["race-first"] == "8 of 8 cells"
    assert verdicts["pytest"].endswith(" passed")
    assert verdicts["kernels"].endswith(" figures, 0 failed")
    assert verdicts["floors"] == "8 figures, 0 failed"
    assert verdicts["race-rest"] == "2 of 2 cells"
    for name in stages.NOT_PRETENDED:
        assert verdicts[name] == "not run: needs a GPU"
    assert found["facts"]["command"].endswith(f"--pretend --out {tmp_path} --minutes 5")
    assert "samples/s at least the best peer's in every cell: " in done.stdout
    assert "not measured: kernels at least 85% of the copy's bandwidth at 64 MiB and more: no figure" in done.stdout
    again = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    told = [text[text.index("\nstage") :].split()[:5] for text in (done.stdout, again.stdout)]
    assert told[0] == told[1]
    later = json.loads((tmp_path / "results.json").read_text())
    assert len(later["runs"]) == 2
    assert {key for key in found if found[key] != later[key]} == {"facts", "runs", "stages"}  # the times of the facts
    assert found["facts"]["NumPy"]
    page = (tmp_path / "report.md").read_text()
    for words in (
        "## race-first",
        "| batch | gpubp | numpy-naive |",
        "| update adam | 4 KiB |",
        "| 6-5-3 | adam | 8 |",
    ):
        assert words in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "smoke,nothing"], "there is no stage nothing; there are facts, smoke"),
        (["--minutes", "0"], "--minutes: a positive number"),
    ],
)
def test_refusals(arguments, said):
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGTERM"), reason="SIGTERM")
def test_an_end_from_outside_keeps_what_is_known(tmp_path):
    command = [sys.executable, str(SCRIPT), "--pretend", "--out", str(tmp_path), "--only", "smoke,race-first,kernels"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as running:
        while not running.stdout.readline().startswith("smoke: "):
            assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        out, _ = running.communicate(timeout=60)
    assert "\nstopped\n" in f"\n{out}"
    assert "smoke" in json.loads((tmp_path / "results.json").read_text())["stages"]
    assert not (tmp_path / "part.json").exists()


# The jobs, on the stand-in for CuPy.


@pytest.fixture
def jobs(fake_cupy):
    """Does a job on the device that the stand-in plays, and returns what it notes by name."""

    def do(name, known=None):
        noted = {}

        def note(key, what):
            noted.setdefault(key, []).append(what)

        work.JOBS[name](work.Place("cuda", True, 60.0, known or {}), note)
        return noted

    return do


def test_smoke_captures_every_step(jobs):
    rows = jobs("smoke")["smoke"]
    assert [(row["captured"], row["agrees"], row["why"]) for row in rows] == [(True, True, None)] * 10
    assert {row["optimizer"] for row in rows} == {"sgd", "sgd momentum", "sgd nesterov", "adam"}
    assert [row["precision"] for row in rows] == ["float32", "tf32", "bf16", *["float32"] * 7]
    assert all(0 < row["share"] < 1e-4 for row in rows if row["precision"] == "float32")
    tf32, bf16 = rows[1:3]
    assert 3 * rows[0]["share"] < tf32["share"] < bf16["share"] < 0.1  # products were rounded


def test_smoke_without_captures_has_failed(jobs, monkeypatch):
    def refused(*_):
        raise RuntimeError("no graphs here")

    monkeypatch.setattr(work.cuda, "captured", refused)
    with pytest.warns(UserWarning, match="not captured as a CUDA graph"):
        noted = jobs("smoke")
    verdict = stages.job_verdict("smoke", {"smoke": noted["smoke"], "smoke-planned": 10}, 0)
    assert verdict == "FAILED: 10 of 10 agree with float64, 0 captured; NOT CAPTURED: no graphs here"
    assert "| no: no graphs here |" in report.page({"stages": {}, "smoke": noted["smoke"]})


def test_what_is_known_is_not_done_again(jobs):
    for name in ("smoke", "floors", "ride"):
        every = jobs(name)
        rows = every[name]
        assert every[f"{name}-planned"] == [len(rows)]
        rest = jobs(name, {name: rows[1:]})[name]
        assert [row | {"seconds": 0} for row in rest] != []
        assert len(rest) == 1
        keys = [key for key in ("net", "optimizer", "batch", "precision", "kernel", "size") if key in rows[0]]
        assert [rest[0][key] for key in keys] == [rows[0][key] for key in keys]


def test_riding_makes_the_same_weights(jobs, monkeypatch):
    rows = jobs("ride")["ride"]
    assert [(row["net"], row["batch"], row["precision"]) for row in rows][:2] == [
        ("6-5-3", 4, "float32"),
        ("8-4-4-3", 4, "float32"),
    ]
    assert len(rows) == 8
    for row in rows:
        assert row["agrees"], row
        assert row["times"] == pytest.approx(row["apart_seconds"] / row["riding_seconds"])
    matmul = work.matmul
    monkeypatch.setattr(work, "matmul", lambda *a, alpha, beta: matmul(*a, alpha=abs(alpha), beta=beta))
    assert not any(row["agrees"] for row in jobs("ride")["ride"])  # uphill
    page = report.page({"stages": {}, "ride": rows})
    assert "## Plain SGD in the products of the weights' gradients" in page


def test_riding_without_cublas_tells_so(jobs, monkeypatch):
    monkeypatch.setattr(work.cublas, "why_no_handle", lambda: "no nvmath")
    assert {row["failed"] for row in jobs("ride")["ride"]} == {"RuntimeError: there is no cuBLAS of ours: no nvmath"}


def test_smoke_tells_what_went_wrong(jobs, monkeypatch):
    def update(self, theta, dL_dtheta, decayed):
        raise ValueError("no update")

    monkeypatch.setattr(work.gpubp.SGD, "update", update)
    rows = jobs("smoke")["smoke"]
    assert [row["agrees"] for row in rows] == [False] * 5 + [True] + [False] * 3 + [True]
    assert rows[0]["failed"] == "ValueError: no update"


def test_floors_count_the_nodes_of_one_step(jobs):
    rows = jobs("floors")["floors"]
    assert len(rows) == 16
    assert {row["precision"] for row in rows} == {"float32", "tf32"}
    launches = jobs("one-step")["one-step"][0]["launches"]
    small = [row for row in rows if row["net"] == "6-5-3"]
    for row in rows:
        assert row["captured"]
        assert row["nodes_counted"] == "in the graph of one step"
        assert row["seconds_per_node"] == pytest.approx(row["step_seconds"] / row["nodes"])
        assert row["times_floor"] == pytest.approx(row["step_seconds"] / row["floor_seconds"])
        assert row["samples_per_second"] == pytest.approx(row["batch"] / row["step_seconds"])
    assert {row["nodes"] for row in small} == {launches}


def test_floors_take_the_ceiling_of_their_precision(jobs, monkeypatch):
    rates = {"copy": 1e30, "float32": 1e9, "tf32": 4e9}
    monkeypatch.setattr(work, "_measure_ceilings", lambda place, note: rates)
    rows = jobs("floors")["floors"]
    floors = {
        tuple(row[key] for key in ("net", "optimizer", "batch", "precision")): row["floor_seconds"] for row in rows
    }
    for (*step, precision), seconds in floors.items():
        if precision == "tf32":
            assert seconds == pytest.approx(floors[*step, "float32"] / 4)
    del rates["tf32"]
    failed = [row["failed"] for row in jobs("floors")["floors"] if row["precision"] == "tf32"]
    assert set(failed) == {"RuntimeError: there is no measured ceiling of tf32 products"}


def test_the_products_of_a_step_are_of_its_precision(fake_cupy):
    from fake_cupy import cublas as fake

    throughput, cells = map(benchmarks_module, ("throughput", "cells"))
    step = throughput.Step(
        cells.Cell((6, 5, 3), "sgd", "cuda", 4, precision="tf32"), *cells.random_data(8, 6, 3, "cuda")
    )
    for part in (step.whole, step.bare):
        fake.calls.clear()
        part(1)
        assert {compute for _, compute in fake.calls} == {fake.ComputeType.COMPUTE_32F_FAST_TF32}
    assert step.cell.name == "cuda-float32-tf32-6-5-3-sgd-4"


def test_a_step_that_is_not_captured_counts_its_launches(jobs, monkeypatch):
    def refused(*_):
        raise RuntimeError("no graphs here")

    monkeypatch.setattr(work.cuda, "captured", refused)
    with pytest.warns(UserWarning, match="not captured as a CUDA graph"):
        rows = jobs("floors")["floors"]
    assert {(row["captured"], row["why"], row["nodes_counted"]) for row in rows} == {
        (False, "no graphs here", "launches of a step")
    }
    assert all(row["nodes"] > 5 for row in rows)


def test_every_operation_is_profiled_as_a_graph(jobs):
    rows = jobs("kernels")["kernels"]
    assert [row["kernel"] for row in rows] == list(work.kernels.operations())
    for row in rows:
        assert row["as_graph"], row
        assert row["share_of_copy"] > 0


# The time.


def test_a_budget_leaves_out_what_does_not_fit():
    now = [0.0]
    budget = stages.Budget(100.0, lambda: now[0])
    assert budget.left == 95.0
    assert budget.limit(40, 10) == 40
    now[0] = 70.0
    assert budget.limit(40, 10) == 25
    assert budget.limit(40, 26) is None


class Machine:
    """A machine on which stages take a given time, whatever they are given; what is left goes on in the next run."""

    def __init__(self, folder, needed):
        self.folder, self.now, self.needed, self.done = folder, 0.0, needed, {}
        self.stages = [stages.Stage(s.name, self.stage(s), s.most, s.least) for s in stages.STAGES]

    def stage(self, stage):
        def work(here, seconds):
            if stage.name == "facts":
                self.now += stage.most
                return "known"
            needed = self.needed(stage) - self.done.get(stage.name, 0.0)
            took = min(needed, seconds)
            self.now += took
            self.done[stage.name] = self.done.get(stage.name, 0.0) + took
            here.found.setdefault("figures", []).append([stage.name, took])
            return "done" if took == needed else "OVERRAN: a part"

        return work

    def run(self, minutes):
        began = self.now
        here, told = stages.earlier(self.folder, False), []
        stages.run_stages(self.stages, here, stages.Budget(60 * minutes, lambda: self.now), told.append)
        assert self.now - began <= 60 * minutes - stages.RESERVE
        return {name: stage["verdict"] for name, stage in here.found["stages"].items()}


def test_two_runs_of_nine_minutes_give_every_stage_its_turn(tmp_path):
    machine = Machine(tmp_path, lambda stage: stage.most)
    first = machine.run(9)
    assert [name for name, verdict in first.items() if verdict == "done"] == [
        *("smoke", "race-first", "race-first-tf32", "race-first-max", "pytest"),
    ]
    assert set(first.values()) == {"known", "done", stages.NO_TIME}
    second = machine.run(9)
    assert list(second) == [stage.name for stage in stages.STAGES]
    assert second.pop("facts") == "known"
    assert set(second.values()) == {"done"}
    figures = json.loads((tmp_path / "results.json").read_text())["figures"]
    assert [name for name, _ in figures] == [stage.name for stage in stages.STAGES if stage.name != "facts"]


def test_what_overran_goes_on_when_all_had_their_turn(tmp_path):
    machine = Machine(tmp_path, lambda stage: stage.most + 30 * (stage.name in ("race-first", "floors")))
    assert machine.run(9)["race-first"] == "OVERRAN: a part"
    machine.run(9)
    assert set(machine.run(9).values()) == {"known", "done"}
    figures = json.loads((tmp_path / "results.json").read_text())["figures"]
    spent = {name: sum(took for other, took in figures if other == name) for name, _ in figures}
    assert spent == {stage.name: machine.needed(stage) for stage in stages.STAGES if stage.name != "facts"}
    turns = [name for name, _ in figures]
    assert turns.index("ncu") < len(turns) - 1 - turns[::-1].index("race-first")  # what had none comes first


def test_finished_stages_rest_unless_they_are_asked_for(tmp_path):
    count = []
    one = [stages.Stage("smoke", lambda here, seconds: f"time {len(count.append(0) or count)}", 1, 0)]
    for anew, verdict in ((False, "time 1"), (False, "time 1"), (True, "time 2")):
        here = stages.earlier(tmp_path, False)
        here.found.setdefault("smoke", [{"net": "5-3"}])
        kept = "smoke" in stages.run_stages(one, here, stages.Budget(60), lambda _: None, anew)
        assert kept is not anew
        assert json.loads((tmp_path / "results.json").read_text())["stages"]["smoke"]["verdict"] == verdict


def test_a_run_that_was_killed_has_left_what_it_had(tmp_path):
    stages.run_stages([], stages.Run(tmp_path, False), stages.Budget(60), lambda _: None)
    (tmp_path / "results.json").write_text(json.dumps({"pretend": False, "stages": {"facts": {"verdict": "known"}}}))
    (tmp_path / "part.json").write_text(json.dumps({"floors": [{"net": "5-3"}], "floors-planned": 9}))
    here = stages.earlier(tmp_path, False)
    assert here.found["floors"] == [{"net": "5-3"}]
    assert not (tmp_path / "part.json").exists()
    assert [stage.name for stage in stages.in_turn(stages.STAGES, here.found)] == [s.name for s in stages.STAGES]


def test_figures_of_another_card_do_not_mix(tmp_path, monkeypatch):
    outputs = iter(["H100, 580\n", "H200, 580\n"])

    def run(command, *_):
        return stages.Outcome(0, next(outputs) if command[0] == "nvidia-smi" else "NumPy: 2\n")

    monkeypatch.setattr(stages, "run", run)
    facts = [stage for stage in stages.STAGES if stage.name == "facts"]
    stages.run_stages(facts, stages.earlier(tmp_path, False), stages.Budget(60), lambda _: None)
    before = (tmp_path / "results.json").read_text()
    with pytest.raises(stages.OtherMachineError, match=r"another card \(H100, 580; here is H200, 580\)"):
        stages.run_stages(facts, stages.earlier(tmp_path, False), stages.Budget(60), lambda _: None)
    assert (tmp_path / "results.json").read_text() == before


@pytest.mark.parametrize("text", ["{", '{"pretend": true, "stages": {}}'])
def test_other_results_in_the_folder_are_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(stages.DataError, match="choose another --out"):
        stages.earlier(tmp_path, False)


def test_a_race_goes_on_where_it_was_ended(tmp_path):
    pytest.importorskip("threadpoolctl")
    place = work.Place("cpu", True, 60.0)
    cases, noted = work._cases(place, ("6-5-3",), (4, 8), ("sgd",)), {}
    work._race(place, noted.__setitem__, "race-rest", cases[:1])
    assert len(noted["race-rest"]["cells"]) == 1
    earlier = json.loads(json.dumps(noted["race-rest"]))
    on = work.Place("cpu", True, 60.0, {"race-rest": earlier})
    work._race(on, noted.__setitem__, "race-rest", cases)
    assert noted["race-rest"]["cells"][0] == earlier["cells"][0]
    assert [cell["batch"] for cell in noted["race-rest"]["cells"]] == [4, 8]
    assert noted["race-rest"]["cells_planned"] == 2
    whole = work.Place("cpu", True, 60.0, {"race-rest": noted.pop("race-rest")})
    work._race(whole, noted.__setitem__, "race-rest", cases)
    assert not noted  # nothing to do


def test_peers_that_have_no_room_sit_out():
    largest, small = (work.Case(net, "adam", 65536, "step", "cuda") for net in (work.LARGEST, work.LARGE))
    names = [peer.name for peer in work.all_peers() if peer.name not in work.COMPILED][:7]
    needed = work.needed_bytes(largest, 65536)
    assert 10 < needed / 2**30 < 25
    out = work.kept_out([largest, small], names, 65536, 78 * 2**30)
    assert list(out) == [largest]
    assert "gpubp" not in out[largest]
    assert {"torch-graph-32", "torch"}.isdisjoint(out[largest])
    assert (len(names) - len(out[largest])) * needed < 78 * 2**30
    assert set(out[largest].values()) == {
        f"{needed / 2**30:.0f} GiB for each of 7 peers, and 78 GiB are free: room for 4"
    }
    assert set(work.kept_out([largest], names, 65536, 30 * 2**30)[largest]) == set(names)  # alone is no race


def test_who_sits_out_is_told_and_gets_no_turn(tmp_path):
    pytest.importorskip("threadpoolctl")
    race, case = benchmarks_module("race"), work.Case("6-5-3", "sgd", 4)
    peers = tuple(peer for peer in work.all_peers() if peer.name in ("gpubp", "numpy-naive"))
    settings = race.Settings(
        (case,), peers, "cpu", 1, 0.002, 1, 64, 60.0, ceilings_seconds=0.01, kept_out={case: {"numpy-naive": "no room"}}
    )
    one = race.Race(settings, "", lambda _: None, lambda *_: None)
    one.run()
    (cell,) = one.results["cells"]
    assert cell["peers"]["numpy-naive"] == {"unsupported": "no room"}
    assert cell["peers"]["gpubp"]["samples_per_second"] > 0


def test_a_worker_gives_the_memory_of_a_gpu_back(monkeypatch):
    worker, called = benchmarks_module("worker"), []

    def pool(name):
        return lambda: types.SimpleNamespace(free_all_blocks=lambda: called.append(name))

    cuda = types.SimpleNamespace(is_initialized=lambda: True, empty_cache=lambda: called.append("torch"))
    cupy = types.SimpleNamespace(
        get_default_memory_pool=pool("cupy"), get_default_pinned_memory_pool=pool("cupy, pinned")
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "torch._dynamo", types.SimpleNamespace(reset=lambda: called.append("compiled")))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    (peer,) = (peer for peer in work.all_peers() if peer.name == "gpubp")
    worker.Worker(peer, "cpu").release()
    assert called == []
    there = worker.Worker(peer, "cuda")

    class Held:
        """A run that holds itself in a cycle."""

    there.run = held = Held()
    held.itself, gone = held, weakref.ref(held)
    del held
    there.release()
    assert gone() is None
    assert called == ["compiled", "torch", "cupy", "cupy, pinned"]


def test_a_stage_that_fails_stops_nothing(tmp_path):
    def fail(here, seconds):
        raise OSError("no such tool")

    two = [stages.Stage("first", fail, 1, 0), stages.Stage("second", lambda here, seconds: "fine", 1, 0)]
    found = stages.run_stages(two, stages.Run(tmp_path, False), stages.Budget(60), lambda _: None)
    assert [stage["verdict"] for stage in found["stages"].values()] == ["FAILED: OSError: no such tool", "fine"]
    assert json.loads((tmp_path / "results.json").read_text()) == found


def test_what_a_stage_has_noted_survives_an_interruption(tmp_path):
    def interrupted(here, seconds):
        (here.out / "part.json").write_text('{"smoke": [{"net": "5-3", "optimizer": "sgd", "precision": "tf32"}]}')
        raise KeyboardInterrupt

    here = stages.Run(tmp_path, False)
    with pytest.raises(KeyboardInterrupt):
        stages.run_stages([stages.Stage("smoke", interrupted, 1, 0)], here, stages.Budget(60), lambda _: None)
    assert json.loads((tmp_path / "results.json").read_text())["smoke"] == [
        {"net": "5-3", "optimizer": "sgd", "precision": "tf32"}
    ]
    assert (tmp_path / "report.md").read_text() == "There is no page: KeyError: 'captured'\n"


# Processes.


def test_a_command_that_overruns_is_ended_with_its_children(tmp_path):
    code = (
        "import subprocess, sys, time; print('begun', flush=True); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print(child.pid, flush=True); time.sleep(600)"
    )
    began = time.monotonic()
    outcome = stages.run([sys.executable, "-c", code], 2.0, tmp_path / "log")
    assert outcome.code is None
    assert time.monotonic() - began < 20
    begun, pid, *_ = outcome.text.split()
    assert begun == "begun"
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    assert (tmp_path / "log").read_text().startswith("\n$ ")


def test_a_program_that_is_not_there_is_told(tmp_path):
    outcome = stages.run(["no-such-program"], 2.0, tmp_path / "log")
    assert outcome.code is None
    assert "no-such-program" in outcome.text


def test_a_long_log_loses_its_middle(tmp_path):
    log = tmp_path / "log"
    log.write_text("a" * 1000 + "b" * 1000)
    stages.shorten(log, 400)
    assert log.read_text() == "a" * 100 + "\n[...]\n" + "b" * 200


# Reading.

PYTEST = """
........F..s
FAILED tests/test_plan.py::test_a[cuda-32] - AssertionError: off
ERROR tests/test_devices.py::test_b - RuntimeError
1 failed, 120 passed, 3 skipped, 900 deselected, 2 errors in 62.31s (0:01:02)
"""


def test_reading_pytest():
    read = stages.read_pytest(PYTEST)
    assert read["counts"] == {"failed": 1, "passed": 120, "skipped": 3, "error": 2}
    assert read["failed"] == ["tests/test_plan.py::test_a[cuda-32]", "tests/test_devices.py::test_b"]
    assert stages.pytest_verdict(read, 1) == "FAILED: 1 failed, 120 passed, 3 skipped, 2 error"
    good = stages.read_pytest("....\n4 passed, 9 deselected in 0.30s\n")
    assert stages.pytest_verdict(good, 0) == "4 passed"
    assert stages.pytest_verdict(stages.read_pytest("....\nFAILED tests/x.py::y - z"), None).startswith(
        "OVERRAN: no summ"
    )
    assert stages.pytest_verdict(stages.read_pytest("..."), 4) == "FAILED: no summary"


OVERFLOW = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at void combine<float>(float *, const float *, long long, int, float, float)+0x1f0
=========     by thread (64,0,0) in block (0,0,0)
=========     Host Frame: [0x2f1e3c] in /usr/lib/libcuda.so.1
=========
1.5 s: operations done, 88 kernels launched, 12 arrays compared
========= ERROR SUMMARY: 1 error
"""
UNINITIALIZED = """========= Uninitialized __global__ memory read of size 16 bytes
=========     at sm90_xmma_gemm_f32f32_tn_n(Params)+0x7f0
========= Uninitialized __global__ memory read of size 16 bytes
=========     at 0x7f0 in void cutlass::Kernel2<X>(T1::Params)
========= ERROR SUMMARY: 2 errors
"""
RACE = """========= Error: Race reported between Write access at void adam<double>(double *)+0x50
=========     and Read access at void adam<double>(double *)+0x70 [32 hazards]
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
OURS = ["adam", "combine"]


@pytest.mark.parametrize(
    ("text", "read", "errors"),
    [
        ("8.1 s: trainings done, 90 kernels launched\n========= ERROR SUMMARY: 0 errors\n", {"launched": 90}, 0),
        (OVERFLOW, {"errors": 1, "reports": {"combine": 1}, "launched": 88}, 1),
        (UNINITIALIZED, {"errors": 2, "others": 2}, 0),
        (RACE, {"errors": 1, "reports": {"adam": 1}}, 1),
        ("========= ERROR SUMMARY: 3 errors\n", {"errors": 3}, 3),
        ("========= COMPUTE-SANITIZER\n", {"errors": None, "why": "no summary"}, 0),
        (
            "========= Error: Device not supported. Please refer to the documentation\n",
            {"errors": None, "why": "========= Error: Device not supported. Please refer to the documentation"},
            0,
        ),
    ],
)
def test_reading_a_sanitizer(text, read, errors):
    found = stages.read_sanitizer(text, OURS)
    assert found == {"errors": 0, "reports": {}, "others": 0, "launched": 0, **read}
    assert stages.sanitizer_errors(found) == errors


def test_the_verdict_of_the_sanitizers():
    good = {"errors": 0, "reports": {}, "others": 0, "launched": 90, "code": 0}
    late = {
        "errors": None,
        "why": "no summary",
        "reports": {},
        "others": 0,
        "launched": 7,
        "overran": True,
        "code": None,
    }
    verdict = stages.sanitizer_verdict({"memcheck": good, "racecheck": late})
    assert verdict == "OVERRAN: memcheck 0 errors, 90 kernels seen; racecheck overran, 7 kernels seen"
    assert stages.sanitizer_verdict({"memcheck": good}) == "memcheck 0 errors, 90 kernels seen"
    bad = {**good, "errors": 3, "reports": {"adam": 2}, "others": 1}
    assert stages.sanitizer_verdict({"memcheck": bad}) == (
        "FAILED: memcheck 2 errors, 90 kernels seen (2 in adam), 1 reports of other kernels"
    )
    wrong = {**good, "code": 1}  # no error of memory, but a wrong number
    assert stages.sanitizer_verdict({"memcheck": wrong}) == "FAILED: memcheck 0 errors, 90 kernels seen, exit code 1"
    flood = {**good, "errors": 9999, "others": stages.PRINTED}  # among what is not shown, ours may be
    assert stages.sanitizer_verdict({"initcheck": flood}).startswith("FAILED: ")
    assert stages.sanitizer_verdict({}).startswith("FAILED")


SANITIZER = """#!{python}
import os, sys, time
tool, log = sys.argv[2], "{log}"
with open(log, "a") as file:
    print(sys.argv[2], sys.argv.count("--kernel-name"), "kernel_substring=_Z4adamI" in sys.argv, file=file)
if "--planted" in sys.argv:
    print({planted!r})
elif tool == "memcheck" and not os.path.exists(log + ".late"):
    open(log + ".late", "w").close()
    print("0.1 s: operations done, 5 kernels launched", flush=True)
    time.sleep(600)
else:
    print("9.9 s: all done, 90 kernels launched\\n========= ERROR SUMMARY: 0 errors")
"""


@pytest.mark.parametrize("planted", [OVERFLOW, "========= ERROR SUMMARY: 0 errors"])
def test_a_tool_that_overruns_loses_no_other(tmp_path, monkeypatch, planted):
    tool, log, here = tmp_path / "tool", tmp_path / "calls", stages.Run(tmp_path, False)
    tool.write_text(SANITIZER.format(python=sys.executable, log=log, planted=planted))
    tool.chmod(0o755)
    monkeypatch.setattr(stages, "find_tool", lambda _: str(tool))
    monkeypatch.setattr(stages, "GRACE", 1.0)
    verdict = stages.sanitizers(here, 20.0)
    if planted != OVERFLOW:  # the filter, or the tool, sees nothing at all
        assert verdict.startswith("FAILED: memcheck not run: memcheck does not notice a planted error")
        return
    assert verdict == (
        "OVERRAN: memcheck overran, 5 kernels seen; racecheck 0 errors, 90 kernels seen; "
        "initcheck 0 errors, 90 kernels seen"
    )
    names = subprocess.run([sys.executable, ROOT / "tests/every_kernel.py", "--names"], capture_output=True, text=True)
    count = len(names.stdout.split())
    assert count > 25
    ours = f"{count} True"
    assert log.read_text().splitlines() == [
        *(f"memcheck {ours}", f"memcheck {ours}", f"racecheck {ours}", "initcheck 0 False"),
    ]
    assert json.loads((tmp_path / "results.json").read_text())["sanitizers"]["racecheck"]["errors"] == 0
    again = stages.sanitizers(here, 20.0)
    assert again.startswith("memcheck 0 errors, 90 kernels seen; racecheck 0 errors")
    assert log.read_text().split().count("racecheck") == 1  # the others rest
    assert "| memcheck | 90 | 0 | - | 0 | 0 |" in report.page({"stages": {}, "sanitizers": here.found["sanitizers"]})


def test_tests_that_passed_rest_in_the_next_run(tmp_path, monkeypatch):
    commands, outputs = [], iter(["t.py::a[1] PASSED [1%]\nt.py::b PASSED [2%]\nt.py::c[2] FAILED [3%]\n", PYTEST])

    def run(command, *_):
        commands.append([*command[:-1], Path(command[-1][1:]).read_text()] if command[-1][0] == "@" else command)
        return stages.Outcome(None, next(outputs))

    monkeypatch.setattr(stages, "run", run)
    here = stages.Run(tmp_path, False)
    assert stages.gpu_tests(here, 9.0) == "OVERRAN: 1 failed, 2 passed, 1 failures so far"
    assert "and 2 in an earlier run" in stages.gpu_tests(here, 9.0)
    assert commands[1][-1] == "--deselect=t.py::a[1]\n"  # t.py::b is also how t.py::best begins
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "noted", "code", "verdict"),
    [
        ("smoke", {"smoke": [{"agrees": True, "captured": True}]}, 0, "1 of 1 agree with float64, 1 captured"),
        (
            "smoke",
            {"smoke": [{"agrees": True, "captured": False, "cuda": True, "why": "no nvmath"}]},
            0,
            "FAILED: 1 of 1 agree with float64, 0 captured; NOT CAPTURED: no nvmath",
        ),
        ("floors", {"floors": [{}], "floors-planned": 9}, 0, "OVERRAN: 1 of 9 figures, 0 failed"),
        ("smoke", {"smoke": [{"agrees": False}]}, 0, "FAILED: 0 of 1 agree with float64, 0 captured"),
        ("smoke", {}, 1, "FAILED (1): 0 of 0 agree with float64, 0 captured"),
        ("floors", {"floors": [{}, {"failed": "x"}]}, 0, "FAILED: 2 figures, 1 failed"),
        ("kernels", {"kernels": [{}, {}]}, None, "OVERRAN: 2 figures, 0 failed"),
        ("race-rest", {"race-rest": {"cells": [1], "cells_planned": 9}}, None, "OVERRAN: 1 of 9 cells"),
        ("race-rest", {}, 0, "FAILED: 0 of ? cells"),
    ],
)
def test_the_verdict_of_a_job(name, noted, code, verdict):
    assert stages.job_verdict(name, noted, code) == verdict


# Criteria.


def race_of(cells, precision="float32"):
    """A race's content: (net, batch) and the rates of each peer."""
    names = list(dict.fromkeys(name for rates in cells.values() for name in rates))
    return {
        "peers": {name: {"own": name == "gpubp", "facts": {"version": "1"}} for name in names},
        "cells": [
            {
                "net": net,
                "optimizer": "sgd",
                "batch": batch,
                "precision": precision,
                "peers": {name: {"rounds": [rate], "samples_per_second": rate} for name, rate in rates.items()},
            }
            for (net, batch), rates in cells.items()
        ],
    }


LARGEST = "4096-4096-4096-4096-4096"


def test_nothing_measured_is_neither_met_nor_missed():
    every = report.verdicts({"stages": {}})
    assert [one.word for one in every] == ["not measured"] * 5
    assert [len(one.unmeasured) for one in every][:4] == [64, 32, 16, 4]
    assert all(f"{size} MiB" in "".join(every[4].unmeasured) for size in (64, 256))
    page = report.page({"stages": {}})
    assert "784-512-512-10 sgd 4,096 tf32" in page
    assert "| not measured | no figure |" in page


def all_races(**rates):
    """A race in every step that the criteria are about, all with the same rates."""
    cells = [race_of({(net, batch): rates}, precision)["cells"][0] | {"optimizer": optimizer}
             for net, optimizer, batch, precision in report.race_steps()]  # fmt: skip
    return {**race_of({("5-3", 1): rates}), "cells": cells}


def test_only_all_cells_meet_a_criterion():
    found = {"race-rest": all_races(gpubp=40.0, torch=10.0)}
    assert [report.ahead(found).word, report.ahead_of_eager(found).word] == ["met", "met"]
    assert report.ahead(found).figures == "64 of 64; the worst is 4.00"
    gone = found["race-rest"]["cells"].pop()
    verdict = report.ahead(found)
    assert (verdict.word, verdict.figures) == ("not measured", "63 of 64; the worst is 4.00; 1 not measured")
    assert len(verdict.unmeasured) == 1
    gone["peers"]["gpubp"] = {"failed": "no memory"}
    found["race-rest"]["cells"].append(gone)
    verdict = report.ahead(found)
    assert verdict.word == "MISSED"
    assert [figure for _, figure in verdict.missed] == ["no figure of gpubp: no memory"]


def test_the_worse_of_two_races_counts_and_absent_peers_are_named():
    found = {"race-first": all_races(gpubp=40.0, torch=10.0)}
    found["race-first"]["peers"]["jax"] = {"own": False, "absent": "not installed"}
    found["race-first-max"] = race_of({(work.LARGE, 4096): {"gpubp": 9.0, "torch-compile-max": 10.0}})
    verdict = report.ahead(found)
    assert verdict.missed == (("784-512-512-10 sgd 4,096 against torch-compile-max", "0.90"),)
    assert verdict.figures.endswith("; without jax")


def test_criteria_of_the_race():
    found = {
        "race-first": race_of({("5-3", 32): {"gpubp": 40.0, "torch": 10.0, "jax": 30.0}}),
        "race-tf32": race_of({(LARGEST, 4096): {"gpubp": 9.0, "torch": 10.0}}, "tf32"),
    }
    assert report.ahead_of_eager(found).figures == "1 of 33; the worst is 4.00; 32 not measured"
    ahead = report.ahead(found)
    assert ahead.word == "MISSED"
    assert ahead.missed == (("4096x4 sgd 4,096 tf32 against torch", "0.90"),)
    found["race-first"]["cells"][0]["peers"]["torch"] = {"rounds": [20.0], "samples_per_second": 20.0}
    assert report.ahead_of_eager(found).word == "MISSED"


def every_floor(**more):
    row = {"times_floor": 1.2, "seconds_per_node": 1.9e-6, "captured": True, "why": None, **more}
    return [
        {**row, "net": net, "optimizer": optimizer, "batch": batch, "precision": precision}
        for net in work.NETS
        for optimizer in ("sgd", "adam")
        for batch in (32, 4096, 65536)
        for precision in ("float32", "tf32")
    ]


def test_criteria_of_floors():
    rows = every_floor()
    found = {"floors": rows}
    assert [report.near_floor(found).word, report.quick_nodes(found).word] == ["met", "met"]
    for row in rows:
        if row["batch"] == 32 or row["net"] in ("64-64-64-64-10", "784-128-10"):
            row["times_floor"] = 9.0  # too small to count
    assert report.near_floor(found).figures == "16 of 16; the worst is 1.20"
    (one,) = (row for row in rows if (row["net"], row["optimizer"], row["batch"]) == (LARGEST, "adam", 65536)
              and row["precision"] == "tf32")  # fmt: skip
    one["times_floor"] = 1.3
    assert report.near_floor(found).missed == (("4096x4 adam 65,536 tf32", "1.30"),)
    rows.remove(one)
    assert report.near_floor(found).word == "not measured"
    (small,) = (row for row in rows if (row["net"], row["optimizer"], row["batch"]) == ("784-128-10", "sgd", 32)
                and row["precision"] == "float32")  # fmt: skip
    small["seconds_per_node"] = 3e-6
    assert report.quick_nodes(found).missed == (("784-128-10 sgd 32", "3.00 us"),)
    small.update(captured=False, why="no nvmath", seconds_per_node=1e-6)
    assert report.quick_nodes(found).missed == (("784-128-10 sgd 32", "not captured: no nvmath"),)
    small["failed"] = "no memory"
    assert report.quick_nodes(found).missed == (("784-128-10 sgd 32", "no memory"),)
    page = report.page({"stages": {}, "floors": [small]})
    assert "### Missed cells" in page
    assert "| 784-128-10 sgd 32 | no memory |" in page


def test_the_criterion_of_kernels_is_about_passes_over_memory():
    rows = [
        {"kernel": name, "size": size, "share_of_copy": 0.1 if name.startswith(report.NOT_BOUND) else 0.86}
        for name in work.kernels.operations()
        for size in ("4 KiB", "64 MiB", "256 MiB")
    ]
    for row in rows:
        if row["size"] == "4 KiB":
            row["share_of_copy"] = 0.1
    found = {"kernels": rows}
    assert report.near_copy(found).met
    assert report.near_copy(found).figures.endswith("; the worst is 0.86")
    bad = next(row for row in rows if (row["kernel"], row["size"]) == ("update adam", "64 MiB"))
    bad["share_of_copy"] = 0.84
    assert report.near_copy(found).missed == (("update adam 64 MiB", "0.84"),)
    bad["failed"] = "no memory"
    assert report.near_copy(found).missed == (("update adam 64 MiB", "no memory"),)
    rows.remove(bad)
    assert report.near_copy(found).word == "not measured"


def test_many_that_miss_are_counted():
    found = {"race-first": race_of({("5-3", batch): {"gpubp": 1.0, "torch": 2.0} for batch in range(1, 12)})}
    verdict = report.ahead(found)
    assert verdict.figures.endswith(" and 3 more")
    assert len(verdict.missed) == 11
