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
from gpubp.data.encoding import TableEncoder
from gpubp.data.tables import MISSING, Table
from gpubp.errors import DataError, ModelFileError
from gpubp.files import write_atomically

_BATCH_SIZE = 8192


def predict(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model file that gpubp train wrote.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="CSV file or bundled data set.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write the predictions; to standard output without it.")
    ] = None,
    device: options.Device = "auto",
) -> None:
    """Predict each row of a table.

    Writes CSV: for each row the class and the probability of every class, or the value. Where the table has the
    target too, the score goes to standard error.
    """
    if out is not None:
        options.require_writable("--out", out, model, data)
    gpubp.resolve_device(device)
    if (written := gpubp.load_metadata(model).get("table")) is None:
        raise ModelFileError(
            f"{model} does not say how the columns of a table become its inputs: gpubp train did not write it. "
            "Use gpubp.load in Python"
        )
    encoder = TableEncoder.from_json(written)
    net = gpubp.load(model, device=device)
    if (net.n_in, net.n_out) != (encoder.n_in, encoder.n_out):
        raise ModelFileError(f"{model} is damaged: its network does not fit the columns that it names")
    table = options.read_data(data)
    Y = gpubp.to_host(net.predict(encoder.inputs(table), batch_size=_BATCH_SIZE))  # (N, n_out)
    text = _as_csv(encoder, Y)
    if out is None:
        print(text, end="", flush=True)
    else:
        write_atomically(out, text.encode())
        print(f"predictions: {out} ({len(table)} rows)")
    _print_scores(encoder, table, Y)


def _as_csv(encoder: TableEncoder, Y: Any) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["predicted", *(f"p_{name}" for name in encoder.classes)])
    if encoder.task == "classification":
        for best, row in zip(Y.argmax(axis=1).tolist(), Y.tolist(), strict=True):
            writer.writerow([encoder.classes[best], *(f"{probability:.6g}" for probability in row)])
    else:
        writer.writerows([f"{value:.9g}"] for value in encoder.restore_targets(Y).tolist())
    return text.getvalue()


def _print_scores(encoder: TableEncoder, table: Table, Y: Any) -> None:
    """Where the table has the target too, say on standard error how good the predictions are."""
    cells = table.columns.get(encoder.target)
    if cells is None or all(cell.lower() in MISSING for cell in cells):
        return
    try:
        for name, value in scores(encoder, Y, encoder.targets(table)).items():
            print(f"{name}: {score_text(name, value)} ({len(table)} rows)", file=sys.stderr)
    except DataError as error:
        print(f"not scored: {error}", file=sys.stderr)
