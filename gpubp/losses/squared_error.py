"""Squared error."""

from __future__ import annotations

from gpubp.backend import Array, array_module
from gpubp.losses.base import Loss
from gpubp.losses.elementwise import ElementwiseLoss
from gpubp.rules import Rule
from gpubp.settings import require_positive


class SquaredError(ElementwiseLoss):
    """``L = scale * sum_n w[n] * sum_o (Y[n,o] - T[n,o])^2``.

    Args:
        scale: 1 gives the gradient ``2 (Y - T) / N``; the default 0.5 gives ``(Y - T) / N``.
        allow_missing: Whether a NaN among the targets is one that is missing, and costs nothing.

    Raises:
        SettingError: The scale is not a positive finite number.
    """

    name = "squared_error"
    functor = "SquaredError"
    flops = 5
    rules = (
        Rule(
            "dL_dY",
            "2 * scale * w[..., None] * (Y - T)",
            "dL_dY[n,o] = 2 * scale * w[n] * (Y[n,o] - T[n,o])",
            "Y[n,o] appears in one square alone, and the derivative of a square is twice its base",
        ),
    )

    def __init__(self, scale: float = 0.5, *, allow_missing: bool = False) -> None:
        super().__init__(allow_missing=allow_missing)
        self.scale = require_positive(self, "scale", scale)

    @classmethod
    def examples(cls) -> list[Loss]:
        """The default, and the plain mean of squares."""
        return [cls(), cls(1.0)]

    @property
    def parameters(self) -> tuple[float, float]:
        """The scale."""
        return self.scale, 0.0

    def of_outputs(self, Y: Array, T: Array, values: Array, slopes: Array) -> None:
        """See `ElementwiseLoss.of_outputs`."""
        xp = array_module(Y, T)
        D = xp.subtract(Y, T, out=slopes)
        xp.multiply(D, D, out=values)
        xp.multiply(values, self.scale, out=values)
        xp.multiply(D, 2 * self.scale, out=slopes)
