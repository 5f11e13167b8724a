"""Squared error."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from gpubp.backend import Array, array_module
from gpubp.buffers import Buffer, Shape
from gpubp.errors import SettingError
from gpubp.losses.base import Loss, Saved, per_row
from gpubp.rules import Rule


class SquaredError(Loss):
    """``L = scale * sum_n w[n] * sum_o (Y[n,o] - T[n,o])^2``.

    Args:
        scale: 1 gives the gradient ``2 (Y - T) / N``; the default 0.5 gives ``(Y - T) / N``.

    Raises:
        SettingError: The scale is not a positive finite number.
    """

    name = "squared_error"
    rules = (
        Rule(
            "dL_dY",
            "2 * scale * w[..., None] * (Y - T)",
            "dL_dY[n,o] = 2 * scale * w[n] * (Y[n,o] - T[n,o])",
            "Y[n,o] appears in one square alone, and the derivative of a square is twice its base",
        ),
    )

    def __init__(self, scale: float = 0.5) -> None:
        if not 0 < scale < float("inf"):
            raise SettingError(f"SquaredError: scale={scale} is not a positive finite number")
        self.scale = float(scale)

    @classmethod
    def examples(cls) -> list[Loss]:
        """The default, and the plain mean of squares."""
        return [cls(), cls(1.0)]

    @classmethod
    def example_targets(cls, rng: np.random.Generator, shape: Shape) -> Array:
        """Any numbers."""
        return rng.normal(size=shape)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain JSON."""
        return {"scale": self.scale}

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """The differences, their squares, and the gradient; shapes as Y."""
        return {
            "D": Buffer(shape),
            "squares": Buffer(shape),
            "dL_dY": Buffer(shape, overwrites="D"),
            **self.row_buffers(shape),
        }

    def forward(
        self, Y: Array, T: Array, sample_weight: Array | None = None, out: Mapping[str, Array] | None = None
    ) -> tuple[Array, Saved]:
        """The loss; see `Loss.forward`."""
        out = self._output(Y, out)
        xp, w = array_module(Y, T), self._weights(Y, sample_weight, out)
        D = xp.subtract(Y, T, out=out["D"])  # (..., N, K)
        squares = xp.multiply(D, D, out=out["squares"])  # (..., N, K)
        losses = squares.sum(axis=-1, out=out["losses"])  # (..., N)
        return self.scale * self._mean(losses, w), {"D": D, "w": w}

    def backward(self, saved: Saved, out: Mapping[str, Array] | None = None) -> Array:
        """The gradient; see the class's rule."""
        D, w = saved["D"], saved["w"]
        xp, out = array_module(D), self._output(D, out)
        dL_dY = xp.multiply(D, per_row(w), out=out["dL_dY"])  # (..., N, K)
        return xp.multiply(dL_dY, 2 * self.scale, out=dL_dY)
