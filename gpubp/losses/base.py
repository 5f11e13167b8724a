"""What every loss is: a weighted mean over examples of a sum over outputs, and its gradient.

    L = sum_n w[n] * l(Y[n], T[n]),   w[n] = sample_weight[n] / N,   1/N without weights

`Network.sample_weights` scales example weights to a mean of 1 over all the data, so that L is their weighted mean, and
a minibatch's gradient is that of the whole on average.

A stack of E networks has E losses: Y is (E, N, K) and L is (E,).

Where a loss allows missing targets, one costs nothing and has no gradient. N counts all examples all the same, those
without any target too, so that minibatches add up to what the whole gives. A training without any target is refused.

The array maths computes the loss forward and its gradient backward; a compiled kernel computes both in one pass,
forward, and backward has nothing left to do.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from gpubp import compiled
from gpubp.backend import Array, array_module, device_of, to_host
from gpubp.buffers import Buffer, FreshBuffers, Shape
from gpubp.cost import Cost
from gpubp.errors import DataError, SettingError, ShapeError
from gpubp.rules import Rule
from gpubp.twins import OnnxGraph

Saved = dict[str, Any]


class Loss:
    """Base class of all losses; a subclass registers itself under its snake-case `name`."""

    rules: ClassVar[tuple[Rule, ...]] = ()
    name: ClassVar[str]
    flops: ClassVar[int] = 5
    """Operations for each output, forward and backward; an exp or a logarithm counts as one."""
    targets_like_outputs: ClassVar[bool] = True
    """Whether a target has a number for each output, rather than one class index for all."""
    link_layer: ClassVar[str | None] = None
    """The class name of the layer that computes what `link` does; at the end of a network it would come twice."""
    by_name: ClassVar[dict[str, type[Loss]]] = {}
    heads: int = 1
    """How many outputs there are for each target: output ``k = h * M + m`` is head h for target m of M."""
    predicts: ClassVar[str] = "values"
    """What `link` gives, in a word."""
    allow_missing: bool = False
    """Whether a NaN among the targets (-1 among class indices) is a target that is missing, and not an error."""

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):  # else it is a base of several losses
            Loss.by_name[cls.name] = cls

    @classmethod
    def examples(cls) -> list[Loss]:
        """Configurations for the tests."""
        return [cls()]

    @classmethod
    def example_targets(cls, rng: np.random.Generator, shape: Shape) -> Array:
        """Random targets of this shape (..., N, K / heads) that this loss takes, float64, for the tests."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain JSON: the attributes of their names."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        defaults = {name: known.default for name, known in inspect.signature(type(self)).parameters.items()}
        settings = [f"{name}={value!r}" for name, value in self.config().items() if value != defaults.get(name)]
        return f"{type(self).__name__}({', '.join(settings)})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_constants"}

    def parts(self, Y: Array) -> dict[str, Array]:
        """An output, or its gradient, by the names that the rules have for its parts."""
        return {"Y": Y}

    def names(self, Y: Array, T: Array) -> dict[str, Any]:
        """What the rules name, but for the weights w: outputs, targets (N, K) or (..., N, K), and settings."""
        return {**self.parts(Y), "T": T, "P": self.link(Y), **self.config()}

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """What forward and backward write for a Y of this shape (..., N, K): ``dL_dY``, ``L`` and what is saved.

        ``dL_dY`` may overwrite ``Y``, too, where that is read for the last time.
        """
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
            L of shape (...), a 0-d array for a single network, ``out["L"]`` where `out` has one; and what backward
            needs.
        """
        raise NotImplementedError

    def backward(self, saved: Saved, out: Mapping[str, Array] | None = None) -> Array:
        """The gradient dL_dY (..., N, K) of the loss; see the class's rule. A kernel has computed it forward."""
        raise NotImplementedError

    def costs(self, shape: Shape, itemsize: int) -> list[Cost]:
        """What the loss with its gradient needs for a Y of this shape: Y and targets read, the gradient written."""
        size = math.prod(shape)
        targets = size // self.heads * itemsize if self.targets_like_outputs else math.prod(shape[:-1]) * 8
        return [Cost("loss", self.flops * size, 2 * size * itemsize + targets)]

    def link(self, Y: Array) -> Array:
        """The prediction that an output stands for: a new array of the shape of Y."""
        return Y.copy()

    def onnx(self, graph: OnnxGraph, Y: str, n_out: int) -> str:
        """`link` in an ONNX graph, of the value named Y (..., N, n_out); see `gpubp.layers.base.Layer.onnx`."""
        return Y

    def targets(self, T: Array, outputs: Shape, dtype: Any) -> Array:
        """Targets in the shape and dtype that `forward` takes, after a look at every value.

        Args:
            T: What a user gave: (N,) where there is one target for an example, (N, K / heads), or with a leading axis
                one set per member.
            outputs: The shape (..., N, K) of the outputs they are for.
            dtype: The network's dtype.

        Raises:
            ShapeError: The shape does not fit the outputs, or the outputs do not fit the loss.
            DataError: A value is not one that this loss takes; the message names the row.
        """
        if outputs[-1] % self.heads:
            raise ShapeError(
                f"the network has {outputs[-1]} outputs, and {self!r} takes {self.heads} for each target: "
                f"their number must be a multiple of {self.heads}"
            )
        outputs = (*outputs[:-1], outputs[-1] // self.heads)
        if T.ndim < len(outputs) and T.shape in (outputs[-2:-1], outputs[:-1]) and outputs[-1] == 1:
            T = T[..., None]
        if T.shape not in (outputs[-2:], outputs):
            given = (*outputs[:-1], outputs[-1] * self.heads)
            raise ShapeError(f"targets have shape {T.shape}; outputs of shape {given} need {_wanted(outputs)}")
        T = T.astype(dtype)
        require_finite(T, "target", or_nan=self.allow_missing)
        return T

    def require_some(self, T: Array) -> None:
        """Look whether there is anything to learn from; a minibatch, or what is measured, may be without all the same.

        Args:
            T: As `targets` gives it.

        Raises:
            DataError: Every target is missing, or every one of a member of a stack.
        """
        if self.allow_missing and T.size:
            of_classes = T.dtype.kind in "iu"
            missing = T < 0 if of_classes else array_module(T).isnan(T)  # (..., N) or (..., N, K)
            if bool(missing.all(axis=-1 if of_classes else (-2, -1)).any()):
                of_one = " of a member" if T.ndim > (1 if of_classes else 2) else ""
                raise DataError(f"every target{of_one} is missing: there is nothing to learn from")

    # What is the same for all.

    def _output(self, Y: Array, out: Mapping[str, Array] | None) -> Mapping[str, Array]:
        xp = array_module(Y)
        return FreshBuffers(xp, Y.dtype, self.buffers(Y.shape, xp)) if out is None else out

    def _constant(self, values: tuple[float, ...], Y: Array) -> Array:
        """These numbers as an array where Y is, in its dtype: made once, as recorded steps hold its memory fast."""
        xp = array_module(Y)
        known = vars(self).setdefault("_constants", {})
        key = (values, xp, Y.dtype, device_of(Y))
        if key not in known:
            known[key] = xp.asarray(values, Y.dtype)
        return known[key]

    @staticmethod
    def row_buffers(shape: Shape) -> dict[str, Buffer]:
        """The loss of each example and its weight, (..., N), and the whole loss L (...): what every loss writes."""
        return {"losses": Buffer(shape[:-1]), "w": Buffer(shape[:-1]), "L": Buffer(shape[:-2])}

    @staticmethod
    def _weights(Y: Array, sample_weight: Array | None, out: Mapping[str, Array]) -> Any:
        """w[n] of the module docstring: (..., N), or the number 1/N."""
        N = max(1, Y.shape[-2])
        if sample_weight is None:
            return 1 / N
        return array_module(Y, sample_weight).divide(sample_weight, N, out=out["w"])

    @staticmethod
    def _mean(losses: Array, w: Any, L: Array) -> Array:
        """``L = sum_n w[n] * losses[n]``: (..., N) -> (...); the losses are overwritten."""
        array_module(losses).multiply(losses, w, out=losses)
        return losses.sum(axis=-1, out=L)


def per_row(w: Any) -> Any:
    """Weights (..., N) as a column (..., N, 1) that scales rows; a plain number stays one."""
    return w if isinstance(w, float) else w[..., None]


def compiled_losses(Y: Array, T: Array, sample_weight: Array | None, heads: int = 1) -> Any:
    """The compiled kernels of the losses, where there are some, and they take such arrays; else None."""
    kernels = compiled.kernels_for(Y, T, *(() if sample_weight is None else (sample_weight,)))
    return kernels.losses if kernels and kernels.losses.takes(Y, T, sample_weight, heads) else None


def kernel_buffers(out: Mapping[str, Array]) -> dict[str, Array]:
    """What a kernel writes, each taken once, as fresh ones are others each time: dL_dY, L, and sums of losses."""
    return {name: out[name] for name in ("dL_dY", "L", "losses")}


def require_finite(array: Array, what: str, *, or_nan: bool = False) -> None:
    """Raise a DataError that names the first row of (..., N, K) or (..., N) with an infinity, or a NaN."""
    if array.dtype.kind != "f":
        return
    xp = array_module(array)
    finite = ~xp.isinf(array) if or_nan else xp.isfinite(array)
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


def require_within(array: Array, low: float, high: float, what: str, hint: str, *, or_nan: bool = False) -> None:
    """Raise a DataError that names the first value outside ``low <= value <= high``; NaN is, if not allowed."""
    within = (array >= low) & (array <= high)
    if or_nan:
        within |= array_module(array).isnan(array)
    if not bool(within.all()):
        place = tuple(int(index) for index in np.argwhere(~to_host(within))[0])
        raise DataError(f"{what} {array[place]} at index {place} is outside {low} to {high}: {hint}")
