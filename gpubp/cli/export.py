"""``gpubp export``: a saved model as ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import gpubp
from gpubp.cli import options
from gpubp.data.tables import listed


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model file that gpubp train or gpubp.save wrote.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write; beside the model, ending in .onnx, without it.")
    ] = None,
) -> None:
    """Write a model as ONNX.

    A model that gpubp train wrote on a table takes raw columns there: one input (N, 1) for each, a number or a string,
    of the column's name; one that it wrote on arrays takes X (N, features).
    """
    out = Path(model).with_suffix(".onnx") if out is None else out
    options.require_writable("--out", out, model)
    metadata = gpubp.load_metadata(model)
    known = {kind: metadata[kind] for kind in ("table", "arrays") if kind in metadata}
    written = gpubp.to_onnx(gpubp.load(model, device="cpu"), out, **known)
    print(f"ONNX: {out}")
    print(f"inputs: {listed(value.name for value in written.graph.input)}")
    print(f"outputs: {listed(value.name for value in written.graph.output)}")
