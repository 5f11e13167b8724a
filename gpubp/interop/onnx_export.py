"""Networks as ONNX models, with the preprocessing of a table in front if there is one: `to_onnx`.

Each layer and loss says how it is written, in a method ``onnx``.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpubp.data.encoding import ArrayEncoder, Column, Encoder, TableEncoder
from gpubp.errors import GpubpError, SettingError
from gpubp.files import write_atomically
from gpubp.interop.filling import arrays_of, require_adapted, require_member
from gpubp.layers.base import Layer, all_layers
from gpubp.losses.base import Loss
from gpubp.network import Network
from gpubp.twins import is_own

OPSET, ML_OPSET, IR_VERSION = 17, 3, 8  # of ONNX 1.12, from 2022
_ROWS = "N"
_LARGEST = 2**31 - 2**20  # bytes of one protocol buffer, and some to spare for what is not weights


class Graph:
    """An ONNX graph that grows: every method adds something and returns the name of its value.

    Args:
        onnx: The module.
        dtype: The network's dtype, in which constants are kept.
    """

    def __init__(self, onnx: Any, dtype: np.dtype[Any]) -> None:
        self.onnx, self.dtype = onnx, dtype
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self._nodes: list[Any] = []
        self._constants: list[Any] = []
        self._taken: set[str] = set()
        self._domains: set[str] = {""}

    def element_type(self, dtype: Any) -> Any:
        """ONNX's number for a dtype; for ``str``, that of strings."""
        if dtype is str:
            return self.onnx.TensorProto.STRING
        return self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def input(self, name: str, dtype: Any, shape: list[Any]) -> str:
        """An input of the model."""
        name = self._named(name)
        self.inputs.append(self.onnx.helper.make_tensor_value_info(name, self.element_type(dtype), shape))
        return name

    def output(self, name: str, value: str, dtype: Any, shape: list[Any]) -> str:
        """A value as an output of the model."""
        name = self._named(name)
        self._nodes.append(self.onnx.helper.make_node("Identity", [value], [name]))
        self.outputs.append(self.onnx.helper.make_tensor_value_info(name, self.element_type(dtype), shape))
        return name

    def constant(self, value: Any, dtype: Any = None) -> str:
        """An array or a number, in the network's dtype if none is given."""
        name = self._named("constant")
        array = np.ascontiguousarray(value, dtype=dtype or self.dtype).reshape(np.shape(value))
        self._constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def add(self, operator: str, *values: Any, domain: str = "", **attributes: Any) -> str:
        """The result of an operator; a value that is no name becomes a constant."""
        names = [value if isinstance(value, str) else self.constant(value) for value in values]
        name = self._named(operator)
        self._nodes.append(self.onnx.helper.make_node(operator, names, [name], domain=domain, **attributes))
        self._domains.add(domain)
        return name

    # What several layers and losses are made of.

    def per_row(self, vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """(n,) as it is, and (E, n) as (E, 1, n), so that it broadcasts down the rows."""
        return vector if vector.ndim == 1 else vector[..., None, :]

    def columns(self, X: str, start: int, stop: int) -> str:
        """Neighbouring columns of X (..., N, n)."""
        return self.add("Slice", X, *(self.constant([bound], np.int64) for bound in (start, stop, -1)))

    def one_hot(self, index: str, categories: int) -> str:
        """Indices (..., N, 1) as rows (..., N, categories) of zeros with a 1, or of zeros where it is none of them."""
        return self.add("Cast", self.add("Equal", index, np.arange(categories)), to=self.element_type(self.dtype))

    def log1p_exp(self, Z: str) -> str:
        """``log(1 + exp(Z))``, computed so that no exp overflows."""
        tail = self.add("Log", self.add("Add", self.add("Exp", self.add("Neg", self.add("Abs", Z))), 1.0))
        return self.add("Add", self.add("Relu", Z), tail)

    def model(self) -> Any:
        """All of it as a model that ONNX's checker finds right."""
        helper = self.onnx.helper
        versions = {"": OPSET, "ai.onnx.ml": ML_OPSET}
        model = helper.make_model(
            helper.make_graph(self._nodes, "gpubp", self.inputs, self.outputs, self._constants),
            opset_imports=[helper.make_opsetid(domain, versions[domain]) for domain in sorted(self._domains)],
            ir_version=IR_VERSION,
            producer_name="gpubp",
        )
        self.onnx.checker.check_model(model, full_check=True)
        return model

    def _named(self, wanted: str) -> str:
        """A name that nothing has: the wanted one, with underscores at its end if it is taken."""
        name, count = wanted, 1
        while name in self._taken:
            name, count = (f"{wanted}_" if count == 1 else f"{wanted}_{count}"), count + 1
        self._taken.add(name)
        return name


def to_onnx(
    network: Network, path: str | Path, *, table: Any = None, arrays: Any = None, member: int | None = None
) -> Any:
    """Write a network to an ONNX file that predicts what `Network.predict` does, for any number of rows N.

    Without `table` the input is ``X`` (N, n_in) of the network's dtype; outputs are ``scores`` (N, n_out), those of the
    last layer, and ``probabilities``, if the loss makes some of them; a regressor has ``values`` alone. With `table` or
    `arrays` there is ``predicted`` too: the class (N,) as text, or in place of the values those in the target's own
    units (N, 1), float64. With `table` every raw column is an input (N, 1) of its own name, a number of the network's
    dtype or a string; a missing text is ``""`` or ``"nan"``, and blanks around a text are not taken away, which
    ``gpubp predict`` does. An output gets an underscore at its end where a column has its name. A stack's outputs have
    a leading axis of its members.

    Args:
        network: The network.
        path: The file, by custom with the ending ``.onnx``.
        table: The fitted preprocessing, ``gpubp.load_metadata(model)["table"]`` of a file that ``gpubp train`` wrote.
        arrays: In its place ``gpubp.load_metadata(model)["arrays"]``, where that was trained on arrays.
        member: Which network of a stack; None for all of them.

    Returns:
        The model, an ``onnx.ModelProto``.

    Raises:
        SettingError: A layer or loss can't be written (the message says which, and which can), the preprocessing is
            another network's, or there is no such member.
        NotReadyError: A layer has no statistics yet.
        GpubpError: ``onnx`` is not installed, or the file can't be written.
    """
    try:
        import onnx
        import onnx.checker
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise GpubpError(f"this takes onnx, which can't be imported ({error}): pip install 'gpubp[onnx]'") from error
    if member is not None:
        require_member(network, member)
    require_adapted(network)
    _require_link(network.loss)
    for position, layer in enumerate(network.layers):
        _require_written(position, layer)
    if network.theta.nbytes > _LARGEST:
        raise SettingError(f"{network.theta.nbytes:,} bytes of weights are more than one ONNX file holds (2 GiB)")

    graph, encoder = Graph(onnx, network.dtype), _encoder_of(network, table, arrays)
    if isinstance(encoder, TableEncoder):
        Y = _encoded(graph, encoder)
    else:
        Y = graph.input("X", network.dtype, [_ROWS, network.n_in])
    for layer in network.layers:
        Y = layer.onnx(graph, arrays_of(network, layer, member), Y)
    stacked = network.members is not None and member is None
    shape = [*([network.members] if stacked else []), _ROWS, network.n_out]
    P = network.loss.onnx(graph, Y, network.n_out)
    if encoder is not None:
        _decoded(graph, encoder, P, shape)
    if P != Y:
        graph.output("scores", Y, network.dtype, shape)
    if P != Y or encoder is None:
        graph.output(network.loss.predicts, P, network.dtype, shape)
    model = graph.model()
    write_atomically(Path(path), model.SerializeToString())
    return model


def _is_written(kind: type[Layer]) -> bool:
    return kind.onnx is not Layer.onnx and is_own(kind, "onnx", "forward", "evaluate")


def _require_written(position: int, layer: Layer) -> None:
    for part in all_layers([layer]):
        if not _is_written(type(part)):
            where = f"layer {position}, {part!r}" + ("" if part is layer else f" in the block of {layer!r}")
            known = ", ".join(sorted(name for name, kind in Layer.by_name.items() if _is_written(kind)))
            raise SettingError(
                f"{where}, can't be written as ONNX: it has no method onnx that says how. Supported are {known}"
            )


def _require_link(loss: Loss) -> None:
    if not is_own(type(loss), "onnx", "link"):
        raise SettingError(
            f"the loss {loss!r} makes predictions of scores in a way that can't be written as ONNX: it has no method "
            "onnx that says how"
        )


# Tables, and targets.


def _encoder_of(network: Network, table: Any, arrays: Any) -> Encoder | None:
    if table is not None and arrays is not None:
        raise SettingError("table= or arrays=: a network takes one of them")
    if table is None and arrays is None:
        return None
    encoder = ArrayEncoder.from_json(arrays) if table is None else TableEncoder.from_json(table)
    if (network.n_in, network.n_out) != (encoder.n_in, encoder.n_out):
        raise SettingError(
            f"the {'arrays' if table is None else 'table'}'s {encoder.n_in} inputs and {encoder.n_out} outputs are not "
            f"those of the network, {network.n_in} and {network.n_out}: the description is of the data of another"
        )
    return encoder


def _encoded(graph: Graph, encoder: TableEncoder) -> str:
    """The raw columns as inputs, and what the encoder makes of them: (N, n_in)."""
    names = [  # all of them first, so that nothing else takes a column's name
        graph.input(column.name, str if column.categories is not None else graph.dtype, [_ROWS, 1])
        for column in encoder.columns
    ]
    parts = [_column(graph, column, name) for column, name in zip(encoder.columns, names, strict=True)]
    return graph.add("Concat", *parts, axis=1)


def _column(graph: Graph, column: Column, name: str) -> str:
    if column.categories is None:
        if column.median is None:
            return name
        is_missing = graph.add("IsNaN", name)
        filled = graph.add("Where", is_missing, graph.constant(column.median, graph.dtype), name)
        if not column.indicator:
            return filled
        indicator = graph.add("Cast", is_missing, to=graph.element_type(graph.dtype))
        return graph.add("Concat", filled, indicator, axis=1)
    places: dict[str, int] = {text: place for place, text in enumerate(column.categories)}
    if "" in places:  # a missing text, in every spelling that `gpubp.data.tables.Table.texts` takes for one
        places = {"".join(nan): places[""] for nan in product("nN", "aA", "nN")} | places
    index = graph.add(
        "LabelEncoder",
        name,
        domain="ai.onnx.ml",
        keys_strings=[text.encode() for text in places],
        values_floats=[float(place) for place in places.values()],
        default_float=-1.0,
    )
    index = graph.add("Cast", index, to=graph.element_type(graph.dtype))  # (N, 1)
    return index if column.embedding is not None else graph.one_hot(index, len(column.categories))


def _decoded(graph: Graph, encoder: Encoder, P: str, shape: list[Any]) -> None:
    """The output ``predicted``, from predictions P (..., N, n_out) of the network."""
    if encoder.task == "classification":
        best = graph.add("ArgMax", P, axis=-1, keepdims=0)
        classes = [name.encode() for name in encoder.classes]
        text = graph.add(
            "LabelEncoder", best, domain="ai.onnx.ml", keys_int64s=list(range(len(classes))), values_strings=classes
        )
        graph.output("predicted", text, str, shape[:-1])
        return
    wide = graph.add("Cast", P, to=graph.element_type(np.float64))
    scaled = graph.add("Mul", wide, graph.constant(encoder.target_scale, np.float64))
    restored = graph.add("Add", scaled, graph.constant(encoder.target_mean, np.float64))
    graph.output("predicted", restored, np.float64, shape)
