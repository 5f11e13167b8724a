"""How layers go together: widths that chain, and neighbours that run as one."""

from __future__ import annotations

from collections.abc import Sequence

from gpubp.errors import SettingError, ShapeError
from gpubp.layers.base import Activation, Layer, all_layers
from gpubp.layers.dense import Dense
from gpubp.layers.dense_activation import DenseActivation


def chained_widths(layers: Sequence[Layer]) -> tuple[int, int]:
    """The widths of the input and the output of layers that fit each other.

    Raises:
        ShapeError: Neighbouring layers do not fit; the message names them and their widths.
        SettingError: A layer stands twice in the list, none has parameters, or one changes the indices of the next.
    """
    every = [id(layer) for layer in all_layers(layers)]
    if len(set(every)) < len(every):
        raise SettingError("the same layer object stands twice in the list: make a second one")
    n_in = next((layer.input_width for layer in layers if layer.input_width is not None), None)
    if n_in is None or not any(layer.declare() for layer in layers):
        raise SettingError(f"the layers {list(layers)!r} have no parameters to train: a Dense layer is missing")
    width = n_in
    for position, layer in enumerate(layers):
        try:
            width = layer.output_width(width)
        except ShapeError as error:
            before = f"layer {position - 1}, {layers[position - 1]!r}, gives width {width}" if position else "the input"
            raise ShapeError(f"layers do not chain: {before}, but layer {position}: {error}") from None
        changed = set(layer.index_columns) - set(layers[position - 1].kept_columns) if position else set()
        if changed:
            columns = tuple(sorted(changed))
            raise SettingError(
                f"layer {position}, {layer!r}, takes the columns {columns} as indices, but layer {position - 1}, "
                f"{layers[position - 1]!r}, changes them. Let it be the first, or after Standardize(n, skip={columns})"
            )
    return n_in, width


def fused(layers: Sequence[Layer]) -> list[Layer]:
    """The layers as they run: each `Dense` with the activation directly after it as one `DenseActivation`.

    A subclass of `Dense` that computes something else stays as it is.
    """
    executed: list[Layer] = []
    for layer in layers:
        layer.fuse(fused)
        before = executed[-1] if executed else None
        if isinstance(layer, Activation) and isinstance(before, Dense) and _is_plain(before):
            executed[-1] = DenseActivation(before, layer)
        else:
            executed.append(layer)
    return executed


def _is_plain(layer: Dense) -> bool:
    kind = type(layer)
    return kind.forward is Dense.forward and kind.backward is Dense.backward
