"""Measures and proves everything on a machine with a GPU, in so many minutes: from a checkout, with nothing installed.

Run ``python benchmarks/on_a_gpu.py --minutes 9 --out DIR`` twice. The stages follow each other, the most telling first,
each with its own time limit, and each one's figures are written as soon as it ends. A second run into the same DIR goes
on with what is missing; the criteria are judged over all of it. ``--only STAGE,...`` runs some stages, and also those
again that are finished. DIR then holds ``results.json`` with all figures, ``report.md`` with tables, and logs.
``--pretend`` tries everything out on a CPU, tiny.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpubp.cli.bench import benchmarks_module
from gpubp.errors import DataError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages, and print the table, the criteria and the telling figures."""
    stages, report = benchmarks_module("gpu_stages"), benchmarks_module("gpu_report")
    names = [stage.name for stage in stages.STAGES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="for this run (default 9)")
    parser.add_argument(
        "--out", type=Path, default=Path("on-a-gpu"), metavar="DIR", help="where the results go, and earlier ones are"
    )
    parser.add_argument("--only", metavar="STAGE,...", help=f"of {', '.join(names)}")
    parser.add_argument("--pretend", action="store_true", help="try it out on the CPU, tiny")
    parser.add_argument("--do", metavar="JOB", help=argparse.SUPPRESS)  # what a stage runs in a process of its own
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)  # what is known by then is written, and processes and files are cleared away
    if chosen.do:
        stages.do(chosen.do, chosen.pretend, chosen.seconds, chosen.out)
        return 0
    only = names if chosen.only is None else [name.strip() for name in chosen.only.split(",")]
    if unknown := [name for name in only if name not in names]:
        parser.error(f"--only: there is no stage {', '.join(unknown)}; there are {', '.join(names)}")
    if not chosen.minutes > 0:
        parser.error("--minutes: a positive number is needed")

    out = chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    # Whose figures they are is always looked at: those of two cards do not go into one folder.
    selected = [stage for stage in stages.STAGES if stage.name in ("facts", *only)]
    budget = stages.Budget(60 * chosen.minutes)
    try:
        here = stages.earlier(out, chosen.pretend)
        try:
            stages.run_stages(selected, here, budget, lambda words: print(words, flush=True), chosen.only is not None)
        except KeyboardInterrupt:
            print("stopped", flush=True)
    except DataError as error:
        parser.error(str(error))
    print("\n" + "\n".join(report.summary(here.found)))
    print(f"\n{out / 'report.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
