"""``gpubp predict``: predictions of a saved model for the rows of a table."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import gpubp
from gpubp.cli import options
from gpubp.cli.scores import score_text, scores
from gpubp.data.encoding import ArrayEncoder, Encoder, TableEncoder
from gpubp.errors import DataError, ModelFileError, SettingError
from gpubp.files import write_atomically


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model file that gpubp train wrote.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help=options.DATA)],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write the predictions; to standard output without it.")
    ] = None,
    targets: options.Targets = None,
    unseen: Annotated[
        str,
        typer.Option(metavar="zeros|error", help="What a text is that was not in the training data: 0 in all inputs."),
    ] = "zeros",
    device: options.Device = "auto",
) -> None:
    """Predict each row of a table, or each example of an array.

    Writes CSV: for each row the class and the probability of every class, or the value. Where the data has the
    target too, the score goes to standard error. Of a .npz file with x_train and x_test, x_test is taken.
    """
    if unseen not in ("zeros", "error"):
        raise SettingError(f"--unseen {unseen}: use zeros or error")
    if out is not None:
        options.require_writable("--out", out, model, data)
    gpubp.resolve_device(device)
    metadata = gpubp.load_metadata(model)
    kind: type[Encoder] = ArrayEncoder if "arrays" in metadata else TableEncoder
    if (written := metadata.get("arrays", metadata.get("table"))) is None:
        raise ModelFileError(
            f"{model} does not say how the columns of a table become its inputs: gpubp train did not write it. "
            "Use gpubp.load in Python"
        )
    encoder = kind.from_json(written)
    net = gpubp.load(model, device=device)
    if (net.n_in, net.n_out) != (encoder.n_in, encoder.n_out):
        raise ModelFileError(f"{model} is damaged: its network does not fit the columns that it names")
    read = options.read_data(data, targets, part="test")
    Y = options.predictions(net, encoder.inputs(read, unseen=unseen))  # (N, n_out)
    options.note_unseen(encoder, read)
    text = _as_csv(encoder, Y)
    if out is None:
        print(text, end="", flush=True)
    else:
        write_atomically(out, text.encode())
        print(f"predictions: {out} ({len(read)} rows)")
    _print_scores(encoder, read, Y)


def _as_csv(encoder: Encoder, Y: Any) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["predicted", *(f"p_{name}" for name in encoder.classes)])
    if encoder.task == "classification":
        for best, row in zip(Y.argmax(axis=1).tolist(), Y.tolist(), strict=True):
            writer.writerow([encoder.classes[best], *(f"{probability:.6g}" for probability in row)])
    else:
        writer.writerows([f"{value:.9g}"] for value in encoder.restore_targets(Y).tolist())
    return text.getvalue()


def _print_scores(encoder: Encoder, data: options.Data, Y: Any) -> None:
    """Where the data has the target too, say on standard error how good the predictions are."""
    try:
        table = encoder.target_table(data)
        if table is None or table.missing(encoder.target).all():
            return
        for name, value in scores(encoder, Y, encoder.targets(data)).items():
            print(f"{name}: {score_text(name, value)} ({len(data)} rows)", file=sys.stderr)
    except DataError as error:
        print(f"not scored: {error}", file=sys.stderr)
