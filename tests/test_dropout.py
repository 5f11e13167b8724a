"""Dropout in networks: the same masks on every executor, eager, planned, recorded, and in every run of a seed."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import gpubp
from gpubp.backend import to_host
from gpubp.errors import TrainingDivergedError
from gpubp.ops.random import Draws


def network(device="cpu", seed=3, rate=0.4, **settings):
    layers = [gpubp.Dense(6, 9), gpubp.Dropout(rate), gpubp.Sigmoid(), gpubp.Dropout(0.2), gpubp.Dense(9, 3)]
    return gpubp.Network(layers, "squared_error", device=device, rng=seed, **settings)


def data(N=50, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, 6)), rng.normal(size=(N, 3))


def trained(net, captured=True, **settings):
    settings = {"optimizer": gpubp.SGD(0.05), "epochs": 3, "batch_size": 8, "progress": False, **settings}
    if not captured:
        net.plan = gpubp.StepPlan(net, settings["batch_size"], micro_batch_size=settings.get("micro_batch_size"))
        net.plan._recorded_steps = lambda *_: 0
    history = gpubp.fit(net, *data(), **settings)
    return np.concatenate([to_host(net.theta).ravel(), np.ravel(history["loss"])])


def masks_of(net, X):
    """The masks of the next step."""
    _, saved = net.run_forward(net.inputs(X), training=True)
    return [to_host(state["mask"]).copy() for state in saved if "mask" in state]


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "stand-in":
        request.getfixturevalue("fake_cupy")
    return "cuda:0"


@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_recorded_steps_are_the_steps(dtype, micro, cpu_kernels):
    nets = [network(dtype=dtype) for _ in range(2)]
    programs, steps = (
        trained(net, captured, micro_batch_size=micro) for net, captured in zip(nets, (True, False), strict=True)
    )
    np.testing.assert_allclose(programs, steps, rtol=0, atol=1e-5 if dtype == "float32" else 1e-13)
    assert nets[0].draws.steps == nets[1].draws.steps == 21
    X, _ = data(8)
    for a, b in zip(masks_of(nets[0], X), masks_of(nets[1], X), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("micro", [None, 3])
def test_captured_steps_are_the_steps_bit_for_bit(device, micro):
    nets = [network(device) for _ in range(2)]
    runs = [trained(net, captured, micro_batch_size=micro) for net, captured in zip(nets, (True, False), strict=True)]
    np.testing.assert_array_equal(*runs)
    assert nets[0].plan.why_not_captured is None


def test_a_program_was_recorded(cpu_kernels):
    net, (X, T) = network(), data()
    plan = gpubp.StepPlan(net, 8)
    plan.steps(net.inputs(X), net.targets(T, X), None, np.arange(48).reshape(6, 8), gpubp.SGD(0.05))
    assert [recording is None for _, recording in plan._recordings.values()] == [False]
    assert net.draws.steps == 6


@pytest.mark.parametrize("micro", [None, 3])
def test_a_device_draws_what_the_cpu_draws(device, micro):
    runs = [trained(network(d, dtype="float64"), micro_batch_size=micro) for d in ("cpu", device)]
    np.testing.assert_allclose(*runs, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_masks_are_the_same_bits_on_every_executor(device, dtype, monkeypatch):
    X, _ = data(33)
    net = network(dtype=dtype)
    net.draws.begin_steps(4)
    net.draws.begin_steps(0)
    on_kernels, other = masks_of(net, X), net.copy(device=device)
    other.draws.begin_steps(0)
    assert other.draws.steps == 4
    on_device = masks_of(other, X)
    monkeypatch.setattr("gpubp.cpu.kernels", lambda: None)
    for a, b, c in zip(on_kernels, masks_of(net, X), on_device, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_each_step_each_layer_each_part_and_each_member_draws_something_else():
    X = np.ones((40, 6))
    seen = []
    net = network(members=2, dtype="float64")
    for part in (0, 1):
        for _ in range(2):
            net.draws.part = part
            net.draws.begin_steps(1)
            for mask in masks_of(net, X):
                seen += [member != 0 for member in mask]
    other = network(members=2, dtype="float64", seed=4)
    seen += [mask[0] != 0 for mask in masks_of(other, X)]
    kept = {mask.tobytes() for mask in seen}
    assert len(kept) == len(seen) == 2 * 2 * 2 * 2 + 2


def test_gradients_are_those_of_the_next_step_and_repeat():
    net, (X, T) = network(dtype="float64"), data()
    first, again = (net.loss_and_gradients(X, T) for _ in range(2))
    assert first[0] == again[0]
    assert net.draws.steps == 0
    plan = gpubp.StepPlan(net, 50)
    L = plan.step(net.inputs(X), net.targets(T, X), None, gpubp.SGD(0.1))
    assert L == pytest.approx(first[0], rel=1e-13)
    assert net.loss_and_gradients(X, T)[0] != first[0]
    report = gpubp.check_gradients(net, X, T)
    assert report.ok, report
    assert all(check.compared == check.size for check in report.checks)


def test_inference_drops_nothing():
    net, (X, _) = network(dtype="float64"), data()
    plain = gpubp.Network([gpubp.Dense(6, 9), gpubp.Sigmoid(), gpubp.Dense(9, 3)], "squared_error", dtype="float64")
    plain.theta[...] = net.theta
    np.testing.assert_array_equal(net.predict(X), plain.predict(X))


def test_a_copy_and_a_pickle_draw_what_the_network_would():
    net, once_more = network(), network()
    trained(net)
    trained(once_more)
    copies = [copy.deepcopy(net), pickle.loads(pickle.dumps(net))]
    expected = trained(net)
    for other in (*copies, once_more):
        np.testing.assert_array_equal(trained(other), expected)


def test_a_diverged_epoch_is_undone_with_its_draws():
    net, (X, T) = network(), data()
    trained(net)
    steps, before = net.draws.steps, net.theta.copy()
    with pytest.raises(TrainingDivergedError, match="Dropout"):
        gpubp.fit(net, X * 1e30, T, optimizer=gpubp.SGD(1e6), epochs=1, batch_size=8, progress=False)
    assert net.draws.steps == steps
    np.testing.assert_array_equal(net.theta, before)


def test_a_generator_is_enough_for_a_layer_alone():
    X = np.ones((50, 4))
    layer = gpubp.Dropout(0.5)
    one, two = (layer.forward(X, training=True, rng=np.random.default_rng(k))[0] for k in (1, 1))
    other, _ = layer.forward(X, training=True, rng=np.random.default_rng(2))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
    Y, saved = layer.forward(X, training=True, rng=Draws(1))
    np.testing.assert_array_equal(layer.backward(X, saved), Y)


def test_a_network_that_draws_nothing_leaves_its_generator_alone():
    rng, twin = np.random.default_rng(0), np.random.default_rng(0)
    gpubp.mlp([3, 2], rng=rng, device="cpu")
    gpubp.Dense(3, 2).initialize(twin)
    assert rng.integers(2**60) == twin.integers(2**60)
    assert gpubp.mlp([3, 2], device="cpu").draws.draw is None


def test_looking_into_a_network_draws_too():
    net, (X, T) = network(), data()
    assert len(gpubp.looking.look(net, X, T).layers) == 5
