"""How the columns of a table become the inputs and targets of a network, as data that travels in the model file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from gpubp.data.tables import Table, as_number, listed
from gpubp.errors import DataError, ModelFileError, SettingError

Task = Literal["classification", "regression"]

MOST_WHOLE_CLASSES = 20
"""A target of whole numbers is a class up to this many distinct values; with more it is a quantity."""

_MANY_CATEGORIES = 20


@dataclass(frozen=True)
class Column:
    """An input column: a number, or one of these categories, encoded as one column of 0 and 1 for each."""

    name: str
    categories: tuple[str, ...] | None = None

    @property
    def width(self) -> int:
        """How many inputs of the network it becomes."""
        return 1 if self.categories is None else len(self.categories)


@dataclass(frozen=True)
class TableEncoder:
    """Turns the rows of a table into arrays, and outputs of a network back into words and units.

    Attributes:
        columns: The input columns, in order.
        target: The name of the column that is learned.
        task: ``"classification"`` or ``"regression"``.
        classes: The classes, in the order of their indices; empty for regression.
        numeric_classes: Whether the classes are numbers, so that ``1.0`` and ``1`` are the same.
        target_mean, target_scale: What `standardize_targets` subtracts and divides by.
    """

    columns: tuple[Column, ...]
    target: str
    task: Task
    classes: tuple[str, ...] = ()
    numeric_classes: bool = False
    target_mean: float = 0.0
    target_scale: float = 1.0

    @classmethod
    def fit(cls, table: Table, target: str, task: str = "auto") -> TableEncoder:
        """Look at the columns of a table and settle how each is encoded.

        A column is numeric if at least 90 % of its cells are numbers (then a text among them is an error), else
        categorical, with its categories in sorted order. With ``task="auto"`` a target of text is a class; a
        target of numbers is a class if all are whole and at most 20 are distinct, else a quantity to regress on.

        Args:
            table: The rows to train on, held-out ones included: which categories there are is no secret of theirs.
            target: The column to learn.
            task: ``"auto"``, ``"classification"`` or ``"regression"``.

        Raises:
            SettingError: There is no such task.
            DataError: There is no such column, a cell can't be encoded, a column of text has another text in most
                rows, or the target has one class or value alone.
        """
        if task not in ("auto", "classification", "regression"):
            raise SettingError(f"unknown task {task!r}: use 'auto', 'classification' or 'regression'")
        table.cells(target)
        columns = tuple(_column(table, name) for name in table.columns if name != target)
        if not columns:
            raise DataError(f"{table.source} has no column but the target {target!r}: there is nothing to learn from")
        if task == "regression" or (task == "auto" and not _is_class(table, target)):
            _check_varies(table, target)
            return cls(columns, target, "regression")
        numeric = all(as_number(cell) is not None for cell in table.texts(target))
        key = (lambda name: (float(name), name)) if numeric else (lambda name: (0.0, name))
        classes = tuple(sorted({_class_name(cell, numeric) for cell in table.texts(target)}, key=key))
        if len(classes) == 1:
            raise DataError(
                f"{table.source}: every row has the class {classes[0]!r} in column {target!r}; two are needed"
            )
        return cls(columns, target, "classification", classes, numeric)

    @property
    def n_in(self) -> int:
        """How many inputs the network has."""
        return sum(column.width for column in self.columns)

    @property
    def n_out(self) -> int:
        """How many outputs the network has: one a class, or one."""
        return len(self.classes) or 1

    @property
    def loss(self) -> str:
        """The name of the loss that fits the task."""
        return "softmax_cross_entropy" if self.task == "classification" else "squared_error"

    def inputs(self, table: Table) -> npt.NDArray[np.float64]:
        """The inputs (N, n_in) of a table's rows; columns that are not needed are ignored.

        Raises:
            DataError: Columns are missing, a cell is no number, or a category is unknown.
        """
        missing = [column.name for column in self.columns if column.name not in table.columns]
        if missing:
            kind = "column" if len(missing) == 1 else "columns"
            raise DataError(
                f"{table.source} lacks the {kind} {listed(missing)}, which the model takes. "
                f"Its columns: {listed(table.columns)}"
            )
        X = np.zeros((len(table), self.n_in))  # (N, n_in)
        start = 0
        for column in self.columns:
            if column.categories is None:
                X[:, start] = table.numbers(column.name)
            else:
                X[np.arange(len(table)), start + _indices(table, column.name, column.categories)] = 1
            start += column.width
        return X

    def targets(self, table: Table) -> npt.NDArray[Any]:
        """The targets (N,) of a table's rows: class indices, or values in their own units.

        Raises:
            DataError: There is no target column, a cell is no number, or a class is unknown.
        """
        if self.task == "regression":
            return table.numbers(self.target)
        return _indices(table, self.target, self.classes, numeric=self.numeric_classes)

    def with_target_scale(self, T: npt.NDArray[Any]) -> TableEncoder:
        """The same encoder with mean and standard deviation of the targets T (N,); scale 1 where they do not vary."""
        return replace(self, target_mean=float(T.mean()), target_scale=float(T.std()) or 1.0)

    def standardize_targets(self, T: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values (N,) as the network learns them; class indices are left as they are."""
        return (T - self.target_mean) / self.target_scale if self.task == "regression" else T

    def restore_targets(self, Y: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """The network's outputs Y (N, 1) as values (N,) in the target's own units."""
        return Y[:, 0].astype(np.float64) * self.target_scale + self.target_mean

    def to_json(self) -> dict[str, Any]:
        """The encoder as plain JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> TableEncoder:
        """The encoder that `to_json` wrote.

        Raises:
            ModelFileError: The data is nothing that `to_json` writes.
        """
        try:
            columns = tuple(
                Column(str(c["name"]), None if c["categories"] is None else tuple(map(str, c["categories"])))
                for c in data["columns"]
            )
            task = {"classification": "classification", "regression": "regression"}[data["task"]]
            return cls(
                columns,
                str(data["target"]),
                cast(Task, task),
                tuple(map(str, data["classes"])),
                bool(data["numeric_classes"]),
                float(data["target_mean"]),
                float(data["target_scale"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"the description of the table's columns is damaged ({error!r})") from error


def _column(table: Table, name: str) -> Column:
    if table.is_numeric(name):
        return Column(name)
    categories = sorted(set(table.texts(name)))
    if len(categories) > _MANY_CATEGORIES and 2 * len(categories) > len(table):
        raise DataError(
            f"{table.source}: column {name!r} holds {len(categories)} different texts in {len(table)} rows, such as "
            f"{categories[0]!r}. That is a name for each row, nothing to learn from: remove the column"
        )
    return Column(name, tuple(categories))


def _is_class(table: Table, target: str) -> bool:
    if not table.is_numeric(target):
        return True
    distinct = np.unique(table.numbers(target))
    return bool(distinct.size <= MOST_WHOLE_CLASSES and (distinct == np.round(distinct)).all())


def _check_varies(table: Table, target: str) -> None:
    values = table.numbers(target)
    if (values == values[0]).all():
        raise DataError(f"{table.source}: every row has {values[0]:g} in column {target!r}; there is nothing to learn")


def _class_name(cell: str, numeric: bool) -> str:
    if not numeric:
        return cell
    value = float(cell)
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


def _indices(table: Table, name: str, known: tuple[str, ...], *, numeric: bool = False) -> npt.NDArray[np.int64]:
    """The position (N,) of each cell among the known texts."""
    positions: Mapping[str, int] = {text: position for position, text in enumerate(known)}
    indices = np.empty(len(table), np.int64)
    for row, cell in enumerate(table.texts(name)):
        text = _class_name(cell, numeric and as_number(cell) is not None)
        if text not in positions:
            raise DataError(f"{table.at(row, name)}: {cell!r} was not in the training data; known are {listed(known)}")
        indices[row] = positions[text]
    return indices
