"""Tables of text cells and numbers, read from CSV files, with errors that name the line and the column."""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpubp.errors import DataError

DELIMITERS = ",;\t"
MISSING = frozenset({"", "nan", "na", "n/a", "null", "none", "?", "-"})
"""How files mark a missing number, in lower case. In a column of text only the empty cell and ``nan`` count."""

LARGEST = 1e38
_SNIFFED_ROWS = 20


@dataclass(frozen=True)
class Unusable:
    """A column that nothing can be learned from; an error only where it is asked for.

    Attributes:
        why: What it holds, and the way out.
    """

    why: str


Numbers = npt.NDArray[Any]
Cells = list[str] | Numbers
"""The cells of a column: text, the empty one for a missing value; or numbers (N,), NaN for a missing one."""


@dataclass(frozen=True)
class Table:
    """Columns of text cells or numbers.

    Attributes:
        source: What errors call the table, such as the file's name.
        columns: Name to cells, one a row, in the file's order.
        lines: Where each row stands in the file, counted in `unit`; a CSV file's header is line 1.
        unit: ``"line"``, or ``"row"`` where a file has no lines.
    """

    source: str
    columns: Mapping[str, Cells | Unusable]
    lines: Sequence[int]
    unit: str = "line"

    def __len__(self) -> int:
        return len(self.lines)

    def cells(self, name: str) -> Cells:
        """The cells of a column.

        Raises:
            DataError: There is no such column; the message lists those that there are. Or it is an unusable one.
        """
        if name not in self.columns:
            lowered = {column.lower(): column for column in self.columns}
            close = difflib.get_close_matches(name.lower(), lowered, n=1)
            guess = f" Did you mean {lowered[close[0]]!r}?" if close else ""
            raise DataError(f"{self.source} has no column {name!r}.{guess} Its columns: {listed(self.columns)}")
        cells = self.columns[name]
        if isinstance(cells, Unusable):
            raise DataError(f"{self.source}: column {name!r} {cells.why}")
        return cells

    def at(self, row: int, name: str) -> str:
        """Where a cell stands, for errors; `row` counts from 0."""
        return f"{self.source}, {self.unit} {self.lines[row]}, column {name!r}"

    def missing(self, name: str) -> npt.NDArray[np.bool_]:
        """Where (N,) a column of numbers has none, but a mark of a missing value."""
        cells = self.cells(name)
        if isinstance(cells, np.ndarray):
            return np.isnan(cells)
        return np.fromiter((cell.lower() in MISSING for cell in cells), bool, len(cells))

    def numbers(self, name: str, fill: float | None = None) -> npt.NDArray[np.float64]:
        """The cells of a column as numbers, shape (N,), of size 1e38 at most so that float32 holds them.

        Args:
            name: The column.
            fill: What stands in for a missing cell; None for an error.

        Raises:
            DataError: A cell is missing, is no number, or is infinite or too large; the message names the first.
        """
        cells = self.cells(name)
        if isinstance(cells, np.ndarray):
            values = cells.astype(np.float64)
        else:
            values = np.empty(len(self))
            for row, cell in enumerate(cells):
                value = as_number(cell)
                if value is None and fill is not None and cell.lower() in MISSING:
                    value = math.nan
                if value is None:
                    raise DataError(f"{self.at(row, name)}: {why_no_number(cell, value)}")
                values[row] = value
        if fill is not None:
            values[np.isnan(values)] = fill
        wrong = ~(np.abs(values) <= LARGEST)  # true of nan, too
        if wrong.any():
            row = int(wrong.argmax())
            text = "" if isinstance(cells, np.ndarray) and np.isnan(cells[row]) else str(cells[row])
            raise DataError(f"{self.at(row, name)}: {why_no_number(text, float(values[row]))}")
        return values

    def texts(self, name: str, *, missing: bool = False) -> list[str]:
        """The cells of a column as text; numbers are spelled in one way, `spelled`.

        Args:
            name: The column.
            missing: Whether a missing cell is the text ``""``, rather than an error.

        Raises:
            DataError: A cell is empty or ``nan``; the message names the first.
        """
        cells = self.cells(name)
        texts = [spelled(cell) for cell in cells.tolist()] if isinstance(cells, np.ndarray) else cells
        if missing:
            return ["" if cell.lower() == "nan" else cell for cell in texts]
        for row, cell in enumerate(texts):
            if cell.lower() in ("", "nan"):
                raise DataError(f"{self.at(row, name)}: {why_no_number(cell, None)}")
        return texts

    def is_numeric(self, name: str) -> bool:
        """Whether at least 90 % of a column's cells, missing ones aside, are numbers; some cells may still be wrong.

        Raises:
            DataError: All cells are missing, or most are numbers written with a decimal comma.
        """
        cells = self.cells(name)
        if isinstance(cells, np.ndarray):
            present: list[str] = [] if self.missing(name).all() else ["0"]
        else:
            present = [cell for cell in cells if cell.lower() not in MISSING]
        if not present:
            raise DataError(f"{self.source}: column {name!r} holds no values. Fill it in, or remove the column")
        if 10 * _count_numbers(present) >= 9 * len(present):
            return True
        if 10 * _count_numbers(cell.replace(",", ".", 1) for cell in present) >= 9 * len(present):
            wrong = next(cell for cell in present if "," in cell)
            raise DataError(
                f"{self.at(list(cells).index(wrong), name)}: {wrong!r} has a comma; "
                "write numbers with a decimal point and nothing between the thousands"
            )
        return False


def listed(names: Iterable[str], limit: int = 12) -> str:
    """Names with commas between them; of many, the first `limit` and the count."""
    names = list(names)
    text = ", ".join(names[:limit])
    return text if len(names) <= limit else f"{text}, ... ({len(names)} in all)"


def as_number(cell: str) -> float | None:
    """The number that a cell holds, which may be infinite or not a number; None for text."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def spelled(value: float) -> str:
    """A number as text, the same for 1, 1.0 and 1e0."""
    return str(int(value)) if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15) else repr(value)


def _count_numbers(cells: Iterable[str]) -> int:
    return sum(as_number(cell) is not None for cell in cells)


def why_no_number(cell: str, value: float | None = None) -> str:
    """Why a cell is no number to compute with, and the way out; `value` is what `as_number` says."""
    if cell == "":
        return "the cell is empty. Fill it in, or remove the row"
    if cell.lower() in MISSING:
        return f"{cell!r} stands for a missing value. Fill it in, or remove the row"
    if value is not None:
        return f"{cell!r} is {'not a finite number' if math.isinf(value) else 'too large: rescale the column'}"
    return f"{cell!r} is not a number"


def read_csv(path: str | Path) -> Table:
    """Read a CSV file: a header, then rows; commas, semicolons or tabs between the fields; UTF-8, with or without BOM.

    Blanks around names and cells are dropped, and so are blank lines.

    Raises:
        DataError: The file can't be read, is not UTF-8, is empty or has a header alone, a column has no name or the
            name of another, or a row has more or fewer fields than the header.
    """
    path = Path(path)
    text = _text_of(path)
    try:
        records = list(_records(text, _delimiter(text)))
    except csv.Error as error:
        raise DataError(f"{path.name}, {error}") from error
    if not records:
        raise DataError(f"{path.name} is empty: a header line and rows are needed")
    (_, names), *rows = records
    check_names(path.name, names)
    if not rows:
        raise DataError(f"{path.name} has a header but no rows")
    for line, row in rows:
        if len(row) != len(names):
            raise DataError(f"{path.name}, line {line}: {_fields(len(row))}, but the header has {len(names)}")
    columns = {name: [row[position] for _, row in rows] for position, name in enumerate(names)}
    return Table(path.name, columns, [line for line, _ in rows])


def _fields(count: int) -> str:
    return f"{count} field" if count == 1 else f"{count} fields"


def _text_of(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"there is no file {str(path)!r}") from None
    except IsADirectoryError:
        raise DataError(f"{str(path)!r} is a directory; a CSV file is needed") from None
    except OSError as error:
        raise DataError(f"{str(path)!r} can't be read: {error.strerror}") from error
    try:
        text = content.decode("utf-8-sig")
        wrong = text.find("\0")  # found in UTF-16, and in files that are no text at all
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong >= 0:
        line = content[:wrong].count(b"\n") + 1
        raise DataError(
            f"{path.name} is not UTF-8 text (line {line}). Save it as 'CSV UTF-8', or convert it with iconv"
        )
    return text


def _records(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The line on which each record starts, and its fields; blank lines are left out."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    line = 1
    try:
        for fields in reader:
            stripped = [field.strip() for field in fields]
            if stripped not in ([], [""]):
                yield line, stripped
            line = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(
            f"line {line} is not well-formed CSV ({error}): close the quote, or double it within"
        ) from error


def _delimiter(text: str) -> str:
    """The delimiter that gives the first rows as many fields as the header, more than one; else the most fields."""

    def quality(delimiter: str) -> tuple[bool, int]:
        widths, well_formed = [], True
        try:
            for _, fields in islice(_records(text, delimiter), _SNIFFED_ROWS + 1):
                widths.append(len(fields))
        except csv.Error:
            well_formed = False
        return well_formed and len(set(widths)) == 1 and widths[0] > 1, widths[0] if widths else 0

    return max(DELIMITERS, key=quality)


def check_names(source: str, names: list[str]) -> None:
    """Check that every column has a name of its own.

    Raises:
        DataError: One has not.
    """
    for position, name in enumerate(names, start=1):
        if not name:
            raise DataError(
                f"{source}: column {position} has no name in the header. Name it, or remove it "
                "(an index that pandas wrote: use to_csv(index=False))"
            )
        if name in names[: position - 1]:
            header = " Is the header line missing?" if as_number(name) is not None else ""
            raise DataError(
                f"{source}: columns {names.index(name) + 1} and {position} are both named {name!r}. Rename one.{header}"
            )
