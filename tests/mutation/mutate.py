"""Mutation testing of the maths: every small wrong edit of it must make a test fail.

    python tests/mutation/mutate.py -j 2                   # everything
    python tests/mutation/mutate.py --sample 40 --seed 3   # a sample, the same for the same seed
    python tests/mutation/mutate.py --files 'gpubp/layers/*' --list

The operators, of ``operators.py``:

    flip-transpose   X.mT -> X, and a factor of a matrix product -> its transpose
    drop-factor      a * b -> a and -> b; a + b, a - b, a & b likewise; a / b, a ** b -> a; += -> =
    swap-axis        axis=-1 <-> axis=-2, shape[-1] <-> shape[-2], [..., None, :] <-> [..., :, None], X[n,i] -> X[i,n]
    negate           a + b <-> a - b, += <-> -=, -a -> a; a product that is assigned or returned, a whole formula
    off-by-one       a whole number, a bound of a slice or a range -> one more, one less
    flip-comparison  > <-> >=, < <-> <=, == <-> !=, max <-> min

Each also applies to the array functions of the same meaning, ``xp.multiply(a, b, out=c)`` (whose factors are also added
for a change), and to the formulas and index forms of rules. A mutant that passes all its suites has survived. It must
then be in ``equivalent.toml``, which says of each why no test could tell it from the original; an entry that names no
mutant, or one that is killed, is stale. Survivors that are not listed, and stale entries, make the exit code 1.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import random
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import runner
from mutants import Mutant, mutants_of
from runner import Job, Outcome

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "gpubp"
EQUIVALENT = Path(__file__).with_name("equivalent.toml")

SUITES = {  # pattern of files: the suites to run, the one that is expected to kill soonest first
    "ops/activation.py": "cost ops_activation_blocks ops_activation rules layers plan devices",
    "ops/elementary.py": "ops_elementary losses rules layers",
    "ops/embedding.py": "ops_embedding rules embedding cost",
    "ops/gather.py": "cost ops_gather trainer network devices",
    "ops/gemm.py": "cost ops_gemm rules layers network cublas",
    "ops/random.py": "ops_random",
    "ops/rows.py": "cost ops_rows rules layers network plan devices",
    "ops/tiles.py": "ops_tiles optimizers losses plan devices",
    "layers/*.py": "cost rules layers embedding residual network plan devices",
    "losses/*.py": "cost losses losses_edges rules network plan devices",
    "optimizers/*.py": "cost optimizers optimizers_settings optimizers_kernels trainer devices",
    "parameters.py": "parameters network layers",
    "schedules.py": "schedules optimizers_settings",
    "settings.py": "settings",
    "lbfgs.py": "lbfgs",
    "initializers.py": "initializers network",
    "network.py": "network trainer plan devices",
    "summary.py": "cost network",
    "data/minibatches.py": "data/minibatches trainer devices",
}
FUNCTIONS = {  # where only a part of a file is maths
    "summary.py": {"step_costs"},
    "ops/rows.py": {"add_bias", "column_sum", "standardize", "cost"},
    "network.py": {
        "run_forward", "run_step", "penalty", "evaluate", "evaluate_prepared", "loss_and_gradients", "predict",
        "_adapt", "sample_weights", "examples", "converted",
    },
}  # fmt: skip


def all_mutants(files: str = "*") -> list[Mutant]:
    """The mutants of every file that matches a pattern."""
    paths = sorted({path for pattern in SUITES for path in PACKAGE.glob(pattern)})
    names = [(path, path.relative_to(PACKAGE).as_posix()) for path in paths]
    return [
        mutant
        for path, name in names
        if is_meant(name, files)
        for mutant in mutants_of(name, path.read_text(), FUNCTIONS.get(name, ()))
        if not mutant.scope.endswith(".onnx")  # no maths of training: onnxruntime judges it, in tests/interop
    ]


def is_meant(file: str, pattern: str) -> bool:
    """Whether a file below gpubp/ matches a pattern, with or without the package in front."""
    return fnmatch.fnmatch(file, pattern.removeprefix("gpubp/"))


def suites_of(file: str) -> tuple[str, ...]:
    """The suites for a file, in the order to run them."""
    words = next(suites for pattern, suites in SUITES.items() if fnmatch.fnmatch(file, pattern))
    return tuple(str(Path("tests", word).with_name(f"test_{Path(word).name}.py")) for word in words.split())


def key_of(entry: dict[str, Any]) -> tuple[str, str, str, str, int]:
    """The `Mutant.key` of an entry of the list of equivalents."""
    return entry["file"], entry["scope"], entry["before"], entry["after"], entry.get("ordinal", 0)


def as_entry(mutant: Mutant) -> str:
    """What to add to the list of equivalents, the reason aside."""
    fields = {name: getattr(mutant, name) for name in ("file", "scope", "before", "after")}
    fields |= {"ordinal": mutant.ordinal} if mutant.ordinal else {}
    return "\n".join(["[[mutant]]", *(f"{name} = {json.dumps(value)}" for name, value in fields.items()), ""])


def baseline_fails(suites: Iterable[str], processes: int) -> list[str]:
    """The suites that fail without a mutation: what they say of a mutant would mean nothing."""
    outcomes = runner.run((Job((suite,)) for suite in sorted(suites)), processes)
    return [job.suites[0] for job, outcome in outcomes if outcome is not Outcome.SURVIVED]


def run(mutants: list[Mutant], suites: tuple[str, ...] | None, processes: int) -> dict[Mutant, Outcome]:
    """The outcome of each mutant."""
    jobs = {}
    for mutant in mutants:
        module = "gpubp." + mutant.file.removesuffix(".py").replace("/", ".")
        jobs[Job(suites or suites_of(mutant.file), PACKAGE / mutant.file, module, mutant.text)] = mutant
    outcomes: dict[Mutant, Outcome] = {}
    begin = time.monotonic()
    for job, outcome in runner.run(jobs, processes):
        outcomes[jobs[job]] = outcome
        if sys.stderr.isatty():
            survived = sum(o is Outcome.SURVIVED for o in outcomes.values())
            line = f"{len(outcomes)} of {len(mutants)}, {time.monotonic() - begin:.0f} s, {survived} survived"
            print(f"\r\033[K{line}  {jobs[job].name}"[: 80 + 6], end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    return outcomes


def table(outcomes: dict[Mutant, Outcome], listed: set[Any]) -> str:
    """One line a file: how many mutants became what, and the share that was killed of those that could be."""
    rows: dict[str, Counter[str]] = {}
    for mutant, outcome in outcomes.items():
        kind = "equivalent" if outcome is Outcome.SURVIVED and mutant.key in listed else outcome.value
        for row in (mutant.file, "all"):
            rows.setdefault(row, Counter())[kind] += 1
    kinds = [Outcome.KILLED, Outcome.ON_IMPORT, Outcome.ON_TIME, Outcome.CRASHED, "equivalent", Outcome.SURVIVED]
    heads = ["mutants", "killed", "on import", "too slow", "crashed", "equivalent", "survived", "score"]
    lines = [f"{'file':<34}" + "".join(f"{head:>11}" for head in heads)]
    for name in [*sorted(rows.keys() - {"all"}), *(["all"] if rows else [])]:
        row = rows[name]
        candidates = row.total() - row["equivalent"]
        score = f"{(candidates - row[Outcome.SURVIVED]) / candidates:.1%}" if candidates else "-"
        lines.append(f"{name:<34}" + "".join(f"{n!s:>11}" for n in [row.total(), *(row[k] for k in kinds), score]))
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the script; the exit code is 1 where a mutant survived or an entry is stale, 2 where nothing can be said."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", default="*", help="pattern of files, such as 'gpubp/layers/*'")
    parser.add_argument("--sample", type=int, help="how many mutants to draw; all without it")
    parser.add_argument("--seed", type=int, default=0, help="which sample to draw")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("-j", type=int, default=os.cpu_count() or 1, dest="processes", help="mutants at a time")
    parser.add_argument("--suites", nargs="+", help="test files to run instead of those that the script names")
    parser.add_argument("--equivalent", type=Path, default=EQUIVALENT, help="the list of equivalent mutants")
    options = parser.parse_args(arguments)

    mutants = all_mutants(options.files)
    listed = {key_of(entry): entry for entry in tomllib.loads(options.equivalent.read_text()).get("mutant", [])}
    listed = {key: entry for key, entry in listed.items() if is_meant(entry["file"], options.files)}
    stale = [(key, "there is no such mutant") for key in listed.keys() - {mutant.key for mutant in mutants}]
    stale += [(key, "it gives no reason") for key, entry in listed.items() if not entry.get("reason", "").strip()]
    if options.sample is not None and options.sample < len(mutants):
        chosen = set(random.Random(options.seed).sample(range(len(mutants)), options.sample))
        mutants = [mutant for position, mutant in enumerate(mutants) if position in chosen]
    if options.list:
        print(*(mutant.name for mutant in mutants), sep="\n")
        return 0

    runner.prepare(ROOT)
    suites = tuple(options.suites) if options.suites else None
    failing = baseline_fails(set(suites or (s for m in mutants for s in suites_of(m.file))), options.processes)
    if failing:
        print(f"fail without any mutation: {', '.join(failing)}", file=sys.stderr)
        return 2
    outcomes = run(mutants, suites, options.processes)
    stale += [(m.key, f"it is {o.value}") for m, o in outcomes.items() if m.key in listed and o != Outcome.SURVIVED]
    survivors = [m for m, o in outcomes.items() if o is Outcome.SURVIVED and m.key not in listed]
    print(table(outcomes, set(listed)))
    for mutant in survivors:
        print(f"\nSURVIVED {mutant.name}\n{as_entry(mutant)}", end="")
    for key, why in stale:
        print(f"\nSTALE entry of {options.equivalent.name}, {why}: {key}")
    return 1 if survivors or stale else 0


if __name__ == "__main__":
    sys.exit(main())
