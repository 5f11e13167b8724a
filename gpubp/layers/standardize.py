"""Standardisation of the inputs by statistics of the training data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType

import numpy as np

from gpubp.backend import Array, array_module
from gpubp.buffers import Buffer, Shape
from gpubp.errors import NotReadyError, SettingError, ShapeError
from gpubp.layers.base import Layer
from gpubp.ops.gather import row_slices
from gpubp.rules import Rule


class Standardize(Layer):
    """``Y = (X - mean) / scale`` per column, where scale is the training data's standard deviation.

    A column that does not vary has scale 1. Mean and scale are not trained: `adapt` computes them (`fit` calls it
    where nobody did), and they are saved with the network. The standard deviation is the population's (``ddof=0``).

    Args:
        n: Width of X and Y.

    Raises:
        SettingError: The width is not a positive whole number.
    """

    rules = (
        Rule(
            "dL_dX",
            "dL_dY / scale[..., None, :]",
            "dL_dX[n,j] = dL_dY[n,j] / scale[j]",
            "X[n,j] feeds Y[n,j] alone, with slope 1 / scale[j]; mean and scale are constants",
        ),
    )

    def __init__(self, n: int) -> None:
        super().__init__()
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise SettingError(f"Standardize: n={n!r} is not a positive whole number")
        self.n = self.input_width = int(n)

    @classmethod
    def examples(cls) -> list[tuple[Layer, int]]:
        """One that has its statistics, with a column that does not vary."""
        layer = cls(3)
        layer.adapt(np.array([[1.0, -2.0, 0.1], [3.0, 5.0, 0.1], [7.0, 0.0, 0.1]]))
        return [(layer, 3)]

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

    def adapt(self, X: Array) -> None:
        """Take mean and scale of each column of X (..., N, n), computed in float64, kept in X's dtype.

        Raises:
            ShapeError: X has another width, or no rows.
        """
        self.output_width(X.shape[-1])
        if X.shape[-2] == 0:
            raise ShapeError("Standardize: no rows to take a mean and a standard deviation of")
        xp, N = array_module(X), X.shape[-2]
        first = X[..., :1, :].astype(xp.float64)

        def shifted() -> Iterator[Array]:
            """X - first in float64, some rows at a time: exactly 0 in a column that does not vary."""
            return (X[..., rows, :] - first for rows in row_slices(N, 4096))

        mean = sum(block.sum(axis=-2) for block in shifted()) / N  # (..., n)
        variance = sum(((block - mean[..., None, :]) ** 2).sum(axis=-2) for block in shifted()) / N  # (..., n)
        scale = xp.sqrt(variance).astype(X.dtype)  # 0 also where float32 can't hold so small a number
        self.constants["mean"] = (mean + first[..., 0, :]).astype(X.dtype)
        self.constants["scale"] = xp.where(scale > 0, scale, xp.ones_like(scale))

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """The output and the gradient by the input."""
        return {"Y": Buffer(shape), "dL_dX": Buffer(shape, overwrites="dL_dY")}

    def forward(
        self,
        X: Array,
        out: Mapping[str, Array] | None = None,
        *,
        training: bool = False,
        rng: np.random.Generator | None = None,
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
        xp, Y = array_module(X), out["Y"]
        xp.subtract(X, self.constants["mean"][..., None, :], out=Y)  # (..., N, n) - (..., 1, n)
        xp.divide(Y, self.constants["scale"][..., None, :], out=Y)  # (..., N, n) / (..., 1, n)
        return Y, {}

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
