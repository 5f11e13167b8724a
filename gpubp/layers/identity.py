"""The identity, for a linear layer that says so."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from gpubp.backend import Array
from gpubp.layers.base import Activation
from gpubp.rules import Rule
from gpubp.twins import OnnxGraph, TorchTwin


class Identity(Activation):
    """``Y = X``."""

    functor = "Identity"
    flops = (0, 0)
    torch_twin = TorchTwin("Identity")
    rules = (Rule("dL_dX", "dL_dY", "dL_dX[n,j] = dL_dY[n,j]", "Y is X itself, so their gradients are the same"),)

    def onnx(self, graph: OnnxGraph, arrays: Mapping[str, Array], X: str) -> str:
        """See `Layer.onnx`."""
        return X

    def evaluate(self, xp: ModuleType, X: Array, out: Array, scratch: Array) -> None:
        """``out = X``."""
        xp.copyto(out, X)

    def derivative(self, xp: ModuleType, saved: Array, out: Array) -> None:
        """``out = 1``."""
        out.fill(1)
