"""Initial weights have the variances of their papers."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpubp
from gpubp.errors import SettingError
from gpubp.initializers import initializer

CASES = [
    ("glorot_uniform", 2 / (300 + 200), math.sqrt(6 / (300 + 200))),
    ("glorot_normal", 2 / (300 + 200), None),
    ("he_uniform", 2 / 300, math.sqrt(6 / 300)),
    ("he_normal", 2 / 300, None),
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


@pytest.mark.parametrize("name", [name for name, *_ in CASES])
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
    ],
)
def test_wrong_settings_are_named(make, words):
    with pytest.raises(SettingError, match=words):
        make()
