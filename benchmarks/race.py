"""The race: every peer in turn, round by round, so that whatever the machine does hits all alike.

For each case all peers get ready, all are checked, and those that do the same work are timed.
"""

from __future__ import annotations

import datetime
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from gpubp.cost import Ceilings, Cost, floor_seconds

from .agreement import checked_case, disagreement, reference
from .cases import Case, DataSet, make_data_set
from .peers import Peer
from .peers.gpubp_library import Gpubp
from .processes import WorkerProcess
from .results import FORMAT
from .team import Answers, Team, TimeIsUpError

PAUSE = 0.05
"""Seconds between two turns, in which the threads of the last peer stop spinning."""


@dataclass(frozen=True)
class Settings:
    """How to race.

    Attributes:
        cases: In the order to run; those of one network together, all of one precision.
        peers: In the order of the tables.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        threads: How many each library may use.
        seconds: Of one turn.
        rounds: Turns of each peer in each case.
        data_rows: Examples in the data set; at least the batch size.
        timeout: Seconds that a peer may take for one command.
        left_out: Peers that are not to run, by name, and why.
        budget: Seconds for the whole race; where they run short, cases get fewer rounds, but one. None for no limit.
        deadline: Seconds for the whole race too, after which it ends wherever it is; cases that are not done by then
            are left out, and named. None for no limit.
        ceilings_seconds: For measuring what the machine can do at most.
    """

    cases: tuple[Case, ...]
    peers: tuple[Peer, ...]
    device: str
    threads: int
    seconds: float
    rounds: int
    data_rows: int
    timeout: float
    left_out: Mapping[str, str] = field(default_factory=dict)
    budget: float | None = None
    deadline: float | None = None
    ceilings_seconds: float = 2.0


class Race:
    """All cases and all peers.

    Args:
        settings: What to do.
        command: The command line that the results are to name.
        save: Called with `results` after every case.
        tell: Called with how many cases are done, and words about what is going on.
        clock: Tells the time, in seconds.

    Attributes:
        results: What is known so far, as `benchmarks.results` reads it.
    """

    def __init__(
        self,
        settings: Settings,
        command: str,
        save: Callable[[dict[str, Any]], None],
        tell: Callable[[int, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings, self._save = settings, save
        self._tell_with_count = tell
        self._clock, self._began = clock, clock()
        self._team = Team(settings.peers, settings.threads, settings.device, settings.timeout, self._left)
        self._costs: dict[Case, list[Cost]] = {}
        self._load = load()
        told = {name: getattr(settings, name) for name in ("device", "threads", "seconds", "rounds", "data_rows")}
        self.results: dict[str, Any] = {
            "format": FORMAT,
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": command,
            "settings": {"precision": "/".join(dict.fromkeys(case.precision for case in settings.cases)), **told},
            "cells_planned": len(settings.cases),
            "cells": [],
        }

    def run(self) -> None:
        """Run all cases, or those that can be done in time. However this ends, no process is left, and what was
        measured is saved.

        Raises:
            WorkerError: The machine can't be measured.
        """
        with tempfile.TemporaryDirectory(prefix="gpubp-bench-") as folder:
            try:
                self._measure_machine()
                self._tell("starting " + ", ".join(self._team.peers))
                self._team.start()
                left_out = {name: {"own": False, "absent": why} for name, why in self.settings.left_out.items()}
                self._team.known.update(left_out)
                self.results["peers"] = self._team.known
                for case in self.settings.cases:
                    if self._left() <= 0:
                        raise TimeIsUpError
                    self._run_case(case, Path(folder))
                    self._save(self.results)
            except TimeIsUpError:
                undone = self.settings.cases[len(self.results["cells"]) :]
                self.results["cells_left_out"] = [case.words for case in undone]
            finally:
                self._team.close()
                if self.results["cells"]:
                    self._save(self.results)

    def _tell(self, words: str) -> None:
        self._tell_with_count(len(self.results["cells"]), words)

    def _measure_machine(self) -> None:
        """The machine's facts and ceilings, and what each case costs, from a process that is alone meanwhile."""
        self._tell("measuring the machine's ceilings")
        settings = self.settings
        worker = WorkerProcess(Gpubp(), settings.threads, settings.device)
        try:
            timeout, seconds = min(settings.timeout, self._left()), settings.ceilings_seconds
            precision = settings.cases[0].precision
            self.results.update(worker.ask("machine", timeout, ceilings_seconds=seconds, precision=precision))
            self._ceilings = Ceilings(**self.results["ceilings"])
            self.results["machine"]["load before"] = self._load
            costs = worker.ask("costs", timeout, cases=[asdict(case) for case in settings.cases])["costs"]
        finally:
            worker.close()
        for case, operations in zip(settings.cases, costs, strict=True):
            self._costs[case] = [Cost(*operation) for operation in operations]

    def _run_case(self, case: Case, folder: Path) -> None:
        self._team.start()  # whoever was lost
        entries = self._team.present()
        data = self._data_set(case, folder)
        checked = self._check(case, data, entries)
        cell = {
            **asdict(case),
            "flops": sum(cost.flops for cost in self._costs[case]),
            "bytes": sum(cost.bytes for cost in self._costs[case]),
            "floor_samples_per_second": case.batch / floor_seconds(self._costs[case], self._ceilings),
            "checked_at_batch": checked,
            "peers": entries,
        }
        try:
            self._time(case, entries)
        finally:  # interrupted or not: whole rounds count
            for entry in entries.values():
                if rates := [rate for rate in entry.get("rounds", ()) if rate]:
                    entry["samples_per_second"] = median(rates)
            if all(entry for entry in entries.values()):
                self.results["cells"].append(cell)
        self._team.ask_all(_good(self._team.present()), "release")

    def _data_set(self, case: Case, folder: Path) -> Path:
        """The file of the network's data set; that of the network before makes room."""
        path = folder / f"{case.net}.npz"
        if not path.exists():
            for old in folder.glob("*.npz"):
                old.unlink()
            largest = max(other.batch for other in self.settings.cases if other.net == case.net)
            make_data_set(case.net, max(largest, self.settings.data_rows), path)
        return path

    def _check(self, case: Case, data: Path, entries: Answers) -> int:
        """Get all peers ready and compare them with the reference; at which batch size that was done."""
        self._tell(f"{case.words}: getting ready")
        small = checked_case(case)
        expected = {}

        def compute_reference() -> None:
            known = DataSet.read(data).of(small)
            for form in {self._team.peers[name].uncorrected_epsilon for name in _good(entries)}:
                expected[form] = reference(small, known, form)
            expected["start"] = known.weights if case.work == "step" else None

        prepare = {"case": asdict(small), "data": str(data)}
        _note(entries, self._team.ask_all(_good(entries), "prepare", compute_reference, **prepare))
        found = str(data.parent / "found-{name}.npz")
        for name, answer in self._team.ask_all(_good(entries), "check", results=found).items():
            _note(entries, {name: answer})
            if "failed" in answer:
                continue
            # With the precision that was set, and the pools that the work has opened.
            self._team.known[name]["facts"].update(answer["facts"])
            with np.load(found.replace("{name}", name)) as file:
                arrays = [file[f"w{k}"] for k in range(len(file.files))]
            form = self._team.peers[name].uncorrected_epsilon
            if why := disagreement(arrays, expected[form], expected["start"], case.precision):
                entries[name]["disagrees"] = why
        if small != case:
            prepare["case"] = asdict(case)
            _note(entries, self._team.ask_all(_good(entries), "prepare", **prepare))
        return small.batch

    def _time(self, case: Case, entries: Answers) -> None:
        """The rounds: in each, every peer has a turn; the first one is another in each round."""
        racers = _good(entries)
        for round_ in range(self.settings.rounds):
            if round_ and self._is_late():
                break
            self._tell(f"{case.words}: round {round_ + 1} of {self.settings.rounds}")
            first = round_ % max(1, len(racers))
            rates: dict[str, float | None] = {}
            for name in racers[first:] + racers[:first]:
                if "failed" in entries[name]:
                    continue
                time.sleep(PAUSE)
                answer = self._team.ask(name, "measure", seconds=self.settings.seconds)
                _note(entries, {name: answer})
                rates[name] = case.batch / answer["step_seconds"] if "failed" not in answer else None
            for name in racers:
                entries[name].setdefault("rounds", []).append(rates.get(name))

    def _is_late(self) -> bool:
        """Whether this case has used up what the budget allows up to its end."""
        if self.settings.budget is None:
            return False
        share = (len(self.results["cells"]) + 1) / len(self.settings.cases)
        return self._clock() - self._began > share * self.settings.budget

    def _left(self) -> float:
        """The seconds up to the deadline."""
        deadline = self.settings.deadline
        return math.inf if deadline is None else self._began + deadline - self._clock()


def load() -> str:
    """How busy the machine is with other things, in words."""
    if not hasattr(os, "getloadavg"):
        return "unknown"
    return f"{os.getloadavg()[0]:.2f} processes, the average of a minute"


def _good(entries: Answers) -> list[str]:
    """Who is still in the race."""
    return [name for name, entry in entries.items() if not entry.keys() & {"failed", "unsupported", "disagrees"}]


def _note(entries: Answers, answers: Answers) -> None:
    """Put down the reasons why a peer does not go on."""
    for name, answer in answers.items():
        entries[name].update({key: answer[key] for key in ("failed", "unsupported") if key in answer})
