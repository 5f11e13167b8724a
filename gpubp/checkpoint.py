"""Model files: safetensors with the architecture as JSON metadata. Nothing in a file is ever executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gpubp.backend import Device, to_host
from gpubp.errors import GpubpError, ModelFileError
from gpubp.files import write_atomically
from gpubp.layers.base import layer_from_config
from gpubp.losses.base import loss_by_name
from gpubp.network import Network

FORMAT, VERSION = "gpubp", 1


def save(network: Network, path: str | Path, *, metadata: dict[str, Any] | None = None) -> None:
    """Write a network to a file: its architecture, parameters and constants, and how far its training is.

    The file is complete or not there: on a failure (a full disk) the file that was there before stays.

    Args:
        network: The network.
        path: The file, by custom with the ending ``.safetensors``.
        metadata: Plain JSON to keep with it; `load_metadata` gives it back.

    Raises:
        GpubpError: The file can't be written.
    """
    from safetensors.numpy import save as to_bytes

    architecture = {
        "version": VERSION,
        "layers": [{"name": type(layer).__name__, "config": layer.config()} for layer in network.layers],
        "loss": {"name": network.loss.name, "config": network.loss.config()},
        "dtype": str(network.dtype),
        "members": network.members,
        "l2": network.l2,
        "matmul_precision": network.matmul_precision,
        "epochs_trained": network.epochs_trained,
        "draws": {"seed": network.draws.seed, "steps": network.draws.steps},
    }
    tensors = {name: np.ascontiguousarray(to_host(array)) for name, array in network.parameters.items()}
    for position, layer in enumerate(network.layers):
        for name, array in layer.constants.items():
            tensors[f"{position}.{name}"] = np.ascontiguousarray(to_host(array))
    texts = {"format": FORMAT, "architecture": json.dumps(architecture), "metadata": json.dumps(metadata or {})}
    write_atomically(Path(path), to_bytes(tensors, metadata=texts))


def load(path: str | Path, *, device: str | Device = "auto") -> Network:
    """Read a network from a file that `save` wrote.

    A further `fit` goes on with the order of the examples, and with what random layers draw, where the training that
    was saved stopped. The optimizer's state is not in the file; `Optimizer.snapshot` has it.

    Raises:
        ModelFileError: The file is missing, damaged, or no gpubp model.
        DeviceError: The device can't be used.
    """
    texts, tensors = _read(Path(path))
    try:
        architecture = json.loads(texts["architecture"])
        if architecture["version"] != VERSION:
            raise ModelFileError(
                f"{path} is of format version {architecture['version']}, this gpubp reads {VERSION}: update gpubp"
            )
        layers = [layer_from_config(entry["name"], entry["config"]) for entry in architecture["layers"]]
        network = Network(
            layers,
            loss_by_name(architecture["loss"]["name"], architecture["loss"]["config"]),
            dtype=architecture["dtype"],
            device=device,
            members=architecture["members"],
            l2=architecture["l2"],
            matmul_precision=architecture.get("matmul_precision", "float32"),  # younger than the format
        )
        network.epochs_trained = _count(architecture.get("epochs_trained", 0))  # younger, too
        if draws := architecture.get("draws"):
            network.set_draws(_count(draws["seed"], 64), _count(draws["steps"]))
    except ModelFileError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"{path}: its architecture can't be read ({error})") from error
    with network.device.activate():
        _fill(network, tensors, Path(path))
    return network


def _count(value: Any, bits: int = 63) -> int:
    if type(value) is not int or not 0 <= value < 2**bits:
        raise ValueError(f"{value!r} is no whole number from 0 to 2^{bits} - 1")
    return value


def _fill(network: Network, tensors: dict[str, Any], path: Path) -> None:
    """Put the file's arrays into a network; every one must have its place, and every parameter its array."""
    xp = network.device.module

    def taken(name: str, shape: tuple[int, ...], lead: tuple[tuple[int, ...], ...] = ((),)) -> Any:
        if name not in tensors:
            raise ModelFileError(f"{path}: the array {name} is missing")
        array = tensors.pop(name)
        if array.shape not in [(*members, *shape) for members in lead]:
            raise ModelFileError(f"{path}: the array {name} has shape {array.shape}, its layer wants {shape}")
        return xp.asarray(array.astype(network.dtype, copy=False))

    for name, view in network.parameters.items():
        view[...] = taken(name, view.shape)
    lead = ((),) if network.members is None else ((), (network.members,))
    for position, layer in enumerate(network.layers):
        shapes = layer.constant_shapes()
        keys = {name: f"{position}.{name}" for name in shapes}
        # A layer that was never adapted has none, one within a block neither.
        there = {key.rpartition(".")[0] for key in keys.values() if key in tensors}
        held = {name: key for name, key in keys.items() if key.rpartition(".")[0] in there}
        if held:
            layer.constants = {name: taken(key, shapes[name], lead) for name, key in held.items()}
    if tensors:
        raise ModelFileError(f"{path}: the array {min(tensors)!r} belongs to no layer")


def load_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata that was given to `save`.

    Raises:
        ModelFileError: The file is missing, damaged, or no gpubp model.
    """
    texts, _ = _read(Path(path), arrays=False)
    try:
        metadata: dict[str, Any] = json.loads(texts["metadata"])
    except (KeyError, ValueError) as error:
        raise ModelFileError(f"{path}: its metadata can't be read ({error})") from error
    return metadata


def _read(path: Path, *, arrays: bool = True) -> tuple[dict[str, str], dict[str, Any]]:
    """All texts and all arrays of a model file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            texts = file.metadata() or {}
            if texts.get("format") != FORMAT:
                raise ModelFileError(f"{path} is a safetensors file, but not a model that gpubp saved")
            names = file.keys() if arrays else []
            tensors = {name: file.get_tensor(name) for name in names}
        for name, array in tensors.items():
            if array.dtype.kind not in "fiub":  # bfloat16, which NumPy has where ml_dtypes was imported
                raise TypeError(f"{name} is {array.dtype}")
        return texts, tensors
    except FileNotFoundError as error:
        raise ModelFileError(f"{path}: there is no such file") from error
    except SafetensorError as error:
        raise ModelFileError(f"{path} is not a complete safetensors file ({error}): train and save it again") from error
    except OSError as error:
        raise GpubpError(f"can't read {path}: {error.strerror or error}") from error
    except (TypeError, AttributeError) as error:  # a number format that NumPy does not have
        raise ModelFileError(f"{path}: an array can't be read ({error})") from error
