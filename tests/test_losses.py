"""What every loss promises: its gradient is that of its own value, and its value is the weighted mean it says."""

from __future__ import annotations

import numpy as np
import pytest
from cases import SHAPES, lead, losses

import gpubp
from gpubp.errors import DataError, SettingError, ShapeError
from gpubp.gradcheck import compare
from gpubp.losses.penalty import add_l2

ALL = pytest.mark.parametrize("loss", losses(), ids=repr)


def example(loss, N, members, K=3, seed=0):
    rng = np.random.default_rng(seed)
    Y = rng.normal(size=(*lead(members), N, K * loss.heads))
    w = rng.uniform(0.1, 2, size=(*lead(members), N))
    return Y, loss.example_targets(rng, (*Y.shape[:-1], K)), w / w.mean(axis=-1, keepdims=True)


@ALL
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("N", "members"), SHAPES)
def test_the_gradient_is_that_of_the_value(loss, N, members, weighted):
    Y, T, w = example(loss, N, members)
    sample_weight = w if weighted else None
    _, saved = loss.forward(Y, T, sample_weight)
    dL_dY = loss.backward(saved)
    assert dL_dY.shape == Y.shape
    check = compare(lambda: loss.forward(Y, T, sample_weight)[0].sum(), Y, dL_dY, "Y")
    assert check.error <= 1e-7
    assert check.compared == Y.size


@ALL
@pytest.mark.parametrize("weighted", [False, True])
def test_the_value_is_a_weighted_mean_of_the_values_of_single_examples(loss, weighted):
    Y, T, w = example(loss, 5, None)
    singles = np.array([loss.forward(Y[n : n + 1], T[n : n + 1])[0] for n in range(5)])
    expected = np.average(singles, weights=w if weighted else None)
    assert loss.forward(Y, T, w if weighted else None)[0] == pytest.approx(expected, rel=1e-13)


@ALL
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("N", [1, 3, 5])
def test_a_stack_equals_the_loop_over_its_members(loss, N, weighted):
    Y, T, w = example(loss, N, 3)
    L, saved = loss.forward(Y, T, w if weighted else None)
    dL_dY = loss.backward(saved)
    assert L.shape == (3,)
    for e in range(3):
        L_e, saved_e = loss.forward(Y[e], T[e], w[e] if weighted else None)
        assert L[e] == pytest.approx(L_e, rel=1e-13)
        np.testing.assert_allclose(dL_dY[e], loss.backward(saved_e), rtol=1e-13)


@ALL
def test_targets_and_weights_that_a_stack_shares_count_for_each_member(loss):
    Y, T, w = example(loss, 3, 3)  # E == N == K
    shared = loss.forward(Y, T[0], w[0])
    each = loss.forward(Y, np.stack([T[0]] * 3), np.stack([w[0]] * 3))
    np.testing.assert_allclose(shared[0], each[0], rtol=1e-14)
    np.testing.assert_allclose(loss.backward(shared[1]), loss.backward(each[1]), rtol=1e-14)


@ALL
@pytest.mark.parametrize("weighted", [False, True])
def test_given_buffers_hold_the_same_and_inputs_are_left_unchanged(loss, weighted):
    Y, T, w = example(loss, 5, 2)
    kept = Y.copy(), T.copy(), w.copy()
    sample_weight = w if weighted else None
    L, saved = loss.forward(Y, T, sample_weight)
    dL_dY = loss.backward(saved)
    buffers = loss.buffers(Y.shape)
    out = {name: np.full(buffer.shape, np.nan) for name, buffer in buffers.items()}
    L_out, saved_out = loss.forward(Y, T, sample_weight, out)
    assert L_out is out["L"]
    np.testing.assert_array_equal(L_out, L)
    np.testing.assert_array_equal(loss.backward(saved_out, out), dL_dY)
    if buffers["dL_dY"].overwrites:
        out["dL_dY"] = out[buffers["dL_dY"].overwrites]  # as the plan does it
    np.testing.assert_array_equal(loss.backward(loss.forward(Y, T, sample_weight, out)[1], out), dL_dY)
    for before, after in zip(kept, (Y, T, w), strict=True):
        np.testing.assert_array_equal(before, after)


@ALL
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_extreme_outputs_give_finite_losses_and_gradients(loss, scale):
    if isinstance(loss, gpubp.PoissonDeviance):
        pytest.skip("a rate of exp(1e4) is beyond all numbers")
    Y = np.tile(np.array([[1.0, -1.0, 0.5], [-1.0, 1.0, 1.0]]) * scale, (1, loss.heads))
    T = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    L, saved = loss.forward(Y, T)
    assert np.isfinite(L)
    assert np.isfinite(loss.backward(saved)).all()
    assert np.isfinite(loss.link(Y)).all()
    if isinstance(loss, gpubp.BinaryCrossEntropy | gpubp.SoftmaxCrossEntropy):
        assert L >= 0.4 * scale, "a wrong answer given with certainty costs its distance, not log(0)"


@pytest.mark.parametrize("members", [None, 3])
def test_class_indices_mean_the_same_as_one_hot_rows(members):
    loss = gpubp.SoftmaxCrossEntropy()
    rng = np.random.default_rng(0)
    Y, classes = rng.normal(size=(*lead(members), 5, 4)), rng.integers(0, 4, size=5)
    L, saved = loss.forward(Y, classes)
    one_hot = loss.forward(Y, np.eye(4)[classes])
    np.testing.assert_array_equal(L, one_hot[0])
    np.testing.assert_array_equal(loss.backward(saved), loss.backward(one_hot[1]))


def test_a_minibatch_of_weight_zero_costs_nothing():
    loss = gpubp.SquaredError()
    L, saved = loss.forward(np.ones((3, 2)), np.zeros((3, 2)), np.zeros(3))
    assert L == 0
    assert not loss.backward(saved).any()


@pytest.mark.parametrize("loss", [gpubp.BinaryCrossEntropy(), gpubp.SoftmaxCrossEntropy()])
@pytest.mark.parametrize("distance", [5.0, 10.0, 15.0, 40.0])
@pytest.mark.parametrize("right", [0, 1])
def test_the_small_loss_of_a_confident_right_answer_keeps_its_digits(loss, distance, right):
    sign = 1 if right else -1
    if isinstance(loss, gpubp.BinaryCrossEntropy):
        Y, T = np.array([[sign * distance]], "float32"), np.array([[right]], "float32")
    else:
        Y, T = np.array([[0, sign * distance]], "float32"), np.array([right])
    # Softmax adds exp(-distance) to 1 before it takes the logarithm: float32 keeps that to half an ulp of 1.
    absolute = 0 if isinstance(loss, gpubp.BinaryCrossEntropy) else 6e-8
    assert loss.forward(Y, T)[0] == pytest.approx(np.log1p(np.exp(-distance)), rel=1e-6, abs=absolute)


def test_rows_of_probabilities_that_nearly_sum_to_1_are_scaled_to_do_so():
    T = gpubp.SoftmaxCrossEntropy().targets(np.array([[0.333, 0.333, 0.3335]]), (1, 3), np.dtype("float64"))
    assert T.sum() == pytest.approx(1, abs=1e-15)
    net = gpubp.mlp([2, 3], rng=0)
    assert gpubp.check_gradients(net, np.ones((1, 2)), [[0.333, 0.333, 0.3335]]).ok


def test_squared_error_has_the_documented_scales():
    Y, T = np.array([[1.0, 2.0], [3.0, 4.0]]), np.zeros((2, 2))
    assert gpubp.SquaredError(1).forward(Y, T)[0] == (1 + 4 + 9 + 16) / 2
    np.testing.assert_array_equal(gpubp.SquaredError(1).backward(gpubp.SquaredError(1).forward(Y, T)[1]), 2 * Y / 2)
    np.testing.assert_array_equal(gpubp.SquaredError().backward(gpubp.SquaredError().forward(Y, T)[1]), Y / 2)


def test_links_give_predictions():
    Y = np.array([[0.0, 1.0], [2.0, 0.0]])
    np.testing.assert_allclose(gpubp.SoftmaxCrossEntropy().link(Y), np.exp(Y) / np.exp(Y).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(gpubp.BinaryCrossEntropy().link(Y), 1 / (1 + np.exp(-Y)))
    linear = gpubp.SquaredError().link(Y)
    np.testing.assert_array_equal(linear, Y)
    assert not np.shares_memory(linear, Y)


@pytest.mark.parametrize("shape", [(12,), (2, 12), (5, 7), (3, 40000)])
def test_the_l2_penalty_is_per_member_and_sums_over_tiles(shape):
    W = np.random.default_rng(0).normal(size=(*shape[:-1], shape[-1] + 3))[..., :-3]  # strided, as in theta
    gradient = np.ones_like(W)
    L = np.array(np.arange(np.prod(shape[:-1])).reshape(shape[:-1]), float)
    kept, penalty = L.copy(), 0.1 * (W * W).sum(axis=-1)
    assert add_l2(W, 0.2, gradient, L) is L
    np.testing.assert_allclose(L, kept + penalty, rtol=1e-12)
    np.testing.assert_allclose(gradient, 1 + 0.2 * W, rtol=1e-13)
    add_l2(W, 0.2, None, L)
    np.testing.assert_allclose(L, kept + 2 * penalty, rtol=1e-12)


TARGETS = [
    (gpubp.SoftmaxCrossEntropy(), np.array([0, 3]), (2, 3), DataError, r"class index 3 at index \(1,\).*3 outputs"),
    (gpubp.SoftmaxCrossEntropy(), np.array([0, -1]), (2, 3), DataError, "class index -1"),
    (gpubp.SoftmaxCrossEntropy(), np.array([0.0, 1.0]), (2, 3), DataError, "whole numbers"),
    (gpubp.SoftmaxCrossEntropy(), np.array([0, 1, 2]), (2, 3), ShapeError, r"shape \(3,\); 2 class indices"),
    (gpubp.SoftmaxCrossEntropy(), np.full((2, 3), 0.5), (2, 3), DataError, "sum to 1"),
    (gpubp.SoftmaxCrossEntropy(), np.array([[2.0, -1.0, 0.0]]), (1, 3), DataError, r"2.0 at index \(0, 0\)"),
    (gpubp.SoftmaxCrossEntropy(), np.eye(3, dtype=int), (3, 3, 3), ShapeError, "could be class indices"),
    (gpubp.BinaryCrossEntropy(), np.array([[0.0], [1.5]]), (2, 1), DataError, r"1.5 at index \(1, 0\)"),
    (gpubp.BinaryCrossEntropy(), np.array([0.0, np.nan]), (2, 1), DataError, "nan"),
    (gpubp.SquaredError(), np.array([[0.0, np.inf]]), (1, 2), DataError, r"index \(0, 1\) is inf"),
    (gpubp.SquaredError(), np.array([0.0, 1.0]), (2, 2), ShapeError, r"need \(2, 2\)"),
    (gpubp.SquaredError(), np.zeros((3, 2)), (2, 2), ShapeError, r"shape \(3, 2\)"),
    (gpubp.SquaredError(), np.zeros(3), (2, 4, 1), ShapeError, r"need \(4,\) or \(4, 1\) or \(2, 4, 1\)"),
]


@pytest.mark.parametrize(("loss", "T", "outputs", "error", "words"), TARGETS)
def test_unfit_targets_are_named(loss, T, outputs, error, words):
    with pytest.raises(error, match=words):
        loss.targets(T, outputs, np.dtype("float64"))


@pytest.mark.parametrize(
    ("loss", "T", "outputs", "shape"),
    [
        (gpubp.SquaredError(), np.zeros(4), (4, 1), (4, 1)),
        (gpubp.SquaredError(), np.zeros(4), (2, 4, 1), (4, 1)),
        (gpubp.SquaredError(), np.zeros((2, 4)), (2, 4, 1), (2, 4, 1)),
        (gpubp.SquaredError(), np.zeros((2, 2)), (2, 2, 1), (2, 2, 1)),
        (gpubp.SquaredError(), np.zeros((4, 3), int), (4, 3), (4, 3)),
        (gpubp.SquaredError(), np.zeros((2, 4, 3)), (2, 4, 3), (2, 4, 3)),
        (gpubp.BinaryCrossEntropy(), np.ones(4, bool), (4, 1), (4, 1)),
        (gpubp.SoftmaxCrossEntropy(), np.zeros(4, int), (4, 3), (4,)),
        (gpubp.SoftmaxCrossEntropy(), np.zeros(4, np.uint8), (2, 4, 3), (4,)),
        (gpubp.SoftmaxCrossEntropy(), np.zeros((2, 4), int), (2, 4, 3), (2, 4)),
        (gpubp.SoftmaxCrossEntropy(), np.zeros(4, bool), (4, 2), (4,)),
        (gpubp.SoftmaxCrossEntropy(), np.eye(3)[[0, 1, 2, 2]], (2, 4, 3), (4, 3)),
        (gpubp.SoftmaxCrossEntropy(), np.eye(3, dtype=int)[[0, 1, 2, 2]], (4, 3), (4, 3)),
        (gpubp.SoftmaxCrossEntropy(), np.ones((4, 1)), (4, 1), (4, 1)),
    ],
)
def test_fit_targets_come_in_the_shape_that_forward_takes(loss, T, outputs, shape):
    prepared = loss.targets(T, outputs, np.dtype("float32"))
    assert prepared.shape == shape
    indices = len(shape) < len(outputs) and shape in (outputs[:-1], outputs[-2:-1])
    assert prepared.dtype == (np.int64 if indices else np.float32)
    L, _ = loss.forward(np.zeros(outputs, "float32"), prepared)
    assert L.shape == outputs[:-2]


def test_settings_out_of_range_are_named():
    for scale in (0, -1, np.inf, np.nan):
        with pytest.raises(SettingError, match="scale"):
            gpubp.SquaredError(scale)
    with pytest.raises(SettingError, match=r"unknown loss 'hinge'.*squared_error"):
        gpubp.loss_by_name("hinge")
