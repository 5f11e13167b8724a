"""Dropout, sums and products on every executor: the same bits, whatever the shape and the place in memory."""

from __future__ import annotations

import contextlib

import fake_cupy as fake
import numpy as np
import pytest

from gpubp import cpu, cuda
from gpubp.backend import to_host
from gpubp.cost import Cost
from gpubp.errors import SettingError, ShapeError
from gpubp.ops import dropout, elementwise, random

SEED = 0x299F31D0A4093822
SHAPES = [(0, 3), (1, 1), (7, 33), (33, 7), (1025, 3), (2, 33, 5), (3, 1, 4)]


def a_draw(xp, number):
    return xp.asarray(np.array([number], np.int64))


def placed(xp, values, off):
    """A copy that begins `off` elements into its buffer, and a look that nothing around it is written."""
    buffer = xp.full(values.size + off + 1, 77, values.dtype)
    view = buffer[off : off + values.size].reshape(values.shape)
    view[...] = xp.asarray(values)

    def check():
        assert (to_host(buffer)[:off] == 77).all()
        assert (to_host(buffer)[off + values.size :] == 77).all()

    return view, check


def expected_mask(shape, dtype, rate, draw):
    """By the numbers of `random.numbers`, one matrix at a time."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape))
    u = random.numbers(0, size, dtype, SEED, draw)
    return np.where(u < dtype.type(rate), dtype.type(0), dtype.type(1 / (1 - rate))).reshape(shape)


def check_dropout(xp, shape, dtype, rate, off, in_place):
    X_host = np.random.default_rng(1).normal(size=shape).astype(dtype)
    nan = np.full(shape, np.nan, dtype)
    (X, _), (mask, mask_around), (Y, Y_around) = (placed(xp, values, off) for values in (X_host, nan, nan))
    if in_place:
        Y, Y_around = X, lambda: None
    assert dropout.dropout(X, mask, Y, rate, SEED, a_draw(xp, 2**40), 7) is Y
    expected = expected_mask(shape, dtype, rate, 2**40 + 7)
    np.testing.assert_array_equal(to_host(mask), expected)
    np.testing.assert_array_equal(to_host(Y), X_host * expected)
    mask_around()
    Y_around()


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.97])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_executor_makes_the_same_mask(xp, dtype, rate):
    for shape in SHAPES:
        for off in (0, 1):
            for in_place in (False, True):
                check_dropout(xp, shape, dtype, rate, off, in_place)


@pytest.mark.usefixtures("numpy_ops")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_in_array_maths_too(dtype):
    for shape in SHAPES:
        check_dropout(np, shape, dtype, 0.3, 1, True)
        check_dropout(np, shape, dtype, 0.3, 0, False)


def test_on_any_number_of_threads(cpu_kernels, monkeypatch):
    monkeypatch.setattr(cpu, "ALONE_NANOSECONDS", 0)
    monkeypatch.setattr(cpu, "SHARE_NANOSECONDS", 1)
    for count in (1, 3):
        with cpu.limited_threads(count):
            check_dropout(np, (1025, 33), "float32", 0.3, 1, False)
            check_elementwise(np, (1025, 33), "float32", 0)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_share_that_is_dropped_and_the_mean(rate):
    X = np.ones((512, 512))
    mask, Y = np.empty_like(X), np.empty_like(X)
    dropout.dropout(X, mask, Y, rate, SEED, a_draw(np, 0))
    assert abs((Y == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / X.size)
    assert abs(Y.mean() - 1) < 0.01


def check_elementwise(xp, shape, dtype, off):
    rng = np.random.default_rng(2)
    A_host, B_host = (rng.normal(size=shape).astype(dtype) for _ in range(2))
    for function, expected in ((elementwise.add, A_host + B_host), (elementwise.multiply, A_host * B_host)):
        for target in ("new", "A", "B"):
            (A, A_around), (B, B_around), (out, around) = (
                placed(xp, v, off) for v in (A_host, B_host, B_host * np.nan)
            )
            out = {"new": out, "A": A, "B": B}[target]
            assert function(A, B, out) is out
            np.testing.assert_array_equal(to_host(out), expected)
            for check in (A_around, B_around, around):
                check()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sums_and_products(xp, dtype):
    for shape in SHAPES:
        for off in (0, 1):
            check_elementwise(xp, shape, dtype, off)


def test_sums_and_products_that_broadcast_or_have_gaps(xp):
    A, B = np.arange(12.0).reshape(3, 4), np.ones((2, 3, 4))
    out = xp.empty((2, 3, 4))
    np.testing.assert_array_equal(to_host(elementwise.add(xp.asarray(A), xp.asarray(B), out)), A + B)
    np.testing.assert_array_equal(to_host(elementwise.multiply(xp.asarray(A), xp.asarray(B), out)), A * B)
    wide = xp.asarray(np.arange(24.0).reshape(3, 8))[:, ::2]
    np.testing.assert_array_equal(to_host(elementwise.add(wide, wide, xp.empty((3, 4)))), 2 * to_host(wide))


def test_what_does_not_fit_is_refused(xp):
    X = xp.ones((2, 3))
    with pytest.raises(SettingError, match="seed=-1"):
        dropout.dropout(X, xp.empty((2, 3)), xp.empty((2, 3)), 0.5, -1, a_draw(xp, 0))
    with pytest.raises(ShapeError, match="with strides"):
        dropout.dropout(X, xp.empty((2, 6))[:, ::2], xp.empty((2, 3)), 0.5, 1, a_draw(xp, 0))


def test_costs():
    assert dropout.cost("x", (3, 4), 8) == Cost("x", 24, 3 * 12 * 8)
    assert elementwise.cost("x", (3, 4), 4) == Cost("x", 12, 3 * 12 * 4)


def test_any_grid_is_enough(monkeypatch):
    for module in ("dropout", "elementwise"):
        monkeypatch.setattr(f"gpubp.cuda_kernels.{module}.grid_of", lambda *_: (2, 1, 1))
    with fake.installed() as xp:
        check_dropout(xp, (1025, 9), "float32", 0.3, 0, False)
        check_elementwise(xp, (1025, 9), "float32", 0)


FAULTS = [
    ("dropout", "u[k + v] < rate", "u[v] < rate"),
    ("dropout", "(unsigned long long)(i / PACK<T>)", "(unsigned long long)i"),
    ("dropout", "? T(0) : scale", "? T(0) : T(1)"),
    ("dropout", " + (unsigned long long)offset", ""),
    ("dropout", "store(mask + i + k, m, size - i - k);", "if (!k) store(mask + i, m, size - i);"),
    ("elementwise", "return a * b", "return a + b"),
    ("elementwise", "store(out + i + u * step, a[u]", "store(out + i + u * step, a[0]"),
]


@pytest.mark.parametrize(("stem", "right", "wrong"), FAULTS, ids=[wrong or right for _, right, wrong in FAULTS])
def test_planted_fault_is_noticed(stem, right, wrong, monkeypatch):
    text, original = cuda.source(stem), cuda.source
    assert text.count(right) == 1
    for module in ("dropout", "elementwise"):
        monkeypatch.setattr(f"gpubp.cuda_kernels.{module}.grid_of", lambda *_: (2, 1, 1))
    for faulty in (False, True):
        monkeypatch.setattr(
            cuda, "source", lambda s, f=faulty: text.replace(right, wrong) if f and s == stem else original(s)
        )
        with pytest.raises(AssertionError) if faulty else contextlib.nullcontext(), fake.installed() as xp:
            for off in (0, 1):
                check_dropout(xp, (700, 9), "float32", 0.3, off, False)
                check_elementwise(xp, (700, 9), "float32", off)
