"""The logistic sigmoid."""

from __future__ import annotations

from types import ModuleType

from gpubp.backend import Array
from gpubp.layers.base import Activation
from gpubp.ops import elementary
from gpubp.rules import Rule


class Sigmoid(Activation):
    """``Y = 1 / (1 + exp(-X))``, elementwise."""

    functor = "Sigmoid"
    rules = (
        Rule(
            "dL_dX",
            "dL_dY * Y * (1 - Y)",
            "dL_dX[n,j] = dL_dY[n,j] * Y[n,j] * (1 - Y[n,j])",
            "X[n,j] feeds Y[n,j] alone, and the slope of the sigmoid is Y (1 - Y): the output is all that is needed",
        ),
    )

    def evaluate(self, xp: ModuleType, X: Array, out: Array, scratch: Array) -> None:
        """``out = 1 / (1 + exp(-X))``."""
        elementary.sigmoid(xp, X, out)

    def derivative(self, xp: ModuleType, saved: Array, out: Array) -> None:
        """``out = Y * (1 - Y)``."""
        xp.subtract(1, saved, out=out)
        xp.multiply(out, saved, out=out)
