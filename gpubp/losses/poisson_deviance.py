"""The Poisson deviance, for counts and rates."""

from __future__ import annotations

import numpy as np

from gpubp.backend import Array, array_module
from gpubp.buffers import Shape
from gpubp.losses.base import require_within
from gpubp.losses.elementwise import ElementwiseLoss
from gpubp.rules import Rule
from gpubp.twins import OnnxGraph


class PoissonDeviance(ElementwiseLoss):
    """``L = sum_n w[n] * sum_o 2 (T log(T / P) - T + P)`` with the rate ``P = exp(Y)``.

    Y holds logarithms of rates: give the network no exponential at its end. This is the unit deviance of the Poisson
    distribution (McCullagh and Nelder, "Generalized linear models", 1989, section 2.3): 0 where the rate is the
    target, and the same as scikit-learn's ``mean_poisson_deviance`` for one output. PyTorch's ``PoissonNLLLoss`` is
    ``P - T Y``, half of it without the terms that no weight can change. Targets are at least 0, usually counts.
    An output above 88 (in float64 709) has a rate beyond all numbers.

    Args:
        allow_missing: Whether a NaN among the targets is one that is missing, and costs nothing.
    """

    name = "poisson"
    functor = "PoissonDeviance"
    flops = 10
    rules = (
        Rule(
            "dL_dY",
            "2 * w[..., None] * (P - T)",
            "dL_dY[n,o] = 2 * w[n] * (P[n,o] - T[n,o])",
            "the derivative of exp(Y) is itself, the rate P, and that of -T Y is -T",
        ),
    )

    @classmethod
    def example_targets(cls, rng: np.random.Generator, shape: Shape) -> Array:
        """Counts, zero among them."""
        return rng.poisson(1.5, size=shape).astype(float)

    def of_outputs(self, Y: Array, T: Array, values: Array, slopes: Array) -> None:
        """See `ElementwiseLoss.of_outputs`."""
        xp = array_module(Y, T)
        xp.maximum(T, np.finfo(T.dtype).tiny, out=values)  # a target 0 takes 0 times any finite logarithm
        xp.log(values, out=values)
        xp.subtract(values, Y, out=values)
        xp.multiply(values, T, out=values)
        xp.exp(Y, out=slopes)
        xp.subtract(slopes, T, out=slopes)
        xp.add(values, slopes, out=values)
        for array in (values, slopes):
            xp.multiply(array, 2, out=array)

    def link(self, Y: Array) -> Array:
        """Rates: the exponential of the output."""
        return array_module(Y).exp(Y)

    def onnx(self, graph: OnnxGraph, Y: str, n_out: int) -> str:
        """See `Loss.onnx`."""
        return graph.add("Exp", Y)

    def targets(self, T: Array, outputs: Shape, dtype: object) -> Array:
        """See `Loss.targets`; values must be at least 0."""
        T = super().targets(T, outputs, dtype)
        require_within(T, 0, float("inf"), "target", "the Poisson deviance takes counts", or_nan=self.allow_missing)
        return T
