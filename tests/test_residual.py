"""Residual blocks in networks: names, fusion, lives of their arrays, recordings, files."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import gpubp
from gpubp import workspace
from gpubp.backend import to_host
from gpubp.errors import SettingError, ShapeError
from gpubp.layers.dense_activation import DenseActivation
from gpubp.layers.residual import _Part
from gpubp.recording import StepToRecord


def block(*more):
    return gpubp.Residual([gpubp.Dense(9, 7), gpubp.Sigmoid(), *more, gpubp.Dense(7, 9), gpubp.Tanh()])


def network(device="cpu", members=None, dtype="float64", plain=False):
    middle = [] if plain else [gpubp.BatchNorm(7), gpubp.Dropout(0.2), gpubp.Residual([gpubp.Dense(7, 7)])]
    layers = [gpubp.Dense(6, 9), gpubp.ReLU(), block(*middle), gpubp.Dense(9, 3)]
    return gpubp.Network(layers, "squared_error", device=device, members=members, dtype=dtype, rng=1, l2=0.1)


def data(members=None, N=50):
    rng, lead = np.random.default_rng(0), () if members is None else (members,)
    return rng.normal(size=(*lead, N, 6)), rng.normal(size=(*lead, N, 3))


def all_of(net):
    return np.concatenate([to_host(array).ravel() for array in (net.theta, *net.statistics)])


def trained(net, X, T, captured=True, **settings):
    settings = {"optimizer": gpubp.SGD(0.05), "epochs": 3, "batch_size": 8, "progress": False, **settings}
    if not captured:
        net.plan = gpubp.StepPlan(net, 8, stacked=X.ndim == 3, micro_batch_size=settings.get("micro_batch_size"))
        net.plan._recorded_steps = lambda *_: 0
    gpubp.fit(net, X, T, **settings)
    return all_of(net)


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "stand-in":
        request.getfixturevalue("fake_cupy")
    return "cuda:0"


def test_parameters_go_by_their_place_in_the_block():
    net = network()
    names = [
        "0.W",
        "0.b",
        "2.0.W",
        "2.0.b",
        "2.2.gamma",
        "2.2.beta",
        "2.4.0.W",
        "2.4.0.b",
        "2.5.W",
        "2.5.b",
        "3.W",
        "3.b",
    ]
    assert list(net.parameters) == names
    assert net.weights_size == 6 * 9 + 9 * 7 + 7 * 7 + 7 * 9 + 9 * 3
    net.parameters["2.4.0.W"][...] = 5
    assert (net.layers[2].inner[4].inner[0].parameters["W"] == 5).all()
    assert np.shares_memory(net.layers[2].inner[0].gradients["W"], net.dL_dtheta)


def test_neighbours_in_a_block_are_fused_as_outside():
    net = network(plain=True)
    assert [type(layer) for layer in net.executed[1].executed] == [DenseActivation, DenseActivation]
    apart = copy.deepcopy(net)
    apart.layers[2].executed = list(apart.layers[2].inner)
    X, T = data()
    for (name, mine), theirs in zip(
        net.loss_and_gradients(X, T)[1].items(), apart.loss_and_gradients(X, T)[1].values(), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-14, err_msg=name)


def test_it_is_the_input_and_what_the_block_gives():
    net, (X, _) = network(plain=True), data()
    H = np.maximum(X @ net.parameters["0.W"], 0)
    inside = 1 / (1 + np.exp(-(H @ net.parameters["2.0.W"])))
    expected = (H + np.tanh(inside @ net.parameters["2.2.W"])) @ net.parameters["3.W"]
    np.testing.assert_allclose(net.forward(X), expected, atol=1e-12)


@pytest.mark.parametrize("members", [None, 2])
def test_gradients_agree_with_differences(members):
    X, T = data(members, N=7)
    report = gpubp.check_gradients(network(members=members), X, T, entries=30)
    assert report.ok, report


@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.parametrize("members", [None, 2])
def test_recorded_steps_are_the_steps(members, micro, cpu_kernels, monkeypatch):
    made = []
    faithful = StepToRecord.is_faithful
    monkeypatch.setattr(StepToRecord, "is_faithful", lambda *a: made.append(faithful(*a)) or made[-1])
    nets, (X, T) = [network(members=members) for _ in range(2)], data(members)
    runs = [trained(net, X, T, captured, micro_batch_size=micro) for net, captured in zip(nets, (1, 0), strict=True)]
    np.testing.assert_allclose(*runs, rtol=0, atol=1e-12)
    assert made == [True, True]


@pytest.mark.parametrize("members", [None, 2])
def test_captured_steps_are_the_steps_bit_for_bit(device, members):
    nets, (X, T) = [network(device, members, "float32") for _ in range(2)], data(members)
    runs = [trained(net, X, T, captured) for net, captured in zip(nets, (1, 0), strict=True)]
    np.testing.assert_array_equal(*runs)
    assert nets[0].plan.why_not_captured is None


@pytest.mark.parametrize("shared", [False, True])
def test_every_executor_computes_the_same(device, shared, monkeypatch):
    X, T = data(2)
    X = X[0] if shared else X
    runs = [trained(network(d, 2), X, T) for d in ("cpu", device)]
    monkeypatch.setattr("gpubp.cpu.kernels", lambda: None)
    runs.append(trained(network("cpu", 2), X, T))
    np.testing.assert_allclose(runs[1], runs[0], rtol=0, atol=1e-11)
    np.testing.assert_allclose(runs[2], runs[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("members", [None, 2])
def test_a_planned_step_is_the_eager_step(members):
    X, T = data(members, 8)
    net = network(members=members)
    L, gradients = net.loss_and_gradients(X, T)
    plan = gpubp.StepPlan(net, 8, stacked=members is not None)
    plan.workspace[...] = np.nan
    again = plan.step(X, T, None, gpubp.SGD(1e-30))
    np.testing.assert_allclose(again, L, rtol=1e-13)
    for name, array in net.named_gradients(net.dL_dtheta).items():
        np.testing.assert_allclose(array, gradients[name], rtol=0, atol=1e-13, err_msg=name)


def test_what_backward_reads_lives_until_then_and_the_rest_does_not():
    net = network(plain=True)
    lives = {planned.place: planned for planned in workspace.lives(net, 8, False)}
    K = len(net.executed)
    assert lives["forward", 1, "0.Y"].dies == 2 * K - 1
    assert ("backward", 1, "0.dL_dX") in lives
    assert ("forward", 1, "0.dL_dX") not in lives
    assert ("backward", 1, "0.Y") not in lives


def standardised(members=None):
    inner = gpubp.Residual([gpubp.Standardize(5), gpubp.Tanh()])
    block = gpubp.Residual([gpubp.BatchNorm(5), gpubp.Dense(5, 5), inner, gpubp.Standardize(5)])
    layers = [gpubp.Dense(6, 5), block, gpubp.Standardize(5), gpubp.Dense(5, 3)]
    return gpubp.Network(layers, "squared_error", members=members, dtype="float64", device="cpu")


@pytest.mark.parametrize("members", [None, 7])
def test_standardisation_in_a_block_takes_its_statistics_of_what_goes_into_it(members, tmp_path):
    X, T = data()
    net = standardised(members)
    gpubp.save(net, tmp_path / "early")  # without statistics
    net.adapt(X)
    first, block, last, _ = net.layers
    _, dense, inner, second = block.inner
    Y, _ = dense.forward(block.inner[0].forward(first.forward(X)[0])[0])
    for layer, given in (
        (inner.inner[0], Y),
        (second, inner.forward(Y)[0]),
        (last, block.forward(first.forward(X)[0])[0]),
    ):
        np.testing.assert_allclose(layer.constants["mean"], given.mean(axis=-2), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(layer.constants["scale"], given.std(axis=-2), rtol=1e-12)
    early = gpubp.load(tmp_path / "early", device="cpu")
    for other in (early, standardised(members)):
        gpubp.fit(other, X, T, epochs=1, callbacks=[gpubp.EarlyStopping(monitor="loss")], progress=False)
    np.testing.assert_array_equal(early.predict(X), other.predict(X))
    gpubp.save(other, tmp_path / "late")
    np.testing.assert_array_equal(gpubp.load(tmp_path / "late", device="cpu").predict(X), other.predict(X))
    assert gpubp.check_gradients(other, X, T).ok


def test_early_stopping_knows_what_a_stack_shares_from_what_each_member_has():
    X, T = data()
    block = gpubp.Residual([gpubp.Standardize(6), gpubp.BatchNorm(6)])
    net = gpubp.Network([block, gpubp.Dense(6, 3)], "squared_error", members=7, device="cpu")
    gpubp.fit(net, X, T, epochs=1, callbacks=[gpubp.EarlyStopping(monitor="loss")], progress=False)
    assert [array.shape for array in net.statistics] == [(7, 6), (7, 6)]


def test_files_copies_and_pickles_carry_it(tmp_path):
    net, (X, T) = network(), data()
    trained(net, X, T)
    gpubp.save(net, tmp_path / "m")
    for other in (gpubp.load(tmp_path / "m", device="cpu"), net.copy(), pickle.loads(pickle.dumps(net))):
        np.testing.assert_array_equal(other.predict(X), net.predict(X))
        assert repr(other) == repr(net)
        assert len(other.statistics) == 2


def test_a_summary_and_costs_know_the_block():
    net = network(plain=True)
    assert "Residual([Dense(9, 7), Sigmoid(), Dense(7, 9), Tanh()])" in net.summary()
    costs = {cost.name: cost for cost in net.costs(8)}
    assert costs["1 0 forward matmul"].flops == 2 * 8 * 9 * 7
    assert costs["1 1 backward dL_dW matmul"].flops == 2 * 8 * 7 * 9
    assert {"1 forward sum", "1 backward sum", "1 0 backward dL_dX matmul"} <= set(costs)
    first = gpubp.Network([block(), gpubp.Dense(9, 3)], "squared_error", device="cpu").costs(8)
    assert not {"0 backward sum", "0 0 backward dL_dX matmul"} & {cost.name for cost in first}


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: gpubp.Residual([]), SettingError, r"layers=\[\]: a list of at least 1"),
        (lambda: gpubp.Residual([gpubp.Dense(3, 4)]), ShapeError, "of width 4, to its input, of width 3"),
        (lambda: gpubp.Residual([gpubp.Dense(3, 4), gpubp.Dense(3, 3)]), ShapeError, "layer 1: .* width 3, not 4"),
        (
            lambda: gpubp.Network([gpubp.Dense(6, 5), block()], "squared_error"),
            ShapeError,
            "do not chain.*width 9, not 5",
        ),
    ],
)
def test_wrong_use_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_layer_may_not_stand_in_a_block_and_outside():
    dense = gpubp.Dense(3, 3)
    with pytest.raises(SettingError, match="stands twice"):
        gpubp.Network([dense, gpubp.Residual([dense])], "squared_error")


def test_a_block_of_activations_alone():
    net = gpubp.Network([gpubp.Dense(3, 3), gpubp.Residual([gpubp.Tanh()])], "squared_error", dtype="float64")
    X = np.random.default_rng(0).normal(size=(5, 3))
    H = X @ net.parameters["0.W"]
    np.testing.assert_allclose(net.forward(X), H + np.tanh(H), atol=1e-14)
    assert gpubp.check_gradients(net, X, X).ok


def test_the_buffers_of_one_layer_of_a_block_are_those_that_begin_with_its_place():
    part = _Part({"0.Y": 1, "10.Y": 2, "0.b": 3, "Y": 4}, 0)
    assert dict(part) == {"Y": 1, "b": 3}
    assert len(part) == 2
