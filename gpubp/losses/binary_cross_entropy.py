"""Binary cross-entropy on logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubp.backend import Array, array_module
from gpubp.buffers import Shape
from gpubp.errors import ShapeError
from gpubp.losses.base import Loss, require_within
from gpubp.losses.elementwise import ElementwiseLoss
from gpubp.ops import elementary
from gpubp.rules import Rule
from gpubp.settings import is_number, require_in, require_positive, require_several
from gpubp.twins import OnnxGraph


class BinaryCrossEntropy(ElementwiseLoss):
    """``L = sum_n w[n] * sum_o -(T log(P) + (1 - T) log(1 - P))`` with ``P = sigmoid(Y)``.

    Y holds logits: give the network no sigmoid at its end. The loss of one output, ``log(1 + exp(Y)) - T Y``, is
    computed as ``max(Y, 0) - T Y + log1p(exp(-abs(Y)))``, so that no logarithm ever sees a zero and no digits cancel.
    Targets are probabilities, usually 0 or 1.

    Args:
        positive_weight: A factor c of ``-T log(P)``, what an example of the class 1 costs, or one for each output.
            Costs are divided by the number of examples, not by the sum of the factors, as PyTorch's ``pos_weight`` is
            too: a minibatch with many positives counts for more, and minibatches add up to the whole.
        label_smoothing: The share s of each target that is replaced by 1/2: T becomes ``(1 - s) T + s / 2``.
        allow_missing: Whether a NaN among the targets is one that is missing, and costs nothing.

    Raises:
        SettingError: A weight is not a positive finite number, or label_smoothing is not in [0, 1).
    """

    name = "binary_cross_entropy"
    predicts = "probabilities"
    functor = "BinaryCrossEntropy"
    flops = 14
    link_layer = "Sigmoid"
    rules = (
        Rule(
            "dL_dY",
            "w[..., None] * (P - C + (positive_weight - 1) * C * (P - 1))",
            "dL_dY[n,o] = w[n] * (P[n,o] - C[n,o] + (c[o] - 1) * C[n,o] * (P[n,o] - 1))",
            "the derivative of log(1 + exp(Y)) is the sigmoid P, that of log(1 + exp(-Y)) is P - 1, and that of C Y is "
            "C; C is the targets with label_smoothing, and c the positive_weight",
        ),
    )

    def __init__(
        self,
        positive_weight: float | Sequence[float] = 1.0,
        *,
        label_smoothing: float = 0.0,
        allow_missing: bool = False,
    ) -> None:
        super().__init__(allow_missing=allow_missing)
        single = is_number(positive_weight)
        given = (positive_weight,) if single else require_several(self, "positive_weight", positive_weight)
        values = tuple(require_positive(self, "positive_weight", value) for value in given)
        self.positive_weight: float | tuple[float, ...] = values[0] if single else values
        self.label_smoothing = require_in(self, "label_smoothing", label_smoothing, "[0, 1)")

    @classmethod
    def examples(cls) -> list[Loss]:
        """The default, and weighted and smoothed ones."""
        return [cls(), cls(3.0, label_smoothing=0.2), cls((0.5, 2.0, 3.0))]

    @classmethod
    def example_targets(cls, rng: np.random.Generator, shape: Shape) -> Array:
        """Zeros and ones."""
        return rng.integers(0, 2, size=shape).astype(float)

    @property
    def parameters(self) -> tuple[float | tuple[float, ...], float]:
        """The weight of the class 1, and the share that is smoothed."""
        return self.positive_weight, self.label_smoothing

    def names(self, Y: Array, T: Array) -> dict[str, Any]:
        """See `Loss.names`; and the targets C as they count, and the weight c for each output."""
        xp = array_module(Y, T)
        c = xp.asarray(np.broadcast_to(self.positive_weight, Y.shape[-1:]))
        return {**super().names(Y, T), "C": self._smoothed(T), "c": c, "positive_weight": c}

    def of_outputs(self, Y: Array, T: Array, values: Array, slopes: Array) -> None:
        """See `ElementwiseLoss.of_outputs`."""
        xp, T = array_module(Y, T), self._smoothed(T)
        slopes.fill(0)  # numpy.maximum is five times as fast with an array as with a number
        xp.maximum(Y, slopes, out=values)
        xp.multiply(T, Y, out=slopes)
        xp.subtract(values, slopes, out=values)
        rest = elementary.log1p_exp_minus_abs(xp, Y, slopes)  # log(1 + exp(-abs(Y)))
        xp.add(values, rest, out=values)
        if self.positive_weight == 1:
            elementary.sigmoid(xp, Y, slopes)
            xp.subtract(slopes, T, out=slopes)
            return
        more = (self._each(Y) - 1) * T
        values += more * (xp.maximum(-Y, 0) + rest)  # (c - 1) T log(1 + exp(-Y))
        P = elementary.sigmoid(xp, Y, slopes)
        slopes[...] = P - T + more * (P - 1)

    def _smoothed(self, T: Array) -> Array:
        share = self.label_smoothing
        return (1 - share) * T + share / 2 if share else T

    def link(self, Y: Array) -> Array:
        """Probabilities: the sigmoid of the logits."""
        xp = array_module(Y)
        return elementary.sigmoid(xp, Y, xp.empty_like(Y))

    def onnx(self, graph: OnnxGraph, Y: str, n_out: int) -> str:
        """See `Loss.onnx`."""
        return graph.add("Sigmoid", Y)

    def targets(self, T: Array, outputs: Shape, dtype: object) -> Array:
        """See `Loss.targets`; values must be probabilities."""
        if isinstance(self.positive_weight, tuple) and len(self.positive_weight) != outputs[-1]:
            raise ShapeError(f"{len(self.positive_weight)} positive weights were given for {outputs[-1]} outputs")
        T = super().targets(T, outputs, dtype)
        hint = "binary cross-entropy takes probabilities, usually 0 or 1"
        require_within(T, 0, 1, "target", hint, or_nan=self.allow_missing)
        return T
