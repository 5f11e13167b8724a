"""Standardisation of the inputs by statistics of the training data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from gpubp.backend import Array, array_module
from gpubp.buffers import Buffer, Shape
from gpubp.cost import Cost
from gpubp.errors import NotReadyError, SettingError, ShapeError
from gpubp.layers.base import Layer
from gpubp.ops import rows as row_ops
from gpubp.ops.gather import row_slices
from gpubp.ops.random import Draws
from gpubp.rules import Rule
from gpubp.settings import require_count, require_several
from gpubp.twins import OnnxGraph, TorchTwin

BLOCK = 500_000
"""How many numbers to take statistics of at a time: X may be larger than memory."""


class Standardize(Layer):
    """``Y = (X - mean) / scale`` per column, where scale is the training data's standard deviation.

    A column that does not vary has scale 1; one to skip has mean 0 and scale 1, and stays as it is. Mean and scale are
    not trained: `adapt` computes them (`fit` calls it where nobody did), and they are saved with the network. The
    standard deviation is the population's (``ddof=0``).

    Args:
        n: Width of X and Y.
        skip: Columns to leave as they are, such as those that an `Embedding` takes as indices.

    Raises:
        SettingError: The width is not a positive whole number, or a column to skip is not within it.
    """

    torch_twin = TorchTwin(
        "Standardize",
        {"n": "n", "skip": "skip"},
        {"mean": "mean", "scale": "scale"},
        forward=lambda module, X: (X - module.mean) / module.scale,
    )
    rules = (
        Rule(
            "dL_dX",
            "dL_dY / scale[..., None, :]",
            "dL_dX[n,j] = dL_dY[n,j] / scale[j]",
            "X[n,j] feeds Y[n,j] alone, with slope 1 / scale[j]; mean and scale are constants",
        ),
    )

    def __init__(self, n: int, skip: Sequence[int] = ()) -> None:
        super().__init__()
        self.n = self.input_width = require_count(self, "n", n)
        for column in require_several(self, "skip", skip, least=0):
            if isinstance(column, bool) or not isinstance(column, int | np.integer) or not 0 <= column < n:
                raise SettingError(f"Standardize: skip={skip!r}: {column!r} is no column, 0 to {n - 1}")
        self.skip = self.kept_columns = tuple(map(int, skip))

    @classmethod
    def examples(cls) -> list[tuple[Layer, int]]:
        """One that has its statistics, with a column that does not vary; and one with a column to skip."""
        layer = cls(3)
        skipping = cls(3, (1,))
        for one in (layer, skipping):
            one.adapt(np.array([[1.0, -2.0, 0.1], [3.0, 5.0, 0.1], [7.0, 0.0, 0.1]]))
        return [(layer, 3), (skipping, 3)]

    def __repr__(self) -> str:
        return f"Standardize(n={self.n}, skip={self.skip})" if self.skip else f"Standardize(n={self.n})"

    @property
    def adapted(self) -> bool:
        """Whether the statistics are there."""
        return "mean" in self.constants

    def constant_shapes(self) -> dict[str, Shape]:
        """Mean and scale, one of each a column."""
        return {"mean": (self.n,), "scale": (self.n,)}

    def output_width(self, n_in: int) -> int:
        """`n`, for an X of that width."""
        if n_in != self.n:
            raise ShapeError(f"{self!r} takes inputs of width {self.n}, not {n_in}")
        return n_in

    def adapt(self, X: Array, dtype: Any = None) -> None:
        """Take mean and scale of each column of X (..., N, n), computed in float64, kept in `dtype` or else X's.

        Raises:
            ShapeError: X has another width, or no rows.
        """
        self.output_width(X.shape[-1])
        if X.shape[-2] == 0:
            raise ShapeError("Standardize: no rows to take a mean and a standard deviation of")
        N, first = X.shape[-2], X[..., :1, :].astype(np.float64)
        xp = array_module(first)  # X may be a `gpubp.examples.RowsOf`
        size = max(1, BLOCK // first.size)

        def shifted() -> Iterator[Array]:
            """X - first in float64, some rows at a time: exactly 0 in a column that does not vary."""
            return (X[..., rows, :] - first for rows in row_slices(N, size))

        mean = sum(block.sum(axis=-2) for block in shifted()) / N  # (..., n)
        variance = sum(((block - mean[..., None, :]) ** 2).sum(axis=-2) for block in shifted()) / N  # (..., n)
        dtype = X.dtype if dtype is None else dtype
        scale = xp.sqrt(variance).astype(dtype)  # 0 also where float32 can't hold so small a number
        self.constants["mean"] = (mean + first[..., 0, :]).astype(dtype)
        self.constants["scale"] = xp.where(scale > 0, scale, xp.ones_like(scale))
        if self.skip:
            self.constants["mean"][..., self.skip] = 0
            self.constants["scale"][..., self.skip] = 1

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """The output and the gradient by the input."""
        return {"Y": Buffer(shape), "dL_dX": Buffer(shape, overwrites="dL_dY")}

    def costs(self, shape: Shape, itemsize: int, *, input_gradient: bool = True) -> tuple[list[Cost], list[Cost]]:
        """See `Layer.costs`; forward is two operations for each element."""
        (forward,), backward = super().costs(shape, itemsize, input_gradient=input_gradient)
        return [replace(forward, flops=2 * forward.flops)], backward

    def onnx(self, graph: OnnxGraph, arrays: Mapping[str, Array], X: str) -> str:
        """See `Layer.onnx`."""
        centred = graph.add("Sub", X, graph.per_row(arrays["mean"]))
        return graph.add("Div", centred, graph.per_row(arrays["scale"]))

    def forward(
        self,
        X: Array,
        out: Mapping[str, Array] | None = None,
        *,
        training: bool = False,
        rng: Draws | np.random.Generator | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """``Y = (X - mean) / scale``; see `Layer.forward`."""
        if not self.adapted:
            raise NotReadyError(f"{self!r} has no mean and scale yet: call adapt(X), or fit the network")
        if self.constants["mean"].ndim >= X.ndim:
            raise ShapeError(
                f"{self!r} has a mean and a scale for each member of a stack (shape {self.constants['mean'].shape}), "
                f"so X of shape {X.shape} needs the members' axis too"
            )
        out = self._output(X, out)
        return row_ops.standardize(X, self.constants["mean"], self.constants["scale"], out["Y"]), {}  # (..., N, n)

    def backward(
        self,
        dL_dY: Array,
        saved: Mapping[str, Array],
        out: Mapping[str, Array] | None = None,
        *,
        input_gradient: bool = True,
    ) -> Array | None:
        """``dL_dX = dL_dY / scale``; see `Layer.backward`."""
        if not input_gradient:
            return None
        out = self._fresh(dL_dY) if out is None else out
        scale = self.constants["scale"]
        return array_module(dL_dY).divide(dL_dY, scale[..., None, :], out=out["dL_dX"])  # (..., N, n)
