"""Running commands in the tests."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from gpubp.cli import app

ROOT = Path(__file__).parents[2]
SMALL = ["--layers", "8", "--epochs", "3"]


def run(*arguments):
    """The outcome of a command, after a look that it did not end by an unforeseen exception."""
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert outcome.exception is None or isinstance(outcome.exception, SystemExit), repr(outcome.exception)
    return outcome


def refused(*arguments, code):
    """The message of a command that is refused: one line, and nothing has been written."""
    before = sorted(Path().rglob("*"))
    outcome = run(*arguments)
    assert outcome.exit_code == code, outcome.output
    assert outcome.stderr.startswith("error: ")
    assert outcome.stderr.count("\n") == 1
    assert outcome.stdout == ""
    assert sorted(Path().rglob("*")) == before
    return outcome.stderr


def environment(**more):
    """The environment of a process that finds this checkout and buffers its output, as outside of tests."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "", **more}


def process(*arguments, **settings):
    """The outcome of ``python -m gpubp`` in a process of its own."""
    command = [sys.executable, "-m", "gpubp", *map(str, arguments)]
    strict = environment(PYTHONWARNINGS="error")
    return subprocess.run(command, capture_output=True, text=True, env=strict, timeout=300, **settings)


def complaints(stderr):
    """What a program says to stderr, but that it compiles kernels: the first one on a machine does."""
    lines = stderr.splitlines(keepends=True)
    return "".join(
        line
        for line in lines
        if not line.startswith("compiling CPU kernels for this machine, once, as they are needed; ")
    )


def write_csv(path, columns):
    """Write columns to a CSV file."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path
