"""What the figures of `benchmarks.on_a_gpu` say: criteria met or missed, and a page of tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from . import gpu_races, gpu_work, kernels, tables
from .results import REASONS, SUBJECT, Results, rate, ratio
from .tables import Rows, as_markdown, short
from .verdict import verdict as race_verdict

Found = Mapping[str, Any]
"""What the stages have noted, by stage: see `benchmarks.gpu_stages`."""
Figures = dict[str, float | str | None]
"""By cell: a figure; what is wrong, in words, which counts as a miss; or None where it was not measured."""

EAGER, TIMES_EAGER, EAGER_BATCH = "torch", 3.0, 256
TIMES_FLOOR, FLOOR_BATCH, FLOOR_NET = 1.25, 4096, gpu_work.WIDE
SECONDS_PER_NODE, NODE_BATCH, NODE_NET = 2e-6, 32, gpu_work.NARROW
SHARE_OF_COPY = 0.85
NOT_BOUND = ("column_sum", "gather classes")
"""Operations that are no elementwise pass over an array."""
SHOWN = 8
"""Missed cells that a verdict names; the page has all."""


@dataclass(frozen=True)
class Verdict:
    """Whether a criterion is met.

    Attributes:
        what: The criterion.
        figures: What was measured, in words.
        missed: The cells that miss it, each with its figure or what is wrong, the worst first.
        unmeasured: The cells that were not measured.
    """

    what: str
    figures: str
    missed: tuple[tuple[str, str], ...]
    unmeasured: tuple[str, ...]

    @property
    def word(self) -> str:
        """``met`` (in every cell), ``MISSED`` or ``not measured`` (in some cell, and missed in none)."""
        return "MISSED" if self.missed else "not measured" if self.unmeasured else "met"


def verdicts(found: Found) -> list[Verdict]:
    """All criteria."""
    return [
        judged("every kernel agrees with its reference", right_kernels(found)),
        judged("every step is captured and agrees with float64", right_steps(found)),
        judged("every check for a card passes", right_tests(found)),
        judged("compute-sanitizer's memcheck finds nothing", right_accesses(found)),
        judged("samples/s at least the best peer's", ahead(found), at_least=1.0),
        judged(f"{TIMES_EAGER:g} times PyTorch eager up to batch {EAGER_BATCH}", ahead_of_eager(found), TIMES_EAGER),
        judged(
            f"a step at most {TIMES_FLOOR} of its floor, {FLOOR_NET} from batch {FLOOR_BATCH:,}",
            of_floors(found, "times_floor", lambda row: row["net"] == FLOOR_NET and row["batch"] >= FLOOR_BATCH),
            at_most=TIMES_FLOOR,
        ),
        judged(
            f"at most {SECONDS_PER_NODE * 1e6:g} us a node of a graph, {NODE_NET} at batch {NODE_BATCH}",
            of_floors(found, "us_per_node", lambda row: row["net"] == NODE_NET and row["batch"] == NODE_BATCH),
            at_most=SECONDS_PER_NODE * 1e6,
        ),
        judged(
            f"kernels at least {SHARE_OF_COPY:.0%} of the copy's bandwidth at {gpu_work.OPERAND // 2**20} MiB",
            near_copy(found),
            at_least=SHARE_OF_COPY,
        ),
    ]


def judged(what: str, values: Figures, at_least: float | None = None, at_most: float | None = None) -> Verdict:
    """A criterion by the figures of all cells that it is about."""
    measured = {name: value for name, value in values.items() if isinstance(value, float | int)}
    order = sorted(measured, key=measured.__getitem__, reverse=at_most is not None)  # the worst first
    wrong = [
        name
        for name in order
        if (at_least is not None and measured[name] < at_least) or (at_most is not None and measured[name] > at_most)
    ]
    failed = [(name, value) for name, value in values.items() if isinstance(value, str)]
    missed = (*((name, f"{measured[name]:.2f}") for name in wrong), *failed)
    unmeasured = tuple(name for name, value in values.items() if value is None)
    words = [f"{len(measured) - len(wrong)} of {len(values)}"]
    if order and (at_least is not None or at_most is not None):
        words.append(f"the worst is {measured[order[0]]:.2f}")
    if unmeasured:
        words.append(f"{len(unmeasured)} not measured")
    if missed:
        more = f" and {len(missed) - SHOWN} more" if len(missed) > SHOWN else ""
        words.append("missed: " + ", ".join(" ".join(pair) for pair in missed[:SHOWN]) + more)
    return Verdict(what, "; ".join(words), missed, unmeasured)


# What is right.


def of_programs(content: Mapping[str, Any] | None, wrong: Iterable[tuple[str, str]]) -> Figures:
    """What a program has found wrong; where that is nothing, all is well only if it has done the whole of its work."""
    return dict(wrong) or {"all": 1.0 if content is not None and content["whole"] else None}


def right_kernels(found: Found) -> Figures:
    """Every kernel against its reference, and whether all of them could be compiled."""
    wrong = [words for name in ("compile", "kernels") for words in found.get(name, {}).get("wrong", ())]
    return of_programs(found.get("kernels"), ((words, "") for words in wrong))


def right_tests(found: Found) -> Figures:
    """The test suite's checks for a card."""
    content = found.get("pytest")
    return of_programs(content, ((words, "") for words in (content or {"failed": ()})["failed"]))


def right_accesses(found: Found) -> Figures:
    """Errors of memory, by kernel."""
    content = found.get("memcheck")
    errors = (content or {"errors": {}})["errors"]
    return of_programs(content, ((name, f"{count} errors") for name, count in errors.items()))


def right_steps(found: Found) -> Figures:
    """Whether steps were captured, and agree."""
    place = gpu_work.Place("cuda", False, 0.0, {})
    values: Figures = dict.fromkeys(" ".join(row.values()) for row in gpu_work.smoke_rows(place))
    for row in rows_of(found, "smoke"):
        name = f"{row['net']} {row['optimizer']} {row['precision']}"
        if name not in values:
            continue
        if "failed" in row:
            values[name] = row["failed"]
        elif row["why_not_captured"] is not None:
            values[name] = f"not captured: {row['why_not_captured']}"
        else:
            values[name] = row["share"] if row["agrees"] else f"DIFFERS by {row['share']:.1e}"
    return values


# What is fast.


def rows_of(found: Found, name: str) -> list[dict[str, Any]]:
    """The rows of a job."""
    return list(found.get(name, {}).get("rows", ()))


def cell_name(row: Mapping[str, Any]) -> str:
    """``784-512-512-10 adam 4,096 tf32``."""
    precision = row.get("precision", "float32")
    return f"{row['net']} {row['optimizer']} {row['batch']:,}" + ("" if precision == "float32" else f" {precision}")


def races(found: Found) -> Iterator[tuple[str, Results]]:
    """The races that have a cell, by name."""
    for name in gpu_races.RACES:
        if found.get(name, {}).get("cells"):
            yield name, Results(found[name])


def race_cells(found: Found, batches: int = 2**31) -> Iterator[tuple[str, Results | None, dict[str, Any]]]:
    """Each cell up to a batch size: its name, its race, what was measured; None and nothing where it was not."""
    place = gpu_work.Place("cuda", False, 0.0, {})
    for name, race in gpu_races.RACES.items():
        results = Results({"cells": [], **found.get(name, {})})
        raced = {cell_name(cell): cell for cell in results.content["cells"]}
        for case in race.cases(place):
            cell = cell_name(vars(case))
            if case.batch <= batches:
                words = cell + (" (torch-compile)" if "torch-compile" in race.peers else "")
                yield words, results if cell in raced else None, raced.get(cell, {})


def of_subject(cell: dict[str, Any], other: str) -> float | str:
    """How many times as fast as another peer gpubp is; or why it has no figure."""
    if (value := ratio(cell, SUBJECT, other)) is not None:
        return value
    entry = cell["peers"].get(SUBJECT, {})
    return f"no figure of {SUBJECT}: " + next((entry[kind] for kind in REASONS if kind in entry), "not timed")


def ahead(found: Found) -> Figures:
    """Against the best peer of each cell."""
    values: Figures = {}
    for name, results, cell in race_cells(found):
        best = None if results is None else results.best_peer(cell)
        values[name if best is None else f"{name} against {best}"] = None if best is None else of_subject(cell, best)
    return values


def ahead_of_eager(found: Found) -> Figures:
    """Against PyTorch's eager steps, where launches are what takes the time."""
    values: Figures = {}
    for name, results, cell in race_cells(found, EAGER_BATCH):
        if "torch-compile" not in name:
            values[name] = of_subject(cell, EAGER) if results is not None and rate(cell, EAGER) else None
    return values


def of_floors(found: Found, key: str, counts: Callable[[Mapping[str, Any]], bool]) -> Figures:
    """A figure of the steps that count."""
    place = gpu_work.Place("cuda", False, 0.0, {})
    values: Figures = {cell_name(row): None for row in gpu_work.floor_rows(place) if counts(row)}
    for row in rows_of(found, "floors"):
        if (name := cell_name(row)) in values:
            uncaptured = row.get("why_not_captured")
            values[name] = row.get("failed") or (f"not captured: {uncaptured}" if uncaptured else row[key])
    return values


def near_copy(found: Found) -> Figures:
    """Kernels that are a pass over memory, as a share of the copy."""
    values: Figures = {name: None for name in kernels.operations() if not name.startswith(NOT_BOUND)}
    for row in rows_of(found, "bandwidth"):
        if row["kernel"] in values and row["bytes"] == gpu_work.OPERAND:
            values[row["kernel"]] = row["failed"] if "failed" in row else row["share_of_copy"]
    return values


# Words.


def summary(found: Found) -> list[str]:
    """The stages and the criteria, for a terminal."""
    stages = [f"{name}: {stage['verdict']} ({stage['seconds']:.0f} s)" for name, stage in found["stages"].items()]
    return [*stages, "", *(f"{one.word}: {one.what}: {one.figures}" for one in verdicts(found))]


def page(found: Found) -> str:
    """Everything, as Markdown."""
    parts = ["# gpubp on a GPU", "", f"- card: {found.get('card', 'unknown')}"]
    parts += [f"- {name}: {fact}" for name, fact in found.get("facts", {}).items()]
    parts += [f"- run: {words}" for words in found.get("runs", ())]
    if rates := found.get("ceilings"):
        words = ", ".join(
            f"{name} products {value / 1e12:,.1f} TFLOP/s" for name, value in rates.items() if name != "copy"
        )
        parts.append(f"- ceilings: copy {rates['copy'] / 1e9:,.0f} GB/s read and written; {words}")
    stages = [[name, stage["verdict"], f"{stage['seconds']:.0f}"] for name, stage in found["stages"].items()]
    every = verdicts(found)
    parts += ["", "## Stages", "", as_markdown([["stage", "verdict", "seconds"], *stages]), "", "## Criteria", ""]
    parts.append(as_markdown([["criterion", "", "cells"], *([one.what, one.word, one.figures] for one in every)]))
    missed: Rows = [["criterion", "cell", "figure"], *([one.what, *cell] for one in every for cell in one.missed)]
    parts += ["", "### Missed", "", as_markdown(missed)] if len(missed) > 1 else []
    unmeasured = [f"- {one.what}: {', '.join(one.unmeasured)}" for one in every if one.unmeasured]
    parts += ["", "### Not measured", "", *unmeasured] if unmeasured else []
    for name, results in races(found):
        facts = [*tables.heading(Results({**results.content, "machine": {}})), *tables.peers(results)]
        parts += ["", f"## {name}", "", *(f"- {line}" for line in facts)]
        parts += ["", tables.LEGEND + ":"]
        for panel in results.panels:
            rows, notes = tables.throughput(results, panel)
            parts += ["", f"**{', '.join(panel)}**", "", as_markdown(rows), "", *(f"- {note}" for note in notes)]
        parts += ["", *(f"- {sentence}" for sentence in race_verdict(results))]
    for name, (title, columns) in TABLES.items():
        if rows := rows_of(found, name):
            parts += ["", f"## {title}", "", as_markdown([list(columns), *(line(row, columns) for row in rows)])]
    return "\n".join(parts) + "\n"


Columns = dict[str, Callable[[Mapping[str, Any]], str]]


def line(row: Mapping[str, Any], columns: Columns) -> list[str]:
    """A row of a table; of one that failed, what it is and why."""
    if "failed" not in row:
        return [words(row) for words in columns.values()]
    return [*(str(row.get(name, "-")) for name in list(columns)[:-1]), row["failed"]]


def _value(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: str(row[name])


TABLES: dict[str, tuple[str, Columns]] = {
    "smoke": (
        "Steps against float64",
        {
            "net": _value("net"),
            "optimizer": _value("optimizer"),
            "precision": _value("precision"),
            "mean error over mean change": lambda row: f"{row['share']:.1e}" + ("" if row["agrees"] else ", DIFFERS"),
            "captured": lambda row: row["why_not_captured"] or "yes",
        },
    ),
    "floors": (
        "Steps against their floor",
        {
            "net": _value("net"),
            "optimizer": _value("optimizer"),
            "batch": _value("batch"),
            "precision": _value("precision"),
            "us a step": lambda row: f"{row['step_seconds'] * 1e6:,.1f}",
            "samples/s": lambda row: short(row["batch"] / row["step_seconds"]),
            "of its floor": lambda row: f"{row['times_floor']:.2f} x",
            "nodes": lambda row: f"{row['nodes'] or '-'} {row['counted']}",
            "us a node": lambda row: f"{row['us_per_node']:.2f}" if row["nodes"] else "-",
            "captured": lambda row: row["why_not_captured"] or "yes",
        },
    ),
    "bandwidth": (
        "Kernels on arrays from memory",
        {
            "kernel": _value("kernel"),
            "us": lambda row: f"{row['seconds'] * 1e6:,.1f}",
            "GB/s": lambda row: f"{row['bytes_per_second'] / 1e9:,.0f}",
            "of the copy": lambda row: f"{row['share_of_copy']:.0%}",
            "of its ceiling": lambda row: f"{row['share_of_ceiling']:.0%}",
            "timed": lambda row: "in a graph" if row["as_graph"] else "call by call",
        },
    ),
}
"""What a job's rows show, by job."""
