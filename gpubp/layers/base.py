"""What every layer is: a forward, a backward with its rules, and the buffers that both write.

A layer keeps nothing between the calls but its parameters: what backward needs is returned by forward as ``saved``.
Every array result goes to a buffer named by `Layer.buffers`. With ``out=None`` the buffers are made on the spot, so
nothing that was handed out is ever overwritten; the planned step passes preallocated ones to the same code.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from gpubp.backend import Array, Device, array_module, resolve_device
from gpubp.buffers import Buffer, FreshBuffers, Shape
from gpubp.cost import Cost
from gpubp.errors import NotReadyError, SettingError, ShapeError
from gpubp.ops import activation as activation_op
from gpubp.ops import rows
from gpubp.ops.random import Draws
from gpubp.parameters import FlatParameters, Parameter
from gpubp.rules import Rule
from gpubp.twins import OnnxGraph, TorchTwin


class Layer:
    """Base class of all layers; a subclass registers itself under its class name.

    Attributes:
        rules: The backward rules, in the names that `forward` uses.
        input_width: The width of X that it takes; None for any.
        saves: Names of what backward reads: the input ``X``, the output ``Y`` or buffers of the layer's own.
        parameters: Name to array, bound by `gpubp.parameters.FlatParameters`; empty before that.
        gradients: Name to array, of the same shapes; backward writes them.
        constants: Arrays that forward reads, that are saved with the network, but that are not trained.
        is_random: Whether forward draws from `rng` in training.
        keeps_statistics: Whether forward changes its constants in training, in place.
        index_columns: Columns of X that must hold whole numbers, which no layer before may change.
        kept_columns: Columns that it hands on as they are.
        number: Tells the random layers of a network apart; a `Network` sets it.
        inner: The layers that this one is made of, if it is: one after the other, the first of which takes X; the
            constructor takes them as ``layers``.
        torch_twin: The PyTorch module that computes the same; or why there is none.
    """

    rules: ClassVar[tuple[Rule, ...]] = ()
    saves: tuple[str, ...] = ()
    input_width: int | None = None
    is_random: bool = False
    keeps_statistics: bool = False
    index_columns: tuple[int, ...] = ()
    kept_columns: tuple[int, ...] = ()
    number: int = 0
    inner: Sequence[Layer] = ()
    torch_twin: ClassVar[TorchTwin | str] = "PyTorch has no module for it"
    by_name: ClassVar[dict[str, type[Layer]]] = {}

    def __init_subclass__(cls, *, register: bool = True) -> None:
        if register:
            Layer.by_name[cls.__name__] = cls

    def __init__(self) -> None:
        self.parameters: dict[str, Array] = {}
        self.gradients: dict[str, Array] = {}
        self.constants: dict[str, Array] = {}

    # What a subclass states about itself.

    @classmethod
    def examples(cls) -> list[tuple[Layer, int]]:
        """Tiny configurations for the tests, each with the input width to try it with."""
        raise NotImplementedError

    def example_inputs(self, rng: np.random.Generator, shape: Shape) -> Array:
        """An X of this shape (..., N, n_in) to try the layer with, in float64; for the tests.

        By default normal numbers, none closer to zero than 1e-3, so that no kink is within reach of a difference.
        """
        X = rng.normal(size=shape)
        return np.sign(X) * np.maximum(np.abs(X), 1e-3)

    def rule_names(self, X: Array, dL_dY: Array) -> dict[str, Array]:
        """What its rules name and forward does not save; to verify them."""
        return {}

    def declare(self) -> dict[str, Parameter]:
        """The parameters of this layer, by name."""
        return {}

    def constant_shapes(self) -> dict[str, Shape]:
        """The shapes of `constants` in a single network; a model file is held against them."""
        return {}

    def initial_constants(self) -> dict[str, Array]:
        """The constants that are there before any data, for a single network; a stack has some for each member."""
        return {}

    def bind(self, kind: str, name: str, view: Array) -> None:
        """Take a view of a flat buffer: of `kind` ``"parameters"`` or ``"gradients"``, by the name in `declare`."""
        getattr(self, kind)[name] = view

    def fuse(self, fused: Callable[[Sequence[Layer]], list[Layer]]) -> None:
        """Let layers that this one is made of run as `fused` has them."""

    def require_valid(self, X: Array) -> None:
        """Raise a DataError where X (..., N, n_in) can't be an input, whatever its numbers are in floating point."""

    def output_width(self, n_in: int) -> int:
        """The width of Y for an X of width `n_in`.

        Raises:
            ShapeError: The layer does not take this width.
        """
        return n_in

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """Everything that forward and backward write for an X of this shape, ``Y`` and ``dL_dX`` included.

        Args:
            shape: (..., N, n_in).
            xp: The array module that will run; scratch space differs between them.
        """
        raise NotImplementedError

    def forward(
        self,
        X: Array,
        out: Mapping[str, Array] | None = None,
        *,
        training: bool = False,
        rng: Draws | np.random.Generator | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Compute the output.

        Args:
            X: (..., N, n_in), on the layer's device and of its dtype; left unchanged.
            out: Arrays to write, as `buffers` names them; None for fresh ones.
            training: Whether this is a training step; only layers that behave differently then look at it.
            rng: Where a layer that is random in training draws from: a network's draws, or a NumPy generator.

        Returns:
            Y of shape (..., N, n_out), and what backward needs, by name.
        """
        raise NotImplementedError

    def backward(
        self,
        dL_dY: Array,
        saved: Mapping[str, Array],
        out: Mapping[str, Array] | None = None,
        *,
        input_gradient: bool = True,
    ) -> Array | None:
        """Pass a gradient back: dL_dX is returned, parameter gradients are written into `gradients`.

        Args:
            dL_dY: (..., N, n_out); the gradient of the loss by this layer's output.
            saved: What forward returned.
            out: Arrays to write, as `buffers` names them; None for fresh ones.
            input_gradient: False skips dL_dX, and None is returned; the first layer of a network has no use for it.
        """
        raise NotImplementedError

    def costs(self, shape: Shape, itemsize: int, *, input_gradient: bool = True) -> tuple[list[Cost], list[Cost]]:
        """What forward and backward need for an X of this shape, each operation once.

        This one is right for an elementwise layer of one operation; a layer with others says its own.

        Args:
            shape: (..., N, n_in).
            itemsize: Bytes of an element.
            input_gradient: Whether backward computes dL_dX.
        """
        forward = [rows.cost("forward", shape, itemsize, written=True)]
        return forward, [rows.cost("backward", shape, itemsize, written=True)] if input_gradient else []

    def onnx(self, graph: OnnxGraph, arrays: Mapping[str, Array], X: str) -> str:
        """Write its inference into an ONNX graph, in operators that onnxruntime has in float32 and float64.

        Args:
            graph: What to add operators to.
            arrays: Parameters and constants on the host, by name; those of a stack with its leading axis.
            X: The name of the input, a value (..., N, n_in).

        Returns:
            The name of Y.
        """
        raise NotImplementedError

    # What is the same for all.

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain JSON."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.config().items())
        return f"{type(self).__name__}({arguments})"

    @property
    def differs_in_training(self) -> bool:
        """Whether forward does something else in training."""
        return self.is_random or self.keeps_statistics

    @property
    def members(self) -> Shape:
        """The leading axes of the parameters: (E,) in a stack of E networks, () in a single one."""
        for name, declared in self.declare().items():
            if name in self.parameters:
                shape: Shape = self.parameters[name].shape
                return shape[: len(shape) - len(declared.shape)]
        return ()

    def initialize(
        self,
        rng: int | np.random.Generator | None = 0,
        *,
        dtype: Any = "float32",
        device: str | Device = "cpu",
        members: int | None = None,
    ) -> None:
        """Give this layer parameters of its own, for use outside a network; see `FlatParameters`."""
        FlatParameters([self], dtype, resolve_device(device), members, np.random.default_rng(rng))

    def _output(self, X: Array, out: Mapping[str, Array] | None) -> Mapping[str, Array]:
        """`out`, or fresh buffers for this X after a look at whether X fits."""
        if out is not None:
            return out
        if X.ndim < 2:
            raise ShapeError(f"X has shape {X.shape}; a batch (..., N, n_in) is needed, one row an example")
        if X.dtype.kind != "f":
            raise ShapeError(f"X holds {X.dtype} values; {type(self).__name__} computes in float32 or float64")
        self.output_width(X.shape[-1])
        for name in self.declare():
            if name not in self.parameters:
                raise NotReadyError(
                    f"{type(self).__name__} has no parameters yet: put it in a Network, or call initialize() on it"
                )
            if self.parameters[name].dtype != X.dtype:
                raise ShapeError(
                    f"X is {X.dtype}, the parameters of {type(self).__name__} are {self.parameters[name].dtype}; "
                    "convert X with X.astype"
                )
        return self._fresh(X)

    def _fresh(self, X: Array) -> FreshBuffers:
        xp = array_module(X)
        return FreshBuffers(xp, X.dtype, self.buffers(X.shape, xp))


class Activation(Layer, register=False):
    """An elementwise layer ``Y = f(X)`` without parameters.

    A subclass gives `evaluate`, `derivative`, one rule for dL_dX and, for a fused kernel, the name of its functor in
    ``kernels/activations.cuh``. See `gpubp.ops.activation.ActivationFunction` for what each of these means.
    """

    derivative_of: str = "Y"
    functor: str | None = None
    """A subclass with maths of its own has no functor but its own."""
    parameter: float = 0.0
    flops: tuple[int, int] = (1, 1)
    """Operations for each element in `evaluate` and in `derivative`; an exp or a tanh counts as one."""
    initializer: str = "glorot_uniform"
    """What suits the weights of the dense layers around it; `mlp` takes it."""

    def __init_subclass__(cls, *, register: bool = True) -> None:
        super().__init_subclass__(register=register)
        if "functor" not in vars(cls) and {"evaluate", "derivative"} & set(vars(cls)):
            cls.functor = None  # a kernel of the parent's would compute something else

    def evaluate(self, xp: ModuleType, X: Array, out: Array, scratch: Array) -> None:
        """Write f(X) into `out`, which may be X itself; `scratch` is neither and free to use."""
        raise NotImplementedError

    def derivative(self, xp: ModuleType, saved: Array, out: Array) -> None:
        """Write f' into `out`, from Y or from X as `derivative_of` says."""
        raise NotImplementedError

    def costs(self, shape: Shape, itemsize: int, *, input_gradient: bool = True) -> tuple[list[Cost], list[Cost]]:
        """See `Layer.costs`."""
        evaluate, derivative = self.flops
        forward = [activation_op.forward_cost("forward activation", shape, itemsize, evaluate)]
        backward = [activation_op.backward_cost("backward activation", shape, itemsize, derivative)]
        return forward, backward if input_gradient else []

    @classmethod
    def examples(cls) -> list[tuple[Layer, int]]:
        """One example with default settings."""
        return [(cls(), 3)]

    @property
    def saves(self) -> tuple[str, ...]:  # type: ignore[override]
        """The input or the output, whichever the derivative is a function of."""
        return (self.derivative_of,)

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """The output, the gradient by the input, and scratch space; shapes as X."""
        scratch = activation_op.workspace(self, xp, shape)
        return {
            "Y": Buffer(shape),
            "dL_dX": Buffer(shape, overwrites="dL_dY"),
            **{name: Buffer(scratch_shape) for name, scratch_shape in scratch.items()},
        }

    def forward(
        self,
        X: Array,
        out: Mapping[str, Array] | None = None,
        *,
        training: bool = False,
        rng: Draws | np.random.Generator | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """``Y = f(X)``; see `Layer.forward`."""
        out = self._output(X, out)
        Y = activation_op.bias_activation(self, X, None, out["Y"], out)  # (..., N, n)
        return Y, {self.derivative_of: Y if self.derivative_of == "Y" else X}

    def backward(
        self,
        dL_dY: Array,
        saved: Mapping[str, Array],
        out: Mapping[str, Array] | None = None,
        *,
        input_gradient: bool = True,
    ) -> Array | None:
        """``dL_dX = dL_dY * f'``; see `Layer.backward`."""
        if not input_gradient:
            return None
        out = self._fresh(dL_dY) if out is None else out
        state = saved[self.derivative_of]
        return activation_op.activation_backward(self, dL_dY, state, out["dL_dX"], None, out)  # (..., N, n)


def all_layers(layers: Sequence[Layer]) -> Iterator[Layer]:
    """Each of the layers, followed by those that it is made of."""
    for layer in layers:
        yield layer
        yield from all_layers(layer.inner)


def layer_from_config(name: str, config: Mapping[str, Any]) -> Layer:
    """The layer that a class name and its `Layer.config` describe.

    Raises:
        SettingError: There is no layer of that name.
    """
    if name not in Layer.by_name:
        raise SettingError(f"unknown layer {name!r}: there are {', '.join(sorted(Layer.by_name))}")
    return Layer.by_name[name](**config)


def activation_by_name(name: str) -> Activation:
    """A new activation layer by its class name, case and underscores aside: ``"sigmoid"``, ``"leaky_relu"``.

    Raises:
        SettingError: There is no activation of that name.
    """
    kinds = {kind.__name__.lower(): kind for kind in Layer.by_name.values() if issubclass(kind, Activation)}
    key = str(name).replace("_", "").lower()
    if key not in kinds:
        raise SettingError(f"unknown activation {name!r}: use one of {', '.join(sorted(kinds))}")
    return kinds[key]()
