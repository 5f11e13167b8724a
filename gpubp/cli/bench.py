"""``gpubp bench``: throughput of gpubp and of its peers, measured in turn, as a table, a plot and words."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import chain, count
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

import gpubp
from gpubp import cpu
from gpubp.benchmarking import benchmarks_module
from gpubp.cli import options
from gpubp.errors import GpubpError, SettingError

_QUICK: dict[str, Any] = {
    "nets": "784-128-10,64-64-64-64-10",
    "batch_sizes": "1,32,512,8192",
    "seconds": 0.06,
    "rounds": 3,
    "budget": 80.0,
}
_FULL: dict[str, Any] = {"nets": None, "batch_sizes": None, "seconds": 0.3, "rounds": 5, "budget": None}
_QUICK_DEADLINE = 100.0  # seconds of the two minutes; the rest is for what can't be cut short: a data set, the plot
_QUICK_LEAVES_OUT = dict.fromkeys(
    ("torch-compile", "torch-compile-max"), "left out by --quick: it compiles for many seconds at each batch size"
)
_OF_REPORTS = ("report", "plot", "compare", "markdown")  # the options that --report heeds
_BUSY = 0.25  # processes per core that make the figures doubtful


def bench(
    context: typer.Context,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Fewer cases and shorter rounds; what two minutes don't suffice for is left out."),
    ] = False,
    nets: Annotated[
        str | None, typer.Option(metavar="W-W-W,...", help="Widths of the networks, as in 784-128-10,64-64-10.")
    ] = None,
    optimizers: Annotated[str, typer.Option(metavar="sgd,adam", help="Optimizers.")] = "sgd,adam",
    batch_sizes: Annotated[str | None, typer.Option(metavar="N,N,...", help="Examples in a step.")] = None,
    peers: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Who takes part; all of them without it.")
    ] = None,
    work: Annotated[
        str,
        typer.Option(
            metavar="step|forward|gradients",
            help="What is timed: training steps, class probabilities, or loss and gradients.",
        ),
    ] = "step",
    device: options.Device = "auto",
    precision: Annotated[
        str,
        typer.Option(metavar="float32|tf32", help="What matrix products make of float32 numbers; tf32 needs a GPU."),
    ] = "float32",
    threads: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Threads of each peer; the usable cores without it.")
    ] = None,
    seconds: Annotated[float | None, typer.Option(metavar="S", help="Length of one peer's turn in a round.")] = None,
    rounds: Annotated[int | None, typer.Option(min=1, metavar="N", help="Turns of each peer in each case.")] = None,
    data_rows: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Examples in the data set, at least the batch size.")
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="S", help="How long a peer may take for one command.")] = 300,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where to write the results; without it, the first of bench.json, bench-2.json and so on that is "
            "not there yet.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where to draw the plot; without it, beside the results, ending in .png."),
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Results of an earlier run, to compare with.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Measure nothing: table, verdict and plot of these results.")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown tables.")] = False,
) -> None:
    """Measure throughput against batch size, gpubp and its peers in turn.

    Every peer (NumPy written naively, PyTorch, JAX, scikit-learn, thinc) does the same work in a process of its own,
    and is checked before it is timed. Those that are not installed are named. The results are written after every
    case; Ctrl-C keeps what has been measured.
    """
    began = time.monotonic()
    _require_extra()
    results = benchmarks_module("results")
    old = None if compare is None else results.load(compare)
    kept = [] if compare is None else [compare]
    if report is not None:
        _require_no_measuring(context)
        found = results.load(report)
        _show(found, old, _picture(plot, report, *kept), markdown)
        return

    if out is None:
        out = _free_name()
    options.require_writable("--out", out, *kept)
    picture = _picture(plot, out, *kept)
    if picture == out:
        raise SettingError(f"--out {out}: the plot goes by that name; end the results' in .json")
    preset = _QUICK if quick else _FULL
    duration = preset["seconds"] if seconds is None else seconds
    options.require_number("--seconds", duration, above=0)
    options.require_number("--timeout", timeout, above=0)
    target = str(gpubp.resolve_device(device))
    nets = preset["nets"] if nets is None else nets
    cases = _cases(
        nets, optimizers, preset["batch_sizes"] if batch_sizes is None else batch_sizes, work, target, precision
    )
    left_out = _QUICK_LEAVES_OUT if quick and peers is None else {}
    chosen = _peers(peers, left_out)
    _tell_missing(chosen)
    if target == "cpu":
        _tell_slow()
    _tell_changes(data_rows, max(case.batch for case in cases), threads)
    _warn_of_load()
    race = benchmarks_module("race")
    settings = race.Settings(
        cases=cases,
        peers=chosen,
        device=target,
        threads=threads or _usable_cores(),
        seconds=duration,
        rounds=rounds or preset["rounds"],
        data_rows=data_rows or benchmarks_module("cases").DATA_ROWS,
        timeout=timeout,
        left_out=left_out,
        budget=preset["budget"],
        deadline=_QUICK_DEADLINE - (time.monotonic() - began) if quick else None,
        ceilings_seconds=min(2.0, 20 * duration),
    )
    if not _run(race, settings, out, results):
        raise GpubpError(
            "--quick: the time was up before the first case was done; ask for fewer --peers, or without it"
        )
    _show(results.load(out), old, picture, markdown, out)


def _require_extra() -> None:
    """Check that what the command itself needs is there.

    Raises:
        GpubpError: A library is missing.
    """
    if missing := [name for name in ("matplotlib", "threadpoolctl") if importlib.util.find_spec(name) is None]:
        raise GpubpError(f"gpubp bench needs {' and '.join(missing)}: pip install 'gpubp[bench]'")


def _free_name() -> Path:
    """Where results go that were given no name: a file that is not there yet, nor its plot."""
    names = map(Path, chain(["bench.json"], (f"bench-{number}.json" for number in count(2))))
    return next(name for name in names if not name.exists() and not name.with_suffix(".png").exists())


def _picture(plot: Path | None, results: Path, *inputs: Path) -> Path:
    """Where to draw the plot of these results.

    Raises:
        SettingError: Matplotlib can't draw such a file, or nothing can be written there.
    """
    from matplotlib.figure import Figure

    picture = plot or results.with_suffix(".png")
    known = Figure().canvas.get_supported_filetypes()
    if picture.suffix.lstrip(".").lower() not in known:
        raise SettingError(f"--plot {picture}: Matplotlib does not draw such a file; end its name in .png or .svg")
    options.require_writable("--plot", picture, results, *inputs)
    return picture


def _require_no_measuring(context: typer.Context) -> None:
    """Refuse options that a report of earlier results would ignore.

    Raises:
        SettingError: There are some; it names them.
    """
    given = [name for name in context.params if _is_given(context, name) and name not in _OF_REPORTS]
    if given:
        ignored = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise SettingError(f"--report measures nothing, and would ignore {ignored}: leave out one or the other")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _tell_changes(data_rows: int | None, batch: int, threads: int | None) -> None:
    """Say where less or more is done than was asked for.

    Args:
        data_rows: As given.
        batch: The largest one.
        threads: As given.
    """
    if data_rows is not None and data_rows < batch:
        _say(
            f"note: --data-rows {data_rows:,} is below the largest batch: a network's data set has at least as many "
            f"examples as its largest batch, here {batch:,}"
        )
    if threads is not None and threads > _usable_cores():
        _say(
            f"note: --threads {threads} is more than the {_usable_cores()} usable cores: threads will wait for each "
            "other, and the figures say little"
        )


def _cases(
    nets: str | None, optimizers: str, batch_sizes: str | None, work: str, device: str, precision: str = "float32"
) -> tuple[Any, ...]:
    """The cases that the options name, those of one network together.

    Raises:
        SettingError: A name or a number is none, or the precision is not to be had on this device.
    """
    cases = benchmarks_module("cases")
    on_gpu = device != "cpu"
    chosen_nets = list(cases.NETS) + (list(cases.GPU_NETS) if on_gpu else []) if nets is None else _listed(nets)
    for net in chosen_nets:
        widths = net.split("-")
        if len(widths) < 2 or not all(_is_number(width) for width in widths) or int(widths[-1]) < 2:
            raise SettingError(
                f"--nets {net or nets}: write widths from the input to the classes (at least 2), "
                "as in --nets 784-128-10"
            )
    sizes = list(map(str, cases.BATCH_SIZES)) if batch_sizes is None else _listed(batch_sizes)
    for size in sizes:
        if not _is_number(size):
            raise SettingError(
                f"--batch-sizes {size or batch_sizes}: write whole numbers from 1, as in --batch-sizes 1,32,512"
            )
    if work not in cases.WORK:
        raise SettingError(f"--work {work}: use {', '.join(cases.WORK)}")
    methods = _listed(optimizers)
    if any(name not in cases.OPTIMIZERS for name in methods):
        raise SettingError(f"--optimizers {optimizers}: use {' and '.join(cases.OPTIMIZERS)}")
    if work != "step":
        methods = [cases.NO_OPTIMIZER]
    if precision not in cases.PRECISIONS:
        raise SettingError(f"--precision {precision}: use {' or '.join(cases.PRECISIONS)}")
    if precision != "float32" and not on_gpu:
        raise SettingError(f"--precision {precision} needs a CUDA device, and this run is on the CPU: leave it out")
    kind = device.partition(":")[0]
    return tuple(
        cases.Case(net, method, batch, work, kind, precision)
        for net in chosen_nets
        for method in methods
        for batch in sorted(map(int, sizes))
    )


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= 7 and int(text) >= 1


def _listed(text: str) -> list[str]:
    """The parts between the commas, each once; one that is empty too, for those who know what they wait for."""
    return list(dict.fromkeys(part.strip() for part in text.split(",")))


def _peers(names: str | None, left_out: Mapping[str, str]) -> tuple[Any, ...]:
    """The peers that take part, in the order of the tables.

    Raises:
        SettingError: There is none of that name.
    """
    known = {peer.name: peer for peer in benchmarks_module("peers").all_peers()}
    if names is None:
        return tuple(peer for name, peer in known.items() if name not in left_out)
    wanted = _listed(names)
    if unknown := [name for name in wanted if name not in known]:
        wrong = ", ".join(name or "nobody" for name in unknown)
        raise SettingError(f"--peers {names}: {wrong} is no peer; there are {', '.join(known)}")
    return tuple(peer for name, peer in known.items() if name in wanted)


def _tell_missing(peers: Sequence[Any]) -> None:
    """Say which peers are not installed.

    Raises:
        GpubpError: Nobody is left.
    """
    missing = [peer for peer in peers if importlib.util.find_spec(peer.module) is None]
    if not missing:
        return
    names, packages = ", ".join(peer.name for peer in missing), " ".join(dict.fromkeys(p.package for p in missing))
    if len(missing) == len(peers):
        raise GpubpError(f"--peers: {names} can't take part, not being installed: pip install {packages}")
    _say(f"note: {names} will be absent, not being installed: pip install {packages}")


def _tell_slow() -> None:
    """Say that gpubp is not measured at its best, where its compiled CPU kernels are off."""
    if reason := cpu.why_no_kernels():
        _say(f"note: gpubp is measured without its compiled CPU kernels: {reason}")


def _warn_of_load() -> None:
    if hasattr(os, "getloadavg") and (busy := os.getloadavg()[0]) > _BUSY * _usable_cores():
        _say(
            f"note: the machine is busy with other things ({busy:.1f} processes in the last minute, "
            f"{_usable_cores()} cores here): threads that wait for each other make some peers look many times too slow"
        )


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(race: ModuleType, settings: Any, out: Path, results: ModuleType) -> bool:
    """Run the race with its progress on standard error: a bar on a terminal, else a line for each case.

    Returns:
        Whether anything was measured.

    Raises:
        GpubpError: A worker that measures the machine failed.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    tables = benchmarks_module("tables")
    console = Console(stderr=True, highlight=False)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(settings.cases))

        def tell(done: int, words: str) -> None:
            progress.update(task, completed=done, description=words)

        def save(content: dict[str, Any]) -> None:
            results.Results(content).save(out)
            if not console.is_terminal and len(content["cells"]) > len(printed):
                printed.append(tables.one_line(content["cells"][-1]))
                _say(f"{len(printed)} of {len(settings.cases)}: {printed[-1]}")

        def end(*_: Any) -> None:
            raise SystemExit(128 + signal.SIGTERM)

        printed: list[str] = []
        command = shlex.join(["gpubp", *sys.argv[1:]])
        running = race.Race(settings, command, save, tell)
        before = signal.signal(signal.SIGTERM, end)  # whoever ends the program wants its processes gone too
        try:
            running.run()
        except KeyboardInterrupt:
            if done := len(running.results["cells"]):
                _say(f"\n{done} of {len(settings.cases)} cases are in {out}; gpubp bench --report {out} shows them")
            raise
        except benchmarks_module("processes").WorkerError as error:
            raise GpubpError(f"the machine can't be measured: {error}") from error
        finally:
            signal.signal(signal.SIGTERM, before)
    return bool(running.results["cells"])


def _show(found: Any, old: Any, picture: Path, markdown: bool, out: Path | None = None) -> None:
    """Print what was measured where, the tables and the verdict; draw the plot."""
    tables, verdict = benchmarks_module("tables"), benchmarks_module("verdict")
    bullet = "- " if markdown else ""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None

    def printed(rows: Sequence[Sequence[str]]) -> None:
        print(tables.as_markdown(rows) if markdown else tables.as_text(rows, width))

    def titled(title: str, lines: Sequence[str]) -> None:
        print(f"\n{'### ' if markdown else ''}{title}{'' if markdown else ':'}\n")
        for line in lines:
            print(f"{bullet}{line}")

    for line in tables.heading(found):
        print(f"{bullet}{line}")
    titled("Peers", tables.peers(found))
    titled(tables.LEGEND, [])
    for k, panel in enumerate(found.panels):
        print(("\n" if k else "") + (f"**{', '.join(panel)}**\n" if markdown else f"{', '.join(panel)}"))
        rows, notes = tables.throughput(found, panel)
        printed(rows)
        for note in notes:
            print(f"{bullet}{note}")
    if old is not None:
        for panel in found.panels:
            if len(rows := tables.comparison(found, old, panel)) > 1:
                titled(f"Samples per second now, divided by those before: {', '.join(panel)}", [])
                printed(rows)
        titled("Since the earlier run", verdict.change(found, old))
        if other := verdict.differences(found, old):
            titled("What else differs between the two runs", other)
    absent = [name for name, known in found.content["peers"].items() if known.get("absent")]
    titled("Verdict", [*verdict.verdict(found), *([f"Without {', '.join(absent)}: absent here."] if absent else [])])
    benchmarks_module("picture").draw(found, picture)
    print(f"\nplot: {picture}" + ("" if out is None else f"\nresults: {out}"))


def _say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)
