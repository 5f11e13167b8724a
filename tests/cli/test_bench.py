"""``gpubp bench``: runs from end to end, keeps what it has when interrupted, and refuses what it can't do."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from command_line import ROOT, environment, process, refused, run

import gpubp

TINY = ["--nets", "6-5-3", "--seconds", "0.002", "--rounds", "2", "--data-rows", "64", "--threads", "1"]
FEW = ["--peers", "gpubp,numpy-naive,torch-graph"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run: its outcome, and its folder."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("threadpoolctl")
    folder = tmp_path_factory.mktemp("bench")
    outcome = process("bench", *TINY, *FEW, "--batch-sizes", "8,1", cwd=folder)
    assert outcome.returncode == 0, outcome.stderr
    return outcome, folder


@pytest.fixture
def measured(finished, folder):
    """The results of that run, in the folder to work in."""
    (folder / "old.json").write_bytes((finished[1] / "bench.json").read_bytes())
    return folder / "old.json"


def test_a_run_from_end_to_end(finished):
    outcome, folder = finished
    assert sorted(path.name for path in folder.iterdir()) == ["bench.json", "bench.png"]
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")
    for said in (
        "\nCPU: ",
        "\nBLAS: ",
        "\nprecision: float32\n",
        "\ndevice: cpu, 1 threads for each peer\n",
        "\ntiming: median of 2 rounds of 0.002 s",
        "\nchecked: three steps of every peer against float64, within 0.0001, and in the mean of each array within ",
        " 0.1% of what they change\n",
        "\ncommand: gpubp bench --nets 6-5-3",
        "\ntorch-graph: ABSENT, ",
        "\n6-5-3, sgd\nbatch ",
        "\n6-5-3, adam\nbatch ",
        "\n6-5-3, sgd: at batch 1",
    ):
        assert said in outcome.stdout
    lines = [line for line in outcome.stderr.splitlines() if not line.startswith("note: ")]
    assert [line.split(": ")[:2] for line in lines] == [
        [f"{k} of 4", f"6-5-3, {optimizer}, batch {batch}"]
        for k, (optimizer, batch) in enumerate([("sgd", 1), ("sgd", 8), ("adam", 1), ("adam", 8)], 1)
    ]
    content = json.loads((folder / "bench.json").read_text())
    assert [(cell["optimizer"], cell["batch"]) for cell in content["cells"]] == [
        ("sgd", 1), ("sgd", 8), ("adam", 1), ("adam", 8),
    ]  # fmt: skip
    for cell in content["cells"]:
        assert set(cell["peers"]) == {"gpubp", "numpy-naive"}
        assert all(entry["samples_per_second"] > 0 for entry in cell["peers"].values())
        assert cell["floor_samples_per_second"] > 0
    assert "1 threads" in content["peers"]["numpy-naive"]["facts"]["pools"]


@pytest.mark.parametrize("work", ["forward", "gradients"])
def test_other_work(folder, work):
    pytest.importorskip("threadpoolctl")
    outcome = process("bench", *TINY, *FEW, "--batch-sizes", "4", "--work", work, cwd=folder)
    assert outcome.returncode == 0, outcome.stderr
    assert "6-5-3, no optimizer: at batch 4" in outcome.stdout
    (cell,) = json.loads(Path("bench.json").read_text())["cells"]
    assert cell["work"] == work
    assert cell["floor_samples_per_second"] > 0


def test_a_report_measures_nothing(measured):
    outcome = run("bench", "--report", measured.name, "--plot", "again.svg")
    assert outcome.exit_code == 0
    assert "\n6-5-3, sgd: at batch 1" in outcome.stdout
    assert Path("again.svg").read_bytes().startswith(b"<?xml")
    assert sorted(path.name for path in Path().iterdir()) == ["again.svg", "old.json"]


def test_a_report_refuses_what_it_would_ignore(measured):
    said = refused("bench", "--report", measured.name, "--seconds", "0.3", "--batch-sizes", "8", "--quick", code=2)
    assert "--report measures nothing, and would ignore --seconds, --batch-sizes, --quick: leave out one" in said
    assert not Path("old.png").exists()


def test_a_report_of_nothing(folder):
    assert "nothing.json: No such file or directory" in refused("bench", "--report", "nothing.json", code=1)


def test_files_of_another_shape_are_refused_before_anything_is_measured(measured):
    content = json.loads(measured.read_text())
    del content["settings"]
    Path("broken.json").write_text(json.dumps(content))
    why = "broken.json is not a whole file of gpubp bench: the file has no 'settings', or one of another kind"
    few = [*TINY, *FEW, "--batch-sizes", "1"]
    for arguments in (["--report", "broken.json"], ["--compare", "broken.json", *few]):
        assert why in refused("bench", *arguments, code=1)
    assert ".: Is a directory" in refused("bench", "--report", ".", code=1)


def test_without_a_name_nothing_is_overwritten(folder):
    from gpubp.cli.bench import _free_name

    for taken, free in (
        ("bench.txt", "bench.json"),
        ("bench.png", "bench-2.json"),
        ("bench-2.json", "bench-3.json"),
    ):
        Path(taken).touch()
        assert _free_name() == Path(free)


def test_results_without_a_name_go_beside_those_of_before(finished, folder):
    pytest.importorskip("threadpoolctl")
    Path("bench.json").write_text("of before")
    outcome = process("bench", *TINY, *FEW, "--optimizers", "sgd", "--batch-sizes", "1", cwd=folder)
    assert outcome.returncode == 0, outcome.stderr
    assert outcome.stdout.endswith("\nplot: bench-2.png\nresults: bench-2.json\n")
    assert Path("bench.json").read_text() == "of before"
    assert sorted(path.name for path in folder.iterdir()) == ["bench-2.json", "bench-2.png", "bench.json"]


def test_what_is_done_otherwise_than_asked_for_is_told(capsys):
    from gpubp.cli import bench

    bench._tell_changes(None, 64, None)
    bench._tell_changes(64, 64, bench._usable_cores())
    assert capsys.readouterr().err == ""
    bench._tell_changes(63, 64, bench._usable_cores() + 1)
    rows, threads = capsys.readouterr().err.splitlines()
    assert rows.startswith("note: --data-rows 63 is below the largest batch")
    assert rows.endswith("here 64")
    assert threads.startswith(f"note: --threads {bench._usable_cores() + 1} is more than the")


def test_before_and_after(measured):
    content = json.loads(measured.read_text())
    for cell in content["cells"]:
        cell["peers"]["gpubp"]["samples_per_second"] *= 2
    content["machine"]["CPU"] = "another"
    Path("new.json").write_text(json.dumps(content))
    outcome = run("bench", "--report", "new.json", "--compare", measured.name)
    assert outcome.exit_code == 0
    assert "6-5-3, sgd: gpubp is 2.00 times as fast as before" in outcome.stdout
    assert "\n    8  2.00x        1.00x\n" in outcome.stdout
    assert " before, another now" in outcome.stdout


def test_markdown(measured):
    lines = run("bench", "--report", measured.name, "--markdown").stdout.splitlines()
    assert "| batch | gpubp | numpy-naive |" in lines
    assert "| ---: | ---: | ---: |" in lines
    assert "### Verdict" in lines


def test_an_unfinished_run_says_so(measured):
    content = json.loads(measured.read_text())
    del content["cells"][1:]
    measured.write_text(json.dumps(content))
    assert "\nNOT COMPLETE: 1 of 4 cases\n" in run("bench", "--report", measured.name).stdout


def children(pid):
    """The processes that a process has started and that are still there."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="/proc")
@pytest.mark.parametrize(
    ("by", "busy_with", "code"),
    [(signal.SIGINT, "rounds", 130), (signal.SIGINT, "start", 130), (signal.SIGTERM, "rounds", 143)],
)
def test_an_end_from_outside_keeps_what_there_is(folder, monkeypatch, by, busy_with, code):
    pytest.importorskip("threadpoolctl")
    (temporary := folder.parent / f"{folder.name}-temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    batches = ",".join(map(str, range(1, 60)))
    command = [sys.executable, "-m", "gpubp", "bench", *TINY, *FEW, "--batch-sizes", batches]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder, env=environment()
    ) as running:
        if busy_with == "rounds":
            while not running.stderr.readline().startswith("3 of 118"):
                assert running.poll() is None
        else:
            while not (workers := children(running.pid)):
                time.sleep(0.01)
                assert running.poll() is None
        workers = children(running.pid)
        running.send_signal(by)
        out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (code, "")
    assert err.endswith("stopped\n") == (by == signal.SIGINT)
    assert not list(temporary.iterdir())
    assert workers
    until = time.monotonic() + 20  # one that was just being born ends by itself, when it finds nobody to talk to
    while any(map(runs, workers)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(runs, workers))
    if busy_with == "start":
        assert not list(folder.iterdir())
        return
    told = "cases are in bench.json; gpubp bench --report bench.json shows them"
    assert (told in err) == (by == signal.SIGINT)
    assert [path.name for path in folder.iterdir()] == ["bench.json"]
    assert len(json.loads(Path("bench.json").read_text())["cells"]) >= 3


def runs(pid):
    """Whether there is such a process, one that has ended and was not yet taken note of aside."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--nets", "784"], 2, "--nets 784: write widths"),
        (["--nets", "784-128-1"], 2, "classes (at least 2)"),
        (["--nets", "784-x-10"], 2, "write widths"),
        (["--nets", "6-5-3,"], 2, "--nets 6-5-3,: write widths"),
        (["--batch-sizes", "8,,4"], 2, "--batch-sizes 8,,4: write whole numbers"),
        (["--batch-sizes", ""], 2, "--batch-sizes : write whole numbers"),
        (["--precision", "tf32"], 2, "--precision tf32 needs a CUDA device, and this run is on the CPU"),
        (["--precision", "half"], 2, "--precision half: use float32 or tf32"),
        (["--batch-sizes", "1,0"], 2, "--batch-sizes 0: write whole numbers"),
        (["--optimizers", "sgd,rmsprop"], 2, "--optimizers sgd,rmsprop: use sgd and adam"),
        (["--optimizers", ","], 2, "use sgd and adam"),
        (["--peers", "torch,tensorflow"], 2, "tensorflow is no peer; there are gpubp, gpubp-numpy, numpy-naive"),
        (["--peers", ""], 2, "nobody is no peer"),
        (["--work", "sleep"], 2, "--work sleep: use step, forward, gradients"),
        (["--seconds", "0"], 2, "--seconds 0: a number above 0"),
        (["--timeout", "-1"], 2, "--timeout -1: a number above 0"),
        (["--device", "tpu"], 2, "unknown device 'tpu'"),
        (["--out", "nowhere/bench.json"], 2, "there is no directory nowhere"),
        (["--plot", "bench.doc"], 2, "Matplotlib does not draw such a file"),
        (["--out", "."], 2, "--out: . is a directory; name a file in it"),
        (["--out", "bench.png"], 2, "the plot goes by that name"),
        (["--compare", "nothing.json"], 1, "nothing.json: No such file or directory"),
    ],
)
def test_refusals(folder, arguments, code, said):
    pytest.importorskip("matplotlib")
    pytest.importorskip("threadpoolctl")
    assert said in refused("bench", *TINY, *FEW, "--batch-sizes", "1", *arguments, code=code)


def test_an_earlier_run_is_not_overwritten(measured):
    same = ["--compare", measured.name, "--out", measured.name]
    said = refused("bench", *TINY, *FEW, "--batch-sizes", "1", *same, code=2)
    assert "would overwrite an input" in said


@pytest.mark.parametrize("missing", ["matplotlib", "threadpoolctl"])
def test_what_is_missing_is_named_before_anything_is_measured(folder, monkeypatch, missing):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == missing else find_spec(name, *more)
    )
    assert f"gpubp bench needs {missing}: pip install 'gpubp[bench]'" in refused(
        "bench", *TINY, *FEW, "--batch-sizes", "1", code=1
    )


def test_without_the_cpu_kernels_a_note_and_the_verdict_say_so(folder, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("threadpoolctl")
    monkeypatch.setenv("GPUBP_CPU_KERNELS", "numpy")
    small = ["--optimizers", "sgd", "--batch-sizes", "1", "--peers", "gpubp,numpy-naive"]
    outcome = process("bench", *TINY, *small, cwd=folder)
    assert outcome.returncode == 0, outcome.stderr
    why = "without its compiled CPU kernels: GPUBP_CPU_KERNELS=numpy turns them off"
    assert f"note: gpubp is measured {why}\n" in outcome.stderr
    assert f"gpubp ran {why.replace('without', 'WITHOUT')}.\n" in outcome.stdout.partition("Verdict:")[2]


def test_with_the_cpu_kernels_nothing_is_said(finished, cpu_kernels):
    outcome, _ = finished
    assert "compiled CPU kernels" not in outcome.stdout + outcome.stderr


def test_the_extra_brings_the_cpu_kernels():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "gpubp[cpu]" in project["optional-dependencies"]["bench"]


def test_quick_and_full_cases():
    from gpubp.cli.bench import _cases, benchmarks_module

    cases = benchmarks_module("cases")
    full = _cases(None, "sgd,adam", None, "step", "cpu")
    assert len(full) == 3 * 2 * 9
    assert {case.device for case in full} == {"cpu"}
    assert set(_cases(None, "sgd", None, "step", "cuda:1")) >= {
        cases.Case(cases.GPU_NETS[0], "sgd", 8192, "step", "cuda"),
        cases.Case(cases.NETS[0], "sgd", 1, "step", "cuda"),
    }
    tf32 = _cases("6-5-3", "sgd", "8", "step", "cuda", "tf32")
    assert tf32 == (cases.Case("6-5-3", "sgd", 8, "step", "cuda", "tf32"),)
    assert tf32[0].words == "6-5-3, sgd, batch 8, tf32"
    assert _cases("6-5-3", "adam,sgd", "8,1,8", "forward", "cpu") == (
        cases.Case("6-5-3", cases.NO_OPTIMIZER, 1, "forward"),
        cases.Case("6-5-3", cases.NO_OPTIMIZER, 8, "forward"),
    )


def test_whoever_is_left_out_does_not_run():
    from gpubp.cli.bench import _peers

    everybody = [peer.name for peer in _peers(None, {})]
    assert [peer.name for peer in _peers(None, {"torch": "why"})] == [name for name in everybody if name != "torch"]
    assert [peer.name for peer in _peers("thinc, gpubp", {})] == ["gpubp", "thinc"]


def test_quick_names_whom_it_leaves_out(folder):
    pytest.importorskip("threadpoolctl")
    outcome = process("bench", "--quick", "--nets", "6-5-3", "--batch-sizes", "1", "--seconds", "0.002", cwd=folder)
    assert outcome.returncode == 0, outcome.stderr
    assert "\ntorch-compile: ABSENT, left out by --quick" in outcome.stdout


def test_quick_ends_where_its_time_does(folder, monkeypatch):
    """Nothing can be measured in no time at all."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("threadpoolctl")
    from gpubp.cli import bench

    race = bench.benchmarks_module("race")
    monkeypatch.setattr(race.Race, "_measure_machine", lambda self: None)
    monkeypatch.setattr(bench, "_QUICK_DEADLINE", 0.0)
    outcome = run("bench", "--quick", "--peers", "numpy-naive", *TINY, "--batch-sizes", "1")
    assert (outcome.exit_code, outcome.stdout) == (1, "")
    assert outcome.stderr.splitlines()[-1].startswith("error: --quick: the time was up before the first case was done")
    assert not list(folder.iterdir())


def test_only_quick_has_a_deadline(folder, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip("threadpoolctl")
    from gpubp.cli import bench

    asked = []

    def noted(race, settings, out, results):
        asked.append(settings.deadline)
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "_run", noted)
    for arguments in (["--quick"], []):
        run("bench", *arguments, "--peers", "numpy-naive", *TINY, "--batch-sizes", "1")
    assert 90 < asked[0] < 100
    assert asked[1] is None


def test_peers_that_are_not_installed_are_told_before_anything_is_measured(capsys):
    from types import SimpleNamespace

    from gpubp.cli import bench

    peers = [
        SimpleNamespace(name="here", module="json", package="json"),
        SimpleNamespace(name="fast", module="no_such_module", package="no-such-package"),
        SimpleNamespace(name="faster", module="no_such_module", package="no-such-package"),
    ]
    bench._tell_missing(peers)
    told = "note: fast, faster will be absent, not being installed: pip install no-such-package\n"
    assert capsys.readouterr().err == told
    bench._tell_missing(peers[:1])
    assert capsys.readouterr().err == ""
    with pytest.raises(gpubp.GpubpError, match="^--peers: fast, faster .* pip install no-such-package$"):
        bench._tell_missing(peers[1:])
