"""How the columns of a table become the inputs and targets of a network, as data that travels in the model file."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt

from gpubp.data.arrays import TARGET, ArrayData
from gpubp.data.tables import Table, as_number, listed, spelled, why_no_number
from gpubp.errors import DataError, ModelFileError, SettingError

Task = Literal["classification", "regression"]

MOST_WHOLE_CLASSES = 20
"""A target of whole numbers is a class up to this many distinct values; with more it is a quantity."""

_MANY_CATEGORIES = 20


@dataclass(frozen=True)
class Column:
    """An input column: a number, or one of these categories.

    Categories are encoded as one column of 0 and 1 for each; or as a single column of indices, -1 for what is none of
    them, that the network begins by looking up in a table of vectors.

    Attributes:
        name: Its name.
        categories: The texts that it may hold, ``""`` for a missing one; None for a number.
        median: What a missing number is taken for; None where one is an error.
        indicator: Whether a second input is 1 where the number is missing, else 0.
        embedding: The width of the table that categories are looked up in; None for a column of 0 and 1 for each.
    """

    name: str
    categories: tuple[str, ...] | None = None
    median: float | None = None
    indicator: bool = False
    embedding: int | None = None

    @property
    def width(self) -> int:
        """How many inputs of the network it becomes."""
        if self.categories is None:
            return 1 + self.indicator
        return len(self.categories) if self.embedding is None else 1


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Turns targets into arrays, and outputs of a network back into words and units; a subclass knows the inputs.

    Attributes:
        target: The name of what is learned.
        task: ``"classification"`` or ``"regression"``.
        classes: The classes, in the order of their indices; empty for regression.
        numeric_classes: Whether the classes are numbers, so that ``1.0`` and ``1`` are the same.
        target_mean, target_scale: What `standardize_targets` subtracts and divides by.
    """

    target: str
    task: Task
    classes: tuple[str, ...] = ()
    numeric_classes: bool = False
    target_mean: float = 0.0
    target_scale: float = 1.0

    @property
    def embeddings(self) -> dict[int, tuple[int, int]]:
        """The inputs that are indices, each with (categories, width) of its table, as `gpubp.mlp` takes them."""
        return {}

    @property
    def n_in(self) -> int:
        """How many inputs the network has."""
        raise NotImplementedError

    @property
    def input_names(self) -> list[str]:
        """What each input stands for, (n_in,)."""
        raise NotImplementedError

    def inputs(self, data: Any, *, unseen: str = "error") -> npt.NDArray[Any]:
        """The inputs (N, n_in) of some rows."""
        raise NotImplementedError

    def target_table(self, data: Any) -> Table | None:
        """The table that has the targets of some rows in the column `target`; None where they have none."""
        raise NotImplementedError

    @property
    def n_out(self) -> int:
        """How many outputs the network has: one a class, or one."""
        return len(self.classes) or 1

    @property
    def loss(self) -> str:
        """The name of the loss that fits the task."""
        return "softmax_cross_entropy" if self.task == "classification" else "squared_error"

    def targets(self, data: Any) -> npt.NDArray[Any]:
        """The targets (N,) of some rows: class indices, or values in their own units.

        Raises:
            DataError: There is no target column, a cell is no number, or a class is unknown.
        """
        table = self.target_table(data)
        if table is None:
            raise DataError(f"{data.source} has no column {self.target!r}, nor other targets")
        if self.task == "regression":
            return table.numbers(self.target)
        return _indices(table, self.target, self.classes, numeric=self.numeric_classes)

    def with_target_scale(self, T: npt.NDArray[Any]) -> Self:
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
    def from_json(cls, data: Any) -> Self:
        """The encoder that `to_json` wrote.

        Raises:
            ModelFileError: The data is nothing that `to_json` writes.
        """
        try:
            task = {"classification": "classification", "regression": "regression"}[data["task"]]
            return cls(
                **cls._inputs_from_json(data),
                target=str(data["target"]),
                task=cast(Task, task),
                classes=tuple(map(str, data["classes"])),
                numeric_classes=bool(data["numeric_classes"]),
                target_mean=float(data["target_mean"]),
                target_scale=float(data["target_scale"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelFileError(f"the description of the table's columns is damaged ({error!r})") from error

    @classmethod
    def _inputs_from_json(cls, data: Any) -> dict[str, Any]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class TableEncoder(Encoder):
    """The encoder of a table's rows; the target is one of the table's columns.

    Attributes:
        columns: The input columns, in order.
    """

    columns: tuple[Column, ...]

    @classmethod
    def fit(
        cls, table: Table, target: str, task: str = "auto", *, missing: str = "error", embed: Sequence[str] = ()
    ) -> TableEncoder:
        """Look at the columns of a table and settle how each is encoded.

        A column is numeric if at least 90 % of its cells are numbers (then a text among them is an error), else
        categorical, with its categories in sorted order. With ``task="auto"`` a target of text is a class; a
        target of numbers is a class if all are whole and at most 20 are distinct, else a quantity to regress on.

        Args:
            table: The rows to train on, held-out ones included: which categories there are is no secret of theirs.
            target: The column to learn; it may miss no value.
            task: ``"auto"``, ``"classification"`` or ``"regression"``.
            missing: ``"error"``, or ``"median"``: a missing number is the median of its column, with an input more
                that is 1 there, for every column that misses one in training; a missing text is a category.
            embed: Columns of text that become indices for an `Embedding` of the width that `embedding_width` says.

        Raises:
            SettingError: There is no such task, or no such policy, or a column to embed is none of text.
            DataError: There is no such column, a cell can't be encoded, a column of text has another text in most
                rows, or the target has one class or value alone.
        """
        if missing not in ("error", "median"):
            raise SettingError(f"unknown policy {missing!r} for missing values: use 'error' or 'median'")
        _require_task(task)
        table.cells(target)
        names = [name for name in table.columns if name != target]
        if not names:
            raise DataError(f"{table.source} has no column but the target {target!r}: there is nothing to learn from")
        columns = tuple(_column(table, name, missing == "median", name in embed) for name in names)
        texts = [column.name for column in columns if column.categories is not None]
        if wrong := [name for name in embed if name not in texts]:
            raise SettingError(
                f"{table.source}: {listed(wrong)} can't be embedded: {listed(texts) or 'none of its columns'} "
                "hold text that is not the target"
            )
        encoder = cls(columns=columns, **_target_settings(table, target, task))
        return encoder.with_medians(table, np.arange(len(table))) if missing == "median" else encoder

    def with_medians(self, table: Table, rows: npt.NDArray[np.int64]) -> TableEncoder:
        """The same encoder with medians and indicators of some rows, those that are trained on.

        A column that has no number in these rows keeps its median.
        """
        columns = []
        for column in self.columns:
            if column.categories is None:
                present = ~table.missing(column.name)[rows]
                values = table.numbers(column.name, fill=0.0)[rows][present]
                median = float(np.median(values)) if values.size else column.median
                column = replace(column, median=median, indicator=not bool(present.all()))
            columns.append(column)
        return replace(self, columns=tuple(columns))

    @property
    def embeddings(self) -> dict[int, tuple[int, int]]:
        """See `Encoder.embeddings`."""
        starts = np.cumsum([0, *(column.width for column in self.columns)]).tolist()
        return {
            start: (len(column.categories), column.embedding)
            for start, column in zip(starts, self.columns, strict=False)
            if column.categories is not None and column.embedding is not None
        }

    @property
    def n_in(self) -> int:
        """How many inputs the network has."""
        return sum(column.width for column in self.columns)

    @property
    def input_names(self) -> list[str]:
        """The column that each input is of, (n_in,)."""
        return [column.name for column in self.columns for _ in range(column.width)]

    def inputs(self, data: Any, *, unseen: str = "error") -> npt.NDArray[np.float64]:
        """The inputs (N, n_in) of a table's rows; columns that are not needed are ignored.

        Args:
            data: The table.
            unseen: What a category is that was not in the training data: ``"error"``, or ``"zeros"`` in every input
                of its column (an index of -1, where it is embedded); `unseen` lists them.

        Raises:
            DataError: Columns are missing, a cell is no number, or a category is unknown.
        """
        table = _as_table(data)
        missing = [column.name for column in self.columns if column.name not in table.columns]
        if missing:
            kind = "column" if len(missing) == 1 else "columns"
            raise DataError(
                f"{table.source} lacks the {kind} {listed(missing)}, which the model takes. "
                f"Its columns: {listed(table.columns)}"
            )
        self._require_present(table)
        X = np.zeros((len(table), self.n_in))  # (N, n_in)
        start = 0
        for column in self.columns:
            if column.categories is None:
                X[:, start] = table.numbers(column.name, fill=column.median)
                if column.indicator:
                    X[:, start + 1] = table.missing(column.name)
            else:
                indices = _indices(table, column.name, column.categories, strict=unseen == "error")
                if column.embedding is not None:
                    X[:, start] = indices
                else:
                    (known,) = np.nonzero(indices >= 0)
                    X[known, start + indices[known]] = 1
            start += column.width
        return X

    def unseen(self, table: Table) -> dict[str, dict[str, int]]:
        """Name of a column to its categories that were not in the training data, each with its count of rows."""
        found = {}
        for column in self.columns:
            if column.categories is not None:
                counts = Counter(table.texts(column.name, missing=True))
                if new := {text: counts[text] for text in sorted(counts) if text not in column.categories}:
                    found[column.name] = new
        return found

    def _require_present(self, table: Table) -> None:
        """Check that no number is missing but where a median stands in.

        Raises:
            DataError: One is; the message names the first, and says how many there are in which columns.
        """
        absent = {
            column.name: missing
            for column in self.columns
            if column.categories is None and column.median is None
            if (missing := table.missing(column.name)).any()
        }
        if not absent:
            return
        name, missing = next(iter(absent.items()))
        row, count = int(missing.argmax()), sum(int(missing.sum()) for missing in absent.values())
        cells = table.cells(name)
        cell = cells[row] if isinstance(cells, list) else ""
        columns = f"column {name!r}" if len(absent) == 1 else f"columns {listed(absent)}"
        raise DataError(
            f"{table.at(row, name)}: {why_no_number(cell)}, or train with "
            f"--missing median ({count} missing in all, in {columns})"
        )

    def target_table(self, data: Any) -> Table | None:
        """The table itself, if it has the target's column."""
        return data if self.target in _as_table(data).columns else None

    @classmethod
    def _inputs_from_json(cls, data: Any) -> dict[str, Any]:
        def column(c: Any) -> Column:
            # What is asked for by `get` is younger than the format.
            categories, median, embedding = c["categories"], c.get("median"), c.get("embedding")
            return Column(
                str(c["name"]),
                None if categories is None else tuple(map(str, categories)),
                None if median is None else float(median),
                bool(c.get("indicator", False)),
                None if embedding is None else int(embedding),
            )

        return {"columns": tuple(map(column, data["columns"]))}


@dataclass(frozen=True, kw_only=True)
class ArrayEncoder(Encoder):
    """The encoder of examples that are arrays already: they are taken as they are.

    Attributes:
        width: How many features an example has.
    """

    width: int

    @classmethod
    def fit(cls, data: ArrayData, task: str = "auto") -> ArrayEncoder:
        """Look at the targets and settle how they are encoded, by the same rules as `TableEncoder.fit`.

        Raises:
            SettingError: There is no such task.
            DataError: There are no targets, one can't be encoded, or there is one class or value alone.
        """
        _require_task(task)
        if data.targets is None:
            raise DataError(
                f"{data.source} comes with no targets: add --targets FILE, or save both in one .npz file, as X and T"
            )
        return cls(width=data.X.shape[1], **_target_settings(data.targets, TARGET, task))

    @property
    def n_in(self) -> int:
        """How many inputs the network has."""
        return self.width

    @property
    def input_names(self) -> list[str]:
        """The numbers of the features, from 1 on, (n_in,)."""
        return [str(column + 1) for column in range(self.width)]

    def inputs(self, data: Any, *, unseen: str = "error") -> npt.NDArray[Any]:
        """X (N, n_in) itself.

        Raises:
            DataError: It has another width, or is a table.
        """
        if not isinstance(data, ArrayData):
            raise DataError(
                f"{data.source} is a table, but the model was trained on arrays of {self.width} features: "
                "give it a .npz, .npy or IDX file"
            )
        if data.X.shape[1] != self.width:
            raise DataError(f"{data.source} has {data.X.shape[1]} features, but the model takes {self.width}")
        return data.X

    def target_table(self, data: Any) -> Table | None:
        """The targets, if there are any."""
        targets: Table | None = data.targets
        return targets

    @classmethod
    def _inputs_from_json(cls, data: Any) -> dict[str, Any]:
        return {"width": int(data["width"])}


def _as_table(data: Any) -> Table:
    if not isinstance(data, Table):
        raise DataError(
            f"{data.source} holds arrays, whose columns have no names, but the model was trained on a table: "
            "give it a CSV or Parquet file"
        )
    return data


def _require_task(task: str) -> None:
    if task not in ("auto", "classification", "regression"):
        raise SettingError(f"unknown task {task!r}: use 'auto', 'classification' or 'regression'")


def _target_settings(table: Table, target: str, task: str) -> dict[str, Any]:
    """What an encoder says about the targets in a column of a table."""
    if task == "regression" or (task == "auto" and not _is_class(table, target)):
        _check_varies(table, target)
        return {"target": target, "task": "regression"}
    numeric = all(as_number(cell) is not None for cell in table.texts(target))
    key = (lambda name: (float(name), name)) if numeric else (lambda name: (0.0, name))
    classes = tuple(sorted({_class_name(cell, numeric) for cell in table.texts(target)}, key=key))
    if len(classes) == 1:
        raise DataError(f"{table.source}: every row has the class {classes[0]!r} in column {target!r}; two are needed")
    return {"target": target, "task": "classification", "classes": classes, "numeric_classes": numeric}


def embedding_width(categories: int) -> int:
    """Width of the table for so many categories: ``1.6 * categories^0.56``, at most 600, fastai's rule of thumb."""
    return min(600, round(1.6 * math.pow(categories, 0.56)))


def _column(table: Table, name: str, missing: bool, embed: bool) -> Column:
    """How a column is encoded; a missing text is a category, or an error."""
    if table.is_numeric(name):
        return Column(name)
    categories = sorted(set(table.texts(name, missing=missing)))
    if len(categories) > _MANY_CATEGORIES and 2 * len(categories) > len(table):
        raise DataError(
            f"{table.source}: column {name!r} holds {len(categories)} different texts in {len(table)} rows, such as "
            f"{categories[0]!r}. That is a name for each row, nothing to learn from: remove the column"
        )
    return Column(name, tuple(categories), embedding=embedding_width(len(categories)) if embed else None)


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
    return str(int(cell)) if cell.lstrip("-").isdecimal() else spelled(float(cell))  # int: of any size


def _indices(
    table: Table, name: str, known: tuple[str, ...], *, numeric: bool = False, strict: bool = True
) -> npt.NDArray[np.int64]:
    """The position (N,) of each cell among the known texts; -1 for others, unless that is an error."""
    positions: Mapping[str, int] = {text: position for position, text in enumerate(known)}
    indices = np.empty(len(table), np.int64)
    for row, cell in enumerate(table.texts(name, missing="" in positions or not strict)):
        text = _class_name(cell, numeric and as_number(cell) is not None)
        if strict and text not in positions:
            raise DataError(f"{table.at(row, name)}: {cell!r} was not in the training data; known are {listed(known)}")
        indices[row] = positions.get(text, -1)
    return indices
