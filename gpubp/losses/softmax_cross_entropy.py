"""Softmax and cross-entropy in one, for one class out of K."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from gpubp.backend import Array, array_module, to_host
from gpubp.buffers import Buffer, Shape
from gpubp.errors import DataError, ShapeError
from gpubp.losses.base import (
    Loss,
    Saved,
    compiled_losses,
    kernel_buffers,
    per_row,
    require_within,
)
from gpubp.ops import elementary
from gpubp.rules import Rule
from gpubp.settings import require_in, require_positive, require_several
from gpubp.twins import OnnxGraph


class SoftmaxCrossEntropy(Loss):
    """``L = sum_n w[n] * sum_k -C[n,k] log(P[n,k])`` with ``P = softmax(Y)``, and C the targets T as they count.

    Y holds scores: give the network no softmax at its end. Targets are class indices (N,) or rows of probabilities
    (N, K), usually one-hot, that sum to 1 (to 1e-3; they are scaled to do so exactly). The loss is computed from scores
    shifted by their maximum, so that scores of 1e4 are fine and no logarithm ever sees a zero.

    ``C[n,k] = class_weight[k] * ((1 - s) T[n,k] + s / K)`` with label smoothing s, as in PyTorch; plainly, C is T.

    Args:
        class_weight: A factor for each class; None for 1. It multiplies what an example costs as example weights do,
            and the sum is divided by the number of examples, not by the sum of the factors as PyTorch divides a mean:
            so minibatches add up to what `Network.evaluate` says. `balanced_class_weight` computes scikit-learn's
            "balanced" ones, whose mean over the examples is 1, so that there both are the same.
        label_smoothing: The share s of each target that is spread evenly over all classes.
        allow_missing: Whether the class index -1 is a target that is missing, and costs nothing. A row of
            probabilities can't be missing.

    Raises:
        SettingError: A weight is not a positive finite number, or label_smoothing is not in [0, 1).
    """

    name = "softmax_cross_entropy"
    predicts = "probabilities"
    flops = 7
    targets_like_outputs = False
    link_layer = "Softmax"
    rules = (
        Rule(
            "dL_dY",
            "w[..., None] * (C.sum(axis=-1, keepdims=True) * P - C)",
            "dL_dY[n,j] = w[n] * ((sum_k C[n,k]) * P[n,j] - C[n,j])",
            "the derivative of log sum_k exp(Y[n,k]) by Y[n,j] is P[n,j], that of sum_k C[n,k] Y[n,k] is C[n,j]; "
            "C is the targets T, which sum to 1, with label_smoothing and class_weight",
        ),
    )

    def __init__(
        self,
        class_weight: Sequence[float] | None = None,
        *,
        label_smoothing: float = 0.0,
        allow_missing: bool = False,
    ) -> None:
        self.class_weight: tuple[float, ...] | None = None
        if class_weight is not None:
            given = require_several(self, "class_weight", class_weight)
            self.class_weight = tuple(require_positive(self, "class_weight", value) for value in given)
        self.label_smoothing = require_in(self, "label_smoothing", label_smoothing, "[0, 1)")
        self.allow_missing = bool(allow_missing)

    @classmethod
    def examples(cls) -> list[Loss]:
        """The default, and with all settings."""
        return [cls(), cls((0.5, 2.0, 3.0), label_smoothing=0.2)]

    @classmethod
    def example_targets(cls, rng: np.random.Generator, shape: Shape) -> Array:
        """Rows of probabilities."""
        return rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])

    def names(self, Y: Array, T: Array) -> dict[str, Any]:
        """See `Loss.names`; and the targets C as they count."""
        return {**super().names(Y, T), "C": self._counted(Y, T, array_module(Y).empty_like(Y))}

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """Scratch of the array maths, if not on a device; the gradient; what is one number a row."""
        maths = {  # shifted scores, probabilities, targets as they count, the logarithm of the sum of exponentials,
            "S": Buffer(shape),
            "P": Buffer(shape),
            "C": Buffer(shape),
            "log_total": Buffer(shape[:-1]),
            "mass": Buffer(shape[:-1]),  # and the sum of C
        }
        gradient = Buffer(shape, overwrites="P" if xp is np else "Y")  # a thread reads a score before it writes there
        return {**(maths if xp is np else {}), "dL_dY": gradient, **self.row_buffers(shape)}

    def forward(
        self, Y: Array, T: Array, sample_weight: Array | None = None, out: Mapping[str, Array] | None = None
    ) -> tuple[Array, Saved]:
        """The loss; see `Loss.forward`."""
        out = self._output(Y, out)
        if kernels := compiled_losses(Y, T, sample_weight):
            out = kernel_buffers(out)
            class_weight = None if self.class_weight is None else self._constant(self.class_weight, Y)
            settings = (class_weight, self.label_smoothing)
            return kernels.softmax_cross_entropy(Y, T, sample_weight, settings, out), {"dL_dY": out["dL_dY"]}
        xp, w = array_module(Y, T), self._weights(Y, sample_weight, out)
        S, P = out["S"], out["P"]
        C = self._counted(Y, T, out["C"])  # (..., N, K)
        log_total = elementary.log_softmax_parts(Y, S, P, out["log_total"])  # (..., N)
        xp.multiply(S, C, out=S)  # (..., N, K)
        losses = elementary.row_sum(S, out["losses"])  # (..., N)
        mass = elementary.row_sum(C, out["mass"])  # (..., N)
        xp.multiply(log_total, mass, out=log_total)
        xp.subtract(log_total, losses, out=losses)  # the shift of the scores cancels
        return self._mean(losses, w, out["L"]), {"P": P, "C": C, "mass": mass, "w": w}

    def _counted(self, Y: Array, T: Array, C: Array) -> Array:
        """The targets as they count: C of the class's docstring, zeros where there is no class."""
        xp, K, share = array_module(Y, T), Y.shape[-1], self.label_smoothing
        if T.dtype.kind in "iu":
            T = T[..., None]
            xp.equal(T, xp.arange(K), out=C)  # one-hot
            if share:
                C *= 1 - share
                C += ((T >= 0) & (T < K)) * Y.dtype.type(share / K)
        else:
            C[...] = T
            if share:
                C *= 1 - share
                C += share / K
        if self.class_weight is not None:
            C *= self._constant(self.class_weight, Y)
        return C

    def backward(self, saved: Saved, out: Mapping[str, Array] | None = None) -> Array:
        """The gradient; see the class's rule."""
        if "dL_dY" in saved:
            return saved["dL_dY"]
        P, C, out = saved["P"], saved["C"], self._output(saved["P"], out)
        xp = array_module(P)
        dL_dY = xp.multiply(P, saved["mass"][..., None], out=out["dL_dY"])  # (..., N, K)
        xp.subtract(dL_dY, C, out=dL_dY)
        return xp.multiply(dL_dY, per_row(saved["w"]), out=dL_dY)

    def link(self, Y: Array) -> Array:
        """Probabilities: the softmax of the scores."""
        xp = array_module(Y)
        P = xp.empty_like(Y)
        elementary.log_softmax_parts(Y, xp.empty_like(Y), P, xp.empty(Y.shape[:-1], Y.dtype))
        return P

    def onnx(self, graph: OnnxGraph, Y: str, n_out: int) -> str:
        """See `Loss.onnx`."""
        return graph.add("Softmax", Y, axis=-1)

    def targets(self, T: Array, outputs: Shape, dtype: object) -> Array:
        """Class indices as int64, which the kernels take; rows of probabilities in `dtype`; see `Loss.targets`."""
        if self.class_weight is not None and len(self.class_weight) != outputs[-1]:
            raise ShapeError(f"{len(self.class_weight)} class weights were given for {outputs[-1]} outputs")
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
            lowest = -1 if self.allow_missing else 0
            hint = f"the network has {classes} outputs, one for each class"
            T = T.astype(np.int64, copy=False)
            require_within(T, lowest, classes - 1, "class index", hint)
            return T
        if T.dtype.kind == "f" and of_classes and T.shape != outputs[-2:]:
            raise DataError(f"targets of shape {T.shape} and dtype {T.dtype}: class indices must be whole numbers")
        if T.ndim < 2:
            raise ShapeError(
                f"targets have shape {T.shape}; {outputs[-2]} class indices, or rows of probabilities "
                f"{outputs[-2:]}, are needed"
            )
        T = super().targets(T, outputs, dtype)
        if self.allow_missing and len(missing := np.argwhere(to_host(array_module(T).isnan(T)))):
            raise DataError(
                f"target at index {tuple(missing[0].tolist())} is nan, and no row of probabilities can be missing: "
                "give class indices as whole numbers, -1 for those that are missing"
            )
        require_within(T, 0, 1, "target", "rows of probabilities are needed, or class indices as whole numbers")
        total = T.sum(axis=-1, keepdims=True)
        worst = float(abs(total - 1).max()) if T.size else 0.0
        if worst > 1e-3:
            raise DataError(f"a row of target probabilities misses the sum 1 by {worst:.3g}: every row must sum to 1")
        return T / total  # the loss counts on it, to the last digit


def balanced_class_weight(T: Any, classes: int | None = None) -> list[float]:
    """Class weights that let every class count the same: ``N / (classes * how many examples it has)``.

    These are scikit-learn's ``class_weight="balanced"``; their mean over the examples is 1. -1 is no class.

    Args:
        T: (N,) class indices.
        classes: How many classes there are; None for the largest index and one more.

    Raises:
        DataError: These are no class indices, or a class has no example.
    """
    labels = to_host(T) if not isinstance(T, list | tuple) else np.asarray(T)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.size or labels.min() < -1:
        raise DataError(f"targets of shape {labels.shape} and dtype {labels.dtype}: (N,) class indices are needed")
    counts = np.bincount(labels[labels >= 0], minlength=classes or 0)
    if len(counts) != (classes or len(counts)):
        raise DataError(f"class index {len(counts) - 1} is outside 0 to {(classes or 0) - 1}")
    if not counts.all():
        raise DataError(f"class {int(np.argmin(counts))} has no example: no weight makes up for that")
    return [float(weight) for weight in counts.sum() / (len(counts) * counts)]
