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
from gpubp.cli.scores import confusion, print_confusion, score_text, scores
from gpubp.data.encoding import TableEncoder
from gpubp.data.splits import Split, split_rows
from gpubp.data.tables import Table, listed
from gpubp.errors import SettingError

_VALIDATION = 0.15
_PATIENCE = 20
_FLOAT32_OFFSET = 1e5  # from here on float32 keeps less than two digits of how a column varies


def train(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="CSV file with a header, or a bundled data set: digits, iris, breast_cancer, wine, diabetes.",
        ),
    ],
    target: options.Target = None,
    task: options.Task = "auto",
    layers: options.Layers = "128,64",
    activation: options.Activation = "relu",
    epochs: Annotated[
        int, typer.Option(min=1, metavar="N", help="At most so many; training stops early where it no longer helps.")
    ] = 200,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Examples in a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(metavar="X", help="Above 0.")] = 1e-3,
    optimizer: Annotated[str, typer.Option(metavar="adam|sgd", help="How the weights follow the gradient.")] = "adam",
    device: options.Device = "auto",
    seed: options.Seed = 0,
    l2: Annotated[float, typer.Option("--l2", metavar="X", help="Strength of the penalty on large weights.")] = 1e-3,
    held_out: Annotated[float, typer.Option(metavar="X", help="Share of the rows to hold out and score on.")] = 0.2,
    dtype: Annotated[str, typer.Option(metavar="float32|float64", help="Precision.")] = "float32",
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to save the model.")] = Path("model.safetensors"),
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the score on the held-out rows alone.")] = False,
) -> None:
    """Train a network on a table and save it.

    Rows held out from training say how good the network is; a picture of its loss curve goes beside the model.
    """
    hidden = options.parse_layers(layers)
    if dtype not in ("float32", "float64"):
        raise SettingError(f"--dtype {dtype}: use float32 or float64")
    options.require_number("--l2", l2, above=0, inclusive=True)
    options.require_number("--learning-rate", learning_rate, above=0)
    options.require_number("--held-out", held_out, above=0, below=1)
    options.require_writable("--out", out, data)
    picture = out.with_suffix(".png")
    if picture == out:
        raise SettingError(f"--out {out}: the loss curve goes by that name; end the model's in .safetensors")
    options.require_writable("--out", picture, data)

    settings: dict[str, Any] = {"dtype": dtype, "device": device, "l2": l2, "rng": seed}
    gpubp.mlp([1, 1], activation=activation, **settings)  # a wrong setting shows here, before the data is read
    method = gpubp.optimizer_by_name(optimizer, learning_rate=learning_rate)

    table = options.read_data(data)
    encoder = TableEncoder.fit(table, options.target_of(data, table, target), task)
    X, T = encoder.inputs(table), encoder.targets(table)  # (N, n_in), (N,)
    by_class = encoder.task == "classification"
    (split_seed,) = np.random.SeedSequence(seed).spawn(1)  # independent of what weights and minibatches draw
    split = split_rows(T, held_out, _VALIDATION, np.random.default_rng(split_seed), by_class=by_class)
    encoder = encoder.with_target_scale(T[split.train])
    widths = [encoder.n_in, *hidden, encoder.n_out]
    net = gpubp.mlp(widths, activation=activation, loss=encoder.loss, standardize=True, **settings)
    if not quiet:
        _describe(table, encoder, split)
        print(f"network: {options.chain(net, activation)}, {dtype}\ndevice: {net.device}")
    _warn(encoder, X, T, dtype)

    learned, began = encoder.standardize_targets(T), time.perf_counter()
    stopping = gpubp.EarlyStopping(patience=_PATIENCE)
    history = gpubp.fit(
        net,
        X[split.train],
        learned[split.train],
        optimizer=method,
        epochs=epochs,
        batch_size=batch_size,
        validation=(X[split.validation], learned[split.validation]),
        callbacks=[stopping],
        rng=seed,
        progress=not quiet,
    )
    if not quiet:
        seconds = time.perf_counter() - began
        print(f"trained: {len(history)} epochs in {seconds:.1f} s; the best one, {int(stopping.best_epoch)}, is kept")

    Y, truth = gpubp.to_host(net.predict(X[split.held_out], batch_size=8192)), T[split.held_out]  # (N, n_out), (N,)
    measured = scores(encoder, Y, truth)
    gpubp.save(net, out, metadata={"table": encoder.to_json(), "data": table.source, "held_out": measured})
    if by_class and not quiet:
        print_confusion(confusion(Y, truth), encoder.classes)
    for name, value in measured.items():
        print(f"held-out {name}: {score_text(name, value)}")
    drawn = _draw(history, picture)
    if not quiet:
        print(f"model: {out}\nloss curve: {drawn}")


def _describe(table: Table, encoder: TableEncoder, split: Split) -> None:
    texts = sum(column.categories is not None for column in encoder.columns)
    encoded = f" ({texts} of text, {encoder.n_in} inputs in all)" if texts else ""
    columns = "column" if len(encoder.columns) == 1 else "columns"
    print(f"data: {table.source}, {len(table)} rows, {len(encoder.columns)} input {columns}{encoded}")
    what = f"{len(encoder.classes)} classes: {listed(encoder.classes, 20)}" if encoder.classes else "a quantity"
    print(f"target: {encoder.target}, {what}")
    print(f"rows: {len(split.train)} to train, {len(split.validation)} to validate, {len(split.held_out)} held out")


def _warn(encoder: TableEncoder, X: npt.NDArray[Any], T: npt.NDArray[Any], dtype: str) -> None:
    """Say on standard error what the scores will not show."""
    if encoder.classes:
        counts = np.bincount(T, minlength=len(encoder.classes))
        single = [name for name, count in zip(encoder.classes, counts, strict=True) if count == 1]
        if single:
            print(
                f"note: with a single example, these classes are trained on but not in the score: {listed(single)}",
                file=sys.stderr,
            )
    spread = X.std(axis=0)  # (n_in,)
    if dtype == "float32" and (lost := (spread > 0) & (np.abs(X.mean(axis=0)) > _FLOAT32_OFFSET * spread)).any():
        names = [column.name for column in encoder.columns for _ in range(column.width)]
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
