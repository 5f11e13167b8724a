"""L-BFGS over the flat buffer: against SciPy called by hand, stacks, micro-batches, callbacks, what it refuses."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest

import gpubp
from gpubp.backend import to_host
from gpubp.errors import DataError, GpubpError, SettingError, TrainingDivergedError

optimize = pytest.importorskip("scipy.optimize")


@pytest.fixture(params=["cpu", "stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "stand-in":
        request.getfixturevalue("fake_cupy")
    return "cpu" if request.param == "cpu" else "cuda:0"


def data(members=None, N=40):
    rng = np.random.default_rng(0)
    lead = () if members is None else (members,)
    X = rng.normal(size=(*lead, N, 4))
    return X, np.sin(X @ rng.normal(size=(4, 2))), rng.uniform(0.5, 2, size=(*lead, N))


def regression(members=None, device="cpu", dtype="float64", **settings):
    return gpubp.mlp(
        [4, 6, 2], activation="tanh", loss="squared_error", members=members, dtype=dtype, device=device, l2=0.01,
        **settings,
    )  # fmt: skip


def test_it_is_scipy_on_loss_and_gradient(device):
    X, T, w = data()
    net, by_hand = regression(device=device), regression()

    def loss_and_gradient(theta):
        by_hand.theta[...] = theta
        loss, _ = by_hand.loss_and_gradients(X, T, w)
        return loss, by_hand.dL_dtheta.copy()

    losses = []
    result = optimize.minimize(
        loss_and_gradient, by_hand.theta.copy(), jac=True, method="L-BFGS-B",
        callback=lambda intermediate_result: losses.append(intermediate_result.fun),
        options={"maxiter": 12, "maxcor": 10, "gtol": 1e-5, "ftol": 0},
    )  # fmt: skip
    history = gpubp.fit_lbfgs(net, X, T, sample_weight=w, iterations=12, validation=(X, T, w))
    assert history["epoch"] == [*range(1, 13)]
    assert net.epochs_trained == 12
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-8)
    np.testing.assert_allclose(history["validation_loss"], losses, rtol=1e-8)
    np.testing.assert_allclose(to_host(net.theta), result.x, rtol=1e-6, atol=1e-8)
    loss, gradients = net.loss_and_gradients(X, T, w)
    assert loss == pytest.approx(history["loss"][-1], rel=1e-12)
    norm = math.sqrt(sum(float((to_host(g) ** 2).sum()) for g in gradients.values()))
    assert history["gradient_norm"][-1] == pytest.approx(norm, rel=1e-10)
    assert min(history["seconds"]) >= 0


def test_it_ends_where_the_gradient_vanishes_and_a_second_call_has_nothing_to_do():
    X, T, _ = data()
    net = regression()
    first = gpubp.fit_lbfgs(net, X, T, iterations=3000, tolerance=1e-4)
    assert 5 < len(first) < 3000
    _, gradients = net.loss_and_gradients(X, T)
    assert max(np.abs(g).max() for g in gradients.values()) <= 1e-4
    assert len(gpubp.fit_lbfgs(net, X, T, tolerance=1e-4)) == 0
    more = gpubp.fit_lbfgs(net, X, T, iterations=2, tolerance=1e-9)
    assert more["epoch"] == [len(first) + 1, len(first) + 2]


@pytest.mark.parametrize("own_data", [False, True])
def test_members_are_trained_as_they_would_be_alone(own_data, device):
    X, T, w = data(3 if own_data else None)
    stack = regression(3, device, standardize=True)
    stack.adapt(X)
    start = to_host(stack.theta).copy()
    history = gpubp.fit_lbfgs(stack, X, T, sample_weight=w, iterations=9, validation=(X, T))
    assert np.shape(history["loss"]) == (9, 3)
    assert history["epoch"] == [*range(1, 10)]
    assert stack.epochs_trained == 9
    for e in range(3):
        own = [array[e] if own_data else array for array in (X, T, w)]
        net = regression(device=device, standardize=True)
        net.adapt(own[0])
        net.theta[...] = net.device.module.asarray(start[e])
        alone = gpubp.fit_lbfgs(net, *own[:2], sample_weight=own[2], iterations=9, validation=own[:2])
        np.testing.assert_allclose(np.array(history["loss"])[:, e], alone["loss"], rtol=1e-7)
        np.testing.assert_allclose(np.array(history["validation_loss"])[:, e], alone["validation_loss"], rtol=1e-7)
        np.testing.assert_allclose(to_host(stack.theta)[e], to_host(net.theta), rtol=1e-5, atol=1e-7)


def test_classes_of_each_member_and_of_all():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2, 30, 4))
    for t in (rng.integers(3, size=30), rng.integers(3, size=(2, 30))):
        net = gpubp.mlp([4, 5, 3], members=2, dtype="float64", device="cpu")
        before = net.evaluate(X, t)
        history = gpubp.fit_lbfgs(net, X, t, iterations=20)
        np.testing.assert_allclose(net.evaluate(X, t), history["loss"][-1], rtol=1e-10)
        assert (net.evaluate(X, t) < before / 2).all()


def test_a_member_that_is_done_keeps_its_last_row():
    X, T, _ = data()
    net = regression(3)
    single = regression()
    gpubp.fit_lbfgs(single, X, T, iterations=3000, tolerance=1e-4)
    net.theta[1] = single.theta
    history = gpubp.fit_lbfgs(net, X, T, iterations=5, tolerance=1e-4)
    assert history["epoch"] == [1, 2, 3, 4, 5]
    losses = np.array(history["loss"])
    assert np.isnan(losses[:, 1]).all()  # it had nothing to do
    assert np.isfinite(losses[:, [0, 2]]).all()
    np.testing.assert_array_equal(net.theta[1], single.theta)
    assert np.isfinite(history["seconds"]).all()


def test_micro_batches_give_the_same():
    X, T, w = data()
    nets = [regression(), regression()]
    for net, size in zip(nets, (None, 7), strict=True):
        gpubp.fit_lbfgs(net, X, T, sample_weight=w, iterations=8, micro_batch_size=size)
    np.testing.assert_allclose(nets[1].theta, nets[0].theta, rtol=1e-6, atol=1e-8)


def test_float32_goes_down_too(device):
    X, T, _ = data()
    net = regression(device=device, dtype="float32")
    before = net.evaluate(X, T)
    history = gpubp.fit_lbfgs(net, X, T, iterations=50)
    assert net.evaluate(X, T) == pytest.approx(history["loss"][-1], rel=1e-5)
    assert history["loss"][-1] < before / 2


def test_callbacks_look_on_and_stop():
    X, T, _ = data()
    seen = []

    class Look(gpubp.Callback):
        def on_train_begin(self, network, measures):
            seen.append(tuple(measures))

        def on_epoch_end(self, network, measured):
            seen.append(measured["epoch"])
            return measured["epoch"] == 4

        def on_train_end(self, network):
            seen.append("end")

    net = regression()
    history = gpubp.fit_lbfgs(net, X, T, callbacks=[Look()])
    assert seen == [("epoch", "loss", "seconds", "gradient_norm"), 1, 2, 3, 4, "end"]
    assert len(history) == 4
    assert net.evaluate(X, T) == pytest.approx(history["loss"][-1], rel=1e-12)
    stopping = gpubp.EarlyStopping(patience=2)
    history = gpubp.fit_lbfgs(regression(), X[:10], T[:10], validation=(X[10:], T[10:]), callbacks=[stopping])
    assert min(history["validation_loss"]) == stopping.best


def test_what_a_callback_raises_leaves_the_last_iteration():
    X, T, _ = data()
    net, kept = regression(), []

    class Fails(gpubp.Callback):
        def on_epoch_end(self, network, measured):
            kept.append(network.theta.copy())
            if len(kept) == 3:
                raise KeyError("no")
            return False

    with pytest.raises(KeyError):
        gpubp.fit_lbfgs(net, X, T, callbacks=[Fails()])
    np.testing.assert_array_equal(net.theta, kept[-1])


def test_no_iterations_change_nothing():
    X, T, _ = data()
    for net in (regression(), regression(2)):
        start = net.theta.copy()
        assert len(gpubp.fit_lbfgs(net, X, T, iterations=0)) == 0
        np.testing.assert_array_equal(net.theta, start)


def test_a_loss_that_is_not_finite_is_told():
    X, T, _ = data()
    net = regression(dtype="float32")
    net.theta[...] = 1e30
    start = net.theta.copy()
    with pytest.raises(TrainingDivergedError, match="before the first iteration"):
        gpubp.fit_lbfgs(net, X, T)
    np.testing.assert_array_equal(net.theta, start)


def normalised(members=None, device="cpu"):
    layers = [gpubp.Dense(4, 6), gpubp.BatchNorm(6), gpubp.Tanh(), gpubp.Dense(6, 2)]
    return gpubp.Network(layers, loss="squared_error", members=members, dtype="float64", device=device)


def held(net):
    """Weights and running statistics."""
    return [to_host(array).copy() for array in (net.theta, *net.statistics)]


class Watch(gpubp.Callback):
    """Notes weights and statistics after each iteration, and may fail after some."""

    def __init__(self, fails_after=None):
        self.seen, self.fails_after = [], fails_after

    def on_epoch_end(self, network, measured):
        self.seen.append(held(network))
        if len(self.seen) == self.fails_after:
            raise KeyError("no")
        return False


@pytest.mark.parametrize("micro_batch_size", [None, 15])
def test_running_statistics_are_those_of_the_iterations_alone(device, micro_batch_size, monkeypatch):
    tried, gradients = [], gpubp.plan.StepPlan.gradients
    monkeypatch.setattr(gpubp.plan.StepPlan, "gradients", lambda *args: tried.append(0) or gradients(*args))
    X, T, _ = data()
    net, watch = normalised(device=device), Watch()
    by_hand = net.copy()
    history = gpubp.fit_lbfgs(net, X, T, iterations=40, callbacks=[watch], micro_batch_size=micro_batch_size)
    assert len(tried) > len(history) + 2 > 10  # some steps were too long
    plan = gpubp.plan.StepPlan(by_hand, 40, micro_batch_size=micro_batch_size)
    xp = by_hand.device.module
    for theta, *statistics in watch.seen:
        by_hand.theta[...] = xp.asarray(theta)
        plan.gradients(xp.asarray(X), xp.asarray(T), None)
        for mine, expected in zip(statistics, held(by_hand)[1:], strict=True):
            np.testing.assert_allclose(mine, expected, rtol=1e-12)
    for mine, expected in zip(held(net), watch.seen[-1], strict=True):
        np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize("members", [None, 2])
def test_an_error_leaves_weights_and_statistics_of_the_last_iteration(members):
    X, T, _ = data()
    net, watch = normalised(members), Watch(fails_after=3)
    start = held(net)
    with pytest.raises(KeyError):
        gpubp.fit_lbfgs(net, X, T, callbacks=[watch])
    for mine, expected in zip(held(net), watch.seen[-1] if members is None else start, strict=True):
        np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize("members", [None, 3])
def test_a_loss_that_is_not_finite_changes_no_statistics_and_no_member(members):
    X, T, _ = data()
    net = normalised(members)
    (net.theta if members is None else net.theta[1])[...] = 1e200
    start = held(net)
    with pytest.raises(TrainingDivergedError, match="before" if members is None else "member 1: the loss is"):
        gpubp.fit_lbfgs(net, X, T, iterations=3)
    for mine, expected in zip(held(net), start, strict=True):
        np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize("logger", [gpubp.CSVLogger, gpubp.TensorBoard])
def test_a_file_of_one_training_is_refused_for_a_stack(logger, tmp_path):
    X, T, _ = data()
    net = regression(2)
    start = net.theta.copy()
    with pytest.raises(SettingError, match=f"{logger.__name__} keeps one training.*one after the other: take the hist"):
        gpubp.fit_lbfgs(net, X, T, callbacks=[logger(tmp_path / "log")])
    np.testing.assert_array_equal(net.theta, start)
    assert not (tmp_path / "log").exists()
    gpubp.fit_lbfgs(regression(), X, T, iterations=2, callbacks=[logger(tmp_path / "log")])
    assert (tmp_path / "log").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"iterations": -1}, "iterations=-1"),
        ({"iterations": 2.5}, "iterations=2.5"),
        ({"tolerance": 0}, "tolerance=0 is not a positive"),
        ({"memory": 0}, "memory=0"),
        ({"micro_batch_size": 0}, "batch"),
        ({"threads": 0}, "threads=0"),
        ({"validation": 3}, "validation: a tuple"),
    ],
)
def test_settings_out_of_range_are_named(settings, words):
    X, T, _ = data()
    with pytest.raises(SettingError, match=words):
        gpubp.fit_lbfgs(regression(), X, T, **settings)


def test_bad_data_is_told():
    X, T, _ = data()
    X[3, 1] = math.nan
    with pytest.raises(DataError, match="X at index"):
        gpubp.fit_lbfgs(regression(), X, T)


def test_without_scipy_the_way_out_is_told(monkeypatch):
    X, T, _ = data()
    find = importlib.import_module

    def without(name, *more):
        if name == "scipy.optimize":
            raise ImportError(name)
        return find(name, *more)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(GpubpError, match="pip install scipy"):
        gpubp.fit_lbfgs(regression(), X, T)


def test_the_bounds_reach_scipy(monkeypatch):
    given, minimize = [], optimize.minimize

    def noted(*arguments, **settings):
        given.append(settings["options"])
        return minimize(*arguments, **settings)

    monkeypatch.setattr(optimize, "minimize", noted)
    X, T, _ = data()
    gpubp.fit_lbfgs(regression(), X, T, iterations=3)
    assert given[0]["maxiter"] == 3
    assert given[0]["maxfun"] == 80  # L-BFGS-B tries at most 20 steps along a line
