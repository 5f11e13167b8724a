"""A residual connection around a block of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from gpubp.backend import Array
from gpubp.buffers import Buffer, Shape
from gpubp.cost import Cost
from gpubp.errors import SettingError, ShapeError
from gpubp.layers.base import Layer, layer_from_config
from gpubp.ops import elementwise
from gpubp.ops.random import Draws
from gpubp.parameters import Parameter
from gpubp.rules import Rule
from gpubp.settings import require_several
from gpubp.twins import OnnxGraph, TorchTwin


class Residual(Layer):
    """``Y = X + block(X)``, where the block is a list of layers, one after the other.

    Their parameters go by their position in the block: ``"2.0.W"`` is W of the first layer in the block that is the
    network's layer 2. Source: He, Zhang, Ren and Sun, "Deep residual learning for image recognition" (2016).

    Args:
        layers: The layers of the block, or their names and configurations; its output is as wide as its input.

    Raises:
        SettingError: There are no layers, or something is none.
        ShapeError: Neighbouring layers do not fit each other, or what the block gives is not as wide as what it takes.
    """

    torch_twin = TorchTwin("Residual", forward=lambda module, X: X + module.block(X))
    rules = (
        Rule(
            "dL_dX",
            "dL_dY + dL_dX_block",
            "dL_dX[n,j] = dL_dY[n,j] + dL_dX_block[n,j]",
            "X[n,j] feeds Y[n,j] with slope 1, and the block, which passes dL_dY back by the rules of its layers",
        ),
    )

    def __init__(self, layers: Sequence[Layer | Mapping[str, Any]]) -> None:
        self.inner = [self._layer(layer) for layer in require_several(self, "layers", layers)]
        self.executed: list[Layer] = list(self.inner)
        """The block as it runs: in a network, with neighbours that are one kernel as one layer."""
        super().__init__()
        self.input_width = next((layer.input_width for layer in self.inner if layer.input_width is not None), None)
        if self.input_width is not None:
            self.output_width(self.input_width)

    @staticmethod
    def _layer(given: Any) -> Layer:
        if isinstance(given, Layer):
            return given
        if isinstance(given, Mapping) and {"name", "config"} <= given.keys():
            return layer_from_config(given["name"], given["config"])
        raise SettingError(f"Residual: {given!r} is no layer, nor the name and config of one")

    @classmethod
    def examples(cls) -> list[tuple[Layer, int]]:
        """A narrow block, and one in a block whose layers are random and keep statistics."""
        layers = [("Dense", {"n_in": 3, "n_out": 4}), ("Tanh", {}), ("Dense", {"n_in": 4, "n_out": 3})]
        block: list[dict[str, Any]] = [{"name": name, "config": config} for name, config in layers]
        others = [("BatchNorm", {"n": 3, "momentum": 0.4, "epsilon": 0.2}), ("Dropout", {"rate": 0.3})]
        nested = [{"name": name, "config": config} for name, config in others]
        return [(cls(block), 3), (cls([*nested, {"name": "Residual", "config": {"layers": block}}]), 3)]

    # What the layers of the block state, under the names that they have here.

    @property
    def saves(self) -> tuple[str, ...]:  # type: ignore[override]
        """What the layers of the block read in their backward."""
        names = [self._name(k, name) for k, layer in enumerate(self.executed) for name in layer.saves]
        return tuple(dict.fromkeys(names))

    @property
    def is_random(self) -> bool:  # type: ignore[override]
        """Whether a layer of the block is."""
        return any(layer.is_random for layer in self.inner)

    @property
    def keeps_statistics(self) -> bool:  # type: ignore[override]
        """Whether a layer of the block does."""
        return any(layer.keeps_statistics for layer in self.inner)

    @property
    def constants(self) -> dict[str, Array]:
        """Those of the block; assigning gives each layer its own."""
        return dict(self._gathered(lambda layer: layer.constants))

    @constants.setter
    def constants(self, constants: Mapping[str, Array]) -> None:
        for k, layer in enumerate(self.inner):
            own = {name: array for name, array in constants.items() if name.startswith(f"{k}.")}
            if own:
                layer.constants = {name.partition(".")[2]: array for name, array in own.items()}

    def config(self) -> dict[str, Any]:
        """Name and configuration of each layer."""
        return {"layers": [{"name": type(layer).__name__, "config": layer.config()} for layer in self.inner]}

    def __repr__(self) -> str:
        return f"Residual({self.inner!r})"

    def declare(self) -> dict[str, Parameter]:
        """All parameters of the block."""
        return dict(self._gathered(lambda layer: layer.declare()))

    def constant_shapes(self) -> dict[str, Shape]:
        """Those of the block."""
        return dict(self._gathered(lambda layer: layer.constant_shapes()))

    def initial_constants(self) -> dict[str, Array]:
        """Those of the block."""
        return dict(self._gathered(lambda layer: layer.initial_constants()))

    def bind(self, kind: str, name: str, view: Array) -> None:
        """See `Layer.bind`; the layer of the block gets it too."""
        super().bind(kind, name, view)
        position, _, own = name.partition(".")
        self.inner[int(position)].bind(kind, own, view)

    def fuse(self, fused: Callable[[Sequence[Layer]], list[Layer]]) -> None:
        """See `Layer.fuse`."""
        self.executed = fused(self.inner)

    def output_width(self, n_in: int) -> int:
        """`n_in`, which the block gives back."""
        width = n_in
        for position, layer in enumerate(self.inner):
            try:
                width = layer.output_width(width)
            except ShapeError as error:
                raise ShapeError(f"in the block of {self!r}, layer {position}: {error}") from None
        if width != n_in:
            raise ShapeError(f"{self!r} adds the output of its block, of width {width}, to its input, of width {n_in}")
        return n_in

    def buffers(self, shape: Shape, xp: ModuleType = np) -> dict[str, Buffer]:
        """The output, the gradient by the input, and all that the layers of the block write."""
        inner: dict[str, Buffer] = {}
        X = shape
        for k, layer in enumerate(self.executed):
            needs = layer.buffers(shape, xp)
            # Nothing is overwritten: dL_dY is needed again at the end.
            inner |= {f"{k}.{name}": Buffer(buffer.shape) for name, buffer in needs.items()}
            shape = needs["Y"].shape
        return {"Y": Buffer(shape), "dL_dX": Buffer(X), **inner}

    def costs(self, shape: Shape, itemsize: int, *, input_gradient: bool = True) -> tuple[list[Cost], list[Cost]]:
        """See `Layer.costs`."""
        forward: list[Cost] = []
        backward: list[Cost] = []
        X = shape
        for k, layer in enumerate(self.executed):
            there, back = layer.costs(shape, itemsize, input_gradient=k > 0 or input_gradient)
            forward += [Cost(f"{k} {cost.name}", cost.flops, cost.bytes) for cost in there]
            backward = [Cost(f"{k} {cost.name}", cost.flops, cost.bytes) for cost in back] + backward
            shape = layer.buffers(shape)["Y"].shape
        forward.append(elementwise.cost("forward sum", shape, itemsize))
        return forward, [*backward, *([elementwise.cost("backward sum", X, itemsize)] if input_gradient else [])]

    def onnx(self, graph: OnnxGraph, arrays: Mapping[str, Array], X: str) -> str:
        """See `Layer.onnx`."""
        Y = X
        for k, layer in enumerate(self.inner):
            Y = layer.onnx(graph, _Part(arrays, k), Y)
        return graph.add("Add", X, Y)

    def forward(
        self,
        X: Array,
        out: Mapping[str, Array] | None = None,
        *,
        training: bool = False,
        rng: Draws | np.random.Generator | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """``Y = X + block(X)``; see `Layer.forward`."""
        out = self._output(X, out)
        saved: dict[str, Array] = {}
        Z = X
        for k, layer in enumerate(self.executed):
            Z, state = layer.forward(Z, _Part(out, k), training=training, rng=rng)
            saved |= {self._name(k, name): array for name, array in state.items()}
        return elementwise.add(X, Z, out["Y"]), saved  # (..., N, n)

    def backward(
        self,
        dL_dY: Array,
        saved: Mapping[str, Array],
        out: Mapping[str, Array] | None = None,
        *,
        input_gradient: bool = True,
    ) -> Array | None:
        """Back through the block, and past it; see `Layer.backward`."""
        gradient: Array | None = dL_dY
        for k in reversed(range(len(self.executed))):
            layer = self.executed[k]
            state = {name: saved[self._name(k, name)] for name in layer.saves}
            part = None if out is None else _Part(out, k)
            gradient = layer.backward(gradient, state, part, input_gradient=k > 0 or input_gradient)
        if gradient is None:
            return None
        out = self._fresh(gradient) if out is None else out
        shared = dL_dY.ndim - gradient.ndim  # all members of a stack read the one X: what passes by is summed over them
        return elementwise.add(dL_dY.sum(axis=0) if shared else dL_dY, gradient, out["dL_dX"])  # (..., N, n)

    def _name(self, k: int, name: str) -> str:
        """What something that layer k of the block saves is called here."""
        if name != "X":
            return f"{k}.{name}"
        return f"{k - 1}.Y" if k else "X"

    def _gathered(self, part: Callable[[Layer], Mapping[str, Any]]) -> Iterator[tuple[str, Any]]:
        """What each layer of the block has, by its position and name."""
        for k, layer in enumerate(self.inner):
            for name, value in part(layer).items():
                yield f"{k}.{name}", value


class _Part(Mapping[str, Array]):
    """The buffers of one layer of a block: those whose names begin with its position."""

    def __init__(self, out: Mapping[str, Array], k: int) -> None:
        self._out, self._begin = out, f"{k}."

    def __getitem__(self, name: str) -> Array:
        return self._out[self._begin + name]

    def __iter__(self) -> Iterator[str]:
        return (name.removeprefix(self._begin) for name in self._out if name.startswith(self._begin))

    def __len__(self) -> int:
        return sum(1 for _ in self)
