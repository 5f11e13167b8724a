"""Layers: standardised values, free leading axes, and parameters without a seed."""

from __future__ import annotations

import numpy as np
from cases import ready

import gpubp


def test_standardised_columns_have_mean_zero_and_deviation_one():
    X = np.random.default_rng(0).normal(size=(50, 2)) * [3.0, 0.1] + [7.0, -4.0]
    layer = gpubp.Standardize(2)
    layer.adapt(X)
    Y, _ = layer.forward(X)
    np.testing.assert_allclose(Y, (X - X.mean(axis=0)) / X.std(axis=0), atol=1e-12)


def test_a_single_dense_layer_takes_any_leading_axes():
    layer = ready(lambda: gpubp.Dense(4, 3), None)
    X = np.random.default_rng(0).normal(size=(2, 6, 5, 4))
    Y, _ = layer.forward(X)
    np.testing.assert_allclose(Y, X @ layer.parameters["W"] + layer.parameters["b"], rtol=1e-13)


def test_parameters_without_a_seed_are_those_of_seed_0():
    layer, seeded = gpubp.Dense(3, 2), gpubp.Dense(3, 2)
    layer.initialize()
    seeded.initialize(0)
    np.testing.assert_array_equal(layer.parameters["W"], seeded.parameters["W"])
