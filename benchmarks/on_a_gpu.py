"""Measures and proves everything on a machine with a GPU, in so many minutes: from a checkout, with nothing installed.

Run ``python benchmarks/on_a_gpu.py --minutes 4.5 --out DIR`` twice, or once with ``--minutes 8.8``. The stages follow
each other, the most telling first, each with its own time limit, and each figure is written as soon as it is there. A
second run into the same DIR goes on with what is missing; the criteria are judged over all of it. ``--only STAGE,...``
does some stages anew. DIR then holds ``results.json`` with all figures, ``report.md`` with tables, which is also
printed, and ``log.txt``. ``--pretend`` tries everything out on a CPU, tiny.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpubp.benchmarking import benchmarks_module
from gpubp.errors import DataError

stages, report, running = map(benchmarks_module, ("gpu_stages", "gpu_report", "gpu_run"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the stages, and print the page."""
    names = [stage.name for stage in stages.STAGES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=4.5, help="for this run (default 4.5)")
    parser.add_argument(
        "--out", type=Path, default=Path("on-a-gpu"), metavar="DIR", help="where the results go, and earlier ones are"
    )
    parser.add_argument("--only", metavar="STAGE,...", help=f"of {', '.join(names)}")
    parser.add_argument("--pretend", action="store_true", help="try it out on the CPU, tiny")
    parser.add_argument("--do", metavar="JOB", help=argparse.SUPPRESS)  # what a stage runs in a process of its own
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    only = names if chosen.only is None else [name.strip() for name in chosen.only.split(",")]
    if unknown := [name for name in only if name not in names]:
        parser.error(f"--only: there is no stage {', '.join(unknown)}; there are {', '.join(names)}")
    if not chosen.minutes > 0:
        parser.error("--minutes: a positive number is needed")

    def end(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)  # processes and files are cleared away
    here = running.Run(chosen.out.resolve(), chosen.pretend)
    if chosen.do:
        stages.do(chosen.do, chosen.pretend, chosen.seconds, here.path)
        return 0
    budget = running.Budget(60 * chosen.minutes)
    try:
        here.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out {chosen.out}: {error.strerror}")
    try:
        here.load()
        for name in only if chosen.only is not None else ():  # anew
            here.found.get("stages", {}).pop(name, None)
            here.found.pop(name, None)
        # Whose figures they are is always looked at: those of two cards do not go into one folder.
        selected = [stage for stage in stages.STAGES if stage.name in ("facts", *only)]
        running.run_stages(selected, here, budget, lambda words: print(words, flush=True))
    except KeyboardInterrupt:
        print("stopped", flush=True)
        here.load()  # a job that was ended has noted what it had
    except DataError as error:
        parser.error(str(error))
    here.save()
    print("\n" + (here.out / "report.md").read_text(encoding="utf-8"))
    print(here.summary())  # whoever sees the end alone sees this
    return 0


if __name__ == "__main__":
    sys.exit(main())
