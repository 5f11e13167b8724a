"""Dropout: random zeros in training, nothing afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from gpubp.backend import Array, array_module
from gpubp.buffers import Buffer, Shape
from gpubp.cost import Cost
from gpubp.layers.base import Layer
from gpubp.ops import dropout as dropout_op
from gpubp.ops import elementwise
from gpubp.ops.random import Draws
from gpubp.rules import Rule
from gpubp.settings import require_in
from gpubp.twins import OnnxGraph, TorchTwin


class Dropout(Layer):
    """``Y = X * mask`` in training, where each number of mask is 0 with probability `rate`, else ``1 / (1 - rate)``.

    So Y has the mean of X, and in inference ``Y = X``. Source: Srivastava, Hinton, Krizhevsky, Sutskever and
    Salakhutdinov, "Dropout: a simple way to prevent neural networks from overfitting" (2014), scaled in training.

    In a network the mask is a function of its seed, the training step, the micro-batch and the place of the layer: the
    same on every executor, in one dtype. Members of a stack get different masks, but for data that they still share.

    Args:
        rate: The share of X that becomes zero, at least 0 and below 1.

    Raises:
        SettingError: The rate is outside that range.
    """

    torch_twin = TorchTwin("Dropout", {"rate": "p"})
    rules = (
        Rule(
            "dL_dX",
            "dL_dY * mask",
            "dL_dX[n,j] = dL_dY[n,j] * mask[n,j]",
            "X[n,j] feeds Y[n,j] alone, with slope mask[n,j]; the mask is a constant, 1 in inference",
        ),
    )
    saves = ("mask",)
    is_random = True

    def __init__(self, rate: float = 0.5) -> None:
        super().__init__()
        self.rate = require_in(self, "rate", rate, "[0, 1)")

    @classmethod
    def examples(cls) -> list[tuple[Layer, int]]:
        """The usual rate, one that drops little, and one that drops nothing."""
        return [(cls(), 3), (cls(0.1), 3), (cls(0.0), 3)]

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """The output, the mask, and the gradient by the input."""
        return {"Y": Buffer(shape), "mask": Buffer(shape), "dL_dX": Buffer(shape, overwrites="dL_dY")}

    def costs(self, shape: Shape, itemsize: int, *, input_gradient: bool = True) -> tuple[list[Cost], list[Cost]]:
        """See `Layer.costs`."""
        backward = [elementwise.cost("backward", shape, itemsize)]
        return [dropout_op.cost("forward", shape, itemsize)], backward if input_gradient else []

    def onnx(self, graph: OnnxGraph, arrays: Mapping[str, Array], X: str) -> str:
        """See `Layer.onnx`."""
        return X  # a network predicts without it

    def forward(
        self,
        X: Array,
        out: Mapping[str, Array] | None = None,
        *,
        training: bool = False,
        rng: Draws | np.random.Generator | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """``Y = X * mask`` in training, else ``Y = X``; see `Layer.forward`."""
        out, xp = self._output(X, out), array_module(X)
        Y = out["Y"]
        if not training:
            xp.copyto(Y, X)
            return Y, {"mask": xp.broadcast_to(xp.ones(1, X.dtype), X.shape)}
        draws, mask = Draws.of(rng, self, xp), out["mask"]
        dropout_op.dropout(X, mask, Y, self.rate, draws.seed_of(self.number), draws.draw, draws.offset)  # (..., N, n)
        return Y, {"mask": mask}

    def backward(
        self,
        dL_dY: Array,
        saved: Mapping[str, Array],
        out: Mapping[str, Array] | None = None,
        *,
        input_gradient: bool = True,
    ) -> Array | None:
        """``dL_dX = dL_dY * mask``; see `Layer.backward`."""
        if not input_gradient:
            return None
        out = self._fresh(dL_dY) if out is None else out
        return elementwise.multiply(dL_dY, saved["mask"], out["dL_dX"])  # (..., N, n)
