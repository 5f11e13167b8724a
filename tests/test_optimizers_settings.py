"""Optimizers: a reset, rates of members in tiles, clipping, decay of weights, averages, settings at the edges."""

from __future__ import annotations

import contextlib
import itertools
import math

import numpy as np
import pytest

import gpubp
from gpubp import cpu
from gpubp.backend import to_host
from gpubp.errors import SettingError, ShapeError
from gpubp.optimizers.base import Optimizer


@pytest.mark.parametrize("make", [lambda: gpubp.SGD(0.1, momentum=0.9), lambda: gpubp.Adam(0.1)])
def test_after_a_reset_an_optimizer_is_new(make):
    used, new, gradient = make(), make(), np.array([1.0, -2.0])
    used.update(np.ones(2), gradient)
    used.reset()
    assert used.steps == 0
    first, second = np.ones(2), np.ones(2)
    for _ in range(2):
        used.update(first, gradient)
        new.update(second, gradient)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("epsilon", [math.inf, math.nan, -1e-8])
def test_adam_needs_a_finite_epsilon_above_zero(epsilon):
    with pytest.raises(SettingError, match=r"epsilon=.* is not a positive finite number"):
        gpubp.Adam(0.1, epsilon=epsilon)


@pytest.mark.parametrize("columns", [1, 5, 16, 50])
def test_each_member_keeps_its_own_learning_rate_in_every_tile(columns, monkeypatch):
    monkeypatch.setattr("gpubp.ops.tiles.TILE_ELEMENTS", 16)
    rates = np.linspace(0.1, 0.9, 20)
    theta, gradient = np.zeros((20, columns)), np.random.default_rng(0).normal(size=(20, columns))
    gpubp.SGD(rates).update(theta, gradient)
    np.testing.assert_allclose(theta, -rates[:, None] * gradient, rtol=1e-14)


def test_settings_are_all_but_the_learning_rate():
    expected = (("momentum", 0.9), ("nesterov", False), ("clip_norm", None), ("average", None))
    assert gpubp.SGD(0.1, momentum=0.9).settings() == expected
    assert gpubp.Adam(0.1).settings() == gpubp.Adam(0.2).settings() != gpubp.Adam(0.1, beta1=0.8).settings()


@pytest.fixture(params=["NumPy", "CPU kernels", "stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request, monkeypatch):
    """Every executor: array maths, kernels for the CPU, CUDA kernels on the host and on a device."""
    if request.param == "NumPy":
        monkeypatch.setattr(cpu, "kernels", lambda: None)
    elif request.param == "CPU kernels" and cpu.kernels() is None:
        pytest.skip(f"no CPU kernels: {cpu.why_no_kernels()}")
    elif request.param == "stand-in":
        request.getfixturevalue("fake_cupy")
    return "cpu" if request.param in ("NumPy", "CPU kernels") else "cuda:0"


def on(device, *arrays):
    xp = gpubp.resolve_device(device).module
    return [xp.asarray(array.copy()) for array in arrays]


@pytest.mark.parametrize("kind", sorted(Optimizer.by_name))
@pytest.mark.parametrize("shape", [(7,), (1,), (3, 7), (1, 5), (2, 9001), (3, 0), (0, 3)])
def test_clipping_is_an_update_by_the_shortened_gradient(kind, shape, device, monkeypatch):
    monkeypatch.setattr("gpubp.ops.tiles.TILE_ELEMENTS", 16 if shape[-1] < 100 else 65536)
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=shape), rng.normal(size=(4, *shape))
    norms = np.sqrt((gradients**2).sum(axis=-1, keepdims=True))
    clip = float(np.median(norms)) if start.size else 1.0  # so that some are longer, and some are not
    shortened = gradients * np.minimum(1, clip / np.maximum(norms, 1e-300))
    results = []
    for given, more in ((gradients, {"clip_norm": clip}), (shortened, {})):
        theta, dL_dtheta = on(device, start, start)
        optimizer = gpubp.optimizer_by_name(kind, learning_rate=0.1, **more)
        for gradient in given:
            dL_dtheta[...] = on(device, gradient)[0]
            optimizer.update(theta, dL_dtheta)
            np.testing.assert_array_equal(to_host(dL_dtheta), gradient)
        results.append(to_host(theta))
    np.testing.assert_allclose(*results, rtol=1e-12, atol=1e-14)
    if start.size > 1:
        assert (results[0] != start).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_left_to_be_noticed(bad, device):
    theta, dL_dtheta = on(device, np.ones((2, 3)), np.array([[1.0, bad, 3.0], [3.0, 0.0, 4.0]]))
    gpubp.SGD(1.0, clip_norm=0.5).update(theta, dL_dtheta)
    np.testing.assert_allclose(to_host(theta), [[0, 1 - bad, -2], [0.7, 1, 0.6]], rtol=1e-14)


def test_a_gradient_as_long_as_allowed_stays(device):
    theta, dL_dtheta = on(device, np.zeros(2), np.array([3.0, 4.0]))
    gpubp.SGD(1.0, clip_norm=5.0).update(theta, dL_dtheta)
    np.testing.assert_array_equal(to_host(theta), [-3, -4])
    clipped, new = gpubp.SGD(1.0, clip_norm=2.5), on(device, np.zeros(2), np.array([3.0, 4.0]))
    clipped.update(*new)
    np.testing.assert_array_equal(to_host(new[0]), [-1.5, -2])
    clipped.clip_norm = None  # settings may change between updates
    clipped.update(*new)
    np.testing.assert_array_equal(to_host(new[0]), [-4.5, -6])
    clipped.clip_norm = 0.5
    clipped.update(*new)
    np.testing.assert_allclose(to_host(new[0]), [-4.8, -6.4], rtol=1e-15)


@pytest.mark.parametrize("kind", ["adamw", "lion"])
@pytest.mark.parametrize("decayed", [None, 0, 1, 5, 17, 20])
@pytest.mark.parametrize("members", [None, 3])
def test_weights_decay_and_biases_do_not(kind, decayed, members, device, monkeypatch):
    monkeypatch.setattr("gpubp.ops.tiles.TILE_ELEMENTS", 16)
    rng = np.random.default_rng(0)
    shape = (20,) if members is None else (members, 20)
    rates = 0.1 if members is None else [0.1, 0.2, 0.3]
    start, gradient = rng.normal(size=shape), rng.normal(size=shape)
    thetas = []
    for weight_decay in (0.5, 0.0):
        theta, dL_dtheta = on(device, start, gradient)
        gpubp.optimizer_by_name(kind, learning_rate=rates, weight_decay=weight_decay).update(theta, dL_dtheta, decayed)
        thetas.append(to_host(theta))
    shrunk = np.zeros(shape)
    shrunk[..., :decayed] = (0.5 * np.reshape(rates, (-1, 1)) * start.reshape(-1, 20)).reshape(shape)[..., :decayed]
    np.testing.assert_allclose(thetas[1] - thetas[0], shrunk, atol=1e-15)


@pytest.mark.parametrize("members", [None, 3])
def test_in_a_training_the_weights_alone_decay(members, device):
    """Rows of zeros have no gradient but that of the biases behind them."""
    nets = []
    for weight_decay in (0.25, 0.0):
        net = gpubp.mlp([4, 5, 3], members=members, dtype="float64", device=device, rng=0)
        optimizer = gpubp.AdamW(0.1, weight_decay=weight_decay)
        gpubp.fit(net, np.zeros((10, 4)), np.zeros(10, int), optimizer=optimizer, epochs=1, batch_size=4)
        nets.append(net)
        assert optimizer._decayed == net.weights_size == 4 * 5 + 5 * 3
    decayed, plain = ({name: to_host(array) for name, array in net.parameters.items()} for net in nets)
    np.testing.assert_allclose(decayed["0.W"], plain["0.W"] * 0.975**3, rtol=1e-14)
    start = gpubp.mlp([4, 5, 3], members=members, dtype="float64", rng=0, device="cpu")
    np.testing.assert_array_equal(plain["0.W"], start.parameters["0.W"])


@pytest.mark.parametrize("kind", sorted(Optimizer.by_name))
@pytest.mark.parametrize("shape", [(7,), (3, 7)])
def test_the_average_is_that_of_the_weights_after_each_update(kind, shape, device):
    rng = np.random.default_rng(0)
    theta, dL_dtheta = on(device, rng.normal(size=shape), rng.normal(size=shape))
    optimizer = gpubp.optimizer_by_name(kind, learning_rate=0.1, average=0.75)
    with pytest.raises(SettingError, match="holds no average"):
        optimizer.averaged_theta  # noqa: B018
    total, weights, kept = np.zeros(shape), 0.0, None
    for step in range(1, 6):
        optimizer.update(theta, dL_dtheta)
        total, weights = 0.75 * total + to_host(theta), 0.75 * weights + 1
        np.testing.assert_allclose(to_host(optimizer.averaged_theta), total / weights, rtol=1e-14)
        if step == 2:
            kept = optimizer.snapshot(), to_host(theta).copy()
        if step == 3:
            expected = to_host(optimizer.averaged_theta)
    optimizer.restore(kept[0])
    theta[...] = on(device, kept[1])[0]
    optimizer.update(theta, dL_dtheta)
    np.testing.assert_array_equal(to_host(optimizer.averaged_theta), expected)
    with pytest.raises(SettingError, match="pass average="):
        gpubp.optimizer_by_name(kind, learning_rate=0.1).averaged_theta  # noqa: B018


@pytest.mark.parametrize("members", [None, 2])
def test_a_network_is_evaluated_and_saved_with_its_averaged_weights(members, device, tmp_path):
    rng = np.random.default_rng(0)
    X, t = rng.normal(size=(40, 4)), rng.integers(3, size=40)
    net = gpubp.mlp([4, 5, 3], members=members, device=device)
    optimizer = gpubp.Adam(0.05, average=0.9)
    gpubp.fit(net, X, t, optimizer=optimizer, epochs=3, batch_size=8)
    own, loss = to_host(net.theta).copy(), net.evaluate(X, t)
    with contextlib.suppress(KeyError), optimizer.averaged(net):
        np.testing.assert_array_equal(to_host(net.theta), to_host(optimizer.averaged_theta))
        averaged = net.evaluate(X, t)
        gpubp.save(net, tmp_path / "averaged.safetensors")
        raise KeyError
    np.testing.assert_array_equal(to_host(net.theta), own)
    np.testing.assert_array_equal(net.evaluate(X, t), loss)
    assert np.all(averaged != loss)
    saved = gpubp.load(tmp_path / "averaged.safetensors", device="cpu")
    np.testing.assert_allclose(saved.evaluate(X, t), averaged, rtol=1e-5)
    with pytest.raises(ShapeError, match="another network"), optimizer.averaged(net.copy()):
        pass


SETTINGS = {"clip_norm": 0.05, "average": 0.9}


@pytest.mark.parametrize("kind", sorted(Optimizer.by_name))
@pytest.mark.parametrize("members", [None, 3])
def test_recorded_steps_are_the_steps_and_the_same_on_every_executor(kind, members, device):
    """40 steps of each member with its own rate, that changes from step to step, clipped and averaged."""
    rng = np.random.default_rng(0)
    X, t = rng.normal(size=(50, 6)), rng.integers(3, size=50)
    rate = 0.01 if members is None else [0.01, 0.02, 0.005]
    results = []
    for where, how in ((device, "recorded"), (device, "step by step"), ("cpu", "by hand")):
        net = gpubp.mlp([6, 9, 3], members=members, dtype="float64", device=where, rng=1)
        optimizer = gpubp.optimizer_by_name(kind, learning_rate=gpubp.WarmUp(7, gpubp.Cosine(rate)), **SETTINGS)
        more = {} if how == "recorded" else {"reduce_gradients": lambda _: None}
        if how == "by hand":
            by_hand(net, optimizer, X, t)
        else:
            trainer = gpubp.Trainer(net, optimizer, batch_size=10, rng=5, progress=False, **more)
            history = trainer.fit(X, t, epochs=8)
            last = np.multiply(rate, gpubp.Cosine(1.0, total=33)(32))
            np.testing.assert_allclose(history["learning_rate"][-1], last, rtol=1e-14)
        if how == "recorded" and where != "cpu":
            assert net.plan.why_not_captured is None
        results.append((to_host(net.theta), to_host(optimizer.averaged_theta)))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def by_hand(net, optimizer, X, t):
    """The same training, with a plain rate that is set before each step."""
    from gpubp.data.minibatches import shuffled

    order, schedule = shuffled(5), optimizer.learning_rate
    schedule.begin(40, [])
    rates = schedule.rates(0, 40)
    for step, (epoch, batch) in enumerate(itertools.product(range(8), range(5))):
        rows = np.asarray(order(epoch, 50))[batch * 10 : batch * 10 + 10]
        net.loss_and_gradients(X[rows], t[rows])
        optimizer.learning_rate = rates[step].tolist() if net.members else float(rates[step, 0])
        optimizer.update(net.theta, net.dL_dtheta, net.weights_size)


def test_members_are_clipped_and_averaged_as_they_would_be_alone(device):
    rng = np.random.default_rng(0)
    X, t = rng.normal(size=(30, 4)), rng.integers(3, size=30)
    rates, ends = [0.1, 0.02], []
    stack = gpubp.mlp([4, 5, 3], members=2, dtype="float64", device=device)
    optimizer = gpubp.Lion(rates, weight_decay=0.1, **SETTINGS)
    start = to_host(stack.theta).copy()
    gpubp.fit(stack, X, t, optimizer=optimizer, epochs=3, batch_size=8)
    for e, rate in enumerate(rates):
        net = gpubp.mlp([4, 5, 3], dtype="float64", device=device)
        net.theta[...] = on(device, start[e])[0]
        alone = gpubp.Lion(rate, weight_decay=0.1, **SETTINGS)
        gpubp.fit(net, X, t, optimizer=alone, epochs=3, batch_size=8)
        ends.append((to_host(net.theta), to_host(alone.averaged_theta)))
    np.testing.assert_allclose(to_host(stack.theta), [theta for theta, _ in ends], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(to_host(optimizer.averaged_theta), [a for _, a in ends], rtol=1e-12, atol=1e-14)


def test_the_costs_of_clipping_and_averaging():
    costs = {cost.name: (cost.flops, cost.bytes) for cost in gpubp.SGD(clip_norm=1.0, average=0.9).costs((2, 50), 4)}
    assert costs == {"update": (200, 1200), "clip": (200, 400), "average": (300, 1200)}
