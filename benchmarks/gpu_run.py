"""A run of `benchmarks.on_a_gpu`: its time, the commands that it runs, what it knows and where it keeps that."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpubp.errors import DataError

from . import gpu_report
from .results import Results

ROOT = Path(__file__).resolve().parents[1]
RESERVE = 10.0
"""Seconds that are kept for the report, and for ending a stage that does not end when it is asked to."""
NO_TIME = "not run: no time left"
GRACE = 3.0
"""Seconds between asking a process to end and ending it."""
MOST_LOG = 2**18
"""Bytes of a command's output that the log keeps."""


Ended = tuple[str, bool]
"""How a stage ended: in words, and whether it has done all that it can do."""


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: As the table calls it, and the results.
        work: ``work(here, stage, seconds)`` does it.
        most: Seconds that it may take.
        least: Seconds without which it is not begun.
        goes_on: Whether it goes on where it was ended; else it begins anew, unless it has had its whole time.
        always: Whether every run begins with it, as it is about the machine of the run.
    """

    name: str
    work: Callable[[Run, Stage, float], Ended]
    most: float
    least: float
    goes_on: bool = False
    always: bool = False


@dataclass
class Outcome:
    """How a command ended.

    Attributes:
        code: Its exit code; None where it was ended because its time was up.
        text: What it printed.
        seconds: How long it took.
    """

    code: int | None
    text: str
    seconds: float = 0.0

    @property
    def last(self) -> str:
        """The last line that it printed."""
        return next((line.strip() for line in reversed(self.text.splitlines()) if line.strip()), "nothing was printed")

    @property
    def how(self) -> str:
        """How it ended, before the words about what it has brought; nothing where all is well."""
        if self.code is None:
            return f"ended after {self.seconds:.0f} s: "
        return f"FAILED ({self.code}): " if self.code else ""


@dataclass
class Run:
    """One run of all stages.

    Attributes:
        out: The folder of the results.
        pretend: Whether the CPU plays the device, with everything tiny.
        found: All that is known so far, by stage, as it is in ``results.json``.
    """

    out: Path
    pretend: bool
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The file of the results, which a job writes while it runs."""
        return self.out / "results.json"

    def load(self) -> None:
        """Read what is known: from an earlier run, also one that was killed, or from a job.

        Raises:
            DataError: It can't be read, or is of another kind of run.
        """
        if not self.path.exists():
            return
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            rows = found.get("stages", {}).values()
            if not all({"verdict", "finished"} <= row.keys() for row in rows):
                raise AttributeError("a stage without an end")
        except OSError as error:
            raise DataError(f"{self.path} can't be read ({error}): choose another --out") from error
        except ValueError as error:
            raise DataError(f"{self.path} is no JSON ({error}): choose another --out") from error
        except AttributeError as error:
            raise DataError(f"{self.path} is not of this program ({error}): choose another --out") from error
        self.found = found
        if self.found.get("pretend", False) != self.pretend:
            raise DataError(f"{self.path} is {'not ' if self.pretend else ''}of --pretend: choose another --out")

    def save(self) -> None:
        """Write the results and the page."""
        Results(self.found).save(self.path)
        (self.out / "report.md").write_text(self._text("page", gpu_report.page), encoding="utf-8")

    def summary(self) -> str:
        """The stages and the criteria."""
        return self._text("summary", lambda found: "\n".join(gpu_report.summary(found)))

    def _text(self, what: str, text: Callable[[dict[str, Any]], str]) -> str:
        try:
            return text(self.found)
        except Exception as error:  # the figures count: no stage is lost for a page about another
            return f"There is no {what}: {type(error).__name__}: {error}\n"

    def run(self, command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None) -> Outcome:
        """Run a command with its output in the log, for so long at most.

        Args:
            command: The program and its arguments.
            seconds: After that, it and all processes that it has started in its group are ended.
            environment: More environment variables.
        """
        began = time.monotonic()
        place = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        variables = {**os.environ, "PYTHONPATH": place, "PYTHONUNBUFFERED": "1", **(environment or {})}
        with (self.out / "log.txt").open("a+b") as log:
            log.write(f"\n$ {shlex.join(command)}\n".encode())
            log.flush()
            start = log.tell()
            try:
                process = subprocess.Popen(
                    command, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                    start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                log.write(f"{error}\n".encode())
                return Outcome(127, str(error))
            code: int | None = None
            try:
                code = process.wait(timeout=max(0.0, seconds))
            except subprocess.TimeoutExpired:
                pass
            finally:  # also where this process itself is told to end
                _end(process)
            log.seek(start)
            output = log.read()
            if len(output) > MOST_LOG:
                log.truncate(start)
                log.write(output[: MOST_LOG // 4] + b"\n[...]\n" + output[-MOST_LOG // 2 :])
        return Outcome(code, output.decode(errors="replace"), time.monotonic() - began)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and whatever it has left behind in its group: politely, then for good."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)


class OtherMachineError(DataError):
    """The results in the folder are not of this machine."""


class Budget:
    """The time for everything.

    Args:
        seconds: From now on.
        clock: Tells the time.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds - RESERVE

    def limit(self, stage: Stage) -> float | None:
        """How long a stage may take; None where there is not even the least of what it needs."""
        left = self._end - self._clock()
        return None if left < stage.least else min(stage.most, left)


def in_turn(chosen: Sequence[Stage], table: dict[str, Any]) -> list[Stage]:
    """Which stages a run is to do, in order: what is about the machine, what had no turn yet, what is not finished."""
    begun = [stage for stage in chosen if table.get(stage.name, {"verdict": NO_TIME})["verdict"] != NO_TIME]
    unfinished = [stage for stage in begun if not stage.always and not table[stage.name]["finished"]]
    new = [stage for stage in chosen if stage not in begun and not stage.always]
    return [*(stage for stage in chosen if stage.always), *new, *unfinished]


def run_stages(chosen: Sequence[Stage], here: Run, budget: Budget, tell: Callable[[str], None]) -> None:
    """Do stages as long as there is time; whatever happens in one, the next one runs, and what is known is written.

    What is not finished after all had their turn gets another one.

    Raises:
        OtherMachineError: The results that are there are not of this machine.
    """
    here.found["pretend"] = here.pretend
    turn = in_turn(chosen, here.found.setdefault("stages", {}))
    for stage in turn:
        run_stage(stage, here, budget, tell)
    for stage in turn:
        if not here.found["stages"][stage.name]["finished"]:
            run_stage(stage, here, budget, tell)


def run_stage(stage: Stage, here: Run, budget: Budget, tell: Callable[[str], None]) -> None:
    """Do a stage if there is time, and note how it ended."""
    began, before = time.monotonic(), here.found["stages"].get(stage.name)
    if (seconds := budget.limit(stage)) is None:
        if before is None:
            here.found["stages"][stage.name] = {"verdict": NO_TIME, "seconds": 0.0, "finished": False}
        return  # what was done before still counts
    try:
        verdict, finished = stage.work(here, stage, seconds)
    except OtherMachineError:
        raise  # nothing of this machine gets among the figures of another
    except Exception as error:
        verdict, finished = f"FAILED: {type(error).__name__}: {error}", True
    finished |= not stage.goes_on and seconds == stage.most  # it would only do the same again
    spent = time.monotonic() - began
    tell(f"{stage.name}: {verdict} ({spent:.0f} s)")
    spent += before["seconds"] if before is not None and stage.goes_on else 0
    here.found["stages"][stage.name] = {"verdict": verdict, "seconds": round(spent, 1), "finished": finished}
    here.save()
