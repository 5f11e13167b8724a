"""`benchmarks/gpu_report.py`: each criterion is met, missed, with the cells that miss it, or not measured."""

from __future__ import annotations

import copy

import pytest

from gpubp.benchmarking import benchmarks_module

races, report, work = map(benchmarks_module, ("gpu_races", "gpu_report", "gpu_work"))
PLACE = work.Place("cuda", False, 0.0, {})
WIDE, NARROW = work.NETS


def race_of(name, **rates):
    """What a race notes in which every peer has the same rate in every cell."""
    entries = {peer: {"rounds": [rate], "samples_per_second": rate} for peer, rate in rates.items()}
    cells = [
        {**vars(case), "checked_at_batch": case.batch, "peers": copy.deepcopy(entries)}
        for case in races.RACES[name].cases(PLACE)
    ]
    peers = {peer: {"own": peer == "gpubp", "facts": {"version": "1"}} for peer in rates}
    settings = {"precision": "float32", "device": "cuda", "threads": 4, "seconds": 0.06}
    return {
        "settings": settings,
        "machine": {},
        "date": "",
        "command": "",
        "cells_planned": len(cells),
        "peers": peers,
        "cells": cells,
    }


def everything():
    """Results that meet every criterion."""
    smoke = [{**row, "why_not_captured": None, "share": 1e-5, "agrees": True} for row in work.smoke_rows(PLACE)]
    step = {"step_seconds": 1e-5, "times_floor": 1.2, "nodes": 9, "counted": "in the graph", "us_per_node": 1.9}
    floors = [{**row, **step, "why_not_captured": None} for row in work.floor_rows(PLACE)]
    taken = {"seconds": 1e-5, "bytes_per_second": 1e9, "share_of_ceiling": 0.9, "as_graph": True}
    bandwidth = [
        {**row, **taken, "share_of_copy": 0.1 if row["kernel"] in report.NOT_BOUND else 0.86}
        for row in work.bandwidth_rows(PLACE)
    ]
    return {
        "stages": {},
        "compile": {"wrong": [], "whole": True},
        "kernels": {"wrong": [], "whole": True},
        "pytest": {"failed": [], "whole": True},
        "memcheck": {"errors": {}, "whole": True},
        "smoke": {"rows": smoke},
        "floors": {"rows": floors},
        "bandwidth": {"rows": bandwidth},
        **{
            name: race_of(name, **{peer: 40.0 if peer == "gpubp" else 10.0 for peer in race.peers})
            for name, race in races.RACES.items()
        },
    }


def row_of(found, name, **what):
    return next(row for row in found[name].get("rows", found[name].get("cells")) if what.items() <= row.items())


CRITERIA = ("kernels", "steps", "tests", "memcheck", "ahead", "eager", "floor", "nodes", "copy")


def judge(found):
    return dict(zip(CRITERIA, report.verdicts(found), strict=True))


def test_nothing_measured_is_neither_met_nor_missed():
    verdicts = judge({"stages": {}})
    assert {one.word for one in verdicts.values()} == {"not measured"}
    counts = {name: len(one.unmeasured) for name, one in verdicts.items()}
    assert counts.pop("copy") == len(work.kernels.operations()) - len(report.NOT_BOUND)
    assert counts == {
        "kernels": 1,
        "steps": 10,
        "tests": 1,
        "memcheck": 1,
        "ahead": 19,
        "eager": 8,
        "floor": 8,
        "nodes": 4,
    }
    page = report.page({"stages": {}})
    assert f"{WIDE} adam 4,096 tf32" in page
    assert "| not measured | 0 of 19; 19 not measured |" in page


def test_all_cells_meet_a_criterion():
    verdicts = judge(everything())
    assert {name: one.word for name, one in verdicts.items()} == dict.fromkeys(CRITERIA, "met")
    assert verdicts["ahead"].figures == "19 of 19; the worst is 4.00"
    assert "### Missed" not in report.page(everything())
    assert "## race-tf32" in report.page(everything())


@pytest.mark.parametrize(
    ("change", "criterion", "missed"),
    [
        (lambda f: f["compile"]["wrong"].append("adam<float>: no"), "kernels", [("adam<float>: no", "")]),
        (lambda f: f["kernels"].update(whole=False), "kernels", []),
        (lambda f: row_of(f, "smoke", net=NARROW, optimizer="adam").update(agrees=False, share=0.5), "steps",
         [(f"{NARROW} adam float32", "DIFFERS by 5.0e-01")]),
        (lambda f: row_of(f, "smoke", precision="bf16").update(why_not_captured="no cuBLAS"), "steps",
         [(f"{WIDE} sgd bf16", "not captured: no cuBLAS")]),
        (lambda f: f["pytest"].update(failed=["t.py::a - off"], whole=False), "tests", [("t.py::a - off", "")]),
        (lambda f: f["memcheck"]["errors"].update(combine=3), "memcheck", [("combine", "3 errors")]),
        (lambda f: f.pop("memcheck"), "memcheck", []),
        (lambda f: f["race-compile"].update(race_of("race-compile", **{"gpubp": 9.0, "torch-compile": 10.0})), "ahead",
         [(f"{WIDE} adam 4,096 (torch-compile) against torch-compile", "0.90"),
          (f"{NARROW} adam 32 (torch-compile) against torch-compile", "0.90")]),
        (lambda f: f["race"]["cells"].remove(row_of(f, "race", batch=65536)), "ahead", []),
        (lambda f: row_of(f, "race", net=NARROW, batch=4096)["peers"].update(gpubp={"failed": "no memory"}), "ahead",
         [(f"{NARROW} adam 4,096 against torch", "no figure of gpubp: no memory")]),
        (lambda f: row_of(f, "race", net=NARROW, batch=32)["peers"]["torch"].update(rounds=[20.0]), "eager",
         [(f"{NARROW} adam 32", "2.00")]),
        (lambda f: row_of(f, "floors", net=WIDE, batch=65536, precision="tf32").update(times_floor=1.3), "floor",
         [(f"{WIDE} adam 65,536 tf32", "1.30")]),
        (lambda f: row_of(f, "floors", net=WIDE, batch=4096).update(failed="no memory"), "floor",
         [(f"{WIDE} adam 4,096", "no memory")]),
        (lambda f: row_of(f, "floors", net=NARROW, batch=32).update(us_per_node=3.0), "nodes",
         [(f"{NARROW} adam 32", "3.00")]),
        (lambda f: row_of(f, "bandwidth", kernel="update adam").update(share_of_copy=0.84), "copy",
         [("update adam", "0.84")]),
        (lambda f: f["bandwidth"]["rows"].pop(0), "copy", []),
    ],
)  # fmt: skip
def test_a_cell_that_misses_is_named_and_one_that_is_missing_counts(change, criterion, missed):
    found = everything()
    change(found)
    verdicts = judge(found)
    assert list(verdicts[criterion].missed) == missed
    assert verdicts[criterion].word == ("MISSED" if missed else "not measured")
    assert {one.word for name, one in verdicts.items() if name != criterion} == {"met"}
    page = report.page(found)
    assert f"| {verdicts[criterion].what} | {verdicts[criterion].word} | " in page
    for name, figure in missed:
        assert f"| {verdicts[criterion].what} | {name} | {figure} |" in page
    assert any(line.startswith(f"{verdicts[criterion].word}: ") for line in report.summary(found))


def test_steps_that_do_not_count_may_be_slow():
    found = everything()
    for row in found["floors"]["rows"]:
        if row["batch"] == 32 or row["net"] == NARROW:
            row["times_floor"] = 9.0
        if row["batch"] > 32 or row["net"] == WIDE:
            row["us_per_node"] = 9.0
    assert {one.word for one in report.verdicts(found)} == {"met"}


def test_many_that_miss_are_counted():
    found = everything()
    found["race"] = race_of("race", **{peer: 1.0 if peer == "gpubp" else 2.0 for peer in races.PEERS})
    verdict = judge(found)["ahead"]
    assert verdict.figures.endswith(" and 8 more")
    assert len(verdict.missed) == 16
