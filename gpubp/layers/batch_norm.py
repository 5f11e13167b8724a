"""Batch normalisation."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

import numpy as np

from gpubp.backend import Array, array_module
from gpubp.buffers import Buffer, Shape
from gpubp.cost import Cost
from gpubp.errors import ShapeError
from gpubp.layers.base import Layer
from gpubp.ops import batch_norm
from gpubp.ops.random import Draws
from gpubp.parameters import Parameter
from gpubp.rules import Rule
from gpubp.settings import require_count, require_in, require_positive
from gpubp.twins import OnnxGraph, TorchTwin


class BatchNorm(Layer):
    """``Y = (X - mean) * r * gamma + beta`` for each column, with ``r = 1 / sqrt(variance + epsilon)``.

    In training, mean and variance are those of the batch (the variance by N), and the gradient passes back through
    them too. They are also taken into running statistics, ``running = (1 - momentum) * running + momentum * batch``,
    with the variance by N - 1; in inference those take their place. gamma (n,) starts at one and beta (n,) at zero;
    neither is decayed. Source: Ioffe and Szegedy, "Batch normalization: accelerating deep network training by
    reducing internal covariate shift" (2015).

    Statistics are those of the examples that are computed at a time: of a micro-batch, where there are some. Sample
    weights do not enter them. A batch of a single example has no variance: Y is beta there, nothing passes back to X,
    and the running statistics stay as they are.

    Args:
        n: Width of X and Y.
        momentum: How much a batch counts in the running statistics, above 0 and at most 1.
        epsilon: Positive.

    Raises:
        SettingError: A setting is outside its range.
    """

    torch_twin = TorchTwin(
        "BatchNorm1d",
        {"n": "num_features", "momentum": "momentum", "epsilon": "eps"},
        {"gamma": "weight", "beta": "bias", "running_mean": "running_mean", "running_variance": "running_var"},
        needs=[
            ("a momentum", lambda module: module.momentum is not None),
            ("running statistics", lambda module: module.running_mean is not None),
        ],
        counters={"num_batches_tracked": 0},
    )
    rules = (
        Rule(
            "dL_dgamma",
            "(dL_dY * (X - mean[..., None, :]) * r[..., None, :]).sum(axis=-2)",
            "dL_dgamma[j] = sum_n dL_dY[n,j] * (X[n,j] - mean[j]) * r[j]",
            "gamma[j] scales the normalised X of every example n: sum over n",
        ),
        Rule(
            "dL_dbeta",
            "dL_dY.sum(axis=-2)",
            "dL_dbeta[j] = sum_n dL_dY[n,j]",
            "beta[j] is broadcast down the rows: the adjoint of a broadcast is a sum",
        ),
        Rule(
            "dL_dX",
            "gamma[..., None, :] * r[..., None, :] * (dL_dY - share * (dL_dbeta[..., None, :]"
            " + (X - mean[..., None, :]) * r[..., None, :] * dL_dgamma[..., None, :]))",
            "dL_dX[n,j] = gamma[j] * r[j]"
            " * (dL_dY[n,j] - share * (dL_dbeta[j] + (X[n,j] - mean[j]) * r[j] * dL_dgamma[j]))",
            "mean and r depend on every X[n,j], each with a share of 1 / N: so the mean of dL_dY, and what of it goes"
            " along with the normalised X, is taken out; in inference they are constants, and share is 0",
        ),
    )
    saves = ("X", "mean", "r", "share")
    keeps_statistics = True

    def __init__(self, n: int, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.n = self.input_width = require_count(self, "n", n)
        self.momentum = require_in(self, "momentum", momentum, "(0, 1]")
        self.epsilon = require_positive(self, "epsilon", epsilon)

    @classmethod
    def examples(cls) -> list[tuple[Layer, int]]:
        """Usual settings, and others."""
        return [(cls(3), 3), (cls(3, 0.4, 0.2), 3)]

    def declare(self) -> dict[str, Parameter]:
        """The scale gamma and the shift beta, which are not decayed."""
        return {
            "gamma": Parameter((self.n,), lambda rng: np.ones(self.n), False),
            "beta": Parameter((self.n,), lambda rng: np.zeros(self.n), False),
        }

    def constant_shapes(self) -> dict[str, Shape]:
        """The running statistics."""
        return {"running_mean": (self.n,), "running_variance": (self.n,)}

    def initial_constants(self) -> dict[str, Array]:
        """Mean 0 and variance 1."""
        return {"running_mean": np.zeros(self.n), "running_variance": np.ones(self.n)}

    def output_width(self, n_in: int) -> int:
        """`n`, for an X of that width."""
        if n_in != self.n:
            raise ShapeError(f"{self!r} takes inputs of width {self.n}, not {n_in}")
        return n_in

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """The output, mean and r, the gradient by the input, and scratch space."""
        output = (*(shape[:-2] or self.members), *shape[-2:])
        row = (*output[:-2], output[-1])
        return {
            "Y": Buffer(output),
            "mean": Buffer(row),
            "r": Buffer(row),
            "partial_sums": Buffer(batch_norm.partial_sums_shape(xp, output)),
            "dL_dX": Buffer(shape, overwrites="dL_dY"),
        }

    def costs(self, shape: Shape, itemsize: int, *, input_gradient: bool = True) -> tuple[list[Cost], list[Cost]]:
        """See `Layer.costs`."""
        known = batch_norm.costs((*(shape[:-2] or self.members), *shape[-2:]), itemsize)
        backward = [known["gradients"], *([known["input_gradient"]] if input_gradient else [])]
        return [known["statistics"], known["normalize"]], backward

    def onnx(self, graph: OnnxGraph, arrays: Mapping[str, Array], X: str) -> str:
        """See `Layer.onnx`."""
        deviation = np.sqrt(arrays["running_variance"].astype(np.float64) + self.epsilon)
        centred = graph.add("Sub", X, graph.per_row(arrays["running_mean"]))
        scaled = graph.add("Mul", centred, graph.per_row(arrays["gamma"] / deviation))
        return graph.add("Add", scaled, graph.per_row(arrays["beta"]))

    def forward(
        self,
        X: Array,
        out: Mapping[str, Array] | None = None,
        *,
        training: bool = False,
        rng: Draws | np.random.Generator | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """``Y = (X - mean) * r * gamma + beta``; see `Layer.forward`."""
        out = self._output(X, out)
        gamma, beta = self.parameters["gamma"], self.parameters["beta"]
        running = self.constants["running_mean"], self.constants["running_variance"]
        mean, r = out["mean"], out["r"]  # (..., n)
        if training:
            batch_norm.statistics(X, mean, r, *running, self.momentum, self.epsilon, out["partial_sums"])
        else:
            mean[...] = running[0]
            r[...] = 1 / array_module(X).sqrt(running[1] + self.epsilon)
        Y = batch_norm.normalize(X, mean, r, gamma, beta, out["Y"])  # (..., N, n)
        share = X.dtype.type(1 / X.shape[-2] if training and X.shape[-2] else 0)
        return Y, {"X": X, "mean": mean, "r": r, "share": share}

    def backward(
        self,
        dL_dY: Array,
        saved: Mapping[str, Array],
        out: Mapping[str, Array] | None = None,
        *,
        input_gradient: bool = True,
    ) -> Array | None:
        """The three rules of this class; see `Layer.backward`."""
        X, mean, r, share = (saved[name] for name in self.saves)
        out = self._fresh(X) if out is None else out
        dL_dgamma, dL_dbeta = self.gradients["gamma"], self.gradients["beta"]
        batch_norm.gradients(dL_dY, X, mean, r, dL_dgamma, dL_dbeta, out["partial_sums"])  # (..., n) each
        if not input_gradient:
            return None
        gamma = self.parameters["gamma"]
        return batch_norm.input_gradient(  # (..., N, n)
            dL_dY, X, mean, r, gamma, dL_dgamma, dL_dbeta, out["dL_dX"], float(share)
        )
