"""The sigmoid linear unit, also called swish."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from gpubp.backend import Array
from gpubp.layers.base import Activation
from gpubp.ops import elementary
from gpubp.rules import Rule
from gpubp.twins import OnnxGraph, TorchTwin


class SiLU(Activation):
    """``Y = X * sigmoid(X) = X / (1 + exp(-X))``, elementwise.

    Source: Elfwing, Uchibe and Doya, "Sigmoid-weighted linear units for neural network function approximation in
    reinforcement learning" (2018). The mean of Y^2 for a standard normal X is 0.36, of ReLU's 0.5, so that He's rule
    suits it better than Glorot's.
    """

    functor = "SiLU"
    derivative_of = "X"
    flops = (5, 8)
    initializer = "he_normal"
    torch_twin = TorchTwin("SiLU")
    rules = (
        Rule(
            "dL_dX",
            "dL_dY * (1 + X * (1 - 1 / (1 + exp(-X)))) / (1 + exp(-X))",
            "dL_dX[n,j] = dL_dY[n,j] * (1 + X[n,j] * (1 - 1 / (1 + exp(-X[n,j])))) / (1 + exp(-X[n,j]))",
            "X[n,j] feeds Y[n,j] alone, with slope S + X S (1 - S), S = sigmoid(X): the product rule",
        ),
    )

    def onnx(self, graph: OnnxGraph, arrays: Mapping[str, Array], X: str) -> str:
        """See `Layer.onnx`."""
        # not X * Sigmoid(X): onnxruntime fuses that into an operator that some versions lack in float64
        return graph.add("Div", X, graph.add("Add", graph.add("Exp", graph.add("Neg", X)), 1.0))

    def evaluate(self, xp: ModuleType, X: Array, out: Array, scratch: Array) -> None:
        """``out = X * sigmoid(X)``."""
        elementary.sigmoid(xp, X, scratch)
        xp.multiply(X, scratch, out=out)

    def derivative(self, xp: ModuleType, saved: Array, out: Array) -> None:
        """``out = S * (1 + X * (1 - S))``."""
        S = elementary.sigmoid(xp, saved, xp.empty_like(saved))
        xp.subtract(1, S, out=out)
        xp.multiply(out, saved, out=out)
        xp.add(out, 1, out=out)
        xp.multiply(out, S, out=out)
