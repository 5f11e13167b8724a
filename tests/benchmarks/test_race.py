"""The race: peers that go wrong are told and nobody waits for them, no process is left, and the words are right."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import types
import weakref
from pathlib import Path
from statistics import median

import pytest

from gpubp.cli.bench import benchmarks_module
from gpubp.errors import DataError

cases, picture, processes, race, results, tables, verdict, worker = map(
    benchmarks_module, ("cases", "picture", "processes", "race", "results", "tables", "verdict", "worker")
)
bad_peers = importlib.import_module("bad_peers")  # its own imports need those above
NET = "6-5-4-3"


def settings(names, batches=(1, 4), **more):
    """A race of peers that go wrong, as short as it can be."""
    known = {peer.name: peer for peer in bad_peers.PEERS}
    return race.Settings(
        **{
            "cases": tuple(cases.Case(NET, "sgd", batch) for batch in batches),
            "peers": tuple(known[name] for name in names),
            "device": "cpu",
            "threads": 1,
            "seconds": 0.002,
            "rounds": 2,
            "data_rows": 64,
            "timeout": 60.0,
            "ceilings_seconds": 0.001,
            **more,
        }
    )


@pytest.fixture(autouse=True)
def quick_machine(monkeypatch):
    """The machine's ceilings are not what is tested here, and take a second."""

    def measure(self):
        self.results.update(machine={}, ceilings={"flops_per_second": 1e9, "bytes_per_second": 1e9})
        self._ceilings = race.Ceilings(**self.results["ceilings"])
        self._costs = {case: [race.Cost("0 forward matmul", 1000, 1000)] for case in self.settings.cases}

    monkeypatch.setattr(race.Race, "_measure_machine", measure)


@pytest.fixture
def pids(monkeypatch):
    """The processes that a race starts, for a look whether they are gone."""
    started = []
    original = processes.WorkerProcess.__init__

    def noted(self, *args):
        original(self, *args)
        started.append(self.pid)

    monkeypatch.setattr(processes.WorkerProcess, "__init__", noted)
    yield started
    assert started
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def run(chosen):
    saved = []
    running = race.Race(chosen, "gpubp bench", lambda content: saved.append(len(content["cells"])), lambda *_: None)
    running.run()
    assert saved == [*range(1, len(chosen.cases) + 1), len(chosen.cases)]
    return running.results


def test_peers_that_go_wrong_are_told_and_the_race_goes_on(pids):
    found = run(settings(["good", "absent", "broken", "picky", "raising", "lazy", "hasty", "chatty"]))
    assert found["peers"]["absent"]["absent"] == "not installed: pip install no-such-package"
    assert found["peers"]["hasty"]["uncorrected_epsilon"] is False
    assert found["peers"]["broken"]["absent"].startswith("can't start: OSError: libnothing.so")
    for cell in found["cells"]:
        entries = cell["peers"]
        assert set(entries) == {"good", "picky", "raising", "lazy", "hasty", "chatty"}
        assert entries["picky"] == {"unsupported": "does odd batch sizes only"}
        assert entries["raising"] == {"failed": "ValueError: no such shape"}
        assert entries["lazy"]["disagrees"].startswith("off by")
        assert entries["hasty"]["disagrees"].startswith("off by")
        for name in ("good", "chatty"):
            assert len(entries[name]["rounds"]) == 2
            assert entries[name]["samples_per_second"] == median(entries[name]["rounds"])
        assert (cell["flops"], cell["bytes"]) == (1000, 1000)
        assert cell["floor_samples_per_second"] == pytest.approx(cell["batch"] / 1e-6)
        assert cell["checked_at_batch"] == cell["batch"]


def test_a_crash_costs_the_peer_its_cell_and_in_the_end_its_place(pids):
    words = {
        "crashing": "ended with exit code 3: last words",
        "lost": "ended with exit code 1: RuntimeError: CUDA error: an illegal memory access was encountered",
    }
    found = run(settings([*words, "good"], batches=(1, 2, 4)))
    for name, how in words.items():
        entries = [cell["peers"][name] for cell in found["cells"]]
        assert [entry["failed"] for entry in entries] == [how, how, f"not tried again: {how}"]
        assert entries[0]["rounds"] == [None, None]
    assert all(cell["peers"]["good"]["samples_per_second"] for cell in found["cells"])


def test_a_case_too_large_for_float64_is_checked_small_and_timed_whole(pids, monkeypatch):
    prepared, ask_all = [], race.Team.ask_all

    def noted(self, names, do, *more, **arguments):
        if do == "prepare":
            prepared.append(arguments["case"]["batch"])
        return ask_all(self, names, do, *more, **arguments)

    monkeypatch.setattr(race.Team, "ask_all", noted)
    monkeypatch.setattr(benchmarks_module("agreement"), "MOST_FLOPS", 6 * 3 * 3 * (6 * 5 + 5 * 4 + 4 * 3))
    (cell,) = run(settings(["good", "lazy"], batches=(8,)))["cells"]
    assert prepared == [2, 8]
    assert (cell["batch"], cell["checked_at_batch"]) == (8, 2)
    assert "disagrees" in cell["peers"]["lazy"]
    assert cell["peers"]["good"]["samples_per_second"]


def test_nobody_waits_for_a_peer_that_hangs(pids):
    began = time.monotonic()
    found = run(settings(["hanging", "good"], batches=(1,), timeout=2.0))
    assert time.monotonic() - began < 30
    assert found["cells"][0]["peers"]["hanging"]["failed"] == "no answer within 2 s"
    assert found["cells"][0]["peers"]["good"]["samples_per_second"]


def test_a_worker_ends_when_its_controller_is_gone(tmp_path):
    """Its standard input ends, as when the controller was killed; it is in the middle of a step that takes forever."""
    path = tmp_path / "data.npz"
    cases.make_data_set(NET, 64, path)
    hanging = processes.WorkerProcess(bad_peers.Hanging(), 1, "cpu")
    try:
        case = {"net": NET, "optimizer": "sgd", "batch": 4}
        assert hanging.ask("prepare", 60, case=case, data=str(path)) == {}
        hanging.ask("check", 60, results=str(tmp_path / "found.npz"))
        hanging.send("measure", seconds=1)
        time.sleep(0.2)
        hanging._process.stdin.close()
        assert hanging._process.wait(timeout=10) == 0
    finally:
        hanging.close()


def test_a_worker_is_deaf_to_ctrl_c():
    good = processes.WorkerProcess(bad_peers.Good(), 1, "cpu")
    try:
        assert "facts" in good.ask("start", 60)
        os.kill(good.pid, signal.SIGINT)
        assert good.ask("release", 60) == {}
    finally:
        good.close()


def test_a_command_before_its_time_is_an_error():
    good = processes.WorkerProcess(bad_peers.Good(), 1, "cpu")
    try:
        with pytest.raises(processes.WorkerError, match=r"RuntimeError: no case is prepared"):
            good.ask("measure", 60, seconds=1)
    finally:
        good.close()


def test_the_environment_of_a_worker(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    made = processes.worker_environment(bad_peers.Good(), 3, "cpu")
    limits = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "PJRT_NPROC")
    assert {made[name] for name in limits} == {"3"}
    assert (made["CUDA_VISIBLE_DEVICES"], made["JAX_PLATFORMS"]) == ("", "cpu")
    assert processes.worker_environment(bad_peers.Good(), 3, "cuda")["CUDA_VISIBLE_DEVICES"] == "4"
    assert processes.worker_environment(bad_peers.Good(), 3, "cuda:1")["CUDA_VISIBLE_DEVICES"] == "GPU-7"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert processes.worker_environment(bad_peers.Good(), 3, "cuda:1")["CUDA_VISIBLE_DEVICES"] == "1"


# The order of turns, with a team that plays its part.


class ScriptedTeam:
    """Answers at once: a turn takes a peer as many seconds as its script says."""

    def __init__(self, peers, threads, device, timeout, left):
        self.peers = {peer.name: peer for peer in peers}
        self.known = {}
        self.turns = []

    def start(self):
        self.known = {name: {"own": False, "facts": {"version": "1"}} for name in self.peers}

    def present(self):
        return {name: {} for name in self.peers}

    def ask_all(self, names, do, meanwhile=lambda: None, **arguments):
        return {name: {} for name in names}

    def ask(self, name, do, **arguments):
        self.turns.append(name)
        return self.answer(name)

    def answer(self, name):
        return {"step_seconds": {"good": 0.1, "chatty": 0.2, "picky": 0.4}[name]}

    def close(self):
        pass


@pytest.fixture
def scripted(monkeypatch):
    monkeypatch.setattr(race, "Team", ScriptedTeam)
    monkeypatch.setattr(race, "PAUSE", 0)
    monkeypatch.setattr(race.Race, "_check", lambda self, case, data, entries: case.batch)

    def make(batches=(2,), clock=time.monotonic, **more):
        chosen = settings(["good", "chatty", "picky"], batches=batches, **more)
        saved = []
        running = race.Race(
            chosen, "gpubp bench", lambda content: saved.append(len(content["cells"])), lambda *_: None, clock
        )
        running.saved = saved
        return running

    return make


def test_another_peer_begins_each_round(scripted):
    running = scripted(rounds=4)
    running.run()
    turns = running._team.turns
    order = ["good", "chatty", "picky"]
    assert [turns[k : k + 3] for k in range(0, 12, 3)] == [order, order[1:] + order[:1], order[2:] + order[:2], order]
    entries = running.results["cells"][0]["peers"]
    assert entries["chatty"] == {"rounds": [10.0] * 4, "samples_per_second": 10.0}


def test_an_interrupted_case_keeps_its_whole_rounds(scripted, monkeypatch):
    running = scripted(rounds=4)

    def answer(team, name):
        if len(team.turns) == 8:
            raise KeyboardInterrupt
        return {"step_seconds": 0.1}

    monkeypatch.setattr(ScriptedTeam, "answer", answer)
    with pytest.raises(KeyboardInterrupt):
        running.run()
    (cell,) = running.results["cells"]
    assert {len(entry["rounds"]) for entry in cell["peers"].values()} == {2}
    assert running.saved == [1]


def test_a_case_without_a_whole_round_is_not_kept(scripted, monkeypatch):
    running = scripted()

    def answer(team, name):
        raise KeyboardInterrupt

    monkeypatch.setattr(ScriptedTeam, "answer", answer)
    with pytest.raises(KeyboardInterrupt):
        running.run()
    assert running.results["cells"] == []
    assert running.saved == []


def test_a_budget_that_is_used_up_leaves_one_round(scripted):
    running = scripted(rounds=4, budget=1e-9)
    running.run()
    assert {len(entry["rounds"]) for entry in running.results["cells"][0]["peers"].values()} == {1}


def test_after_the_deadline_cases_are_left_out_and_named(scripted, monkeypatch):
    """Each turn takes ten seconds: the second case ends after 120 s, and the third one is not begun."""
    now = [0.0]

    def answer(team, name):
        now[0] += 10
        return {"step_seconds": 0.1}

    monkeypatch.setattr(ScriptedTeam, "answer", answer)
    running = scripted(batches=(1, 2, 4, 8), rounds=2, deadline=115.0, clock=lambda: now[0])
    running.run()
    assert now[0] == 120
    assert [cell["batch"] for cell in running.results["cells"]] == [1, 2]
    assert running.results["cells_left_out"] == [f"{NET}, sgd, batch 4", f"{NET}, sgd, batch 8"]


def test_nobody_is_waited_for_beyond_the_deadline(pids):
    """A peer hangs in the first case; it might take a minute for a command."""
    chosen = settings(["good", "hanging"], batches=(1, 2), timeout=60.0, deadline=5.0)
    began = time.monotonic()
    running = race.Race(chosen, "gpubp bench", lambda _: None, lambda *_: None)
    running.run()
    assert 5 <= time.monotonic() - began < 30
    assert running.results["cells"] == []
    assert running.results["cells_left_out"] == [f"{NET}, sgd, batch 1", f"{NET}, sgd, batch 2"]


def test_what_was_left_out_is_named():
    found = content({1: {"gpubp": [1.0]}}, cells_planned=3, cells_left_out=["a case", "another"])
    assert "NOT COMPLETE: 1 of 3 cases; left out, as the time was up: a case; another" in tables.heading(found)


# What is made of the figures.


def content(figures, **more):
    """Results of one panel: by batch size, the rates of each round by peer."""
    names = list(dict.fromkeys(name for row in figures.values() for name in row))
    return results.Results(
        {
            "format": results.FORMAT,
            "date": "2026-11-20T12:00:00+00:00",
            "command": "gpubp bench",
            "settings": {"precision": "float32", "device": "cpu", "threads": 2, "seconds": 0.1, "rounds": 3},
            "machine": {"CPU": "a processor", "GPU": "none"},
            "ceilings": {"flops_per_second": 1e11, "bytes_per_second": 1e10},
            "cells_planned": len(figures),
            "peers": {name: {"own": name.startswith("gpubp"), "facts": {"version": "1.0"}} for name in names},
            "cells": [
                {
                    "net": NET,
                    "optimizer": "sgd",
                    "batch": batch,
                    "work": "step",
                    "device": "cpu",
                    "floor_samples_per_second": 1e6,
                    "checked_at_batch": batch,
                    "peers": {
                        name: rates
                        if isinstance(rates, dict)
                        else {"rounds": rates, "samples_per_second": median(rates)}
                        for name, rates in row.items()
                    },
                }
                for batch, row in figures.items()
            ],
            **more,
        }
    )


def test_ratios_are_of_the_same_round():
    """The machine slows down by half in the second round, for both alike."""
    (cell,) = content({1: {"gpubp": [200, 100, 220], "torch": [100, 50, 100]}}).content["cells"]
    assert results.ratio(cell, "gpubp", "torch") == 2.0
    assert results.ratio(cell, "torch", "gpubp") == 0.5
    assert results.ratio(cell, "gpubp", "jax") is None


def test_rounds_that_failed_are_left_out_of_ratios():
    torch = {"rounds": [None, 50, None], "samples_per_second": 50, "failed": "lost"}
    (cell,) = content({1: {"gpubp": [200, 100, 220], "torch": torch}}).content["cells"]
    assert results.ratio(cell, "gpubp", "torch") == 2.0
    assert results.ratio(cell, "torch", "gpubp") == 0.5


def test_the_best_peer_is_none_of_gpubps_own():
    found = content({1: {"gpubp": [9], "gpubp-numpy": [8], "torch": [5], "jax": [6], "thinc": {"failed": "x"}}})
    assert found.best_peer(found.content["cells"][0]) == "jax"


def test_the_verdict_in_words():
    found = content(
        {
            1: {"gpubp": [100], "torch": [60], "jax": [120]},
            8: {"gpubp": [100], "torch": [60], "jax": [102]},
            32: {"gpubp": [140], "torch": [100], "jax": [50]},
            65536: {"gpubp": [3100], "torch": [99], "jax": [100]},
        }
    )
    assert verdict.verdict(found) == [
        f"{NET}, sgd: at batch 1 jax is ahead (1.20 times gpubp); at batch 8 gpubp and jax are level; "
        "at batch 32 to 65,536 gpubp is ahead (1.40 to 31 times the best peer)."
    ]


@pytest.mark.parametrize(("ours", "outcome"), [(1.031, "ahead"), (1.029, "level"), (0.972, "level"), (0.970, "behind")])
def test_three_percent_are_level(ours, outcome):
    found = content({1: {"gpubp": [ours], "torch": [1.0]}})
    assert verdict.judge(found, found.content["cells"][0])[0] == outcome


def test_a_verdict_needs_two():
    for row in ({"gpubp": [1.0]}, {"gpubp": {"failed": "x"}, "torch": [1.0]}):
        (sentence,) = verdict.verdict(content({1: row, 2: row}))
        assert sentence == f"{NET}, sgd: nothing to compare: a figure of gpubp and one of a peer are needed."


def test_a_verdict_on_gpubp_without_its_kernels():
    found = content({1: {"gpubp": [2.0], "torch": [1.0]}})
    assert len(verdict.verdict(found)) == 1
    found.content["peers"]["gpubp"]["facts"]["kernels"] = "no CPU kernels: numba: not installed"
    assert verdict.verdict(found)[1:] == ["gpubp ran WITHOUT its compiled CPU kernels: numba: not installed."]
    found.content["settings"]["device"] = "cuda"
    assert len(verdict.verdict(found)) == 1


def test_before_and_after():
    old = content({1: {"gpubp": [100], "torch": [100]}, 8: {"gpubp": [100], "torch": [50]}})
    new = content({1: {"gpubp": [150], "torch": [90]}, 8: {"gpubp": [200], "torch": [55]}, 9: {"gpubp": [1]}})
    assert verdict.changes(new, old, (NET, "sgd")) == {
        (1, "gpubp"): 1.5,
        (1, "torch"): 0.9,
        (8, "gpubp"): 2.0,
        (8, "torch"): 1.1,
    }
    (sentence,) = verdict.change(new, old)
    assert "gpubp is 1.75 times as fast as before" in sentence
    assert "(1.50 to 2.00)" in sentence
    assert "drift: 1.00 times, so against them gpubp is 1.75 times as fast as before" in sentence
    assert tables.comparison(new, old, (NET, "sgd")) == [
        ["batch", "gpubp", "torch"],
        ["1", "1.50x", "0.90x"],
        ["8", "2.00x", "1.10x"],
    ]
    other = content({2: {"gpubp": [1]}}, machine={"CPU": "another", "GPU": "none"})
    assert verdict.change(other, old) == ["the two files have no case in common."]
    assert verdict.differences(other, old) == [
        "CPU: a processor before, another now",
        "peer torch: 1.0 before, not told now",
    ]


def test_what_differs_between_two_runs_is_named():
    figures = {1: {"gpubp": [1], "torch": [1], "jax": [1]}}
    old, new = content(figures), content(figures)
    assert verdict.differences(new, old) == []
    old.content["machine"]["load before"] = "0.1 processes"
    new.content["machine"]["SciPy"] = "1.17.1"
    new.content["settings"]["seconds"] = 0.3
    new.content["peers"]["torch"]["facts"]["version"] = "2.0"
    new.content["peers"]["jax"] = {"own": False, "absent": "not installed"}
    new.content["ceilings"] = {"flops_per_second": 1.02e11, "bytes_per_second": 1.5e10}  # the first one is level
    assert verdict.differences(new, old) == [
        "SciPy: not told before, 1.17.1 now",
        "load before: 0.1 processes before, not told now",
        "seconds: 0.1 before, 0.3 now",
        "peer torch: 1.0 before, 2.0 now",
        "peer jax: 1.0 before, absent now",
        "ceiling, GB/s from memory: 10.0 before, 15.0 now",
    ]


def test_the_precision_is_told_and_kept_apart():
    tf32 = {**content({8: {"gpubp": [200]}}).content["cells"][0], "precision": "tf32", "net": "8-4-4-4-3"}
    found = content({8: {"gpubp": [100]}})
    plain = tables.heading(found)
    assert "precision: float32" in plain
    assert (
        "checked: three steps of every peer against float64, within 0.0001, and in the mean of each array within 0.1% "
        "of what they change" in plain
    )
    new = content({8: {"gpubp": [200]}}, cells=[{**tf32, "net": NET}])
    new.content["settings"]["precision"] = "tf32"
    lines = tables.heading(new)
    assert any(line.startswith("precision: float32 factors rounded to TF32 (10 binary digits") for line in lines)
    assert any("within 1.2% of what they change, in the mean" in line for line in lines)
    assert verdict.change(new, found) == ["the two files have no case in common."]


def test_the_other_form_of_adam_is_told():
    found = content({8: {"gpubp": [100], "sklearn": [50], "thinc": [40]}})
    for name in ("sklearn", "thinc"):
        found.content["peers"][name]["uncorrected_epsilon"] = True

    def checked():
        (line,) = (line for line in tables.heading(found) if line.startswith("checked: "))
        return line

    assert "Adam" not in checked()
    found.content["cells"][0]["optimizer"] = "adam"
    assert "; the Adam of sklearn and thinc against the form that they have, which adds epsilon before" in checked()
    found.content["peers"]["sklearn"] = {"absent": "not installed"}
    assert "; the Adam of thinc against" in checked()


@pytest.mark.parametrize("cached", [None, 5e10])
def test_the_rule_of_the_roofline_is_told(cached, tmp_path):
    pytest.importorskip("matplotlib")
    found = content({1: {"gpubp": [100]}, 8: {"gpubp": [200]}})
    found.content["ceilings"] |= {"cache_bytes_per_second": cached, "cache_bytes": 3 * 2**20}
    (line,) = (line for line in tables.heading(found) if line.startswith("ceilings: "))
    picture.draw(found, tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    if cached:
        assert "10.0 GB/s copy, 50.0 GB/s copy in the caches (3 MiB); from them" in line
        assert line.endswith("its data from the caches where it fits, else from memory")
        assert all(f"<!-- {line} -->" in drawn for line in picture.ROOFLINE.splitlines())
    else:
        assert line.endswith(
            "10.0 GB/s copy; from them the plot's roofline, every operation at its ceiling and its "
            "data from memory (what stays in the caches can be faster)"
        )
        assert "<!-- roofline (data from memory) -->" in drawn


def test_panels_of_an_unfinished_run_share_their_batch_sizes(tmp_path):
    pytest.importorskip("matplotlib")
    found = content({1: {"gpubp": [100]}, 1024: {"gpubp": [200]}})
    found.content["cells"].append({**found.content["cells"][0], "optimizer": "adam"})
    picture.draw(found, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().count("<!-- 1,024 -->") == 2


def test_a_race_tells_its_precision(scripted):
    asked = scripted(cases=(cases.Case(NET, "sgd", 2, device="cuda", precision="tf32"),), rounds=1)
    asked.run()
    assert asked.results["settings"]["precision"] == "tf32"
    assert asked.results["cells"][0]["precision"] == "tf32"


def test_the_table_names_what_has_no_figure():
    lost = {"failed": "no answer within 2 s"}
    found = content(
        {
            1: {"gpubp": [8331.0], "torch": lost, "sklearn": {"unsupported": "n"}, "jax": {"disagrees": "off by 1"}},
            1024: {"gpubp": [2e6], "torch": lost, "sklearn": [1e6], "jax": {}},
        }
    )
    rows, notes = tables.throughput(found, (NET, "sgd"))
    assert rows == [
        ["batch", "gpubp", "torch", "sklearn", "jax"],
        ["1", "8.33k", "failed [1]", "n/a [2]", "disagrees [3]"],
        ["1,024", "2.00M 2.00x", "failed [1]", "1.00M 1.00x", "-"],
    ]
    assert notes == ["[1] torch: no answer within 2 s", "[2] sklearn: n", "[3] jax: off by 1"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.50"),
        (41.94, "41.9"),
        (999.4, "999"),
        (999.6, "1.00k"),
        (12345, "12.3k"),
        (1.2e6, "1.20M"),
        (3e9, "3.00G"),
    ],
)
def test_three_digits(value, text):
    assert tables.short(value) == text


def test_a_wide_table_goes_on_below():
    rows = [["batch", "gpubp", "torch", "jax"], ["1", "10.0k", "20.0k", "30.0k"]]
    assert tables.as_text(rows) == "batch  gpubp  torch    jax\n    1  10.0k  20.0k  30.0k"
    parts = tables.as_text(rows, width=20).split("\n\n")
    assert parts == ["batch  gpubp  torch\n    1  10.0k  20.0k", "batch    jax\n    1  30.0k"]
    assert tables.as_markdown(rows).splitlines()[1] == "| ---: | ---: | ---: | ---: |"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file"),
        ("nothing", "it is no JSON"),
        ('{"benchmarks": []}', "of the format"),
        ('{"format": "gpubp bench 1", "cells": []}', "holds no figure"),
    ],
)
def test_files_that_hold_no_results(tmp_path, text, said):
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=said):
        results.load(path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda c: c.pop("settings"), "the file has no 'settings'"),
        (lambda c: c.update(peers=[]), "the file has no 'peers', or one of another kind"),
        (lambda c: c["settings"].pop("threads"), "'settings' has no 'threads'"),
        (lambda c: c.update(ceilings={"flops_per_second": "many"}), "'ceilings' has no 'flops_per_second'"),
        (lambda c: c["peers"].update(torch=7), "peer 'torch' is no JSON object"),
        (lambda c: c["peers"]["gpubp"].pop("facts"), "peer 'gpubp' has no 'facts'"),
        (lambda c: c["peers"]["gpubp"]["facts"].clear(), "'facts' of peer 'gpubp' has no 'version'"),
        (lambda c: c["cells"].append(3), "cell 2 is no JSON object"),
        (lambda c: c["cells"][0].pop("checked_at_batch"), "cell 1 has no 'checked_at_batch'"),
        (lambda c: c["cells"][0].update(work="sleep"), "cell 1 has the unknown work 'sleep'"),
        (lambda c: c["cells"][0]["peers"].update(gpubp=None), "cell 1, peer 'gpubp' is no JSON object"),
        (lambda c: c["cells"][0]["peers"]["gpubp"].update(rounds=["1"]), "cell 1, peer 'gpubp' has rounds that are no"),
        (lambda c: c["cells"][0]["peers"]["gpubp"].update(failed=1), "cell 1, peer 'gpubp' has no 'failed', or"),
    ],
)
def test_files_of_another_shape(tmp_path, spoil, said):
    found = content({1: {"gpubp": [1.0], "torch": [2.0]}})
    spoil(found.content)
    found.save(tmp_path / "results.json")
    with pytest.raises(DataError, match=r"results.json is not a whole file of gpubp bench: .*" + said):
        results.load(tmp_path / "results.json")


def test_results_of_every_release_are_loaded():
    for path in sorted((Path(race.__file__).parent / "results").glob("race-*.json")):
        assert results.load(path).panels


def test_what_was_saved_is_loaded(tmp_path):
    found = content({1: {"gpubp": [1.0]}})
    found.save(tmp_path / "results.json")
    assert results.load(tmp_path / "results.json") == found


# A turn.


def test_steps_of_a_turn_are_a_multiple_of_the_chunk():
    made = worker.Worker(bad_peers.Good(), "cpu")
    made.run = bad_peers.NaiveRun.__new__(bad_peers.NaiveRun)
    made.run.chunk = 8
    made.stream = cases.Stream.__new__(cases.Stream)
    made.stream.batch = 2**22
    made.step_seconds = 0.001
    assert made._steps(0.02) == 8  # no more than 4 batches of indices fit, but a chunk is a chunk
    made.stream.batch = 1
    assert made._steps(0.02) == 24
    made.step_seconds = 10.0
    assert made._steps(0.02) == 8


def test_a_worker_gives_the_memory_of_a_gpu_back(monkeypatch):
    called = []

    def pool(name):
        return lambda: types.SimpleNamespace(free_all_blocks=lambda: called.append(name))

    cuda = types.SimpleNamespace(is_initialized=lambda: True, empty_cache=lambda: called.append("torch"))
    cupy = types.SimpleNamespace(
        get_default_memory_pool=pool("cupy"), get_default_pinned_memory_pool=pool("cupy, pinned")
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "torch._dynamo", types.SimpleNamespace(reset=lambda: called.append("compiled")))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    (peer,) = (peer for peer in benchmarks_module("peers").all_peers() if peer.name == "gpubp")
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
