"""Batch normalisation: columns of a batch brought to mean 0 and variance 1, then scaled and shifted.

    mean, variance of each column;   r = 1 / sqrt(variance + epsilon)
    Y = (X - mean) * r * gamma + beta

The compiled kernels take the sums of X less the first row, and those of the squares, in one pass. The first row is at
most sqrt(N - 1) standard deviations away from the mean, so that what cancels is never more than N times the variance.
"""

from __future__ import annotations

import math
from types import ModuleType

from gpubp import compiled
from gpubp.backend import Array, array_module
from gpubp.cost import Cost


def partial_sums_shape(xp: ModuleType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the scratch that `statistics` and `gradients` need for an X of this shape: two sums a chunk."""
    *members, _, columns = shape
    kernels = compiled.kernels_of(xp)
    return (*members, kernels.batch_norm.chunks(shape) if kernels else 0, 2, columns)


def statistics(
    X: Array,
    mean: Array,
    r: Array,
    running_mean: Array,
    running_variance: Array,
    momentum: float,
    epsilon: float,
    partial_sums: Array,
) -> None:
    """Mean and r of each column, and the running statistics brought nearer to the batch's, the variance unbiased.

    A batch of fewer than two rows leaves the running statistics as they are.

    Args:
        X: (..., N, n).
        mean: (..., n), the result.
        r: (..., n), the result.
        running_mean: (..., n), becomes ``(1 - momentum) * running_mean + momentum * mean``.
        running_variance: (..., n), likewise, with the batch's variance by N - 1.
        momentum: How much the batch counts.
        epsilon: Added to the variance.
        partial_sums: Scratch of the shape that `partial_sums_shape` gives.
    """
    xp, N = array_module(X, mean, r, running_mean, running_variance), X.shape[-2]
    rows = (mean, r, running_mean, running_variance)
    if (kernels := compiled.kernels_of(xp)) and kernels.batch_norm.takes((X,), rows):
        kernels.batch_norm.statistics(X, *rows, momentum, epsilon, partial_sums)
        return
    mean[...] = X.sum(axis=-2) / max(N, 1)
    variance = xp.square(X - mean[..., None, :]).sum(axis=-2) / max(N, 1)  # (..., n)
    r[...] = 1 / xp.sqrt(variance + epsilon)
    if N > 1:
        running_mean[...] = (1 - momentum) * running_mean + momentum * mean
        running_variance[...] = (1 - momentum) * running_variance + momentum * N / (N - 1) * variance


def normalize(X: Array, mean: Array, r: Array, gamma: Array, beta: Array, Y: Array) -> Array:
    """``Y = (X - mean) * r * gamma + beta``: X, Y (..., N, n), the rest (..., n); Y may be X."""
    xp = array_module(X, mean, r, gamma, beta, Y)
    if (kernels := compiled.kernels_of(xp)) and kernels.batch_norm.takes((Y, X), (mean, r, gamma, beta)):
        return kernels.batch_norm.normalize(X, mean, r, gamma, beta, Y)
    xp.subtract(X, mean[..., None, :], out=Y)
    xp.multiply(Y, r[..., None, :], out=Y)
    xp.multiply(Y, gamma[..., None, :], out=Y)
    return xp.add(Y, beta[..., None, :], out=Y)


def gradients(
    dL_dY: Array, X: Array, mean: Array, r: Array, dL_dgamma: Array, dL_dbeta: Array, partial_sums: Array
) -> None:
    """``dL_dgamma = (dL_dY * (X - mean) * r).sum(axis=-2)`` and ``dL_dbeta = dL_dY.sum(axis=-2)``, both (..., n)."""
    xp = array_module(dL_dY, X, mean, r, dL_dgamma, dL_dbeta)
    rows = (mean, r, dL_dgamma, dL_dbeta)
    if (kernels := compiled.kernels_of(xp)) and kernels.batch_norm.takes((dL_dY, X), rows):
        kernels.batch_norm.gradients(dL_dY, X, *rows, partial_sums)
        return
    (dL_dY * ((X - mean[..., None, :]) * r[..., None, :])).sum(axis=-2, out=dL_dgamma)
    dL_dY.sum(axis=-2, out=dL_dbeta)


def input_gradient(
    dL_dY: Array,
    X: Array,
    mean: Array,
    r: Array,
    gamma: Array,
    dL_dgamma: Array,
    dL_dbeta: Array,
    dL_dX: Array,
    share: float,
) -> Array:
    """``dL_dX = gamma * r * (dL_dY - share * (dL_dbeta + (X - mean) * r * dL_dgamma))``.

    Args:
        dL_dY: (..., N, n).
        X: Of the shape of dL_dY, or (N, n) where all members of a stack have the same.
        mean: (..., n), as are r, gamma, dL_dgamma and dL_dbeta.
        r: See `statistics`.
        gamma: The scale.
        dL_dgamma: See `gradients`.
        dL_dbeta: See `gradients`.
        dL_dX: Of the shape of X, the result; it may be dL_dY.
        share: 1 / N where mean and r are those of this batch, 0 where they are constants.
    """
    xp = array_module(dL_dY, X, mean, r, gamma, dL_dgamma, dL_dbeta, dL_dX)
    rows = (mean, r, gamma, dL_dgamma, dL_dbeta)
    if (kernels := compiled.kernels_of(xp)) and kernels.batch_norm.takes((dL_dX, X, dL_dY), rows):
        return kernels.batch_norm.input_gradient(dL_dY, X, *rows, dL_dX, share)
    X_hat = (X - mean[..., None, :]) * r[..., None, :]
    through = dL_dY - share * (dL_dbeta[..., None, :] + X_hat * dL_dgamma[..., None, :])
    result = through * (gamma * r)[..., None, :]  # (..., N, n)
    dL_dX[...] = result if result.ndim == dL_dX.ndim else result.sum(axis=0)  # of all members that read the one X
    return dL_dX


def costs(shape: tuple[int, ...], itemsize: int) -> dict[str, Cost]:
    """The costs on a matrix of this shape, by the name of the function; rows (..., n) are left out."""
    size = math.prod(shape)
    return {
        "statistics": Cost("forward statistics", 4 * size, size * itemsize),  # less the first row, sum, square, sum
        "normalize": Cost("forward normalize", 4 * size, 2 * size * itemsize),
        "gradients": Cost("backward sums", 5 * size, 2 * size * itemsize),
        "input_gradient": Cost("backward dL_dX", 7 * size, 3 * size * itemsize),
    }
