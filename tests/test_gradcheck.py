"""The gradient checks themselves: right is right, wrong is wrong, a kink is a kink."""

from __future__ import annotations

import numpy as np
import pytest

import gpubp
from gpubp.errors import ShapeError


def dense(X, W, b):
    return X @ W + b


def dense_backward(dL_dY, X, W, b):
    return dL_dY @ W.T, X.T @ dL_dY, dL_dY.sum(axis=0)


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(5, 4)), rng.normal(size=(4, 3)), rng.normal(size=3)


def test_a_right_backward_passes():
    kept = arrays()
    given = arrays()
    report = gpubp.check_backward(dense, dense_backward, *given)
    assert report.ok
    assert report.max_relative_error < 1e-9
    assert [check.size for check in report.checks] == [20, 12, 3]
    assert "gradients agree" in str(report)
    for before, after in zip(kept, given, strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize(
    ("backward", "culprit"),
    [
        (lambda dL_dY, X, W, b: (dL_dY @ W.T, 2 * X.T @ dL_dY, dL_dY.sum(axis=0)), "argument 1"),
        (lambda dL_dY, X, W, b: (-dL_dY @ W.T, X.T @ dL_dY, dL_dY.sum(axis=0)), "argument 0"),
        (lambda dL_dY, X, W, b: (dL_dY @ W.T, X.T @ dL_dY, dL_dY.mean(axis=0)), "argument 2"),
        (lambda dL_dY, X, W, b: (dL_dY @ W.T * np.nan, X.T @ dL_dY, dL_dY.sum(axis=0)), "argument 0"),
        (lambda dL_dY, X, W, b: (dL_dY @ W.T, X.T @ dL_dY + 1e-5, dL_dY.sum(axis=0)), "argument 1"),
    ],
)
def test_a_wrong_backward_fails_and_the_place_is_shown(backward, culprit):
    report = gpubp.check_backward(dense, backward, *arrays())
    assert not report.ok
    assert [check.name for check in report.checks if check.error > report.tolerance] == [culprit]
    assert "GRADIENTS DISAGREE" in str(report)
    assert "wrong at [" in str(report)


def test_a_square_weight_matrix_hides_a_missing_transpose_from_shapes_but_not_from_differences():
    W = np.random.default_rng(0).normal(size=(4, 4))
    report = gpubp.check_backward(lambda X: X @ W, lambda dL_dY, X: dL_dY @ W, arrays()[0])
    assert not report.ok


def test_gradients_of_another_shape_or_number_are_refused():
    with pytest.raises(ShapeError, match=r"gradient 1 has shape \(3, 4\), its array has \(4, 3\)"):
        gpubp.check_backward(dense, lambda d, X, W, b: (d @ W.T, d.T @ X, d.sum(axis=0)), *arrays())
    with pytest.raises(ShapeError, match="2 gradients for 3 arrays"):
        gpubp.check_backward(dense, lambda d, X, W, b: (d @ W.T, X.T @ d), *arrays())


@pytest.mark.parametrize("at", [0.0, 3e-6, -3e-6, 10e-6 / 3, 4.9e-6, 9e-6, -9.9e-6])
@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_a_kink_within_reach_is_found_and_left_out_whatever_its_place(at, slope):
    X = np.array([[1.0, at, -1.0]])
    report = gpubp.check_backward(
        lambda X: np.where(X > 0, X, slope * X), lambda dL_dY, X: dL_dY * np.where(X > 0, 1, slope), X
    )
    assert report.ok, report
    (check,) = report.checks
    assert (check.compared, check.kinks) == (2, 1)
    assert "1 entries at a kink left out" in str(report)


@pytest.mark.parametrize("function", [np.sin, np.exp, lambda X: X**3 * 100, lambda X: np.cosh(5 * X)])
def test_a_wrong_gradient_of_a_smooth_function_is_never_called_a_kink(function):
    X = np.linspace(-1.3, 1.7, 7)[None]
    report = gpubp.check_backward(function, lambda dL_dY, X: dL_dY * 0.5, X)
    assert not report.ok
    assert report.kinks == 0


def test_a_check_that_could_compare_nothing_is_not_ok():
    report = gpubp.check_backward(np.abs, lambda dL_dY, X: dL_dY, np.zeros((2, 2)))
    assert not report.ok
    assert "nothing to compare" in str(report)


def test_kinks_of_a_relu_net_are_reported_not_called_errors():
    net = gpubp.mlp([3, 4, 2], activation="relu", rng=0)
    X = np.zeros((2, 3))  # every hidden unit sits at its kink, as biases start at zero
    report = gpubp.check_gradients(net, X, [0, 0])
    assert report.kinks > 0
    assert "kink" in str(report)


@pytest.mark.usefixtures("numpy_ops")
def test_a_networks_check_finds_a_wrong_layer(monkeypatch):
    X, t = np.random.default_rng(0).normal(size=(5, 3)), [0, 1, 1, 0, 1]
    net = gpubp.mlp([3, 4, 2], rng=0)
    kept = net.theta.copy()
    assert gpubp.check_gradients(net, X, t).ok
    monkeypatch.setattr(gpubp.Sigmoid, "derivative", lambda self, xp, saved, out: xp.subtract(1, saved, out=out))
    report = gpubp.check_gradients(net, X, t)
    assert {check.name for check in report.checks if check.error > 1e-7} == {"0.W", "0.b"}
    np.testing.assert_array_equal(net.theta, kept)


def test_a_sample_of_entries_is_enough_for_large_arrays():
    net = gpubp.mlp([30, 40, 2], rng=0)
    report = gpubp.check_gradients(net, np.random.default_rng(0).normal(size=(4, 30)), [0, 1, 0, 1], entries=15)
    assert [check.compared for check in report.checks] == [15, 15, 15, 2]
    assert report.ok
