"""`benchmarks/on_a_gpu.py`: its stages keep to their time, lose nothing, and what other programs print is read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpubp.benchmarking import benchmarks_module

stages, running = map(benchmarks_module, ("gpu_stages", "gpu_run"))
ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "on_a_gpu.py"
MISSING = ("nvmath", "platformdirs", "numba", "typer", "rich", "safetensors", "threadpoolctl")
HIDING = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = classmethod(lambda _, name, *more: None if name in {} else find(name, *more))
"""


@pytest.fixture(autouse=True)
def in_this_checkout(monkeypatch):
    """The stages run programs of the checkout: those of an installed package would look for them beside themselves."""
    for module in (stages, running):
        monkeypatch.setattr(module, "ROOT", ROOT)


def start(folder, site):
    command = [sys.executable, SCRIPT, "--pretend", "--out", folder, "--minutes", "3"]
    # Plugins of pytest may need what is hidden.
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
def test_pretending_on_a_bare_machine_goes_on_where_it_was_killed(tmp_path):
    """The first run is killed within a job, the second is asked to end, the third does what is missing."""
    site, folder = tmp_path / "site", tmp_path / "out"
    site.mkdir()
    (site / "sitecustomize.py").write_text(HIDING.format(MISSING))

    def known():
        return json.loads((folder / "results.json").read_text())

    def rows(name):
        return known().get(name, {}).get("rows", [])

    with start(folder, site) as first:
        while not (folder / "results.json").exists() or not rows("smoke"):
            assert first.poll() is None
            time.sleep(0.02)
        first.kill()
    kept = rows("smoke")[0]
    with start(folder, site) as second:
        while not second.stdout.readline().startswith("floors: "):
            assert second.poll() is None
        second.send_signal(signal.SIGTERM)
        assert "\nstopped\n" in f"\n{second.communicate(timeout=60)[0]}"
    floors = known()["floors"]
    began = time.monotonic()
    with start(folder, site) as third:
        told, _ = third.communicate(timeout=200)
    assert time.monotonic() - began < 180
    assert third.returncode == 0, told
    found = known()
    assert found["smoke"]["rows"][0] == kept
    assert found["floors"] == floors
    assert len(found["runs"]) >= 2
    verdicts = {name: stage["verdict"] for name, stage in found["stages"].items()}
    assert list(verdicts) == [stage.name for stage in stages.STAGES]
    assert all(name in verdicts["facts"] for name in MISSING)
    assert verdicts["smoke"] == verdicts["floors"] == "8 of 8"
    assert {verdicts[name] for name in ("race", "race-compile", "race-tf32")} == {"2 of 2"}
    for cell in found["race"]["cells"]:
        assert all(entry["samples_per_second"] > 0 for entry in cell["peers"].values())
        assert set(cell["peers"]) == {"gpubp", "numpy-naive"}
    assert verdicts["pytest"].endswith(" passed")
    assert verdicts["bandwidth"] == "{0} of {0}".format(len(found["bandwidth"]["rows"]))
    for name in ("compile", "kernels", "memcheck"):
        assert verdicts[name].startswith("not run: ")
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["log.txt", "report.md", "results.json"]
    assert {path.parent for path in files} == {folder}
    page = (folder / "report.md").read_text()
    assert page in told
    for words in ("## race-tf32", "| update adam |", "| 6-5-3 | adam | 8 | float32 |"):
        assert words in page
    assert told.rstrip().splitlines()[-1].startswith("not measured: kernels at least 85% of the copy's bandwidth")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "smoke,nothing"], "there is no stage nothing; there are facts, compile"),
        (["--minutes", "0"], "--minutes: a positive number"),
    ],
)
def test_refusals(arguments, said):
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr


# The time.


class Machine:
    """A machine on which stages take a given time, whatever they are given; what is left goes on in the next turn."""

    def __init__(self, folder, needed):
        self.folder, self.now, self.needed, self.spent, self.turns = folder, 0.0, needed, {}, []
        self.stages = [running.Stage(s.name, self.work, s.most, s.least, s.goes_on, s.always) for s in stages.STAGES]

    def work(self, here, stage, seconds):
        before = self.spent.get(stage.name, 0.0) if stage.goes_on else 0.0
        took = min(self.needed(stage) - before, seconds)
        self.now += took
        self.spent[stage.name] = before + took
        self.turns.append(stage.name)
        whole = before + took == self.needed(stage)
        return ("done" if whole else "a part"), whole

    def run(self, seconds):
        began, here = self.now, running.Run(self.folder, False)
        here.load()
        running.run_stages(self.stages, here, running.Budget(seconds, lambda: self.now), lambda _: None)
        here.save()
        assert self.now - began <= seconds - running.RESERVE
        return {name: stage["verdict"] for name, stage in here.found["stages"].items()}


def test_the_limits_add_up_to_what_one_run_or_two_have():
    once = sum(stage.most for stage in stages.STAGES)
    twice = once + sum(stage.most for stage in stages.STAGES if stage.always)
    assert once + running.RESERVE <= 530
    assert twice + 2 * running.RESERVE <= 2 * 270
    assert all(stage.least <= stage.most for stage in stages.STAGES)


@pytest.mark.parametrize("runs", [[530], [270, 270]])
def test_every_stage_has_its_whole_time(tmp_path, runs):
    machine = Machine(tmp_path, lambda stage: stage.most)
    *_, last = [machine.run(seconds) for seconds in runs]
    assert last == {stage.name: "done" for stage in stages.STAGES}
    again = [stage.name for stage in stages.STAGES if stage.always]
    assert machine.turns == [stage.name for stage in stages.STAGES[:6]] + again * (len(runs) - 1) + [
        stage.name for stage in stages.STAGES[6:]
    ]


@pytest.mark.parametrize("seconds", [20, 60, 130, 270, 530])
def test_a_run_keeps_to_its_time_whatever_its_stages_want(tmp_path, seconds):
    Machine(tmp_path, lambda stage: stage.most + 1000).run(seconds)


def test_what_is_not_finished_goes_on_when_all_had_their_turn(tmp_path):
    machine = Machine(tmp_path, lambda stage: stage.most + 20 * (stage.name in ("smoke", "kernels")))
    verdicts = machine.run(700)
    assert machine.turns[:-1] == [stage.name for stage in stages.STAGES]
    assert machine.turns[-1] == "smoke"  # a program that begins anew would have as little time again
    assert {name for name, verdict in verdicts.items() if verdict != "done"} == {"kernels"}
    machine.run(270)
    assert machine.turns[-2:] == ["facts", "compile"]


def test_a_stage_that_hangs_is_ended_and_the_rest_run(tmp_path, monkeypatch):
    """It does not listen when it is asked to end, and has a child."""
    monkeypatch.setattr(running, "GRACE", 0.5)
    hanging = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        "print(child.pid, flush=True); time.sleep(600)"
    )

    def work(code):
        def run(here, stage, seconds):
            outcome = here.run([sys.executable, "-c", code], seconds)
            here.found[stage.name] = outcome.text
            return outcome.how + outcome.last, outcome.code is not None

        return run

    def fails(here, stage, seconds):
        raise OSError("no such tool")

    some = [
        running.Stage("hangs", work(hanging), 2, 0),
        running.Stage("fails", fails, 2, 0),
        running.Stage("dies", work("import os; print('the device is lost', flush=True); os.abort()"), 20, 0),
        running.Stage("works", work("print('fine')"), 20, 0),
    ]
    here, began = running.Run(tmp_path, False), time.monotonic()
    running.run_stages(some, here, running.Budget(60), lambda _: None)
    assert time.monotonic() - began < 30
    verdicts = {name: stage["verdict"] for name, stage in here.found["stages"].items()}
    pid = int(here.found["hangs"])
    assert verdicts["hangs"].startswith(("ended after 2 s: ", "ended after 3 s: "))
    assert verdicts["fails"] == "FAILED: OSError: no such tool"
    assert verdicts["dies"] == f"FAILED ({-signal.SIGABRT}): the device is lost"
    assert verdicts["works"] == "fine"
    assert json.loads((tmp_path / "results.json").read_text()) == here.found
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_log_of_a_command_loses_its_middle(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "MOST_LOG", 400)
    here = running.Run(tmp_path, False)
    assert here.run([sys.executable, "-c", "print('a' * 1000 + 'b' * 1000)"], 20).text == "a" * 1000 + "b" * 1000 + "\n"
    assert "\n" + "a" * 100 + "\n[...]\n" + "b" * 199 + "\n" in (tmp_path / "log.txt").read_text()
    assert "no-such-program" in here.run(["no-such-program"], 2).text


# Whose results.


def test_a_job_whose_run_was_killed_writes_no_more(tmp_path, monkeypatch):
    """Another run may have begun, and have noted more."""
    parents = iter([7, 7, 1])
    monkeypatch.setattr(stages.os, "getppid", lambda: next(parents))
    monkeypatch.setitem(stages.JOBS, "smoke", lambda place, note: [note("smoke", k) for k in range(2)])
    path = tmp_path / "results.json"
    path.write_text("{}")
    with pytest.raises(SystemExit, match="the run was killed"):
        stages.do("smoke", True, 9.0, path)
    assert json.loads(path.read_text()) == {"smoke": 0}


def test_figures_of_another_card_do_not_mix(tmp_path, monkeypatch):
    outputs = iter(["H100, 580\n", "H200, 580\n"])

    def run(self, command, *_):
        return running.Outcome(0, next(outputs) if command[0] == "nvidia-smi" else "")

    monkeypatch.setattr(running.Run, "run", run)
    facts = [stage for stage in stages.STAGES if stage.name == "facts"]
    for words in (None, r"another card \(H100, 580; here is H200, 580\)"):
        here = running.Run(tmp_path, False)
        here.load()
        if words is None:
            running.run_stages(facts, here, running.Budget(60), lambda _: None)
            before = (tmp_path / "results.json").read_text()
        else:
            with pytest.raises(running.OtherMachineError, match=words):
                running.run_stages(facts, here, running.Budget(60), lambda _: None)
    assert (tmp_path / "results.json").read_text() == before


@pytest.mark.parametrize("text", ["{", '{"pretend": true, "stages": {}}'])
def test_other_results_in_the_folder_are_refused(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(running.DataError, match="choose another --out"):
        running.Run(tmp_path, False).load()


# What other programs print.


def test_every_file_with_a_check_for_a_card_is_named(request):
    files = {
        str(item.path.relative_to(ROOT))
        for item in request.session.items
        if item.get_closest_marker("gpu") and "benchmarks" not in item.path.parts
    }
    assert files <= set(stages.gpu_test_files())
    assert {"tests/test_ops_softmax.py", "tests/test_device_plan.py"} <= set(stages.gpu_test_files())
    assert "tests/test_cost.py" not in stages.gpu_test_files()


PYTEST = """
[gw0] [  5%] PASSED tests/test_plan.py::test_c[cuda x]
[gw11] [100%] FAILED tests/test_plan.py::test_a[cuda-32]
tests/test_plan.py::test_d SKIPPED (no such thing)   [  3%]
the device was lost first in tests/test_plan.py::test_a[cuda-32]: cuda:0 failed
FAILED tests/test_plan.py::test_a[cuda-32] - AssertionError: off
ERROR tests/test_devices.py - ModuleNotFoundError: No module named 'onnx'
"""


def test_reading_pytest():
    found = stages.read_pytest(PYTEST)
    assert found["counts"] == {"failed": 1, "passed": 1, "skipped": 1}
    assert found["failed"] == [
        "the device was lost first in tests/test_plan.py::test_a[cuda-32]: cuda:0 failed",
        "tests/test_plan.py::test_a[cuda-32] - AssertionError: off",
        "tests/test_devices.py - ModuleNotFoundError: No module named 'onnx'",
    ]


def test_the_tests_run_in_several_processes_by_file(tmp_path, monkeypatch):
    commands = []

    def run(self, command, seconds, environment):
        commands.append((command, environment))
        return running.Outcome(None, PYTEST, 9.0)

    monkeypatch.setattr(running.Run, "run", run)
    monkeypatch.setattr(stages.machine, "usable_cores", lambda: 16)
    (stage,) = (stage for stage in stages.STAGES if stage.name == "pytest")
    here = running.Run(tmp_path, False)
    assert stage.work(here, stage, 9.0) == ("ended after 9 s: 1 failed, 1 passed, 1 skipped", False)
    ((command, environment),) = commands
    assert command[command.index("-n") + 1] == "12"
    assert "tests/test_cublas.py" in command
    assert environment == {"GPUBP_REQUIRE_GPU": "1"}
    assert here.found["pytest"]["whole"] is False


DONE = "  8.1 s: operations done, 192 kernels launched, 4778 arrays compared"


@pytest.mark.parametrize(
    ("text", "code", "found"),
    [
        (f"{DONE}\n192 kernels launched, 9 arrays compared, 0 wrong\n", 0, (0, "192 kernels launched, 9 arrays", True)),
        ("2 of 3 kernels compiled in 1 s\nWRONG: adam<float>: no\n", 1, (1, "2 of 3 kernels compiled in 1 s", True)),
        (f"{DONE}\nTraceback\nRuntimeError: an illegal memory access\n", 1, (1, "RuntimeError: an illegal", False)),
        (f"{DONE}\n", None, (0, DONE.strip(), False)),
        ("", -6, (1, "nothing was printed", False)),
    ],
)
def test_reading_every_kernel(text, code, found):
    read = stages.read_every_kernel(running.Outcome(code, text))
    wrong, last, whole = found
    assert (len(read["wrong"]), read["whole"]) == (wrong, whole)
    assert read["last"].startswith(last)


OVERFLOW = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at void combine<float>(float *, const float *, long long, int, float, float)+0x1f0
=========     by thread (64,0,0) in block (0,0,0)
========= Invalid __global__ read of size 16 bytes
=========     at 0x7f0 in void cutlass::Kernel2<X>(T1::Params)
========= ERROR SUMMARY: 2 errors
"""
REFUSED = "========= Error: Device not supported. Please refer to the documentation\n"


def test_reading_memcheck():
    assert stages.read_memcheck(OVERFLOW, ["adam", "combine"]) == {"combine": 1}
    assert stages.read_memcheck(REFUSED, ["adam", "combine"]) == {}


TOOL = """#!{python}
import sys
print({planted!r} if "--planted" in sys.argv else {rest!r})
assert "kernel_substring=_Z4adamI" in sys.argv
"""


@pytest.mark.parametrize(
    ("planted", "rest", "verdict", "found"),
    [
        (REFUSED, "", "not run: Error: Device not supported. Please refer to the documentation", None),
        ("========= ERROR SUMMARY: 0 errors\n", "", "not run: a planted error is not noticed", None),
        (OVERFLOW, f"{DONE}\n", f"errors: none; {DONE.strip()}", {"errors": {}, "whole": True}),
        (
            OVERFLOW,
            OVERFLOW + DONE,
            f"FAILED: errors: 1 in combine; {DONE.strip()}",
            {"errors": {"combine": 1}, "whole": True},
        ),
    ],
)
def test_a_refusal_of_memcheck_is_a_finding(tmp_path, monkeypatch, planted, rest, verdict, found):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(TOOL.format(python=sys.executable, planted=planted, rest=rest))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (stage,) = (stage for stage in stages.STAGES if stage.name == "memcheck")
    here = running.Run(tmp_path, False)
    assert stage.work(here, stage, 60.0) == (verdict, True)
    assert here.found.get("memcheck") == found
