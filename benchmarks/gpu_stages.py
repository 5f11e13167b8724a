"""The stages of `benchmarks.on_a_gpu`: what each runs, for how long at most, and what its output says.

Every stage is a process of its own, or a few, ended when its time is up: nothing that goes wrong in one keeps the next
one from running, a device that is lost to a process neither. Jobs of `gpu_work` note each figure at once and go on with
what is missing; other programs begin anew, unless they have had their whole time.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import gpu_facts, gpu_races, gpu_work, machine
from .gpu_run import ROOT, Ended, OtherMachineError, Outcome, Run, Stage
from .results import Results

SCRIPT = Path(__file__).with_name("on_a_gpu.py")
EVERY_KERNEL = "tests/every_kernel.py"
MOST_WORKERS = 12
"""Processes that run tests: each takes some of the device's memory for itself."""
TOOLS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
"""Where CUDA's programs are, if not on the PATH."""


def job(here: Run, stage: Stage, seconds: float) -> Ended:
    """A job of `gpu_work`; what it has noted becomes part of what is known."""
    command = [sys.executable, str(SCRIPT), "--do", stage.name, "--seconds", f"{0.9 * seconds:.1f}"]
    here.save()  # it goes on from there
    outcome = here.run([*command, "--out", str(here.out), *(["--pretend"] if here.pretend else [])], seconds)
    here.load()
    found = here.found.get(stage.name, {})
    rows = found.get("rows", found.get("cells", ()))
    planned = found.get("planned", found.get("cells_planned", "?"))
    words = outcome.how + f"{len(rows)} of {planned}"
    if failed := sum("failed" in row for row in rows):
        words += f", {failed} failed"
    return words + (f"; {outcome.last}" if outcome.code else ""), len(rows) == planned


def facts(here: Run, stage: Stage, seconds: float) -> Ended:
    """The machine, and what may be missing on it.

    Raises:
        OtherMachineError: An earlier run into the same folder was on another card.
    """
    query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit"
    card = here.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], seconds / 3)
    name = card.text.strip() if card.code == 0 else "nvidia-smi does not run"
    if (before := here.found.setdefault("card", name)) != name:
        raise OtherMachineError(f"{here.out} is of another card ({before}; here is {name}): choose another --out")
    job(here, stage, seconds - card.seconds)
    found = here.found.get("facts", {})
    here.found.setdefault("runs", []).append(f"{shlex.join(['python', *sys.argv])}, {found.get('date', '?')}")
    return f"not installed: {found['not installed']}" if found else "FAILED: see log.txt", bool(found)


def program(*arguments: str) -> Callable[[Run, Stage, float], Ended]:
    """A stage that is `tests/every_kernel.py` with some arguments."""

    def work(here: Run, stage: Stage, seconds: float) -> Ended:
        outcome = here.run([sys.executable, EVERY_KERNEL, *arguments], seconds)
        if outcome.code == 2:
            return f"not run: {outcome.last}", True
        here.found[stage.name] = found = read_every_kernel(outcome)
        return outcome.how + found["last"], outcome.code is not None

    return work


def read_every_kernel(outcome: Outcome) -> dict[str, Any]:
    """What `tests/every_kernel.py` tells: ``last``, its last words about how far it came; ``wrong``; ``whole``."""
    told = re.findall(r"^.*\d kernels .*$", outcome.text, re.MULTILINE)
    wrong = re.findall(r"^WRONG: (.*)$", outcome.text, re.MULTILINE)
    whole = outcome.code == 0 or (outcome.code == 1 and bool(wrong))
    if not whole and outcome.code is not None:
        wrong.append(outcome.last)  # of a traceback, say
    return {"last": told[-1].strip() if told and whole else outcome.last, "wrong": wrong, "whole": whole}


def memcheck(here: Run, stage: Stage, seconds: float) -> Ended:
    """Every kernel under compute-sanitizer, which must notice a planted error before its silence says anything."""
    tool = shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *TOOLS]))
    if tool is None:
        return "not run: there is no compute-sanitizer", True
    end = time.monotonic() + seconds
    ours = here.run([sys.executable, EVERY_KERNEL, "--names"], seconds / 4).text.split()
    command = [tool, "--tool", "memcheck", "--report-api-errors", "no"]  # CuPy tells errors of calls itself
    for name in ours:  # known by the beginning of its mangled name: _Z4adamI is the template adam
        command += ["--kernel-name", f"kernel_substring=_Z{len(name)}{name}I"]
    command += [sys.executable, EVERY_KERNEL]
    planted = here.run([*command, "--planted"], (end - time.monotonic()) / 3)
    if not read_memcheck(planted.text, ours):
        why = re.search(
            r"^.*(unsupported|not supported|unable to|no such).*$", planted.text, re.MULTILINE | re.IGNORECASE
        )
        return f"not run: {planted.how}{why[0].strip('= ') if why else 'a planted error is not noticed'}", True
    outcome = here.run([*command, "--quick", "--without-pool"], end - time.monotonic())
    errors, told = read_memcheck(outcome.text, ours), read_every_kernel(outcome)
    here.found[stage.name] = {"errors": errors, "whole": told["whole"]}
    words = ", ".join(f"{count} in {name}" for name, count in errors.items()) or "none"
    return f"{'FAILED: ' if errors else ''}errors: {words}; {outcome.how}{told['last']}", outcome.code is not None


def read_memcheck(text: str, ours: Sequence[str]) -> dict[str, int]:
    """How many errors compute-sanitizer shows, by kernel of ours."""
    errors: dict[str, int] = {}
    for report in re.split(r"^(?=={9} (?:Invalid|Misaligned|Error))", text, flags=re.MULTILINE)[1:]:
        place = re.search(r"\bat (?:0x\w+ in )?(?:\S+:\d+:)?(?:void )?([\w:]+)\s*[<(+]", report)
        if place is not None and place[1] in ours:
            errors[place[1]] = errors.get(place[1], 0) + 1
    return errors


def gpu_tests(here: Run, stage: Stage, seconds: float) -> Ended:
    """The test suite's checks that need a card, by file; to pretend, a few others."""
    if not gpu_facts.is_there("pytest"):
        return "not run: there is no pytest", True
    chosen = ["tests/test_cost.py"] if here.pretend else ["-m", "gpu", *gpu_test_files()]
    command = [sys.executable, "-m", "pytest", *chosen, "-v", "--no-header", "-p", "no:cacheprovider"]
    command.append("--continue-on-collection-errors")  # a file that needs a missing library keeps no other back
    if gpu_facts.is_there("xdist") and not here.pretend:
        command += ["-n", str(min(MOST_WORKERS, machine.usable_cores()))]
    outcome = here.run(command, seconds, {} if here.pretend else {"GPUBP_REQUIRE_GPU": "1"})
    here.found[stage.name] = found = {**read_pytest(outcome.text), "whole": outcome.code == 0 and not here.pretend}
    words = ", ".join(f"{number} {word}" for word, number in found["counts"].items())
    return outcome.how + (words or outcome.last), outcome.code is not None


def gpu_test_files() -> list[str]:
    """The test files that have checks for a card: with the marker, or with the fixture that has it."""
    has_some = re.compile(r"mark\.gpu\b|def test_\w+\([^)]*\bxp\b")
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in paths if has_some.search(path.read_text(encoding="utf-8"))]


def read_pytest(text: str) -> dict[str, Any]:
    """What ``pytest -v`` tells, also one that was ended: ``counts`` by word, ``failed`` with what is said of each."""
    words = re.findall(r"^(?:\[gw\d+\] \[ *\d+%\]|\S+::.*) (PASSED|FAILED|SKIPPED|ERROR)\b", text, re.MULTILINE)
    counts = {word.lower(): words.count(word) for word in ("FAILED", "ERROR", "PASSED", "SKIPPED") if word in words}
    lost = re.findall(r"^the device was lost first in .*$", text, re.MULTILINE)  # in the words of tests/conftest.py
    failed = lost + re.findall(r"^(?:FAILED|ERROR) (\S.*)$", text, re.MULTILINE)
    return {"counts": counts, "failed": failed}


STAGES = (
    Stage("facts", facts, 15, 5, always=True),
    Stage("compile", program("--compile"), 25, 10, always=True),
    Stage("smoke", job, 20, 10, goes_on=True),
    Stage("kernels", program("--quick"), 50, 20),
    Stage("floors", job, 40, 10, goes_on=True),
    Stage("race", job, 110, 30, goes_on=True),
    Stage("memcheck", memcheck, 45, 20),
    Stage("pytest", gpu_tests, 65, 25),
    Stage("bandwidth", job, 35, 10, goes_on=True),
    Stage("race-compile", job, 50, 35, goes_on=True),
    Stage("race-tf32", job, 25, 18, goes_on=True),
)
"""The most telling first. One run of 530 s gives each its turn, and so do two of 270, however long each one takes."""

# Within a process of its own.


JOBS: dict[str, Callable[[gpu_work.Place, gpu_work.Note], None]] = {
    "facts": lambda place, note: gpu_facts.facts(place.device, note),
    "smoke": functools.partial(gpu_work.each, "smoke", gpu_work.smoke_rows, gpu_work.smoke),
    "floors": functools.partial(gpu_work.each, "floors", gpu_work.floor_rows, gpu_work.floor),
    "bandwidth": functools.partial(gpu_work.each, "bandwidth", gpu_work.bandwidth_rows, gpu_work.bandwidth),
    **{name: functools.partial(gpu_races.run_race, name) for name in gpu_races.RACES},
}


def do(job: str, tiny: bool, seconds: float, path: Path) -> None:
    """Do a job, and write what it notes to the JSON file of all results each time.

    Args:
        job: A key of `JOBS`.
        tiny: See `gpu_work.Place`; the device is the CPU then.
        seconds: Likewise.
        path: The file.
    """
    known, parent = json.loads(path.read_text(encoding="utf-8")), os.getppid()

    def note(name: str, what: Any) -> None:
        if os.getppid() != parent:
            raise SystemExit("the run was killed: the results are the next one's")
        known[name] = what
        Results(known).save(path)

    JOBS[job](gpu_work.Place("cpu" if tiny else "cuda", tiny, seconds, known), note)
