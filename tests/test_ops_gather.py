"""Slices of examples, and examples picked by index."""

from __future__ import annotations

import numpy as np
import pytest

from gpubp.ops.gather import example_rows, gather, row_slices


@pytest.mark.parametrize(
    ("N", "size", "expected"),
    [
        (0, 1, [(0, 0)]),
        (0, 5, [(0, 0)]),
        (1, 1, [(0, 1)]),
        (5, 1, [(n, n + 1) for n in range(5)]),
        (5, 2, [(0, 2), (2, 4), (4, 5)]),
        (6, 3, [(0, 3), (3, 6)]),
        (6, 7, [(0, 6)]),
    ],
)
def test_slices_cover_every_row_once(N, size, expected):
    assert [(rows.start, rows.stop) for rows in row_slices(N, size)] == expected


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.arange(5), [1, 2]),
        (np.arange(10).reshape(2, 5), [[1, 2], [6, 7]]),  # class indices of each member
        (np.arange(10.0).reshape(5, 2), [[2, 3], [4, 5]]),
        (np.arange(20.0).reshape(2, 5, 2), [[[2, 3], [4, 5]], [[12, 13], [14, 15]]]),
    ],
)
def test_rows_are_examples_whatever_is_around_them(array, expected):
    np.testing.assert_array_equal(array[example_rows(array, slice(1, 3))], expected)


@pytest.mark.parametrize("axis", [-1, -2])
def test_gather_picks_examples_into_the_given_array(axis):
    data, index = np.arange(24).reshape(2, 3, 4), np.array([2, 0])
    expected = data[..., index] if axis == -1 else data[..., index, :]
    out = np.full(expected.shape, -1)
    assert gather(data, index, out, axis) is out
    np.testing.assert_array_equal(out, expected)
