"""The dense layer: a matrix product and a bias."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from gpubp import initializers
from gpubp.backend import Array
from gpubp.buffers import Buffer, Shape
from gpubp.cost import Cost
from gpubp.errors import ShapeError
from gpubp.initializers import Initializer
from gpubp.layers.base import Layer
from gpubp.ops import gemm, rows
from gpubp.ops.random import Draws
from gpubp.parameters import Parameter
from gpubp.rules import Rule
from gpubp.settings import require_count
from gpubp.twins import OnnxGraph, TorchTwin


class Dense(Layer):
    """``Y = X @ W + b[..., None, :]``.

    Args:
        n_in: Width of X.
        n_out: Width of Y.
        initializer: How W (n_in, n_out) is drawn: an `Initializer` or a name. Biases b (n_out,) start at zero.

    Raises:
        SettingError: A width is not a positive whole number, or the initializer is unknown.
    """

    torch_twin = TorchTwin("Linear", {"n_in": "in_features", "n_out": "out_features"}, {"W": "weight", "b": "bias"})
    rules = (
        Rule(
            "dL_dW",
            "X.mT @ dL_dY",
            "dL_dW[i,o] = sum_n X[n,i] * dL_dY[n,o]",
            "W[i,o] acts on every example n: sum over n, X's first axis, so the transpose puts n inside",
        ),
        Rule(
            "dL_db",
            "dL_dY.sum(axis=-2)",
            "dL_db[o] = sum_n dL_dY[n,o]",
            "b[o] is broadcast down the rows: the adjoint of a broadcast is a sum",
        ),
        Rule(
            "dL_dX",
            "dL_dY @ W.mT",
            "dL_dX[n,i] = sum_o dL_dY[n,o] * W[i,o]",
            "X[n,i] feeds every output o: sum over o, W's second axis, so the transpose puts o inside",
        ),
    )
    saves = ("X",)

    def __init__(
        self, n_in: int, n_out: int, initializer: str | dict[str, Any] | Initializer = "glorot_uniform"
    ) -> None:
        super().__init__()
        self.n_in, self.n_out = require_count(self, "n_in", n_in), require_count(self, "n_out", n_out)
        self.input_width = self.n_in
        self.initializer = initializers.initializer(initializer)
        self.matmul_precision = "float32"
        """Of its matrix products, see `gpubp.ops.gemm.matmul`; a `Network` sets it."""

    @classmethod
    def examples(cls) -> list[tuple[Layer, int]]:
        """Widths that differ, and a square one."""
        return [(cls(4, 3), 4), (cls(3, 3), 3)]

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain JSON."""
        return {"n_in": self.n_in, "n_out": self.n_out, "initializer": self.initializer.config()}

    def __repr__(self) -> str:
        return f"Dense({self.n_in}, {self.n_out})"

    def declare(self) -> dict[str, Parameter]:
        """W, which is decayed, and b, which is not."""
        return {
            "W": Parameter((self.n_in, self.n_out), lambda rng: self.initializer(rng, self.n_in, self.n_out), True),
            "b": Parameter((self.n_out,), lambda rng: np.zeros(self.n_out), False),
        }

    def output_width(self, n_in: int) -> int:
        """`n_out`, for an X of the width that this layer was made for."""
        if n_in != self.n_in:
            raise ShapeError(f"{self!r} takes inputs of width {self.n_in}, not {n_in}")
        return self.n_out

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """The output, the gradient by the input, and scratch space."""
        output = self.output_shape(shape)
        return {
            "Y": Buffer(output),
            "partial_sums": Buffer(rows.partial_sums_shape(xp, output)),
            **self.matrix_buffers(shape, xp),
        }

    def matrix_buffers(self, shape: Shape, xp: ModuleType) -> dict[str, Buffer]:
        """What `matrix_backward` writes: dL_dX, and what it is the sum of where the members of a stack share X."""
        if len(shape) > 2 or not self.members:
            return {"dL_dX": Buffer(shape)}
        of_members = (*self.members, math.prod(shape))
        return {
            "dL_dX": Buffer(shape),
            "dL_dX_of_members": Buffer((*self.members, *shape)),
            "dL_dX_partial_sums": Buffer(rows.partial_sums_shape(xp, of_members)),
        }

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of Y for an X of this shape; data that a stack shares gets the stack's axis here."""
        return (*(shape[:-2] or self.members), shape[-2], self.n_out)

    def costs(self, shape: Shape, itemsize: int, *, input_gradient: bool = True) -> tuple[list[Cost], list[Cost]]:
        """See `Layer.costs`."""
        output = self.output_shape(shape)
        products = self.matrix_costs(shape, itemsize, input_gradient)
        bias = rows.cost("forward bias", output, itemsize, written=True)
        column_sum = rows.cost("backward bias", output, itemsize, written=False)
        return [products[0], bias], [column_sum, *products[1:]]

    def matrix_costs(self, shape: Shape, itemsize: int, input_gradient: bool) -> list[Cost]:
        """The products of forward and backward."""
        output = self.output_shape(shape)
        W = (*self.members, self.n_in, self.n_out)
        X_transposed, W_transposed = (*shape[:-2], shape[-1], shape[-2]), (*self.members, self.n_out, self.n_in)
        return [
            gemm.cost("forward matmul", shape, W, itemsize),
            gemm.cost("backward dL_dW matmul", X_transposed, output, itemsize),
            *([gemm.cost("backward dL_dX matmul", output, W_transposed, itemsize)] if input_gradient else []),
        ]

    def onnx(self, graph: OnnxGraph, arrays: Mapping[str, Array], X: str) -> str:
        """See `Layer.onnx`."""
        return graph.add("Add", graph.add("MatMul", X, arrays["W"]), graph.per_row(arrays["b"]))

    def forward(
        self,
        X: Array,
        out: Mapping[str, Array] | None = None,
        *,
        training: bool = False,
        rng: Draws | np.random.Generator | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """``Y = X @ W + b[..., None, :]``; see `Layer.forward`."""
        out = self._output(X, out)
        W, b = self.parameters["W"], self.parameters["b"]
        # (..., N, n_in) @ (..., n_in, n_out) -> (..., N, n_out)
        Y = gemm.matmul(X, W, out["Y"], precision=self.matmul_precision)
        rows.add_bias(Y, b)  # (..., N, n_out) + (..., 1, n_out)
        return Y, {"X": X}

    def backward(
        self,
        dL_dY: Array,
        saved: Mapping[str, Array],
        out: Mapping[str, Array] | None = None,
        *,
        input_gradient: bool = True,
    ) -> Array | None:
        """The three rules of this class; see `Layer.backward`."""
        out = self._fresh(saved["X"]) if out is None else out
        rows.column_sum(dL_dY, self.gradients["b"], out["partial_sums"])  # (..., N, n_out) -> (..., n_out)
        return self.matrix_backward(dL_dY, saved["X"], out, input_gradient)

    def matrix_backward(self, dL_dY: Array, X: Array, out: Mapping[str, Array], input_gradient: bool) -> Array | None:
        """The two matrix products of backward: writes dL_dW, returns dL_dX."""
        precision = self.matmul_precision
        # (..., n_in, N) @ (..., N, n_out) -> (..., n_in, n_out)
        gemm.matmul(X.mT, dL_dY, self.gradients["W"], precision=precision)
        if not input_gradient:
            return None
        W = self.parameters["W"]
        if X.ndim == dL_dY.ndim:
            # (..., N, n_out) @ (..., n_out, n_in) -> (..., N, n_in)
            return gemm.matmul(dL_dY, W.mT, out["dL_dX"], precision=precision)
        # All members of a stack read the one X: the adjoint of that broadcast is a sum over the members.
        # (E, N, n_out) @ (E, n_out, n_in) -> (E, N, n_in), and its sum is (N, n_in)
        of_members = gemm.matmul(dL_dY, W.mT, out["dL_dX_of_members"], precision=precision)
        dL_dX = out["dL_dX"]
        flat = of_members.reshape(len(of_members), dL_dX.size)
        rows.column_sum(flat, dL_dX.reshape(dL_dX.size), out["dL_dX_partial_sums"])
        return dL_dX
