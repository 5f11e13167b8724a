"""Initial weights have the variances of their papers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpubp
from gpubp.errors import SettingError
from gpubp.initializers import initializer

CASES = [
    ("glorot_uniform", 2 / (300 + 200), math.sqrt(6 / (300 + 200))),
    ("glorot_normal", 2 / (300 + 200), None),
    ("he_uniform", 2 / 300, math.sqrt(6 / 300)),
    ("he_normal", 2 / 300, None),
    ("lecun_uniform", 1 / 300, math.sqrt(3 / 300)),
    ("lecun_normal", 1 / 300, None),
    # A standard normal cut off at 2 has the variance 1 - 4 phi(2) / (2 Phi(2) - 1) = 0.7737.
    ("truncated_normal", 0.05**2 * 0.7737413, 0.1),
]


@pytest.mark.parametrize(("name", "variance", "limit"), CASES)
def test_mean_variance_and_limit(name, variance, limit):
    W = initializer(name)(np.random.default_rng(0), 300, 200)
    assert W.shape == (300, 200)
    assert abs(W.mean()) < 4 * math.sqrt(variance / W.size)
    # The variance of 60,000 draws scatters by under 0.6 % (normal); a factor of 2, or n_out for n_in, is far off.
    assert W.var() == pytest.approx(variance, rel=0.03)
    largest = np.abs(W).max()
    if limit is not None:
        assert 0.99 * limit < largest <= limit
    else:
        assert largest > 3.5 * math.sqrt(variance)


@pytest.mark.parametrize("name", [*(name for name, *_ in CASES), "orthogonal"])
def test_an_initializer_is_rebuilt_from_its_config(name):
    assert initializer(initializer(name).config()) == initializer(name)


def test_a_seed_gives_the_same_weights():
    draw = gpubp.TruncatedNormal(0.1)
    np.testing.assert_array_equal(draw(np.random.default_rng(5), 3, 4), draw(np.random.default_rng(5), 3, 4))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: initializer("xavier"), "unknown initializer 'xavier'.*glorot_uniform"),
        (lambda: initializer({"name": "Xavier"}), "unknown initializer 'Xavier'"),
        (lambda: gpubp.Glorot("gaussian"), "unknown distribution 'gaussian'"),
        (lambda: gpubp.TruncatedNormal(-1), "std=-1"),
        (lambda: gpubp.Orthogonal(0), "Orthogonal: gain=0 is not a positive"),
        (lambda: gpubp.Orthogonal(math.inf), "gain=inf"),
        (lambda: gpubp.LeCun("gaussian"), "unknown distribution 'gaussian'"),
    ],
)
def test_wrong_settings_are_named(make, words):
    with pytest.raises(SettingError, match=words):
        make()


@given(st.integers(1, 20), st.integers(1, 20), st.floats(0.1, 10), st.integers(0, 2**32))
def test_the_rows_or_columns_of_an_orthogonal_matrix_are_orthonormal(n_in, n_out, gain, seed):
    W = gpubp.Orthogonal(gain)(np.random.default_rng(seed), n_in, n_out) / gain
    assert W.shape == (n_in, n_out)
    products = W @ W.T if n_in <= n_out else W.T @ W
    np.testing.assert_allclose(products, np.eye(min(n_in, n_out)), atol=1e-12)


def test_all_orthogonal_matrices_are_equally_likely():
    """As after any rotation: each entry has mean 0 and variance 1/n, and both determinants come up."""
    rng = np.random.default_rng(0)
    matrices = np.array([gpubp.Orthogonal()(rng, 3, 3) for _ in range(4000)])
    assert np.abs(matrices.mean(axis=0)).max() < 4 / math.sqrt(3 * 4000)
    np.testing.assert_allclose((matrices**2).mean(axis=0), 1 / 3, atol=0.02)
    assert abs((np.linalg.det(matrices) > 0).mean() - 0.5) < 0.04
    np.testing.assert_allclose((matrices[:, 0, 0] > 0).mean(), 0.5, atol=0.04)


def test_a_network_may_be_drawn_by_them():
    layer = gpubp.Dense(5, 5, initializer="orthogonal")
    net = gpubp.Network([layer], loss="squared_error", dtype="float64", device="cpu")
    np.testing.assert_allclose(net.parameters["0.W"] @ net.parameters["0.W"].T, np.eye(5), atol=1e-14)


class Scripted:
    """Stands in for a generator: gives the numbers it was given."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def normal(self, size):
        numbers = np.array(self.draws.pop(0))
        assert numbers.size == size
        return numbers


def test_draws_beyond_two_standard_deviations_are_drawn_again_and_others_kept():
    rng = Scripted([0.5, 2.0, -2.5, -2.0, 3.0, -0.25], [2.25, 1.5], [-1.0])
    W = gpubp.TruncatedNormal(0.1)(rng, 3, 2)
    np.testing.assert_allclose(W, np.array([[0.5, 2.0], [-1.0, -2.0], [1.5, -0.25]]) * 0.1, rtol=1e-15)


@pytest.mark.parametrize("std", [0, math.inf, math.nan, -0.5])
def test_a_standard_deviation_is_a_positive_finite_number(std):
    with pytest.raises(SettingError, match="not a positive finite number"):
        gpubp.TruncatedNormal(std)


@pytest.mark.parametrize("name", ["relu", "elu", "gelu", "silu", "softplus"])
def test_an_activation_names_the_rule_that_keeps_its_scale_better(name):
    """With weights of variance c / n a layer multiplies the mean square by c E[f(z)^2], which should stay near 1."""
    z = np.linspace(-10, 10, 20001)[None, :]
    Y, _ = gpubp.activation_by_name(name).forward(z)
    mean_square = float((Y**2 * np.exp(-(z**2) / 2)).sum() / np.exp(-(z**2) / 2).sum())
    better = min([("glorot", 1), ("he", 2)], key=lambda rule: abs(np.log(rule[1] * mean_square)))[0]
    assert gpubp.activation_by_name(name).initializer.startswith(better)


def test_of_the_two_orthogonal_factors_it_is_that_with_a_positive_diagonal():
    A = np.random.default_rng(0).normal(size=(6, 4))
    R = gpubp.Orthogonal()(np.random.default_rng(0), 6, 4).T @ A
    np.testing.assert_allclose(np.tril(R, -1), 0, atol=1e-14)
    assert (np.diagonal(R) > 0).all()
