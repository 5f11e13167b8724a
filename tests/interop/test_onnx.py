"""What is written as ONNX predicts in onnxruntime what the network does."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest
from oracles import EXAMPLES, around, randomized, require_every_layer
from outside import required

import gpubp
from gpubp.data.encoding import Column, TableEncoder
from gpubp.data.tables import Table
from gpubp.errors import GpubpError, ModelFileError, NotReadyError, SettingError
from gpubp.interop import onnx_export
from gpubp.layers.base import Activation
from gpubp.losses.base import Loss

onnx = required("onnx", "GPUBP_REQUIRE_ONNX")
onnxruntime = required("onnxruntime", "GPUBP_REQUIRE_ONNX")

TOLERANCE = {"float32": {"rtol": 1e-5, "atol": 1e-5}, "float64": {"rtol": 1e-12, "atol": 1e-12}}


def session_of(path):
    """The model as onnxruntime runs it, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(path, **inputs):
    """The outputs by name."""
    session = session_of(path)
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, inputs), strict=True))


def inputs_of(network, N=7, seed=2):
    """Usual rows and some that are far out."""
    X = np.random.default_rng(seed).normal(size=(N, network.n_in))
    X[: N // 3] *= 300
    return X.astype(network.dtype)


@pytest.mark.parametrize(("members", "member"), [(None, None), (3, None), (3, 2)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "position"), EXAMPLES)
def test_every_layer(name, position, dtype, members, member, tmp_path):
    layers, make = around(name, position, 4, 2)
    network = randomized(gpubp.Network(layers, "squared_error", dtype=dtype, members=members, device="cpu"))
    model = gpubp.to_onnx(network, tmp_path / "m.onnx", member=member)
    X = make(7).astype(dtype)
    if not layers[0].index_columns:
        X[:2] *= 300  # far out
    (values,) = run(tmp_path / "m.onnx", X=X).values()
    expected = network.predict(X) if member is None else network.predict(X)[member]
    assert values.dtype == dtype
    tolerance = TOLERANCE["float32"] if name == "GELU" else TOLERANCE[dtype]
    np.testing.assert_allclose(values, expected, **tolerance)
    assert onnx.load(tmp_path / "m.onnx") == model
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)


def test_nothing_is_forgotten():
    """`test_every_layer` is about every layer that there is."""
    require_every_layer({name for name, _ in EXAMPLES})


@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", [loss for kind in Loss.by_name.values() for loss in kind.examples()], ids=repr)
def test_every_loss(loss, dtype, members, tmp_path):
    settings = {"loss": loss, "dtype": dtype, "members": members, "device": "cpu", "standardize": True}
    network = randomized(gpubp.mlp([4, 6, 4], activation="tanh", **settings))
    gpubp.to_onnx(network, tmp_path / "m.onnx")
    X = inputs_of(network)
    outputs = run(tmp_path / "m.onnx", X=X)
    if members:
        X = np.broadcast_to(X, (members, *X.shape))  # each standardises with statistics of its own
    if type(loss).link is Loss.link:
        assert list(outputs) == ["values"]
    else:
        assert list(outputs) == ["scores", "probabilities" if "entropy" in loss.name else "values"]
        np.testing.assert_allclose(outputs["scores"], network.forward(X), **TOLERANCE[dtype])
    np.testing.assert_allclose(list(outputs.values())[-1], network.predict(X), **TOLERANCE[dtype])


@pytest.mark.parametrize("N", [0, 1, 7, 33, 1025])
def test_any_number_of_rows(N, tmp_path):
    network = gpubp.mlp([5, 4, 3], device="cpu")
    model = gpubp.to_onnx(network, str(tmp_path / "m.onnx"))
    X = inputs_of(network, N)
    np.testing.assert_allclose(run(tmp_path / "m.onnx", X=X)["probabilities"], network.predict(X), atol=1e-5)
    assert [axis.dim_param for axis in model.graph.input[0].type.tensor_type.shape.dim] == ["N", ""]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert (model.ir_version, model.producer_name) == (8, "gpubp")


def test_a_network_on_a_device(fake_cupy, tmp_path):
    network = randomized(gpubp.mlp([5, 4, 3], device="cpu", standardize=True))
    gpubp.to_onnx(network.copy(device="cuda"), tmp_path / "m.onnx")
    gpubp.to_onnx(network, tmp_path / "n.onnx")
    assert (tmp_path / "m.onnx").read_bytes() == (tmp_path / "n.onnx").read_bytes()


# Tables.

NAMES = ["scores", "predicted", "X", "constant", "Add", "a b/c,é", "probabilities"]


def trained(task, dtype="float32", members=None):
    """A table of numbers and texts, its encoder, and a network for it."""
    rng = np.random.default_rng(3)
    texts = [["red", "dark blue", "é", "7", "7.0"], ["x", "y"]]
    columns = {name: [f"{value:.6f}" for value in rng.normal(100, 30, 40)] for name in NAMES[:5]}
    for name, words in zip(NAMES[5:], texts, strict=True):
        columns[name] = [words[i % len(words)] for i in range(40)]
    classes = ["no", "yes", "ü, \n'"]
    columns["T"] = [classes[i % 3] for i in range(40)] if task == "classification" else columns["X"][::-1]
    table = Table("t", columns, range(2, 42))
    encoder = TableEncoder.fit(table, "T", task)
    encoder = encoder.with_target_scale(encoder.targets(table))
    widths = [encoder.n_in, 6, encoder.n_out]
    network = gpubp.mlp(widths, loss=encoder.loss, standardize=True, dtype=dtype, members=members, device="cpu", rng=4)
    network.adapt(encoder.inputs(table))
    network.theta[...] += np.random.default_rng(6).normal(size=network.theta.shape)
    return table, encoder, network


def raw(table, encoder, dtype):
    """The raw columns as onnxruntime takes them."""
    return {
        column.name: np.array(table.columns[column.name], object if column.categories else dtype)[:, None]
        for column in encoder.columns
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_raw_rows_of_a_classifier(dtype, tmp_path):
    table, encoder, network = trained("classification", dtype)
    gpubp.to_onnx(network, tmp_path / "m.onnx", table=encoder.to_json())
    outputs = run(tmp_path / "m.onnx", **raw(table, encoder, dtype))
    assert list(outputs) == ["predicted_", "scores_", "probabilities_"]  # columns have the names without underscores
    P = network.predict(encoder.inputs(table))
    np.testing.assert_allclose(outputs["probabilities_"], P, **TOLERANCE[dtype])
    np.testing.assert_allclose(outputs["scores_"], network.forward(encoder.inputs(table)), **TOLERANCE[dtype])
    assert outputs["predicted_"].tolist() == [encoder.classes[best] for best in P.argmax(axis=1)]
    assert len(set(outputs["predicted_"])) > 1


@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_raw_rows_of_a_regressor(dtype, members, tmp_path):
    table, encoder, network = trained("regression", dtype, members)
    gpubp.to_onnx(network, tmp_path / "m.onnx", table=encoder.to_json())
    (predicted,) = run(tmp_path / "m.onnx", **raw(table, encoder, dtype)).values()
    Y = network.predict(encoder.inputs(table))
    expected = encoder.restore_targets(Y.reshape(-1, 1)).reshape(Y.shape)
    assert (predicted.shape, predicted.dtype) == (Y.shape, "float64")
    tolerance = TOLERANCE[dtype]["rtol"]
    np.testing.assert_allclose(predicted, expected, rtol=tolerance, atol=tolerance * encoder.target_scale)


def test_missing_numbers_are_the_median_with_an_indicator(tmp_path):
    rng = np.random.default_rng(0)
    columns = {name: [f"{x:.3f}" for x in rng.normal(size=40)] for name in "abT"}
    columns["a"][3] = columns["a"][7] = ""
    table = Table("t", columns, range(2, 42))
    encoder = TableEncoder.fit(table, "T", "regression", missing="median").with_medians(table, np.arange(40))
    network = gpubp.mlp([encoder.n_in, 5, 1], loss="squared_error", device="cpu", rng=4)
    gpubp.to_onnx(network, tmp_path / "m.onnx", table=encoder.to_json())
    given = {name: np.array([float(x or "nan") for x in columns[name]], "f4")[:, None] for name in "ab"}
    (predicted,) = run(tmp_path / "m.onnx", **given).values()
    X = encoder.inputs(table)
    assert X.shape == (40, 3)
    np.testing.assert_allclose(predicted, encoder.restore_targets(network.predict(X))[:, None], rtol=1e-5, atol=1e-5)


def test_a_text_that_was_not_in_the_training_data_gives_zeros(tmp_path):
    _, encoder, network = trained("classification")
    gpubp.to_onnx(network, tmp_path / "m.onnx", table=encoder.to_json())
    row = {column.name: np.array([[1.0]], "f4") for column in encoder.columns if column.categories is None}
    row |= {column.name: np.array([["?"]], object) for column in encoder.columns if column.categories}
    X = np.r_[np.ones(5), np.zeros(7)][None]
    np.testing.assert_allclose(run(tmp_path / "m.onnx", **row)["scores_"], network.forward(X), atol=1e-5)


def test_all_that_an_encoder_knows_is_written():
    """A field that is new here is one that `to_onnx` may have to write."""
    fields = ["name", "categories", "median", "indicator", "embedding"]
    assert [field.name for field in dataclasses.fields(Column)] == fields
    known = {"columns", "target", "task", "classes", "numeric_classes", "target_mean", "target_scale"}
    assert {field.name for field in dataclasses.fields(TableEncoder)} == known


# What is refused.


class Cube(Activation, register=False):
    """A layer of the user's own."""

    def evaluate(self, xp, X, out, scratch):
        out[...] = X**3


def test_layers_that_can_not_be_written(tmp_path):
    network = gpubp.Network([gpubp.Dense(2, 3), Cube(), gpubp.Dense(3, 2)], "squared_error")
    said = r"layer 1, Cube\(\), can't be written as ONNX: it has no method onnx .* Supported are BatchNorm, .*Tanh"
    with pytest.raises(SettingError, match=said):
        gpubp.to_onnx(network, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


class Capped(gpubp.ReLU, register=False):
    """Other maths than its parent's, of which the parent's method says nothing."""

    def evaluate(self, xp, X, out, scratch):
        xp.clip(X, 0, 6, out=out)


class CappedWithForm(Capped, register=False):
    """And one that says it."""

    def onnx(self, graph, arrays, X):
        return graph.add("Min", graph.add("Relu", X), 6.0)


class MyDense(gpubp.Dense, register=False):
    """The maths of its parent."""


def test_layers_of_the_users_own(tmp_path):
    def network(layer):
        return randomized(gpubp.Network([MyDense(2, 9), layer, gpubp.Dense(9, 3)], "squared_error"))

    with pytest.raises(SettingError, match=r"layer 1, Capped\(\), can't be written as ONNX: it has no method onnx"):
        gpubp.to_onnx(network(Capped()), tmp_path / "m.onnx")
    net = network(CappedWithForm())
    gpubp.to_onnx(net, tmp_path / "m.onnx")
    X = inputs_of(net)
    np.testing.assert_allclose(run(tmp_path / "m.onnx", X=X)["values"], net.predict(X), **TOLERANCE["float32"])


def test_losses_that_can_not_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(Loss, "by_name", dict(Loss.by_name))

    class Odd(gpubp.SquaredError):
        name = "odd"

        def link(self, Y):
            return Y**2

    with pytest.raises(SettingError, match=r"the loss Odd\(.*\) .* it has no method onnx that says how"):
        gpubp.to_onnx(gpubp.mlp([2, 3], loss=Odd()), tmp_path / "m.onnx")


def test_wrong_arguments(tmp_path, monkeypatch):
    _, encoder, network = trained("classification")
    path = tmp_path / "m.onnx"
    path.write_text("what was there before")
    with pytest.raises(NotReadyError, match=r"layer 0, Standardize\(n=2\), has no mean and scale yet"):
        gpubp.to_onnx(gpubp.mlp([2, 3], standardize=True), path)
    with pytest.raises(SettingError, match="member=0: this is a single network"):
        gpubp.to_onnx(network, path, member=0)
    for member in (3, -1):
        with pytest.raises(SettingError, match=f"member={member}: the stack has the members 0 to 2"):
            gpubp.to_onnx(gpubp.mlp([2, 3], members=3), path, member=member)
    with pytest.raises(SettingError, match="the table.s 12 inputs and 3 outputs are not those of the network, 2 and 3"):
        gpubp.to_onnx(gpubp.mlp([2, 3]), path, table=encoder.to_json())
    with pytest.raises(
        SettingError, match="the table.s 12 inputs and 3 outputs are not those of the network, 12 and 2"
    ):
        gpubp.to_onnx(gpubp.mlp([12, 2]), path, table=encoder.to_json())
    with pytest.raises(ModelFileError, match="damaged"):
        gpubp.to_onnx(network, path, table={})
    monkeypatch.setattr(onnx_export, "_LARGEST", network.theta.nbytes - 1)
    with pytest.raises(SettingError, match="396 bytes of weights are more than one ONNX file holds"):
        gpubp.to_onnx(network, path)
    monkeypatch.setattr(onnx_export, "_LARGEST", network.theta.nbytes)
    with pytest.raises(GpubpError, match="can't write"):
        gpubp.to_onnx(network, tmp_path / "nowhere" / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(GpubpError, match=r"this takes onnx, .*: pip install 'gpubp\[onnx\]'"):
        gpubp.to_onnx(network, path)
    assert path.read_text() == "what was there before"
    assert list(tmp_path.iterdir()) == [path]
