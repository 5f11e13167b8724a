"""The exponential linear unit."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from gpubp.backend import Array
from gpubp.layers.base import Activation, Layer
from gpubp.rules import Rule
from gpubp.settings import require_in
from gpubp.twins import OnnxGraph, TorchTwin


class ELU(Activation):
    """``Y = X where X > 0, else alpha * (exp(X) - 1)``, elementwise; at X = 0 the derivative is alpha.

    Source: Clevert, Unterthiner and Hochreiter, "Fast and accurate deep network learning by exponential linear units"
    (2016); like them, weights are drawn by He's rule.

    Args:
        alpha: What -Y comes close to far below zero, at least 0 (so that Y has the sign of X) and finite.

    Raises:
        SettingError: Alpha is outside that range.
    """

    functor = "ELU"
    flops = (3, 2)
    initializer = "he_normal"
    torch_twin = TorchTwin("ELU", {"alpha": "alpha"})
    rules = (
        Rule(
            "dL_dX",
            "dL_dY * ((Y > 0) + (Y <= 0) * (Y + alpha))",
            "dL_dX[n,j] = dL_dY[n,j] * ((Y[n,j] > 0) + (Y[n,j] <= 0) * (Y[n,j] + alpha))",
            "X[n,j] feeds Y[n,j] alone, with slope 1 above zero; below it the slope alpha exp(X) is Y + alpha",
        ),
    )

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = self.parameter = require_in(self, "alpha", alpha, "[0, inf)")

    @classmethod
    def examples(cls) -> list[tuple[Layer, int]]:
        """The usual alpha, with which there is no kink, a smaller and a larger one."""
        return [(cls(), 3), (cls(0.3), 3), (cls(1.7), 3)]

    def onnx(self, graph: OnnxGraph, arrays: Mapping[str, Array], X: str) -> str:
        """See `Layer.onnx`."""
        below = graph.add("Sub", graph.add("Exp", graph.add("Min", X, 0.0)), 1.0)
        return graph.add("Add", graph.add("Relu", X), graph.add("Mul", below, self.alpha))

    def evaluate(self, xp: ModuleType, X: Array, out: Array, scratch: Array) -> None:
        """``out = max(X, 0) + alpha * (exp(min(X, 0)) - 1)``: one of the two terms is 0, and no exp overflows."""
        xp.minimum(X, 0, out=scratch)
        xp.expm1(scratch, out=scratch)
        xp.multiply(scratch, self.alpha, out=scratch)
        xp.maximum(X, 0, out=out)
        xp.add(out, scratch, out=out)

    def derivative(self, xp: ModuleType, saved: Array, out: Array) -> None:
        """``out = 1 where Y > 0, else Y + alpha``."""
        xp.minimum(saved, 0, out=out)
        xp.add(out, self.alpha, out=out)
        if self.alpha != 1:
            xp.copyto(out, 1, where=saved > 0)
