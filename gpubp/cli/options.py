"""Options that several commands share, and the checks that come before any work."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy.typing as npt
import typer

import gpubp
from gpubp.data.arrays import ArrayData, Part
from gpubp.data.bundled import TARGETS, load_bundled
from gpubp.data.encoding import ArrayEncoder, Encoder, TableEncoder
from gpubp.data.reading import read_file
from gpubp.data.tables import Table, listed
from gpubp.errors import DataError, SettingError

DATA = (
    "CSV (with a header) or Parquet file; .npz, .npy or IDX file (.gz too) of arrays; or a bundled data set: "
    f"{', '.join(TARGETS)}."
)
OPTIMIZERS = f"One of {', '.join(sorted(gpubp.Optimizer.by_name))}."

Data = Table | ArrayData

Target = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="Column to learn; bundled data sets know their own.")
]
Targets = Annotated[
    Path | None, typer.Option(metavar="FILE", help="For a .npy or IDX file: another one with the targets.")
]
Task = Annotated[
    str,
    typer.Option(
        metavar="classification|regression|auto",
        help="What the target is. auto: text, or whole numbers with at most 20 distinct values, is a class; "
        "other numbers are a quantity.",
    ),
]
Layers = Annotated[str, typer.Option(metavar="N,N,...", help="Widths of the hidden layers.")]
Activation = Annotated[str, typer.Option(metavar="NAME", help="Activation after each hidden layer.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:1.")]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="CPU threads to use; all usable cores where not given.")
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Of everything random: split, weights, minibatches.")]


def parse_layers(text: str) -> list[int]:
    """The widths that ``--layers`` names.

    Raises:
        SettingError: One of them is no whole number from 1 to a million.
    """
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not (part.isdecimal() and len(part) <= 7 and 1 <= int(part) <= 1_000_000):
            raise SettingError(
                f"--layers {text}: {part!r} is not a width. Write whole numbers, at most 1000000, as in --layers 128,64"
            )
    return [int(part) for part in parts]


def chain(net: gpubp.Network, activation: str) -> str:
    """A network in one line: widths, loss and size."""
    hidden = [layer.n_out for layer in net.layers if isinstance(layer, gpubp.Dense)][:-1]
    widths = "".join(f"{width} {activation} -> " for width in hidden)
    return f"{net.n_in} -> {widths}{net.n_out}, {net.loss.name}, {net.theta.size} parameters"


def require_number(
    option: str, value: float, *, above: float, below: float = math.inf, inclusive: bool = False
) -> None:
    """Check that an option's number is above one bound (or equal to it, if inclusive) and below another.

    Raises:
        SettingError: It is not.
    """
    if not (above < value < below or (inclusive and value == above)):
        least = f"at least {above:g}" if inclusive else f"above {above:g}"
        most = "finite" if below == math.inf else f"below {below:g}"
        raise SettingError(f"{option} {value:g}: a number {least} and {most} is needed")


def require_writable(option: str, path: Path, *inputs: str | Path) -> None:
    """Check that a file can be written at a path, and that this would not overwrite an input.

    Raises:
        SettingError: There is no such directory, it is read-only, or the path is an input or no regular file.
    """
    if path.is_dir():
        raise SettingError(f"{option}: {path} is a directory; name a file in it")
    if path.exists() and not path.is_file():
        raise SettingError(f"{option}: {path} is no regular file; name another")
    if not path.parent.is_dir():
        raise SettingError(f"{option}: there is no directory {path.parent}; make it first, or name another")
    if not os.access(path.parent, os.W_OK):
        raise SettingError(f"{option}: nothing can be written in {path.parent}; name another directory")
    for taken in map(Path, inputs):
        if path.exists() and taken.exists() and path.samefile(taken):
            raise SettingError(f"{option}: {path} would overwrite an input; name another file")


def read_data(data: str, targets: Path | None = None, part: Part = "train") -> Data:
    """The bundled data set of this name, or else the file, with its targets from another if there is one.

    Raises:
        DataError: There is neither, or a file can't be read.
    """
    if data in TARGETS:
        if targets is not None:
            raise DataError(f"--targets {targets}: the bundled data set {data!r} has its own")
        return load_bundled(data)
    if not Path(data).exists():
        raise DataError(f"there is no file {data!r}, and no bundled data set of that name ({', '.join(TARGETS)})")
    return read_file(data, targets, part)


def fit_encoder(
    name: str, data: Data, target: str | None, task: str, missing: str = "error", embed: Sequence[str] = ()
) -> Encoder:
    """How the data becomes inputs and targets; see `TableEncoder.fit` and `ArrayEncoder.fit`.

    Raises:
        SettingError: A table came without the column to learn, or arrays with one.
        DataError: See there.
    """
    if isinstance(data, Table):
        return TableEncoder.fit(data, target_of(name, data, target), task, missing=missing, embed=embed)
    if target is not None:
        raise SettingError(f"--target {target}: {data.source} holds arrays, which have no names; use --targets FILE")
    if missing != "error":
        raise SettingError(f"--missing {missing} is for tables, and {data.source} holds arrays: fill them in before")
    if embed:
        raise SettingError(f"--embed {embed[0]} is for columns of a table, and {data.source} holds arrays")
    return ArrayEncoder.fit(data, task)


def predictions(net: gpubp.Network, X: Any) -> npt.NDArray[Any]:
    """The network's predictions (N, n_out) on the host; X (N, n_in) may be larger than memory."""
    predicted: npt.NDArray[Any] = gpubp.to_host(net.predict(X))
    return predicted


def note_unseen(encoder: Encoder, data: Data) -> None:
    """Say on standard error which categories are unknown, and what that means."""
    if not isinstance(encoder, TableEncoder) or not isinstance(data, Table):
        return
    found = [
        f"{name}: {listed(f'{text!r} ({count})' for text, count in counts.items())}"
        for name, counts in encoder.unseen(data).items()
    ]
    if found:
        print(
            f"note: {data.source} has texts that were not in the training data, with how many rows of each; all inputs "
            f"of their column are 0 there: {'; '.join(found)}",
            file=sys.stderr,
        )


def target_of(data: str, table: Table, target: str | None) -> str:
    """The column to learn: the one asked for, or that of a bundled data set.

    Raises:
        SettingError: A CSV file was given without one.
    """
    if target is None and data not in TARGETS:
        raise SettingError(
            f"which column is to be learned? Add --target COLUMN; {table.source} has: {listed(table.columns)}"
        )
    return TARGETS[data] if target is None else target
