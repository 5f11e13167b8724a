"""The rectified linear unit."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from gpubp.backend import Array
from gpubp.layers.base import Activation
from gpubp.rules import Rule
from gpubp.twins import OnnxGraph, TorchTwin


class ReLU(Activation):
    """``Y = max(X, 0)``, elementwise; at the kink X = 0 the derivative is taken as 0."""

    functor = "ReLU"
    flops = (1, 1)
    initializer = "he_normal"
    torch_twin = TorchTwin("ReLU")
    rules = (
        Rule(
            "dL_dX",
            "dL_dY * (Y > 0)",
            "dL_dX[n,j] = dL_dY[n,j] * (Y[n,j] > 0)",
            "X[n,j] feeds Y[n,j] alone, with slope 1 where it passes and 0 where it is cut off; Y > 0 says which",
        ),
    )

    def onnx(self, graph: OnnxGraph, arrays: Mapping[str, Array], X: str) -> str:
        """See `Layer.onnx`."""
        return graph.add("Relu", X)

    def evaluate(self, xp: ModuleType, X: Array, out: Array, scratch: Array) -> None:
        """``out = max(X, 0)``."""
        scratch.fill(0)  # numpy.maximum is five times as fast with an array as with a number
        xp.maximum(X, scratch, out=out)

    def derivative(self, xp: ModuleType, saved: Array, out: Array) -> None:
        """``out = 1 where Y > 0, else 0``."""
        xp.greater(saved, 0, out=out)
