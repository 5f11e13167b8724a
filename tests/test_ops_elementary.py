"""Elementary functions against NumPy's plain ones in float64, on both sides of every choice of method."""

from __future__ import annotations

import numpy as np
import pytest

from gpubp.backend import to_host
from gpubp.ops import elementary

N = elementary.NARROW
SHAPES = [(1, 1), (5, 3), (N, 3), (N + 1, 1), (N + 1, 3), (N + 1, N), (N + 1, N + 1), (3, N + 1, 4), (2, 3, N + 2, 5)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_row_maximum_and_sum(shape, dtype):
    Y = np.random.default_rng(0).normal(size=shape).astype(dtype)
    kept, out = Y.copy(), np.full(shape[:-1], np.nan, dtype)
    assert elementary.row_max(Y, out, np.full_like(Y, np.nan)) is out
    np.testing.assert_array_equal(out, Y.max(axis=-1))
    assert elementary.row_sum(Y, out) is out
    np.testing.assert_allclose(out, Y.astype("float64").sum(axis=-1), atol=30 * shape[-1] * np.finfo(dtype).eps)
    np.testing.assert_array_equal(Y, kept)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_column_sum(shape, dtype):
    X = np.random.default_rng(0).normal(size=shape).astype(dtype)
    kept, out = X.copy(), np.full((*shape[:-2], shape[-1]), np.nan, dtype)
    assert elementary.column_sum(X, out) is out
    np.testing.assert_allclose(out, X.astype("float64").sum(axis=-2), atol=30 * shape[-2] * np.finfo(dtype).eps)
    np.testing.assert_array_equal(X, kept)


@pytest.mark.parametrize("shape", SHAPES)
def test_log_softmax_in_parts(shape):
    Y = np.random.default_rng(1).normal(size=shape) * 5
    S, P, log_total = np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape[:-1], np.nan)
    assert elementary.log_softmax_parts(Y, S, P, log_total) is log_total
    softmax = np.exp(Y) / np.exp(Y).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(P, softmax, rtol=1e-12)
    np.testing.assert_array_equal(S, Y - Y.max(axis=-1, keepdims=True))
    np.testing.assert_allclose(S - log_total[..., None], np.log(softmax), atol=1e-12)


@pytest.mark.parametrize("in_place", [False, True])
def test_sigmoid_and_softplus_are_those_of_the_textbook(in_place):
    X = np.linspace(-20, 20, 81).reshape(9, 9)
    for function, expected in [
        (elementary.sigmoid, 1 / (1 + np.exp(-X))),
        (elementary.log1p_exp_minus_abs, np.log1p(np.exp(-abs(X)))),
    ]:
        given = X.copy()
        out = given if in_place else np.full_like(X, np.nan)
        assert function(np, given, out) is out
        np.testing.assert_allclose(out, expected, rtol=1e-14)


@pytest.mark.parametrize("shape", [(3, 4), (2, 5, 3)])
def test_row_dot_on_a_device(fake_cupy, shape):
    A, B = (np.random.default_rng(k).normal(size=shape) for k in (0, 1))
    xp = fake_cupy
    out = elementary.row_dot(xp.asarray(A), xp.asarray(B), xp.empty(shape[:-1]))
    np.testing.assert_allclose(to_host(out), (A * B).sum(axis=-1), rtol=1e-13)
