"""Bias plus activation, and its backward: the two elementwise halves of a dense layer, each in one pass.

    forward     Y = f(Z + b[..., None, :])
    backward    dL_dZ = dL_dY * f'(saved),   dL_db = dL_dZ.sum(axis=-2)

``saved`` is Y where f' is a function of Y (sigmoid, tanh, ReLU), else Z + b. On the CPU the array maths runs in blocks
of rows that stay in cache; with a functor for f, the fused kernels of `gpubp.cpu_kernels.activation` run where Numba is
installed. On a CUDA device with a functor for f, those of ``kernels/activation.cu`` run; without one, the same array
maths runs on the whole array.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Protocol

import numpy as np

from gpubp import compiled
from gpubp.backend import Array, array_module
from gpubp.cost import Cost
from gpubp.ops import elementary

BLOCK_ELEMENTS = 32768
"""Elements of one array in a CPU block; four such float32 arrays take half of a 1 MiB L2 cache."""


class ActivationFunction(Protocol):
    """An elementwise function with its derivative, in array maths."""

    derivative_of: str
    """``"Y"`` where the derivative is a function of the output, ``"X"`` where it needs the input."""
    functor: str | None
    """Name of the functor in ``kernels/activations.cuh`` and `gpubp.cpu_kernels.functions`; None for no kernel."""
    parameter: float
    """The number that the functor takes (the slope of a leaky ReLU); 0 where it takes none."""

    def evaluate(self, xp: ModuleType, X: Array, out: Array, scratch: Array) -> None:
        """Write f(X) into `out`, which may be X itself; `scratch` is neither and free to use."""

    def derivative(self, xp: ModuleType, saved: Array, out: Array) -> None:
        """Write f' into `out`, from Y or from X as `derivative_of` says; `out` is neither of them."""


def workspace(function: ActivationFunction, xp: ModuleType, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the scratch arrays that both functions below need for a Z of this shape."""
    *members, _, columns = shape
    kernels = compiled.kernels_of(xp)
    needs = {"partial_sums": (*members, kernels.activation.chunks(shape) if kernels else 1, columns)}
    if xp is np or function.functor is None:
        needs["scratch"] = (*members, block_rows(xp, shape), columns)
    return needs


def bias_activation(
    function: ActivationFunction, Z: Array, b: Array | None, Y: Array, workspace: Mapping[str, Array]
) -> Array:
    """``Y = f(Z + b[..., None, :])``.

    Args:
        function: The activation f.
        Z: (..., N, n), and with a bias Z + b afterwards wherever the derivative needs that; where it does not, the
            kernel saves the write. It may be Y itself.
        b: (..., n), added to every row; None for no bias, and then Z is left as it is.
        Y: (..., N, n), the result.
        workspace: The arrays that `workspace` names.

    Raises:
        ShapeError: With a CUDA kernel: Z and Y do not fit each other, or one that is written is not contiguous.
    """
    xp = array_module(Z, Y, *(() if b is None else (b,)))
    if (kernels := compiled.kernels_of(xp)) and kernels.activation.takes(function, Y, b, Z):
        return kernels.activation.bias_activation(function, Z, b, Y)
    scratch = workspace["scratch"]
    b_row = None if b is None else b[..., None, :]  # (..., 1, n)
    for Z_rows, Y_rows in row_blocks(xp, Z, Y):
        if b_row is not None:
            xp.add(Z_rows, b_row, out=Z_rows)
        function.evaluate(xp, Z_rows, Y_rows, scratch[..., : Z_rows.shape[-2], :])
    return Y


def activation_backward(
    function: ActivationFunction,
    dL_dY: Array,
    saved: Array,
    dL_dZ: Array,
    dL_db: Array | None,
    workspace: Mapping[str, Array],
) -> Array:
    """``dL_dZ = dL_dY * f'(saved)`` and, in the same pass, ``dL_db = dL_dZ.sum(axis=-2)``.

    The column sum adds block by block in a fixed order, so that a run repeats bit for bit.

    Args:
        function: The activation f.
        dL_dY: (..., N, n).
        saved: (..., N, n), Y or Z + b as ``function.derivative_of`` says.
        dL_dZ: (..., N, n), the result. It may be dL_dY itself.
        dL_db: (..., n), the column sum; None where there is no bias.
        workspace: The arrays that `workspace` names.

    Raises:
        ShapeError: With a CUDA kernel: the arrays do not fit each other, or one that is written is not contiguous.
    """
    xp = array_module(dL_dY, saved, dL_dZ, *(() if dL_db is None else (dL_db,)))
    if (kernels := compiled.kernels_of(xp)) and kernels.activation.takes(function, dL_dZ, dL_db, dL_dY, saved):
        return kernels.activation.activation_backward(function, dL_dY, saved, dL_dZ, dL_db, workspace)
    scratch, first = workspace["scratch"], True
    for dL_dY_rows, saved_rows, dL_dZ_rows in row_blocks(xp, dL_dY, saved, dL_dZ):
        derivative = scratch[..., : saved_rows.shape[-2], :]
        function.derivative(xp, saved_rows, derivative)
        xp.multiply(dL_dY_rows, derivative, out=dL_dZ_rows)
        if dL_db is None:
            continue
        if first:
            elementary.column_sum(dL_dZ_rows, dL_db)
            first = False
        else:
            xp.add(dL_db, elementary.column_sum(dL_dZ_rows, workspace["partial_sums"][..., 0, :]), out=dL_db)
    return dL_dZ


def forward_cost(name: str, shape: tuple[int, ...], itemsize: int, flops: int = 1) -> Cost:
    """The cost of `bias_activation` on a matrix of this shape; `flops` of the activation itself, for each element."""
    size = math.prod(shape)
    return Cost(name, (flops + 1) * size, 2 * size * itemsize)


def backward_cost(name: str, shape: tuple[int, ...], itemsize: int, flops: int = 1) -> Cost:
    """The cost of `activation_backward` with the column sum; `flops` of the derivative, for each element."""
    size = math.prod(shape)
    return Cost(name, (flops + 2) * size, 3 * size * itemsize)


# The array maths: blocks of rows.


def block_rows(xp: ModuleType, shape: tuple[int, ...]) -> int:
    """How many rows of a matrix (..., N, n) the array maths takes at a time."""
    *members, rows, columns = shape
    if xp is not np:
        return rows
    return min(rows, max(1, BLOCK_ELEMENTS // max(1, math.prod(members) * columns)))


def row_blocks(xp: ModuleType, *arrays: Array) -> Iterable[tuple[Array, ...]]:
    """The same rows of each array, block by block; the arrays themselves where one block holds all."""
    if xp is not np or arrays[0].size <= BLOCK_ELEMENTS:
        return (arrays,)
    step = block_rows(xp, arrays[0].shape)
    starts = range(0, arrays[0].shape[-2], step)
    return (tuple(array[..., start : start + step, :] for array in arrays) for start in starts)
