"""`Network`: losses and predictions in batches, stacks with more members than weights, and example weights."""

from __future__ import annotations

import numpy as np
import pytest

import gpubp
from gpubp.errors import DataError


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5, 100])
@pytest.mark.parametrize("members", [None, 2])
def test_a_loss_without_weights_does_not_depend_on_the_batch_size(batch_size, members):
    rng = np.random.default_rng(0)
    X, t = rng.normal(size=(5, 4)), rng.integers(0, 3, size=5)
    net = gpubp.mlp([4, 6, 3], members=members, dtype="float64", l2=0.1, rng=0)
    np.testing.assert_allclose(net.evaluate(X, t, None, batch_size), net.loss_and_gradients(X, t)[0], rtol=1e-13)


def test_predictions_are_computed_all_at_once_unless_a_batch_size_is_given(monkeypatch):
    net = gpubp.mlp([2, 3], rng=0)
    rows, run = [], net.run_forward
    monkeypatch.setattr(net, "run_forward", lambda X: rows.append(X.shape[-2]) or run(X))
    net.predict(np.ones((7, 2)))
    net.predict(np.ones((7, 2)), batch_size=3)
    net.predict(np.ones((0, 2)))
    assert rows == [7, 3, 3, 1, 0]


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
