"""Weights from and to PyTorch: `from_torch`, `to_torch`, `to_torch_module`.

PyTorch computes ``Y = X @ weight.T + bias`` with weight (n_out, n_in), gpubp ``Y = X @ W + b`` with W (n_in, n_out):
so W is the transpose of weight, whichever way it travels. Each layer says which module is its twin: `Layer.torch_twin`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gpubp.backend import Device
from gpubp.errors import GpubpError, SettingError, ShapeError
from gpubp.interop.filling import Arrays, arrays_of, filled_network, require_adapted, require_member
from gpubp.layers.base import Activation, Layer, activation_by_name, all_layers
from gpubp.layers.batch_norm import BatchNorm
from gpubp.layers.dense import Dense
from gpubp.layers.layer_norm import LayerNorm
from gpubp.layers.standardize import Standardize
from gpubp.losses.base import Loss
from gpubp.network import Network
from gpubp.twins import TorchTwin, is_own

_BLOCK = "block"  # what a module of ours calls the layers that it is made of


def from_torch(
    source: Any,
    *,
    activation: str | Activation | None = None,
    loss: str | Loss = "softmax_cross_entropy",
    dtype: Any = None,
    device: str | Device = "auto",
) -> Network:
    """A network with the layers and weights of a PyTorch module.

    The module's output are scores, before any softmax, as the losses here take them; a Linear without bias gets one of
    zeros.

    Args:
        source: An ``nn.Sequential``, nested ones included, or one module; or a ``state_dict`` of Linear, LayerNorm and
            BatchNorm1d modules, as tensors or arrays (then PyTorch is not needed). Its modules come in the order of
            their numbers where only numbers tell them apart (``"net.2.weight"``, ``"net.10.weight"``), else in the
            dict's.
        activation: What comes between the modules of a state_dict, which does not tell: a name, or an activation layer
            to take copies of. It goes between all Linear modules; where there is a normalisation, to where a number is
            left out, as ``nn.Sequential`` has them. Epsilon and momentum are taken for PyTorch's defaults, which are
            ours.
        loss: A loss or its name.
        dtype: ``"float32"`` or ``"float64"``; None for the module's own. Half precision becomes float32.
        device: Where the network lives.

    Raises:
        SettingError: A module can't be converted (the message says which, and which can), or ends with what is part
            of the loss; the state_dict holds other arrays, or the activation or its place is missing.
        ShapeError: Modules do not fit each other.
    """
    if isinstance(source, Mapping):
        layers, arrays = _of_state_dict(source, activation)
    elif activation is not None:
        raise SettingError("activation= is for a state_dict; a module says its own activations")
    else:
        pairs = [_converted(path, module) for path, module in _flattened("", source)]
        layers, arrays = [layer for layer, _ in pairs], [given for _, given in pairs]
    network = filled_network(layers, arrays, loss, dtype, device)
    if (last := type(layers[-1]).__name__) == network.loss.link_layer:
        raise SettingError(
            f"the module ends with a {last}, and {network.loss.name} takes what comes before it: leave the {last} out"
        )
    return network


def to_torch(network: Network, *, member: int | None = None) -> dict[str, Any]:
    """The weights as a ``state_dict``: copies, as CPU tensors under the names that ``nn.Sequential`` gives them.

    A `Standardize` layer's arrays are there as ``mean`` and ``scale``, the buffers of the module that `to_torch_module`
    makes of it; a `Residual`'s layers are those of its ``block``. The loss's link (softmax, sigmoid) is not part of it.

    Args:
        network: The network.
        member: Which network of a stack.

    Raises:
        SettingError: A layer has no such module, or a stack is not told which member.
        NotReadyError: A layer has no statistics yet.
        GpubpError: PyTorch is not installed.
    """
    torch, member = _torch(), require_member(network, member)
    require_adapted(network)
    state = {}
    for position, layer in enumerate(network.layers):
        _require_twin(position, layer)
        for name, array in _entries(layer, arrays_of(network, layer, member)):
            state[f"{position}.{name}"] = torch.tensor(np.ascontiguousarray(array))
    return state


def to_torch_module(network: Network, *, member: int | None = None) -> Any:
    """An ``nn.Sequential`` with the network's layers and weights, in ``eval`` mode; its output are scores.

    Args and errors as in `to_torch`.
    """
    torch, state = _torch(), to_torch(network, member=member)
    with torch.device("meta"):  # no memory, and nothing drawn from PyTorch's generator
        sequential = torch.nn.Sequential(*map(_module_of, network.layers))
    sequential.load_state_dict(state, assign=True)
    return sequential.eval()


# From PyTorch.


def _flattened(path: str, module: Any) -> Iterator[tuple[str, Any]]:
    """The modules within nested ``nn.Sequential``, each with its path; one that stands there twice comes twice."""
    if _kind(module) == "Sequential":
        _require_no_hooks(path, module)
        for name, child in module._modules.items():  # children() would leave out what stands there twice
            yield from _flattened(f"{path}.{name}" if path else name, child)
    else:
        yield path, module


def _kind(module: Any) -> str | None:
    """The name of the PyTorch module that computes what this one does; None for a ``forward`` of somebody's own."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.nn.modules.") or kind.__module__ == __name__:
            return kind.__name__ if getattr(kind, "forward", None) is getattr(type(module), "forward", None) else None
    return None


def _converted(path: str, module: Any) -> tuple[Layer, Arrays]:
    name = _kind(module)
    if name == "LogSoftmax":
        raise SettingError(
            f"{_at(path, module)} can't be converted: the loss softmax_cross_entropy takes what comes before it, so "
            "leave it out"
        )
    modules = _modules()
    if name is None or name not in modules:
        why = ", which has a forward of its own," if name is None and hasattr(module, "forward") else ""
        raise SettingError(
            f"{_at(path, module)}{why} can't be converted. Supported are nn.Sequential of {', '.join(_supported())}; "
            "or give a state_dict() of Linear modules alone, with activation="
        )
    _require_no_hooks(path, module)
    kind, twin = modules[name]
    for needed, holds in twin.needs:
        if not holds(module):
            raise SettingError(f"{_at(path, module)} can't be converted: {needed} is needed")
    settings = {mine: getattr(module, theirs) for mine, theirs in twin.settings.items()} | {**twin.config(module)}
    given = {mine: getattr(module, theirs) for mine, theirs in twin.arrays.items()}
    arrays = {mine: _as_ours(value) for mine, value in given.items() if value is not None}
    if hasattr(module, _BLOCK):
        inner = [_converted(*pair) for pair in _flattened(f"{path}.{_BLOCK}", getattr(module, _BLOCK))]
        settings["layers"] = [layer for layer, _ in inner]
        arrays |= {f"{k}.{name}": array for k, (_, given) in enumerate(inner) for name, array in given.items()}
    try:
        return kind(**settings), arrays
    except (SettingError, ShapeError) as error:
        raise type(error)(f"{_at(path, module)} can't be converted: {error}") from None


def _of_state_dict(source: Mapping[str, Any], activation: str | Activation | None) -> tuple[list[Layer], list[Arrays]]:
    for key in map(str, source):
        if block := re.match(rf"(.*?\d\.{_BLOCK})\.\d", key):
            raise SettingError(
                f"the state_dict has a {block[1]!r}, and does not tell whether the input of that is added "
                "to its output: give from_torch the module itself"
            )
    groups: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for key, value in source.items():
        path, _, name = str(key).rpartition(".")
        groups.setdefault(path, {})[name] = _as_ours(value)
    if len({re.sub(r"\d+", "", path).strip(".") for path in groups}) == 1:  # a file may have sorted "10" before "2"
        groups = {path: groups[path] for path in sorted(groups, key=_numbers)}
    pairs = [_of_group(path, group) for path, group in groups.items()]
    layers: list[Layer] = []
    arrays: list[Arrays] = []
    places = _activation_places([type(layer).__name__ for layer, _ in pairs], list(groups))
    for position, (layer, given) in enumerate(pairs):
        if position in places:
            layers.append(_activation(activation))
            arrays.append({})
        layers.append(layer)
        arrays.append(given)
    return layers, arrays


def _activation_places(kinds: list[str], paths: list[str]) -> set[int]:
    """Before which of the layers an activation comes.

    Raises:
        SettingError: A normalisation makes it ambiguous.
    """
    norm = next((kind for kind in kinds if kind in ("LayerNorm", "BatchNorm")), None)
    if norm is None:
        return {position for position, kind in enumerate(kinds) if kind == "Dense" and "Dense" in kinds[:position]}
    numbers = [_numbers(path) for path in paths]
    if len({re.sub(r"\d+$", "", path) for path in paths}) > 1:
        raise SettingError(
            f"the state_dict has a {norm}, and {', '.join(map(repr, paths))} do not tell on which side of it an "
            "activation stands: give from_torch the module itself"
        )
    return {position + 1 for position, (one, next_one) in enumerate(pairwise(numbers)) if next_one[-1] - one[-1] > 1}


def _of_group(path: str, group: dict[str, npt.NDArray[Any]]) -> tuple[Layer, Arrays]:
    """The layer that arrays of these names and shapes belong to."""
    names, axes = set(group), {array.ndim for name, array in group.items() if name != "num_batches_tracked"}
    statistics, affine = {"running_mean", "running_var"}, {"weight", "bias"}
    if "weight" in names <= affine and group["weight"].ndim == 2:
        layer: Layer = Dense(*group["weight"].shape)
    elif "weight" in names <= affine and axes == {1}:
        layer = LayerNorm(len(group["weight"]))
    elif statistics <= names <= statistics | affine | {"num_batches_tracked"} and axes == {1}:
        layer = BatchNorm(len(group["running_mean"]))
    elif names == {"mean", "scale"} and axes == {1}:
        layer = Standardize(len(group["mean"]))
    else:
        raise SettingError(
            f"the state_dict's {path!r} with {', '.join(sorted(group))} is no Linear, LayerNorm or BatchNorm: only "
            "those can be told from arrays alone. Give from_torch the module itself; supported are "
            f"{', '.join(_supported())}"
        )
    return layer, {mine: group[theirs] for mine, theirs in _twin(layer).arrays.items() if theirs in names}


def _numbers(path: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path)]


def _activation(activation: str | Activation | None) -> Activation:
    if activation is None:
        raise SettingError(
            "a state_dict does not say which activation comes between its Linear modules: add activation=, such as "
            "activation='relu', or give from_torch the module itself"
        )
    if isinstance(activation, Activation):
        return type(activation)(**activation.config())
    return activation_by_name(activation)


def _as_ours(value: Any) -> npt.NDArray[Any]:
    """A tensor or an array as an array of gpubp's orientation, float32 or float64."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if value.dtype.itemsize < 4 else value  # NumPy has no bfloat16
    array = np.asarray(value)
    return (array if array.dtype == np.float64 else array.astype(np.float32)).T  # (n_out, n_in) -> (n_in, n_out)


def _at(path: str, module: Any) -> str:
    if not hasattr(module, "forward"):
        return f"an object of type {type(module).__name__}"
    described = " ".join(str(module).split())
    described = described if len(described) <= 80 else type(module).__name__
    return f"module {path}, {described}" if path else described


def _require_no_hooks(path: str, module: Any) -> None:
    if module._forward_hooks or module._forward_pre_hooks:
        raise SettingError(f"{_at(path, module)} has forward hooks, which can't be converted: remove them")


def _modules() -> dict[str, tuple[type[Layer], TorchTwin]]:
    """The layer of each module, by the module's name; the first one where several have it."""
    known: dict[str, tuple[type[Layer], TorchTwin]] = {}
    for kind in Layer.by_name.values():
        if "torch_twin" in vars(kind) and isinstance(twin := kind.torch_twin, TorchTwin):
            known.setdefault(twin.module, (kind, twin))
    return known


def _supported() -> list[str]:
    return sorted(name for name, (_, twin) in _modules().items() if twin.forward is None)


# To PyTorch.


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise GpubpError(f"this takes PyTorch, which can't be imported ({error}): pip install torch") from error
    return torch


def _has_twin(kind: type[Layer]) -> bool:
    return isinstance(kind.torch_twin, TorchTwin) and is_own(kind, "torch_twin", "forward", "evaluate")


def _twin(layer: Layer) -> TorchTwin:
    twin = layer.torch_twin
    assert isinstance(twin, TorchTwin)
    return twin


def _require_twin(position: int, layer: Layer) -> None:
    for part in all_layers([layer]):
        if not _has_twin(type(part)):
            where = f"layer {position}, {part!r}" + ("" if part is layer else f" in the block of {layer!r}")
            known = ", ".join(sorted(name for name, kind in Layer.by_name.items() if _has_twin(kind)))
            why = part.torch_twin if isinstance(part.torch_twin, str) else Layer.torch_twin
            raise SettingError(f"{where}, can't be converted: {why}. Supported are {known}")


def _entries(layer: Layer, arrays: Arrays) -> Iterator[tuple[str, Any]]:
    """What a module's state_dict has, by name."""
    twin = _twin(layer)
    for mine, theirs in twin.arrays.items():
        yield theirs, arrays[mine].T
    yield from twin.counters.items()
    for k, inner in enumerate(layer.inner):
        own = {name.removeprefix(f"{k}."): array for name, array in arrays.items() if name.startswith(f"{k}.")}
        for name, array in _entries(inner, own):
            yield f"{_BLOCK}.{k}.{name}", array


def _module_of(layer: Layer) -> Any:
    twin, torch = _twin(layer), _torch()
    kind: Any = type(layer)
    if twin.forward is not None:
        return _own_module(kind)(layer)
    settings = {theirs: getattr(layer, mine) for mine, theirs in twin.settings.items()}
    return getattr(torch.nn, twin.module)(**settings, **twin.arguments(layer))


@functools.cache
def _own_module(kind: Any) -> Any:
    """The class of modules for a layer that ``torch.nn`` has none for; see `TorchTwin.forward`."""
    torch, twin = _torch(), kind.torch_twin

    class Own(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, layer: Layer) -> None:
            super().__init__()
            parameters = layer.declare()
            for mine, theirs in twin.settings.items():
                setattr(self, theirs, getattr(layer, mine))
            for mine, theirs in twin.arrays.items():
                shape = parameters[mine].shape if mine in parameters else layer.constant_shapes()[mine]
                empty = torch.empty(shape[::-1])
                if mine in parameters:
                    self.register_parameter(theirs, torch.nn.Parameter(empty))
                else:
                    self.register_buffer(theirs, empty)
            if layer.inner:
                self.block = torch.nn.Sequential(*map(_module_of, layer.inner))

        def forward(self, X: Any) -> Any:
            """X (..., n)."""
            return twin.forward(self, X)

    Own.__name__ = Own.__qualname__ = twin.module
    return Own
