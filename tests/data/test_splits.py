"""Held-out and validation rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gpubp.data.splits import split_rows
from gpubp.errors import DataError, SettingError


def parts(split):
    """The three parts in a tuple."""
    return split.train, split.validation, split.held_out


@given(
    st.lists(st.integers(0, 4), min_size=10, max_size=80),
    st.floats(0.05, 0.95),
    st.floats(0.05, 0.95),
    st.booleans(),
    st.integers(0, 2**64),
)
def test_parts_hold_every_row_once(T, held_out, validation, by_class, seed):
    T = np.array(T)
    try:
        split = split_rows(T, held_out, validation, np.random.default_rng(seed), by_class=by_class)
    except DataError:
        assume(False)
    assert sorted(np.concatenate(parts(split))) == list(range(len(T)))
    assert all(part.size for part in parts(split))
    again = split_rows(T, held_out, validation, np.random.default_rng(seed), by_class=by_class)
    for mine, other in zip(parts(split), parts(again), strict=True):
        np.testing.assert_array_equal(mine, other)


@given(st.lists(st.integers(1, 60), min_size=2, max_size=5), st.floats(0.05, 0.6), st.integers(0, 2**32))
def test_each_class_has_its_share(counts, held_out, seed):
    T = np.repeat(np.arange(len(counts)), counts)
    assume(len(T) >= 10 and max(counts) >= 3)
    split = split_rows(T, held_out, 0.15, np.random.default_rng(seed), by_class=True)
    for value, count in enumerate(counts):
        held = (T[split.held_out] == value).sum()
        assert (T[split.train] == value).any()
        if count == 1:
            assert held == 0
        else:
            assert held >= 1
            assert held == pytest.approx(held_out * count, abs=1)


def test_another_seed_gives_another_split():
    T = np.zeros(100)
    one, other = (split_rows(T, 0.2, 0.2, np.random.default_rng(seed), by_class=False) for seed in (0, 1))
    assert set(one.held_out) != set(other.held_out)
    assert [part.size for part in parts(one)] == [64, 16, 20]


def test_two_rows_at_least_are_held_out_of_quantities():
    split = split_rows(np.arange(10.0), 0.05, 0.05, np.random.default_rng(0), by_class=False)
    assert [part.size for part in parts(split)] == [6, 2, 2]


def test_rows_are_not_in_the_order_of_their_class():
    T = np.repeat([0, 1], 50)
    split = split_rows(T, 0.2, 0.2, np.random.default_rng(0), by_class=True)
    for part in parts(split):
        assert (np.diff(T[part]) != 0).sum() > 1


@pytest.mark.parametrize(
    ("T", "held_out", "by_class", "said"),
    [
        (np.arange(9), 0.2, False, "9 rows are too few to train on some and hold out others: 10 are needed"),
        (np.arange(12), 0.2, True, "too few examples of each class to train, to validate and to hold out 0.2"),
        (np.repeat(np.arange(6), 2), 0.2, True, "too few examples of each class"),
        (np.arange(10), 0.99, False, "too few rows to train, to validate and to hold out 0.99"),
    ],
)
def test_too_few_rows(T, held_out, by_class, said):
    with pytest.raises(DataError) as error:
        split_rows(T, held_out, 0.15, np.random.default_rng(0), by_class=by_class)
    assert said in str(error.value)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_shares_outside_their_range(share):
    with pytest.raises(SettingError, match="held_out="):
        split_rows(np.zeros(20), share, 0.1, np.random.default_rng(0), by_class=False)
    with pytest.raises(SettingError, match="validation="):
        split_rows(np.zeros(20), 0.1, share, np.random.default_rng(0), by_class=False)


def test_without_a_share_to_validate_the_rest_is_trained_on():
    rng = np.random.default_rng(0)
    split = split_rows(np.arange(20) % 2, 0.25, None, rng, by_class=True)
    assert (len(split.train), len(split.validation), len(split.held_out)) == (16, 0, 4)
    assert sorted([*split.train, *split.held_out]) == list(range(20))
