"""The flat buffers: all parameters of a network in one array, all gradients in another, and views for the layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gpubp.backend import Array, Device, array_module
from gpubp.buffers import Shape

ROW_BYTES = 16
"""On a device each row of a stack's theta begins at a multiple of this: what a thread, or a kernel of a matrix product,
reads at once. So rows may lie apart there, and theta is not contiguous. The padding behind a row is no part of theta,
is zero, and stays so. ``theta.base`` is theta with it, in one piece."""


def zeros_like(theta: Array) -> Array:
    """Zeros of the shape of theta, (P,) or (E, P), whose rows lie as far apart."""
    xp, apart = array_module(theta), theta.strides[0] // theta.itemsize
    if theta.ndim != 2 or apart <= theta.shape[1]:
        return xp.zeros_like(theta)
    return xp.zeros((len(theta), apart), theta.dtype)[:, : theta.shape[1]]


@dataclass(frozen=True)
class Parameter:
    """A trained array, as a layer declares it.

    Attributes:
        shape: Its shape in a single network.
        draw: Gives its initial values from a generator.
        decayed: Whether the L2 penalty applies: to weights, never to biases.
    """

    shape: Shape
    draw: Callable[[np.random.Generator], Array]
    decayed: bool


class Parametrized(Protocol):
    """A layer, as far as this file is concerned."""

    parameters: dict[str, Array]
    gradients: dict[str, Array]
    constants: dict[str, Array]

    def declare(self) -> Mapping[str, Parameter]:
        """The parameters by name."""

    def initial_constants(self) -> Mapping[str, Array]:
        """The constants that are there before any data."""

    def bind(self, kind: str, name: str, view: Array) -> None:
        """Take a view of a parameter or of its gradient."""


class FlatParameters:
    """Parameters and gradients of some layers, each one buffer that the layers hold views of.

    Within a row all decayed parameters (weights) come first, then the rest (biases), so that an L2 penalty concerns
    the first `decayed` columns alone.

    Args:
        layers: The layers to bind; their `parameters` and `gradients` become views, and they get their constants.
        dtype: float32 or float64.
        device: Where the buffers live.
        members: None for a single network, E for a stack.
        rng: Where initial values are drawn from. Member e of a stack draws from the e-th generator spawned from it.

    Attributes:
        theta: (P,), or (E, P) with one member a row.
        dL_dtheta: The same shape.
        decayed: How many leading columns are decayed.
        parameters: ``"0.W"`` and so on, position in `layers` and name, to a view of theta.
        gradients: The same names, to a view of dL_dtheta.
    """

    def __init__(
        self, layers: Sequence[Parametrized], dtype: Any, device: Device, members: int | None, rng: np.random.Generator
    ) -> None:
        declared = [
            (layer, position, name, parameter)
            for position, layer in enumerate(layers)
            for name, parameter in layer.declare().items()
        ]
        lead = () if members is None else (members,)
        generators = [rng] if members is None else rng.spawn(members)
        size = sum(math.prod(parameter.shape) for *_, parameter in declared)
        self.decayed = sum(math.prod(parameter.shape) for *_, parameter in declared if parameter.decayed)
        pack = ROW_BYTES // np.dtype(dtype).itemsize if device.is_cuda and lead else 1
        with device.activate():
            self.theta = device.module.zeros((*lead, -(-size // pack) * pack), dtype)[..., :size]
            self.dL_dtheta = zeros_like(self.theta)
        initial = np.zeros(self.theta.shape, dtype)
        ordered = sorted(declared, key=lambda entry: not entry[3].decayed)  # stable: layer order within each half
        slices: dict[tuple[int, str], slice] = {}
        for _, position, name, parameter in ordered:
            start = max((part.stop for part in slices.values()), default=0)
            slices[position, name] = slice(start, start + math.prod(parameter.shape))
        for row, generator in zip(initial.reshape(len(generators), size), generators, strict=True):
            for _, position, name, parameter in declared:
                row[slices[position, name]] = parameter.draw(generator).ravel()
        with device.activate():
            self.theta[...] = device.module.asarray(initial)
            for layer in layers:
                if constants := layer.initial_constants():
                    layer.constants = {
                        name: device.module.asarray(np.tile(array, (*lead, *[1] * array.ndim)).astype(dtype))
                        for name, array in constants.items()
                    }
        self.parameters = self._views(self.theta, declared, slices, "parameters")
        self.gradients = self._views(self.dL_dtheta, declared, slices, "gradients")
        self._declared, self._slices = declared, slices

    def named_views(self, flat: Array) -> dict[str, Array]:
        """Views of another buffer of theta's shape, under the parameters' names."""
        return self._views(flat, self._declared, self._slices, None)

    @staticmethod
    def _views(flat: Array, declared: Any, slices: Any, attribute: str | None) -> dict[str, Array]:
        views = {}
        for layer, position, name, parameter in declared:
            view = flat[..., slices[position, name]].reshape(flat.shape[:-1] + parameter.shape)
            views[f"{position}.{name}"] = view
            if attribute is not None:
                layer.bind(attribute, name, view)
        return views
