"""Parquet files as tables, read by pyarrow."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from gpubp.data.tables import Cells, Table, Unusable, check_names
from gpubp.errors import DataError


def read_parquet(path: str | Path) -> Table:
    """Read a Parquet file.

    Whole numbers, floats and decimals are numbers, null and NaN missing ones; strings and dictionaries of them are
    text, with blanks around them dropped; true and false are the texts ``True`` and ``False``. Dates, times, binary
    and nested columns can't be used, which is an error when they are asked for.

    Raises:
        DataError: pyarrow is missing, the file can't be read or is damaged, has no rows, or two columns have one name.
    """
    path = Path(path)
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DataError(
            f"{path.name} is a Parquet file, which pyarrow reads, and that can't be imported ({error}). "
            "Install it: pip install 'gpubp[data]'"
        ) from error
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            names = file.schema_arrow.names
            check_names(path.name, names)
            read = file.read()
            read.validate(full=True)
    except FileNotFoundError:
        raise DataError(f"there is no file {str(path)!r}") from None
    except (arrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path.name} is no Parquet file, or is cut off or damaged: {reason}") from error
    if not read.num_rows:
        raise DataError(f"{path.name} has columns but no rows")
    columns = {name: _cells(arrow.types, name, column) for name, column in zip(names, read.columns, strict=True)}
    return Table(path.name, columns, range(1, read.num_rows + 1), "row")


def _cells(types: Any, name: str, column: Any) -> Cells | Unusable:
    """A column of Arrow data as text or numbers."""
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if name.startswith("__index_level_"):
        return Unusable("is an index that pandas wrote: use to_parquet(index=False)")
    if types.is_boolean(kind):
        return ["" if value is None else str(value) for value in column.to_pylist()]
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return ["" if value is None else value.strip() for value in column.to_pylist()]
    if types.is_null(kind):
        return np.full(len(column), np.nan)
    if types.is_floating(kind) or types.is_integer(kind):
        return np.asarray(column.to_numpy())  # floats with NaN where there are nulls
    if types.is_decimal(kind):  # Arrow's own cast is off by a rounding
        return np.array([math.nan if value is None else float(value) for value in column.to_pylist()])
    if types.is_temporal(kind):
        return Unusable(
            f"holds {kind} values: write numbers in its place, such as the year, the weekday or seconds since a date"
        )
    if types.is_nested(kind):
        return Unusable(f"is nested ({kind}): write a column for each of its parts")
    return Unusable(f"holds {kind} values, neither numbers nor text: remove the column")
