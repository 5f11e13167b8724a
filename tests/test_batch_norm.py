"""Batch normalisation in networks: statistics kept in training, used afterwards, undone, saved, on every executor."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import gpubp
from gpubp.backend import to_host
from gpubp.errors import SettingError, ShapeError, TrainingDivergedError
from gpubp.recording import StepToRecord


def network(device="cpu", members=None, dtype="float64", first=False):
    layers = [gpubp.Dense(6, 9), gpubp.BatchNorm(9, 0.3), gpubp.Tanh(), gpubp.Dense(9, 3)]
    layers = [gpubp.BatchNorm(6), *layers] if first else layers
    return gpubp.Network(layers, "squared_error", device=device, members=members, dtype=dtype, rng=1, l2=0.1)


def data(members=None, N=50):
    rng, lead = np.random.default_rng(0), () if members is None else (members,)
    return rng.normal(size=(*lead, N, 6)), rng.normal(size=(*lead, N, 3))


def all_of(net):
    return np.concatenate([to_host(array).ravel() for array in (net.theta, *net.statistics)])


def trained(net, X, T, captured=True, **settings):
    settings = {"optimizer": gpubp.SGD(0.05), "epochs": 3, "batch_size": 8, "progress": False, **settings}
    if not captured:
        net.plan = gpubp.StepPlan(
            net, settings["batch_size"], stacked=X.ndim == 3, micro_batch_size=settings.get("micro_batch_size")
        )
        net.plan._recorded_steps = lambda *_: 0
    gpubp.fit(net, X, T, **settings)
    return all_of(net)


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "stand-in":
        request.getfixturevalue("fake_cupy")
    return "cuda:0"


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.parametrize("members", [None, 2])
def test_recorded_steps_are_the_steps(members, micro, first, cpu_kernels, monkeypatch):
    made = []
    faithful = StepToRecord.is_faithful
    monkeypatch.setattr(StepToRecord, "is_faithful", lambda *a: made.append(faithful(*a)) or made[-1])
    nets, (X, T) = [network(members=members, first=first) for _ in range(2)], data(members)
    runs = [trained(net, X, T, captured, micro_batch_size=micro) for net, captured in zip(nets, (1, 0), strict=True)]
    np.testing.assert_allclose(*runs, rtol=0, atol=1e-12)
    assert made == [True, True]  # of full batches, and of the last one


@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.parametrize("members", [None, 2])
def test_captured_steps_are_the_steps_bit_for_bit(device, members, micro):
    nets, (X, T) = [network(device, members, "float32") for _ in range(2)], data(members)
    runs = [trained(net, X, T, captured, micro_batch_size=micro) for net, captured in zip(nets, (1, 0), strict=True)]
    np.testing.assert_array_equal(*runs)
    assert nets[0].plan.why_not_captured is None


@pytest.mark.parametrize("members", [None, 2])
def test_a_device_computes_what_the_cpu_computes(device, members, monkeypatch):
    X, T = data(members)
    runs = [trained(network(d, members), X, T) for d in ("cpu", device)]
    monkeypatch.setattr("gpubp.cpu.kernels", lambda: None)
    runs.append(trained(network("cpu", members), X, T))
    np.testing.assert_allclose(runs[1], runs[0], rtol=0, atol=1e-11)
    np.testing.assert_allclose(runs[2], runs[0], rtol=0, atol=1e-11)


def test_data_that_a_stack_shares_is_normalised_for_each_member():
    X, T = data()
    stack = network(members=2, first=True)
    single = gpubp.Network(
        [gpubp.BatchNorm(6), gpubp.Dense(6, 9), gpubp.BatchNorm(9, 0.3), gpubp.Tanh(), gpubp.Dense(9, 3)],
        "squared_error", dtype="float64", device="cpu", l2=0.1,
    )  # fmt: skip
    single.theta[...] = stack.theta[1]
    trained(stack, X, np.stack([T, T]))
    trained(single, X, T)
    np.testing.assert_allclose(stack.theta[1], single.theta, atol=1e-12)
    for mine, theirs in zip(stack.statistics, single.statistics, strict=True):
        np.testing.assert_allclose(mine[1], theirs, atol=1e-12)


def test_statistics_are_what_they_say_and_inference_uses_them():
    net, (X, T) = network(), data()
    norm = net.layers[1]
    H, _ = net.layers[0].forward(X)
    net.loss_and_gradients(X, T)
    mean, variance = norm.constants["running_mean"], norm.constants["running_variance"]
    np.testing.assert_allclose(mean, 0.3 * H.mean(axis=0), atol=1e-14)
    np.testing.assert_allclose(variance, 0.7 + 0.3 * H.var(axis=0, ddof=1), atol=1e-13)
    before = all_of(net)
    Y, _ = norm.forward(H)
    np.testing.assert_allclose(Y, (H - mean) / np.sqrt(variance + 1e-5), atol=1e-12)
    net.predict(X)
    net.evaluate(X, T)
    np.testing.assert_array_equal(all_of(net), before)
    one = net.predict(X[:1])
    np.testing.assert_allclose(one, net.predict(X)[:1], atol=1e-13)


def test_a_batch_of_one_example_gives_beta_and_teaches_nothing_below():
    net, (X, T) = network(), data()
    net.parameters["1.beta"][...] = np.arange(9)
    before = all_of(net)
    _, gradients = net.loss_and_gradients(X[:1], T[:1])
    Y, _ = net.layers[1].forward(np.ones((1, 9)) * 5, training=True)
    np.testing.assert_array_equal(Y, [np.arange(9)])
    assert not gradients["1.gamma"].any()
    np.testing.assert_allclose(gradients["0.W"], 0.1 * net.parameters["0.W"], atol=1e-15)  # of the penalty
    assert gradients["1.beta"].any()
    np.testing.assert_array_equal(all_of(net), before)


def test_gamma_and_beta_are_not_decayed():
    net = network()
    assert net.weights_size == 6 * 9 + 9 * 3
    assert list(net.parameters) == ["0.W", "0.b", "1.gamma", "1.beta", "3.W", "3.b"]
    assert (net.parameters["1.gamma"] == 1).all()


@pytest.mark.parametrize("members", [None, 2])
def test_gradients_agree_with_differences(members):
    X, T = data(members, N=7)
    report = gpubp.check_gradients(network(members=members, first=True), X, T, sample_weight=np.arange(1.0, 8))
    assert report.ok, report
    assert report.kinks == 0


def test_an_average_of_the_weights_leaves_the_statistics_as_they_are():
    net, (X, T), optimizer = network(), data(), gpubp.SGD(0.1, average=0.9)
    gpubp.fit(net, X, T, optimizer=optimizer, epochs=2, progress=False)
    before, theta = [array.copy() for array in net.statistics], net.theta.copy()
    with optimizer.averaged(net):
        assert (net.theta != theta).any()
        for array, expected in zip(net.statistics, before, strict=True):
            np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("members", [None, 2])
def test_files_copies_and_pickles_carry_the_statistics(members, tmp_path):
    net, (X, T) = network(members=members), data(members)
    trained(net, X, T)
    gpubp.save(net, tmp_path / "m")
    others = [gpubp.load(tmp_path / "m", device="cpu"), net.copy(), copy.deepcopy(net), copy.copy(net)]
    others.append(pickle.loads(pickle.dumps(net)))
    expected, before = net.predict(X), all_of(net)
    for other in others:
        np.testing.assert_array_equal(other.predict(X), expected)
        trained(other, X, T)
        np.testing.assert_array_equal(all_of(net), before)
        assert (all_of(other) != before).any()


def test_a_diverged_epoch_is_undone_with_its_statistics():
    net, (X, T) = network(), data()
    trained(net, X, T)
    before = all_of(net)
    T[20] = 1e300
    with pytest.raises(TrainingDivergedError):
        gpubp.fit(net, X, T, optimizer=gpubp.SGD(1e10), epochs=1, batch_size=8, progress=False)
    np.testing.assert_array_equal(all_of(net), before)


@pytest.mark.parametrize("members", [None, 2])
def test_early_stopping_puts_the_statistics_back_too(members):
    net, (X, T) = network(members=members), data(members)
    seen = []

    class Keeper(gpubp.Callback):
        def on_epoch_end(self, network, measured):
            seen.append((network.theta.copy(), [array.copy() for array in network.statistics]))
            return False

    stop = gpubp.EarlyStopping(2)
    trained(net, X, T, epochs=30, optimizer=gpubp.SGD(0.5), validation=(X, -T), callbacks=[Keeper(), stop])
    for e in range(members or 1):
        index = () if members is None else (e,)
        theta, statistics = seen[int(stop.best_epoch[index]) - 1]
        np.testing.assert_array_equal(net.theta[index], theta[index])
        for array, kept in zip(net.statistics, statistics, strict=True):
            np.testing.assert_array_equal(array[index], kept[index])


def test_a_recording_that_leaves_the_statistics_out_is_not_used(fake_cupy, monkeypatch):
    """They are part of what a replay must give."""
    from gpubp.cuda_kernels import batch_norm as kernels

    right = kernels.statistics

    def on_the_host(X, mean, r, running_mean, running_variance, momentum, epsilon, partial_sums):
        spare = running_mean.copy(), running_variance.copy()
        right(X, mean, r, *spare, momentum, epsilon, partial_sums)

    monkeypatch.setattr(kernels, "statistics", on_the_host)
    net, (X, T) = network("cuda:0"), data()
    with pytest.warns(UserWarning, match="not captured"):
        trained(net, X, T)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: gpubp.BatchNorm(0), SettingError, "n=0"),
        (lambda: gpubp.BatchNorm(3, 0), SettingError, "momentum=0"),
        (lambda: gpubp.BatchNorm(3, 1.1), SettingError, "momentum=1.1"),
        (lambda: gpubp.BatchNorm(3, epsilon=0), SettingError, "epsilon=0"),
        (lambda: gpubp.BatchNorm(3).output_width(2), ShapeError, "width 3, not 2"),
    ],
)
def test_wrong_use_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()
