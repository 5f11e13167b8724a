"""The logistic sigmoid."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from gpubp.backend import Array
from gpubp.layers.base import Activation
from gpubp.ops import elementary
from gpubp.rules import Rule
from gpubp.twins import OnnxGraph, TorchTwin


class Sigmoid(Activation):
    """``Y = 1 / (1 + exp(-X))``, elementwise."""

    functor = "Sigmoid"
    flops = (4, 2)
    torch_twin = TorchTwin("Sigmoid")
    rules = (
        Rule(
            "dL_dX",
            "dL_dY * Y * (1 - Y)",
            "dL_dX[n,j] = dL_dY[n,j] * Y[n,j] * (1 - Y[n,j])",
            "X[n,j] feeds Y[n,j] alone, and the slope of the sigmoid is Y (1 - Y): the output is all that is needed",
        ),
    )

    def onnx(self, graph: OnnxGraph, arrays: Mapping[str, Array], X: str) -> str:
        """See `Layer.onnx`."""
        return graph.add("Sigmoid", X)

    def evaluate(self, xp: ModuleType, X: Array, out: Array, scratch: Array) -> None:
        """``out = 1 / (1 + exp(-X))``."""
        elementary.sigmoid(xp, X, out)

    def derivative(self, xp: ModuleType, saved: Array, out: Array) -> None:
        """``out = Y * (1 - Y)``."""
        xp.subtract(1, saved, out=out)
        xp.multiply(out, saved, out=out)
