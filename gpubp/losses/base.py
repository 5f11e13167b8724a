"""What every loss is: a weighted mean over examples of a sum over outputs, and its gradient.

    L = sum_n w[n] * l(Y[n], T[n]),   w[n] = sample_weight[n] / N,   1/N without weights

`Network.sample_weights` scales example weights to a mean of 1 over all the data, so that L is their weighted mean, and
a minibatch's gradient is that of the whole on average.

A stack of E networks has E losses: Y is (E, N, K) and L is (E,).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from gpubp.backend import Array, array_module, to_host
from gpubp.buffers import Buffer, FreshBuffers, Shape
from gpubp.errors import DataError, SettingError, ShapeError
from gpubp.rules import Rule

Saved = dict[str, Any]


class Loss:
    """Base class of all losses; a subclass registers itself under its snake-case `name`."""

    rules: ClassVar[tuple[Rule, ...]] = ()
    name: ClassVar[str]
    by_name: ClassVar[dict[str, type[Loss]]] = {}

    def __init_subclass__(cls) -> None:
        Loss.by_name[cls.name] = cls

    @classmethod
    def examples(cls) -> list[Loss]:
        """Configurations for the tests."""
        return [cls()]

    @classmethod
    def example_targets(cls, rng: np.random.Generator, shape: Shape) -> Array:
        """Random targets of shape (..., N, K) that this loss takes, float64, for the tests."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain JSON."""
        return {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.config().items())})"

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """What forward and backward write for a Y of this shape (..., N, K): ``dL_dY`` and what is saved."""
        raise NotImplementedError

    def forward(
        self, Y: Array, T: Array, sample_weight: Array | None = None, out: Mapping[str, Array] | None = None
    ) -> tuple[Array, Saved]:
        """Compute the loss.

        Args:
            Y: (..., N, K), the network's output.
            T: Targets as `targets` gives them: (N, K) or (..., N, K), or class indices without the last axis.
            sample_weight: (N,) or (..., N), at least 0, as `Network.sample_weights` gives it; None weighs all examples
                the same.
            out: Arrays to write, as `buffers` names them; None for fresh ones.

        Returns:
            L of shape (...), a 0-d array for a single network, and what backward needs.
        """
        raise NotImplementedError

    def backward(self, saved: Saved, out: Mapping[str, Array] | None = None) -> Array:
        """The gradient dL_dY (..., N, K) of the loss; see the class's rule."""
        raise NotImplementedError

    def link(self, Y: Array) -> Array:
        """The prediction that an output stands for: a new array of the shape of Y."""
        return Y.copy()

    def targets(self, T: Array, outputs: Shape, dtype: Any) -> Array:
        """Targets in the shape and dtype that `forward` takes, after a look at every value.

        Args:
            T: What a user gave: (N,) where there is one output, (N, K), or with a leading axis one set per member.
            outputs: The shape (..., N, K) of the outputs they are for.
            dtype: The network's dtype.

        Raises:
            ShapeError: The shape does not fit the outputs.
            DataError: A value is not one that this loss takes; the message names the row.
        """
        if T.ndim < len(outputs) and T.shape in (outputs[-2:-1], outputs[:-1]) and outputs[-1] == 1:
            T = T[..., None]
        if T.shape not in (outputs[-2:], outputs):
            raise ShapeError(f"targets have shape {T.shape}; outputs of shape {outputs} need {_wanted(outputs)}")
        T = T.astype(dtype)
        require_finite(T, "target")
        return T

    # What is the same for all.

    def _output(self, Y: Array, out: Mapping[str, Array] | None) -> Mapping[str, Array]:
        xp = array_module(Y)
        return FreshBuffers(xp, Y.dtype, self.buffers(Y.shape, xp)) if out is None else out

    @staticmethod
    def row_buffers(shape: Shape) -> dict[str, Buffer]:
        """The loss of each example and its weight, (..., N): what every loss writes."""
        return {"losses": Buffer(shape[:-1]), "w": Buffer(shape[:-1])}

    @staticmethod
    def _weights(Y: Array, sample_weight: Array | None, out: Mapping[str, Array]) -> Any:
        """w[n] of the module docstring: (..., N), or the number 1/N."""
        if sample_weight is None:
            return 1 / max(1, Y.shape[-2])
        return array_module(Y, sample_weight).divide(sample_weight, max(1, Y.shape[-2]), out=out["w"])

    @staticmethod
    def _mean(losses: Array, w: Any) -> Array:
        """``sum_n w[n] * losses[n]``: (..., N) -> (...); the losses are overwritten."""
        array_module(losses).multiply(losses, w, out=losses)
        return losses.sum(axis=-1)


def per_row(w: Any) -> Any:
    """Weights (..., N) as a column (..., N, 1) that scales rows; a plain number stays one."""
    return w if isinstance(w, float) else w[..., None]


def probability_gradient(saved: Saved, out: Mapping[str, Array]) -> Array:
    """``dL_dY = w[..., None] * (P - T)``, the gradient of a cross-entropy by its logits: (..., N, K)."""
    P, T, w = saved["P"], saved["T"], saved["w"]
    xp = array_module(P, T)
    dL_dY = xp.subtract(P, T, out=out["dL_dY"])
    return xp.multiply(dL_dY, per_row(w), out=dL_dY)


def require_finite(array: Array, what: str) -> None:
    """Raise a DataError that names the first row of (..., N, K) or (..., N) with a NaN or an infinity."""
    if array.dtype.kind != "f":
        return
    finite = array_module(array).isfinite(array)
    if not bool(finite.all()):
        place = tuple(int(index) for index in np.argwhere(~to_host(finite))[0])
        raise DataError(
            f"{what} at index {place} is {float(array[place])} in {array.dtype}: every value must be finite"
        )


def _wanted(outputs: Shape) -> str:
    shapes = [outputs[-2:], outputs] if len(outputs) > 2 else [outputs]
    return " or ".join(map(str, ([outputs[-2:-1]] if outputs[-1] == 1 else []) + shapes))


def loss_by_name(name: str, config: Mapping[str, Any] | None = None) -> Loss:
    """A loss by its name, such as ``"softmax_cross_entropy"``.

    Raises:
        SettingError: There is no loss of that name.
    """
    if name not in Loss.by_name:
        raise SettingError(f"unknown loss {name!r}: use one of {', '.join(sorted(Loss.by_name))}")
    return Loss.by_name[name](**(config or {}))


def require_within(array: Array, low: float, high: float, what: str, hint: str) -> None:
    """Raise a DataError that names the first value outside ``low <= value <= high``."""
    within = (array >= low) & (array <= high)
    if not bool(within.all()):
        place = tuple(int(index) for index in np.argwhere(~to_host(within))[0])
        raise DataError(f"{what} {array[place]} at index {place} is outside {low} to {high}: {hint}")
