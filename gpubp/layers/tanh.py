"""The hyperbolic tangent."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from gpubp.backend import Array
from gpubp.layers.base import Activation
from gpubp.rules import Rule
from gpubp.twins import OnnxGraph, TorchTwin


class Tanh(Activation):
    """``Y = tanh(X)``, elementwise."""

    functor = "Tanh"
    flops = (1, 2)
    torch_twin = TorchTwin("Tanh")
    rules = (
        Rule(
            "dL_dX",
            "dL_dY * (1 - Y * Y)",
            "dL_dX[n,j] = dL_dY[n,j] * (1 - Y[n,j] * Y[n,j])",
            "X[n,j] feeds Y[n,j] alone, and the slope of tanh is 1 - Y^2: the output is all that is needed",
        ),
    )

    def onnx(self, graph: OnnxGraph, arrays: Mapping[str, Array], X: str) -> str:
        """See `Layer.onnx`."""
        return graph.add("Tanh", X)

    def evaluate(self, xp: ModuleType, X: Array, out: Array, scratch: Array) -> None:
        """``out = tanh(X)``."""
        xp.tanh(X, out=out)

    def derivative(self, xp: ModuleType, saved: Array, out: Array) -> None:
        """``out = 1 - Y^2``."""
        xp.multiply(saved, saved, out=out)
        xp.subtract(1, out, out=out)
