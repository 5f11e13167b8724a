"""What people look at: tables as text and as a notebook's HTML, and pictures drawn by Matplotlib."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpubp.errors import GpubpError
from gpubp.files import write_atomically


@dataclass(frozen=True)
class Table:
    """A table with words below it.

    Attributes:
        header: The columns' names; the first column is aligned to the left, the others to the right.
        rows: As many cells each.
        notes: Lines below the table.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def text(self) -> str:
        """Columns as wide as their widest cell, two blanks apart."""
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = [
            "  ".join(cell.rjust(width) if k else cell.ljust(width) for k, (cell, width) in enumerate(pairs))
            for pairs in (tuple(zip(line, widths, strict=True)) for line in lines)
        ]
        return "\n".join([*(line.rstrip() for line in padded), *self.notes])

    def html(self) -> str:
        """The same for a notebook; it refers to nothing outside itself."""

        def row(cells: Sequence[str], tag: str) -> str:
            inner = (
                f'<{tag} style="text-align: {"right" if k else "left"}; white-space: pre">{html.escape(cell)}</{tag}>'
                for k, cell in enumerate(cells)
            )
            return f"<tr>{''.join(inner)}</tr>"

        body = "".join(row(cells, "td") for cells in self.rows)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<div><table><thead>{row(self.header, 'th')}</thead><tbody>{body}</tbody></table>{notes}</div>"


def preformatted(text: str) -> str:
    """Text as HTML that keeps its columns."""
    return f"<pre>{html.escape(text)}</pre>"


def new_figure(width: float, height: float) -> Any:
    """An empty Matplotlib figure; no display is needed.

    Args:
        width: In inches.
        height: In inches.

    Raises:
        GpubpError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise GpubpError("drawing needs Matplotlib: pip install 'gpubp[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | Path) -> None:
    """Write a figure into a file; the ending says which kind (``.png``, ``.svg``, ``.pdf``).

    Raises:
        GpubpError: The ending is unknown, or the file can't be written.
    """
    picture = io.BytesIO()
    try:
        figure.savefig(picture, format=Path(path).suffix[1:] or "png", dpi=150)
    except ValueError as error:
        raise GpubpError(f"{path}: no picture of that kind can be drawn ({error})") from error
    write_atomically(Path(path), picture.getvalue())
