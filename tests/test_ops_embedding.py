"""Lookups by index, their backward and columns that pass, on every executor."""

from __future__ import annotations

import fake_cupy as fake
import numpy as np
import pytest

from gpubp import cuda
from gpubp.backend import to_host
from gpubp.errors import ShapeError
from gpubp.ops import embedding

CASES = [  # N, categories, width
    (1, 1, 1), (7, 1, 3), (33, 5, 2), (33, 40, 33), (1025, 3, 7), (1300, 300, 1), (600, 9, 65), (0, 4, 3),
]  # fmt: skip
N_IN, COLUMN, BEFORE, AFTER = 4, 2, 1, 2
"""Columns of X, that of the index, and columns of Y around those of the table."""


def arrays_of(members, N, C, width, shared, dtype):
    """X with categories, none of them and what is no index; W; dL_dY. On the host, in float64."""
    rng, lead = np.random.default_rng(N + C + width), () if members is None else (members,)
    own = () if shared else lead
    X = rng.normal(size=(*own, N, N_IN))
    X[..., COLUMN] = rng.choice([*range(C), -1, C, C + 0.5, 0.5, np.nan, np.inf, -1e30], size=(*own, N))
    W, d = rng.normal(size=(*lead, C, width)), rng.normal(size=(*lead, N, BEFORE + width + AFTER))
    return tuple(array.astype(dtype) for array in (X, W, d))


def placed(xp, values, offset, *, apart=False):
    """An array of these values, `offset` elements late; `apart` puts a gap between members, as theta has it."""
    lead = values.shape[:1] if apart and values.ndim == 3 else ()
    size = values[0].size if lead else values.size
    flat = xp.full((*lead, offset + size + 3), 77, values.dtype)
    view = flat[..., offset : offset + size].reshape(values.shape)
    view[...] = xp.asarray(values)
    return view


def check(xp, members, N, C, width, dtype, *, shared=False, offset=0):
    """All three, against the sum over a one-hot matrix; returns what they wrote."""
    X_host, W_host, d_host = arrays_of(members, N, C, width, shared, dtype)
    X, dL_dY = placed(xp, X_host, offset), placed(xp, d_host, offset)
    W, dL_dW = placed(xp, W_host, offset, apart=True), placed(xp, W_host * np.nan, offset, apart=True)
    Y = placed(xp, np.full(d_host.shape, 55, dtype), offset)
    strip = slice(BEFORE, BEFORE + width)
    one_hot = (X_host[..., COLUMN, None] == np.arange(C)).astype("f8")
    assert embedding.lookup(X, COLUMN, W, Y, BEFORE) is Y
    expected = np.full(d_host.shape, 55.0)
    expected[..., strip] = one_hot @ W_host
    np.testing.assert_array_equal(to_host(Y), expected)

    shape = embedding.partial_sums_shape(xp, d_host.shape, (C, width))
    partial_sums = xp.full(shape, np.nan, dtype)
    assert embedding.lookup_backward(dL_dY, BEFORE, X, COLUMN, dL_dW, partial_sums) is dL_dW
    sums = np.matrix_transpose(one_hot) @ d_host[..., strip].astype("f8")
    bound = 16 * np.finfo(dtype).eps * (1 + np.matrix_transpose(one_hot) @ np.abs(d_host[..., strip]))
    assert (np.abs(to_host(dL_dW) - sums) <= bound).all()

    embedding.pass_columns(X, 0, 2, Y, 0)
    np.testing.assert_array_equal(to_host(Y)[..., :2], np.broadcast_to(X_host, (*Y.shape[:-1], N_IN))[..., :2])
    np.testing.assert_array_equal(to_host(Y)[..., 2:], expected[..., 2:])
    for array, values in ((X, X_host), (W, W_host), (dL_dY, d_host)):
        np.testing.assert_array_equal(to_host(array), values)
    return to_host(Y).copy(), to_host(dL_dW).copy()


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(("members", "shared"), [(None, False), (1, False), (3, False), (3, True)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_products_with_one_hot_rows(xp, dtype, members, shared, offset):
    for case in CASES:
        check(xp, members, *case, dtype, shared=shared, offset=offset)


@pytest.mark.usefixtures("numpy_ops")
@pytest.mark.parametrize(("members", "shared"), [(None, False), (3, False), (3, True)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equals_products_with_one_hot_rows_in_array_maths(dtype, members, shared):
    for case in CASES:
        check(np, members, *case, dtype, shared=shared, offset=1)


@pytest.mark.parametrize("case", [(1300, 300, 1), (1025, 3, 7)])
def test_repeats_bit_for_bit_whatever_the_order_of_threads(case):
    runs = []
    for reverse in (False, False, True):
        with fake.installed(reverse_threads=reverse) as xp:
            runs.append(check(xp, 2, *case, "float32"))
    for again in runs[1:]:
        for first, second in zip(runs[0], again, strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.usefixtures("cpu_kernels")
def test_the_number_of_threads_does_not_show(monkeypatch):
    runs = []
    for threads in (1, 2, 3):
        monkeypatch.setattr("gpubp.cpu.threads", lambda threads=threads: threads)
        monkeypatch.setattr("gpubp.cpu.ALONE_NANOSECONDS", 0)
        monkeypatch.setattr("gpubp.cpu.STEP_NANOSECONDS", 0)
        monkeypatch.setattr("gpubp.cpu.SHARE_NANOSECONDS", 1)
        runs.append(check(np, 2, 1300, 30, 5, "float32"))
    for again in runs[1:]:
        for first, second in zip(runs[0], again, strict=True):
            np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("N", "C", "width", "members", "chunks"),
    [
        (1, 5, 3, (), 1),
        (256, 5, 3, (), 1),
        (257, 5, 3, (), 2),
        (65536, 5, 3, (), 256),
        (65536, 100_000, 16, (), 1),
        (65536, 2000, 16, (), 8),
        (65536, 2000, 16, (4,), 2),
    ],
)
def test_few_categories_are_summed_in_chunks_of_rows(N, C, width, members, chunks):
    with fake.installed() as xp:
        shape = embedding.partial_sums_shape(xp, (*members, N, width + 2), (C, width))
    assert shape == (*members, chunks, C * width)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("T(whole) == x ? whole : C", "whole"),  # what is between two categories taken for one
        ("(e * N + examples[k]) * n_out", "examples[k] * n_out"),
        ("(chunk + 1) * chunk_rows", "(chunk + 1) * chunk_rows - 1"),
        ("if (w < warp) place += found[w];", ""),
        ("(1u << lane) - 1", "1u << lane"),
        ("e * X_stride + n * n_in + column", "n * n_in + column"),
        ("__syncthreads();  // and the list before", "//"),
        ("__syncthreads();  // the list is there", "//"),
    ],
)
def test_a_planted_fault_is_noticed(right, wrong, monkeypatch):
    original = cuda.source
    text = original("embedding")
    assert right in text
    noticed = []
    for faulty in (True, False):
        source = text.replace(right, wrong) if faulty else text
        monkeypatch.setattr(cuda, "source", lambda stem, s=source: s if stem == "embedding" else original(stem))
        failures = 0
        for reverse in (False, True):
            with fake.installed(reverse_threads=reverse) as xp:
                try:
                    check(xp, 2, 1300, 300, 1, "float32")
                    check(xp, 2, 33, 40, 33, "float32")
                except AssertionError:
                    failures += 1
        noticed.append(failures > 0)
    assert noticed == [True, False]


def test_arrays_that_a_kernel_can_not_write_are_refused():
    with fake.installed() as xp:
        X, Y, W = xp.zeros((5, 3), "float32"), xp.zeros((5, 4), "float32"), xp.zeros((6, 4), "float32")
        with pytest.raises(ShapeError, match="Y with strides"):
            embedding.lookup(X, 0, W, xp.zeros((5, 8), "float32")[:, ::2], 0)
        with pytest.raises(ShapeError, match="one piece"):
            embedding.lookup(X, 0, xp.zeros((6, 8), "float32")[:, ::2], Y, 0)
        with pytest.raises(ShapeError, match="X is float64"):
            embedding.lookup(X.astype("float64"), 0, W, Y, 0)
        strided = xp.zeros((5, 6), "float32")[:, ::2]
        embedding.lookup(strided, 0, W, Y, 0)  # what is read may have gaps
