"""The Gaussian error linear unit."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from gpubp.backend import Array
from gpubp.layers.base import Activation
from gpubp.ops import elementary
from gpubp.rules import Rule
from gpubp.twins import OnnxGraph, TorchTwin


class GELU(Activation):
    """``Y = X * Phi(X)``, elementwise, where ``Phi(X) = (1 + erf(X / sqrt(2))) / 2`` is the normal distribution.

    It is the exact function, not its approximation by tanh. Source: Hendrycks and Gimpel, "Gaussian error linear units"
    (2016). The mean of Y^2 for a standard normal X is 0.43, close to the 0.5 of ReLU, so that He's rule suits it.
    """

    functor = "GELU"
    derivative_of = "X"
    flops = (5, 10)
    initializer = "he_normal"
    torch_twin = TorchTwin("GELU", needs=[("approximate='none'", lambda module: module.approximate == "none")])
    rules = (
        Rule(
            "dL_dX",
            "dL_dY * ((1 + erf(X / sqrt(2))) / 2 + X * exp(-X * X / 2) / sqrt(2 * pi))",
            "dL_dX[n,j] = dL_dY[n,j] * ((1 + erf(X[n,j] / sqrt(2))) / 2"
            " + X[n,j] * exp(-X[n,j] * X[n,j] / 2) / sqrt(2 * pi))",
            "X[n,j] feeds Y[n,j] alone, with slope Phi(X) + X Phi'(X), and Phi' is the normal density",
        ),
    )

    def onnx(self, graph: OnnxGraph, arrays: Mapping[str, Array], X: str) -> str:
        """See `Layer.onnx`."""
        # onnxruntime has Erf in float32 alone, so that a float64 network is exact to 1e-7 only
        half = graph.add("Cast", graph.add("Mul", X, 0.5**0.5), to=graph.element_type("float32"))
        erf = graph.add("Cast", graph.add("Erf", half), to=graph.element_type(graph.dtype))
        return graph.add("Mul", graph.add("Mul", X, 0.5), graph.add("Add", erf, 1.0))

    def evaluate(self, xp: ModuleType, X: Array, out: Array, scratch: Array) -> None:
        """``out = X * Phi(X)``."""
        elementary.normal_distribution(xp, X, scratch)
        xp.multiply(X, scratch, out=out)

    def derivative(self, xp: ModuleType, saved: Array, out: Array) -> None:
        """``out = Phi(X) + X * Phi'(X)``."""
        elementary.normal_density(xp, saved, out)
        xp.multiply(out, saved, out=out)
        xp.add(out, elementary.normal_distribution(xp, saved, xp.empty_like(saved)), out=out)
