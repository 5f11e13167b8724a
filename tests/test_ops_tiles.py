"""Tiles of flat buffers: each element in exactly one, as few tiles as the scratch space allows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpubp.ops import tiles


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12, 1000])
@pytest.mark.parametrize("shape", [(1,), (7,), (24,), (1, 1), (3, 7), (5, 2), (5, 1), (1, 5), (4, 12)])
def test_every_element_is_in_exactly_one_tile_with_scratch_of_its_shape(shape, size):
    flat, scratch = np.zeros(shape), np.zeros(size)
    for tile, part in tiles.over(flat, scratch):
        assert part.shape == flat[tile].shape
        assert 0 < part.size <= size
        assert np.shares_memory(part, scratch)
        flat[tile] += 1
    assert (flat == 1).all()


@pytest.mark.parametrize(("shape", "size"), [((24,), 7), ((3, 10), 4), ((40000, 1), 16384), ((9, 5), 17), ((9, 5), 45)])
def test_tiles_are_as_large_as_the_scratch_space_allows(shape, size):
    *lead, columns = shape
    rows_at_once = size // columns or 1
    expected = math.ceil(math.prod(lead) / rows_at_once) * math.ceil(columns / size)
    assert len(list(tiles.over(np.zeros(shape), np.zeros(size)))) == expected


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
def test_an_empty_buffer_has_no_tiles(shape):
    flat = np.zeros(shape)
    assert list(tiles.over(flat, tiles.prepare(flat)[1])) == []


@pytest.mark.parametrize(("size", "expected"), [(10, 10), (100_000, tiles.TILE_ELEMENTS)])
def test_scratch_space_is_that_of_a_tile_and_no_larger_than_the_buffer(size, expected):
    module, scratch = tiles.prepare(np.zeros(size, "float32"))
    assert module is np
    assert scratch.shape == (expected,)
    assert scratch.dtype == np.float32
    assert tiles.prepare(np.zeros(size), scratch)[1] is scratch
