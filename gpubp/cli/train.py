"""``gpubp train``: from a table to a saved model, with rows held out to say how good it is."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

import gpubp
from gpubp.cli import options
from gpubp.cli.scores import confusion, imbalance, print_confusion, score_text, scores
from gpubp.data.arrays import ArrayData
from gpubp.data.encoding import Encoder, TableEncoder
from gpubp.data.splits import split_rows
from gpubp.data.tables import Table, listed
from gpubp.errors import DataError, SettingError
from gpubp.examples import RowsOf
from gpubp.schedules import schedule_by_name

_VALIDATION = 0.15
_PATIENCE = 20
_LOOKED_AT = 2_000_000  # about how many numbers to look for columns without much variation in
_LOOKED_WITH = 1000  # training rows that dead units and saturated layers are looked for with
_FLOAT32_OFFSET = 1e5  # from here on float32 keeps less than two digits of how a column varies


def train(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help=options.DATA,
        ),
    ],
    target: options.Target = None,
    targets: options.Targets = None,
    task: options.Task = "auto",
    layers: options.Layers = "128,64",
    activation: options.Activation = "relu",
    epochs: Annotated[
        int, typer.Option(min=1, metavar="N", help="At most so many; training stops early where it no longer helps.")
    ] = 200,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Examples in a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(metavar="X", help="Above 0.")] = 1e-3,
    optimizer: Annotated[str, typer.Option(metavar="NAME", help=options.OPTIMIZERS)] = "adam",
    schedule: Annotated[
        str,
        typer.Option(metavar="NAME", help="Of the rate: constant, cosine, inverse_scaling, one_cycle or plateau."),
    ] = "constant",
    clip_norm: Annotated[float | None, typer.Option(metavar="X", help="Shorten gradients that are longer.")] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    seed: options.Seed = 0,
    l2: Annotated[float, typer.Option("--l2", metavar="X", help="Strength of the penalty on large weights.")] = 1e-3,
    held_out: Annotated[float, typer.Option(metavar="X", help="Share of the rows to hold out and score on.")] = 0.2,
    validation: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Rows to validate with, as DATA has them, in place of a share of DATA."),
    ] = None,
    validation_targets: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The targets of a .npy or IDX file of validation examples.")
    ] = None,
    missing: Annotated[
        str,
        typer.Option(
            metavar="error|median",
            help="What a missing value of a table is: an error; or the median, with an input more that says so, and "
            "a category of its own among texts.",
        ),
    ] = "error",
    embed: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN",
            help="A column of text to learn a vector of for each category, in place of an input of 0 and 1 for each. "
            "Give it again for another column.",
        ),
    ] = None,
    dtype: Annotated[str, typer.Option(metavar="float32|float64", help="Precision.")] = "float32",
    matmul_precision: Annotated[
        str, typer.Option(metavar="float32|tf32|bf16", help="Of matrix products on a GPU; the CPU has float32 alone.")
    ] = "float32",
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to save the model.")] = Path("model.safetensors"),
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the score on the held-out rows alone.")] = False,
) -> None:
    """Train a network on a table, or on arrays, and save it.

    Rows held out from training say how good the network is; a picture of its loss curve goes beside the model.
    """
    hidden = options.parse_layers(layers)
    if dtype not in ("float32", "float64"):
        raise SettingError(f"--dtype {dtype}: use float32 or float64")
    options.require_number("--l2", l2, above=0, inclusive=True)
    options.require_number("--learning-rate", learning_rate, above=0)
    options.require_number("--held-out", held_out, above=0, below=1)
    if missing not in ("error", "median"):
        raise SettingError(f"--missing {missing}: use error or median")
    if validation is None and validation_targets is not None:
        raise SettingError(f"--validation-targets {validation_targets}: of which examples? Add --validation FILE")
    inputs = [data, *(path for path in (targets, validation, validation_targets) if path is not None)]
    options.require_writable("--out", out, *inputs)
    picture = out.with_suffix(".png")
    if picture == out:
        raise SettingError(f"--out {out}: the loss curve goes by that name; end the model's in .safetensors")
    options.require_writable("--out", picture, *inputs)

    settings: dict[str, Any] = {"dtype": dtype, "device": device, "l2": l2, "rng": seed}
    settings["matmul_precision"] = matmul_precision
    gpubp.mlp([1, 1], activation=activation, **settings)  # a wrong setting shows here, before the data is read
    rate = schedule_by_name(schedule, learning_rate)
    method = gpubp.optimizer_by_name(optimizer, learning_rate=rate, clip_norm=clip_norm)

    read = options.read_data(data, targets)
    encoder = options.fit_encoder(data, read, target, task, missing, embed or ())
    T = encoder.targets(read)  # (N,)
    by_class = encoder.task == "classification"
    (split_seed,) = np.random.SeedSequence(seed).spawn(1)  # independent of what weights and minibatches draw
    share = _VALIDATION if validation is None else None
    split = split_rows(T, held_out, share, np.random.default_rng(split_seed), by_class=by_class)
    encoder = encoder.with_target_scale(T[split.train])
    if isinstance(encoder, TableEncoder) and isinstance(read, Table) and missing == "median":
        encoder = encoder.with_medians(read, split.train)
    X, learned = encoder.inputs(read), encoder.standardize_targets(T)  # (N, n_in), (N,)

    def part(rows: npt.NDArray[np.int64]) -> Any:
        return RowsOf(X, rows) if isinstance(read, ArrayData) else X[rows]

    if validation is None:
        checked, where = (part(split.validation), learned[split.validation]), ""
    else:
        others = options.read_data(validation, validation_targets, part="test")
        checked = _validation(encoder, others)
        where = f" from {others.source}"
    widths = [encoder.n_in, *hidden, encoder.n_out]
    settings |= {"activation": activation, "embeddings": encoder.embeddings, "loss": encoder.loss}
    net = gpubp.mlp(widths, standardize=True, **settings)
    if not quiet:
        _describe(read, encoder, T)
        counts = f"{len(split.train)} to train, {len(checked[1])} to validate{where}, {len(split.held_out)} held out"
        print(f"rows: {counts}")
        print(f"network: {options.chain(net, activation)}, {dtype}\ndevice: {net.device}")
    _warn(encoder, X, T, dtype)
    if validation is not None:
        options.note_unseen(encoder, others)

    began = time.perf_counter()
    stopping = gpubp.EarlyStopping(patience=_PATIENCE)
    history = gpubp.fit(
        net,
        part(split.train),
        learned[split.train],
        optimizer=method,
        epochs=epochs,
        batch_size=batch_size,
        validation=checked,
        callbacks=[stopping],
        rng=seed,
        progress=not quiet,
        threads=threads,
    )
    if not quiet:
        seconds = time.perf_counter() - began
        print(f"trained: {len(history)} epochs in {seconds:.1f} s; the best one, {int(stopping.best_epoch)}, is kept")
        for finding in gpubp.look(net, part(split.train[:_LOOKED_WITH])).findings:
            print(f"note: {finding}", file=sys.stderr)

    Y, truth = options.predictions(net, part(split.held_out)), T[split.held_out]  # (N, n_out), (N,)
    measured = scores(encoder, Y, truth)
    kind = "table" if isinstance(encoder, TableEncoder) else "arrays"
    gpubp.save(net, out, metadata={kind: encoder.to_json(), "data": read.source, "held_out": measured})
    if by_class and not quiet:
        print_confusion(confusion(Y, truth), encoder.classes)
    for name, value in measured.items():
        print(f"held-out {name}: {score_text(name, value)}")
    drawn = _draw(history, picture)
    if not quiet:
        print(f"model: {out}\nloss curve: {drawn}")


def _validation(encoder: Encoder, data: options.Data) -> tuple[Any, npt.NDArray[Any]]:
    """The examples and targets to validate with, as the network takes them."""
    try:
        return encoder.inputs(data, unseen="zeros"), encoder.standardize_targets(encoder.targets(data))
    except DataError as error:
        raise DataError(f"--validation: {error}") from error


def _describe(data: options.Data, encoder: Encoder, T: npt.NDArray[Any]) -> None:
    if isinstance(encoder, TableEncoder):
        texts = sum(column.categories is not None for column in encoder.columns)
        indicators = sum(column.indicator for column in encoder.columns)
        embedded = len(encoder.embeddings)
        notes = [
            *([f"{texts} of text"] if texts else []),
            *([f"{embedded} embedded"] if embedded else []),
            *([f"{indicators} with missing values"] if indicators else []),
            *([f"{encoder.n_in} inputs in all"] if texts or indicators else []),
        ]
        columns = "column" if len(encoder.columns) == 1 else "columns"
        what = f"{len(encoder.columns)} input {columns}" + (f" ({', '.join(notes)})" if notes else "")
    else:
        what = f"{encoder.n_in} features of {encoder.inputs(data).dtype}"
    print(f"data: {data.source}, {len(data)} rows, {what}")
    what = f"{len(encoder.classes)} classes: {listed(encoder.classes, 20)}" if encoder.classes else "a quantity"
    print(f"target: {encoder.target}, {what}")
    if encoder.classes and (counts := imbalance(T, encoder.classes)):
        print(counts)


def _warn(encoder: Encoder, X: npt.NDArray[Any], T: npt.NDArray[Any], dtype: str) -> None:
    """Say on standard error what the scores will not show."""
    if encoder.classes:
        counts = np.bincount(T, minlength=len(encoder.classes))
        single = [name for name, count in zip(encoder.classes, counts, strict=True) if count == 1]
        if single:
            print(
                f"note: with a single example, these classes are trained on but not in the score: {listed(single)}",
                file=sys.stderr,
            )
    some = np.asarray(X[:: 1 + X.size // _LOOKED_AT], np.float64)  # X may be larger than memory
    spread = some.std(axis=0)  # (n_in,)
    if dtype == "float32" and (lost := (spread > 0) & (np.abs(some.mean(axis=0)) > _FLOAT32_OFFSET * spread)).any():
        names = encoder.input_names
        print(
            "note: these columns vary too little around a large value for float32; subtract a constant, or use "
            f"--dtype float64: {listed(name for name, is_lost in zip(names, lost, strict=True) if is_lost)}",
            file=sys.stderr,
        )


def _draw(history: gpubp.History, path: Path) -> str:
    """Draw the loss curve; the path, or why there is none."""
    if importlib.util.find_spec("matplotlib") is None:
        return "not drawn; it takes Matplotlib: pip install 'gpubp[plot]'"
    history.plot(path)
    return str(path)
