"""The dense layer: a matrix product and a bias."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from gpubp import initializers
from gpubp.backend import Array, array_module
from gpubp.buffers import Buffer, Shape
from gpubp.errors import SettingError, ShapeError
from gpubp.initializers import Initializer
from gpubp.layers.base import Layer
from gpubp.ops import gemm
from gpubp.parameters import Parameter
from gpubp.rules import Rule


class Dense(Layer):
    """``Y = X @ W + b[..., None, :]``.

    Args:
        n_in: Width of X.
        n_out: Width of Y.
        initializer: How W (n_in, n_out) is drawn: an `Initializer` or a name. Biases b (n_out,) start at zero.

    Raises:
        SettingError: A width is not a positive whole number, or the initializer is unknown.
    """

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
        for name, width in (("n_in", n_in), ("n_out", n_out)):
            if isinstance(width, bool) or not isinstance(width, int | np.integer) or width < 1:
                raise SettingError(f"Dense: {name}={width!r} is not a positive whole number")
        self.n_in, self.n_out = int(n_in), int(n_out)
        self.input_width = self.n_in
        self.initializer = initializers.initializer(initializer)

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
        """The output and the gradient by the input."""
        return {"Y": Buffer(self.output_shape(shape)), "dL_dX": Buffer(shape)}

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of Y for an X of this shape; data that a stack shares gets the stack's axis here."""
        return (*(shape[:-2] or self.members), shape[-2], self.n_out)

    def forward(
        self,
        X: Array,
        out: Mapping[str, Array] | None = None,
        *,
        training: bool = False,
        rng: np.random.Generator | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """``Y = X @ W + b[..., None, :]``; see `Layer.forward`."""
        out = self._output(X, out)
        W, b = self.parameters["W"], self.parameters["b"]
        Y = gemm.matmul(X, W, out["Y"])  # (..., N, n_in) @ (..., n_in, n_out) -> (..., N, n_out)
        array_module(Y).add(Y, b[..., None, :], out=Y)  # (..., N, n_out) + (..., 1, n_out)
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
        dL_dY.sum(axis=-2, out=self.gradients["b"])  # (..., N, n_out) -> (..., n_out)
        return self.matrix_backward(dL_dY, saved["X"], out, input_gradient)

    def matrix_backward(
        self, dL_dY: Array, X: Array, out: Mapping[str, Array] | None, input_gradient: bool
    ) -> Array | None:
        """The two matrix products of backward: writes dL_dW, returns dL_dX."""
        gemm.matmul(X.mT, dL_dY, self.gradients["W"])  # (..., n_in, N) @ (..., N, n_out) -> (..., n_in, n_out)
        if not input_gradient:
            return None
        W = self.parameters["W"]
        out = self._fresh(X) if out is None else out
        if X.ndim == dL_dY.ndim:
            return gemm.matmul(dL_dY, W.mT, out["dL_dX"])  # (..., N, n_out) @ (..., n_out, n_in) -> (..., N, n_in)
        # All members of a stack read the one X: the adjoint of that broadcast is a sum over the members.
        return (dL_dY @ W.mT).sum(axis=0, out=out["dL_dX"])  # (E, N, n_out) @ (E, n_out, n_in) -> (N, n_in)
