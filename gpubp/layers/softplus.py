"""The soft form of the rectified linear unit."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from gpubp.backend import Array
from gpubp.layers.base import Activation, Layer
from gpubp.ops import elementary
from gpubp.rules import Rule
from gpubp.settings import require_positive
from gpubp.twins import OnnxGraph, TorchTwin


class Softplus(Activation):
    """``Y = log(1 + exp(beta * X)) / beta``, elementwise, computed so that no exp overflows.

    The mean of Y^2 for a standard normal X is 0.92 (with beta = 1), close to the 1 that Glorot's rule, the default,
    stands on; that of ReLU, for which He's is made, is 0.5.

    Args:
        beta: How sharp the bend is: positive, and finite.

    Raises:
        SettingError: Beta is outside that range.
    """

    functor = "Softplus"
    derivative_of = "X"
    flops = (7, 5)
    torch_twin = TorchTwin(  # above the threshold PyTorch gives X itself: 2e-9 off at 20, nothing at 40
        "Softplus",
        {"beta": "beta"},
        needs=[("a threshold of at least 20", lambda module: module.threshold >= 20)],
        arguments=lambda layer: {"threshold": 40},
    )
    rules = (
        Rule(
            "dL_dX",
            "dL_dY / (1 + exp(-beta * X))",
            "dL_dX[n,j] = dL_dY[n,j] / (1 + exp(-beta * X[n,j]))",
            "X[n,j] feeds Y[n,j] alone, and the slope of log(1 + exp(beta X)) / beta is sigmoid(beta X)",
        ),
    )

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = self.parameter = require_positive(self, "beta", beta)

    @classmethod
    def examples(cls) -> list[tuple[Layer, int]]:
        """The usual bend, a soft and a sharp one."""
        return [(cls(), 3), (cls(0.5), 3), (cls(4.0), 3)]

    def onnx(self, graph: OnnxGraph, arrays: Mapping[str, Array], X: str) -> str:
        """See `Layer.onnx`."""
        return graph.add("Div", graph.log1p_exp(graph.add("Mul", X, self.beta)), self.beta)

    def evaluate(self, xp: ModuleType, X: Array, out: Array, scratch: Array) -> None:
        """``out = max(X, 0) + log(1 + exp(-abs(beta * X))) / beta``."""
        with np.errstate(over="ignore"):  # to infinity, where the logarithm is 0
            xp.multiply(X, self.beta, out=scratch)
        elementary.log1p_exp_minus_abs(xp, scratch, scratch)
        xp.divide(scratch, self.beta, out=scratch)
        xp.maximum(X, 0, out=out)
        xp.add(out, scratch, out=out)

    def derivative(self, xp: ModuleType, saved: Array, out: Array) -> None:
        """``out = sigmoid(beta * X)``."""
        with np.errstate(over="ignore"):
            xp.multiply(saved, self.beta, out=out)
        elementary.sigmoid(xp, out, out)
