"""Updates of the flat parameter buffer in one pass: see `gpubp.optimizers`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba.extending import register_jitable

from gpubp import cpu
from gpubp.backend import Array
from gpubp.cpu_kernels.memory import kernel, number, part, vector

BLOCK = 4096
"""Parameters in a work item."""
MOST_STEPS = 256
"""Steps that a program runs at most in one call, each with learning rates of its own."""


# What every update is given first: theta, dL_dtheta, M, V, rates, numbers in a row of rates, numbers from one member's
# rate to the next, factors, P, blocks of a row, decayed columns, weight decay. Its settings begin at a[12].


@register_jitable
def _begin(Real: Any, a: Any, item: int, step: int) -> Any:
    """Decay the weights of a work item; returns its first and last number, its rate, and what its gradient is worth."""
    P, blocks, weight_decay = a[8], a[9], number(a[11])
    e, block = item // blocks, item % blocks
    place = step * a[5] + e * a[6]
    rate = vector(np.float64, a[4], place + 1)[place]
    factor = Real(1)
    if a[7] != 0:
        factor = vector(Real, a[7], e + 1)[e]
    first, last = block * BLOCK, min((block + 1) * BLOCK, P)
    decayed = min(a[10], last) - first
    if weight_decay != 0 and decayed > 0:
        shrink = Real(rate * weight_decay)
        weights = part(Real, a[0], e * P + first, e * P + first + decayed)
        for i in range(decayed):
            weights[i] -= shrink * weights[i]
    return e * P + first, e * P + last, rate, factor


@kernel
def _sgd(Real: Any, has_momentum: Any, nesterov: Any) -> Any:
    def sgd(a: Any, begin: int, end: int, step: int) -> None:
        momentum = Real(number(a[12]))
        for item in range(begin, end):
            first, last, wide_rate, factor = _begin(Real, a, item, step)
            rate = Real(wide_rate)
            theta, dL_dtheta = part(Real, a[0], first, last), part(Real, a[1], first, last)
            V = part(Real, a[3], first, last)
            for i in range(last - first):
                g = factor * dL_dtheta[i]
                move = g
                if has_momentum:
                    V[i] = momentum * V[i] + g
                    move = momentum * V[i] + g if nesterov else V[i]
                theta[i] -= rate * move

    return sgd


@kernel
def _adam(Real: Any) -> Any:
    def adam(a: Any, begin: int, end: int, step: int) -> None:
        beta1, beta2 = number(a[13]), number(a[14])
        corrections = part(np.float64, a[12], 2 * step, 2 * step + 2)
        epsilon = Real(number(a[15]) * corrections[1])
        kept1, kept2, added1, added2 = Real(beta1), Real(beta2), Real(1 - beta1), Real(1 - beta2)
        for item in range(begin, end):
            first, last, wide_rate, factor = _begin(Real, a, item, step)
            rate = Real(wide_rate * corrections[0])
            theta, dL_dtheta = part(Real, a[0], first, last), part(Real, a[1], first, last)
            M, V = part(Real, a[2], first, last), part(Real, a[3], first, last)
            for i in range(last - first):
                g = factor * dL_dtheta[i]
                m = kept1 * M[i] + added1 * g
                v = kept2 * V[i] + added2 * (g * g)
                M[i], V[i] = m, v
                theta[i] -= rate * m / (np.sqrt(v) + epsilon)

    return adam


@kernel
def _rmsprop(Real: Any, has_momentum: Any) -> Any:
    def rmsprop(a: Any, begin: int, end: int, step: int) -> None:
        kept, added = Real(number(a[12])), Real(1 - number(a[12]))
        epsilon, momentum = Real(number(a[13])), Real(number(a[14]))
        for item in range(begin, end):
            first, last, wide_rate, factor = _begin(Real, a, item, step)
            rate = Real(wide_rate)
            theta, dL_dtheta = part(Real, a[0], first, last), part(Real, a[1], first, last)
            M, V = part(Real, a[2], first, last), part(Real, a[3], first, last)
            for i in range(last - first):
                g = factor * dL_dtheta[i]
                v = kept * V[i] + added * (g * g)
                V[i] = v
                move = g / (np.sqrt(v) + epsilon)
                if has_momentum:
                    move = momentum * M[i] + move
                    M[i] = move
                theta[i] -= rate * move

    return rmsprop


@kernel
def _lion(Real: Any) -> Any:
    def lion(a: Any, begin: int, end: int, step: int) -> None:
        added1, kept2, added2 = Real(1 - number(a[12])), Real(number(a[13])), Real(1 - number(a[13]))
        for item in range(begin, end):
            first, last, wide_rate, factor = _begin(Real, a, item, step)
            rate = Real(wide_rate)
            theta, dL_dtheta = part(Real, a[0], first, last), part(Real, a[1], first, last)
            M = part(Real, a[2], first, last)
            for i in range(last - first):
                m, g = M[i], factor * dL_dtheta[i]
                along = m + added1 * (g - m)
                theta[i] -= rate if along > 0 else (-rate if along < 0 else along)  # 0 stays, and NaN
                M[i] = kept2 * m + added2 * g

    return lion


@kernel
def _squares(Real: Any) -> Any:
    def squares(a: Any, begin: int, end: int, step: int) -> None:
        P, blocks, sums = a[2], a[3], vector(np.float64, a[1], end)
        for item in range(begin, end):
            e, block = item // blocks, item % blocks
            dL_dtheta = part(Real, a[0], e * P + block * BLOCK, e * P + min((block + 1) * BLOCK, P))
            total = 0.0
            for i in range(len(dL_dtheta)):
                total += np.float64(dL_dtheta[i]) * np.float64(dL_dtheta[i])
            sums[item] = total

    return squares


@kernel
def _clip_factors(Real: Any) -> Any:
    def clip_factors(a: Any, begin: int, end: int, step: int) -> None:
        blocks, clip = a[2], number(a[3])
        factors = vector(Real, a[1], end)
        for e in range(begin, end):
            sums = part(np.float64, a[0], e * blocks, (e + 1) * blocks)
            total = 0.0
            for i in range(blocks):
                total += sums[i]
            norm = math.sqrt(total)
            factors[e] = Real(clip / norm) if norm > clip and norm < np.inf else Real(1)

    return clip_factors


def of(theta: Array, dL_dtheta: Array) -> Update | None:
    """The kernels that update these buffers; None where they take no such buffers."""
    return Update(theta, dL_dtheta) if cpu.is_plain(theta, dL_dtheta) else None


class Update:
    """Launches of an update of one pair of buffers, and what they read anew in each step.

    Args:
        theta: (P,) or (E, P).
        dL_dtheta: The same shape.

    Attributes:
        weight_decay: How strongly theta is drawn to zero, as a share of it for each unit of the learning rate.
        decayed: How many leading columns of theta are.
    """

    def __init__(self, theta: Array, dL_dtheta: Array) -> None:
        self._buffers = theta, dL_dtheta
        E, P = math.prod(theta.shape[:-1]), theta.shape[-1]
        self._rates = np.zeros((MOST_STEPS, E))  # a row for each step after `begin`
        self._rates_there: Any = None  # as `begin` was given them
        self._corrections = np.zeros((MOST_STEPS, 2))
        self._blocks = -(-P // BLOCK)
        self._sizes = P, self._blocks
        self._items = E * self._blocks
        self._factors: Array | None = None  # (E,), what the gradient is multiplied by; None for 1
        self.weight_decay, self.decayed = 0.0, 0

    def begin(self, rates: Any, corrections: np.ndarray[Any, Any] | None) -> None:
        """Set what the steps of the next launch read.

        Args:
            rates: A number, or a list with one of each member, for all steps; or an array with a row for each of at
                most `MOST_STEPS` steps, (steps, 1) or (steps, E).
            corrections: (steps, 2), see `gpubp.optimizers.adam.Adam`; None for an optimizer without.
        """
        if corrections is not None:
            self._corrections[: len(corrections)] = corrections
        if isinstance(rates, np.ndarray):
            self._rates[: len(rates)] = rates
            self._rates_there = None
        elif rates != self._rates_there:
            self._rates[...] = rates
            self._rates_there = rates

    def clip(self, norm: float | None) -> None:
        """Launch what keeps the gradient of each member from being longer than this; None for as long as it is."""
        if norm is None:
            self._factors = None
            return
        gradient, E = self._buffers[1], self._rates.shape[1]
        if self._factors is None:
            self._factors = np.ones(E, gradient.dtype)
        sums = np.empty((E, self._blocks))
        kind = gradient.dtype.type
        cpu.launch(_squares(kind), (gradient, sums, *self._sizes), self._items, min(gradient.shape[-1], BLOCK))
        cpu.launch(_clip_factors(kind), (sums, self._factors, self._blocks, float(norm)), E, 2 * self._blocks)

    def sgd(self, V: Array | None, momentum: float, nesterov: bool) -> None:
        """Launch; see `gpubp.optimizers.sgd.SGD`. V: of theta's shape, or None without momentum."""
        self._launch(_sgd(self._kind, V is not None, nesterov), 0.15, (None, V), (momentum,))

    def adam(self, M: Array, V: Array, beta1: float, beta2: float, epsilon: float) -> None:
        """Launch; see `gpubp.optimizers.adam.Adam`. M and V: of theta's shape."""
        self._launch(_adam(self._kind), 0.25, (M, V), (self._corrections, beta1, beta2, epsilon))

    def rmsprop(self, V: Array, M: Array | None, decay: float, epsilon: float, momentum: float) -> None:
        """Launch; see `gpubp.optimizers.rmsprop.RMSprop`. V and M: of theta's shape, M None without momentum."""
        self._launch(_rmsprop(self._kind, M is not None), 0.25, (M, V), (decay, epsilon, momentum))

    def lion(self, M: Array, beta1: float, beta2: float) -> None:
        """Launch; see `gpubp.optimizers.lion.Lion`. M: of theta's shape."""
        self._launch(_lion(self._kind), 0.2, (M, None), (beta1, beta2))

    @property
    def _kind(self) -> Any:
        return self._buffers[0].dtype.type

    def _launch(self, compiled: Any, nanoseconds: float, state: tuple[Any, ...], settings: tuple[Any, ...]) -> None:
        E = self._rates.shape[1]
        arguments = (
            *(*self._buffers, *state, self._rates, E, int(E > 1), self._factors),
            *(*self._sizes, self.decayed, float(self.weight_decay), *settings),
        )
        cpu.launch(compiled, arguments, self._items, nanoseconds * min(self._sizes[0], BLOCK))
