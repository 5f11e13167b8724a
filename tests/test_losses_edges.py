"""Losses: empty batches, the penalty in tiles, and targets at the edges of what is taken."""

from __future__ import annotations

import json
import pickle
import re

import numpy as np
import pytest
from cases import losses
from rule_evaluator import evaluate_formula

import gpubp
from gpubp.errors import DataError, SettingError, ShapeError
from gpubp.losses.base import Loss, require_finite
from gpubp.losses.elementwise import ElementwiseLoss
from gpubp.losses.penalty import add_l2

F64 = np.dtype("float64")


@pytest.mark.parametrize("loss", losses(), ids=repr)
def test_no_examples_cost_nothing(loss):
    L, saved = loss.forward(np.empty((2, 0, 3 * loss.heads)), np.empty((2, 0, 3)))
    np.testing.assert_array_equal(L, [0, 0])
    assert loss.backward(saved).shape == (2, 0, 3 * loss.heads)


def test_the_first_of_several_bad_values_is_named():
    with pytest.raises(DataError, match=r"target at index \(1, 0\) is nan"):
        require_finite(np.array([[0.0, 1.0], [np.nan, 1.0], [np.inf, np.nan]]), "target")
    with pytest.raises(DataError, match=r"2.0 at index \(1, 0\)"):
        gpubp.BinaryCrossEntropy().targets(np.array([1.0, 2.0, 3.0]), (3, 1), F64)


@pytest.mark.parametrize("loss", [gpubp.BinaryCrossEntropy(), gpubp.SoftmaxCrossEntropy()])
@pytest.mark.parametrize("bad", [-0.25, 1.25])
def test_probabilities_are_within_0_to_1(loss, bad):
    with pytest.raises(DataError, match=f"target {bad} at index"):
        loss.targets(np.array([[bad, 1 - bad]]), (1, 2), F64)
    edges = np.array([[0.0, 1.0]])
    np.testing.assert_array_equal(loss.targets(edges, (1, 2), F64), edges)


def test_one_row_that_does_not_sum_to_1_is_enough():
    with pytest.raises(DataError, match=r"misses the sum 1 by 0\.2"):
        gpubp.SoftmaxCrossEntropy().targets(np.array([[0.0, 1.0], [0.5, 0.3]]), (2, 2), F64)


@pytest.mark.parametrize("shape", [(4,), (2, 4)])
def test_class_indices_of_a_stack_are_held_against_its_outputs(shape):
    loss, outputs = gpubp.SoftmaxCrossEntropy(), (2, 4, 3)
    T = np.zeros(shape, int)
    T[..., 1] = 3
    with pytest.raises(DataError, match=r"class index 3 .* 3 outputs"):
        loss.targets(T, outputs, F64)
    with pytest.raises(DataError, match="class indices must be whole numbers"):
        loss.targets(np.zeros(shape), outputs, F64)


def test_the_shapes_that_are_needed_are_named_once():
    with pytest.raises(ShapeError, match=re.escape("outputs of shape (2, 2) need (2, 2)") + "$"):
        gpubp.SquaredError().targets(np.zeros((3, 2)), (2, 2), F64)


@pytest.mark.parametrize("shape", [(12,), (40,), (5, 7), (3, 40)])
def test_the_l2_penalty_sums_over_tiles_of_each_member(shape, monkeypatch):
    monkeypatch.setattr("gpubp.ops.tiles.TILE_ELEMENTS", 16)
    W = np.random.default_rng(0).normal(size=shape)
    gradient = np.ones_like(W)
    L = add_l2(W, 0.2, gradient, np.ones(shape[:-1]))
    np.testing.assert_allclose(L, 1 + 0.1 * (W * W).sum(axis=-1), rtol=1e-13)
    np.testing.assert_allclose(gradient, 1 + 0.2 * W, rtol=1e-13)


# The losses one by one.


def value_of(loss, Y, T):
    return float(loss.forward(np.asarray(Y, float), np.asarray(T))[0])


def test_values_by_hand():
    Y, T = [[1.0, -2.0], [0.25, 3.0]], [[0.0, 0.0], [0.0, 3.0]]
    assert value_of(gpubp.AbsoluteError(), Y, T) == (1 + 2 + 0.25) / 2
    assert value_of(gpubp.Huber(), Y, T) == (0.5 + 1.5 + 0.03125) / 2
    assert value_of(gpubp.Huber(0.5), Y, T) == (0.375 + 0.875 + 0.03125) / 2
    assert value_of(gpubp.Quantile(0.25), Y, T) == (0.75 + 0.5 + 0.1875) / 2
    assert value_of(gpubp.Quantile(), Y, T) == value_of(gpubp.AbsoluteError(), Y, T) / 2
    variance = np.log1p(np.exp(-2.0)) + 1e-6
    expected = 0.5 * np.log(2 * np.pi * variance) + 0.5 / variance
    assert value_of(gpubp.GaussianNLL(), [[1.0, -2.0]], [[0.0]]) == pytest.approx(expected, rel=1e-13)


def test_each_part_of_a_row_is_one_quantile():
    """Of two targets and three quantiles, the first two outputs are those of the first quantile."""
    loss, T = gpubp.Quantile([0.1, 0.5, 0.9]), np.array([[1.0, 10.0]])
    Y = np.array([[0.0, 10.0, 1.0, 10.0, 1.0, 12.0]])
    L, saved = loss.forward(Y, T)
    assert pytest.approx(0.1 * 1 + 0.1 * 2) == L
    np.testing.assert_allclose(loss.backward(saved), [[-0.1, 0, 0, 0, 0, 0.1]], atol=1e-16)


@pytest.mark.parametrize("q", [0.1, 0.5, 0.8])
def test_the_best_constants_are_the_mean_the_median_and_the_quantile(q):
    T = np.arange(11.0)[:, None] ** 2
    constants = np.linspace(0, 100, 1001)
    best = lambda loss: constants[np.argmin([value_of(loss, np.full_like(T, c), T) for c in constants])]  # noqa: E731
    assert best(gpubp.SquaredError()) == pytest.approx(T.mean())
    assert best(gpubp.AbsoluteError()) == np.median(T)
    assert best(gpubp.Quantile(q)) == pytest.approx(np.quantile(T, q, method="higher"), abs=1e-9)


def test_the_losses_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    Y, T = rng.normal(size=(20, 1)), rng.poisson(1.5, size=(20, 1)).astype(float)
    assert (T == 0).any()
    loss = gpubp.PoissonDeviance()
    assert value_of(loss, Y, T) == pytest.approx(metrics.mean_poisson_deviance(T, loss.link(Y)), rel=1e-13)
    assert value_of(gpubp.AbsoluteError(), Y, T) == pytest.approx(metrics.mean_absolute_error(T, Y), rel=1e-13)
    for q in (0.1, 0.7):
        pinball = metrics.mean_pinball_loss(T, Y, alpha=q)
        assert value_of(gpubp.Quantile(q), Y, T) == pytest.approx(pinball, rel=1e-13)


def test_a_perfect_rate_has_no_deviance():
    T = np.array([[1.0, 7.0, 1000.0]])
    assert value_of(gpubp.PoissonDeviance(), np.log(T), T) == pytest.approx(0, abs=1e-12)
    assert value_of(gpubp.PoissonDeviance(), [[-800.0]], [[0.0]]) == 0
    np.testing.assert_allclose(gpubp.PoissonDeviance().link(np.log(T)), T)


def test_a_gaussian_predicts_means_and_variances():
    Y = np.array([[1.0, 2.0, -1e4, 1e4]])
    np.testing.assert_array_equal(gpubp.GaussianNLL(0.5).link(Y), [[1.0, 2.0, 0.5, 10000.5]])
    assert not np.shares_memory(gpubp.GaussianNLL().link(Y), Y)
    net = gpubp.mlp([2, 2], loss="gaussian_nll", dtype="float64", device="cpu")
    gpubp.fit(net, np.zeros((200, 2)), np.random.default_rng(0).normal(3, 2, size=200), epochs=1000, batch_size=200,
              optimizer=gpubp.Adam(0.1), progress=False)  # fmt: skip
    mean, variance = net.predict(np.zeros((1, 2)))[0]
    T = np.random.default_rng(0).normal(3, 2, size=200)
    assert mean == pytest.approx(T.mean(), rel=1e-3)
    assert variance == pytest.approx(T.var(), rel=1e-2)


CLASSES = np.array([0, 2, 1, 2, 2, 0, 2, 2])


def test_balanced_weights_are_those_of_scikit_learn():
    assert gpubp.balanced_class_weight(CLASSES) == pytest.approx([8 / 6, 8 / 3, 8 / 15])
    assert gpubp.balanced_class_weight([0, 1, -1, 1, -1]) == pytest.approx([1.5, 0.75])
    assert np.mean(np.array(gpubp.balanced_class_weight(CLASSES))[CLASSES]) == pytest.approx(1)
    utils = pytest.importorskip("sklearn.utils.class_weight")
    expected = utils.compute_class_weight("balanced", classes=np.arange(3), y=CLASSES)
    np.testing.assert_allclose(gpubp.balanced_class_weight(CLASSES, 3), expected)


@pytest.mark.parametrize(
    ("T", "classes", "words"),
    [
        (np.array([0.0, 1.0]), None, "float64: .* class indices are needed"),
        (np.eye(2, dtype=int), None, r"shape \(2, 2\)"),
        (np.array([], int), None, r"shape \(0,\)"),
        (np.array([0, -2]), None, "class indices are needed"),
        (np.array([0, 2, 2]), None, "class 1 has no example"),
        (np.array([0, 1]), 3, "class 2 has no example"),
        (np.array([0, 1]), 1, "class index 1 is outside 0 to 0"),
        (np.array([-1, -1]), 2, "class 0 has no example"),
    ],
)
def test_no_balance_without_examples(T, classes, words):
    with pytest.raises(DataError, match=words):
        gpubp.balanced_class_weight(T, classes)


def test_class_weights_are_example_weights_that_are_not_scaled():
    weight, rng = np.array([0.5, 2.0, 3.0]), np.random.default_rng(0)
    Y = rng.normal(size=(8, 3))
    weighted, plain = gpubp.SoftmaxCrossEntropy(weight), gpubp.SoftmaxCrossEntropy()
    L, saved = weighted.forward(Y, CLASSES)
    expected, state = plain.forward(Y, CLASSES, weight[CLASSES])
    assert pytest.approx(expected, rel=1e-13) == L
    np.testing.assert_allclose(weighted.backward(saved), plain.backward(state), rtol=1e-12, atol=1e-16)
    binary, T = gpubp.BinaryCrossEntropy(3.0), (CLASSES == 2)[:, None].astype(float)
    L, saved = binary.forward(Y[:, :1], T)
    expected, state = gpubp.BinaryCrossEntropy().forward(Y[:, :1], T, 1 + 2 * T[:, 0])
    assert pytest.approx(expected, rel=1e-13) == L
    np.testing.assert_allclose(binary.backward(saved), gpubp.BinaryCrossEntropy().backward(state), rtol=1e-12)


def test_smoothed_targets_are_mixed_with_what_is_uniform():
    rng = np.random.default_rng(0)
    Y, T = rng.normal(size=(8, 3)), np.eye(3)[CLASSES]
    mixed = 0.7 * T + 0.1
    smoothed = gpubp.SoftmaxCrossEntropy(label_smoothing=0.3)
    assert value_of(smoothed, Y, CLASSES) == pytest.approx(value_of(gpubp.SoftmaxCrossEntropy(), Y, mixed), rel=1e-13)
    binary = gpubp.BinaryCrossEntropy(label_smoothing=0.3)
    mixed = 0.7 * T + 0.15
    assert value_of(binary, Y, T) == pytest.approx(value_of(gpubp.BinaryCrossEntropy(), Y, mixed), rel=1e-13)


MISSING = [
    gpubp.SquaredError(allow_missing=True),
    gpubp.GaussianNLL(allow_missing=True),
    gpubp.Quantile((0.2, 0.7), allow_missing=True),
    gpubp.BinaryCrossEntropy((1.0, 4.0), allow_missing=True),
    gpubp.SoftmaxCrossEntropy((1.0, 4.0), label_smoothing=0.1, allow_missing=True),
]


@pytest.mark.parametrize("loss", MISSING, ids=repr)
def test_minibatches_with_missing_targets_add_up_to_the_whole(loss):
    rng = np.random.default_rng(0)
    X, T = rng.normal(size=(30, 4)), rng.integers(0, 2, size=(30, 2)).astype(float)
    T[rng.random((30, 2)) < 0.4] = np.nan
    if isinstance(loss, gpubp.SoftmaxCrossEntropy):
        T = rng.integers(-1, 2, size=30)
    net = gpubp.mlp([4, 2 * loss.heads], loss=loss, dtype="float64", device="cpu")
    whole, gradients = net.loss_and_gradients(X, T)
    parts = [net.loss_and_gradients(X[rows], T[rows]) for rows in (slice(0, 11), slice(11, 30))]
    assert whole == pytest.approx((11 * parts[0][0] + 19 * parts[1][0]) / 30, rel=1e-12)
    assert net.evaluate(X, T, batch_size=7) == pytest.approx(whole, rel=1e-12)
    for name, gradient in gradients.items():
        expected = (11 * parts[0][1][name] + 19 * parts[1][1][name]) / 30
        np.testing.assert_allclose(gradient, expected, rtol=1e-11, atol=1e-15)
    assert gpubp.check_gradients(net, X, T).ok


@pytest.mark.parametrize("loss", MISSING[:4], ids=repr)
def test_what_is_missing_must_be_allowed_and_nothing_else_is(loss):
    outputs = (2, 2 * loss.heads)
    T = np.array([[0.0, np.nan], [1.0, 1.0]])
    np.testing.assert_array_equal(loss.targets(T, outputs, F64), T)
    strict = type(loss)(**{**loss.config(), "allow_missing": False})
    with pytest.raises(DataError, match=r"target at index \(0, 1\) is nan"):
        strict.targets(T, outputs, F64)
    T[1, 0] = np.inf
    with pytest.raises(DataError, match=r"target at index \(1, 0\) is inf"):
        loss.targets(T, outputs, F64)


def test_the_class_that_is_missing_is_minus_1_alone():
    lenient = gpubp.SoftmaxCrossEntropy(allow_missing=True)
    for row in ([np.nan, np.nan], [np.nan, 1.0]):
        with pytest.raises(DataError, match=r"index \(1, 0\) is nan, .* give class indices as whole numbers, -1"):
            lenient.targets(np.array([[0.0, 1.0], row]), (2, 2), np.float64)
    np.testing.assert_array_equal(lenient.targets(np.array([0, -1]), (2, 3), F64), [0, -1])
    for loss, bad in ((lenient, -2), (lenient, 3), (gpubp.SoftmaxCrossEntropy(), -1)):
        with pytest.raises(DataError, match=f"class index {bad} at index"):
            loss.targets(np.array([0, bad]), (2, 3), F64)
    with pytest.raises(DataError, match="is nan"):
        lenient.targets(np.array([[0, np.nan, 1]]), (1, 3), F64)


BAD_SETTINGS = [
    (gpubp.Quantile, (0,), r"q=0 is outside \(0, 1\)"),
    (gpubp.Quantile, (1.0,), "q=1.0 is outside"),
    (gpubp.Quantile, (np.nan,), "q=nan is outside"),
    (gpubp.Quantile, ((0.5, 1.5),), "q=1.5 is outside"),
    (gpubp.Quantile, ((),), r"q=\(\): a list of at least 1"),
    (gpubp.Huber, (0.0,), "Huber: delta=0.0 is not a positive finite number"),
    (gpubp.Huber, (np.inf,), "delta=inf"),
    (gpubp.GaussianNLL, (0,), "GaussianNLL: minimum_variance=0 is not"),
    (gpubp.BinaryCrossEntropy, (-1.0,), "BinaryCrossEntropy: positive_weight=-1.0 is not"),
    (gpubp.BinaryCrossEntropy, ((1.0, 0.0),), "positive_weight=0.0 is not"),
    (gpubp.SoftmaxCrossEntropy, ((1.0, np.nan),), "SoftmaxCrossEntropy: class_weight=nan is not"),
]


@pytest.mark.parametrize(("kind", "arguments", "words"), BAD_SETTINGS)
def test_bad_settings_are_named(kind, arguments, words):
    with pytest.raises(SettingError, match=words):
        kind(*arguments)


@pytest.mark.parametrize("kind", [gpubp.BinaryCrossEntropy, gpubp.SoftmaxCrossEntropy])
def test_smoothing_is_a_share(kind):
    for share in (-0.1, 1.0, np.nan):
        with pytest.raises(SettingError, match=f"{kind.__name__}: label_smoothing={share} is outside"):
            kind(label_smoothing=share)
    assert kind(label_smoothing=0).label_smoothing == 0.0


UNFIT = [
    (gpubp.Quantile((0.1, 0.9)), np.zeros(4), (4, 3), ShapeError, "3 outputs.*takes 2 for each target"),
    (gpubp.GaussianNLL(), np.zeros(4), (4, 1), ShapeError, "must be a multiple of 2"),
    (gpubp.GaussianNLL(), np.zeros((4, 2)), (4, 2), ShapeError, r"shape \(4, 2\) need \(4,\) or \(4, 1\)"),
    (gpubp.PoissonDeviance(), np.array([1.0, -0.5]), (2, 1), DataError, r"-0.5 at index \(1, 0\).*counts"),
    (gpubp.SoftmaxCrossEntropy((1, 2)), np.zeros(4, int), (4, 3), ShapeError, "2 class weights .* 3 outputs"),
    (gpubp.BinaryCrossEntropy((1, 2)), np.zeros((4, 3)), (4, 3), ShapeError, "2 positive weights .* 3 outputs"),
]


@pytest.mark.parametrize(("loss", "T", "outputs", "error", "words"), UNFIT)
def test_what_does_not_fit_the_loss_is_named(loss, T, outputs, error, words):
    with pytest.raises(error, match=words):
        loss.targets(T, outputs, F64)


def test_weights_of_a_stack_are_held_against_its_outputs():
    softmax, binary = gpubp.SoftmaxCrossEntropy((1, 2, 3)), gpubp.BinaryCrossEntropy((1, 2, 3))
    for loss, T in ((softmax, np.zeros(4, int)), (binary, np.zeros((4, 3)))):
        assert loss.targets(T, (2, 4, 3), F64).shape == T.shape
        with pytest.raises(ShapeError, match="3 .* weights .* 4 outputs"):
            loss.targets(T, (2, 3, 4), F64)


def test_targets_of_several_outputs_have_a_column_each():
    for loss, outputs in ((gpubp.GaussianNLL(), (4, 2)), (gpubp.Quantile((0.1, 0.5, 0.9)), (2, 4, 3))):
        assert loss.targets(np.zeros(4), outputs, F64).shape == (4, 1)
    assert gpubp.GaussianNLL().targets(np.zeros((4, 3)), (2, 4, 6), F64).shape == (4, 3)
    assert gpubp.GaussianNLL().targets(np.zeros((2, 4, 3)), (2, 4, 6), F64).shape == (2, 4, 3)


@pytest.mark.parametrize("loss", [*losses(), *MISSING], ids=repr)
def test_a_loss_is_its_settings(loss, tmp_path):
    again = gpubp.loss_by_name(loss.name, json.loads(json.dumps(loss.config())))
    assert (again.config(), repr(again), again.heads) == (loss.config(), repr(loss), loss.heads)
    net = gpubp.mlp([2, 6], loss=loss)
    gpubp.save(net, tmp_path / "m.safetensors")
    assert gpubp.load(tmp_path / "m.safetensors").loss.config() == loss.config()
    eval_names = {name: getattr(gpubp, name) for name in gpubp.__all__}
    assert eval(repr(loss), eval_names).config() == loss.config()


def test_what_a_loss_keeps_on_a_device_does_not_travel():
    loss = gpubp.SoftmaxCrossEntropy((1.0, 2.0))
    loss.forward(np.zeros((1, 2)), np.zeros(1, int))
    kept = loss._constant((1.0, 2.0), np.zeros(2))
    assert loss._constant((1.0, 2.0), np.ones(3)) is kept
    assert loss._constant((1.0, 3.0), np.ones(3)) is not kept
    assert loss._constant((1.0, 2.0), np.ones(3, "f4")).dtype == "f4"
    again = pickle.loads(pickle.dumps(loss))
    assert again.config() == loss.config()
    assert "_constants" not in vars(again)


class Hinge(ElementwiseLoss):
    """One of a user's own: array maths alone."""

    def of_outputs(self, Y, T, values, slopes):
        values[...] = np.maximum(1 - T * Y, 0)
        slopes[...] = -T * (T * Y < 1)


def test_a_loss_of_ones_own_needs_no_kernel():
    assert "hinge" not in Loss.by_name
    loss, rng = Hinge(allow_missing=True), np.random.default_rng(0)
    assert set(loss.buffers((2, 3))) == {"values", "slopes", "dL_dY", "losses", "w", "L"}
    Y, T = rng.normal(size=(5, 3)), rng.choice([-1.0, 1.0, np.nan], size=(5, 3))
    L, saved = loss.forward(Y, T)
    assert pytest.approx(np.nansum(np.maximum(1 - T * Y, 0)) / 5) == L
    np.testing.assert_allclose(loss.backward(saved), np.nan_to_num(-T * (T * Y < 1)) / 5)


@pytest.mark.parametrize("loss", ["huber", "absolute_error", "quantile", "poisson", "gaussian_nll"])
def test_networks_learn_with_every_loss(loss):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    net = gpubp.mlp([3, 8, 2], loss=loss, dtype="float64", device="cpu")
    T = np.abs(X[:, : 2 // net.loss.heads])
    before = net.evaluate(X, T)
    history = gpubp.fit(net, X, T, epochs=60, batch_size=20, optimizer=gpubp.Adam(0.01), progress=False)
    assert net.evaluate(X, T) < before - 0.05
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("name", ["class_weight", "q", "positive_weight"])
def test_settings_that_change_between_two_fits_count(name):
    kinds = {
        "class_weight": gpubp.SoftmaxCrossEntropy,
        "q": gpubp.Quantile,
        "positive_weight": gpubp.BinaryCrossEntropy,
    }
    X = np.random.default_rng(0).normal(size=(40, 3))
    T = np.arange(40) % 2 if name == "class_weight" else (X[:, :1] > 0).astype(float)
    T = np.hstack([T, T]) if name == "positive_weight" else T
    nets = [gpubp.mlp([3, 2], loss=kinds[name]((0.2, 0.7)), device="cpu") for _ in range(2)]
    for net in nets:
        optimizer = gpubp.SGD(0.1)
        for values in ((0.2, 0.7), (0.9, 0.4)):
            setattr(net.loss, name, values)
            if net is nets[1]:
                net.plan = None
            gpubp.fit(net, X, T, epochs=2, batch_size=8, optimizer=optimizer, progress=False)
    np.testing.assert_allclose(nets[0].theta, nets[1].theta, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_smoothed_rows_of_probabilities_and_class_indices_are_the_same_targets(share):
    rng = np.random.default_rng(0)
    Y, t = rng.normal(size=(6, 4)), rng.integers(4, size=6)
    rows, loss = np.eye(4)[t], gpubp.SoftmaxCrossEntropy(label_smoothing=share)
    log_P = Y - np.log(np.exp(Y).sum(axis=-1, keepdims=True))
    expected = -(((1 - share) * rows + share / 4) * log_P).sum(axis=-1).mean()
    for T in (rows, t):
        assert float(loss.forward(Y, T)[0]) == pytest.approx(expected, rel=1e-12)


def none_there(loss, members):
    shape = (*([] if members is None else [members]), 6)
    return np.full(shape, -1) if loss.name == "softmax_cross_entropy" else np.full((*shape, 2), np.nan)


@pytest.mark.parametrize("fit", [gpubp.fit, gpubp.fit_lbfgs])
@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize(
    "loss", [gpubp.Huber(allow_missing=True), gpubp.SoftmaxCrossEntropy(allow_missing=True)], ids=repr
)
def test_a_training_without_any_target_is_refused(loss, members, fit):
    X, T = np.random.default_rng(0).normal(size=(6, 3)), none_there(loss, members)
    net = gpubp.mlp([3, 2], loss=loss, members=members, device="cpu")
    start = net.theta.copy()
    for given in (T, T if members is None else T[0]):
        with pytest.raises(DataError, match="is missing: there is nothing to learn from"):
            fit(net, X, given)
    T[..., 0, *([] if T.dtype.kind == "i" else [0])] = 1
    if members is not None:
        T[1] = none_there(loss, None)
        with pytest.raises(DataError, match="every target of a member is missing"):
            fit(net, X, T)
        T[1] = T[0]
    with pytest.raises(DataError, match="every target.* is missing"):
        fit(net, X, T, validation=(X, none_there(loss, members)))
    np.testing.assert_array_equal(net.theta, start)
    assert np.all(np.asarray(net.evaluate(X, none_there(loss, members))) == 0)
    fit(net, X, T)
    assert (net.theta != start).any()


@pytest.mark.parametrize("loss", [gpubp.Quantile(0.8), gpubp.Quantile((0.1, 0.9)), gpubp.AbsoluteError()], ids=repr)
def test_at_the_target_itself_code_and_rule_have_no_slope(loss):
    T = np.array([[1.0, -2.0], [0.0, 3.0]])
    Y = np.concatenate([T] * loss.heads, axis=-1)
    _, saved = loss.forward(Y, T)
    assert not loss.backward(saved).any()
    for rule in loss.rules:
        assert not evaluate_formula(rule, {"w": np.full(2, 0.5), **loss.names(Y, T)}).any()
