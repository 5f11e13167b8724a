"""A bias, a standardisation and a column sum, on every executor, against float64 NumPy."""

from __future__ import annotations

import contextlib

import fake_cupy as fake
import numpy as np
import pytest

from gpubp import cuda
from gpubp.backend import to_host
from gpubp.cost import Cost
from gpubp.cuda_kernels import activation as launches
from gpubp.cuda_kernels import tiles
from gpubp.ops import rows

SHAPES = [(1, 1), (1, 7), (33, 1), (7, 33), (33, 10), (1025, 7), (1700, 6), (1, 1025), (70, 264), (0, 3), (3, 0)]
MEMBERS = pytest.mark.parametrize("members", [None, 1, 3])
OFFSETS = pytest.mark.parametrize("offset", [0, 1])


def placed(xp, values, dtype, offset):
    """A device array of these values that begins so many elements into another one."""
    flat = xp.full(values.size + offset + 1, np.nan, dtype)
    view = flat[offset : offset + values.size].reshape(values.shape)
    view[...] = xp.asarray(values.astype(dtype))
    return view


def apart(xp, values, dtype, offset):
    """As `placed`, with gaps between rows, as parameters of a stack have them."""
    wide = xp.full((*values.shape[:-1], values.shape[-1] + offset + 1), np.nan, dtype)
    view = wide[..., offset : offset + values.shape[-1]]
    view[...] = xp.asarray(values.astype(dtype))
    return view, wide


def check(xp, shape, members, dtype, offset, kernel=True):
    """All three operations once, against float64."""
    lead = () if members is None else (members,)
    rng = np.random.default_rng(shape)
    X = rng.normal(size=(*lead, *shape)).astype(dtype).astype("f8")
    row = rng.normal(size=(*lead, shape[1])).astype(dtype).astype("f8")
    eps = np.finfo(dtype).eps

    Y, (b, _) = placed(xp, X, dtype, offset), apart(xp, row, dtype, offset)
    assert rows.add_bias(Y, b) is Y
    np.testing.assert_allclose(to_host(Y), X + row[..., None, :], rtol=2 * eps, atol=2 * eps)

    X_device = placed(xp, X, dtype, offset)
    out, wide = apart(xp, np.full_like(row, np.nan), dtype, offset)
    partial = xp.full(rows.partial_sums_shape(xp, X.shape), np.nan, dtype)
    assert rows.column_sum(X_device, out, partial) is out
    bound = 16 * eps * (1 + np.abs(X).sum(axis=-2)) * (1 + np.sqrt(shape[0]) / 16)
    assert np.all(np.abs(to_host(out) - X.sum(axis=-2)) <= bound)
    assert np.isnan(to_host(wide)[..., :offset]).all()
    assert np.isnan(to_host(wide)[..., -1]).all()

    for own in {(), lead}:
        mean, scale = rng.normal(size=(*own, shape[1])), rng.uniform(0.5, 2, size=(*own, shape[1]))
        mean, scale = mean.astype(dtype), scale.astype(dtype)
        Y = placed(xp, np.full_like(X, np.nan), dtype, offset)
        on_device = xp.asarray(mean), xp.asarray(scale)
        assert rows.standardize(X_device, *on_device, Y) is Y
        expected = (X - mean[..., None, :].astype("f8")) / scale[..., None, :].astype("f8")
        np.testing.assert_allclose(to_host(Y), expected, rtol=16 * eps, atol=4 * eps)
        assert rows.standardize(X_device, *on_device, X_device) is X_device  # in place
        np.testing.assert_array_equal(to_host(X_device), to_host(Y))
        X_device = placed(xp, X, dtype, offset)


@OFFSETS
@MEMBERS
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_float64(xp, dtype, members, offset):
    for shape in SHAPES:
        check(xp, shape, members, dtype, offset)


@pytest.mark.usefixtures("numpy_ops")
@MEMBERS
def test_equals_float64_in_array_maths(members):
    for shape in SHAPES:
        check(np, shape, members, "float32", 1)


@pytest.mark.parametrize("shape", [(7, 33), (2, 5, 6)])
def test_what_is_launched_on_a_device(shape):
    with fake.installed(record=True) as xp:
        X, row = xp.ones(shape, "float32"), xp.ones((*shape[:-2], shape[-1]), "float32")
        rows.add_bias(X, row)
        rows.column_sum(X, row, xp.ones(rows.partial_sums_shape(xp, shape), "float32"))
        rows.standardize(X, row, row, X)
        width = 4 if len(shape) == 2 else 1  # members of 30 numbers do not begin at multiples of 16 bytes
        names = ["bias_activation<Identity<float>, {}>", "column_sum<float, {}>", "standardize<float, {}>"]
        assert [launch.kernel for launch in fake.machine.launches] == [name.format(width) for name in names]
        before = len(fake.machine.launches)
        empty = xp.ones((3, 0), "float32")
        rows.add_bias(empty, xp.ones(0, "float32"))
        rows.standardize(empty, empty[0], empty[0], empty)
        rows.column_sum(empty, empty[0], empty)
        assert len(fake.machine.launches) == before


def test_arrays_that_no_kernel_takes_are_computed_in_array_maths():
    with fake.installed(record=True) as xp:
        rng = np.random.default_rng(0)
        host = rng.normal(size=(8, 12))
        X, row = xp.asarray(host)[:, ::2], xp.asarray(host[0])[:6]
        Y = rows.standardize(X, row, row, xp.empty((8, 6)))
        np.testing.assert_allclose(to_host(Y), (host[:, ::2] - host[0, :6]) / host[0, :6])
        out = rows.column_sum(X, xp.empty(6), xp.empty((1, 6)))
        np.testing.assert_allclose(to_host(out), host[:, ::2].sum(axis=0))
        np.testing.assert_allclose(to_host(rows.add_bias(X, row)), host[:, ::2] + host[0, :6])
        half = xp.asarray(np.ones((2, 2), "float16"))
        np.testing.assert_array_equal(to_host(rows.add_bias(half, half[0])), 2)
        assert fake.machine.launches == []


def test_nothing_is_allocated():
    """A planned step is captured into a graph, and that must not ask for memory."""
    with fake.installed() as xp:
        X, row = xp.ones((900, 10), "float32"), xp.ones(10, "float32")
        partial = xp.ones(rows.partial_sums_shape(xp, X.shape), "float32")

        def refuse(nbytes):
            raise AssertionError(f"{nbytes} bytes")

        with xp.cuda.using_allocator(refuse):
            rows.add_bias(X, row)
            rows.column_sum(X, row, partial)
            rows.standardize(X, row, row, X)


FAULTS = [
    ("(x[u][k] - mean_tile[k]) / scale_tile[k]", "(x[u][k] - mean_tile[k]) / scale_tile[0]"),
    ("mean + e * stride", "mean"),
    ("scale + e * stride", "scale + e"),
    ("load_row<W>(scale + e * stride, left, n", "load_row<W>(scale + e * stride, 0, n"),
    ("sum[k] += x[u][k]", "sum[k] += x[0][k]"),
]


@pytest.mark.parametrize(("right", "wrong"), FAULTS, ids=[wrong for _, wrong in FAULTS])
def test_planted_fault_is_noticed(right, wrong, monkeypatch):
    text, original = cuda.source("rows"), cuda.source
    assert text.count(right) == 1
    monkeypatch.setattr(launches, "GRID_LIMIT", 2)
    monkeypatch.setattr(tiles, "GRID_LIMIT", 2)  # a thread has several rows
    for faulty in (False, True):
        source = text.replace(right, wrong) if faulty else text
        monkeypatch.setattr(cuda, "source", lambda stem, source=source: source if stem == "rows" else original(stem))
        with pytest.raises(AssertionError) if faulty else contextlib.nullcontext(), fake.installed() as xp:
            for shape in [(700, 8), (70, 264)]:
                check(xp, shape, 3, "float32", 0)


def test_cost():
    assert rows.cost("standardize", (2, 3, 4), 8, written=True) == Cost("standardize", 24, 2 * 24 * 8)
    assert rows.cost("sum", (3, 4), 4, written=False) == Cost("sum", 12, 12 * 4)
