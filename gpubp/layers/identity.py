"""The identity, for a linear layer that says so."""

from __future__ import annotations

from types import ModuleType

from gpubp.backend import Array
from gpubp.layers.base import Activation
from gpubp.rules import Rule


class Identity(Activation):
    """``Y = X``."""

    functor = "Identity"
    rules = (Rule("dL_dX", "dL_dY", "dL_dX[n,j] = dL_dY[n,j]", "Y is X itself, so their gradients are the same"),)

    def evaluate(self, xp: ModuleType, X: Array, out: Array, scratch: Array) -> None:
        """``out = X``."""
        xp.copyto(out, X)

    def derivative(self, xp: ModuleType, saved: Array, out: Array) -> None:
        """``out = 1``."""
        out.fill(1)
