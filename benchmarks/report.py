"""Table and plot of throughput against batch size, from the JSON of pytest-benchmark.

Run ``python benchmarks/report.py results.json [--plot throughput.png] [--markdown]``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Column = tuple[str, str, str]  # net, optimizer, device
Cells = dict[Column, dict[int, dict[str, Any]]]  # column, batch size, what was measured

SHARE = "samples/s, and the share of a step's time that is neither matrix product nor minibatch gather"


def read(path: Path) -> tuple[Cells, dict[str, str]]:
    """The cells, and the facts about the machine that made them.

    Raises:
        SystemExit: The file holds no cell.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    cells: Cells = {}
    for entry in content["benchmarks"]:
        info = entry["extra_info"]
        if "samples_per_second" in info:
            cells.setdefault((info["net"], info["optimizer"], info["device"]), {})[info["batch"]] = info
    if not cells:
        raise SystemExit(f"{path} holds no throughput figure: make it with benchmarks/test_throughput.py")
    return cells, {"date": content["datetime"], **content["machine_info"]["facts"]}


def table(cells: Cells) -> list[list[str]]:
    """Rows of words: a heading, then one row for each batch size."""
    batches = sorted({batch for column in cells.values() for batch in column})
    heading = ["batch", *(" ".join(column) for column in cells)]
    return [heading, *([f"{batch:,}", *(_words(column.get(batch)) for column in cells.values())] for batch in batches)]


def _words(info: dict[str, Any] | None) -> str:
    return "-" if info is None else f"{info['samples_per_second']:,.0f} ({info['other_share']:.0%})"


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """The table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("   ".join(word.rjust(width) for word, width in zip(row, widths, strict=True)) for row in rows)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """The table for a page."""
    heading, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, ["---:"] * len(heading), *rest))


def plot(cells: Cells, facts: dict[str, str], path: Path) -> None:
    """Samples per second against batch size, both axes logarithmic: colour for the net, dashes for the optimizer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot()
    nets, optimizers, devices = ([*dict.fromkeys(column[k] for column in cells)] for k in range(3))
    for (net, optimizer, device), column in cells.items():
        batches = sorted(column)
        axes.loglog(
            batches,
            [column[batch]["samples_per_second"] for batch in batches],
            color=f"C{nets.index(net)}",
            linestyle=("-", "--", ":")[optimizers.index(optimizer) % 3],
            marker=("o", "s", "^")[devices.index(device) % 3],
            label=f"{net}, {optimizer}, {device}",
        )
    axes.set_xscale("log", base=4)
    axes.xaxis.set_major_formatter(lambda batch, _: f"{batch:,.0f}")
    made_by = f"{facts['CPU']}; cores: {facts['cores']}; {facts['BLAS']}; {facts['date'][:10]}"
    figure.suptitle("Whole training steps of gpubp")
    axes.set_title(made_by, fontsize=8, color="0.4")
    axes.set(xlabel="batch size", ylabel="samples per second")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the machine's facts and the table; draw the plot if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the file that --benchmark-json wrote")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="where to draw the plot")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    chosen = parser.parse_args(arguments)
    cells, facts = read(chosen.results)
    rows = table(cells)
    print("\n".join(f"{'- ' if chosen.markdown else ''}{name}: {fact}" for name, fact in facts.items()))
    print(f"\n{SHARE}:\n\n{as_markdown(rows) if chosen.markdown else as_text(rows)}")
    if not any(device == "cuda" for *_, device in cells):
        print(f"\nNO GPU FIGURES. GPU: {facts['GPU']}")
    if chosen.plot is not None:
        plot(cells, facts, chosen.plot)


if __name__ == "__main__":
    main()
