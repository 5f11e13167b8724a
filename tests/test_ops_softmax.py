"""The softmax of rows and its backward, on every executor, against float64 NumPy."""

from __future__ import annotations

import contextlib

import fake_cupy as fake
import numpy as np
import pytest

from gpubp import cuda
from gpubp.backend import to_host
from gpubp.cuda_kernels import softmax as launches
from gpubp.errors import ShapeError
from gpubp.ops import softmax

SHAPES = [(1, 1), (7, 1), (1, 7), (33, 10), (33, 7), (70, 64), (5, 65), (3, 1025), (2, 2052), (0, 3), (2, 5, 12),
          (3, 1, 33)]  # fmt: skip


def placed(xp, values, dtype, offset):
    """A device array of these values that begins so many elements into another one, and that other one."""
    flat = xp.full(values.size + offset + 1, 77, dtype)
    view = flat[offset : offset + values.size].reshape(values.shape)
    view[...] = xp.asarray(values.astype(dtype))
    return view, flat


def reference(X):
    """Softmax in float64, and its Jacobian applied row by row."""
    P = np.exp(X - X.max(axis=-1, keepdims=True, initial=-np.inf))
    return P / P.sum(axis=-1, keepdims=True)


def check(xp, shape, dtype, offset, in_place=False):
    """Both operations once, against float64; returns what they wrote."""
    rng = np.random.default_rng(shape)
    X_host, d_host = ((3 * rng.normal(size=shape)).astype(dtype).astype("f8") for _ in range(2))
    (X, _), (Y, around) = placed(xp, X_host, dtype, offset), placed(xp, np.full(shape, np.nan), dtype, offset)
    of_rows = xp.full(shape[:-1], np.nan, dtype)
    assert softmax.softmax(X, Y, of_rows) is Y
    expected = reference(X_host)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(to_host(Y), expected, rtol=40 * eps, atol=eps)
    np.testing.assert_array_equal(to_host(X), X_host)

    (dL_dY, _), (dL_dX, around_dL_dX) = placed(xp, d_host, dtype, offset), placed(xp, d_host * np.nan, dtype, offset)
    dL_dX = dL_dY if in_place else dL_dX
    Y_given = to_host(Y).astype("f8")
    assert softmax.softmax_backward(dL_dY, Y, dL_dX, of_rows) is dL_dX
    jacobian = Y_given[..., :, None] * (np.eye(shape[-1]) - Y_given[..., None, :])  # of each row: [k, j]
    expected = (d_host[..., None, :] @ jacobian)[..., 0, :]
    scale = np.abs(d_host).max(initial=0)
    np.testing.assert_allclose(to_host(dL_dX), expected, rtol=40 * eps, atol=8 * eps * scale)
    for flat in (around, around_dL_dX):
        edges = to_host(flat)
        assert (edges[:offset] == 77).all()
        assert edges[-1] == 77
    return to_host(Y).copy(), to_host(dL_dX).copy()


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_float64(xp, dtype, offset):
    for shape in SHAPES:
        check(xp, shape, dtype, offset, in_place=shape[-1] % 2 == 1)


@pytest.mark.usefixtures("numpy_ops")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_float64_in_array_maths(dtype):
    for shape in SHAPES:
        check(np, shape, dtype, 1, in_place=shape[-1] % 2 == 1)


def test_large_scores_do_not_overflow(xp):
    X = xp.asarray(np.array([[1e30, -1e30, 1e30], [-1e4, -1e4, -1e4 - 200]], "float32"))
    Y = softmax.softmax(X, xp.empty((2, 3), "float32"), xp.empty(2, "float32"))
    np.testing.assert_allclose(to_host(Y), [[0.5, 0, 0.5], [0.5, 0.5, 0]], atol=1e-30)


def test_a_nan_stays_in_its_row(xp):
    for n in (3, 70):
        X = np.zeros((4, n), "float32")
        X[1, n - 1] = np.nan
        Y = to_host(softmax.softmax(xp.asarray(X), xp.empty((4, n), "float32"), xp.empty(4, "float32")))
        assert np.isnan(Y[1]).all()
        assert np.isfinite(Y[[0, 2, 3]]).all()


@pytest.mark.parametrize("shape", [(900, 10), (33, 128), (2, 9, 2052)])
def test_repeats_bit_for_bit_whatever_the_order_of_threads(shape):
    runs = []
    for reverse in (False, False, True):
        with fake.installed(reverse_threads=reverse) as xp:
            runs.append(check(xp, shape, "float32", 0))
    for again in runs[1:]:
        for first, second in zip(runs[0], again, strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("shape", "offset", "grid", "block", "width"),
    [
        ((33, 10), 0, 1, (4, 64), 1),
        ((33, 12), 0, 1, (4, 64), 4),
        ((33, 12), 1, 1, (4, 64), 1),
        ((2, 33, 128), 0, 9, (32, 8), 4),
        ((7, 2052), 0, 7, (256, 1), 4),
        ((20, 1), 0, 1, (1, 256), 1),
    ],
)
def test_what_is_launched(shape, offset, grid, block, width):
    with fake.installed(record=True) as xp:
        check(xp, shape, "float32", offset)
        rows = int(np.prod(shape[:-1]))
        for launch, arrays in zip(fake.machine.launches, (2, 3), strict=True):
            assert (launch.grid, launch.block) == ((grid, 1, 1), (*block, 1))
            assert launch.kernel.endswith(f"<float, {width}>")
            assert launch.arguments[arrays:] == (rows, shape[-1])


def test_any_grid_is_enough_and_nothing_is_allocated(monkeypatch):
    monkeypatch.setattr(launches, "BLOCKS", 2)
    with fake.installed() as xp:
        for shape in [(700, 10), (40, 128), (9, 2050)]:
            check(xp, shape, "float32", 0)
        X, of_rows = xp.ones((900, 10)), xp.ones(900)

        def refuse(nbytes):
            raise AssertionError(f"{nbytes} bytes")

        Y = xp.ones((900, 10))
        with xp.cuda.using_allocator(refuse):
            softmax.softmax_backward(X, softmax.softmax(X, Y, of_rows), X, of_rows)


def test_misfits_are_refused(fake_cupy):
    X, of_rows = fake_cupy.zeros((4, 6), "float32"), fake_cupy.zeros(4, "float32")
    with pytest.raises(ShapeError, match=r"X is float32 \(4, 6\)"):
        softmax.softmax(X, fake_cupy.zeros((4, 5), "float32"), of_rows)
    with pytest.raises(ShapeError, match="Y with strides"):
        softmax.softmax(X[:, ::2], fake_cupy.zeros((4, 6), "float32")[:, ::2], of_rows)
    with pytest.raises(ShapeError, match="dL_dY is float32"):
        softmax.softmax_backward(X[:2], X, X, of_rows)
    half = fake_cupy.zeros((2, 2), "float16")
    with pytest.raises(ShapeError, match="float32 or float64"):
        softmax.softmax(half, half, of_rows)


def test_inputs_may_have_gaps(xp):
    host = np.random.default_rng(0).normal(size=(14, 66))
    strided = xp.asarray(host.copy())[::2, ::2]
    Y = softmax.softmax(strided, xp.empty((7, 33)), xp.empty(7))
    np.testing.assert_allclose(to_host(Y), reference(host[::2, ::2]), rtol=1e-12)
    dL_dX = softmax.softmax_backward(strided, Y, xp.empty((7, 33)), xp.empty(7))
    P, d = to_host(Y), host[::2, ::2]
    np.testing.assert_allclose(to_host(dL_dX), P * (d - (P * d).sum(axis=-1, keepdims=True)), atol=1e-14)


FAULTS = [
    ("top = Largest::of(top, x.at[v]);", "top = Largest::of(top, x.at[v]) + 100;"),
    ("top = over_group<Largest>(top, blockDim.x);", ""),
    ("total += exp(x.at[v] - top)", "total += exp(x.at[v])"),
    ("x.at[v] = exp(x.at[v] - top) * inverse", "x.at[v] = exp(x.at[v] - top)"),
    ("dot += d.at[v] * y.at[v]", "dot += d.at[v] + y.at[v]"),
    ("dot = over_group<Sum>(dot, blockDim.x);", ""),
    ("y.at[v] * (d.at[v] - dot)", "y.at[v] * d.at[v] - dot"),
]


@pytest.mark.parametrize(("right", "wrong"), FAULTS, ids=[wrong or right for right, wrong in FAULTS])
def test_planted_fault_is_noticed(right, wrong, monkeypatch):
    text = cuda.source("softmax")
    assert text.count(right) == 1
    for faulty in (False, True):
        monkeypatch.setattr(cuda, "source", lambda stem, faulty=faulty: text.replace(right, wrong) if faulty else text)
        with pytest.raises(AssertionError) if faulty else contextlib.nullcontext(), fake.installed() as xp:
            for shape in [(70, 12), (9, 2052)]:
                check(xp, shape, "float32", 0)
