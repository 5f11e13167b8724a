"""A dense layer and the activation after it, run as one: what `Network` executes for the two layers a user wrote.

The bias and the activation are one pass over the matrix product forward; the activation's derivative and the column
sum that is dL_db are one pass backward. The maths is that of the pair, and tested to be.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from gpubp.backend import Array
from gpubp.buffers import Buffer, Shape
from gpubp.cost import Cost
from gpubp.layers.base import Activation, Layer
from gpubp.layers.dense import Dense
from gpubp.ops import activation as activation_op
from gpubp.ops import gemm
from gpubp.ops.random import Draws
from gpubp.parameters import Parameter
from gpubp.rules import Rule


class DenseActivation(Layer, register=False):
    """``Z = X @ W + b[..., None, :]``, ``Y = f(Z)``: shares the parameters of `dense`, and the f of `activation`."""

    def __init__(self, dense: Dense, activation: Activation) -> None:
        self.dense, self.activation = dense, activation
        self.parameters, self.gradients, self.constants = dense.parameters, dense.gradients, {}

    @property
    def rules(self) -> tuple[Rule, ...]:  # type: ignore[override]
        """The activation's rule for dL_dZ, then the dense layer's with dL_dZ in place of its dL_dY."""
        first = tuple(rule.renamed({"dL_dX": "dL_dZ", "X": "Z"}) for rule in self.activation.rules)
        return first + tuple(rule.renamed({"dL_dY": "dL_dZ"}) for rule in self.dense.rules)

    @property
    def saves(self) -> tuple[str, ...]:  # type: ignore[override]
        """The input, for dL_dW; Y or Z, for the activation's derivative."""
        return ("X", self._state)

    @property
    def _state(self) -> str:
        return "Y" if self.activation.derivative_of == "Y" else "Z"

    def __repr__(self) -> str:
        return f"{self.dense!r} + {self.activation!r}"

    def declare(self) -> dict[str, Parameter]:
        """The parameters of the dense layer."""
        return self.dense.declare()

    def output_width(self, n_in: int) -> int:
        """The width of the dense layer's output."""
        return self.dense.output_width(n_in)

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """Y, Z where the derivative needs it, dL_dZ, dL_dX, and scratch space."""
        output = self.dense.output_shape(shape)
        scratch = activation_op.workspace(self.activation, xp, output)
        return {
            **({"Z": Buffer(output)} if self._state == "Z" else {}),
            "Y": Buffer(output),
            "dL_dZ": Buffer(output, overwrites="dL_dY"),
            **self.dense.matrix_buffers(shape, xp),
            **{name: Buffer(scratch_shape) for name, scratch_shape in scratch.items()},
        }

    def costs(self, shape: Shape, itemsize: int, *, input_gradient: bool = True) -> tuple[list[Cost], list[Cost]]:
        """See `Layer.costs`."""
        products = self.dense.matrix_costs(shape, itemsize, input_gradient)
        forward, backward = self.activation.costs(self.dense.output_shape(shape), itemsize)
        return [products[0], *forward], [*backward, *products[1:]]

    def forward(
        self,
        X: Array,
        out: Mapping[str, Array] | None = None,
        *,
        training: bool = False,
        rng: Draws | np.random.Generator | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """``Y = f(X @ W + b)``; see `Layer.forward`."""
        out = self._output(X, out)
        W, b = self.parameters["W"], self.parameters["b"]
        Y, state = out["Y"], self._state
        Z = out["Z"] if state == "Z" else Y  # where nobody needs Z, Y takes its place in memory
        # (..., N, n_in) @ (..., n_in, n_out) -> (..., N, n_out)
        gemm.matmul(X, W, Z, precision=self.dense.matmul_precision)
        activation_op.bias_activation(self.activation, Z, b, Y, out)  # (..., N, n_out)
        return Y, {"X": X, state: Z}

    def backward(
        self,
        dL_dY: Array,
        saved: Mapping[str, Array],
        out: Mapping[str, Array] | None = None,
        *,
        input_gradient: bool = True,
    ) -> Array | None:
        """dL_dZ and dL_db in one pass, then the two matrix products; see `Layer.backward`."""
        X, state = saved["X"], saved[self._state]
        out = self._fresh(X) if out is None else out
        dL_dZ = activation_op.activation_backward(  # (..., N, n_out), and dL_db (..., n_out)
            self.activation, dL_dY, state, out["dL_dZ"], self.gradients["b"], out
        )
        return self.dense.matrix_backward(dL_dZ, X, out, input_gradient)
