"""Losses and their gradients in one pass: see `gpubp.losses`. A work item is a chunk of examples with their sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from gpubp import cpu
from gpubp.backend import Array
from gpubp.cpu_kernels.functions import exp, log, log1p_of_fraction, sigmoid
from gpubp.cpu_kernels.memory import kernel, matrix, number, part, rows_of, vector

CHUNK_ROWS = 128
"""Examples in a work item."""
NARROW = 64
"""Up to so many classes, the examples of a chunk are computed side by side, class by class."""
LANES = 16
"""Beyond that, so many classes of one example are."""


def takes(Y: Array, T: Array, sample_weight: Array | None, heads: int = 1) -> bool:
    """Whether dtypes, shapes and strides fit the kernels: Y (..., N, K), its targets, and (N,) or (..., N) weights.

    With several heads there are so many outputs for each target.
    """
    if not (cpu.is_plain(Y) and Y.size > 0 and type(T) is np.ndarray and T.flags.c_contiguous and cpu.is_native(T)):
        return False
    if sample_weight is not None and not (
        cpu.is_plain(Y, sample_weight) and sample_weight.shape in (Y.shape[-2:-1], Y.shape[:-1])
    ):
        return False
    if T.dtype == np.int64:
        return T.shape in (Y.shape[-2:-1], Y.shape[:-1])
    wanted = (*Y.shape[:-1], Y.shape[-1] // heads)
    return Y.shape[-1] % heads == 0 and T.dtype == Y.dtype and T.shape in (wanted[-2:], wanted)


@kernel
def _total(Real: Any, onto: Any) -> Any:
    def total(a: Any, begin: int, end: int, step: int) -> None:
        partial, L = matrix(np.float64, a[0], end, a[2]), vector(Real, a[1], end)
        for e in range(begin, end):
            L[e] = (np.float64(L[e]) if onto else 0.0) + partial[e].sum()

    return total


@register_jitable
def _weight(Real: Any, address: int, n: int, factor: float) -> float:
    """The weight of an example: a factor, times a number from an array where there is one."""
    return factor * np.float64(vector(Real, address, n + 1)[n]) if address else factor


@register_jitable
def _lanes_max(top: Any) -> Any:
    largest = top[0]
    for lane in range(1, LANES):
        largest = top[lane] if top[lane] > largest or top[lane] != top[lane] else largest
    return largest


@register_jitable
def softmax_row(Y: Any, P: Any, top: Any, total: Any) -> Any:
    """``P = softmax(Y)`` of one row of many classes; its maximum, and the sum of exp(Y - maximum).

    Args:
        Y: (K,) scores.
        P: (K,), the result.
        top: (LANES,), scratch.
        total: (LANES,), scratch.
    """
    whole = Y.shape[0] // LANES * LANES
    for lane in range(LANES):
        top[lane] = Y[lane]
        total[lane] = 0
    for k in range(LANES, whole, LANES):
        for lane in range(LANES):
            top[lane] = max(top[lane], Y[k + lane])
    for k in range(whole, Y.shape[0]):
        top[0] = max(top[0], Y[k])
    largest = _lanes_max(top)
    for k in range(0, whole, LANES):
        for lane in range(LANES):
            s = Y[k + lane] - largest
            s = s if s != s else exp(s)
            P[k + lane] = s
            total[lane] += s
    for k in range(whole, Y.shape[0]):
        s = Y[k] - largest
        s = s if s != s else exp(s)
        P[k] = s
        total[0] += s
    whole_sum = total.sum()
    inverse = type(whole_sum)(1) / whole_sum
    for k in range(Y.shape[0]):
        P[k] = P[k] * inverse
    return largest, whole_sum


@register_jitable
def softmax_side_by_side(Y: Any, P: Any, S: Any, top: Any, total: Any) -> None:
    """``P = softmax(Y)`` of up to `CHUNK_ROWS` rows of few classes: class by class, all rows at once.

    Args:
        Y: (N, K) scores.
        P: (N, K), the result.
        S: (K, N), scratch.
        top: (N,), receives the maximum of each row.
        total: (N,), receives the sum of exp(Y - top).
    """
    N, K = Y.shape
    for n in range(N):
        for k in range(K):
            S[k, n] = Y[n, k]
    for n in range(N):
        top[n] = S[0, n]
        total[n] = 0
    for k in range(1, K):
        for n in range(N):
            top[n] = max(top[n], S[k, n])
    for k in range(K):
        for n in range(N):
            s = S[k, n] - top[n]
            s = s if s != s else exp(s)
            S[k, n] = s
            total[n] += s
    for n in range(N):
        inverse = type(total[n])(1) / total[n]
        for k in range(K):
            P[n, k] = S[k, n] * inverse


@kernel
def _softmax_cross_entropy(Real: Any, Kind: Any) -> Any:
    indexed = Kind is np.int64

    def softmax_cross_entropy(a: Any, begin: int, end: int, step: int) -> None:
        rows, K, chunks = a[5], a[6], a[7]
        sums, logarithm = vector(np.float64, a[4], end), np.empty(CHUNK_ROWS, Real)
        scratch, top, total = (
            np.empty(CHUNK_ROWS * NARROW, Real),
            np.empty(CHUNK_ROWS, Real),
            np.empty(CHUNK_ROWS, Real),
        )
        lanes, counted = np.empty((2, LANES), Real), np.empty(K, Real)
        share = number(a[12])
        keep = Real(1 - share)
        for item in range(begin, end):
            e, start = item // chunks, item % chunks * CHUNK_ROWS
            N = min(CHUNK_ROWS, rows - start)
            first = e * rows + start
            Y, P = rows_of(Real, a[0], first, first + N, K), rows_of(Real, a[1], first, first + N, K)
            if K <= NARROW:
                softmax_side_by_side(Y, P, scratch[: K * N].reshape(K, N), top, total)
            else:
                for n in range(N):
                    top[n], total[n] = softmax_row(Y[n], P[n], lanes[0], lanes[1])
            for n in range(N):
                logarithm[n] = log(total[n])
            loss = 0.0
            T = part(Kind, a[2] + e * a[8], start * (1 if indexed else K), (start + N) * (1 if indexed else K))
            for n in range(N):
                weight = _weight(Real, a[3] + e * a[9], start + n, number(a[10]))
                shifted, mass = 0.0, 0.0
                if indexed and share == 0:
                    is_class = 0 <= T[n] < K  # any other index is no class, and counts nothing
                    right = P[n, T[n]] - Real(1) if is_class else Real(0)
                    mass = _weight(Real, a[11], T[n], 1.0) if is_class else 0.0
                    for k in range(K):
                        P[n, k] = P[n, k] * Real(weight * mass)  # from here on dL_dY
                    if is_class:
                        shifted = mass * np.float64(Y[n, T[n]] - top[n])
                        P[n, T[n]] = right * Real(weight * mass)
                else:
                    if indexed:
                        add = Real(share / K) if 0 <= T[n] < K else Real(0)
                        for k in range(K):
                            counted[k] = keep * Real(T[n] == k) + add
                    else:
                        add = Real(share / K)
                        for k in range(K):
                            counted[k] = keep * Real(T[n * K + k]) + add
                    if a[11]:
                        class_weight = vector(Real, a[11], K)
                        for k in range(K):
                            counted[k] *= class_weight[k]
                    for k in range(K):
                        shifted += np.float64(counted[k]) * np.float64(Y[n, k] - top[n])
                        mass += np.float64(counted[k])
                    for k in range(K):
                        P[n, k] = (P[n, k] * Real(mass) - counted[k]) * Real(weight)
                loss += weight * (mass * np.float64(logarithm[n]) - shifted)
            sums[item] = loss

    return softmax_cross_entropy


# The elementwise losses, one functor each: the CPU's ``kernels/loss_functions.cuh``.


class SquaredError(NamedTuple):
    """``scale (y - t)^2``."""

    scale: Any
    unused: Any


class AbsoluteError(NamedTuple):
    """``abs(y - t)``."""

    unused: Any
    unused_too: Any


class Huber(NamedTuple):
    """``m (abs(y - t) - m / 2)`` with ``m = min(abs(y - t), delta)``."""

    delta: Any
    unused: Any


class Quantile(NamedTuple):
    """``max(q (t - y), (q - 1) (t - y))``."""

    q: Any
    unused: Any


class PoissonDeviance(NamedTuple):
    """``2 (t log(t / exp(y)) - t + exp(y))``."""

    unused: Any
    unused_too: Any


class BinaryCrossEntropy(NamedTuple):
    """``log(1 + exp(y)) - t y``, and ``(weight - 1) t log(1 + exp(-y))``, of a smoothed t."""

    weight: Any
    smoothing: Any


class GaussianNLL(NamedTuple):
    """``(log(2 pi v) + (y - t)^2 / v) / 2``, of the mean y and of s, with ``v = log(1 + exp(s)) + least``."""

    least: Any
    unused: Any


@register_jitable
def _squared_error(f: Any, y: Any, t: Any) -> Any:
    d = y - t
    return f.scale * (d * d), f.scale * (d + d)


@register_jitable
def _absolute_error(f: Any, y: Any, t: Any) -> Any:
    one, none = type(y)(1), type(y)(0)
    return abs(y - t), one if y > t else (-one if y < t else none)


@register_jitable
def _huber(f: Any, y: Any, t: Any) -> Any:
    d = y - t
    m = f.delta if d > f.delta else (-f.delta if d < -f.delta else d)
    return m * (d - m * type(y)(0.5)), m


@register_jitable
def _quantile(f: Any, y: Any, t: Any) -> Any:
    above = type(y)(1) - f.q
    slope = above if y > t else (-f.q if y < t else type(y)(0))
    return (y - t) * slope, slope


@register_jitable
def _poisson_deviance(f: Any, y: Any, t: Any) -> Any:
    two, none = type(y)(2), type(y)(0)
    rate = y if y != y else (type(y)(np.inf) if y > _highest(y) else exp(y))
    return two * ((t * (log(t) - y) if t > none else none) + (rate - t)), two * (rate - t)


@register_jitable
def _binary_cross_entropy(f: Any, y: Any, t: Any) -> Any:
    one, none = type(y)(1), type(y)(0)
    t = t + f.smoothing * (type(y)(0.5) - t)
    positive, rest, p = none if y <= none else y, log1p_of_fraction(exp(-abs(y))), sigmoid(y)
    more = f.weight - one
    value, slope = positive - t * y + rest, p - t
    if more != none:
        value += more * t * (positive - y + rest)
        slope += more * t * (p - one)
    return value, slope


@register_jitable
def _gaussian_nll(f: Any, y: Any, s: Any, t: Any) -> Any:
    one, none, half = type(y)(1), type(y)(0), type(y)(0.5)
    v = (none if s <= none else s) + log1p_of_fraction(exp(-abs(s))) + f.least
    d = y - t
    quotient = d / v
    value = half * (log(type(y)(2 * np.pi) * v) + d * quotient)
    return value, quotient, half * (one - d * quotient) / v * sigmoid(s)


def _highest(x: Any) -> Any:
    raise NotImplementedError


@overload(_highest)
def _(x):
    return (lambda x: np.float32(88.37)) if x == types.float32 else (lambda x: 709.0)


def _of_one_output(f: Any, y: Any, t: Any) -> Any:
    """The loss of one output y for its target t, and its derivative by y."""
    raise NotImplementedError


def _of_two_outputs(f: Any, y: Any, s: Any, t: Any) -> Any:
    """The loss of two outputs for their target t, and its derivatives by them."""
    raise NotImplementedError


_OF_ONE_OUTPUT: dict[Any, Callable[..., Any]] = {
    SquaredError: lambda f, y, t: _squared_error(f, y, t),
    AbsoluteError: lambda f, y, t: _absolute_error(f, y, t),
    Huber: lambda f, y, t: _huber(f, y, t),
    Quantile: lambda f, y, t: _quantile(f, y, t),
    PoissonDeviance: lambda f, y, t: _poisson_deviance(f, y, t),
    BinaryCrossEntropy: lambda f, y, t: _binary_cross_entropy(f, y, t),
}
_OF_TWO_OUTPUTS: dict[Any, Callable[..., Any]] = {GaussianNLL: lambda f, y, s, t: _gaussian_nll(f, y, s, t)}
BY_NAME: dict[str, Any] = {kind.__name__: kind for kind in (*_OF_ONE_OUTPUT, *_OF_TWO_OUTPUTS)}
NANOSECONDS = {"BinaryCrossEntropy": 2.0, "PoissonDeviance": 2.5, "GaussianNLL": 2.0}
"""About what an output takes, to tell work worth sharing between threads; 0.8 for all others."""


@overload(_of_one_output)
def _(f, y, t):
    return _OF_ONE_OUTPUT[f.instance_class]


@overload(_of_two_outputs)
def _(f, y, s, t):
    return _OF_TWO_OUTPUTS[f.instance_class]


@kernel
def _elementwise_loss(Kind: Any, Real: Any) -> Any:
    def elementwise_loss(a: Any, begin: int, end: int, step: int) -> None:
        rows, K, chunks, heads = a[5], a[6], a[7], a[13]
        M = K // heads
        sums, terms = vector(np.float64, a[4], end), np.empty(CHUNK_ROWS * K, Real)
        second = Real(number(a[12]))
        f = Kind(Real(number(a[11])), second)
        for item in range(begin, end):
            e, chunk = item // chunks, item % chunks
            start, stop = chunk * CHUNK_ROWS, min((chunk + 1) * CHUNK_ROWS, rows)
            first, last = (e * rows + start) * K, (e * rows + stop) * K
            Y, dL_dY = part(Real, a[0], first, last), part(Real, a[1], first, last)
            T = part(Real, a[2] + e * a[8], start * M, stop * M)
            scale = Real(number(a[10]))
            if heads == 1 and not a[15]:
                for k in range(last - first):
                    loss, derivative = _of_one_output(f, Y[k], T[k])
                    terms[k], dL_dY[k] = loss, derivative * scale
                if a[14]:
                    _leave_out(terms, dL_dY, T)
            else:  # equal parts of a row have parameters of their own, or targets in common
                parts = a[16]
                for h in range(parts):
                    g = Kind(vector(Real, a[15], parts)[h], second) if a[15] else f
                    for n in range(stop - start):
                        for k in range(n * K + h * (K // parts), n * K + (h + 1) * (K // parts)):
                            t = T[n * M + (k - n * K) % M]
                            loss, derivative = _of_one_output(g, Y[k], t)
                            there = not (a[14] and t != t)
                            terms[k] = loss if there else Real(0)
                            dL_dY[k] = derivative * scale if there else Real(0)
            if a[3]:
                _weigh(terms, dL_dY, part(Real, a[3] + e * a[9], start, stop), K)
            sums[item] = number(a[10]) * _sum(terms[: last - first])

    return elementwise_loss


@kernel
def _pair_loss(Kind: Any, Real: Any) -> Any:
    def pair_loss(a: Any, begin: int, end: int, step: int) -> None:
        rows, K, chunks = a[5], a[6], a[7]
        M = K // 2
        sums, terms = vector(np.float64, a[4], end), np.empty(CHUNK_ROWS * K, Real)
        f = Kind(Real(number(a[11])), Real(number(a[12])))
        for item in range(begin, end):
            e, chunk = item // chunks, item % chunks
            start, stop = chunk * CHUNK_ROWS, min((chunk + 1) * CHUNK_ROWS, rows)
            first, last = (e * rows + start) * K, (e * rows + stop) * K
            Y, dL_dY = part(Real, a[0], first, last), part(Real, a[1], first, last)
            T = part(Real, a[2] + e * a[8], start * M, stop * M)
            scale = Real(number(a[10]))
            for n in range(stop - start):
                for m in range(M):
                    k, t = n * K + m, T[n * M + m]
                    loss, by_first, by_second = _of_two_outputs(f, Y[k], Y[k + M], t)
                    there = not (a[14] and t != t)
                    terms[k], terms[k + M] = loss if there else Real(0), Real(0)
                    dL_dY[k] = by_first * scale if there else Real(0)
                    dL_dY[k + M] = by_second * scale if there else Real(0)
            if a[3]:
                _weigh(terms, dL_dY, part(Real, a[3] + e * a[9], start, stop), K)
            sums[item] = number(a[10]) * _sum(terms[: last - first])

    return pair_loss


@register_jitable
def _leave_out(terms: Any, dL_dY: Any, T: Any) -> None:
    """Zeros where there is no target."""
    for k in range(T.size):
        if T[k] != T[k]:
            terms[k], dL_dY[k] = 0, 0


@register_jitable
def _weigh(terms: Any, dL_dY: Any, weights: Any, K: int) -> None:
    """Each row of K times the weight of its example."""
    for n in range(weights.size):
        for k in range(K):
            terms[n * K + k] *= weights[n]
            dL_dY[n * K + k] *= weights[n]


@register_jitable
def _sum(terms: Any) -> float:
    """The sum of an array, in float64; lane by lane, as additions in a row would wait for each other."""
    lanes = np.zeros(LANES)
    whole = terms.size // LANES * LANES
    for k in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += np.float64(terms[k + lane])
    for k in range(whole, terms.size):
        lanes[0] += np.float64(terms[k])
    return lanes.sum()


@kernel
def _store(Real: Any) -> Any:
    def store(a: Any, begin: int, end: int, step: int) -> None:
        L, losses = vector(Real, a[0], end), vector(Real, a[1] + step * a[2], end)
        for e in range(begin, end):
            losses[e] = L[e]

    return store


def store(L: Array, losses: Array) -> None:
    """Launch: step s of a program writes L (...) to ``losses[s]``, of shape (S, ...)."""
    cpu.launch(_store(L.dtype.type), (L, losses, L.nbytes), L.size, 1.0)


def softmax_cross_entropy(
    Y: Array, T: Array, sample_weight: Array | None, settings: tuple[Array | None, float], out: Mapping[str, Array]
) -> Array:
    """Launch; see `gpubp.losses.softmax_cross_entropy`.

    Args:
        Y: (..., N, K).
        T: Rows (N, K) or (..., N, K), or class indices without the last axis, int64.
        sample_weight: (N,) or (..., N); None for none.
        settings: The weights of the classes (K,), or None; and the label smoothing.
        out: Receives the gradient ``dL_dY`` (..., N, K) and the loss ``L`` (...).

    Returns:
        L.
    """
    compiled = _softmax_cross_entropy(Y.dtype.type, T.dtype.type)
    return _loss(compiled, Y, T, T.ndim > (1 if T.dtype.kind == "i" else 2), sample_weight, settings, out, 3.5)


def elementwise_loss(
    functor: str,
    Y: Array,
    T: Array,
    sample_weight: Array | None,
    settings: tuple[float, float, Array | None, int, bool],
    out: Mapping[str, Array],
) -> Array:
    """Launch; see `gpubp.losses.elementwise`.

    Args:
        functor: Which loss.
        Y: (..., N, K).
        T: (N, M) or (..., N, M), where K is a multiple of M: output k has the target ``k % M``.
        sample_weight: (N,) or (..., N); None for none.
        settings: The functor's parameters; the first one for each of as many equal parts of a row of outputs, instead
            of one for all, or None; K / M; and whether a NaN among the targets costs nothing.
        out: As for `softmax_cross_entropy`.

    Returns:
        L.
    """
    compiled = _elementwise_loss(BY_NAME[functor], Y.dtype.type)
    return _loss(compiled, Y, T, T.ndim > 2, sample_weight, _plain(settings), out, NANOSECONDS.get(functor, 0.8))


def pair_loss(
    functor: str,
    Y: Array,
    T: Array,
    sample_weight: Array | None,
    settings: tuple[float, float, Array | None, int, bool],
    out: Mapping[str, Array],
) -> Array:
    """Launch a loss of two outputs for each target; see `elementwise_loss` for the arguments, `each` must be None."""
    compiled = _pair_loss(BY_NAME[functor], Y.dtype.type)
    return _loss(compiled, Y, T, T.ndim > 2, sample_weight, _plain(settings), out, NANOSECONDS.get(functor, 0.8))


def _plain(settings: tuple[float, float, Array | None, int, bool]) -> tuple[Any, ...]:
    first, second, each, heads, allow_missing = settings
    return float(first), float(second), heads, int(allow_missing), each, 1 if each is None else each.size


def _loss(
    compiled: Any,
    Y: Array,
    T: Array,
    own_targets: bool,
    sample_weight: Array | None,
    settings: tuple[Any, ...],
    out: Mapping[str, Array],
    nanoseconds: float,
) -> Array:
    """Launch a kernel of a loss, and add up what it gives for each chunk; `nanoseconds` for each element of Y."""
    rows, K = Y.shape[-2:]
    chunks = -(-rows // CHUNK_ROWS)
    partial = np.empty((*Y.shape[:-2], chunks))
    T_stride = T.nbytes // T.shape[0] if own_targets else 0
    w_stride = sample_weight.strides[0] if sample_weight is not None and sample_weight.ndim > 1 else 0
    sizes = (rows, K, chunks, T_stride, w_stride, 1 / rows)
    arguments = (Y, out["dL_dY"], T, sample_weight, partial, *sizes, *settings)
    cpu.launch(compiled, arguments, partial.size, nanoseconds * K * min(rows, CHUNK_ROWS))
    return add_up(partial, out["L"])


def add_up(partial: Array, L: Array, *, onto: bool = False) -> Array:
    """Launch: L (...) receives the sums of each member's part of `partial`, float64, or has them added to it."""
    count = partial.size // L.size
    cpu.launch(_total(L.dtype.type, onto), (partial, L, count), L.size, 1.0 * count)
    return L
