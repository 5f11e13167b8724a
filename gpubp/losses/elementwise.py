"""What the losses have in common that are a sum over targets, each with one output of its own or a few."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from gpubp.backend import Array, array_module
from gpubp.buffers import Buffer, Shape
from gpubp.losses.base import Loss, Saved, compiled_losses, kernel_buffers, per_row
from gpubp.ops import elementary


class ElementwiseLoss(Loss):
    """``L = sum_n w[n] * sum_o l(Y[n,o], T[n,o])``; a subclass gives l and its derivative in `of_outputs`.

    Args:
        allow_missing: Whether a NaN among the targets stands for one that is missing: it costs nothing, and its
            outputs have no gradient. N counts all examples all the same; see `gpubp.losses.base`.
    """

    functor: ClassVar[str | None] = None
    """What ``kernels/loss_functions.cuh`` and `gpubp.cpu_kernels.losses` call l; None where array maths is all."""
    kernel: ClassVar[str] = "elementwise_loss"
    """The kernel that takes the functor."""

    def __init__(self, *, allow_missing: bool = False) -> None:
        self.allow_missing = bool(allow_missing)

    @classmethod
    def example_targets(cls, rng: np.random.Generator, shape: Shape) -> Array:
        """Any numbers."""
        return rng.normal(size=shape)

    @property
    def parameters(self) -> tuple[float | tuple[float, ...], float]:
        """What the functor takes: a number, or one for each of several equal parts of a row; and a number."""
        return 0.0, 0.0

    def of_outputs(self, Y: Array, T: Array, values: Array, slopes: Array) -> None:
        """The loss of each output, and its derivative, in array maths.

        Args:
            Y: (..., N, heads, M), the outputs.
            T: (..., N, 1, M), the target of each.
            values: Receives l, of the shape of Y.
            slopes: Receives dl/dY, of the shape of Y.
        """
        raise NotImplementedError

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """The loss of each output and its derivative, if there is no kernel; the gradient; what is one number a row."""
        maths = {"values": Buffer(shape), "slopes": Buffer(shape)} if xp is np or self.functor is None else {}
        overwrites = "slopes" if maths else "Y"  # a thread reads an output before it writes there
        return {**maths, "dL_dY": Buffer(shape, overwrites=overwrites), **self.row_buffers(shape)}

    def forward(
        self, Y: Array, T: Array, sample_weight: Array | None = None, out: Mapping[str, Array] | None = None
    ) -> tuple[Array, Saved]:
        """The loss; see `Loss.forward`."""
        out = self._output(Y, out)
        if self.functor and (kernels := compiled_losses(Y, T, sample_weight, self.heads)):
            out = kernel_buffers(out)
            first, second = self.parameters
            each = self._constant(first, Y) if isinstance(first, tuple) else None
            settings = (0.0 if isinstance(first, tuple) else first, second, each, self.heads, self.allow_missing)
            launch = getattr(kernels, self.kernel)
            return launch(self.functor, Y, T, sample_weight, settings, out), {"dL_dY": out["dL_dY"]}
        xp, w = array_module(Y, T), self._weights(Y, sample_weight, out)
        values, slopes = out["values"], out["slopes"]  # (..., N, K)
        of_each, T = (values.reshape(self._by_head(Y)), slopes.reshape(self._by_head(Y))), T[..., None, :]
        self.of_outputs(Y.reshape(self._by_head(Y)), T, *of_each)
        if self.allow_missing:
            missing = xp.broadcast_to(xp.isnan(T), of_each[0].shape)
            for array in of_each:
                xp.copyto(array, array.dtype.type(0), where=missing)
        losses = elementary.row_sum(values, out["losses"])  # (..., N)
        return self._mean(losses, w, out["L"]), {"slopes": slopes, "w": w}

    def backward(self, saved: Saved, out: Mapping[str, Array] | None = None) -> Array:
        """The gradient; see the class's rule."""
        if "dL_dY" in saved:
            return saved["dL_dY"]
        slopes, out = saved["slopes"], self._output(saved["slopes"], out)
        return array_module(slopes).multiply(slopes, per_row(saved["w"]), out=out["dL_dY"])  # (..., N, K)

    def _by_head(self, Y: Array) -> Shape:
        """The shape (..., N, heads, M) of what is (..., N, K)."""
        return (*Y.shape[:-1], self.heads, Y.shape[-1] // self.heads)

    def _each(self, Y: Array) -> Any:
        """The first of `parameters`, in a shape that goes with Y (..., N, heads, M)."""
        first, _ = self.parameters
        return self._constant(first, Y).reshape(self.heads, -1) if isinstance(first, tuple) else first
