"""`Network`: flat buffers, whole-net gradients, stacks, and what goes in and out."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from cases import lead

import gpubp
from gpubp.errors import DataError, SettingError, ShapeError

LOSSES = ["softmax_cross_entropy", "binary_cross_entropy", "squared_error"]
ACTIVATIONS = ["sigmoid", "tanh", "relu", "leaky_relu", "identity", "elu", "gelu", "silu", "softplus"]


def data(N=5, n_in=4, K=3, members=None, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(*lead(members), N, n_in))
    T = rng.dirichlet(np.ones(K), size=(*lead(members), N))
    return X, T, rng.uniform(0.1, 2, size=(*lead(members), N))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("members", [None, 2, 5])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_of_whole_nets_agree_with_differences(loss, activation, members, weighted):
    X, T, w = data(members=members)
    widths = [4, 6, 5, 3]
    net = gpubp.mlp(widths, activation=activation, loss=loss, members=members, l2=0.1, standardize=True, rng=1)
    report = gpubp.check_gradients(net, X, T, sample_weight=w if weighted else None, entries=40)
    assert report.ok, report
    assert report.kinks == 0
    assert {check.name for check in report.checks} == set(net.parameters)


def test_layers_that_are_not_fused_are_checked_too():
    X, T, _ = data()
    layers = [gpubp.Tanh(), gpubp.Dense(4, 6), gpubp.Sigmoid(), gpubp.Tanh(), gpubp.Standardize(6), gpubp.Dense(6, 3)]
    net = gpubp.Network(layers, "squared_error", rng=1, dtype="float64")
    net.adapt(X)
    report = gpubp.check_gradients(net, X, T, entries=None)
    assert report.ok, report
    assert [check.compared for check in report.checks] == [24, 6, 18, 3]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("E", "N"), [(3, 3), (2, 5)])
def test_a_stack_equals_the_loop_over_its_members(loss, shared, weighted, E, N):
    X, T, w = data(N, members=None if shared else E)
    stack = gpubp.mlp([4, 6, 3], loss=loss, members=E, dtype="float64", l2=0.3, rng=7)
    L, gradients = stack.loss_and_gradients(X, T, w if weighted else None)
    assert L.shape == (E,)
    singles = np.random.default_rng(7).spawn(E)
    for e in range(E):
        one = gpubp.mlp([4, 6, 3], loss=loss, dtype="float64", l2=0.3, rng=singles[e])
        np.testing.assert_array_equal(one.theta, stack.theta[e])
        X_e, T_e, w_e = (X, T, w) if shared else (X[e], T[e], w[e])
        L_e, gradients_e = one.loss_and_gradients(X_e, T_e, w_e if weighted else None)
        assert L[e] == pytest.approx(L_e, rel=1e-13)
        for name, array in gradients_e.items():
            np.testing.assert_allclose(gradients[name][e], array, atol=1e-14)
        np.testing.assert_allclose(stack.predict(X)[e], one.predict(X_e), atol=1e-14)


def test_theta_is_one_buffer_with_all_weights_first():
    net = gpubp.Network([gpubp.Dense(4, 6), gpubp.Sigmoid(), gpubp.Dense(6, 3)], "squared_error", rng=0)
    assert list(net.parameters) == ["0.W", "0.b", "2.W", "2.b"]
    assert net.theta.shape == (4 * 6 + 6 * 3 + 6 + 3,)
    assert net.weights_size == 4 * 6 + 6 * 3
    flat = np.concatenate([net.parameters[name].ravel() for name in ("0.W", "2.W", "0.b", "2.b")])
    np.testing.assert_array_equal(net.theta, flat)
    net.parameters["2.b"][...] = 5
    assert (net.theta[-3:] == 5).all()
    np.testing.assert_array_equal(net.forward(np.zeros((1, 4)))[0], net.layers[2].forward(
        net.layers[1].forward(np.zeros((1, 6), "f4"))[0])[0][0])  # fmt: skip


def test_a_stacks_theta_has_one_member_a_row_and_its_parameters_are_views():
    net = gpubp.mlp([4, 6, 3], members=2)
    assert net.theta.shape == (2, 51)
    for view in (*net.parameters.values(), *net.named_gradients(net.dL_dtheta).values()):
        assert view.shape[0] == 2
        assert np.shares_memory(view, net.theta) or np.shares_memory(view, net.dL_dtheta)
    net.parameters["0.W"][1] = 0
    assert not net.theta[1, :24].any()
    assert net.theta[0, :24].all()


def test_the_l2_penalty_is_part_of_the_loss_and_spares_biases():
    X, T, _ = data()
    plain, decayed = (gpubp.mlp([4, 6, 3], dtype="float64", l2=l2, rng=0) for l2 in (0.0, 0.3))
    for net in (plain, decayed):
        net.parameters["0.b"][...] = 10
    penalty = 0.15 * sum((net.parameters[name] ** 2).sum() for net in [plain] for name in ("0.W", "2.W"))
    L, gradients = plain.loss_and_gradients(X, T)
    L_decayed, gradients_decayed = decayed.loss_and_gradients(X, T)
    assert L_decayed - L == pytest.approx(penalty, rel=1e-10)
    assert decayed.evaluate(X, T) == pytest.approx(L_decayed, rel=1e-13)
    for name, array in gradients.items():
        added = 0.3 * plain.parameters[name] if name.endswith("W") else 0
        np.testing.assert_allclose(gradients_decayed[name], array + added, atol=1e-14)


def test_gradients_that_were_handed_out_stay_valid():
    net = gpubp.mlp([4, 6, 3], rng=0)
    X, T, _ = data()
    L, gradients = net.loss_and_gradients(X, T)
    assert isinstance(L, float)
    kept = {name: array.copy() for name, array in gradients.items()}
    net.loss_and_gradients(-X, T)
    for name, array in kept.items():
        np.testing.assert_array_equal(gradients[name], array)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 100])
@pytest.mark.parametrize("members", [None, 2])
def test_predictions_and_losses_do_not_depend_on_the_batch_size(batch_size, members):
    X, T, w = data(members=members)
    net = gpubp.mlp([4, 6, 3], members=members, dtype="float64", rng=0)
    np.testing.assert_allclose(net.predict(X, batch_size), net.predict(X), atol=1e-14)
    np.testing.assert_allclose(net.evaluate(X, T, w, batch_size), net.loss_and_gradients(X, T, w)[0], rtol=1e-13)
    np.testing.assert_allclose(net.predict(X).sum(axis=-1), 1, atol=1e-14)
    assert net.predict(X[..., :0, :]).shape == (*lead(members), 0, 3)


@pytest.mark.parametrize("to", [list, lambda X: X.astype(int), lambda X: X.astype("f4"), np.asfortranarray])
def test_inputs_of_any_kind_are_taken(to):
    X = np.round(data()[0] * 3)
    net = gpubp.mlp([4, 6, 3], rng=0)
    np.testing.assert_array_equal(net.forward(to(X)), net.forward(X.astype("f4")))


def test_copies_are_independent_and_equal():
    X, T, _ = data()
    net = gpubp.mlp([4, 6, 3], standardize=True, activation=gpubp.LeakyReLU(0.3), l2=0.1, members=2, rng=0)
    net.adapt(X)
    other = net.copy(dtype="float64")
    np.testing.assert_allclose(other.predict(X), net.predict(X), atol=1e-6)
    np.testing.assert_allclose(other.evaluate(X, T), net.evaluate(X, T), rtol=1e-6)
    other.theta[...] = 0
    assert net.theta.any()
    assert other.layers[2].slope == 0.3


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_deep_copies_and_pickles_are_whole_networks(duplicate):
    X, T, _ = data()
    net = gpubp.mlp([4, 6, 3], standardize=True, l2=0.1, members=2, rng=0)
    gpubp.fit(net, X, T, epochs=2)
    other = duplicate(net)
    np.testing.assert_array_equal(other.predict(X), net.predict(X))
    assert (repr(other), other.l2, other.epochs_trained) == (repr(net), net.l2, 2)
    kept = net.theta.copy()
    gpubp.fit(other, X, T, epochs=2)
    assert (other.predict(X) != net.predict(X)).any()
    np.testing.assert_array_equal(net.theta, kept)


def test_a_penalty_of_strength_0_does_not_look_at_the_weights():
    net = gpubp.mlp([4, 3], loss="squared_error", rng=0)
    net.theta[...] = 3e19  # W^2 overflows float32
    assert np.isfinite(net.evaluate(np.zeros((1, 4)), np.full((1, 3), 3e19)))


def test_mlp_writes_the_layers_a_user_would():
    net = gpubp.mlp([4, 6, 3], activation="relu", standardize=True)
    assert repr(net.layers) == "[Standardize(n=4), Dense(4, 6), ReLU(), Dense(6, 3)]"
    assert net.layers[1].initializer == gpubp.He("normal")
    assert gpubp.mlp([4, 6, 3]).layers[0].initializer == gpubp.Glorot("uniform")
    assert repr(net).startswith("Network([Standardize(n=4)")


def test_the_same_seed_gives_the_same_network_and_dtypes_agree():
    first, second, other = (gpubp.mlp([4, 6, 3], rng=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.theta, second.theta)
    assert (first.theta != other.theta).any()
    np.testing.assert_array_equal(gpubp.mlp([4, 6, 3], rng=3, dtype="float64").theta.astype("f4"), first.theta)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: gpubp.Network([gpubp.Dense(4, 6), gpubp.Tanh(), gpubp.Dense(5, 3)], "squared_error"), ShapeError,
         r"layer 1, Tanh\(\), gives width 6, but layer 2: Dense\(5, 3\) takes inputs of width 5, not 6"),
        (lambda: gpubp.Network([gpubp.Tanh()], "squared_error"), SettingError, "Dense layer is missing"),
        (lambda: gpubp.Network([], "squared_error"), SettingError, "Dense layer is missing"),
        (lambda: gpubp.Network([gpubp.Dense(4, 4)] * 2, "squared_error"), SettingError, "stands twice"),
        (lambda: gpubp.Network(gpubp.mlp([4, 3]).layers, "squared_error"), SettingError, "layer 0.*make a new one"),
        (lambda: gpubp.mlp([4]), SettingError, "input's and the output's"),
        (lambda: gpubp.mlp([4, 0]), SettingError, "n_out=0"),
        (lambda: gpubp.mlp([4, 3], loss="hinge"), SettingError, "unknown loss 'hinge'"),
        (lambda: gpubp.mlp([4, 3], activation="swish"), SettingError, "unknown activation 'swish'"),
        (lambda: gpubp.mlp([4, 3], dtype="float16"), SettingError, "dtype='float16'"),
        (lambda: gpubp.mlp([4, 3], dtype="floaty"), SettingError, "dtype='floaty'"),
        (lambda: gpubp.mlp([4, 3], members=0), SettingError, "members=0"),
        (lambda: gpubp.mlp([4, 3], members=2.0), SettingError, "members=2.0"),
        (lambda: gpubp.mlp([4, 3], activation=None), SettingError, "unknown activation None"),
        (lambda: gpubp.Network([gpubp.Standardize(3)], "squared_error"), SettingError, "no parameters to train"),
        (lambda: gpubp.mlp([4, 3]).predict(np.ma.ones((2, 4))), DataError, "masked"),
        (lambda: gpubp.mlp([4, 3], l2=-1), SettingError, "l2=-1"),
        (lambda: gpubp.mlp([4, 3], device="gpu"), SettingError, "'cuda:1'"),
        (lambda: gpubp.mlp([4, 3]).predict(np.ones((2, 5))), ShapeError, "5 features.*takes 4"),
        (lambda: gpubp.mlp([4, 3]).predict(np.ones(4)), ShapeError, r"shape \(4,\).*\(N, n_in\)"),
        (lambda: gpubp.mlp([4, 3]).predict(np.ones((2, 2, 4))), ShapeError, r"\(N, n_in\) is needed"),
        (lambda: gpubp.mlp([4, 3], members=3).predict(np.ones((2, 2, 4))), ShapeError, "3 members"),
        (lambda: gpubp.mlp([4, 3]).predict(np.ones((2, 4)), batch_size=0), SettingError, "batch_size=0"),
        (lambda: gpubp.mlp([4, 3]).predict([["a", "b", "c", "d"]]), DataError, "numbers are needed"),
        (lambda: gpubp.mlp([4, 3]).predict([[1, 2], [3]]), DataError, "X can't be read"),
        (lambda: gpubp.mlp([4, 3]).loss_and_gradients(np.ones((0, 4)), np.ones((0, 3))), DataError, "no examples"),
        (lambda: gpubp.mlp([4, 3]).loss_and_gradients(np.ones((2, 4)), [0, 3]), DataError, "class index 3"),
        (lambda: gpubp.mlp([4, 3]).loss_and_gradients(np.ones((2, 4)), [0, 1], [1]), ShapeError, r"shape \(1,\)"),
        (lambda: gpubp.mlp([4, 3]).loss_and_gradients(np.ones((2, 4)), [0, 1], [1, -1]), DataError, "negative"),
        (lambda: gpubp.mlp([4, 3]).loss_and_gradients(np.ones((2, 4)), [0, 1], [1, np.nan]), DataError, "not finite"),
        (lambda: gpubp.mlp([4, 3]).loss_and_gradients(np.ones((2, 4)), [0, 1], [1, np.inf]), DataError, "not finite"),
        (lambda: gpubp.mlp([4, 3]).loss_and_gradients(np.ones((2, 4)), [0, 1], [0, 0]), DataError, "zero for every"),
    ],
)  # fmt: skip
def test_wrong_use_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 100])
@pytest.mark.parametrize("members", [None, 2])
def test_a_loss_without_weights_does_not_depend_on_the_batch_size(batch_size, members):
    rng = np.random.default_rng(0)
    X, t = rng.normal(size=(5, 4)), rng.integers(0, 3, size=5)
    net = gpubp.mlp([4, 6, 3], members=members, dtype="float64", l2=0.1, rng=0)
    np.testing.assert_allclose(net.evaluate(X, t, None, batch_size), net.loss_and_gradients(X, t)[0], rtol=1e-13)


def test_predictions_and_losses_of_few_examples_are_computed_all_at_once(monkeypatch):
    net = gpubp.mlp([2, 3], rng=0)
    rows, run = [], net.run_forward
    monkeypatch.setattr(net, "run_forward", lambda X, **how: rows.append(X.shape[-2]) or run(X, **how))
    net.predict(np.ones((7, 2)))
    net.predict(np.ones((7, 2)), batch_size=3)
    net.predict(np.ones((0, 2)))
    net.evaluate(np.ones((7, 2)), np.ones(7, int))
    assert rows == [7, 3, 3, 1, 0, 7]


@pytest.mark.parametrize("members", [None, 2])
def test_predictions_and_losses_of_many_examples_are_computed_a_bounded_number_at_a_time(members, monkeypatch):
    net = gpubp.mlp([4, 3], dtype="float64", members=members, rng=0)
    X, T, _ = data(11, members=members)
    expected = net.predict(X), net.evaluate(X, T)
    rows, run = [], net.run_forward
    monkeypatch.setattr(net, "run_forward", lambda X, **how: rows.append(X.shape[-2]) or run(X, **how))
    monkeypatch.setattr("gpubp.network.EVALUATED", 18)
    np.testing.assert_allclose(net.predict(X), expected[0], atol=1e-15)
    np.testing.assert_allclose(net.evaluate(X, T), expected[1], rtol=1e-14)
    assert rows == [4, 4, 3] * 2


@pytest.mark.parametrize(("layer", "loss"), [(gpubp.Softmax, LOSSES[0]), (gpubp.Sigmoid, LOSSES[1])])
def test_a_last_layer_that_the_loss_applies_by_itself_is_warned_of(layer, loss):
    X, T, _ = data()
    net = gpubp.Network([gpubp.Dense(4, 3), layer()], loss)
    with pytest.warns(UserWarning, match=rf"the last layer, {layer.__name__}\(\), comes twice, as {loss}") as caught:
        gpubp.fit(net, X, T, epochs=1)
    assert [warning.category for warning in caught] == [UserWarning]
    gpubp.fit(net, X, T, epochs=1)  # warnings are errors here
    assert gpubp.check_gradients(net, X, T).ok
    for other in {*LOSSES} - {loss}:
        gpubp.Network([gpubp.Dense(4, 3), layer()], other).evaluate(X, T)
    gpubp.Network([gpubp.Dense(4, 3), layer(), gpubp.Dense(3, 3)], loss).evaluate(X, T)
    with pytest.warns(UserWarning, match="comes twice"):
        gpubp.Network([gpubp.Dense(4, 3), layer()], loss).evaluate(X, T)


def test_a_stack_may_have_more_members_than_weights():
    X, T = np.array([[1.0], [2.0]]), np.array([[0.5], [-1.0]])
    stack = gpubp.mlp([1, 1], loss="squared_error", members=3, dtype="float64", l2=0.3, rng=7)
    L, gradients = stack.loss_and_gradients(X, T)
    for e, rng in enumerate(np.random.default_rng(7).spawn(3)):
        one = gpubp.mlp([1, 1], loss="squared_error", dtype="float64", l2=0.3, rng=rng)
        L_e, gradients_e = one.loss_and_gradients(X, T)
        assert L[e] == pytest.approx(L_e, rel=1e-13)
        for name, array in gradients_e.items():
            np.testing.assert_allclose(gradients[name][e], array, rtol=1e-13)


@pytest.mark.parametrize("weight", [np.inf, np.nan, -1.0])
def test_an_example_weight_is_a_finite_number_of_at_least_zero(weight):
    net = gpubp.mlp([4, 3], rng=0)
    with pytest.raises(DataError, match="negative or not finite"):
        net.loss_and_gradients(np.ones((2, 4)), [0, 1], [1.0, weight])
    assert np.isfinite(net.loss_and_gradients(np.ones((2, 4)), [0, 1], [1.0, 0.0])[0])
