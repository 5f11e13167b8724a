"""Batch normalisation on every executor, against float64: odd sizes, stacks, empty, unaligned, rows that lie apart."""

from __future__ import annotations

import contextlib

import fake_cupy as fake
import numpy as np
import pytest

from gpubp import cpu, cuda
from gpubp.backend import to_host
from gpubp.cost import Cost
from gpubp.ops import batch_norm

SHAPES = [(0, 7), (1, 1), (1, 33), (2, 3), (7, 33), (33, 7), (1025, 1), (1, 1025), (257, 8), (2, 300, 12), (3, 33, 5)]
EPSILON, MOMENTUM = 1e-3, 0.3


class Placed:
    """Copies that begin some elements into a larger buffer; afterwards nothing around them may have changed."""

    def __init__(self, xp, dtype, off):
        self.xp, self.dtype, self.off, self.around = xp, dtype, off, []

    def __call__(self, values, *, apart=False):
        """`apart` puts a gap between rows, as the parameters of a stack have it."""
        values = np.asarray(values)
        lead, size = (values.shape[:-1], values.shape[-1]) if apart else ((), values.size)
        flat = self.xp.full((*lead, self.off + size + 1), 77, self.dtype)
        region = slice(self.off, self.off + size)
        view = flat[..., region].reshape(values.shape)
        view[...] = self.xp.asarray(values.astype(self.dtype))
        self.around.append((flat, region))
        return view

    def check(self):
        for flat, region in self.around:
            np.testing.assert_array_equal(np.delete(to_host(flat), region, axis=-1), 77)


def close(what, actual, expected, dtype, scale=1.0):
    actual = to_host(actual).astype(np.float64)
    expected = np.asarray(expected, dtype=np.float64)
    bound = 60 * np.finfo(dtype).eps * np.maximum(np.abs(expected), scale)
    assert actual.shape == expected.shape
    assert (np.abs(actual - expected) <= bound).all(), (what, np.abs(actual - expected).max() / np.min(bound))


def check(xp, shape, dtype, off, in_place=False):
    """All four functions; returns what they gave."""
    rng = np.random.default_rng([*shape, 1])
    *lead, N, n = shape
    row = (*lead, n)

    def rounded(values):
        return np.asarray(values).astype(dtype).astype(np.float64)

    X_host = rounded(rng.normal(size=shape) * 3 + rng.normal(size=row)[..., None, :] * 5)
    dL_dY_host = rounded(rng.normal(size=shape))
    gamma_host, beta_host, mean_before = (rounded(rng.normal(size=row)) for _ in range(3))
    variance_before = rounded(rng.uniform(0.5, 2, size=row))
    place, nan = Placed(xp, dtype, off), np.full(row, np.nan)
    X, dL_dY = place(X_host), place(dL_dY_host)
    gamma, beta = place(gamma_host, apart=True), place(beta_host, apart=True)
    mean, r = place(nan), place(nan)
    running_mean, running_variance = place(mean_before), place(variance_before)
    partial = xp.full(batch_norm.partial_sums_shape(xp, shape), np.nan, dtype)
    batch_norm.statistics(X, mean, r, running_mean, running_variance, MOMENTUM, EPSILON, partial)
    if N:
        mean_host, variance = X_host.mean(axis=-2), X_host.var(axis=-2)
    else:
        mean_host, variance = np.zeros(row), np.zeros(row)
    r_host = 1 / np.sqrt(variance + EPSILON)
    close("mean", mean, mean_host, dtype, 10)
    relative = 1 + N / 4  # what cancels is at most so many times the variance
    close("r", r / (r_host if xp is np else xp.asarray(r_host)), np.ones(row), dtype, relative if N < 9 else 4)
    if N > 1:
        close("running mean", running_mean, 0.7 * mean_before + 0.3 * mean_host, dtype, 10)
        unbiased = X_host.var(axis=-2, ddof=1)
        close("running variance", running_variance, 0.7 * variance_before + 0.3 * unbiased, dtype, 50)
    else:
        np.testing.assert_array_equal(to_host(running_mean), mean_before)
        np.testing.assert_array_equal(to_host(running_variance), variance_before)

    mean, r = place(rounded(mean_host)), place(rounded(r_host))  # so that what follows is judged apart
    mean_host, r_host = rounded(mean_host), rounded(r_host)
    X_hat = (X_host - mean_host[..., None, :]) * r_host[..., None, :]
    Y = place(X_host) if in_place else place(np.full(shape, np.nan))
    source = Y if in_place else X
    assert batch_norm.normalize(source, mean, r, gamma, beta, Y) is Y
    close("Y", Y, X_hat * gamma_host[..., None, :] + beta_host[..., None, :], dtype, 10)

    dL_dgamma, dL_dbeta = place(nan, apart=True), place(nan, apart=True)
    batch_norm.gradients(dL_dY, X, mean, r, dL_dgamma, dL_dbeta, partial)
    of_gamma, of_beta = (dL_dY_host * X_hat).sum(axis=-2), dL_dY_host.sum(axis=-2)
    sums = 3 + np.sqrt(N)
    close("dL_dgamma", dL_dgamma, of_gamma, dtype, sums)
    close("dL_dbeta", dL_dbeta, of_beta, dtype, sums)
    results = [Y, dL_dgamma, dL_dbeta, running_mean, running_variance]
    for share in (1 / max(N, 1), 0.0):
        incoming = place(dL_dY_host)
        dL_dX = incoming if in_place else place(np.full(shape, np.nan))
        rows = (mean, r, gamma, place(of_gamma, apart=True), place(of_beta, apart=True))
        assert batch_norm.input_gradient(incoming, X, *rows, dL_dX, share) is dL_dX
        through = dL_dY_host - share * (of_beta[..., None, :] + X_hat * of_gamma[..., None, :])
        scale = 5 * max(1.0, np.abs(r_host).max(initial=0))
        close("dL_dX", dL_dX, through * (gamma_host * r_host)[..., None, :], dtype, scale)
        results.append(dL_dX)
    place.check()
    np.testing.assert_array_equal(to_host(X), X_host)
    return [to_host(array).copy() for array in results]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_the_reference(xp, dtype):
    for shape in SHAPES:
        for off in (0, 1):
            check(xp, shape, dtype, off, in_place=bool(off))
            check(xp, shape, dtype, off, in_place=not off)


@pytest.mark.usefixtures("numpy_ops")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_in_array_maths_too(dtype):
    for shape in SHAPES:
        check(np, shape, dtype, 1, True)
        check(np, shape, dtype, 0, False)


def test_results_do_not_depend_on_the_number_of_threads(cpu_kernels, monkeypatch):
    monkeypatch.setattr(cpu, "ALONE_NANOSECONDS", 0)
    monkeypatch.setattr(cpu, "SHARE_NANOSECONDS", 1)
    runs = []
    for count in (1, 3):
        with cpu.limited_threads(count):
            runs.append([check(np, shape, "float32", 1) for shape in SHAPES])
    for first, second in zip(*runs, strict=True):
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(1025, 10), (700, 33), (200, 128), (3, 1500, 4)])
def test_sums_depend_neither_on_the_place_nor_on_the_order_of_threads(shape):
    runs = []
    for reverse, off in ((False, 0), (True, 1)):
        with fake.installed(reverse_threads=reverse) as xp:
            runs.append(check(xp, shape, "float32", off))
    for a, b in zip(*runs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_columns_far_from_zero_and_a_first_row_far_from_the_others(xp, dtype):
    X_host = np.random.default_rng(0).normal(size=(300, 3))
    X_host[:, 1] += 1e4
    X_host[0, 2] = 1e3
    X_host = X_host.astype(dtype)
    mean, r, running = xp.empty(3, dtype), xp.empty(3, dtype), xp.zeros(3, dtype)
    partial = xp.empty(batch_norm.partial_sums_shape(xp, (300, 3)), dtype)
    batch_norm.statistics(xp.asarray(X_host), mean, r, running, xp.ones(3, dtype), 0.1, 1e-5, partial)
    wide = X_host.astype(np.float64)
    off = np.abs(to_host(mean) - wide.mean(axis=0))
    assert (off <= 4 * np.finfo(dtype).eps * (np.abs(wide.mean(axis=0)) + 17 * wide.std(axis=0))).all()
    np.testing.assert_allclose(to_host(r), 1 / np.sqrt(wide.var(axis=0) + 1e-5), rtol=300 * np.finfo(dtype).eps + 1e-15)


def test_what_is_not_a_number_stays_so(xp):
    X = np.ones((5, 2))
    X[3, 1] = np.nan
    mean, r, running = xp.empty(2), xp.empty(2), xp.zeros(2)
    partial = xp.empty(batch_norm.partial_sums_shape(xp, (5, 2)))
    batch_norm.statistics(xp.asarray(X), mean, r, running, xp.ones(2), 0.1, 1e-5, partial)
    for array in (mean, r, running):
        np.testing.assert_array_equal(np.isnan(to_host(array)), [False, True])


def test_data_that_a_stack_shares(xp):
    """Members read the one X: what comes back to it is the sum over them."""
    rng = np.random.default_rng(3)
    X, dL_dY, row = rng.normal(size=(9, 4)), rng.normal(size=(2, 9, 4)), rng.normal(size=(4, 2, 4))
    mean, r, running_mean, running_variance = (xp.zeros((2, 4)) for _ in range(4))
    partial = xp.empty(batch_norm.partial_sums_shape(xp, (2, 9, 4)))
    shared, gradient = xp.asarray(X), xp.asarray(dL_dY)
    batch_norm.statistics(shared, mean, r, running_mean, running_variance, 0.5, 0.1, partial)
    for e in range(2):
        np.testing.assert_allclose(to_host(mean)[e], X.mean(axis=0), atol=1e-14)
        np.testing.assert_allclose(to_host(r)[e], 1 / np.sqrt(X.var(axis=0) + 0.1), rtol=1e-13)
    gamma, beta, of_gamma, of_beta = (xp.asarray(values) for values in row)
    Y = batch_norm.normalize(shared, mean, r, gamma, beta, xp.empty((2, 9, 4)))
    X_hat = (X - to_host(mean)[:, None, :]) * to_host(r)[:, None, :]
    np.testing.assert_allclose(to_host(Y), X_hat * row[0][:, None, :] + row[1][:, None, :], atol=1e-13)
    batch_norm.gradients(gradient, shared, mean, r, of_gamma, of_beta, partial)
    np.testing.assert_allclose(to_host(of_gamma), (dL_dY * X_hat).sum(axis=1), atol=1e-13)
    dL_dX = batch_norm.input_gradient(gradient, shared, mean, r, gamma, of_gamma, of_beta, xp.empty((9, 4)), 1 / 9)
    sums = to_host(of_beta)[:, None, :] + X_hat * to_host(of_gamma)[:, None, :]
    expected = ((dL_dY - sums / 9) * (row[0] * to_host(r))[:, None, :]).sum(axis=0)
    np.testing.assert_allclose(to_host(dL_dX), expected, atol=1e-13)


def test_costs():
    assert batch_norm.costs((3, 4), 8)["input_gradient"] == Cost("backward dL_dX", 7 * 12, 3 * 12 * 8)
    assert batch_norm.costs((3, 4), 8)["statistics"] == Cost("forward statistics", 4 * 12, 12 * 8)


def test_any_grid_is_enough(monkeypatch):
    launch = cuda.launch
    monkeypatch.setattr(
        cuda, "launch", lambda stem, kernel, grid, *more: launch(stem, kernel, (1, min(2, grid[1]), 1), *more)
    )
    with fake.installed() as xp:
        for shape in ((3, 700, 9), (2, 3, 1025)):
            check(xp, shape, "float32", 0)


FAULTS = [
    "chunk = (N + C - 1) / C -> chunk = N / C",
    "first = e * N + c * chunk -> first = c * chunk",
    "if (row + u * down < last) g.add -> g.add",
    "sum_over_tile<W>(other, n, 1); -> ",
    "partial_sums[((e * C + c) * 2 + 1) * n + j] = other[k] -> partial_sums[((e * C + c) * 2 + 1) * n + j] = one[k]",
    "load<W>(X + e * N * n, left, n, shift) -> load<W>(X, left, n, shift)",
    "squares[k] += d * d -> squares[k] += d * x[u][k]",
    "center = X[e * N * n + j] + shifted -> center = X[j] + shifted",
    "/ sqrt(variance + epsilon); -> / sqrt(variance);",
    "if (N > 1) { -> if (N > 0) {",
    "(variance * (T(N) / T(N - 1))) -> variance",
    "m = (1 - momentum) * m -> m = momentum * m",
    "r_tile[k] * gamma_tile[k] + beta_tile[k] -> r_tile[k] * gamma_tile[k]",
    "gamma + e * gamma_stride, left, n, gamma_tile);\n        load_row<W>(beta"
    " -> gamma + e * n, left, n, gamma_tile);\n        load_row<W>(beta",
    "of_beta[k] += d[u][k] -> of_beta[k] += x[u][k]",
    "dL_dgamma[e * dL_dgamma_stride + j] = of_gamma -> dL_dgamma[e * n + j] = of_gamma",
    "(d[u][k] - share * -> (d[u][k] -  ",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_noticed(fault, monkeypatch):
    right, wrong = fault.split(" -> ")
    text = cuda.source("batch_norm")
    assert text.count(right) == 1
    for faulty in (False, True):
        monkeypatch.setattr(cuda, "source", lambda stem, f=faulty: text.replace(right, wrong) if f else text)
        with pytest.raises(AssertionError) if faulty else contextlib.nullcontext(), fake.installed() as xp:
            for shape, off in (((2, 500, 33), 1), ((1, 1, 3), 1), ((2, 203, 8), 0)):
                check(xp, shape, "float32", off)
