"""The softmax of each row, as a layer."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from gpubp.backend import Array
from gpubp.buffers import Buffer, Shape
from gpubp.cost import Cost
from gpubp.layers.base import Layer
from gpubp.ops import softmax
from gpubp.ops.random import Draws
from gpubp.rules import Rule
from gpubp.twins import OnnxGraph, TorchTwin


class Softmax(Layer):
    """``Y = exp(X) / sum_k exp(X)`` over the last axis: each row of Y is positive and sums to 1.

    It goes between layers. At the end of a classifier it has no place: the loss `SoftmaxCrossEntropy` takes the scores
    before it.
    """

    torch_twin = TorchTwin(
        "Softmax", needs=[("dim=-1", lambda module: module.dim in (1, -1))], arguments=lambda layer: {"dim": -1}
    )
    rules = (
        Rule(
            "dL_dX",
            "Y * (dL_dY - (dL_dY * Y).sum(axis=-1, keepdims=True))",
            "dL_dX[n,j] = sum_k dL_dY[n,k] * Y[n,k] * (I[j,k] - Y[n,j])",
            "X[n,j] feeds every Y[n,k] of its row, with slope Y[n,k] (I[j,k] - Y[n,j]), the Jacobian: sum over k",
        ),
    )
    saves = ("Y",)

    @classmethod
    def examples(cls) -> list[tuple[Layer, int]]:
        """Three scores, and one alone, whose softmax is 1 whatever it is."""
        return [(cls(), 3), (cls(), 1)]

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """The output, the gradient by the input, and one number a row as scratch."""
        return {"Y": Buffer(shape), "dL_dX": Buffer(shape, overwrites="dL_dY"), "of_rows": Buffer(shape[:-1])}

    def costs(self, shape: Shape, itemsize: int, *, input_gradient: bool = True) -> tuple[list[Cost], list[Cost]]:
        """See `Layer.costs`."""
        forward, backward = softmax.cost("forward", shape, itemsize), softmax.backward_cost("backward", shape, itemsize)
        return [forward], [backward] if input_gradient else []

    def onnx(self, graph: OnnxGraph, arrays: Mapping[str, Array], X: str) -> str:
        """See `Layer.onnx`."""
        return graph.add("Softmax", X, axis=-1)

    def forward(
        self,
        X: Array,
        out: Mapping[str, Array] | None = None,
        *,
        training: bool = False,
        rng: Draws | np.random.Generator | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """``Y = softmax(X)``; see `Layer.forward`."""
        out = self._output(X, out)
        Y = softmax.softmax(X, out["Y"], out["of_rows"])  # (..., N, n)
        return Y, {"Y": Y}

    def backward(
        self,
        dL_dY: Array,
        saved: Mapping[str, Array],
        out: Mapping[str, Array] | None = None,
        *,
        input_gradient: bool = True,
    ) -> Array | None:
        """``dL_dX = Y * (dL_dY - sum_k dL_dY * Y)``; see `Layer.backward`."""
        if not input_gradient:
            return None
        out = self._fresh(dL_dY) if out is None else out
        return softmax.softmax_backward(dL_dY, saved["Y"], out["dL_dX"], out["of_rows"])  # (..., N, n)
