"""Layer normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType

import numpy as np

from gpubp.backend import Array, array_module
from gpubp.buffers import Buffer, Shape
from gpubp.cost import Cost
from gpubp.errors import ShapeError
from gpubp.layers.base import Layer
from gpubp.ops import layer_norm, rows
from gpubp.ops.random import Draws
from gpubp.parameters import Parameter
from gpubp.rules import Rule
from gpubp.settings import require_count, require_positive
from gpubp.twins import OnnxGraph, TorchTwin


class LayerNorm(Layer):
    """``Y = gamma * X_hat + beta`` with ``X_hat = (X - mean) * inverse_std``, mean and deviation those of each row.

    ``inverse_std`` is ``1 / sqrt(variance + epsilon)``; mean and variance (the population's) are taken over the last
    axis. Gamma (n,) starts as ones and beta (n,) as zeros; neither is decayed. Source: Ba, Kiros and Hinton, "Layer
    normalization" (2016).

    Args:
        n: Width of X and Y.
        epsilon: Added to the variance, so that a row of equal numbers gives zeros: positive, and finite.

    Raises:
        SettingError: The width is not a positive whole number, or epsilon is outside its range.
    """

    torch_twin = TorchTwin(
        "LayerNorm",
        {"epsilon": "eps"},
        {"gamma": "weight", "beta": "bias"},
        needs=[("one normalised axis", lambda module: len(module.normalized_shape) == 1)],
        config=lambda module: {"n": module.normalized_shape[0]},
        arguments=lambda layer: {"normalized_shape": layer.n},
    )
    rules = (
        Rule(
            "dL_dgamma",
            "(dL_dY * X_hat).sum(axis=-2)",
            "dL_dgamma[j] = sum_n dL_dY[n,j] * X_hat[n,j]",
            "gamma[j] scales X_hat[n,j] in every example n: sum over n",
        ),
        Rule(
            "dL_dbeta",
            "dL_dY.sum(axis=-2)",
            "dL_dbeta[j] = sum_n dL_dY[n,j]",
            "beta[j] is broadcast down the rows: the adjoint of a broadcast is a sum",
        ),
        Rule(
            "dL_dX",
            "inverse_std[..., None] * (dL_dY * gamma[..., None, :]"
            " - (dL_dY * gamma[..., None, :]).mean(axis=-1, keepdims=True)"
            " - X_hat * (dL_dY * gamma[..., None, :] * X_hat).mean(axis=-1, keepdims=True))",
            "dL_dX[n,j] = inverse_std[n] * (dL_dY[n,j] * gamma[j] - (mean_k dL_dY[n,k] * gamma[k])"
            " - X_hat[n,j] * (mean_k dL_dY[n,k] * gamma[k] * X_hat[n,k]))",
            "X[n,j] feeds X_hat[n,j], and through mean and deviation all of its row: so no gradient is left along a"
            " row of ones, which moves the mean alone, nor along X_hat, which moves the deviation",
        ),
    )
    saves = ("X_hat", "inverse_std")

    def __init__(self, n: int, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.n = self.input_width = require_count(self, "n", n)
        self.epsilon = require_positive(self, "epsilon", epsilon)

    @classmethod
    def examples(cls) -> list[tuple[Layer, int]]:
        """The usual epsilon, and one that shows."""
        return [(cls(3), 3), (cls(4, 0.3), 4)]

    def declare(self) -> dict[str, Parameter]:
        """Gamma and beta, of which neither is decayed."""
        return {
            "gamma": Parameter((self.n,), lambda rng: np.ones(self.n), False),
            "beta": Parameter((self.n,), lambda rng: np.zeros(self.n), False),
        }

    def output_width(self, n_in: int) -> int:
        """`n`, for an X of that width."""
        if n_in != self.n:
            raise ShapeError(f"{self!r} takes inputs of width {self.n}, not {n_in}")
        return n_in

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """The output, the normalised X and the inverse deviation of each row, the gradient by X, and scratch space."""
        output = self.output_shape(shape)
        return {
            "Y": Buffer(output),
            "X_hat": Buffer(shape),
            "inverse_std": Buffer(shape[:-1]),
            "dL_dX": Buffer(shape, overwrites="dL_dY"),
            "partial_sums": Buffer(rows.partial_sums_shape(xp, output)),
            **{name: Buffer(scratch) for name, scratch in layer_norm.workspace(xp, output).items()},
        }

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of Y for an X of this shape; data that a stack shares gets the stack's axis here."""
        return (*(shape[:-2] or self.members), *shape[-2:])

    def costs(self, shape: Shape, itemsize: int, *, input_gradient: bool = True) -> tuple[list[Cost], list[Cost]]:
        """See `Layer.costs`."""
        output = self.output_shape(shape)
        forward = layer_norm.cost("forward", output, itemsize)
        beta = rows.cost("backward dL_dbeta", output, itemsize, written=False)
        gamma = replace(beta, name="backward dL_dgamma", flops=2 * beta.flops, bytes=2 * beta.bytes)
        last = layer_norm.backward_cost("backward", output, itemsize)
        return [forward], [gamma, beta, *([last] if input_gradient else [])]

    def onnx(self, graph: OnnxGraph, arrays: Mapping[str, Array], X: str) -> str:
        """See `Layer.onnx`."""
        centred = graph.add("Sub", X, graph.add("ReduceMean", X, axes=[-1]))
        variance = graph.add("ReduceMean", graph.add("Mul", centred, centred), axes=[-1])
        normal = graph.add("Div", centred, graph.add("Sqrt", graph.add("Add", variance, self.epsilon)))
        scaled = graph.add("Mul", normal, graph.per_row(arrays["gamma"]))
        return graph.add("Add", scaled, graph.per_row(arrays["beta"]))

    def forward(
        self,
        X: Array,
        out: Mapping[str, Array] | None = None,
        *,
        training: bool = False,
        rng: Draws | np.random.Generator | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """``Y = gamma * X_hat + beta``; see `Layer.forward`."""
        out = self._output(X, out)
        X_hat, inverse_std = out["X_hat"], out["inverse_std"]  # (..., N, n), (..., N)
        gamma, beta = self.parameters["gamma"], self.parameters["beta"]  # (..., n)
        Y = layer_norm.layer_norm(X, gamma, beta, self.epsilon, out["Y"], X_hat, inverse_std)  # (..., N, n)
        return Y, {"X_hat": X_hat, "inverse_std": inverse_std}

    def backward(
        self,
        dL_dY: Array,
        saved: Mapping[str, Array],
        out: Mapping[str, Array] | None = None,
        *,
        input_gradient: bool = True,
    ) -> Array | None:
        """The three rules of this class; see `Layer.backward`."""
        X_hat, inverse_std = saved["X_hat"], saved["inverse_std"]
        out = self._fresh(X_hat) if out is None else out
        partial_sums = out["partial_sums"]
        rows.product_sum(dL_dY, X_hat, self.gradients["gamma"], partial_sums)  # (..., N, n) -> (..., n)
        rows.column_sum(dL_dY, self.gradients["beta"], partial_sums)  # (..., N, n) -> (..., n)
        if not input_gradient:
            return None
        gamma = self.parameters["gamma"]
        if X_hat.ndim == dL_dY.ndim:
            return layer_norm.layer_norm_backward(dL_dY, gamma, X_hat, inverse_std, out["dL_dX"], out)  # (..., N, n)
        # All members of a stack read the one X: the adjoint of that broadcast is a sum over the members.
        of_each = array_module(dL_dY).empty(dL_dY.shape, dL_dY.dtype)  # (E, N, n)
        layer_norm.layer_norm_backward(dL_dY, gamma, X_hat, inverse_std, of_each, out)
        return of_each.sum(axis=0, out=out["dL_dX"])
