"""Binary cross-entropy on logits."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from gpubp.backend import Array, array_module
from gpubp.buffers import Buffer, Shape
from gpubp.losses.base import Loss, Saved, per_row, require_within
from gpubp.ops import elementary
from gpubp.rules import Rule


class BinaryCrossEntropy(Loss):
    """``L = sum_n w[n] * sum_o -(T log(P) + (1 - T) log(1 - P))`` with ``P = sigmoid(Y)``.

    Y holds logits: give the network no sigmoid at its end. The loss of one output is computed as
    ``log(1 + exp(Y)) - T Y``, so that no logarithm ever sees a zero. Targets are probabilities, usually 0 or 1.
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
        """The probabilities, ``log(1 + exp(Y))``, and the gradient; shapes as Y."""
        return {
            "P": Buffer(shape),
            "softplus": Buffer(shape),
            "dL_dY": Buffer(shape, overwrites="P"),
            **self.row_buffers(shape),
        }

    def forward(
        self, Y: Array, T: Array, sample_weight: Array | None = None, out: Mapping[str, Array] | None = None
    ) -> tuple[Array, Saved]:
        """The loss; see `Loss.forward`."""
        out = self._output(Y, out)
        xp, w = array_module(Y, T), self._weights(Y, sample_weight, out)
        P, softplus = out["P"], out["softplus"]
        elementary.softplus(xp, Y, softplus, P)  # (..., N, K)
        xp.multiply(T, Y, out=P)  # (..., N, K)
        xp.subtract(softplus, P, out=softplus)
        losses = softplus.sum(axis=-1, out=out["losses"])  # (..., N)
        elementary.sigmoid(xp, Y, P)
        return self._mean(losses, w), {"P": P, "T": T, "w": w}

    def backward(self, saved: Saved, out: Mapping[str, Array] | None = None) -> Array:
        """The gradient; see the class's rule."""
        P, T, w = saved["P"], saved["T"], saved["w"]
        xp, out = array_module(P), self._output(P, out)
        dL_dY = xp.subtract(P, T, out=out["dL_dY"])  # (..., N, K)
        return xp.multiply(dL_dY, per_row(w), out=dL_dY)

    def link(self, Y: Array) -> Array:
        """Probabilities: the sigmoid of the logits."""
        xp = array_module(Y)
        return elementary.sigmoid(xp, Y, xp.empty_like(Y))

    def targets(self, T: Array, outputs: Shape, dtype: object) -> Array:
        """See `Loss.targets`; values must be probabilities."""
        T = super().targets(T, outputs, dtype)
        require_within(T, 0, 1, "target", "binary cross-entropy takes probabilities, usually 0 or 1")
        return T
