"""Embeddings: a trained vector for each category of a column that holds indices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from gpubp.backend import Array, array_module
from gpubp.buffers import Buffer, Shape
from gpubp.cost import Cost
from gpubp.errors import DataError, SettingError, ShapeError
from gpubp.layers.base import Layer
from gpubp.ops import embedding
from gpubp.ops.random import Draws
from gpubp.parameters import Parameter
from gpubp.rules import Rule
from gpubp.settings import require_count
from gpubp.twins import OnnxGraph


class Table(NamedTuple):
    """A table (categories, width) for the indices in a column of X."""

    column: int
    categories: int
    width: int

    @property
    def name(self) -> str:
        """What its parameter is called."""
        return f"W{self.column}"


class Strip(NamedTuple):
    """Neighbouring columns of X that become neighbouring columns of Y as they are."""

    column: int
    start: int
    width: int


TABLE_RULE = Rule(
    "dL_dW",
    "one_hot.mT @ dL_dY_W",
    "dL_dW[k,j] = sum_n one_hot[n,k] * dL_dY_W[n,j]",
    "row k of W is what every example n gets whose index is k: sum over those, where one_hot[n,k] is 1, and not 0; "
    "dL_dY_W are the columns of dL_dY that W gave",
)
"""Of one table; the number of its column is added to the names."""
INPUT_RULE = Rule(
    "dL_dX",
    "dL_dY @ passed.mT",
    "dL_dX[n,i] = sum_o dL_dY[n,o] * passed[i,o]",
    "a column that passes has slope 1 where it went, which is where passed[i,o] is 1; an index has no slope: between "
    "two whole numbers there is nothing to look up",
)


class Embedding(Layer):
    """Columns of indices, each replaced by a row of a table ``W (categories, width)``; other columns pass.

    Y has the columns of X that hold no index, in their order, and then the rows of the tables, in theirs. The table of
    column 3 is the parameter ``W3``. An index is a whole number from 0 to categories - 1, in the dtype of X, of which
    float32 holds whole numbers up to 2^24 exactly; -1 stands for none of the categories, and gives zeros. So a table is
    the weights of a dense layer without bias for the one-hot columns that the indices stand for. Its rows are drawn
    from a normal distribution of deviation ``1 / sqrt(width)``, and are decayed as weights are.

    Args:
        n_in: Width of X.
        tables: Column of X to (categories, width) of its table; or a sequence of (column, categories, width).

    Raises:
        SettingError: There is no table, two for one column, or a number is not a whole one within its range.
    """

    torch_twin = "nn.Embedding takes indices alone, and no other columns beside them"
    saves = ("X",)

    def __init__(self, n_in: int, tables: Mapping[int, tuple[int, int]] | Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.n_in = self.input_width = require_count(self, "n_in", n_in)
        try:
            given = [(column, *of) for column, of in tables.items()] if isinstance(tables, Mapping) else list(tables)
            entries = [Table(*entry) for entry in given]
        except TypeError:  # something is no sequence, or not of that length
            entries = []
        if not entries:
            raise SettingError(f"Embedding: tables={tables!r}: at least one (column, categories, width) is needed")
        least = {"column": 0, "categories": 1, "width": 1}
        for entry in entries:
            for name, value in entry._asdict().items():
                require_count(self, name, value, least=least[name])
        self.tables = tuple(Table(*map(int, entry)) for entry in entries)
        for table in self.tables:
            if table.column >= self.n_in:
                raise SettingError(f"Embedding: column {table.column} is not within 0 to {self.n_in - 1}")
        self.index_columns = tuple(table.column for table in self.tables)
        if len(set(self.index_columns)) < len(self.tables):
            raise SettingError(f"Embedding: two tables for one column: {list(self.tables)}")
        numbers = [column for column in range(self.n_in) if column not in self.index_columns]
        self.n_out = len(numbers) + sum(table.width for table in self.tables)
        runs = [list(run) for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
        self.strips = [Strip(run[0][1], run[0][0], len(run)) for run in runs]
        widths = np.cumsum([len(numbers), *(table.width for table in self.tables)])
        self._starts = {table: int(start) for table, start in zip(self.tables, widths, strict=False)}

    @classmethod
    def examples(cls) -> list[tuple[Layer, int]]:
        """Numbers around and between, tables in another order than the columns; and nothing but one index."""
        return [(cls(6, [(4, 2, 3), (1, 5, 2)]), 6), (cls(1, [(0, 3, 2)]), 1)]

    def example_inputs(self, rng: np.random.Generator, shape: Shape) -> Array:
        """See `Layer.example_inputs`; every category may come up, and none of them too."""
        X = super().example_inputs(rng, shape)
        for table in self.tables:
            X[..., table.column] = rng.integers(-1, table.categories, shape[:-1])
        return X

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain JSON."""
        return {"n_in": self.n_in, "tables": [list(table) for table in self.tables]}

    def __repr__(self) -> str:
        tables = ", ".join(f"{table.column}: ({table.categories}, {table.width})" for table in self.tables)
        return f"Embedding({self.n_in}, {{{tables}}})"

    @property
    def rules(self) -> tuple[Rule, ...]:  # type: ignore[override]
        """One for each table, and that of the input."""
        names = ("dL_dW", "W", "one_hot", "dL_dY_W")
        of_tables = (TABLE_RULE.renamed({name: f"{name}{c}" for name in names}) for c in self.index_columns)
        return (*of_tables, INPUT_RULE)

    def rule_names(self, X: Array, dL_dY: Array) -> dict[str, Array]:
        """See `Layer.rule_names`."""
        names: dict[str, Array] = {"passed": np.zeros((self.n_in, self.n_out))}
        for strip in self.strips:
            for k in range(strip.width):
                names["passed"][strip.column + k, strip.start + k] = 1
        for table, start in self._starts.items():
            names[f"one_hot{table.column}"] = (X[..., table.column, None] == np.arange(table.categories)) * 1.0
            names[f"dL_dY_W{table.column}"] = dL_dY[..., start : start + table.width]
        return names

    def declare(self) -> dict[str, Parameter]:
        """A table for each column of indices, decayed."""

        def drawn(table: Table) -> Parameter:
            shape = table.categories, table.width
            return Parameter(shape, lambda rng: rng.normal(0, table.width**-0.5, shape), True)

        return {table.name: drawn(table) for table in self.tables}

    def require_valid(self, X: Array) -> None:
        """See `Layer.require_valid`: every index is a category, or -1.

        Raises:
            DataError: One is not; the message names the first.
        """
        for table in self.tables:
            x = X[..., table.column]
            wrong = ~((x >= -1) & (x < table.categories) & (x == array_module(x).floor(x)))
            if bool(wrong.any()):
                raise DataError(
                    f"column {table.column} of X holds {float(x[wrong][0]):g}, which is no index of {self!r}: whole "
                    f"numbers from 0 to {table.categories - 1} are needed, or -1 for none of the categories"
                )

    def output_width(self, n_in: int) -> int:
        """What passes, and the widths of the tables."""
        if n_in != self.n_in:
            raise ShapeError(f"{self!r} takes inputs of width {self.n_in}, not {n_in}")
        return self.n_out

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """The output, the gradient by the input, and scratch space for each table."""
        output = self.output_shape(shape)
        scratch = {
            f"partial_sums{table.column}": Buffer(embedding.partial_sums_shape(xp, output, table[1:]))
            for table in self.tables
        }
        return {"Y": Buffer(output), "dL_dX": Buffer(shape), **scratch}

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of Y for an X of this shape; data that a stack shares gets the stack's axis here."""
        return (*(shape[:-2] or self.members), shape[-2], self.n_out)

    def costs(self, shape: Shape, itemsize: int, *, input_gradient: bool = True) -> tuple[list[Cost], list[Cost]]:
        """See `Layer.costs`."""
        *members, N, _ = self.output_shape(shape)
        E = int(np.prod(members, dtype=np.int64))
        passing = sum(strip.width for strip in self.strips)
        forward = [embedding.pass_cost("forward columns", E * N, passing, itemsize)] if passing else []
        backward = []
        for table in self.tables:
            size = E * table.categories * table.width
            forward.append(embedding.cost(f"forward {table.name}", E * N, table.width, itemsize))
            backward.append(embedding.backward_cost(f"backward dL_d{table.name}", E * N, size, table.width, itemsize))
        if input_gradient and passing:
            backward.append(embedding.pass_cost("backward columns", E * N, passing, itemsize))
        return forward, backward

    def onnx(self, graph: OnnxGraph, arrays: Mapping[str, Array], X: str) -> str:
        """See `Layer.onnx`."""
        parts = []  # (..., N, width) each
        for table in self.tables:
            one_hot = graph.one_hot(graph.columns(X, table.column, table.column + 1), table.categories)
            parts.append(graph.add("MatMul", one_hot, arrays[table.name]))
        passing = [graph.columns(X, strip.column, strip.column + strip.width) for strip in self.strips]
        if (
            passing and arrays[self.tables[0].name].ndim == 3
        ):  # X may be shared by the members, and what is looked up not
            sums = graph.add("ReduceSum", parts[0], graph.constant([-1], np.int64), keepdims=1)
            zero = graph.add("Mul", sums, 0.0)  # (E, N, 1)
            passing = [graph.add("Add", part, zero) for part in passing]
        return graph.add("Concat", *passing, *parts, axis=-1)

    def forward(
        self,
        X: Array,
        out: Mapping[str, Array] | None = None,
        *,
        training: bool = False,
        rng: Draws | np.random.Generator | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Columns that pass, then the rows of the tables; see `Layer.forward`."""
        out = self._output(X, out)
        Y = out["Y"]  # (..., N, n_out)
        for strip in self.strips:
            embedding.pass_columns(X, strip.column, strip.width, Y, strip.start)
        for table, start in self._starts.items():
            embedding.lookup(X, table.column, self.parameters[table.name], Y, start)
        return Y, {"X": X}

    def backward(
        self,
        dL_dY: Array,
        saved: Mapping[str, Array],
        out: Mapping[str, Array] | None = None,
        *,
        input_gradient: bool = True,
    ) -> Array | None:
        """The rules of this class; see `Layer.backward`."""
        X = saved["X"]
        out = self._fresh(X) if out is None else out
        for table, start in self._starts.items():
            partial_sums = out[f"partial_sums{table.column}"]
            embedding.lookup_backward(
                dL_dY, start, X, table.column, self.gradients[table.name], partial_sums
            )  # (..., N, width) -> (..., categories, width)
        if not input_gradient:
            return None
        dL_dX = out["dL_dX"]
        dL_dX[...] = 0
        for column, start, width in self.strips:
            strip = dL_dY[..., start : start + width]
            # All members of a stack read the one X: the adjoint of that broadcast is a sum over the members.
            dL_dX[..., column : column + width] = strip if X.ndim == dL_dY.ndim else strip.sum(axis=0)
        return dL_dX
