"""Initial weights: the edges of the truncated normal distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpubp
from gpubp.errors import SettingError


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
