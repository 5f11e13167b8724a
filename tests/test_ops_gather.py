"""Slices of examples, and examples picked by index."""

from __future__ import annotations

import contextlib

import fake_cupy as fake
import numpy as np
import pytest

from gpubp import cuda
from gpubp.backend import to_host
from gpubp.cost import Cost
from gpubp.cuda_kernels import tiles
from gpubp.ops.gather import converts, cost, example_axis, example_rows, gather, row_slices


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
    assert example_axis(array) == (-1 if array.dtype == np.int64 else -2)
    np.testing.assert_array_equal(array[example_rows(array, slice(1, 3))], expected)


@pytest.mark.parametrize("axis", [-1, -2])
def test_gather_picks_examples_into_the_given_array(axis):
    data, index = np.arange(24).reshape(2, 3, 4), np.array([2, 0])
    expected = data[..., index] if axis == -1 else data[..., index, :]
    out = np.full(expected.shape, -1)
    assert gather(data, index, out, axis) is out
    np.testing.assert_array_equal(out, expected)


# Every executor, with conversions.

CONVERSIONS = [
    *((source, to) for source in ("float16", "float32", "float64", "uint8") for to in ("float32", "float64")),
    *((source, "int64") for source in ("uint8", "int32", "int64")),
]
WIDTHS = [1, 7, 8, 33, 128, 784, 1025]


def placed(xp, values, offset):
    """A device array of these values that begins so many elements into another one."""
    flat = xp.zeros(values.size + offset, values.dtype)
    view = flat[offset:].reshape(values.shape)
    view[...] = xp.asarray(values)
    return view


def check(xp, source, to, lead, n, axis, offset=0, N=50, B=33):
    """Pick B of N examples of n numbers each."""
    rng = np.random.default_rng([n, N, B])
    shape = (*lead, N, n) if axis == -2 else (*lead, N)
    data = (
        (rng.normal(size=shape) * 300).astype(source)
        if source[0] == "f"
        else rng.integers(0, 256, shape).astype(source)
    )
    index = rng.integers(0, N, B)
    index[[0, -1]] = N - 1, 0
    expected = np.take(data, index, axis=axis).astype(to)
    out = placed(xp, np.full(expected.shape, 99, to), offset)
    assert gather(placed(xp, data, offset), xp.asarray(index), out, axis) is out
    np.testing.assert_array_equal(to_host(out), expected)


@pytest.mark.parametrize("lead", [(), (1,), (3,)])
@pytest.mark.parametrize(("source", "to"), CONVERSIONS)
def test_equals_fancy_indexing(xp, source, to, lead):
    for n in WIDTHS:
        for offset in (0, 1):
            check(xp, source, to, lead, n, -2, offset)
    check(xp, source, to, lead, 1, -1)
    check(xp, source, to, lead, 1, -1, 1, B=1)
    check(xp, source, to, lead, 10, -2, B=2000)


@pytest.mark.usefixtures("numpy_ops")
@pytest.mark.parametrize(("source", "to"), CONVERSIONS)
def test_equals_fancy_indexing_in_array_maths(source, to):
    check(np, source, to, (2,), 7, -2)
    check(np, source, to, (2,), 1, -1)


def test_every_float16_becomes_the_same_number(xp):
    bits = np.arange(1 << 16, dtype=np.uint16)
    data = bits.view(np.float16).reshape(-1, 8)
    for to in (np.float32, np.float64):
        out = xp.empty(data.shape, to)
        gather(xp.asarray(data), xp.asarray(np.arange(len(data))), out, -2)
        with np.errstate(invalid="ignore"):
            expected = data.astype(to)
        number = ~np.isnan(expected)
        np.testing.assert_array_equal(to_host(out)[number], expected[number])
        np.testing.assert_array_equal(np.signbit(to_host(out)[number]), np.signbit(expected[number]))
        assert np.isnan(to_host(out)[~number]).all()


@pytest.mark.parametrize("bad", [-1, 50, 2**62, -(2**62)])
def test_an_index_from_outside_reads_nothing_from_outside(bad):
    with fake.installed() as xp:
        data = np.arange(50 * 8, dtype="float32").reshape(50, 8)
        out = xp.zeros((2, 8), "float32")
        gather(xp.asarray(data), xp.asarray(np.array([bad, 3])), out, -2)
        np.testing.assert_array_equal(to_host(out), data[[0 if bad < 0 else 49, 3]])


@pytest.mark.parametrize(
    ("source", "n", "offset", "kernel"),
    [
        ("float32", 784, 0, "gather<float, float, 4>"),
        ("uint8", 784, 0, "gather<unsigned char, float, 4>"),
        ("uint8", 784, 4, "gather<unsigned char, float, 4>"),  # four bytes are read at once
        ("uint8", 784, 2, "gather<unsigned char, float, 1>"),
        ("float16", 8, 0, "gather<Half, float, 4>"),
        ("float32", 10, 0, "gather<float, float, 1>"),
        ("float32", 8, 1, "gather<float, float, 1>"),
    ],
)
def test_sixteen_bytes_are_written_at_once_where_that_is_possible(source, n, offset, kernel):
    with fake.installed(record=True) as xp:
        data = placed(xp, np.ones((5, n), source), offset)
        gather(data, xp.asarray(np.array([1, 2])), xp.zeros((2, n), "float32"), -2)
        gather(data, xp.asarray(np.zeros(0, "int64")), xp.zeros((0, n), "float32"), -2)
        assert [launch.kernel for launch in fake.machine.launches] == [kernel]


def test_arrays_that_no_kernel_takes():
    with fake.installed(record=True) as xp:
        data = np.arange(80, dtype="float32").reshape(8, 10)
        for to in ("float32", "float64"):
            out = xp.zeros((3, 5), to)
            gather(xp.asarray(data)[:, ::2], xp.asarray(np.array([1, 7, 0])), out, -2)
            np.testing.assert_array_equal(to_host(out), data[[1, 7, 0], ::2])
        assert fake.machine.launches == []


FAULTS = [
    ("(e * N + max", "(max"),
    ("index[b], N - 1)", "index[b], N - 2)"),
    ("(e * B + b) * n", "b * n"),
    ("row = (e * B + b) * n", "row = (e * B + first) * n"),
    ("x[u][v + k] = read.at[k]", "x[u][k] = read.at[k]"),
    ("(112u << 23)", "(111u << 23)"),
    ("if (exponent == 0)", "if (false)"),
    ("sign ? -1.0f : 1.0f", "1.0f"),
]


@pytest.mark.parametrize(("right", "wrong"), FAULTS, ids=[wrong for _, wrong in FAULTS])
def test_planted_fault_is_noticed(right, wrong, monkeypatch):
    text = cuda.source("gather")
    assert text.count(right) == 1
    monkeypatch.setattr(tiles, "GRID_LIMIT", 2)  # a thread has several rows
    for faulty in (False, True):
        monkeypatch.setattr(cuda, "source", lambda stem, faulty=faulty: text.replace(right, wrong) if faulty else text)
        with pytest.raises(AssertionError) if faulty else contextlib.nullcontext(), fake.installed() as xp:
            check(xp, "float32", "float32", (2,), 8, -2, B=2000)
            check(xp, "float64", "float32", (5,), 784, -2)
            test_every_float16_becomes_the_same_number(xp)


def test_cost_counts_the_bytes_of_the_data_as_they_are():
    assert cost("gather", (3, 4), 4) == Cost("gather", 0, 2 * 12 * 4)
    assert cost("gather", (3, 4), 4, 1) == Cost("gather", 0, 12 * (4 + 1))


@pytest.mark.parametrize(
    ("source", "into", "expected"),
    [
        ("uint8", "float32", True),
        ("float16", "float32", True),
        ("float32", "float32", True),
        ("float32", "float64", True),
        ("float64", "float32", False),  # takes more memory as it is
        ("int64", "float64", False),
        ("bool", "float32", False),
    ],
)
def test_what_stays_as_it_is_until_it_is_picked(source, into, expected):
    assert converts(np.dtype(source), np.dtype(into)) is expected
