"""Whether a peer does the same work: its results after three steps against float64.

What counts is how far the weights moved in those steps, array by array: a rate that is three percent wrong, or a few
rows of a minibatch left out, changes every weight by little, and the steps by much. In the mean over an array the error
may be a small share of the change (`SHARE_OF_CHANGE`, in TF32 `share_of_tf32`), rounding of the results apart. In
float32 no single value may be far off either. TF32 rounds the factors of products, and what that does to a gradient
that is nearly zero Adam turns into a step of full length: there the mean alone counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from .cases import Case, Data, Stream, Weights
from .peers.naive_numpy import NaiveRun

STEPS = 3
TOLERANCE = 1e-4
"""How far a value may be from the reference, at most."""
TOLERANCE_OF_CHANGE = 0.05
"""And at most so far as a share of the array's largest change, so that a part of it that stands still is found out."""
SHARE_OF_CHANGE = 1e-3
"""How large the mean error of an array may be, as a share of its mean change. Float32 is at 1e-5 (measured with every
peer, at batch 1 to 65,536); a rate three percent off is at 3e-2, and a hundredth of the rows left out at 9e-2."""
EPSILON = float(np.finfo(np.float32).eps)
ROUNDING = 8 * EPSILON
"""Beside `TOLERANCE_OF_CHANGE`, rounding of the values themselves, as a share of the largest."""
MEAN_ROUNDING = EPSILON / 2
"""And beside the share of the mean change, as a share of the mean value: three steps round each value three times, by a
quarter of its last digit in the mean, or 0.3 of this epsilon in all."""
TF32_FACTOR = 2.0**-10
"""How far off a factor may be, as a share of itself: TF32 has 10 binary digits behind the point, and cuts the rest off
at worst."""
MOST_FLOPS = 1e12
"""A reference of more than this is made with fewer rows."""


def share_of_tf32(layers: int) -> float:
    """How far results may be off in TF32, as a share of what three steps change, in the mean.

    A product is off by twice what a factor is. In a network of L layers the first layer's gradient has gone through L
    products forward, L - 1 backward and its own: to first order these 2 L errors of ``2 * TF32_FACTOR`` add up at
    worst. In trials with emulated factors it was a twentieth of this where they were rounded, a quarter at most where
    they were cut off; without any training the share is 1.
    """
    return 2 * layers * 2 * TF32_FACTOR


def checked_case(case: Case) -> Case:
    """The case that is checked for this one: itself, or where float64 would take minutes, one of a smaller batch."""
    products = sum(n_in * n_out for n_in, n_out in pairwise(case.widths))
    batch = case.batch
    while batch > 1 and 6 * STEPS * batch * products > MOST_FLOPS:
        batch //= 2
    return replace(case, batch=batch)


def reference(case: Case, data: Data, uncorrected_epsilon: bool) -> Weights:
    """What three steps make, in float64; see `benchmarks.peers.Peer.uncorrected_epsilon`."""
    run = NaiveRun(case, data, np.float64, uncorrected_epsilon)
    run.steps(Stream(data, case.batch).take(STEPS))
    return run.results()


def disagreement(found: Weights, expected: Weights, start: Weights | None, precision: str = "float32") -> str | None:
    """How far a peer is from the reference, in words; None where it is within the tolerance.

    Args:
        found: The peer's results.
        expected: The reference's.
        start: The initial weights, if the results are weights; None where they start from nothing.
        precision: Of the peer's matrix products, a key of `benchmarks.cases.PRECISIONS`.
    """
    if [array.shape for array in found] != [array.shape for array in expected]:
        return f"shapes {_shapes(found)} instead of {_shapes(expected)}"
    begun = start or [np.zeros(1)] * len(expected)
    share = share_of_tf32(max(1, len(expected) // 2)) if precision == "tf32" else SHARE_OF_CHANGE
    for found_k, expected_k, start_k in zip(found, expected, begun, strict=True):
        values, changes = np.abs(expected_k), np.abs(expected_k - start_k)
        errors = np.abs(found_k.astype(np.float64) - expected_k)
        checks = [(errors.mean(), share * changes.mean() + MEAN_ROUNDING * values.mean(), " in the mean")]
        if precision != "tf32":
            allowed = min(TOLERANCE, TOLERANCE_OF_CHANGE * changes.max() + ROUNDING * values.max())
            checks.insert(0, (errors.max(), allowed, ""))
        for apart, allowed, where in checks:
            if not apart <= allowed:  # not a number is not agreement
                return f"off by {apart:.1e}{where}, allowed is {allowed:.1e}"
    return None


def _shapes(arrays: Sequence[np.ndarray]) -> str:
    return ", ".join(str(array.shape) for array in arrays)
