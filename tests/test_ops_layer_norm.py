"""Layer normalisation, its backward and the sums that are its parameters' gradients, on every executor."""

from __future__ import annotations

import contextlib

import fake_cupy as fake
import numpy as np
import pytest

from gpubp import cuda
from gpubp.backend import to_host
from gpubp.cuda_kernels import activation as activation_launches
from gpubp.cuda_kernels import layer_norm as launches
from gpubp.cuda_kernels import softmax as softmax_launches
from gpubp.cuda_kernels import tiles
from gpubp.errors import ShapeError
from gpubp.ops import layer_norm, rows

SHAPES = [(1, 1), (7, 1), (1, 7), (33, 10), (33, 7), (600, 6), (5, 65), (3, 1025), (2, 2052), (0, 3)]
EPSILON = 1e-2


class Placed:
    """Arrays in the middle of something larger: `offset` elements late, with sentinels around."""

    def __init__(self, xp, dtype, offset):
        self.xp, self.dtype, self.offset, self.around = xp, dtype, offset, []

    def __call__(self, values, *, apart=False):
        """An array of these values; `apart` puts a gap between rows, as parameters of a stack have it."""
        lead, size = (values.shape[:-1], values.shape[-1]) if apart else ((), values.size)
        flat = self.xp.full((*lead, self.offset + size + 1), 77, self.dtype)
        region = slice(self.offset, self.offset + size)
        view = flat[..., region].reshape(values.shape)
        view[...] = self.xp.asarray(values.astype(self.dtype))
        self.around.append((flat, region))
        return view

    def check_surroundings(self):
        for flat, region in self.around:
            np.testing.assert_array_equal(np.delete(to_host(flat), region, axis=-1), 77)


def reference(X, gamma, beta, dL_dY):
    """Y, X_hat, 1 / deviation, and dL_dX by the full Jacobian of each row, in float64."""
    n = X.shape[-1]
    inverse = 1 / np.sqrt(X.var(axis=-1) + EPSILON)
    hat = (X - X.mean(axis=-1, keepdims=True)) * inverse[..., None]
    Y = hat * gamma[..., None, :] + beta[..., None, :]
    D = dL_dY * gamma[..., None, :]
    jacobian = np.eye(n) - 1 / n - hat[..., :, None] * hat[..., None, :] / n
    dL_dX = inverse[..., None] * (D[..., None, :] @ jacobian)[..., 0, :]
    return Y, hat, inverse, dL_dX


def check(xp, shape, members, dtype, offset, *, shared=False, in_place=False):
    """All operations once, against float64; returns what they wrote."""
    lead = () if members is None else (members,)
    rng = np.random.default_rng(shape)
    own = () if shared else lead
    X_host, d_host, gamma_host, beta_host = (
        rng.normal(size=size).astype(dtype).astype("f8")
        for size in ((*own, *shape), (*lead, *shape), (*lead, shape[1]), (*lead, shape[1]))
    )
    X_host = (X_host + 3).astype(dtype).astype("f8")  # a mean that is not zero
    place = Placed(xp, dtype, offset)
    X, gamma, beta = place(X_host), place(gamma_host, apart=True), place(beta_host, apart=True)
    Y, X_hat, inverse = (place(np.full(size, np.nan)) for size in (d_host.shape, X_host.shape, X_host.shape[:-1]))
    assert layer_norm.layer_norm(X, gamma, beta, EPSILON, Y, X_hat, inverse) is Y
    expected_Y, expected_hat, expected_inverse, expected_dL_dX = reference(X_host, gamma_host, beta_host, d_host)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(to_host(Y), expected_Y, rtol=100 * eps, atol=200 * eps)
    np.testing.assert_allclose(to_host(X_hat), expected_hat, rtol=100 * eps, atol=100 * eps)
    np.testing.assert_allclose(to_host(inverse), expected_inverse, rtol=100 * eps)
    np.testing.assert_array_equal(to_host(X), X_host)

    dL_dY, partial = place(d_host), xp.full(rows.partial_sums_shape(xp, d_host.shape), np.nan, dtype)
    dL_dgamma = place(np.full(gamma_host.shape, np.nan), apart=True)
    assert rows.product_sum(dL_dY, X_hat, dL_dgamma, partial) is dL_dgamma
    products = d_host * to_host(X_hat).astype("f8")
    bound = 16 * eps * (1 + np.abs(products).sum(axis=-2)) * (1 + np.sqrt(shape[0]) / 16)
    assert np.all(np.abs(to_host(dL_dgamma) - products.sum(axis=-2)) <= bound)

    work = {key: xp.full(size, np.nan, dtype) for key, size in layer_norm.workspace(xp, d_host.shape).items()}
    dL_dX = dL_dY if in_place else place(np.full(d_host.shape, np.nan))
    assert layer_norm.layer_norm_backward(dL_dY, gamma, X_hat, inverse, dL_dX, work) is dL_dX
    scale = np.abs(expected_dL_dX).max(initial=1.0) * expected_inverse.max(initial=1.0)
    np.testing.assert_allclose(to_host(dL_dX), expected_dL_dX, rtol=100 * eps, atol=100 * eps * scale)
    place.check_surroundings()
    return [to_host(array).copy() for array in (Y, X_hat, inverse, dL_dgamma, dL_dX)]


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(("members", "shared"), [(None, False), (1, False), (3, False), (3, True)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_float64(xp, dtype, members, shared, offset):
    for shape in SHAPES:
        check(xp, shape, members, dtype, offset, shared=shared, in_place=shape[-1] % 2 == 1)


@pytest.mark.usefixtures("numpy_ops")
@pytest.mark.parametrize(("members", "shared"), [(None, False), (3, False), (3, True)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_float64_in_array_maths(dtype, members, shared, monkeypatch):
    for block in (32768, 64):  # elements that are taken at a time
        monkeypatch.setattr("gpubp.ops.activation.BLOCK_ELEMENTS", block)
        for shape in SHAPES:
            check(np, shape, members, dtype, 1, shared=shared, in_place=shape[-1] % 2 == 1)


def test_a_row_of_equal_numbers_gives_beta(xp):
    X, gamma, beta = xp.full((4, 9), 1e4, "float32"), xp.full(9, 2, "float32"), xp.full(9, 0.5, "float32")
    Y, X_hat, inverse = xp.empty((4, 9), "float32"), xp.empty((4, 9), "float32"), xp.empty(4, "float32")
    layer_norm.layer_norm(X, gamma, beta, 1e-5, Y, X_hat, inverse)
    np.testing.assert_array_equal(to_host(Y), 0.5)
    np.testing.assert_allclose(to_host(inverse), 1e-5**-0.5, rtol=1e-6)


def test_a_mean_far_from_zero_costs_no_digits_of_the_deviation(xp):
    host = (np.random.default_rng(0).normal(size=(5, 300)) + 1000).astype("float32")
    X, ones = xp.asarray(host), xp.ones(300, "float32")
    Y, X_hat, inverse = xp.empty((5, 300), "float32"), xp.empty((5, 300), "float32"), xp.empty(5, "float32")
    layer_norm.layer_norm(X, ones, ones, 1e-5, Y, X_hat, inverse)
    np.testing.assert_allclose(to_host(inverse), 1 / host.astype("f8").std(axis=-1), rtol=2e-5)


@pytest.mark.parametrize(("shape", "shared"), [((900, 10), False), ((33, 128), True), ((9, 2052), False)])
def test_repeats_bit_for_bit_whatever_the_order_of_threads(shape, shared):
    runs = []
    for reverse in (False, False, True):
        with fake.installed(reverse_threads=reverse) as xp:
            runs.append(check(xp, shape, 2, "float32", 0, shared=shared))
    for again in runs[1:]:
        for first, second in zip(runs[0], again, strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("shape", "members", "offset", "grid", "block", "width"),
    [
        ((33, 10), None, 0, (1, 1, 1), (4, 64), 1),
        ((33, 12), 3, 0, (1, 3, 1), (4, 64), 4),
        ((33, 12), 3, 1, (1, 3, 1), (4, 64), 1),
        ((33, 128), 2, 0, (5, 2, 1), (32, 8), 4),
        ((7, 2052), None, 0, (7, 1, 1), (256, 1), 4),
    ],
)
def test_what_is_launched(shape, members, offset, grid, block, width):
    with fake.installed(record=True) as xp:
        check(xp, shape, members, "float32", offset)
        found = {launch.kernel.split("<")[0]: launch for launch in fake.machine.launches}
        for name in ("layer_norm", "layer_norm_backward"):
            assert (found[name].grid, found[name].block) == (grid, (*block, 1))
            assert found[name].kernel == f"{name}<float, {width}>"
        assert found["product_sum"].kernel == f"product_sum<float, {width}>" or shape == (33, 10)


def test_any_grid_is_enough_and_nothing_is_allocated(monkeypatch):
    monkeypatch.setattr(softmax_launches, "BLOCKS", 2)
    monkeypatch.setattr(launches, "GRID_LIMIT", 2)
    with fake.installed() as xp:
        for shape in [(700, 10), (40, 128), (9, 2050)]:
            for shared in (False, True):
                check(xp, shape, 5, "float32", 0, shared=shared)
        X, row, of_rows = xp.ones((900, 10), "float32"), xp.ones(10, "float32"), xp.ones(900, "float32")
        Y, X_hat = xp.ones((900, 10), "float32"), xp.ones((900, 10), "float32")
        partial = xp.ones(rows.partial_sums_shape(xp, X.shape), "float32")

        def refuse(nbytes):
            raise AssertionError(f"{nbytes} bytes")

        with xp.cuda.using_allocator(refuse):
            layer_norm.layer_norm(X, row, row, 1e-5, Y, X_hat, of_rows)
            rows.product_sum(Y, X_hat, row, partial)
            layer_norm.layer_norm_backward(Y, row, X_hat, of_rows, Y, {})


def test_misfits_are_refused(fake_cupy):
    X, row, of_rows = (fake_cupy.zeros(size, "float32") for size in ((4, 6), 6, 4))
    Y, X_hat = fake_cupy.zeros((4, 6), "float32"), fake_cupy.zeros((4, 6), "float32")
    with pytest.raises(ShapeError, match=r"gamma is float32 \(5,\)"):
        layer_norm.layer_norm(X, row[:5], row, 1e-5, Y, X_hat, of_rows)
    with pytest.raises(ShapeError, match=r"beta is float64"):
        layer_norm.layer_norm(X, row, fake_cupy.zeros(6), 1e-5, Y, X_hat, of_rows)
    with pytest.raises(ShapeError, match=r"X is float32 \(2, 6\)"):
        layer_norm.layer_norm(X[:2], row, row, 1e-5, Y, X_hat, of_rows)
    with pytest.raises(ShapeError, match=r"X_hat is float32 \(2, 6\)"):
        layer_norm.layer_norm(X, row, row, 1e-5, Y, X_hat[:2], of_rows)
    with pytest.raises(ShapeError, match="inverse_std with strides"):
        layer_norm.layer_norm(X, row, row, 1e-5, Y, X_hat, fake_cupy.zeros(8, "float32")[::2])
    wide = fake_cupy.zeros((4, 12), "float32")[:, ::2]
    with pytest.raises(ShapeError, match="dL_dX with strides"):
        layer_norm.layer_norm_backward(X, row, X_hat, of_rows, wide, {})


def test_a_product_sum_that_no_kernel_takes_is_computed_in_array_maths():
    with fake.installed(record=True) as xp:
        host = np.random.default_rng(0).normal(size=(8, 12))
        A = xp.asarray(host)[:, ::2]
        out = rows.product_sum(A, A, xp.empty(6), xp.empty((1, 6)))
        np.testing.assert_allclose(to_host(out), (host[:, ::2] ** 2).sum(axis=0))
        assert fake.machine.launches == []
        empty = xp.ones((3, 0), "float32")
        rows.product_sum(empty, empty, empty[0], empty)
        assert fake.machine.launches == []


FAULTS = [
    ("layer_norm", "squares += (x.at[v] - mean) * (x.at[v] - mean)", "squares += x.at[v] * x.at[v]"),
    ("layer_norm", "/ T(n) + epsilon", "/ T(n - 1) + epsilon"),
    ("layer_norm", "hat.at[v] * gamma[k + v] + beta[k + v]", "hat.at[v] * gamma[k] + beta[k + v]"),
    ("layer_norm", "beta + e * beta_stride", "beta"),
    ("layer_norm", "X_hat + e * X_stride + row * n", "X_hat + row * n"),
    ("layer_norm", "products += d.at[v] * gamma[k + v] * hat.at[v]", "products += d.at[v] * hat.at[v]"),
    ("layer_norm", "- hat.at[v] * along", "- hat.at[v] - along"),
    ("layer_norm", "e == 0 || X_stride != 0", "e == 0"),
    ("rows", "sum[k] += a[u][k] * b[u][k]", "sum[k] += a[u][k] * b[0][k]"),
    ("rows", "load<W>(B, begin - back, end - back, b[u])", "load<W>(B, begin, end, b[u])"),
]


@pytest.mark.parametrize(("stem", "right", "wrong"), FAULTS, ids=[wrong for _, _, wrong in FAULTS])
def test_planted_fault_is_noticed(stem, right, wrong, monkeypatch):
    text, original = cuda.source(stem), cuda.source
    assert text.count(right) == 1
    monkeypatch.setattr(activation_launches, "GRID_LIMIT", 2)
    monkeypatch.setattr(tiles, "GRID_LIMIT", 2)  # a thread has several bands
    for faulty in (False, True):
        source = text.replace(right, wrong) if faulty else text
        monkeypatch.setattr(cuda, "source", lambda one, source=source: source if one == stem else original(one))
        with pytest.raises(AssertionError) if faulty else contextlib.nullcontext(), fake.installed() as xp:
            for shape, shared in [((70, 12), False), ((700, 8), True), ((9, 264), False)]:
                check(xp, shape, 3, "float32", 0, shared=shared)
