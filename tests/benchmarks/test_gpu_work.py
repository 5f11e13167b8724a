"""The jobs of `benchmarks/gpu_work.py`, its neighbours `gpu_facts.py` and `gpu_races.py`: on the stand-in for CuPy."""

from __future__ import annotations

import pytest

from gpubp.benchmarking import benchmarks_module

facts, races, stages, work = map(benchmarks_module, ("gpu_facts", "gpu_races", "gpu_stages", "gpu_work"))


@pytest.fixture
def jobs(fake_cupy):
    """Does a job on the device that the stand-in plays, and returns its rows."""

    def do(name, known=None):
        noted = dict(known or {})
        stages.JOBS[name](work.Place("cuda", True, 60.0, noted), noted.__setitem__)
        assert noted[name]["planned"] == len(noted[name]["rows"])
        return noted[name]["rows"]

    return do


def test_smoke_captures_every_step(jobs):
    rows = jobs("smoke")
    assert [(row["agrees"], row["why_not_captured"]) for row in rows] == [(True, None)] * 10
    assert {row["optimizer"] for row in rows} == {"sgd", "sgd momentum", "sgd nesterov", "adam"}
    assert [row["precision"] for row in rows] == ["float32", "tf32", "bf16", *["float32"] * 7]
    assert all(0 < row["share"] < 1e-4 for row in rows if row["precision"] == "float32")
    plain = next(row for row in rows if row["optimizer"] == "sgd" and row["precision"] == "float32")
    assert 3 * plain["share"] < rows[1]["share"] < rows[2]["share"] < 0.1  # products were rounded


def test_what_goes_wrong_is_in_its_row_and_the_next_goes_on(jobs, monkeypatch):
    def refused(*_):
        raise RuntimeError("no graphs here")

    def update(self, theta, dL_dtheta, decayed):
        raise ValueError("no update")

    monkeypatch.setattr(work.cuda, "captured", refused)
    monkeypatch.setattr(work.gpubp.SGD, "update", update)
    with pytest.warns(UserWarning, match="not captured as a CUDA graph"):
        rows = jobs("smoke")
    for row in rows:
        if row["optimizer"] == "adam":
            assert (row["why_not_captured"], row["agrees"]) == ("no graphs here", True)
        else:
            assert row["failed"] == "ValueError: no update"


def test_a_lost_device_ends_the_process_and_the_next_one_goes_on(jobs, monkeypatch):
    def lost(*_, **__):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(work, "OPTIMIZERS", {"sgd": work.OPTIMIZERS["sgd"]})
    noted = {}
    place = work.Place("cuda", True, 60.0, noted)
    with monkeypatch.context() as patch:
        patch.setattr(work.gpubp, "mlp", lost)
        patch.setattr(work, "synchronize", lost)
        with pytest.raises(SystemExit, match="lost for this process: .* illegal memory"):
            stages.JOBS["smoke"](place, noted.__setitem__)
    assert [row["failed"] for row in noted["smoke"]["rows"]] == [
        "RuntimeError: an illegal memory access was encountered"
    ]
    rows = jobs("smoke", noted)
    assert rows[0] == noted["smoke"]["rows"][0]
    assert all(row["agrees"] for row in rows[1:])


def test_a_job_ends_when_its_time_is_up():
    noted = {}
    place = work.Place("cpu", True, 0.0, noted)
    work.each("smoke", work.smoke_rows, lambda *_: {}, place, noted.__setitem__)
    assert noted["smoke"]["planned"] == 8
    assert len(noted["smoke"]["rows"]) < 8


def test_floors_take_nodes_of_one_step_and_the_ceiling_of_their_precision(jobs, monkeypatch):
    monkeypatch.setattr(work, "nodes_of", lambda graph: len(graph.nodes))
    rates = {"copy": 1e30, "float32": 1e9, "tf32": 4e9}
    rows = jobs("floors", {"ceilings": rates})
    assert len(rows) == 16
    floors = {tuple(row[key] for key in ("net", "optimizer", "batch", "precision")): row for row in rows}
    for (*step, precision), row in floors.items():
        assert row["why_not_captured"] is None
        assert row["counted"] == "in the graph"
        assert row["us_per_node"] == pytest.approx(1e6 * row["step_seconds"] / row["nodes"])
        assert row["times_floor"] == pytest.approx(row["step_seconds"] / row["floor_seconds"])
        if precision == "tf32":
            assert row["floor_seconds"] == pytest.approx(floors[*step, "float32"]["floor_seconds"] / 4)
    monkeypatch.undo()  # there is no driver to ask
    known = {"ceilings": {"copy": 1e30, "float32": 1e9}, "floors": {"rows": rows[1:-1]}}
    *rest, without_driver, failed = jobs("floors", known)
    assert rest == rows[1:-1]  # what is known is not done again
    assert (without_driver["counted"], without_driver["nodes"]) == ("launched one by one", rows[0]["nodes"])
    assert failed["failed"] == "RuntimeError: there is no measured ceiling of tf32 products"


def test_one_operation_of_each_kind_is_timed_as_a_graph(jobs, monkeypatch):
    every = work.kernels.operations()
    some = {name.split()[0]: name for name in every}.values()
    monkeypatch.setattr(work.kernels, "operations", lambda: {name: every[name] for name in some})
    rows = jobs("bandwidth")
    assert [row["kernel"] for row in rows] == list(some)
    for row in rows:
        assert row["as_graph"], row
        assert row["share_of_copy"] > 0


def test_the_questions_have_answers(fake_cupy, monkeypatch):
    monkeypatch.setattr(facts, "WITHOUT", {"numpy": "nothing", "no_such_module": "no such thing", "cupy": "no GPU"})
    monkeypatch.setattr(facts, "BATCHES", (4,))
    monkeypatch.setattr(facts, "median_seconds", lambda part, seconds: part(1) or seconds)
    noted = []
    facts.facts("cuda", lambda _, found: noted.append(dict(found)))
    assert len(noted) == 1 + len(facts.QUESTIONS)
    assert noted[-1]["GPU"].startswith("Fake GPU, CuPy 14.2.0")
    assert noted[0]["not installed"] == "no_such_module (no such thing)"
    for question in ("an empty kernel", "products as nodes of a graph"):
        assert " us" in noted[-1][question]
    assert noted[-1]["cuBLAS"].startswith("FAILED: PackageNotFoundError")  # as nobody has installed the stand-in
    assert noted[-1]["CuPy's own products in a capture"] == "refused"


def test_a_race_goes_on_where_it_was_ended(monkeypatch):
    """Every cell that is not known, in the order of the plan; what is noted holds both."""
    raced = []

    def run(self):
        raced.append(self.settings.cases)
        self._save({"cells": [{**vars(case), "peers": {}} for case in self.settings.cases[:2]], "peers": {"torch": {}}})

    monkeypatch.setattr(races.race.Race, "run", run)
    noted = {}
    for _ in range(10):
        races.run_race("race", work.Place("cpu", False, 60.0, noted), noted.__setitem__)
    cases = races.RACES["race"].cases(work.Place("cpu", False, 60.0, {}))
    assert len(cases) == 16
    assert raced == [cases[k:] for k in range(0, 16, 2)]
    assert [races.Case(**{key: cell[key] for key in vars(cases[0])}) for cell in noted["race"]["cells"]] == list(cases)
    assert noted["race"]["cells_planned"] == 16


def test_races_are_of_peers_that_there_are():
    names = {peer.name for peer in races.all_peers()}
    for race in races.RACES.values():
        assert set(race.peers) <= names
    assert not any("compile" in name for name in races.RACES["race"].peers)
