"""The stages of `benchmarks.on_a_gpu`: what each runs, for how long, and what its output says.

Every stage is one process or a few, ended when its time is up. What it has noted by then is kept: nothing that goes
wrong in one stage keeps the next one from running, and a later run into the same folder goes on where this one ended.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpubp.errors import DataError

from . import gpu_report, gpu_work
from .results import Results

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = Path(__file__).with_name("on_a_gpu.py")
RESERVE = 5.0
"""Seconds that are kept for the report."""
GRACE = 5.0
"""Seconds between asking a process to end and ending it."""
MOST_LOG = 2**22
"""Bytes of a log that are kept."""
PACKAGES = (
    "numpy",
    "cupy-cuda13x",
    "cupy-cuda12x",
    "nvmath-python",
    "numba",
    "torch",
    "triton",
    "jax",
    "jaxlib",
    "pytest",
)
METRICS = (
    "gpu__time_duration.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
)
"""What Nsight Compute is asked for."""
SANITIZERS = {"memcheck": 2, "racecheck": 1, "initcheck": 1}
"""The tools of compute-sanitizer, and their shares of its time: memcheck finds most, and slows down most."""
FILTERED = ("memcheck", "racecheck")
"""The tools that instrument our kernels alone. initcheck has to see what others write: what a kernel writes that it
does not instrument counts as never written. What it reports there is told from what it reports of our kernels."""
TOOL_OPTIONS = {"memcheck": ("--report-api-errors", "no"), "initcheck": ("--check-api-memory-access", "no")}
"""Kernels are what is looked at: CuPy tells errors of calls itself, and copies whole buffers whatever is in them."""
PRINTED = 1000
"""Reports that a tool prints at most."""
OVERRAN = "OVERRAN"
"""How the verdict of a stage begins whose time was up before it had done all; it goes on in the next run."""
TOOLS = ("/usr/local/cuda/bin", "/opt/nvidia/nsight-compute")


class Budget:
    """The time for everything.

    Args:
        seconds: From now on.
        clock: Tells the time.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds, but for what the report takes."""
        return self._end - self._clock() - RESERVE

    def limit(self, most: float, least: float) -> float | None:
        """How long a stage may take: at most so long; None where there is not even the least of what it needs."""
        return None if self.left < least else min(most, self.left)


@dataclass
class Outcome:
    """How a command ended.

    Attributes:
        code: Its exit code; None where it was ended because its time was up, or was not there.
        text: What it printed.
        seconds: How long it took.
    """

    code: int | None
    text: str
    seconds: float = 0.0


def run(command: Sequence[str], seconds: float, log: Path, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run a command with its output in a log, for so long at most.

    Args:
        command: The program and its arguments.
        seconds: After that, it and all processes that it has started in its group are ended.
        log: A file; what is there stays, and the output is added.
        environment: More environment variables.
    """
    began = time.monotonic()
    place = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": place, "PYTHONUNBUFFERED": "1", **(environment or {})}
    with log.open("ab") as file:
        file.write(f"\n$ {shlex.join(command)}\n".encode())
        file.flush()
        start = file.tell()
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            file.write(f"{error}\n".encode())
            return Outcome(None, str(error))
        code: int | None = None
        try:
            code = process.wait(timeout=max(0.0, seconds))
        except subprocess.TimeoutExpired:
            file.write(f"\nended after {seconds:.0f} s\n".encode())
        finally:  # also where this process itself is told to end
            _end(process)
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace")
    shorten(log)
    return Outcome(code, text, time.monotonic() - began)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and whatever it has left behind in its group: politely, then for good."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE)


def shorten(log: Path, most: int = MOST_LOG) -> None:
    """Leave out the middle of a log that is too long."""
    if log.stat().st_size > most:
        content = log.read_bytes()
        log.write_bytes(content[: most // 4] + b"\n[...]\n" + content[-most // 2 :])


# What the output of other programs says.


def read_pytest(text: str) -> dict[str, Any]:
    """The counts of a run of ``pytest -v``, and the names of what passed, was skipped, and failed."""
    counts = {}
    for line in reversed(text.splitlines()):
        if re.search(r"\bin [\d.]+s", line) and (found := re.findall(r"(\d+) (passed|failed|errors?|skipped)", line)):
            counts = {word.removesuffix("s") if word == "errors" else word: int(number) for number, word in found}
            break
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+(?:\[[^\]]*\])?)", text, re.MULTILINE)
    ended = re.findall(r"^(\S+::.*?) (PASSED|SKIPPED|XFAIL|FAILED|ERROR)\b", text, re.MULTILINE)
    failed += [name for name, word in ended if word in ("FAILED", "ERROR")]
    done = [name for name, word in ended if word not in ("FAILED", "ERROR")]
    if not counts:  # it was ended before it had counted
        words = [word.lower() for _, word in ended]
        counts = {word: words.count(word) for word in ("failed", "passed", "skipped", "error") if word in words}
    return {"counts": counts, "failed": list(dict.fromkeys(failed)), "done": list(dict.fromkeys(done))}


def pytest_verdict(read: dict[str, Any], code: int | None) -> str:
    """The counts in words; what is missing is told."""
    words = ", ".join(f"{number} {word}" for word, number in read["counts"].items()) or "no summary"
    if code is None:
        so_far = f", {len(read['failed'])} failures so far" if read["failed"] else ""
        return f"{OVERRAN}: {words}{so_far}"
    return words if code == 0 else f"FAILED: {words}"


def read_sanitizer(text: str, ours: Sequence[str]) -> dict[str, Any]:
    """What a tool of compute-sanitizer tells of `tests/every_kernel.py`.

    Args:
        text: What both printed.
        ours: The names of our kernels.

    Returns:
        ``errors``: how many the tool counts, or None, with ``why`` there is no number; ``reports``: by kernel, of ours,
        how many it shows; ``others``: how many of other kernels; ``launched``: how many kernels were launched.
    """
    read: dict[str, Any] = {"errors": None, "reports": {}, "others": 0}
    if found := re.findall(r"(?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)", text):
        read["errors"] = int("".join(found[-1]))
    else:
        known = re.search(
            r"^.*(Device not supported|No such file|not found|Unable to|nsupported).*$", text, re.MULTILINE
        )
        read["why"] = known[0].strip() if known else "no summary"
    kinds = "Invalid|Uninitialized|Misaligned|Error|Warning|Race|Potential"
    for report in re.split(rf"^(?========== (?:{kinds}))", text, flags=re.MULTILINE)[1:]:
        place = re.search(r"\bat (?:0x\w+ in )?(?:\S+:\d+:)?(?:void )?([\w:]+)\s*[<(+]", report)
        if place is None and not report.startswith("========= Error: Device not supported"):
            read["reports"]["no kernel"] = read["reports"].get("no kernel", 0) + 1  # of a call of the driver, say
        elif place is not None and place[1] in ours:
            read["reports"][place[1]] = read["reports"].get(place[1], 0) + 1
        elif place is not None:
            read["others"] += 1
    launched = re.findall(r"(\d+) kernels launched", text)
    read["launched"] = int(launched[-1]) if launched else 0
    return read


def sanitizer_errors(read: Mapping[str, Any]) -> int:
    """How many errors of ours a tool has found: those that it counts, but for those that it shows in other kernels."""
    shown = sum(read["reports"].values())
    return max(shown, (read["errors"] or 0) - read["others"] if read["others"] < PRINTED else shown)


def may_hide(read: Mapping[str, Any]) -> bool:
    """Whether a tool has printed as many reports as it may: there may be others, of our kernels too."""
    return bool(sum(read["reports"].values()) + read["others"] >= PRINTED)


def sanitizer_words(tool: str, read: Mapping[str, Any]) -> str:
    """A tool in words: the kernels it has seen, and the errors."""
    if "unseen" in read:
        return f"{tool} not run: {read['unseen']}"
    if read.get("overran"):
        words = "overran"
    else:
        words = read["why"] if read["errors"] is None else f"{sanitizer_errors(read)} errors"
    words = f"{tool} {words}, {read['launched']} kernels seen"
    if read["reports"]:
        words += " (" + ", ".join(f"{count} in {name}" for name, count in read["reports"].items()) + ")"
    if read["others"]:
        words += f", {read['others']} reports of other kernels"
    if may_hide(read):
        words += ", and more than are shown"
    return words + (f", exit code {read['code']}" if read.get("code") else "")


def sanitizer_verdict(tools: Mapping[str, dict[str, Any]]) -> str:
    """All tools in one line."""
    bad = any(
        "unseen" in read or sanitizer_errors(read) or read.get("code") or may_hide(read) for read in tools.values()
    )
    overran = any(read.get("overran") for read in tools.values())
    unread = any("unseen" not in read and read["errors"] is None and not read.get("overran") for read in tools.values())
    how = f"{OVERRAN}: " if overran else ""
    how += "FAILED: " if bad or unread or not tools else ""
    return how + "; ".join(sanitizer_words(tool, read) for tool, read in tools.items())


def job_verdict(name: str, noted: dict[str, Any], code: int | None) -> str:
    """What a job of `gpu_work` has brought."""
    how = f"{OVERRAN}: " if code is None else f"FAILED ({code}): " if code else ""
    if name in gpu_work.LISTS:
        rows = noted.get(name, [])
        planned = noted.get(f"{name}-planned", len(rows))
        if not how and len(rows) < planned:  # it has ended by itself, in time
            how = f"{OVERRAN}: "
        if name == "smoke":
            return _smoke_verdict(rows, planned, how)
        failed = sum("failed" in row for row in rows)
        count = f"{len(rows)}" if len(rows) == planned else f"{len(rows)} of {planned}"
        return how + ("FAILED: " if not how and (failed or not rows) else "") + f"{count} figures, {failed} failed"
    content = noted.get(name, {})
    done, planned = len(content.get("cells", ())), content.get("cells_planned", "?")
    return (how or ("" if done else "FAILED: ")) + f"{done} of {planned} cells"


def _smoke_verdict(rows: Sequence[Mapping[str, Any]], planned: int, how: str) -> str:
    """Every row must agree, and on a CUDA device every step must have been captured."""
    good, captured = (sum(bool(row.get(key)) for row in rows) for key in ("agrees", "captured"))
    loose = [row for row in rows if row.get("cuda") and not row["captured"]]
    words = f"{good} of {planned} agree with float64, {captured} captured"
    if loose:
        words += f"; NOT CAPTURED: {loose[0]['why']}"
    bad = not rows or good < len(rows) or loose
    return how + ("FAILED: " if bad and not how.startswith("FAILED") else "") + words


# The stages.


@dataclass
class Run:
    """One run of all stages.

    Attributes:
        out: The folder of the results.
        pretend: Whether the CPU plays the device, with everything tiny.
        found: All that is known so far.
    """

    out: Path
    pretend: bool
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """Where the jobs run."""
        return "cpu" if self.pretend else "cuda"

    def log(self, name: str) -> Path:
        """The file of a log."""
        return self.out / f"{name}.txt"

    def save(self) -> None:
        """Write the results and the page."""
        Results(self.found).save(self.out / "results.json")
        try:
            page = gpu_report.page(self.found)
        except Exception as error:  # the figures count: no stage is lost for a page about another
            page = f"There is no page: {type(error).__name__}: {error}\n"
        (self.out / "report.md").write_text(page, encoding="utf-8")

    def job(self, name: str, seconds: float) -> str:
        """A job of `gpu_work` in a process of its own; what it notes becomes part of what is known."""
        kept = {key: self.found[key] for key in (name, f"{name}-planned") if key in self.found}
        self.part.write_text(json.dumps(kept), encoding="utf-8")  # it goes on from there
        command = [sys.executable, str(SCRIPT), "--do", name, "--seconds", f"{0.9 * seconds:.1f}"]
        command += ["--out", str(self.part), *(["--pretend"] if self.pretend else [])]
        outcome = run(command, seconds, self.log("jobs"))
        return job_verdict(name, self.take_part(), outcome.code)

    def forget(self, stage: str) -> None:
        """Let go of what a stage has brought: it is done anew."""
        for key in (stage, f"{stage}-planned", {"sanitizer": "sanitizers"}.get(stage, stage)):
            self.found.pop(key, None)

    @property
    def part(self) -> Path:
        """Where a job notes what it finds."""
        return self.out / "part.json"

    def take_part(self) -> dict[str, Any]:
        """Make what a job has noted part of what is known, and return it."""
        noted: dict[str, Any] = {}
        if self.part.exists():
            noted = json.loads(self.part.read_text(encoding="utf-8"))
            self.found.update(noted)
            self.part.unlink()
        return noted


def earlier(out: Path, pretend: bool) -> Run:
    """A run that goes on with what an earlier one into the same folder has left; also where that one was ended.

    Raises:
        DataError: The results there can't be read, or are of another kind.
    """
    here, path = Run(out, pretend), out / "results.json"
    if path.exists():
        try:
            here.found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path} is no JSON ({error}): choose another --out") from error
        if here.found.get("pretend", False) != pretend:
            raise DataError(f"{path} is {'not ' if pretend else ''}of a run with --pretend: choose another --out")
        if here.found.get("stages"):
            here.take_part()
    return here


def sources() -> str:
    """A word for the state of the sources that are measured: two runs of the same word had the same."""
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob("gpubp/**/*.py"), *ROOT.glob("kernels/*.cu*")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class OtherMachineError(DataError):
    """The results in the folder are not of this machine."""


def facts(here: Run, seconds: float) -> str:
    """The machine: card, driver, versions. Figures of two cards do not go into one folder.

    Raises:
        OtherMachineError: An earlier run into the same folder was on another card.
    """
    before = here.found.get("facts", {})
    found: dict[str, Any] = {"date": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}
    found["command"] = shlex.join(["python", *sys.argv])
    found["sources"] = sources()
    query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.memory,power.limit"
    card = run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], seconds / 3, here.log("facts"))
    found["card"] = card.text.strip() if card.code == 0 else "nvidia-smi does not run"
    if before and before["card"] != found["card"]:
        raise OtherMachineError(
            f"the results in {here.out} are of another card ({before['card']}; here is {found['card']}): "
            "choose another --out"
        )
    info = run([sys.executable, "-m", "gpubp", "info"], seconds / 2, here.log("facts"))
    for line in info.text.splitlines() if info.code == 0 else []:
        name, separator, fact = line.partition(":")
        if separator:
            found[name.strip()] = fact.strip()
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    here.found["facts"] = found
    runs = here.found.setdefault("runs", [])
    runs.append({key: found[key] for key in ("date", "command", "sources")})
    return "known" if info.code == 0 and (here.pretend or card.code == 0) else "FAILED: see facts.txt"


def gpu_tests(here: Run, seconds: float) -> str:
    """The test suite's checks that need a card; to pretend, a few others. Those that an earlier run has done rest."""
    chosen = ["tests/test_cost.py"] if here.pretend else ["-m", "gpu"]
    before = here.found.get("pytest", {}).get("done", [])
    command = [sys.executable, "-m", "pytest", *chosen, "-v", "--no-header", "-p", "no:cacheprovider"]
    command.append("--continue-on-collection-errors")  # a test file that needs a missing library keeps no other back
    arguments = here.out / "tests-done.txt"
    if before:
        # What is deselected is all that begins so: a name without parameters might be the beginning of another.
        exact = [name for name in before if name.endswith("]")]
        arguments.write_text("".join(f"--deselect={name}\n" for name in exact), encoding="utf-8")
        command.append(f"@{arguments}")
    required = {} if here.pretend else {"GPUBP_REQUIRE_GPU": "1"}
    outcome = run(command, seconds, here.log("pytest"), required)
    arguments.unlink(missing_ok=True)
    read = read_pytest(outcome.text)
    here.found["pytest"] = {**read, "done": [*before, *read["done"]]}
    words = pytest_verdict(read, outcome.code)
    return f"{words}, and {len(before)} in an earlier run" if before else words


def sanitizers(here: Run, seconds: float) -> str:
    """Every kernel under the tools of compute-sanitizer; those rest that have ended in an earlier run."""
    program = find_tool("compute-sanitizer")
    if program is None:
        return "not run: there is no compute-sanitizer"
    tools = here.found.setdefault("sanitizers", {})
    end = time.monotonic() + seconds
    listed = run([sys.executable, "tests/every_kernel.py", "--names"], seconds / 4, here.log("sanitizer"))
    ours = listed.text.split() if listed.code == 0 else []
    waiting = [
        tool for tool in SANITIZERS if tool not in tools or tools[tool].get("overran") or "unseen" in tools[tool]
    ]
    if not ours:
        return "FAILED: tests/every_kernel.py --names does not run: see sanitizer.txt"
    planted = sanitizer_command(program, "memcheck", ours, ["--planted"])
    canary = run(planted, (end - time.monotonic()) / 4, here.log("sanitizer"))
    if not read_sanitizer(canary.text, ours)["reports"].get("combine"):
        why = "memcheck does not notice a planted error, so that no tool's silence says anything"
        tools.update({tool: {"unseen": why} for tool in waiting})
        return sanitizer_verdict(tools)
    while waiting:
        tool = waiting.pop(0)
        share = SANITIZERS[tool] / (SANITIZERS[tool] + sum(SANITIZERS[other] for other in waiting))
        command = sanitizer_command(program, tool, ours, ["--quick", "--without-pool"])
        outcome = run(command, share * (end - time.monotonic()), here.log("sanitizer"))
        tools[tool] = {**read_sanitizer(outcome.text, ours), "code": outcome.code, "seconds": outcome.seconds}
        if outcome.code is None:
            tools[tool]["overran"] = True
        here.save()
    return sanitizer_verdict(tools)


def sanitizer_command(program: str, tool: str, ours: Sequence[str], more: Sequence[str]) -> list[str]:
    """How a tool is run on `tests/every_kernel.py`.

    A kernel of ours is known by the beginning of its mangled name: ``_Z4adamI`` is the template ``adam``.

    Args:
        program: The path of compute-sanitizer.
        tool: One of `SANITIZERS`.
        ours: The names of our kernels.
        more: Arguments of the script.
    """
    command = [program, "--tool", tool, "--print-limit", str(PRINTED)]
    command += TOOL_OPTIONS.get(tool, ())
    if tool in FILTERED:
        command += [word for name in ours for word in ("--kernel-name", f"kernel_substring=_Z{len(name)}{name}I")]
    return [*command, sys.executable, "tests/every_kernel.py", *more]


def profiler(here: Run, seconds: float) -> str:
    """The kernels of one step as Nsight Compute sees them."""
    program = find_tool("ncu")
    if program is None:
        return "not run: there is no ncu"
    command = [program, "--clock-control", "none", "--launch-skip", "80", "--launch-count", "40"]
    job = [sys.executable, str(SCRIPT), "--do", "one-step", "--seconds", "60", "--out", str(here.out / "part.json")]
    outcome = run([*command, "--metrics", ",".join(METRICS), *job], seconds, here.log("ncu"))
    (here.out / "part.json").unlink(missing_ok=True)
    seen = outcome.text.count(METRICS[0])
    return f"{'' if outcome.code == 0 and seen else 'FAILED: '}{seen} kernels seen"


def find_tool(name: str) -> str | None:
    """The path of one of CUDA's programs, on the PATH or where they are installed."""
    places = os.pathsep.join([os.environ.get("PATH", ""), *TOOLS])
    return shutil.which(name, path=places)


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        name: As the table calls it.
        work: Does it, within so many seconds, and says how it went.
        most: Seconds that it may take.
        least: Seconds without which it is not begun.
    """

    name: str
    work: Callable[[Run, float], str]
    most: float
    least: float


def _job(name: str) -> Callable[[Run, float], str]:
    return lambda here, seconds: here.job(name, seconds)


STAGES = (
    Stage("facts", facts, 15, 5),
    Stage("smoke", _job("smoke"), 60, 20),
    Stage("race-first", _job("race-first"), 220, 40),
    Stage("race-first-tf32", _job("race-first-tf32"), 40, 25),
    Stage("race-first-max", _job("race-first-max"), 90, 60),
    Stage("pytest", gpu_tests, 110, 30),
    Stage("sanitizer", sanitizers, 150, 40),
    Stage("kernels", _job("kernels"), 60, 20),
    Stage("floors", _job("floors"), 80, 20),
    Stage("ride", _job("ride"), 25, 10),
    Stage("race-rest", _job("race-rest"), 60, 30),
    Stage("race-tf32", _job("race-tf32"), 60, 30),
    Stage("race-max", _job("race-max"), 60, 40),
    Stage("ncu", profiler, 20, 10),
)
"""The most telling first. Two runs of nine minutes give each its turn, however long the others take."""
NO_TIME = "not run: no time left"
NOT_PRETENDED = {
    "sanitizer": "needs a GPU",
    "race-first-tf32": "needs a GPU",
    "race-first-max": "needs a GPU",
    "ride": "needs a GPU",
    "race-tf32": "needs a GPU",
    "race-max": "needs a GPU",
    "ncu": "needs a GPU",
}


def is_finished(stage: Mapping[str, Any]) -> bool:
    """Whether a stage in the table has done all that it can do: if not, the next run goes on with it."""
    verdict = stage["verdict"]
    return not verdict.startswith(OVERRAN) and verdict != NO_TIME


def in_turn(stages: Sequence[Stage], found: Mapping[str, Any], anew: bool = False) -> list[Stage]:
    """Which stages a run is to do, in order: the facts, what had no turn before, what its time was too short for.

    Args:
        stages: Those to choose from.
        found: What is known so far.
        anew: Whether stages that are finished are to be done again, too.
    """
    table = found.get("stages", {})
    begun = {name for name, stage in table.items() if stage["verdict"] != NO_TIME}
    first = [stage for stage in stages if stage.name == "facts"]
    rest = [stage for stage in stages if stage.name != "facts"]
    new = [stage for stage in rest if stage.name not in begun]
    unfinished = [stage for stage in rest if stage.name in begun and (anew or not is_finished(table[stage.name]))]
    return [*first, *new, *unfinished]


def run_stages(
    stages: Sequence[Stage],
    here: Run,
    budget: Budget,
    tell: Callable[[str], None] = print,
    anew: bool = False,
) -> dict[str, Any]:
    """Run stages as long as there is time; whatever happens in one, the next one runs, and what is known is written.

    Args:
        stages: In order; those that an earlier run has finished are left out.
        here: Where, and what is known.
        budget: The time.
        tell: Says how far it is.
        anew: Whether stages that are finished are to be done again, too.

    Returns:
        What is known.

    Raises:
        OtherMachineError: The results that are there are not of this machine.
    """
    table = here.found.setdefault("stages", {})
    here.found["pretend"] = here.pretend
    try:
        for stage in in_turn(stages, here.found, anew):
            began = time.monotonic()
            seconds = budget.limit(stage.most, stage.least)
            before = table.get(stage.name)
            if anew and before is not None and is_finished(before):
                here.forget(stage.name)
            if here.pretend and stage.name in NOT_PRETENDED:
                verdict = f"not run: {NOT_PRETENDED[stage.name]}"
            elif seconds is None:
                if before is not None:
                    continue  # what it has done before still counts
                verdict = NO_TIME
            else:
                try:
                    verdict = stage.work(here, seconds)
                except OtherMachineError:
                    raise
                except Exception as error:
                    verdict = f"FAILED: {type(error).__name__}: {error}"
            spent = (
                time.monotonic() - began + (before["seconds"] if before is not None and stage.name != "facts" else 0)
            )
            table[stage.name] = {"verdict": verdict, "seconds": round(spent, 1)}
            tell(f"{stage.name}: {verdict} ({time.monotonic() - began:.0f} s)")
            here.save()
    except OtherMachineError:
        raise  # nothing of this machine gets among the figures of another
    except BaseException:
        here.take_part()  # a stage was ended from outside: what it has noted counts
        here.save()
        raise
    here.save()
    return here.found


def do(job: str, pretend: bool, seconds: float, out: Path) -> None:
    """A job in this process."""
    gpu_work.do(job, "cpu" if pretend else "cuda", pretend, seconds, out)
