"""Bias plus activation: blocks of rows on the CPU, and what is asked of a device."""

from __future__ import annotations

import math

import fake_cupy as fake
import numpy as np
import pytest

from gpubp.cuda_kernels import activation as launches
from gpubp.cuda_kernels import tiles
from gpubp.errors import ShapeError
from gpubp.layers.leaky_relu import LeakyReLU
from gpubp.layers.relu import ReLU
from gpubp.layers.tanh import Tanh
from gpubp.ops import activation

CPU_SHAPES = [(7, 3), (8, 4), (5, 100), (1, 1), (64, 1), (70, 1), (2, 7, 3), (3, 5, 4), (3, 8, 30)]
LAUNCHED = [
    (700, 100),
    (3, 700, 100),
    (5000, 1),
    (9, 33),
    (64, 32),
    (1, 1025),
    (40, 300, 1000),
    (2, 70000, 3),
    (2, 1, 1),
]


@pytest.mark.usefixtures("numpy_ops")
@pytest.mark.parametrize("shape", CPU_SHAPES)
def test_blocks_on_the_cpu_have_as_many_rows_as_fit_and_cover_each_row_once(shape, monkeypatch):
    monkeypatch.setattr(activation, "BLOCK_ELEMENTS", 64)
    *members, rows, columns = shape
    block_rows = min(rows, max(1, 64 // (math.prod(members) * columns)))
    work_shapes = activation.workspace(LeakyReLU(0.3), np, shape)
    assert work_shapes == {"scratch": (*members, block_rows, columns), "partial_sums": (*members, 1, columns)}

    seen = []

    class Watched(LeakyReLU, register=False):
        def evaluate(self, xp, X, out, scratch):
            seen.append(X.shape)
            super().evaluate(xp, X, out, scratch)

    rng = np.random.default_rng(0)
    Z, dL_dY, b = rng.normal(size=shape), rng.normal(size=shape), rng.normal(size=(*members, columns))
    work = {name: np.full(s, np.nan) for name, s in work_shapes.items()}
    expected_Z = Z + b[..., None, :]
    Y = activation.bias_activation(Watched(0.3), Z, b, np.empty(shape), work)
    np.testing.assert_allclose(Y, np.where(expected_Z > 0, expected_Z, 0.3 * expected_Z), rtol=1e-14)
    sizes = [min(block_rows, rows - start) for start in range(0, rows, block_rows)]
    assert seen == [(*members, size, columns) for size in sizes]

    dL_db = np.full_like(b, np.nan)
    dL_dZ = activation.activation_backward(Watched(0.3), dL_dY, Y, np.empty(shape), dL_db, work)
    np.testing.assert_allclose(dL_dZ, dL_dY * np.where(expected_Z > 0, 1, 0.3), rtol=1e-14)
    np.testing.assert_allclose(dL_db, dL_dZ.sum(axis=-2), atol=1e-13)


def expected_tiles(columns, itemsize=4):
    """Rows that are joined to whole packs of 16 bytes, tiles beside each other, and the block."""
    pack = 16 // itemsize
    for joined in (1, 2, 4):
        if joined * columns % pack == 0 and joined <= pack and joined * columns // pack <= 256 and joined > 1:
            width = joined * columns // pack
            return joined, 1, (width, 256 // width)
        if joined * columns % pack == 0 and joined == 1:
            break
    packs = max(1, math.ceil(columns / pack))
    count = math.ceil(packs / 32)
    width = math.ceil(packs / count)
    return 1, count, (width, 256 // width)


def expected_chunks(members, rows, columns):
    """One for each 8 bands of a thread, as long as there are no more than 1024 blocks."""
    joined, count, (_, height) = expected_tiles(columns)
    by_rows = math.ceil(math.ceil(rows / joined) / (8 * height))
    return max(1, min(by_rows, 1024 // max(1, members * count)))


@pytest.mark.parametrize(
    ("columns", "itemsize", "expected"),
    [
        (1, 4, (4, 1, (1, 256))),
        (10, 4, (2, 1, (5, 51))),
        (7, 4, (4, 1, (7, 36))),
        (255, 4, (4, 1, (255, 1))),
        (257, 4, (1, 3, (22, 11))),
        (512, 4, (1, 4, (32, 8))),
        (132, 4, (1, 2, (17, 15))),
        (10, 8, (1, 1, (5, 51))),
        (33, 8, (2, 1, (33, 7))),
    ],
)
def test_tiles_are_full_of_useful_threads(columns, itemsize, expected):
    assert expected_tiles(columns, itemsize) == expected
    joined, count, width, height = tiles.tiles(columns, itemsize)
    assert (joined, count, (width, height)) == expected


@pytest.mark.parametrize("shape", [*LAUNCHED, (2_000_000, 1), (3, 100_000, 100), (16, 1_000_000, 7), (0, 3), (5, 0)])
def test_a_column_sum_is_split_into_as_many_chunks_as_pay(shape):
    *members, rows, columns = shape
    assert launches.chunks(shape) == expected_chunks(math.prod(members), rows, columns)


@pytest.mark.parametrize(
    ("bands", "height", "others", "expected"),
    [
        (1, 8, 1, 1),
        (9, 8, 1, 2),
        (8 * 1024, 8, 1, 1024),  # a block for each 8 bands, as long as a card can take them all at once
        (8 * 1500, 8, 1, 1024),
        (8 * 3000, 8, 1, 1500),  # then two bands for a thread
        (8 * 3000, 8, 5, 1500),
        (8 * 300, 8, 4, 256),
        (8 * 300, 8, 3000, 150),
        (8 * 200_000, 8, 1, 65535),
        (0, 8, 0, 1),
    ],
)
def test_a_thread_has_more_bands_where_a_card_is_full(bands, height, others, expected):
    assert tiles.blocks_down(bands, height, others) == expected


@pytest.mark.parametrize("shape", LAUNCHED)
def test_a_launch_has_a_thread_for_each_pack_and_a_block_for_each_chunk(shape, monkeypatch):
    monkeypatch.setattr(fake.cuda_host, "launch", lambda *arguments, **settings: None)  # looked at, not run
    *members, rows, columns = shape
    E, (joined, count, block) = math.prod(members), expected_tiles(columns)
    chunks = expected_chunks(E, rows, columns)
    with fake.installed(record=True) as xp:
        Z, b = xp.zeros(shape, "float32"), xp.zeros((*members, columns), "float32")
        work = {name: xp.zeros(s, "float32") for name, s in activation.workspace(Tanh(), xp, shape).items()}
        activation.bias_activation(Tanh(), Z, b, Z, work)
        activation.activation_backward(Tanh(), Z, Z, Z, b, work)
        found = [(launch.grid, launch.block) for launch in fake.machine.launches]
    down = tiles.blocks_down(math.ceil(rows / joined), block[1], E * count)
    expected = [((count, down, E), (*block, 1)), ((count, chunks, E), (*block, 1))]
    if chunks > 1:
        width = min(32, 2 ** math.ceil(math.log2(columns)))
        expected.append(((math.ceil(columns / width), 1, E), (width, 256 // width, 1)))
    assert found == expected


@pytest.mark.parametrize(("shape", "with_bias"), [((7, 0), True), ((7, 0), False), ((0, 7), False), ((2, 0, 7), False)])
def test_nothing_is_launched_where_there_is_nothing_to_write(shape, with_bias):
    with fake.installed(record=True) as xp:
        Z, b = xp.zeros(shape), xp.zeros(shape[-1] + 1)[:-1] if with_bias else None
        activation.bias_activation(ReLU(), Z, b, Z, {})
        activation.activation_backward(ReLU(), Z, Z, Z, b, {})
        assert fake.machine.launches == []


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("members", [None, 1, 2])
def test_a_row_with_gaps_is_copied_where_it_is_read_and_refused_where_it_is_written(members, columns):
    lead = () if members is None else (members,)
    with fake.installed() as xp:
        wide = xp.asarray(np.arange(1.0, 1 + 5 * columns * (members or 1)).reshape(*lead, 5 * columns))
        gaps = wide[..., ::5]
        Z, Y = xp.zeros((*lead, 4, columns)), xp.zeros((*lead, 4, columns))
        activation.bias_activation(ReLU(), Z, gaps, Y, {})
        np.testing.assert_array_equal(Y.get(), np.broadcast_to(gaps.get()[..., None, :], Y.shape))
        if columns > 1:
            with pytest.raises(ShapeError, match="rows must be contiguous"):
                activation.activation_backward(ReLU(), Y, Y, Z, gaps, {})
        else:  # a row of one number has no gaps
            activation.activation_backward(ReLU(), Y, Y, Z, gaps, {})
            np.testing.assert_array_equal(gaps.get(), Y.get().sum(axis=-2))


def test_a_column_sum_over_more_leading_axes_than_one_is_refused():
    with fake.installed() as xp:
        Y = xp.zeros((2, 3, 4, 5))
        with pytest.raises(ShapeError, match="dL_db with strides"):
            activation.activation_backward(ReLU(), Y, Y, xp.zeros(Y.shape), xp.zeros((2, 3, 5)), {})
