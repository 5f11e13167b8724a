"""The quantile loss, also called pinball loss, for one quantile or several at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubp.backend import Array, array_module
from gpubp.losses.base import Loss
from gpubp.losses.elementwise import ElementwiseLoss
from gpubp.rules import Rule
from gpubp.settings import is_number, require_in, require_several


class Quantile(ElementwiseLoss):
    """``L = sum_n w[n] * sum_k max(q (T - Y), (q - 1) (T - Y))``, least where a share q of the targets is below Y.

    With ``q=0.5`` it is half the absolute error. With several quantiles the network has an output for each of them and
    each target, and they are summed up: of M targets (N, M), output ``k = h * M + m`` is quantile h of target m, so
    that the first M outputs are those of the first quantile. Nothing keeps the quantiles in order.

    Args:
        q: A number between 0 and 1, or several.
        allow_missing: Whether a NaN among the targets is one that is missing, and costs nothing.

    Raises:
        SettingError: A quantile is not between 0 and 1, or there is none.
    """

    name = "quantile"
    functor = "Quantile"
    flops = 6
    rules = (
        Rule(
            "dL_dY",
            "w[..., None] * ((Y > T) * (1 - q) - (Y < T) * q)",
            "dL_dY[n,k] = w[n] * ((Y[n,k] > T[n,k]) * (1 - q[k]) - (Y[n,k] < T[n,k]) * q[k])",
            "above its target an output costs 1 - q for each unit, below it q; on it, 0 is between both slopes",
        ),
    )

    def __init__(self, q: float | Sequence[float] = 0.5, *, allow_missing: bool = False) -> None:
        super().__init__(allow_missing=allow_missing)
        given = (q,) if is_number(q) else require_several(self, "q", q)
        values = tuple(require_in(self, "q", value, "(0, 1)") for value in given)
        self.q: float | tuple[float, ...] = values[0] if is_number(q) else values
        self.heads = len(values)

    @classmethod
    def examples(cls) -> list[Loss]:
        """The median, another one, and three at once."""
        return [cls(), cls(0.8), cls((0.1, 0.5, 0.9))]

    @property
    def parameters(self) -> tuple[float | tuple[float, ...], float]:
        """The quantiles."""
        return self.q, 0.0

    def names(self, Y: Array, T: Array) -> dict[str, Any]:
        """See `Loss.names`; here T and q have an entry for each output."""
        xp = array_module(Y, T)
        q = np.repeat(np.atleast_1d(self.q), Y.shape[-1] // self.heads)
        return {**super().names(Y, xp.concatenate([T] * self.heads, axis=-1)), "q": xp.asarray(q)}

    def of_outputs(self, Y: Array, T: Array, values: Array, slopes: Array) -> None:
        """See `ElementwiseLoss.of_outputs`."""
        xp, q = array_module(Y, T), self._each(Y)
        D = xp.subtract(Y, T, out=values)
        xp.sign(D, out=slopes)
        xp.multiply(slopes, 0.5 - q, out=values)  # with 1/2 added it is 1 - q above the target, q below it
        xp.add(values, 0.5, out=values)
        xp.multiply(slopes, values, out=slopes)
        xp.subtract(Y, T, out=values)
        xp.multiply(values, slopes, out=values)
