"""Huber's loss."""

from __future__ import annotations

from gpubp.backend import Array, array_module
from gpubp.losses.base import Loss
from gpubp.losses.elementwise import ElementwiseLoss
from gpubp.rules import Rule
from gpubp.settings import require_positive


class Huber(ElementwiseLoss):
    """``L = sum_n w[n] * sum_o h(Y[n,o] - T[n,o])``: half the square of small differences, the distance of large ones.

    ``h(d) = d^2 / 2`` up to ``abs(d) = delta``, and ``delta * (abs(d) - delta / 2)`` beyond (Huber, "Robust estimation
    of a location parameter", 1964), in one formula ``m * (abs(d) - m / 2)`` with ``m = min(abs(d), delta)``.

    Args:
        delta: Where one becomes the other; 1 by default.
        allow_missing: Whether a NaN among the targets is one that is missing, and costs nothing.

    Raises:
        SettingError: delta is not a positive finite number.
    """

    name = "huber"
    functor = "Huber"
    flops = 8
    rules = (
        Rule(
            "dL_dY",
            "w[..., None] * clip(Y - T, -delta, delta)",
            "dL_dY[n,o] = w[n] * clip(Y[n,o] - T[n,o], -delta, delta)",
            "half a square has its base as derivative, and a line its slope, which is delta from there on",
        ),
    )

    def __init__(self, delta: float = 1.0, *, allow_missing: bool = False) -> None:
        super().__init__(allow_missing=allow_missing)
        self.delta = require_positive(self, "delta", delta)

    @classmethod
    def examples(cls) -> list[Loss]:
        """The default, and one whose kink is near."""
        return [cls(), cls(0.3)]

    @property
    def parameters(self) -> tuple[float, float]:
        """Delta."""
        return self.delta, 0.0

    def of_outputs(self, Y: Array, T: Array, values: Array, slopes: Array) -> None:
        """See `ElementwiseLoss.of_outputs`."""
        xp = array_module(Y, T)
        D = xp.subtract(Y, T, out=slopes)
        clipped = xp.clip(D, -self.delta, self.delta, out=values)  # m with the sign of D
        twice = xp.multiply(D, 2, out=slopes)
        xp.subtract(twice, clipped, out=twice)
        xp.multiply(clipped, twice, out=values)
        xp.multiply(values, 0.5, out=values)
        xp.clip(twice, -self.delta, self.delta, out=slopes)  # 2 D less what is clipped is clipped where D is
