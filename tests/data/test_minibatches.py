"""Minibatches in their own order, with weights and targets of each member."""

from __future__ import annotations

import numpy as np

import gpubp
from gpubp.data.minibatches import Minibatches, in_order


def test_members_may_have_targets_and_weights_of_their_own_in_their_own_order():
    X, T, w = np.arange(20.0).reshape(2, 5, 2), np.arange(10).reshape(2, 5), np.arange(10.0).reshape(2, 5)
    batches = Minibatches(X, T, w, 2, in_order, gpubp.Device("cpu"))
    for k, (X_k, T_k, w_k) in enumerate(batches.epoch(0)):
        rows = slice(2 * k, 2 * k + 2)
        np.testing.assert_array_equal(X_k, X[:, rows])
        np.testing.assert_array_equal(T_k, T[:, rows])
        np.testing.assert_array_equal(w_k, w[:, rows])
    assert k == 2
