"""The plot of a race: throughput against batch size, both logarithmic, with the roofline."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from gpubp.files import write_atomically

from .cases import NO_OPTIMIZER
from .results import SUBJECT, Results, rate

MARKERS = "osD^v<>pPX*hd"
ROOFLINE = "roofline (what fits in the caches\nfrom there, else from memory)"
LEGEND_INCHES = 2.0
"""Width of a column of the legend."""
ROOFLINE_OF_MEMORY = "roofline (data from memory)"
"""Where the rate of the caches is not known."""


def draw(results: Results, path: Path) -> None:
    """Draw a panel for each network (across) and optimizer (down) and write the picture.

    Args:
        results: What to draw.
        path: The file; its ending says which format.
    """
    from matplotlib.figure import Figure

    nets, optimizers = (list(dict.fromkeys(panel[k] for panel in results.panels)) for k in (0, 1))
    figure = Figure(figsize=(max(4.2 * len(nets), 7), 3.4 * len(optimizers) + 1.6), layout="constrained")
    grid = figure.subplots(len(optimizers), len(nets), squeeze=False, sharex=True)
    for row, optimizer in enumerate(optimizers):
        for column, net in enumerate(nets):
            axes = grid[row][column]
            _draw_panel(axes, results, results.cells((net, optimizer)))
            axes.set_title(net if optimizer == NO_OPTIMIZER else f"{net}, {optimizer}", fontsize=10)
            if column == 0:
                axes.set_ylabel("samples per second")
            if row == len(optimizers) - 1:
                axes.set_xlabel("batch size")
    labelled: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, handle)
    names = [name for name in (*results.racers, _roofline(results)) if name in labelled]
    figure.legend(
        [labelled[name] for name in names],
        names,
        loc="outside lower center",
        ncols=min(len(names), int(figure.get_figwidth() / LEGEND_INCHES)),
        fontsize=9,
    )
    figure.suptitle(_title(results), fontsize=10)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150, format=path.suffix.lstrip(".") or "png")
    write_atomically(path, drawn.getvalue())


def _draw_panel(axes: Any, results: Results, cells: list[dict[str, Any]]) -> None:
    for k, name in enumerate(sorted(results.racers, key=results.is_own)):  # gpubp on top
        points = [(cell["batch"], found) for cell in cells if (found := rate(cell, name))]
        if points:
            subject = name == SUBJECT
            axes.plot(
                *zip(*points, strict=True),
                color="black" if results.is_own(name) else f"C{k % 10}",
                linewidth=2.4 if subject else 1.1,
                linestyle="--" if results.is_own(name) and not subject else "-",
                marker=MARKERS[k % len(MARKERS)],
                markersize=6 if subject else 4,
                label=name,
                zorder=4 if subject else 3,
            )
    floor = [(cell["batch"], cell["floor_samples_per_second"]) for cell in cells if cell["floor_samples_per_second"]]
    if floor:
        axes.plot(
            *zip(*floor, strict=True), color="0.45", linestyle=":", linewidth=1.8, label=_roofline(results), zorder=2
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    batches = sorted({cell["batch"] for cell in results.content["cells"]})  # of all panels: they share the axis
    axes.set_xticks(batches, [f"{batch:,}" for batch in batches], fontsize=8, rotation=45, ha="right")
    axes.minorticks_off()
    axes.tick_params(axis="x", labelbottom=True)
    axes.grid(True, which="major", alpha=0.3)


def _roofline(results: Results) -> str:
    """What the roofline is called."""
    return ROOFLINE if results.content.get("ceilings", {}).get("cache_bytes_per_second") else ROOFLINE_OF_MEMORY


def _title(results: Results) -> str:
    content = results.content
    machine, settings = content["machine"], content["settings"]
    where = machine.get("GPU", "") if settings["device"].startswith("cuda") else machine.get("CPU", "")
    what = {"step": "training steps", "forward": "inference", "gradients": "loss and gradients"}
    return (
        f"Throughput of {what[content['cells'][0]['work']]} against batch size, {settings['precision']}\n"
        f"{where}, {settings['threads']} threads, {content['date'][:10]}"
    )
