"""Optimizers: a reset, rates of members in tiles, and settings at the edges of what is taken."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpubp
from gpubp.errors import SettingError


@pytest.mark.parametrize("make", [lambda: gpubp.SGD(0.1, momentum=0.9), lambda: gpubp.Adam(0.1)])
def test_after_a_reset_an_optimizer_is_new(make):
    used, new, gradient = make(), make(), np.array([1.0, -2.0])
    used.update(np.ones(2), gradient)
    used.reset()
    assert used.steps == 0
    first, second = np.ones(2), np.ones(2)
    for _ in range(2):
        used.update(first, gradient)
        new.update(second, gradient)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("epsilon", [math.inf, math.nan, -1e-8])
def test_adam_needs_a_finite_epsilon_above_zero(epsilon):
    with pytest.raises(SettingError, match=r"epsilon=.* is not a positive finite number"):
        gpubp.Adam(0.1, epsilon=epsilon)


@pytest.mark.parametrize("columns", [1, 5, 16, 50])
def test_each_member_keeps_its_own_learning_rate_in_every_tile(columns, monkeypatch):
    monkeypatch.setattr("gpubp.ops.tiles.TILE_ELEMENTS", 16)
    rates = np.linspace(0.1, 0.9, 20)
    theta, gradient = np.zeros((20, columns)), np.random.default_rng(0).normal(size=(20, columns))
    gpubp.SGD(rates).update(theta, gradient)
    np.testing.assert_allclose(theta, -rates[:, None] * gradient, rtol=1e-14)
