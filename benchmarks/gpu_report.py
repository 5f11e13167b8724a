"""What the figures of `benchmarks.on_a_gpu` say: criteria met or missed, and a page of tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from . import gpu_work, kernels, tables
from .results import REASONS, SUBJECT, Results, rate, ratio
from .tables import Rows, as_markdown, short
from .verdict import verdict as race_verdict

RACES = ("race-first", "race-first-tf32", "race-first-max", "race-rest", "race-tf32", "race-max")
EAGER = "torch"
OPTIMIZERS = ("sgd", "adam")
TIMES_EAGER, EAGER_BATCH = 3.0, 256
TIMES_FLOOR, FLOOR_BATCHES, FLOOR_NETS = 1.25, (4096, 65536), ("784-512-512-10", "4096-4096-4096-4096-4096")
SECONDS_PER_NODE, NODE_BATCH, NODE_NETS = 2e-6, 32, ("64-64-64-64-10", "784-128-10")
SHARE_OF_COPY, COPY_BYTES = 0.85, 2**26
NOT_BOUND = ("matmul", "column_sum", "gather classes")
"""Operations that are no elementwise pass over an array; how the names begin."""
SHOWN = 8
"""Missed cells that a verdict names; the page has all."""

Identity = tuple[str, str, int, str]
"""Net, optimizer, batch and precision of a step."""
Figures = dict[str, float | str | None]
"""By cell: a figure; the reason why there is none, which counts as a miss; or None where it was not measured."""


@dataclass(frozen=True)
class Verdict:
    """Whether a criterion is met.

    Attributes:
        what: The criterion.
        met: Whether it is: in every cell. None where no cell misses it, but some were not measured.
        figures: What was measured, in words: how many cells, the worst, those that miss it.
        missed: The cells that miss it, each with its figure in words, the worst first.
        unmeasured: The cells that were not measured.
    """

    what: str
    met: bool | None
    figures: str
    missed: tuple[tuple[str, str], ...] = ()
    unmeasured: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """``met``, ``MISSED`` or ``not measured``."""
        return {True: "met", False: "MISSED", None: "not measured"}[self.met]


def verdicts(found: dict[str, Any]) -> list[Verdict]:
    """All criteria.

    Args:
        found: What the stages have noted: see `benchmarks.gpu_stages`.
    """
    return [ahead(found), ahead_of_eager(found), near_floor(found), quick_nodes(found), near_copy(found)]


def races(found: dict[str, Any]) -> Iterator[tuple[str, Results]]:
    """The races that have a cell, by name."""
    for key in RACES:
        content = found.get(key)
        if content and content.get("cells"):
            yield key, Results(content)


def race_steps() -> list[Identity]:
    """The steps that a race is judged by."""
    return list(product(gpu_work.NETS, OPTIMIZERS, gpu_work.RACE_BATCHES, gpu_work.PRECISIONS))


def _name(identity: Identity) -> str:
    net, optimizer, batch, precision = identity
    return f"{_short(net)} {optimizer} {batch:,}" + ("" if precision == "float32" else f" {precision}")


def _identity(row: dict[str, Any]) -> Identity:
    return row["net"], row["optimizer"], row["batch"], row.get("precision", "float32")


def _cells(found: dict[str, Any]) -> Iterator[tuple[str, Results, dict[str, Any]]]:
    for _, results in races(found):
        for cell in results.content["cells"]:
            yield _name(_identity(cell)), results, cell


def _of_subject(cell: dict[str, Any], other: str) -> float | str:
    """How many times as fast as another peer gpubp is; or why it has no figure."""
    value = ratio(cell, SUBJECT, other)
    if value is not None:
        return value
    entry = cell["peers"].get(SUBJECT, {})
    return f"no figure of {SUBJECT}: " + next((entry[kind] for kind in REASONS if kind in entry), "not timed")


def _worse(values: Figures, name: str, value: float | str) -> None:
    """Note a figure; of two races in the same cell, the worse counts."""
    before = values.get(name)
    if before is None or (isinstance(before, float) and (isinstance(value, str) or value < before)):
        values[name] = value


def ahead(found: dict[str, Any]) -> Verdict:
    """At least as many samples per second as the best peer, in every cell."""
    values: Figures = dict.fromkeys(map(_name, race_steps()))
    against = {}
    for name, results, cell in _cells(found):
        values.setdefault(name, None)
        if (best := results.best_peer(cell)) is not None:
            _worse(values, name, _of_subject(cell, best))
            against[name] = f"{name} against {best}"
    values = {against.get(name, name): value for name, value in values.items()}
    verdict = _judged("samples/s at least the best peer's in every cell", values, at_least=1.0)
    absent = [
        name
        for name in dict.fromkeys(name for _, results in races(found) for name in results.content["peers"])
        if all("absent" in results.content["peers"].get(name, {"absent": ""}) for _, results in races(found))
    ]
    return replace(verdict, figures=f"{verdict.figures}; without {', '.join(absent)}") if absent else verdict


def ahead_of_eager(found: dict[str, Any]) -> Verdict:
    """Three times PyTorch's eager steps, where launches are what takes the time."""
    values: Figures = dict.fromkeys(_name(step) for step in race_steps() if step[2] <= EAGER_BATCH)
    for name, _, cell in _cells(found):
        if cell["batch"] <= EAGER_BATCH:
            values.setdefault(name, None)
            if rate(cell, EAGER):
                _worse(values, name, _of_subject(cell, EAGER))
    what = f"at least {TIMES_EAGER:g} times PyTorch eager at batch <= {EAGER_BATCH}"
    return _judged(what, values, at_least=TIMES_EAGER)


def near_floor(found: dict[str, Any]) -> Verdict:
    """Large steps near the sum of what each operation must take, in each precision."""
    steps = product(FLOOR_NETS, OPTIMIZERS, FLOOR_BATCHES, gpu_work.PRECISIONS)
    values: Figures = dict.fromkeys(map(_name, steps))
    for row in found.get("floors", ()):
        if (name := _name(_identity(row))) in values:
            values[name] = row["failed"] if "failed" in row else row["times_floor"]
    what = f"step at most {TIMES_FLOOR} of its floor at batch >= {FLOOR_BATCHES[0]:,}"
    return _judged(what, values, at_most=TIMES_FLOOR)


def quick_nodes(found: dict[str, Any]) -> Verdict:
    """Small steps as quick as the launches of their graph."""
    values: Figures = dict.fromkeys(map(_name, product(NODE_NETS, OPTIMIZERS, (NODE_BATCH,), ("float32",))))
    for row in found.get("floors", ()):
        if (name := _name(_identity(row))) in values:
            if "failed" in row:
                values[name] = row["failed"]
            else:
                values[name] = row["seconds_per_node"] if row["captured"] else f"not captured: {row['why']}"
    what = f"at most {SECONDS_PER_NODE * 1e6:g} us per graph node at batch {NODE_BATCH}, narrow nets"
    return _judged(what, values, at_most=SECONDS_PER_NODE, unit=" us", scale=1e6)


def near_copy(found: dict[str, Any]) -> Verdict:
    """Elementwise and optimizer kernels near the bandwidth of a copy, on arrays from memory."""
    values: Figures = {
        f"{name} {size}": None
        for (size, nbytes), name in product(gpu_work.PROFILED.items(), kernels.operations())
        if nbytes >= COPY_BYTES and not name.startswith(NOT_BOUND)
    }
    for row in found.get("kernels", ()):
        if (name := f"{row['kernel']} {row['size']}") in values:
            values[name] = row["failed"] if "failed" in row else row["share_of_copy"]
    what = f"kernels at least {SHARE_OF_COPY:.0%} of the copy's bandwidth at {COPY_BYTES // 2**20} MiB and more"
    return _judged(what, values, at_least=SHARE_OF_COPY)


def _judged(
    what: str,
    values: Figures,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    unit: str = "",
    scale: float = 1,
) -> Verdict:
    """A criterion by the figures of all cells that it is about."""
    measured = {name: value for name, value in values.items() if isinstance(value, float | int)}
    failed = tuple((name, value) for name, value in values.items() if isinstance(value, str))
    unmeasured = tuple(name for name, value in values.items() if value is None)
    order = sorted(measured, key=measured.__getitem__, reverse=at_most is not None)  # the worst first
    wrong = [
        name
        for name in order
        if (at_least is not None and measured[name] < at_least) or (at_most is not None and measured[name] > at_most)
    ]
    missed = (*((name, f"{measured[name] * scale:.2f}{unit}") for name in wrong), *failed)
    if not measured and not failed:
        return Verdict(what, None, "no figure", (), unmeasured)
    good = len(measured) - len(wrong)
    figures = f"{good} of {len(values)}"
    if order:
        figures += f"; the worst is {measured[order[0]] * scale:.2f}{unit}"
    if unmeasured:
        figures += f"; {len(unmeasured)} not measured"
    if missed:
        figures += "; missed: " + ", ".join(" ".join(pair) for pair in missed[:SHOWN])
        figures += f" and {len(missed) - SHOWN} more" if len(missed) > SHOWN else ""
    return Verdict(what, False if missed else None if unmeasured else True, figures, missed, unmeasured)


def _short(net: str) -> str:
    widths = net.split("-")
    return f"{widths[0]}x{len(widths) - 1}" if len(widths) > 3 and len(set(widths)) == 1 else net


def summary(found: dict[str, Any]) -> list[str]:
    """The stages and the criteria, for a terminal."""
    rows: Rows = [["stage", "verdict", "seconds"]]
    rows += [[name, stage["verdict"], f"{stage['seconds']:.0f}"] for name, stage in found["stages"].items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.append("")
    lines += [f"{one.word}: {one.what}: {one.figures}" for one in verdicts(found)]
    for key, results in races(found):
        lines += ["", *(f"{key}: {sentence}" for sentence in race_verdict(results))]
    return lines


def page(found: dict[str, Any]) -> str:
    """Everything, as Markdown."""
    parts = ["# gpubp on a GPU", ""]
    parts += [f"- {name}: {fact}" for name, fact in found.get("facts", {}).items() if "\n" not in str(fact)]
    if ceilings := found.get("ceilings"):
        words = [f"{name} products {value / 1e12:,.1f} TFLOP/s" for name, value in ceilings.items() if name != "copy"]
        parts.append(f"- ceilings: copy {ceilings['copy'] / 1e9:,.0f} GB/s read and written; {', '.join(words)}")
    if len({run["sources"] for run in found.get("runs", ())}) > 1:
        dates = ", ".join(f"{run['sources']} on {run['date']}" for run in found["runs"])
        parts.append(f"- these runs had different sources: {dates}")
    parts += ["", "## Stages", "", as_markdown(_stage_rows(found)), "", "## Criteria", ""]
    judged = verdicts(found)
    parts.append(as_markdown([["criterion", "", "figures"], *([v.what, v.word, v.figures] for v in judged)]))
    missed: Rows = [["criterion", "cell", "figure"], *([v.what, *cell] for v in judged for cell in v.missed)]
    if len(missed) > 1:
        parts += ["", "### Missed cells", "", as_markdown(missed)]
    if any(v.unmeasured for v in judged):
        parts += ["", "### Not measured", ""]
        parts += [f"- {v.what}: {', '.join(v.unmeasured)}" for v in judged if v.unmeasured]
    if failed := found.get("pytest", {}).get("failed"):
        parts += ["", "## Tests that failed", "", *(f"- `{name}`" for name in failed)]
    for key, results in races(found):
        parts += ["", f"## {key}", "", *(f"- {line}" for line in tables.heading(results))]
        parts += ["", *(f"- {line}" for line in tables.peers(results)), "", tables.LEGEND + ":"]
        for panel in results.panels:
            rows, notes = tables.throughput(results, panel)
            parts += ["", f"**{', '.join(panel)}**", "", as_markdown(rows), "", *(f"- {note}" for note in notes)]
        parts += ["", *(f"- {sentence}" for sentence in race_verdict(results))]
    for title, rows in (
        ("Steps: captured, and against float64", _smoke_rows(found)),
        ("Under compute-sanitizer", _sanitizer_rows(found)),
        ("Kernels", _kernel_rows(found)),
        ("Steps against their floor", _floor_rows(found)),
        ("Plain SGD in the products of the weights' gradients", _ride_rows(found)),
    ):
        if len(rows) > 1:
            parts += ["", f"## {title}", "", as_markdown(rows)]
    return "\n".join(parts) + "\n"


def _stage_rows(found: dict[str, Any]) -> Rows:
    return [
        ["stage", "verdict", "seconds"],
        *([name, stage["verdict"], f"{stage['seconds']:.0f}"] for name, stage in found["stages"].items()),
    ]


def _smoke_rows(found: dict[str, Any]) -> Rows:
    rows: Rows = [["net", "optimizer", "precision", "captured", "mean error over mean change", ""]]
    for row in found.get("smoke", ()):
        start = [_short(row["net"]), row["optimizer"], row["precision"]]
        if "failed" in row:
            rows.append([*start, "-", "-", row["failed"]])
        else:
            captured = "yes" if row["captured"] else f"no: {row['why']}"
            words = "agrees" if row["agrees"] else "DIFFERS"
            rows.append([*start, captured, f"{row['share']:.1e}", words])
    return rows


def _sanitizer_rows(found: dict[str, Any]) -> Rows:
    rows: Rows = [["tool", "kernels seen", "errors of ours", "where", "reports of other kernels", "exit code"]]
    for tool, read in found.get("sanitizers", {}).items():
        if "unseen" in read:
            rows.append([tool, "-", "-", read["unseen"], "-", "-"])
            continue
        where = ", ".join(f"{count} in {name}" for name, count in read["reports"].items()) or "-"
        errors = f"{read['errors'] - read['others']}" if read["errors"] is not None else read.get("why", "-")
        how = "overran" if read.get("overran") else f"{read.get('code')}"
        rows.append([tool, f"{read['launched']}", errors, where, f"{read['others']}", how])
    return rows


def _ride_rows(found: dict[str, Any]) -> Rows:
    rows: Rows = [["net", "batch", "precision", "us apart", "us riding", "apart over riding", ""]]
    for row in found.get("ride", ()):
        start = [_short(row["net"]), f"{row['batch']:,}", row["precision"]]
        if "failed" in row:
            rows.append([*start, "-", "-", "-", row["failed"]])
        else:
            words = ("riding pays" if row["times"] > 1 else "apart is faster") if row["agrees"] else "DIFFERS"
            times = [f"{row[key] * 1e6:,.1f}" for key in ("apart_seconds", "riding_seconds")]
            rows.append([*start, *times, f"{row['times']:.2f}", words])
    return rows


def _kernel_rows(found: dict[str, Any]) -> Rows:
    rows: Rows = [["operation", "size", "us", "GB/s", "of the copy", "GFLOP/s", "of its ceiling"]]
    for row in found.get("kernels", ()):
        if "failed" in row:
            rows.append([row["kernel"], row["size"], row["failed"], "-", "-", "-", "-"])
        else:
            rows.append(
                [
                    row["kernel"],
                    row["size"],
                    f"{row['seconds'] * 1e6:,.1f}",
                    f"{row['bytes_per_second'] / 1e9:,.0f}",
                    f"{row['share_of_copy']:.0%}",
                    f"{row['flops_per_second'] / 1e9:,.0f}",
                    f"{row['share_of_ceiling']:.0%}",
                ]
            )
    return rows


def _floor_rows(found: dict[str, Any]) -> Rows:
    head = [
        "net",
        "optimizer",
        "batch",
        "precision",
        "us a step",
        "samples/s",
        "of the floor",
        "nodes",
        "us a node",
        "",
    ]
    rows: Rows = [head]
    for row in found.get("floors", ()):
        start = [_short(row["net"]), row["optimizer"], f"{row['batch']:,}", row["precision"]]
        if "failed" in row:
            rows.append([*start, *["-"] * 5, row["failed"]])
        else:
            node = row["seconds_per_node"]
            rows.append(
                [
                    *start,
                    f"{row['step_seconds'] * 1e6:,.1f}",
                    short(row["samples_per_second"]),
                    f"{row['times_floor']:.2f} x",
                    f"{row['nodes']}" if row["nodes"] else "-",
                    f"{node * 1e6:.2f}" if node else "-",
                    row["nodes_counted"] if row["captured"] else f"not captured: {row['why']}",
                ]
            )
    return rows
