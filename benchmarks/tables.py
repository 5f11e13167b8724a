"""Tables of a race's results, for a terminal or for a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .agreement import SHARE_OF_CHANGE, TOLERANCE, share_of_tf32
from .cases import PRECISIONS, WORK
from .results import REASONS, Panel, Results, rate, ratio, reasons
from .verdict import changes

Rows = list[list[str]]
"""The heading first."""

LEGEND = (
    "Samples per second, the median of the rounds, and how many times as many as the best peer, the fastest that is "
    "not gpubp, in the same round: the median of these ratios"
)


def heading(results: Results) -> list[str]:
    """What was measured, where and with what: a line for each fact."""
    content, settings = results.content, results.content["settings"]
    works = dict.fromkeys(cell["work"] for cell in content["cells"])
    lines = [f"work: {'; '.join(WORK[work] for work in works)}"]
    lines += [f"{name}: {value}" for name, value in content["machine"].items()]
    if ceilings := content.get("ceilings"):
        lines.append(_ceilings(ceilings))
    lines.append(f"precision: {PRECISIONS.get(settings['precision'], settings['precision'])}")
    lines.append(f"device: {settings['device']}, {settings['threads']} threads for each peer")
    lines.append(f"timing: median of {_rounds(results)} rounds of {settings['seconds']:g} s, the peers in turn")
    smaller = sorted({cell["batch"] for cell in content["cells"] if cell["checked_at_batch"] != cell["batch"]})
    rows = f" (of fewer rows at batch {', '.join(f'{batch:,}' for batch in smaller)})" if smaller else ""
    lines.append(
        f"checked: three steps{rows} of every peer against float64, {_tolerance(content['cells'])}"
        + _other_form(results)
    )
    lines.append(f"date: {content['date']}")
    lines.append(f"command: {content['command']}")
    if len(content["cells"]) < content["cells_planned"]:
        line = f"NOT COMPLETE: {len(content['cells'])} of {content['cells_planned']} cases"
        left_out = content.get("cells_left_out")
        lines.append(line + (f"; left out, as the time was up: {'; '.join(left_out)}" if left_out else ""))
    return lines


def _ceilings(ceilings: dict[str, Any]) -> str:
    """The ceilings, and what the roofline makes of them."""
    copy, rule = f"{ceilings['bytes_per_second'] / 1e9:,.1f} GB/s copy", "its data from memory"
    if rate := ceilings.get("cache_bytes_per_second"):
        copy += f", {rate / 1e9:,.1f} GB/s copy in the caches ({ceilings['cache_bytes'] / 2**20:,.0f} MiB)"
        rule = "its data from the caches where it fits, else from memory"
    else:
        rule += " (what stays in the caches can be faster)"
    return (
        f"ceilings: {ceilings['flops_per_second'] / 1e9:,.0f} GFLOP/s matrix product, {copy}; from them the plot's "
        f"roofline, every operation at its ceiling and {rule}"
    )


def _tolerance(cells: Sequence[dict[str, Any]]) -> str:
    if all(cell.get("precision", "float32") == "float32" for cell in cells):
        return f"within {TOLERANCE:g}, and in the mean of each array within {SHARE_OF_CHANGE:.1%} of what they change"
    shares = [share_of_tf32(cell["net"].count("-")) for cell in cells]
    return f"within {max(shares):.1%} of what they change, in the mean (what rounding to TF32 may do)"


def _other_form(results: Results) -> str:
    """Who was checked against another form of Adam than the others, in words."""
    names = [name for name in results.racers if results.content["peers"][name].get("uncorrected_epsilon")]
    if not names or not any(cell["optimizer"] == "adam" for cell in results.content["cells"]):
        return ""
    return (
        f"; the Adam of {' and '.join(names)} against the form that they have, which adds epsilon before it corrects "
        "the bias of V"
    )


def _rounds(results: Results) -> str:
    """How many rounds were done: fewer than planned where the time ran short."""
    counts = [
        len(entry["rounds"])
        for cell in results.content["cells"]
        for entry in cell["peers"].values()
        if "rounds" in entry
    ]
    low, high = min(counts, default=0), max(counts, default=0)
    return str(low) if low == high else f"{low} to {high}"


def peers(results: Results) -> list[str]:
    """A line for each peer: version, threads; or that it is absent, and why."""
    lines = []
    for name, known in results.content["peers"].items():
        if "absent" in known:
            lines.append(f"{name}: ABSENT, {known['absent']}")
        else:
            version, *others = known["facts"].values()
            lines.append(f"{name} {version}: {'; '.join(others)}")
    return lines


def throughput(results: Results, panel: Panel) -> tuple[Rows, list[str]]:
    """A row for each batch size, a column for each peer; and the notes that the cells refer to by number."""
    rows, notes = [["batch", *results.racers]], []
    for cell in results.cells(panel):
        best, why = results.best_peer(cell), {name: (kind, reason) for name, kind, reason in reasons(cell)}
        row = [f"{cell['batch']:,}"]
        for name in results.racers:
            if (measured := rate(cell, name)) is not None:
                times = ratio(cell, name, best) if best else None
                row.append(short(measured) + ("" if times is None else f" {times:4.2f}x"))
            elif name in why:
                kind, reason = why[name]
                note = f"{name}: {reason}"
                if note not in notes:
                    notes.append(note)
                row.append(f"{REASONS[kind]} [{notes.index(note) + 1}]")
            else:
                row.append("-")
        rows.append(row)
    return rows, [f"[{number}] {note}" for number, note in enumerate(notes, 1)]


def comparison(new: Results, old: Results, panel: Panel) -> Rows:
    """A row for each batch size, a column for each peer: samples/s now, divided by those before."""
    found = changes(new, old, panel)
    names = [name for name in new.racers if any(name == other for _, other in found)]
    rows = [["batch", *names]]
    for batch in sorted({batch for batch, _ in found}):
        rows.append(
            [f"{batch:,}", *(f"{found[batch, name]:.2f}x" if (batch, name) in found else "-" for name in names)]
        )
    return rows


def short(value: float) -> str:
    """Three digits and a unit: ``8.33k``, ``453k``, ``1.20M``."""
    for limit, scale, unit in ((999.5, 1, ""), (999.5e3, 1e3, "k"), (999.5e6, 1e6, "M"), (float("inf"), 1e9, "G")):
        if value < limit:
            value /= scale
            digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
            return f"{value:.{digits}f}{unit}"
    return str(value)


def as_text(rows: Rows, width: int | None = None) -> str:
    """The table in columns; one wider than so many characters goes on below, with the batch sizes again."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    parts, part, used = [], [0], widths[0]
    for k in range(1, len(widths)):
        if width is not None and len(part) > 1 and used + 2 + widths[k] > width:
            parts.append(part)
            part, used = [0], widths[0]
        part.append(k)
        used += 2 + widths[k]
    parts.append(part)
    return "\n\n".join("\n".join(_line(row, part, widths) for row in rows) for part in parts)


def _line(row: Sequence[str], columns: Sequence[int], widths: Sequence[int]) -> str:
    return "  ".join(row[k].rjust(widths[k]) for k in columns)


def as_markdown(rows: Rows) -> str:
    """The table for a page."""
    first, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (first, ["---:"] * len(first), *rest))


def one_line(cell: dict[str, Any]) -> str:
    """A finished cell in one line, for a log."""
    rates = {name: found for name in cell["peers"] if (found := rate(cell, name))}
    best = sorted(rates, key=lambda name: -rates[name])
    words = [f"{name} {short(rates[name])}" for name in best] + [f"{name} {kind}" for name, kind, _ in reasons(cell)]
    return f"{cell['net']}, {cell['optimizer']}, batch {cell['batch']:,}: {', '.join(words)}"
