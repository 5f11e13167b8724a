"""Tables of everything that the JSON of pytest-benchmark holds, and a plot of throughput against batch size.

Run ``python benchmarks/report.py results.json [--plot throughput.png] [--markdown]``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

Info = dict[str, Any]  # what a benchmark noted about one cell
Rows = list[list[str]]

IN_CACHE = "(what fits in the CPU's caches counts at their rate; above 100% on a GPU: data stayed in its cache)"


class Table(NamedTuple):
    """A table: what its cells say, and rows of words, the heading first."""

    caption: str
    rows: Rows


def read(path: Path) -> tuple[list[Info], dict[str, str]]:
    """What was noted about each cell, and the facts about the machine that made them.

    Raises:
        SystemExit: The file holds no cell.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    infos = [entry["extra_info"] for entry in content["benchmarks"] if entry["extra_info"]]
    if not infos:
        raise SystemExit(f"{path} holds no throughput figure: make it with python -m pytest benchmarks")
    # Files from before there was more than one kind hold training steps in float32.
    infos = [{"kind": "step", "dtype": "float32", **info} for info in infos]
    return infos, {"date": content["datetime"], **content["machine_info"]["facts"]}


def tables(infos: Sequence[Info]) -> list[Table]:
    """A table for each kind of figure that there is."""
    return [made for kind, make in TABLES for made in make([info for info in infos if info["kind"] == kind]) if made]


def _steps(infos: list[Info]) -> list[Table]:
    detailed = [info for info in infos if "share_of_floor" in info]
    return [
        *_by_batch(
            "samples/s, and the share of a step's time that is neither matrix product nor minibatch gather",
            infos,
            lambda info: f"{info['samples_per_second']:,.0f} ({info['other_share']:.0%})",
        ),
        *_by_batch(
            "of a step's time, the gather apart, the share of its matrix products; the gather's time over "
            f"that of a plain copy of the same bytes; the step's floor over its time {IN_CACHE}",
            detailed,
            lambda info: f"{info['matmul_share']:.0%}, {info['gather_over_copy']:.2f}, {info['share_of_floor']:.0%}",
        ),
    ]


def _passes(caption: str) -> Callable[[list[Info]], list[Table]]:
    return lambda infos: _by_batch(
        f"{caption}: samples/s, and the floor of the pass over its time {IN_CACHE}",
        infos,
        lambda info: f"{info['samples_per_second']:,.0f} ({info['share_of_floor']:.0%})",
    )


def _epochs(infos: list[Info]) -> list[Table]:
    return _listed(
        "epochs through one call of `fit`, against their bare steps (`StepPlan.steps`, gather included): what the "
        "whole call takes beyond them, and what its last epoch does",
        infos,
        {
            "net": lambda info: _label(info, "net", "optimizer"),
            "batch": lambda info: f"{info['batch']:,}",
            "fit samples/s": lambda info: f"{info['samples_per_second']:,.0f}",
            "bare samples/s": lambda info: f"{info['bare_samples_per_second']:,.0f}",
            "epochs": lambda info: str(info["epochs"]),
            "call": lambda info: f"{info['loop_overhead']:+.1%}",
            "last epoch": lambda info: f"{info['last_epoch_overhead']:+.1%}",
        },
    )


def _accuracy(infos: list[Info]) -> list[Table]:
    return _listed(
        "training time to a held-out accuracy; medians over seeds",
        infos,
        {
            "data": lambda info: info["data"],
            "net": lambda info: _label(info, "net"),
            "optimizer": lambda info: info["optimizer"],
            "batch": lambda info: f"{info['batch']:,}",
            "accuracy": lambda info: f"{info['accuracy']:.1%}",
            "seconds": lambda info: f"{info['train_seconds']:.3f}",
            "slowest seed": lambda info: f"{info['slowest_seconds']:.3f}",
            "epochs": lambda info: f"{info['epochs']:g}",
            "seeds": lambda info: str(info["seeds"]),
        },
    )


def _memory(infos: list[Info]) -> list[Table]:
    return _listed(
        "peak memory of a training beyond its data, resident and as tracemalloc counts it, over what the plan says "
        "(what it holds, parameters, gradient, optimizer state), and over that with what `fit` takes beside its steps "
        "(the copy that an epoch can be undone with, the order of its examples)",
        infos,
        {
            "net": lambda info: _label(info, "net", "optimizer"),
            "batch": lambda info: f"{info['batch']:,}",
            "through": lambda info: info["through"],
            "plan MiB": lambda info: f"{info['planned_bytes'] / 2**20:,.2f}",
            "resident / plan": lambda info: f"{info['peak_over_plan']:.2f}",
            "traced / plan": lambda info: f"{info['traced_over_plan']:.2f}" if "traced_over_plan" in info else "-",
            "traced / training": lambda info: (
                f"{info['traced_over_training']:.2f}" if "traced_over_training" in info else "-"
            ),
        },
    )


def _imports(infos: list[Info]) -> list[Table]:
    return _listed(
        "import time, in fresh processes; medians",
        infos,
        {
            "import gpubp beyond NumPy": lambda info: f"{info['import_seconds'] * 1e3:.1f} ms",
            "with NumPy": lambda info: f"{info['with_numpy_seconds'] * 1e3:.1f} ms",
            "NumPy alone": lambda info: f"{info['numpy_seconds'] * 1e3:.1f} ms",
        },
    )


def _kernels(infos: list[Info]) -> list[Table]:
    return [
        *_pivot(
            "single operations: GB/s read and written, and the time that the ceilings allow over the time taken, by "
            f"the size of the array {IN_CACHE}",
            [info for info in infos if "size" in info],
            "operation",
            row=lambda info: _label(info, "kernel"),
            column=lambda info: info["size"],
            words=lambda info: f"{info['bytes_per_second'] / 1e9:,.1f} ({info['share_of_ceiling']:.0%})",
        ),
        *_pivot(
            "matrix products: GFLOP/s, and the time that the ceilings allow over the time taken, by batch size",
            [info for info in infos if "batch" in info],
            "layer",
            row=lambda info: _label(info, "kernel"),
            column=lambda info: f"{info['batch']:,}",
            words=lambda info: f"{info['flops_per_second'] / 1e9:,.1f} ({info['share_of_ceiling']:.0%})",
        ),
    ]


TABLES: Sequence[tuple[str, Callable[[list[Info]], list[Table]]]] = (
    ("step", _steps),
    ("forward", _passes("forward only")),
    ("gradients", _passes("forward, loss and backward, no update")),
    ("epoch", _epochs),
    ("accuracy", _accuracy),
    ("memory", _memory),
    ("import", _imports),
    ("kernel", _kernels),
)


def _label(info: Info, *names: str) -> str:
    """Those entries, the device, and the dtype where it is not the default: ``784-128-10 sgd cpu``."""
    words = [info.get(name) for name in (*names, "device")] + [info["dtype"] if info["dtype"] != "float32" else None]
    return " ".join(filter(None, words))


def _by_batch(caption: str, infos: list[Info], words: Callable[[Info], str]) -> list[Table]:
    """For each device and dtype one table: a row for each batch size, a column for each net and optimizer."""
    made = []
    for place in dict.fromkeys(map(_place, infos)):
        here = [info for info in infos if _place(info) == place]
        made += _pivot(
            caption,
            here,
            "batch",
            row=lambda info: f"{info['batch']:,}",
            column=lambda info: _label(info, "net", "optimizer"),
            words=words,
            rows=[f"{batch:,}" for batch in sorted({info["batch"] for info in here})],
        )
    return made


def _pivot(
    caption: str,
    infos: list[Info],
    corner: str,
    *,
    row: Callable[[Info], str],
    column: Callable[[Info], str],
    words: Callable[[Info], str],
    rows: Iterable[str] | None = None,
) -> list[Table]:
    """Rows, if not given, and columns in the order in which they come; no table where there is nothing to show."""
    cells = {(row(info), column(info)): words(info) for info in infos}
    columns = list(dict.fromkeys(heading for _, heading in cells))
    rows = rows or dict.fromkeys(name for name, _ in cells)
    body = [[name, *(cells.get((name, heading), "-") for heading in columns)] for name in rows]
    return [Table(caption, [[corner, *columns], *body])] if body else []


def _listed(caption: str, infos: list[Info], columns: dict[str, Callable[[Info], str]]) -> list[Table]:
    """One row for each cell; no table where there is none."""
    body = [[words(info) for words in columns.values()] for info in infos]
    return [Table(caption, [list(columns), *body])] if body else []


def ceilings(infos: Iterable[Info]) -> list[str]:
    """A line for each device and dtype whose ceilings were measured."""
    found = {(info["device"], info["dtype"]): info for info in infos if "ceiling_bytes_per_second" in info}
    return [
        f"ceilings of {device}, {dtype}: {info['ceiling_flops_per_second'] / 1e9:,.0f} GFLOP/s (matrix product), "
        f"{info['ceiling_bytes_per_second'] / 1e9:,.1f} GB/s (copy, read and written)"
        + (
            f", {cached / 1e9:,.1f} GB/s in the caches"
            if (cached := info.get("ceiling_cache_bytes_per_second"))
            else ""
        )
        for (device, dtype), info in found.items()
    ]


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """The table for a terminal."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("   ".join(word.rjust(width) for word, width in zip(row, widths, strict=True)) for row in rows)


def as_markdown(rows: Sequence[Sequence[str]]) -> str:
    """The table for a page."""
    heading, *rest = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (heading, ["---:"] * len(heading), *rest))


def plot(infos: Sequence[Info], facts: dict[str, str], path: Path) -> None:
    """Samples per second against batch size, both axes logarithmic: colour for the net, dashes for the optimizer.

    Raises:
        SystemExit: There is no training step to draw.
    """
    from matplotlib.figure import Figure

    steps = sorted((info for info in infos if info["kind"] == "step"), key=lambda info: info["batch"])
    if not steps:
        raise SystemExit("no plot: the file holds no training step; benchmarks/test_throughput.py measures them")
    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.add_subplot()
    nets, optimizers, places = (
        [*dict.fromkeys(key(info) for info in steps)]
        for key in (lambda info: info["net"], lambda info: info["optimizer"], _place)
    )
    for label in dict.fromkeys(_label(info, "net", "optimizer") for info in steps):
        line = [info for info in steps if _label(info, "net", "optimizer") == label]
        axes.loglog(
            [info["batch"] for info in line],
            [info["samples_per_second"] for info in line],
            color=f"C{nets.index(line[0]['net'])}",
            linestyle=("-", "--", ":")[optimizers.index(line[0]["optimizer"]) % 3],
            marker=("o", "s", "^", "D")[places.index(_place(line[0])) % 4],
            label=label,
        )
    batches = sorted({info["batch"] for info in steps})
    axes.set_xticks(batches, [f"{batch:,}" for batch in batches], fontsize=8)
    axes.xaxis.minorticks_off()
    made_by = f"{facts['CPU']}; cores: {facts['cores']}; {facts['date'][:10]}\n{facts['BLAS']}"
    figure.suptitle("Whole training steps of gpubp")
    axes.set_title(made_by, fontsize=7, color="0.4")
    axes.set(xlabel="batch size", ylabel="samples per second")
    axes.grid(True, which="major", alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)


def _place(info: Info) -> tuple[str, str]:
    return info["device"], info["dtype"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the machine's facts and the tables; draw the plot if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the file that --benchmark-json wrote")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="where to draw the plot")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    chosen = parser.parse_args(arguments)
    infos, facts = read(chosen.results)
    lines = [*(f"{name}: {fact}" for name, fact in facts.items()), *ceilings(infos)]
    print("\n".join(f"{'- ' if chosen.markdown else ''}{line}" for line in lines))
    for caption, rows in tables(infos):
        print(f"\n{caption}:\n\n{as_markdown(rows) if chosen.markdown else as_text(rows)}")
    if not any(info.get("device") == "cuda" for info in infos):
        print(f"\nNO GPU FIGURES. GPU: {facts['GPU']}")
    if chosen.plot is not None:
        plot(infos, facts, chosen.plot)


if __name__ == "__main__":
    main()
