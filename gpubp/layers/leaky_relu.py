"""The leaky rectified linear unit."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from gpubp.backend import Array
from gpubp.layers.base import Activation, Layer
from gpubp.rules import Rule
from gpubp.settings import require_in
from gpubp.twins import OnnxGraph, TorchTwin


class LeakyReLU(Activation):
    """``Y = X where X > 0, else slope * X``, elementwise; at the kink X = 0 the derivative is the slope.

    Args:
        slope: The slope below zero, at least 0 (so that Y has the sign of X) and at most 1.

    Raises:
        SettingError: The slope is outside that range.
    """

    functor = "LeakyReLU"
    flops = (2, 3)
    initializer = "he_normal"
    torch_twin = TorchTwin("LeakyReLU", {"slope": "negative_slope"})
    rules = (
        Rule(
            "dL_dX",
            "dL_dY * (slope + (1 - slope) * (Y > 0))",
            "dL_dX[n,j] = dL_dY[n,j] * (slope + (1 - slope) * (Y[n,j] > 0))",
            "X[n,j] feeds Y[n,j] alone, with slope 1 above zero and `slope` below; Y has the sign of X and says which",
        ),
    )

    def __init__(self, slope: float = 0.01) -> None:
        super().__init__()
        self.slope = self.parameter = require_in(self, "slope", slope, "[0, 1]")

    @classmethod
    def examples(cls) -> list[tuple[Layer, int]]:
        """Usual slopes, and the two ends of the range."""
        return [(cls(), 3), (cls(0.3), 3), (cls(0.0), 3), (cls(1.0), 3)]

    def onnx(self, graph: OnnxGraph, arrays: Mapping[str, Array], X: str) -> str:
        """See `Layer.onnx`."""
        return graph.add("Max", X, graph.add("Mul", X, self.slope))

    def evaluate(self, xp: ModuleType, X: Array, out: Array, scratch: Array) -> None:
        """``out = max(X, slope * X)``, which is the definition as long as the slope is at most 1."""
        xp.multiply(X, self.slope, out=scratch)
        xp.maximum(X, scratch, out=out)

    def derivative(self, xp: ModuleType, saved: Array, out: Array) -> None:
        """``out = 1 where Y > 0, else slope``."""
        xp.greater(saved, 0, out=out)
        xp.multiply(out, 1 - self.slope, out=out)
        xp.add(out, self.slope, out=out)
