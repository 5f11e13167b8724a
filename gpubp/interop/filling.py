"""A network made of layers and of arrays that come from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gpubp.backend import Array, Device, to_host
from gpubp.errors import NotReadyError, SettingError, ShapeError
from gpubp.layers.base import Layer
from gpubp.losses.base import Loss
from gpubp.network import Network

Arrays = Mapping[str, npt.NDArray[Any]]
"""Parameters and constants of one layer, by their names."""


def filled_network(
    layers: Sequence[Layer], arrays: Sequence[Arrays], loss: str | Loss, dtype: Any, device: str | Device
) -> Network:
    """A network of these layers with these values; what a layer is not given stays as it starts, such as zero biases.

    Args:
        layers: The layers.
        arrays: What each of them gets.
        loss: See `Network`.
        dtype: See `Network`; None for float64 where an array is float64, else float32.
        device: See `Network`.

    Raises:
        SettingError: A layer has no parameter or constant of such a name, or an argument is wrong.
        ShapeError: An array does not fit its layer, or the layers do not fit each other.
    """
    wide = any(array.dtype == np.float64 for given in arrays for array in given.values())
    network = Network(layers, loss, dtype=dtype or ("float64" if wide else "float32"), device=device)
    xp = network.device.module
    with network.device.activate():
        for position, (layer, given) in enumerate(zip(layers, arrays, strict=True)):
            shapes = {name: declared.shape for name, declared in layer.declare().items()} | layer.constant_shapes()
            constants = dict(layer.constants)
            for name, array in given.items():
                if name not in shapes:
                    raise SettingError(f"layer {position}, {layer!r}, has no array {name!r}")
                if array.shape != shapes[name]:
                    raise ShapeError(
                        f"layer {position}, {layer!r}: {name} has shape {array.shape}, {shapes[name]} is needed"
                    )
                value = xp.asarray(array.astype(network.dtype))
                if name in layer.parameters:
                    layer.parameters[name][...] = value
                else:
                    constants[name] = value
            layer.constants = constants  # a block gives them to its layers
    return network


def arrays_of(network: Network, layer: Layer, member: int | None) -> dict[str, npt.NDArray[Any]]:
    """Parameters and constants of a layer on the host: those of one member of a stack, or all as they are."""
    values: dict[str, Array] = {**layer.parameters, **layer.constants}
    shapes = {name: declared.shape for name, declared in layer.declare().items()} | layer.constant_shapes()
    own = {name: member is not None and array.ndim > len(shapes[name]) for name, array in values.items()}
    with network.device.activate():
        return {name: to_host(array[member] if own[name] else array) for name, array in values.items()}


def require_member(network: Network, member: int | None) -> int | None:
    """The member that is asked for, after a look that the network has it; None for a single network.

    Raises:
        SettingError: A stack is not told which of its members, or there is no such member.
    """
    members = network.members
    if members is None and member is not None:
        raise SettingError(f"member={member}: this is a single network, not a stack")
    if members is not None and (isinstance(member, bool) or not isinstance(member, int | np.integer)):
        raise SettingError(f"member={member}: this is a stack of {members} networks; say which, 0 to {members - 1}")
    if members is not None and member is not None and not 0 <= member < members:
        raise SettingError(f"member={member}: the stack has the members 0 to {members - 1}")
    return member


def require_adapted(network: Network) -> None:
    """Look that every layer has its constants.

    Raises:
        NotReadyError: One has not.
    """
    for position, layer in enumerate(network.layers):
        if missing := [name for name in layer.constant_shapes() if name not in layer.constants]:
            raise NotReadyError(
                f"layer {position}, {layer!r}, has no {' and '.join(missing)} yet: call adapt(X), or fit the network"
            )
