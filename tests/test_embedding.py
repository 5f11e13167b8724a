"""Embeddings in networks: a dense layer on one-hot columns by another way, on every executor."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from cases import lead

import gpubp
from gpubp.backend import to_host
from gpubp.errors import DataError, SettingError, ShapeError

TABLES = {1: (4, 3), 3: (30, 2)}


def data(N=60, members=None, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(*lead(members), N, 5))
    for column, (categories, _) in TABLES.items():
        X[..., column] = rng.integers(-1, categories, X.shape[:-1])
    return X, rng.normal(size=(*lead(members), N, 2))


def network(**settings):
    settings = {"loss": "squared_error", "dtype": "float64", "device": "cpu", "rng": 3, "l2": 0.01, **settings}
    return gpubp.mlp([5, 6, 2], embeddings=TABLES, standardize=True, activation="tanh", **settings)


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "stand-in":
        request.getfixturevalue("fake_cupy")
    return "cuda:0"


def fitted(net, **settings):
    X, T = data()
    settings = {"optimizer": gpubp.Adam(0.02), "epochs": 3, "batch_size": 16, "progress": False, **settings}
    history = gpubp.fit(net, X, T, **settings)
    return np.concatenate([to_host(net.theta).ravel(), np.ravel(history["loss"])])


def test_training_is_that_of_a_dense_layer_on_one_hot_columns():
    X, T = data()
    net = gpubp.mlp([5, 6, 2], embeddings=TABLES, loss="squared_error", dtype="float64", device="cpu", rng=1)
    one_hot = [(X[:, column, None] == np.arange(categories)) * 1.0 for column, (categories, _) in TABLES.items()]
    wide = np.concatenate([X[:, [0, 2, 4]], *one_hot], axis=1)
    first = gpubp.Dense(wide.shape[1], 8)
    plain = gpubp.Network([first, *(type(layer)(**layer.config()) for layer in net.layers[1:])], "squared_error",
                          dtype="float64", device="cpu")  # fmt: skip
    for name, array in net.parameters.items():
        if not name.startswith("0."):
            plain.parameters[name][...] = array
    W = plain.parameters["0.W"]
    W[...] = 0
    W[:3, :3] = np.eye(3)  # what passes
    is_table = np.zeros_like(W)
    is_table[3:7, 3:6] = is_table[7:, 6:] = 1
    W[3:7, 3:6], W[7:, 6:] = net.parameters["0.W1"], net.parameters["0.W3"]
    optimizers = gpubp.SGD(0.1), gpubp.SGD(0.1)
    for _ in range(20):
        for n, given, optimizer in ((net, X, optimizers[0]), (plain, wide, optimizers[1])):
            n.loss_and_gradients(given, T)
            if n is plain:  # what is no table stays as it is
                view = n.named_gradients(n.dL_dtheta)
                view["0.W"][...] *= is_table
                view["0.b"][...] = 0
            optimizer.update(n.theta, n.dL_dtheta, n.weights_size)
    np.testing.assert_allclose(W[3:7, 3:6], net.parameters["0.W1"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(W[7:, 6:], net.parameters["0.W3"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(plain.predict(wide), net.predict(X), rtol=0, atol=1e-12)


@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("own", [False, True])
def test_gradients_agree_with_differences(members, own):
    X, T = data(20, members if own else None)
    net = network(members=members)
    net.adapt(X)
    report = gpubp.check_gradients(net, X, T)
    assert report.ok, report
    assert {"1.W1", "1.W3"} <= set(net.parameters)
    assert {check.name for check in report.checks} == set(net.parameters)


def test_members_of_a_stack_train_as_alone():
    stack, (X, T) = network(members=3), data()
    alone = [network() for _ in range(3)]
    for e, net in enumerate(alone):
        net.theta[...] = stack.theta[e]
        fitted(net)
    gpubp.fit(stack, X, T, optimizer=gpubp.Adam(0.02), epochs=3, batch_size=16, progress=False)
    for e, net in enumerate(alone):
        np.testing.assert_allclose(stack.theta[e], net.theta, rtol=0, atol=1e-12)


def test_recorded_steps_are_the_steps(cpu_kernels):
    nets = [network() for _ in range(2)]
    nets[1].plan = gpubp.StepPlan(nets[1], 16)
    nets[1].plan._recorded_steps = lambda *_: 0
    runs = [fitted(net) for net in nets]
    np.testing.assert_allclose(*runs, rtol=0, atol=1e-12)
    net, (X, T) = network(), data()
    net.adapt(X)
    plan = gpubp.StepPlan(net, 10)
    plan.steps(net.inputs(X), net.targets(T, X), None, np.arange(60).reshape(6, 10), gpubp.SGD(0.05))
    assert [recording is None for _, recording in plan._recordings.values()] == [False]


@pytest.mark.parametrize("members", [None, 2])
def test_a_device_trains_to_the_weights_of_the_cpu(device, members):
    nets = [network(members=members)]
    nets.append(nets[0].copy(device=device))
    np.testing.assert_allclose(*map(fitted, nets), rtol=0, atol=1e-11)
    assert nets[1].plan.why_not_captured is None
    X, _ = data(9, seed=4)
    np.testing.assert_allclose(to_host(nets[1].predict(X)), nets[0].predict(X), atol=1e-11)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.int64])
def test_examples_of_other_dtypes_hold_indices_too(device, dtype):
    X = np.stack([np.arange(40) % 5, np.arange(40) % 3], axis=1)
    T = np.arange(40.0)[:, None] % 4
    nets = [gpubp.mlp([2, 4, 1], embeddings={0: (5, 2)}, loss="squared_error", device="cpu", rng=0)]
    nets += [nets[0].copy(device=place) for place in ("cpu", device)]
    for net, given in zip(nets, (X.astype("f4"), X.astype(dtype), X.astype(dtype)), strict=True):
        gpubp.fit(net, given, T, epochs=2, batch_size=8, progress=False)
        np.testing.assert_allclose(to_host(net.theta), nets[0].theta, atol=1e-6)


def test_a_model_file_brings_it_back(tmp_path):
    net, (X, _) = network(), data()
    fitted(net)
    gpubp.save(net, tmp_path / "model")
    again = gpubp.load(tmp_path / "model")
    assert repr(again.layers) == repr(net.layers)
    np.testing.assert_array_equal(again.predict(X), net.predict(X))


def test_nothing_is_passed_on_where_no_category_is_meant():
    net = gpubp.Network([gpubp.Embedding(1, {0: (3, 2)}), gpubp.Dense(2, 1)], "squared_error", device="cpu")
    net.parameters["1.b"][...] = 5
    np.testing.assert_array_equal(net.forward([[-1.0]]), [[5]])


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: gpubp.Embedding(3, {}), SettingError, "at least one"),
        (lambda: gpubp.Embedding(3, [(1, 2)]), SettingError, "at least one .column, categories, width."),
        (lambda: gpubp.Embedding(3, {3: (2, 2)}), SettingError, "column 3 is not within 0 to 2"),
        (lambda: gpubp.Embedding(3, {-1: (2, 2)}), SettingError, "column=-1"),
        (lambda: gpubp.Embedding(3, {1: (0, 2)}), SettingError, "categories=0: a whole number of at least 1"),
        (lambda: gpubp.Embedding(3, {1: (2, 0)}), SettingError, "width=0: a whole"),
        (lambda: gpubp.Embedding(3, {1: (2.5, 1)}), SettingError, "categories=2.5: a whole"),
        (lambda: gpubp.Embedding(True, {1: (2, 1)}), SettingError, "n_in=True"),
        (lambda: gpubp.Embedding(3, [(1, 2, 2), (1, 3, 2)]), SettingError, "two tables for one column"),
        (lambda: gpubp.Embedding(3, {1: (2, 2)}).output_width(4), ShapeError, "width 3, not 4"),
        (
            lambda: gpubp.Network(
                [gpubp.Standardize(3), gpubp.Embedding(3, {1: (2, 2)}), gpubp.Dense(4, 1)], "squared_error"
            ),
            SettingError,
            r"takes the columns \(1,\) as indices, but layer 0.*Standardize\(n, skip=\(1,\)\)",
        ),
        (
            lambda: gpubp.Network([gpubp.Dense(3, 3), gpubp.Embedding(3, {1: (2, 2)}), gpubp.Dense(4, 1)], "huber"),
            SettingError,
            "layer 0, Dense.*changes them",
        ),
        (lambda: gpubp.Standardize(3, (3,)), SettingError, "3 is no column, 0 to 2"),
        (lambda: gpubp.Standardize(3, (-1,)), SettingError, "-1"),
        (lambda: gpubp.Standardize(3, (True,)), SettingError, "True is no column"),
    ],
)
def test_wrong_settings_are_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_neighbours_that_pass_go_together():
    layer = gpubp.Embedding(8, {5: (1, 1), 1: (3, 4)})
    assert (layer.n_out, layer.strips) == (11, [(0, 0, 1), (2, 1, 3), (6, 4, 2)])
    X = layer.example_inputs(np.random.default_rng(0), (50, 8))
    assert set(X[:, 1]) == {-1, 0, 1, 2}
    assert set(X[:, 5]) == {-1, 0}
    layer.initialize(0, dtype="float64")
    Y, _ = layer.forward(X)
    np.testing.assert_array_equal(Y[:, :6], X[:, [0, 2, 3, 4, 6, 7]])


@pytest.mark.parametrize("wrong", [4, -2, 1.5, 1e9])
@pytest.mark.parametrize("where", ["cpu", "stand-in"])
def test_what_is_no_index_is_refused_before_anything_is_trained(request, where, wrong):
    if where == "stand-in":
        request.getfixturevalue("fake_cupy")
    net, (X, T) = network(device="cuda:0" if where == "stand-in" else "cpu"), data()
    X[7, 1] = wrong
    before = to_host(net.theta).copy()
    for call in (
        lambda: gpubp.fit(net, X, T, epochs=1, progress=False),
        lambda: gpubp.fit(net, *data(), epochs=0, validation=(X, T), progress=False),
        lambda: net.predict(X),
        lambda: net.loss_and_gradients(X, T),
    ):
        with pytest.raises(DataError, match=r"column 1 of X holds .* whole numbers from 0 to 3 .* or -1"):
            call()
    np.testing.assert_array_equal(to_host(net.theta), before)


def test_standardize_leaves_the_columns_to_skip_as_they_are():
    X, _ = data()
    layer = gpubp.Standardize(5, skip=(1, 3))
    layer.adapt(X)
    Y, _ = layer.forward(X)
    np.testing.assert_array_equal(Y[:, [1, 3]], X[:, [1, 3]])
    np.testing.assert_allclose(Y[:, [0, 2, 4]].std(axis=0), 1, atol=1e-12)


def test_the_module_of_standardisation_computes_what_the_layer_does():
    X, _ = data()
    layer = gpubp.Standardize(5, skip=(1, 3))
    layer.adapt(X)
    module = SimpleNamespace(**layer.constants)
    np.testing.assert_allclose(layer.torch_twin.forward(module, X), layer.forward(X)[0], atol=1e-13)
