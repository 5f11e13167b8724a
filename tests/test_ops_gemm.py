"""Matrix products, outer ones too, whatever their axes and wherever they are written, on every executor."""

from __future__ import annotations

import numpy as np
import pytest

from gpubp.backend import to_host
from gpubp.ops import gemm


@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize(("lead_A", "lead_B"), [((), ()), ((3,), (3,)), ((), (3,)), ((3,), ()), ((2, 3), (2, 3))])
def test_a_product_is_that_of_numpy_for_each_member(xp, lead_A, lead_B, K):
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(*lead_A, K, 4)).swapaxes(-1, -2), rng.normal(size=(*lead_B, K, 5))
    expected = (A[..., :, :, None] * B[..., None, :, :]).sum(axis=-2)
    A, B = xp.asarray(A), xp.asarray(B)
    out = xp.full(expected.shape, np.nan)
    assert gemm.matmul(A, B, out) is out
    np.testing.assert_allclose(to_host(out), expected, rtol=1e-13)
    if lead_A or lead_B:  # a gradient's view of the flat buffer has gaps between the members
        gaps = xp.full((*expected.shape[:-1], 10), np.nan)[..., ::2]
        np.testing.assert_array_equal(to_host(gemm.matmul(A, B, gaps)), to_host(out))


@pytest.mark.parametrize("precision", gemm.PRECISIONS)
def test_without_float32_arrays_the_precision_does_not_count(xp, precision):
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(7, 33)), rng.normal(size=(33, 5))
    out = gemm.matmul(xp.asarray(A), xp.asarray(B), xp.empty((7, 5)), precision=precision)
    np.testing.assert_allclose(to_host(out), A @ B, rtol=1e-12)


@pytest.mark.parametrize("precision", gemm.PRECISIONS)
def test_in_numpy_float32_arrays_are_multiplied_as_they_are(numpy_ops, precision):
    A, B = (np.random.default_rng(seed).normal(size=(5, 5)).astype("float32") for seed in (0, 1))
    np.testing.assert_array_equal(gemm.matmul(A, B, np.empty_like(A), precision=precision), A @ B)


@pytest.mark.parametrize("K", [1, 3])
def test_a_factor_of_another_dtype_is_multiplied_too(numpy_ops, K):
    A, B = np.random.default_rng(0).normal(size=(4, K)), np.random.default_rng(1).normal(size=(K, 5))
    out = np.full((4, 5), np.nan, "float32")
    np.testing.assert_allclose(gemm.matmul(A.astype("float32"), B, out), A @ B, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("A_shape", "B_shape"), [((3, 4, 5), (5, 6)), ((4, 5), (3, 5, 6)), ((3, 4, 5), (3, 5, 6))])
def test_a_stack_costs_as_many_products_as_it_has_members(A_shape, B_shape):
    cost = gemm.cost("matmul", A_shape, B_shape, 8)
    assert cost.flops == 2 * 3 * 4 * 5 * 6
    assert cost.bytes == 8 * (np.prod(A_shape) + np.prod(B_shape) + 3 * 4 * 6)
