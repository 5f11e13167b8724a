"""Optimizers against loops over single numbers, written from the papers' recurrences."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import gpubp
from gpubp.errors import SettingError, ShapeError
from gpubp.optimizers.base import Optimizer


def sgd_loop(theta, gradients, rate, momentum=0.0, nesterov=False):
    v = 0.0
    for g in gradients:
        v = momentum * v + g
        theta -= rate * (g + momentum * v if nesterov else v)
    return theta


def adam_loop(theta, gradients, rate, beta1=0.9, beta2=0.999, epsilon=1e-8):
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        theta -= rate * (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + epsilon)
    return theta


def adamw_loop(theta, gradients, rate, weight_decay=0.01, epsilon=1e-8):
    """Algorithm 2 of the paper, its schedule multiplier and its weight decay both times the learning rate."""
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
        theta = theta - rate * (m_hat / (math.sqrt(v_hat) + epsilon) + weight_decay * theta)
    return theta


def rmsprop_loop(theta, gradients, rate, decay=0.99, epsilon=1e-8, momentum=0.0):
    m = v = 0.0
    for g in gradients:
        v = decay * v + (1 - decay) * g * g
        m = momentum * m + g / (math.sqrt(v) + epsilon)
        theta -= rate * m
    return theta


def lion_loop(theta, gradients, rate, beta1=0.9, beta2=0.99, weight_decay=0.0):
    """Program 1 of the paper."""
    m = 0.0
    for g in gradients:
        update = math.copysign(1, beta1 * m + (1 - beta1) * g) + weight_decay * theta
        m = beta2 * m + (1 - beta2) * g
        theta = theta - rate * update
    return theta


CASES = [
    (lambda rate: gpubp.SGD(rate), sgd_loop, {}),
    (lambda rate: gpubp.SGD(rate, momentum=0.9), sgd_loop, {"momentum": 0.9}),
    (lambda rate: gpubp.SGD(rate, momentum=0.8, nesterov=True), sgd_loop, {"momentum": 0.8, "nesterov": True}),
    (lambda rate: gpubp.Adam(rate), adam_loop, {}),
    (lambda rate: gpubp.Adam(rate, 0.8, 0.95, 1e-3), adam_loop, {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-3}),
    (lambda rate: gpubp.AdamW(rate), adamw_loop, {}),
    (lambda rate: gpubp.AdamW(rate, weight_decay=0.5), adamw_loop, {"weight_decay": 0.5}),
    (lambda rate: gpubp.RMSprop(rate), rmsprop_loop, {}),
    (lambda rate: gpubp.RMSprop(rate, 0.8, 1e-3, 0.7), rmsprop_loop, {"decay": 0.8, "epsilon": 1e-3, "momentum": 0.7}),
    (lambda rate: gpubp.Lion(rate), lion_loop, {}),
    (
        lambda rate: gpubp.Lion(rate, 0.6, 0.8, 0.3),
        lion_loop,
        {"beta1": 0.6, "beta2": 0.8, "weight_decay": 0.3},
    ),
]


@pytest.mark.parametrize(("make", "loop", "settings"), CASES)
@pytest.mark.parametrize("shape", [(7,), (1, 7), (3, 5), (2, 20000), (20001,), (40000, 1)])
def test_twenty_updates_equal_the_loop_over_single_numbers(make, loop, settings, shape):
    rng = np.random.default_rng(0)
    theta = rng.normal(size=shape)
    start, gradient, optimizer = theta.copy(), np.empty(shape), make(0.05)
    gradients = rng.normal(size=(20, *shape))
    for step in gradients:
        gradient[...] = step
        optimizer.update(theta, gradient)
        np.testing.assert_array_equal(gradient, step)
    for place in [0, theta.size // 2, theta.size - 1]:
        expected = loop(start.flat[place], gradients.reshape(20, -1)[:, place], 0.05, **settings)
        assert theta.flat[place] == pytest.approx(expected, abs=1e-13)
    assert optimizer.steps == 20


@pytest.mark.parametrize(("make", "loop", "settings"), CASES)
@pytest.mark.parametrize("columns", [1, 3, 20000])
def test_each_member_may_have_its_own_learning_rate(make, loop, settings, columns):
    rng = np.random.default_rng(0)
    theta, gradient = rng.normal(size=(3, columns)), rng.normal(size=(3, columns))
    start, rates = theta.copy(), [0.1, 0.01, 0.3]
    optimizer = make(rates)
    for _ in range(3):
        optimizer.update(theta, gradient)
    for e, rate in enumerate(rates):
        expected = loop(start[e, -1], [gradient[e, -1]] * 3, rate, **settings)
        assert theta[e, -1] == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(("make", "loop", "settings"), CASES)
def test_tiles_do_not_show(make, loop, settings, monkeypatch):
    def run():
        theta, gradient = (np.random.default_rng(seed).normal(size=(3, 50)) for seed in (0, 1))
        optimizer = make(0.1)
        for _ in range(3):
            optimizer.update(theta, gradient)
        return theta

    whole = run()
    monkeypatch.setattr("gpubp.ops.tiles.TILE_ELEMENTS", 16)
    np.testing.assert_array_equal(run(), whole)


@pytest.mark.parametrize(("make", "loop", "settings"), CASES)
def test_float32_stays_float32(make, loop, settings):
    theta, gradient = np.ones(5, "float32"), np.ones(5, "float32")
    optimizer = make(0.1)
    optimizer.update(theta, gradient)
    assert {array.dtype for array in (theta, *optimizer.state.values())} == {np.dtype("float32")}


def test_a_snapshot_brings_everything_back():
    theta, gradient = np.ones(5), np.ones(5)
    optimizer = gpubp.Adam(0.1)
    empty = optimizer.snapshot()
    optimizer.update(theta, gradient)
    after_one, kept = theta.copy(), optimizer.snapshot()
    optimizer.update(theta, gradient)
    after_two = theta.copy()
    theta[...] = after_one
    optimizer.restore(kept)
    optimizer.update(theta, gradient)
    np.testing.assert_array_equal(theta, after_two)
    theta[...] = 1
    optimizer.restore(empty)
    optimizer.update(theta, gradient)
    np.testing.assert_array_equal(theta, after_one)


@pytest.mark.parametrize("rates", [0.5, [0.5, 0.25]])
def test_a_new_learning_rate_counts_from_the_next_update_on(rates):
    theta, gradient = np.zeros((2, 3)), np.ones((2, 3))
    optimizer = gpubp.SGD(1.0)
    optimizer.update(theta, gradient)
    optimizer.learning_rate = rates
    optimizer.update(theta, gradient)
    np.testing.assert_array_equal(theta[:, 0], -1 - np.broadcast_to(rates, 2))
    optimizer.learning_rate = 0.125
    optimizer.update(theta, gradient)
    np.testing.assert_array_equal(theta[:, 0], -1.125 - np.broadcast_to(rates, 2))
    with pytest.raises(SettingError, match="learning_rate=-1"):
        optimizer.learning_rate = -1


def test_a_gradient_in_another_buffer_is_looked_at_too():
    theta, optimizer = np.zeros(3), gpubp.SGD(1.0, momentum=0.5)
    optimizer.update(theta, np.ones(3))
    optimizer.update(theta, np.full(3, 100.0))
    np.testing.assert_array_equal(theta, np.full(3, -1 - 100.5))
    with pytest.raises(ShapeError, match=r"shape \(3,\), its gradient \(2,\)"):
        optimizer.update(theta, np.ones(2))


def test_an_optimizer_stays_with_its_network_until_it_is_reset():
    optimizer = gpubp.SGD(0.1, momentum=0.9)
    first, second, gradient = np.ones(3), np.ones(3), np.ones(3)
    optimizer.update(first, gradient)
    with pytest.raises(ShapeError, match=r"another network.*reset"):
        optimizer.update(second, gradient)
    optimizer.reset()
    optimizer.update(second, gradient)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("rates", [[0.1, 0.2], [0.1, 0.2, 0.3, 0.4]])
def test_learning_rates_for_another_stack_are_refused(rates):
    with pytest.raises(ShapeError, match=f"{len(rates)} learning rates.*stack of 3"):
        gpubp.SGD(rates).update(np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(ShapeError, match="single network"):
        gpubp.SGD(rates).update(np.ones(2), np.ones(2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gpubp.SGD(0), "learning_rate=0"),
        (lambda: gpubp.SGD(-1), "learning_rate=-1"),
        (lambda: gpubp.Adam(math.nan), "learning_rate=nan"),
        (lambda: gpubp.Adam([0.1, math.inf]), "learning_rate"),
        (lambda: gpubp.SGD([[0.1]]), "learning_rate"),
        (lambda: gpubp.SGD(0.1, momentum=1.0), "momentum=1.0"),
        (lambda: gpubp.SGD(0.1, nesterov=True), "momentum above 0"),
        (lambda: gpubp.Adam(0.1, beta1=-0.1), "beta1"),
        (lambda: gpubp.Adam(0.1, beta2=1), "beta2"),
        (lambda: gpubp.Adam(0.1, epsilon=0), "epsilon"),
        (lambda: gpubp.AdamW(0.1, weight_decay=-1e-9), "AdamW: weight_decay=-1e-09"),
        (lambda: gpubp.AdamW(0.1, weight_decay=math.inf), "weight_decay=inf"),
        (lambda: gpubp.AdamW(0.1, beta1=1), "AdamW: beta1=1"),
        (lambda: gpubp.RMSprop(0.1, decay=1), "decay=1 is outside"),
        (lambda: gpubp.RMSprop(0.1, epsilon=-1), "epsilon=-1 is not a positive"),
        (lambda: gpubp.RMSprop(0.1, momentum=1.5), "momentum=1.5 is outside"),
        (lambda: gpubp.Lion(0.1, beta1=1), "beta1=1 is outside"),
        (lambda: gpubp.Lion(0.1, beta2=-0.5), "beta2=-0.5 is outside"),
        (lambda: gpubp.Lion(0.1, weight_decay=-1), "Lion: weight_decay=-1"),
        (lambda: gpubp.SGD(0.1, clip_norm=0), "SGD: clip_norm=0 is not a positive"),
        (lambda: gpubp.Adam(0.1, clip_norm=-1.0), "clip_norm=-1.0 is not a positive"),
        (lambda: gpubp.Adam(0.1, clip_norm=math.nan), "clip_norm=nan"),
        (lambda: gpubp.Adam(0.1, average=1.0), "average=1.0 is outside"),
        (lambda: gpubp.SGD("fast"), "learning_rate='fast'"),
        (lambda: gpubp.SGD({"name": "Cosinus", "rate": 0.1}), "unknown schedule 'Cosinus'.*Cosine"),
        (
            lambda: gpubp.optimizer_by_name("sgdd", learning_rate=1),
            "unknown optimizer 'sgdd'.*adam, adamw, lion, rmsprop, sgd",
        ),
    ],
)
def test_settings_out_of_range_are_named(make, words):
    with pytest.raises(SettingError, match=words):
        make()


@pytest.mark.parametrize("kind", Optimizer.by_name.values())
def test_an_optimizer_is_rebuilt_from_its_config(kind):
    for rate in (0.3, [0.1, 0.2], gpubp.WarmUp(3, gpubp.Cosine(0.1, final=0.2, total=9))):
        optimizer = kind(rate, clip_norm=2.0, average=0.9)
        config = json.loads(json.dumps(optimizer.config()))
        assert repr(kind(**config)) == repr(optimizer)
        assert repr(rate) in repr(optimizer)
