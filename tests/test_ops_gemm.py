"""Matrix products, outer ones too, whatever their axes and wherever they are written."""

from __future__ import annotations

import numpy as np
import pytest

from gpubp.ops import gemm


@pytest.mark.parametrize("K", [1, 2])
@pytest.mark.parametrize(("lead_A", "lead_B"), [((), ()), ((3,), (3,)), ((), (3,)), ((3,), ()), ((2, 3), (2, 3))])
def test_a_product_is_that_of_numpy_for_each_member(lead_A, lead_B, K):
    rng = np.random.default_rng(0)
    A, B = rng.normal(size=(*lead_A, K, 4)).swapaxes(-1, -2), rng.normal(size=(*lead_B, K, 5))
    expected = (A[..., :, :, None] * B[..., None, :, :]).sum(axis=-2)
    out = np.full(expected.shape, np.nan)
    assert gemm.matmul(A, B, out) is out
    np.testing.assert_allclose(out, expected, rtol=1e-13)
    if lead_A or lead_B:  # a gradient's view of the flat buffer has gaps between the members
        gaps = np.full((*expected.shape[:-1], 10), np.nan)[..., ::2]
        np.testing.assert_array_equal(gemm.matmul(A, B, gaps), out)
