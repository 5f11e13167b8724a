"""Absolute error."""

from __future__ import annotations

from gpubp.backend import Array, array_module
from gpubp.losses.elementwise import ElementwiseLoss
from gpubp.rules import Rule


class AbsoluteError(ElementwiseLoss):
    """``L = sum_n w[n] * sum_o abs(Y[n,o] - T[n,o])``, least at the median; the gradient at the kink is 0.

    Args:
        allow_missing: Whether a NaN among the targets is one that is missing, and costs nothing.
    """

    name = "absolute_error"
    functor = "AbsoluteError"
    flops = 5
    rules = (
        Rule(
            "dL_dY",
            "w[..., None] * sign(Y - T)",
            "dL_dY[n,o] = w[n] * sign(Y[n,o] - T[n,o])",
            "the distance grows at the rate 1 away from the target; on it, 0 is between the slopes of both sides",
        ),
    )

    def of_outputs(self, Y: Array, T: Array, values: Array, slopes: Array) -> None:
        """See `ElementwiseLoss.of_outputs`."""
        xp = array_module(Y, T)
        D = xp.subtract(Y, T, out=slopes)
        xp.absolute(D, out=values)
        xp.sign(D, out=slopes)
