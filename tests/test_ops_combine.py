"""Weighted sums of buffers, on every executor."""

from __future__ import annotations

import numpy as np
import pytest

from gpubp import compiled
from gpubp.backend import to_host
from gpubp.ops.combine import combine


@pytest.fixture(params=["numpy", "kernels", "stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def xp(request, monkeypatch):
    """The module of the arrays, one for each executor."""
    if request.param == "numpy":
        monkeypatch.setattr(compiled.cpu, "kernels", lambda: None)
    if request.param == "kernels":
        request.getfixturevalue("cpu_kernels")
    if request.param == "stand-in":
        return request.getfixturevalue("fake_cupy")
    if request.param == "cuda":
        return pytest.importorskip("cupy")
    return np


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("kept", [0.0, 1.0, 0.75])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (1,), (7,), (1025,), (3, 33), (0,)])
def test_a_weighted_sum(xp, shape, dtype, kept, offset):
    rng, size = np.random.default_rng(0), int(np.prod(shape))
    X, old = (rng.normal(size=size).astype(dtype) for _ in range(2))
    expected = kept * old.astype("f8") + 0.3 * X.astype("f8")
    if kept == 0:
        old[:] = np.nan  # must not be read
    a, b = (xp.asarray(np.concatenate([np.zeros(offset, dtype), v])) for v in (old, X))
    out = combine(a[offset:].reshape(shape), kept, b[offset:].reshape(shape), 0.3)
    bound = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(to_host(out).reshape(-1), expected, rtol=bound, atol=bound)
    np.testing.assert_array_equal(to_host(b)[offset:], X)


def test_arrays_with_gaps(xp):
    out, X = xp.ones((4, 6)), xp.ones((4, 6))
    combine(out[:, ::2], 2.0, X[:, ::2], 3.0)
    np.testing.assert_array_equal(to_host(out), np.tile([5.0, 1.0], (4, 3)))


@pytest.mark.parametrize("gaps", [(0, 4), (4, 4), (3, 0), (3, 1)])
def test_rows_that_lie_apart(xp, gaps):
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(3, 33 + gap)) for gap in gaps]
    out, X = (xp.asarray(array.copy()) for array in values)
    combine(out[:, :33], 0.5, X[:, :33], 0.25)
    expected = values[0].copy()
    expected[:, :33] = 0.5 * values[0][:, :33] + 0.25 * values[1][:, :33]
    np.testing.assert_allclose(to_host(out), expected, rtol=1e-15)
    if xp is not np:
        assert compiled.kernels_of(xp).combine.takes(out[:, :33], X[:, :33])


def test_a_kernel_is_used(xp, request):
    if "numpy" in request.node.name:
        assert compiled.kernels_of(xp) is None
    else:
        assert compiled.kernels_of(xp).combine.takes(xp.ones(3), xp.ones(3))
