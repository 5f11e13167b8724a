"""Minibatches in their own order, with weights and targets of each member."""

from __future__ import annotations

import numpy as np
import pytest

import gpubp
from gpubp.data.minibatches import Minibatches, in_order, shuffled


@pytest.mark.parametrize("order", [in_order, shuffled(3)])
def test_members_may_have_targets_and_weights_of_their_own_in_any_order(order):
    X, T, w = np.arange(20.0).reshape(2, 5, 2), np.arange(10).reshape(2, 5), np.arange(10.0).reshape(2, 5)
    batches = Minibatches(X, T, w, 2, order, gpubp.Device("cpu"))
    visited = np.arange(5) if order(0, 5) is None else order(0, 5)
    plan = gpubp.StepPlan(gpubp.mlp([2, 3, 10], members=2, device="cpu"), 2, stacked=True)
    indices = [(part, rows) for part in batches.parts(0, [1, 1]) for rows in part.index]
    for k, (part, index) in enumerate(indices):
        X_k, T_k, w_k = plan.minibatch(part[:3], index)
        rows = visited[2 * k : 2 * k + 2]
        np.testing.assert_array_equal(X_k, X[:, rows])
        np.testing.assert_array_equal(T_k, T[:, rows])
        np.testing.assert_array_equal(w_k, w[:, rows])
    assert k == 2
