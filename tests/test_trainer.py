"""The training loop: every example once an epoch, repeatable, resumable, and clear when it goes wrong."""

from __future__ import annotations

import numpy as np
import pytest

import gpubp
from gpubp.data.minibatches import Minibatches, in_order, shuffled
from gpubp.errors import DataError, SettingError, ShapeError, TrainingDivergedError


def blobs(N=60, seed=0):
    """Three well separated classes."""
    rng = np.random.default_rng(seed)
    t = rng.integers(0, 3, N)
    return rng.normal(size=(N, 4)) + 5 * np.eye(4)[t], t


def quiet(net, *data, **settings):
    return gpubp.fit(net, *data, progress=False, **settings)


@pytest.mark.parametrize("batch_size", [1, 7, 30, 59, 60, 61, 1000])
@pytest.mark.parametrize("order", [in_order, shuffled(3)])
def test_an_epoch_visits_every_example_exactly_once(batch_size, order):
    X, T = np.arange(60.0)[:, None], np.arange(60)
    batches = Minibatches(X, T, np.arange(60.0), batch_size, order, gpubp.Device("cpu"))
    seen = [
        (part.X[rows, 0].tolist(), part.T[rows].tolist(), part.sample_weight[rows].tolist())
        for part in batches.parts(0)
        for rows in part.index
    ]
    assert all(a == b == c for a, b, c in seen)
    assert sorted(n for a, *_ in seen for n in a) == list(range(60))
    assert len(seen) == len(batches)
    assert [len(a) for a, *_ in seen[:-1]] == [min(batch_size, 60)] * (len(seen) - 1)
    if order is in_order:
        assert [n for a, *_ in seen for n in a] == list(range(60))


def test_the_order_is_a_function_of_seed_and_epoch_alone():
    assert (shuffled(1)(0, 50) == shuffled(1)(0, 50)).all()
    assert (shuffled(1)(0, 50) != shuffled(1)(1, 50)).any()
    assert (shuffled(1)(0, 50) != shuffled(2)(0, 50)).any()


@pytest.mark.parametrize("stacked", [False, True])
def test_members_may_have_examples_of_their_own(stacked):
    X, T = np.arange(24.0).reshape(2, 6, 2), np.arange(12).reshape(2, 6)
    batches = Minibatches(X, T if stacked else T[0], None, 4, shuffled(0), gpubp.Device("cpu"))
    order = shuffled(0)(5, 6)
    full, last = batches.parts(5)
    assert [full.index.shape, last.index.shape] == [(1, 4), (1, 2)]
    np.testing.assert_array_equal(np.concatenate([full.index[0], last.index[0]]), order)
    assert full.X is X
    assert full.sample_weight is None
    plan = gpubp.StepPlan(gpubp.mlp([2, 3, 12], members=2, device="cpu"), 4, stacked=True)
    for part in (full, last):
        X_b, T_b, w_b = plan.minibatch(part[:3], part.index[0])
        np.testing.assert_array_equal(X_b, X[:, part.index[0]])
        np.testing.assert_array_equal(T_b, (T if stacked else T[0])[..., part.index[0]])
        assert w_b is None


@pytest.mark.parametrize(
    "settings", [{}, {"shuffle": False}, {"rng": 5}, {"order": lambda epoch, N: np.arange(N)[::-1]}]
)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("members", [None, 2])
def test_fit_is_the_loop_that_anybody_would_write(settings, weighted, members):
    X, t = blobs()
    w = np.random.default_rng(0).uniform(0.5, 1, 60) if weighted else None
    make = lambda: gpubp.mlp([4, 5, 3], dtype="float64", l2=0.01, members=members, rng=0)  # noqa: E731
    net, by_hand = make(), make()
    history = quiet(net, X, t, optimizer=gpubp.SGD(0.1, 0.9), epochs=3, batch_size=25, sample_weight=w, **settings)
    optimizer, losses = gpubp.SGD(0.1, 0.9), []
    relative = np.ones(60) if w is None else w / w.mean()
    for epoch in range(3):
        order = np.random.default_rng([settings.get("rng", 0), epoch]).permutation(60)
        order = order if settings.get("shuffle", True) else np.arange(60)
        order = settings["order"](epoch, 60) if "order" in settings else order
        parts = [order[:25], order[25:50], order[50:]]
        batch_losses = []
        for part in parts:
            batch_losses.append(by_hand.run_step(X[part], t[part], relative[part]))
            optimizer.update(by_hand.theta, by_hand.dL_dtheta)
        losses.append(np.average(batch_losses, axis=0, weights=[25, 25, 10]))
    np.testing.assert_allclose(net.theta, by_hand.theta, rtol=0, atol=1e-13)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-12)
    assert history["epoch"] == [1, 2, 3]


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_weights_mean_the_same_in_every_batch_size(batch_size):
    X, t = blobs()
    w = np.random.default_rng(0).uniform(0, 5, 60)
    net = gpubp.mlp([4, 5, 3], dtype="float64", l2=0.1, rng=0)
    expected = net.loss_and_gradients(X, t, w)
    steps = []
    fixed = gpubp.Trainer(
        net, gpubp.SGD(1e-30), batch_size=batch_size, reduce_gradients=lambda dL_dtheta: steps.append(dL_dtheta.copy())
    )
    history = fixed.fit(X, t, epochs=1, sample_weight=w)
    assert history["loss"][0] == pytest.approx(expected[0], rel=1e-12)
    sizes = [min(batch_size, 60 - start) for start in range(0, 60, batch_size)]
    mean = net.named_gradients(np.average(steps, axis=0, weights=sizes))
    for name, array in expected[1].items():
        np.testing.assert_allclose(mean[name], array, atol=1e-13)


def test_an_explosion_in_the_last_update_of_an_epoch_is_noticed():
    X, t = blobs()
    net = gpubp.mlp([4, 3], loss="squared_error", rng=0)
    kept = net.theta.copy()
    with pytest.raises(TrainingDivergedError, match="epoch 1, batch 1 of 1"):
        quiet(net, X * 1e3, np.eye(3)[t], optimizer=gpubp.SGD(1e38), epochs=1, batch_size=60)
    np.testing.assert_array_equal(net.theta, kept)


def test_a_second_fit_goes_on_where_the_first_one_stopped():
    X, t = blobs()
    once, twice = (gpubp.mlp([4, 5, 3], rng=0) for _ in range(2))
    quiet(once, X, t, optimizer=gpubp.Adam(), epochs=6, batch_size=25)
    optimizer = gpubp.Adam()
    first = quiet(twice, X, t, optimizer=optimizer, epochs=2, batch_size=25)
    plan = twice.plan
    second = quiet(twice, X, t, optimizer=optimizer, epochs=4, batch_size=25)
    assert twice.plan is plan
    assert first["epoch"] + second["epoch"] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(once.theta, twice.theta)


def test_the_same_run_twice_gives_the_same_bits():
    X, t = blobs()
    nets = [gpubp.mlp([4, 5, 3], rng=0) for _ in range(2)]
    for net in nets:
        quiet(net, X, t, epochs=3, batch_size=16)
    np.testing.assert_array_equal(nets[0].theta, nets[1].theta)


def test_a_stack_trains_like_its_members_alone():
    X, t = blobs()
    stack = gpubp.mlp([4, 5, 3], members=3, dtype="float64", rng=0)
    singles = [gpubp.mlp([4, 5, 3], dtype="float64", rng=r) for r in np.random.default_rng(0).spawn(3)]
    rates = [0.1, 0.01, 0.3]
    history = quiet(stack, X, t, optimizer=gpubp.SGD(rates), epochs=3, batch_size=25, validation=(X, t))
    for e, (one, rate) in enumerate(zip(singles, rates, strict=True)):
        alone = quiet(one, X, t, optimizer=gpubp.SGD(rate), epochs=3, batch_size=25, validation=(X, t))
        np.testing.assert_allclose(stack.theta[e], one.theta, atol=1e-13)
        for name in ("loss", "validation_loss"):
            np.testing.assert_allclose([row[e] for row in history[name]], alone[name], rtol=1e-12)


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "squared_error", "binary_cross_entropy"])
def test_it_learns(loss):
    X, t = blobs(300)
    net = gpubp.mlp([4, 16, 3], loss=loss, standardize=True, rng=0)
    T = t if loss == "softmax_cross_entropy" else np.eye(3)[t]
    history = quiet(net, X, T, optimizer=gpubp.Adam(0.01), epochs=40, batch_size=32, validation=(X, T))
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    assert (net.predict(X).argmax(axis=-1) == t).mean() > 0.97
    assert history["validation_loss"][-1] == pytest.approx(net.evaluate(X, T), rel=1e-6)


def test_standardize_layers_adapt_to_the_training_data_once():
    X, t = blobs()
    net = gpubp.mlp([4, 3], standardize=True)
    quiet(net, X, t, epochs=1)
    np.testing.assert_allclose(net.layers[0].constants["mean"], X.mean(axis=0), rtol=1e-5)
    quiet(net, X + 100, t, epochs=1)
    np.testing.assert_allclose(net.layers[0].constants["mean"], X.mean(axis=0), rtol=1e-5)


def test_zero_epochs_change_nothing():
    X, t = blobs()
    net = gpubp.mlp([4, 3])
    kept = net.theta.copy()
    assert len(quiet(net, X, t, epochs=0)) == 0
    np.testing.assert_array_equal(net.theta, kept)


@pytest.mark.parametrize("members", [None, 2])
def test_divergence_names_epoch_batch_and_layers_and_brings_the_weights_back(members):
    X, t = blobs()
    net = gpubp.mlp([4, 6, 3], activation="relu", loss="squared_error", members=members, rng=0)
    T, optimizer = np.eye(3)[t], gpubp.SGD(0.01, momentum=0.9)
    quiet(net, X, T, optimizer=optimizer, epochs=2, batch_size=20)
    kept, velocity = net.theta.copy(), optimizer.state["V"].copy()
    optimizer.learning_rate = 1e12
    with pytest.raises(TrainingDivergedError) as caught:
        quiet(net, X, T, optimizer=optimizer, epochs=5, batch_size=20)
    message = str(caught.value)
    assert "epoch 3, batch 3 of 3" in message or "epoch 3, batch 2 of 3" in message
    assert "Dense(4, 6) + ReLU()" in message
    assert ("of member 0" in message) == (members is not None)
    assert "largest |activation|" in message
    assert "smaller learning rate than 1000000000000.0" in message
    np.testing.assert_array_equal(net.theta, kept)
    np.testing.assert_array_equal(optimizer.state["V"], velocity)
    assert net.epochs_trained == 2


class Watch(gpubp.Callback):
    """Records what it is told, and stops after a number of epochs."""

    def __init__(self, stop_after):
        self.events, self.stop_after = [], stop_after

    def on_train_begin(self, network, measures):
        self.events.append("begin")

    def on_epoch_end(self, network, measured):
        self.events.append(measured["epoch"])
        return len(self.events) > self.stop_after

    def on_train_end(self, network):
        self.events.append("end")


def test_callbacks_look_on_and_may_stop():
    X, t = blobs()
    watch = Watch(stop_after=2)
    history = quiet(gpubp.mlp([4, 3]), X, t, epochs=10, callbacks=[watch])
    assert watch.events == ["begin", 1, 2, "end"]
    assert len(history) == 2


def test_callbacks_hear_of_the_end_by_an_error_too():
    X, t = blobs()
    watch = Watch(stop_after=99)
    net = gpubp.mlp([4, 3], loss="squared_error")
    with pytest.raises(TrainingDivergedError):
        quiet(net, X, np.eye(3)[t], optimizer=gpubp.SGD(1e20), epochs=9, callbacks=[watch])
    assert watch.events[-1] == "end"


X, T = blobs(10)
BAD = [
    ({"batch_size": 0}, SettingError, "batch_size=0"),
    ({"batch_size": 2.5}, SettingError, "batch_size=2.5"),
    ({"epochs": -1}, SettingError, "epochs=-1"),
    ({"X": np.where(X == X[3, 2], np.nan, X)}, DataError, r"X at index \(3, 2\) is nan"),
    ({"X": np.where(X == X[3, 2], np.inf, X)}, DataError, r"X at index \(3, 2\) is inf"),
    ({"X": X[:, :3]}, ShapeError, "3 features"),
    ({"X": X[:0]}, DataError, "no examples"),
    ({"T": T + 1}, DataError, "class index 3"),
    ({"T": T[:-1]}, ShapeError, r"shape \(9,\)"),
    ({"sample_weight": -np.ones(10)}, DataError, "negative"),
    ({"order": lambda epoch, N: np.arange(N - 1)}, ShapeError, r"int64 \(9,\); whole numbers \(10,\) are needed"),
    ({"order": lambda epoch, N: np.arange(N) * 1.0}, ShapeError, "float64"),
    ({"order": lambda epoch, N: np.arange(N) + 1}, DataError, "from 1 to 10, not within 0 to 9"),
    ({"order": lambda epoch, N: np.arange(N) - 1}, DataError, "from -1 to 8"),
    ({"rng": -1}, SettingError, "rng=-1"),
    ({"rng": "a"}, SettingError, "rng='a'"),
    ({"validation": X}, SettingError, r"tuple \(X, T\)"),
    ({"validation": (X, T, T, T)}, SettingError, r"tuple \(X, T\)"),
    ({"validation": (X[:, :3], T)}, ShapeError, "3 features"),
    ({"callbacks": [gpubp.EarlyStopping()]}, SettingError, r"pass validation=\(X, T\)"),
]


@pytest.mark.parametrize(("wrong", "error", "words"), BAD)
def test_wrong_input_is_named_and_the_network_unchanged(wrong, error, words):
    net = gpubp.mlp([4, 3], rng=0)
    kept = net.theta.copy()
    arguments = {"X": X, "T": T, "epochs": 1, **wrong}
    with pytest.raises(error, match=words):
        quiet(net, arguments.pop("X"), arguments.pop("T"), **arguments)
    np.testing.assert_array_equal(net.theta, kept)
