"""Softmax and cross-entropy in one, for one class out of K."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from gpubp.backend import Array, array_module
from gpubp.buffers import Buffer, Shape
from gpubp.errors import DataError, ShapeError
from gpubp.losses.base import Loss, Saved, probability_gradient, require_within
from gpubp.ops import elementary
from gpubp.rules import Rule


class SoftmaxCrossEntropy(Loss):
    """``L = sum_n w[n] * sum_k -T[n,k] log(P[n,k])`` with ``P = softmax(Y)``.

    Y holds scores: give the network no softmax at its end. Targets are class indices (N,) or rows of probabilities
    (N, K), usually one-hot, that sum to 1 (to 1e-3; they are scaled to do so exactly). The loss is computed from scores
    shifted by their maximum, so that scores of 1e4 are fine and no logarithm ever sees a zero.
    """

    name = "softmax_cross_entropy"
    rules = (
        Rule(
            "dL_dY",
            "w[..., None] * (P - T)",
            "dL_dY[n,j] = w[n] * (P[n,j] - T[n,j])",
            "the derivative of log sum_k exp(Y[n,k]) by Y[n,j] is P[n,j], that of sum_k T[n,k] Y[n,k] is T[n,j]",
        ),
    )

    @classmethod
    def example_targets(cls, rng: np.random.Generator, shape: Shape) -> Array:
        """Rows of probabilities."""
        return rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """Shifted scores, probabilities, one-hot targets, the gradient, and what is one number a row."""
        return {
            "S": Buffer(shape),
            "P": Buffer(shape),
            "T": Buffer(shape),
            "dL_dY": Buffer(shape, overwrites="P"),
            "log_total": Buffer(shape[:-1]),
            **self.row_buffers(shape),
        }

    def forward(
        self, Y: Array, T: Array, sample_weight: Array | None = None, out: Mapping[str, Array] | None = None
    ) -> tuple[Array, Saved]:
        """The loss; see `Loss.forward`."""
        out = self._output(Y, out)
        xp, w = array_module(Y, T), self._weights(Y, sample_weight, out)
        S, P = out["S"], out["P"]
        if T.dtype.kind in "iu":
            T = xp.equal(T[..., None], xp.arange(Y.shape[-1]), out=out["T"])  # (..., N, K), one-hot
        log_total = elementary.log_softmax_parts(Y, S, P, out["log_total"])  # (..., N)
        xp.multiply(S, T, out=S)  # (..., N, K)
        losses = elementary.row_sum(S, out["losses"])  # (..., N)
        xp.subtract(log_total, losses, out=losses)  # as sum_k T = 1, the shift of the scores cancels
        return self._mean(losses, w), {"P": P, "T": T, "w": w}

    def backward(self, saved: Saved, out: Mapping[str, Array] | None = None) -> Array:
        """The gradient; see the class's rule."""
        return probability_gradient(saved, self._output(saved["P"], out))

    def link(self, Y: Array) -> Array:
        """Probabilities: the softmax of the scores."""
        xp = array_module(Y)
        P = xp.empty_like(Y)
        elementary.log_softmax_parts(Y, xp.empty_like(Y), P, xp.empty(Y.shape[:-1], Y.dtype))
        return P

    def targets(self, T: Array, outputs: Shape, dtype: object) -> Array:
        """Class indices as they are; rows of probabilities in `dtype`; see `Loss.targets`."""
        of_classes = T.shape in (outputs[-2:-1], outputs[:-1])
        if T.dtype.kind == "b" and of_classes:
            T = T.astype(np.int64)  # two classes
        if T.dtype.kind in "iu" and of_classes:
            if len(outputs) > 2 and T.shape == outputs[-2:] == outputs[:-1]:
                raise ShapeError(
                    f"whole-number targets of shape {T.shape} could be class indices of each member or one-hot rows: "
                    "give indices as (N,), or one-hot rows as floats"
                )
            classes = outputs[-1]
            require_within(T, 0, classes - 1, "class index", f"the network has {classes} outputs, one for each class")
            return T
        if T.dtype.kind == "f" and of_classes and T.shape != outputs[-2:]:
            raise DataError(f"targets of shape {T.shape} and dtype {T.dtype}: class indices must be whole numbers")
        if T.ndim < 2:
            raise ShapeError(
                f"targets have shape {T.shape}; {outputs[-2]} class indices, or rows of probabilities "
                f"{outputs[-2:]}, are needed"
            )
        T = super().targets(T, outputs, dtype)
        require_within(T, 0, 1, "target", "rows of probabilities are needed, or class indices as whole numbers")
        total = T.sum(axis=-1, keepdims=True)
        worst = float(abs(total - 1).max()) if T.size else 0.0
        if worst > 1e-3:
            raise DataError(f"a row of target probabilities misses the sum 1 by {worst:.3g}: every row must sum to 1")
        return T / total  # the loss counts on it, to the last digit
