"""Binary cross-entropy on logits."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from gpubp.backend import Array, array_module
from gpubp.buffers import Buffer, Shape
from gpubp.losses.base import Loss, Saved, probability_gradient, require_within
from gpubp.ops import elementary
from gpubp.rules import Rule


class BinaryCrossEntropy(Loss):
    """``L = sum_n w[n] * sum_o -(T log(P) + (1 - T) log(1 - P))`` with ``P = sigmoid(Y)``.

    Y holds logits: give the network no sigmoid at its end. The loss of one output, ``log(1 + exp(Y)) - T Y``, is
    computed as ``max(Y, 0) - T Y + log1p(exp(-abs(Y)))``, so that no logarithm ever sees a zero and no digits cancel.
    Targets are probabilities, usually 0 or 1.
    """

    name = "binary_cross_entropy"
    rules = (
        Rule(
            "dL_dY",
            "w[..., None] * (P - T)",
            "dL_dY[n,o] = w[n] * (P[n,o] - T[n,o])",
            "the derivative of log(1 + exp(Y)) is the sigmoid P, and that of T Y is T",
        ),
    )

    @classmethod
    def example_targets(cls, rng: np.random.Generator, shape: Shape) -> Array:
        """Zeros and ones."""
        return rng.integers(0, 2, size=shape).astype(float)

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """The probabilities, the loss of each output, the gradient, and what is one number a row."""
        return {
            "P": Buffer(shape),
            "terms": Buffer(shape),
            "dL_dY": Buffer(shape, overwrites="P"),
            **self.row_buffers(shape),
        }

    def forward(
        self, Y: Array, T: Array, sample_weight: Array | None = None, out: Mapping[str, Array] | None = None
    ) -> tuple[Array, Saved]:
        """The loss; see `Loss.forward`."""
        out = self._output(Y, out)
        xp, w = array_module(Y, T), self._weights(Y, sample_weight, out)
        P, terms = out["P"], out["terms"]  # (..., N, K); P serves as scratch until it holds the probabilities
        P.fill(0)  # numpy.maximum is five times as fast with an array as with a number
        xp.maximum(Y, P, out=terms)
        xp.multiply(T, Y, out=P)
        xp.subtract(terms, P, out=terms)
        xp.add(terms, elementary.log1p_exp_minus_abs(xp, Y, P), out=terms)
        losses = elementary.row_sum(terms, out["losses"])  # (..., N)
        elementary.sigmoid(xp, Y, P)
        return self._mean(losses, w), {"P": P, "T": T, "w": w}

    def backward(self, saved: Saved, out: Mapping[str, Array] | None = None) -> Array:
        """The gradient; see the class's rule."""
        return probability_gradient(saved, self._output(saved["P"], out))

    def link(self, Y: Array) -> Array:
        """Probabilities: the sigmoid of the logits."""
        xp = array_module(Y)
        return elementary.sigmoid(xp, Y, xp.empty_like(Y))

    def targets(self, T: Array, outputs: Shape, dtype: object) -> Array:
        """See `Loss.targets`; values must be probabilities."""
        T = super().targets(T, outputs, dtype)
        require_within(T, 0, 1, "target", "binary cross-entropy takes probabilities, usually 0 or 1")
        return T
