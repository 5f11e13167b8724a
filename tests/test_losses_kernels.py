"""Losses with their gradients, and the penalty, on every executor, against float64 references of this test alone."""

from __future__ import annotations

import contextlib
import inspect
import itertools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import fake_cupy as fake
import numpy as np
import pytest
from cases import lead
from hypothesis import given
from hypothesis import strategies as st

import gpubp
from gpubp import compiled, cuda, cuda_kernels
from gpubp.backend import to_host
from gpubp.cuda_kernels import losses as launches
from gpubp.cuda_kernels import penalty as penalty_launches
from gpubp.errors import DeviceError, ShapeError
from gpubp.losses.penalty import add_l2

DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])
LOSSES = {
    "softmax_cross_entropy": gpubp.SoftmaxCrossEntropy(),
    "binary_cross_entropy": gpubp.BinaryCrossEntropy(),
    "squared_error": gpubp.SquaredError(0.7),
    "absolute_error": gpubp.AbsoluteError(),
    "huber": gpubp.Huber(0.8),
    "quantile": gpubp.Quantile(0.3),
    "quantiles": gpubp.Quantile((0.1, 0.5, 0.8)),
    "poisson": gpubp.PoissonDeviance(),
    "gaussian_nll": gpubp.GaussianNLL(0.01),
    "smoothed softmax": gpubp.SoftmaxCrossEntropy(label_smoothing=0.2),
    "smoothed binary": gpubp.BinaryCrossEntropy(2.5, label_smoothing=0.2),
}
NAMES = pytest.mark.parametrize("name", sorted(LOSSES))


def sigmoid(y: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -y))


def reference(name: str, Y: np.ndarray, T: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """L and dL_dY in float64: Y (..., N, K), T (..., N, K / heads), w (..., N)."""
    if name[:8] == "smoothed":
        T = 0.8 * T + 0.2 / (2 if name[9:] == "binary" else max(1, T.shape[-1]))
    if name in ("softmax_cross_entropy", "smoothed softmax"):
        log_P = Y - np.logaddexp.reduce(Y, axis=-1, keepdims=True)
        losses, slopes = -(T * log_P).sum(axis=-1), np.exp(log_P) * T.sum(axis=-1, keepdims=True) - T
    elif name == "binary_cross_entropy":
        losses = -(T * -np.logaddexp(0, -Y) + (1 - T) * -np.logaddexp(0, Y)).sum(axis=-1)
        slopes = (1 - T) * sigmoid(Y) - T * sigmoid(-Y)
    elif name == "smoothed binary":
        positive, negative = np.logaddexp(0, -Y), np.logaddexp(0, Y)
        losses = (2.5 * T * positive + (1 - T) * negative).sum(axis=-1)
        slopes = (1 - T) * sigmoid(Y) - 2.5 * T * sigmoid(-Y)
    elif name == "squared_error":
        losses, slopes = 0.7 * ((Y - T) ** 2).sum(axis=-1), 1.4 * (Y - T)
    elif name == "absolute_error":
        losses, slopes = np.abs(Y - T).sum(axis=-1), np.sign(Y - T)
    elif name == "huber":
        D, far = Y - T, np.abs(Y - T) > 0.8
        losses = np.where(far, 0.8 * (np.abs(D) - 0.4), D * D / 2).sum(axis=-1)
        slopes = np.where(far, 0.8 * np.sign(D), D)
    elif name.startswith("quantile"):
        q = np.repeat([0.1, 0.5, 0.8], T.shape[-1]) if name == "quantiles" else 0.3
        D = np.concatenate([T] * LOSSES[name].heads, axis=-1) - Y
        losses, slopes = np.maximum(q * D, (q - 1) * D).sum(axis=-1), np.where(D < 0, 1 - q, -q) * (D != 0)
    elif name == "poisson":
        of_targets = T * np.log(np.where(T > 0, T, 1)) - T
        losses, slopes = 2 * (of_targets - T * Y + np.exp(Y)).sum(axis=-1), 2 * (np.exp(Y) - T)
    else:
        M, S = np.split(Y, 2, axis=-1)
        V = np.logaddexp(0, S) + 0.01
        losses = (np.log(np.sqrt(2 * np.pi * V)) + (M - T) ** 2 / V / 2).sum(axis=-1)
        slopes = np.concatenate([(M - T) / V, (1 / V - ((M - T) / V) ** 2) / 2 * sigmoid(S)], axis=-1)
    return (w * losses).sum(axis=-1), w[..., None] * slopes


class Placed:
    """Arrays in the middle of something larger: `offset` elements late, with sentinels around."""

    SENTINEL = 77

    def __init__(self, xp: ModuleType, offset: int) -> None:
        self.xp, self.offset = xp, offset
        self.placed: list[tuple[Any, slice]] = []

    def __call__(self, values: Any, *, apart: int = 0) -> Any:
        """An array of these values; with `apart`, so many sentinels follow each row, as theta's biases its weights."""
        values = np.asarray(values)
        rows = values.reshape(-1, values.shape[-1]) if apart else values.reshape(1, -1)
        flat = self.xp.full((len(rows), self.offset + rows.shape[1] + max(apart, 1)), self.SENTINEL, values.dtype)
        region = slice(self.offset, self.offset + rows.shape[1])
        view = flat[:, region] if apart and values.ndim > 1 else flat[0, region].reshape(values.shape)
        view[...] = self.xp.asarray(values)
        self.placed.append((flat, region))
        return view

    def check_surroundings(self) -> None:
        for flat, region in self.placed:
            np.testing.assert_array_equal(np.delete(to_host(flat), region, axis=-1), self.SENTINEL)


def assert_close(actual: Any, expected: np.ndarray, dtype: str, scale: Any) -> None:
    """Equal to 16 roundings of `scale`."""
    actual = to_host(actual)
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    error, bound = np.abs(actual.astype(np.float64) - expected), 16 * np.finfo(dtype).eps * scale
    assert np.all(error <= bound), f"off by {np.max(error / np.maximum(bound, 1e-300)):.3g} times the bound"


def check(
    xp: ModuleType,
    name: str,
    dtype: str,
    shape: tuple[int, int],
    members: int | None = None,
    targets: str = "shared",
    weights: str = "none",
    offset: int = 0,
    size: float = 2.0,
) -> list[np.ndarray]:
    """A loss with its gradient once; returns both.

    Args:
        xp: The executor.
        name: The loss.
        dtype: Of all but indices.
        shape: (N, K), K targets.
        members: E, or None.
        targets: ``shared`` or ``own`` rows, for softmax also ``classes`` or ``own classes``.
        weights: ``none``, ``shared`` or ``own``.
        offset: Elements that arrays are off their alignment.
        size: Of the outputs.
    """
    N, K = shape
    heads = LOSSES[name].heads
    full = (*lead(members), N, heads * K)
    rng = np.random.default_rng([*full, offset])
    Y = (rng.normal(size=full) * size).astype(dtype)
    T_shape = (*full[:-1], K) if targets.startswith("own") else shape
    if targets.endswith("classes"):
        T = rng.integers(K, size=T_shape[:-1])
        rows = np.eye(K)[T]
    else:
        T = LOSSES[name].example_targets(rng, T_shape).astype(dtype)
        rows = T.astype(np.float64)
    w = None if weights == "none" else rng.uniform(0.5, 2, size=full[:-1] if weights == "own" else N).astype(dtype)
    relative = np.broadcast_to((np.ones(N) if w is None else w.astype(np.float64)) / max(1, N), full[:-1])
    Y64, rows = Y.astype(np.float64), np.broadcast_to(rows, (*full[:-1], K))
    L_expected, expected = reference(name, Y64, rows, relative)

    place = Placed(xp, offset)
    given_Y, given_T, given_w = place(Y), place(T), None if w is None else place(w)
    buffers = LOSSES[name].buffers(full, xp)
    out = {key: place(np.full(buffer.shape, np.nan, dtype)) for key, buffer in buffers.items()}
    L, saved = LOSSES[name].forward(given_Y, given_T, given_w, out)
    dL_dY = LOSSES[name].backward(saved, out)
    assert L is out["L"]
    assert dL_dY is out["dL_dY"]
    term = 1 + np.abs(Y64) + np.abs(np.concatenate([rows] * heads, axis=-1))
    if name == "poisson":
        term += np.exp(Y64)
    elif name == "gaussian_nll":  # a difference of means is divided by a variance, and its square by the square
        term *= np.concatenate([term[..., K:] ** 0 / (np.logaddexp(0, Y64[..., K:]) + 0.01) ** 2] * 2, axis=-1)
        term *= np.concatenate([1 + np.abs(Y64[..., :K] - rows)] * 2, axis=-1)
    of_rows = term.max(axis=-1, initial=0) if "softmax" in name else (term**2).sum(axis=-1)
    assert_close(L, L_expected, dtype, (relative * of_rows).sum(axis=-1))
    assert_close(dL_dY, expected, dtype, relative[..., None] * term)
    np.testing.assert_array_equal(to_host(given_Y), Y)
    np.testing.assert_array_equal(to_host(given_T), T)
    place.check_surroundings()
    return [to_host(L).copy(), to_host(dL_dY).copy()]


# Every width at which another number of threads takes a row, rows by the pack and not, sums in one chunk and in more.
SHAPES = [(1, 1), (7, 1), (1, 4), (7, 8), (1, 33), (33, 7), (300, 10), (33, 16), (9, 17), (5, 64), (3, 65), (3, 128),
          (2, 1025), (1025, 3), (2, 2051), (3, 2052)]  # fmt: skip
OPTIONS = itertools.cycle(itertools.product(["none", "shared", "own"], ["shared", "own"], [0, 1]))
CASES = [(shape, members, *next(OPTIONS)) for members in (None, 3, 1) for shape in SHAPES]
INDEX_OPTIONS = itertools.cycle(itertools.product(["none", "shared", "own"], ["classes", "own classes"], [0, 1]))
INDEX_CASES = [(shape, members, *next(INDEX_OPTIONS)) for members in (None, 3) for shape in SHAPES]


@NAMES
@DTYPES
def test_equals_the_reference(xp: ModuleType, name: str, dtype: str) -> None:
    for shape, members, weights, targets, offset in CASES:
        check(xp, name, dtype, shape, members, targets, weights, offset)


@DTYPES
def test_class_indices_equal_the_reference(xp: ModuleType, dtype: str) -> None:
    for shape, members, weights, targets, offset in INDEX_CASES:
        check(xp, "softmax_cross_entropy", dtype, shape, members, targets, weights, offset)


@NAMES
def test_the_array_maths_equals_the_reference(name: str, numpy_ops: None) -> None:
    for dtype, (shape, members, weights, targets, offset) in itertools.product(["float32", "float64"], CASES):
        check(np, name, dtype, shape, members, targets, weights, offset)


@NAMES
def test_many_members_and_many_examples(xp: ModuleType, name: str) -> None:
    check(xp, name, "float32", (2, 3), 300, "own", "own", 1)
    check(xp, name, "float32", (20000, 1), None, "shared", "shared", 0)


@NAMES
@pytest.mark.parametrize("shape", [(0, 3), (2, 0, 3)])
def test_no_examples_cost_nothing(xp: ModuleType, name: str, shape: tuple[int, ...]) -> None:
    targets, shape = shape, (*shape[:-1], shape[-1] * LOSSES[name].heads)
    L, saved = LOSSES[name].forward(xp.zeros(shape), xp.zeros(targets))
    np.testing.assert_array_equal(to_host(L), np.zeros(shape[:-2]))
    assert LOSSES[name].backward(saved).shape == shape


@NAMES
def test_repeats_bit_for_bit_whatever_the_order_of_threads(xp: ModuleType, name: str) -> None:
    runs = [check(xp, name, "float32", (1025, 7), 2, "own", "own", 0) for _ in range(2)]
    for reverse in (False, True):
        if xp is not np and xp.__name__ == "cupy" and hasattr(xp, "_core"):
            break  # on a card threads run in an order of their own
        if xp is not np:
            with fake.installed(reverse_threads=reverse) as module:
                runs.append(check(module, name, "float32", (1025, 7), 2, "own", "own", 0))
    for run in runs[1:]:
        for first, second in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(first, second)


@DTYPES
@pytest.mark.parametrize("K", [3, 100, 3000])
def test_class_indices_give_what_one_hot_rows_give(xp: ModuleType, K: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    Y, classes = rng.normal(size=(5, K)).astype(dtype), rng.integers(K, size=5)
    results = []
    for T in (classes, np.eye(K, dtype=dtype)[classes]):
        L, saved = LOSSES["softmax_cross_entropy"].forward(xp.asarray(Y), xp.asarray(T))
        results.append((to_host(L), to_host(LOSSES["softmax_cross_entropy"].backward(saved))))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=4 * np.finfo(dtype).eps)
    np.testing.assert_array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("wrong", [5, -1, 2**40, -(2**40)])
@pytest.mark.parametrize("K", [5, 100])
def test_a_class_that_is_none_is_no_class(xp: ModuleType, K: int, wrong: int) -> None:
    """As a row of zeros: nothing outside the row is read or written for it."""
    place = Placed(xp, 1)
    Y = np.random.default_rng(0).normal(size=(7, K)).astype("float32")
    T = np.arange(7) % 5
    T[3] = wrong if wrong != 5 else K
    rows = np.zeros((7, K), "float32")
    rows[np.arange(7) != 3, T[np.arange(7) != 3]] = 1
    loss, results = LOSSES["softmax_cross_entropy"], []
    for targets in (T, rows):
        out = {key: place(np.full(b.shape, np.nan, "float32")) for key, b in loss.buffers(Y.shape, xp).items()}
        L, saved = loss.forward(place(Y), place(targets), None, out)
        results.append((to_host(L), to_host(loss.backward(saved, out))))
    place.check_surroundings()
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-7)
    assert (results[0][1][3] == 0).all()
    assert results[0][1].any()


@DTYPES
@pytest.mark.parametrize("size", [1e4, 1e30])
@pytest.mark.parametrize("K", [3, 100, 3000])
@pytest.mark.parametrize("name", ["softmax_cross_entropy", "binary_cross_entropy"])
def test_extreme_outputs(xp: ModuleType, name: str, K: int, size: float, dtype: str) -> None:
    for targets in ("own", *(["classes"] if name[0] == "s" else [])):
        L, dL_dY = check(xp, name, dtype, (4, K), None, targets, size=size)
        assert np.isfinite(L)
        assert np.isfinite(dL_dY).all()


@NAMES
@pytest.mark.parametrize("K", [2, 100, 3000])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_gives_a_loss_that_is_not(xp: ModuleType, name: str, K: int, bad: float) -> None:
    for column in (0, 1, K - 1):
        Y, T = np.ones((20, K * LOSSES[name].heads), "float32"), np.zeros((20, K), "float32")
        Y[3, column], T[:, column] = bad, 1
        if bad == np.inf:
            T = 1 - T
        with np.errstate(invalid="ignore"):
            L, _ = LOSSES[name].forward(xp.asarray(Y), xp.asarray(T))
        assert not np.isfinite(to_host(L))


def test_small_losses_of_right_answers_keep_their_digits(xp: ModuleType) -> None:
    Y = np.linspace(-80, 80, 33, dtype="float32").reshape(-1, 1)
    for n, y in enumerate(Y):
        L, _ = LOSSES["binary_cross_entropy"].forward(xp.asarray(Y[n : n + 1]), xp.asarray((y[None] > 0).astype("f4")))
        assert float(to_host(L)) == pytest.approx(np.log1p(np.exp(-abs(float(y[0])))), rel=2e-6, abs=1e-37)


def test_arrays_may_have_gaps_and_indices_any_width(xp: ModuleType) -> None:
    rng = np.random.default_rng(0)
    rows, w = rng.dirichlet(np.ones(66), size=14), rng.uniform(0.5, 2, size=14)
    classes = rng.integers(33, size=14)
    for loss, T in itertools.product(LOSSES.values(), (rows, classes)):
        if T is classes and not isinstance(loss, gpubp.SoftmaxCrossEntropy):
            continue
        Y, targets = rng.normal(size=(14, 66 * loss.heads)), T
        narrow = [Y[::2, ::2], targets[::2, ::2] if T is rows else targets[::2].astype("int32"), w[::2]]
        wide = [Y, targets.astype("int32") if T is classes else targets, w]
        strided = [xp.asarray(array)[::2, ::2] if array.ndim > 1 else xp.asarray(array)[::2] for array in wide]
        L, saved = loss.forward(*strided)
        expected, state = loss.forward(*(np.ascontiguousarray(array) for array in narrow))
        np.testing.assert_allclose(to_host(L), expected, rtol=1e-13)
        np.testing.assert_allclose(to_host(loss.backward(saved)), loss.backward(state), rtol=1e-11, atol=1e-15)


def check_class_weights(xp: ModuleType, dtype: str, K: int) -> None:
    """Weights of classes, with smoothing, by indices and rows; examples without a class."""
    rng = np.random.default_rng(K)
    weight, share = rng.uniform(0.5, 3, size=K).astype(dtype), 0.3
    loss = gpubp.SoftmaxCrossEntropy(weight.tolist(), label_smoothing=share, allow_missing=True)
    plain = gpubp.SoftmaxCrossEntropy(weight.tolist(), allow_missing=True)
    Y, classes, rows = rng.normal(size=(2, 33, K)).astype(dtype), rng.integers(-1, K, 33), rng.dirichlet(np.ones(K), 33)
    classes[:2], rows = (-1, K - 1), rows.astype(dtype)
    one_hot = np.eye(K)[classes] * (classes >= 0)[:, None]
    for T, host in ((classes, one_hot), (rows, rows.astype(np.float64))):
        for one, s in ((loss, share), (plain, 0.0)):
            C = weight * ((1 - s) * host + s / K * host.any(axis=-1, keepdims=True))
            log_P = Y.astype(np.float64) - np.logaddexp.reduce(Y.astype(np.float64), axis=-1, keepdims=True)
            expected = (np.exp(log_P) * C.sum(axis=-1, keepdims=True) - C) / 33
            L, saved = one.forward(xp.asarray(Y), xp.asarray(T))
            assert_close(L, -(C * log_P).sum(axis=(-1, -2)) / 33, dtype, 10)
            assert_close(one.backward(saved), expected, dtype, 10 / 33)


@DTYPES
@pytest.mark.parametrize("K", [1, 3, 12, 64, 65, 100, 2500])
def test_class_weights_and_missing_classes(xp: ModuleType, K: int, dtype: str) -> None:
    check_class_weights(xp, dtype, K)


@DTYPES
@pytest.mark.parametrize("K", [1, 3, 12])
def test_class_weights_in_array_maths(K: int, dtype: str, numpy_ops: None) -> None:
    check_class_weights(np, dtype, K)


def check_missing(xp: ModuleType, name: str, dtype: str) -> None:
    """Targets that are missing: as if each other one were alone; and where none may be, a loss that is no number."""
    loss = LOSSES[name]
    lenient = type(loss)(**{**loss.config(), "allow_missing": True})
    rng = np.random.default_rng(0)
    for members, N, K in itertools.product((None, 2), (7, 300), (1, 4)):
        Y = rng.normal(size=(*lead(members), N, K * loss.heads)).astype(dtype)
        T = loss.example_targets(rng, (N, K)).astype(dtype)
        w = rng.uniform(0.5, 2, size=N).astype(dtype)
        missing = rng.random((N, K)) < 0.4
        missing[:2, 0] = True, False
        holes = np.where(missing, np.nan, T).astype(dtype)
        L, saved = lenient.forward(*map(xp.asarray, (Y, holes, w)))
        # The loss of a single target, from the loss of each alone.
        expected_L, expected = np.zeros(lead(members)), np.zeros(Y.shape)
        for k in range(K):
            own = Y.astype(np.float64)[..., k::K]
            there = ~missing[:, k]
            scaled = w[there].astype(np.float64) * there.sum() / N
            part = own[..., there, :]
            relative = np.broadcast_to(scaled / max(1, there.sum()), part.shape[:-1])
            L_part, slopes = reference(
                name, part, np.broadcast_to(T[there, k : k + 1], (*part.shape[:-1], 1)), relative
            )
            expected_L += L_part
            for head in range(loss.heads):
                expected[..., there, head * K + k] = slopes[..., head]
        assert_close(L, expected_L, dtype, 100 * K * loss.heads)
        dL_dY = to_host(lenient.backward(saved))
        assert_close(dL_dY, expected, dtype, 100 * (1 + np.abs(expected)))
        assert (dL_dY[..., np.tile(missing, loss.heads)] == 0).all()
        L, _ = loss.forward(*map(xp.asarray, (Y, holes, w)))
        assert np.isnan(to_host(L)).all()


WITH_MISSING = pytest.mark.parametrize("name", [name for name in sorted(LOSSES) if "softmax" not in name])


@DTYPES
@WITH_MISSING
def test_missing_targets_cost_nothing(xp: ModuleType, name: str, dtype: str) -> None:
    check_missing(xp, name, dtype)


@DTYPES
@WITH_MISSING
def test_missing_targets_cost_nothing_in_array_maths(name: str, dtype: str, numpy_ops: None) -> None:
    check_missing(np, name, dtype)


def check_kinks(xp: ModuleType) -> None:
    """On its target an output has no gradient, and a weight of the class 1 for each output is for that output."""
    T = np.random.default_rng(0).normal(size=(3, 2)).astype("float32")
    for name in ("absolute_error", "quantile", "quantiles", "huber"):
        Y = np.concatenate([T] * LOSSES[name].heads, axis=-1)
        L, saved = LOSSES[name].forward(xp.asarray(Y), xp.asarray(T))
        assert to_host(L) == 0
        assert not to_host(LOSSES[name].backward(saved)).any()
    Y, T = np.zeros((300, 5), "float32"), np.ones((300, 5), "float32")
    loss = gpubp.BinaryCrossEntropy((1.0, 2.0, 3.0, 4.0, 5.0))
    L, saved = loss.forward(xp.asarray(Y), xp.asarray(T))
    assert_close(L, np.asarray(15 * np.log(2)), "float32", 15)
    expected = np.tile([-0.5, -1, -1.5, -2, -2.5], (300, 1)) / 300
    assert_close(loss.backward(saved), expected, "float32", 1 / 60)


def test_kinks_and_weights_of_outputs(xp: ModuleType) -> None:
    check_kinks(xp)


def test_kinks_and_weights_of_outputs_in_array_maths(numpy_ops: None) -> None:
    check_kinks(np)


def check_penalty(
    xp: ModuleType, dtype: str, P: int, members: int | None, offset: int, apart: int, with_gradient: bool = True
) -> list[np.ndarray]:
    """The penalty once; returns loss and gradient."""
    place, rng = Placed(xp, offset), np.random.default_rng([P, offset])
    shape = (*lead(members), P)
    W, dL_dW, L = (rng.normal(size=s).astype(dtype) for s in (shape, shape, shape[:-1]))
    given = [place(array, apart=apart) for array in (W, dL_dW)]
    given_L = place(L.reshape(L.shape or (1,)))
    given_L = given_L if members else given_L.reshape(())
    alpha = 0.3
    assert add_l2(given[0], alpha, given[1] if with_gradient else None, given_L) is given_L
    W64, L64 = W.astype(np.float64), L.astype(np.float64)
    squares = 0.5 * alpha * (W64**2).sum(axis=-1)
    assert_close(given_L, L64 + squares, dtype, np.abs(L64) + squares)
    expected = dL_dW + (alpha * W64 if with_gradient else 0)
    assert_close(given[1], expected, dtype, np.abs(dL_dW) + np.abs(W64))
    np.testing.assert_array_equal(to_host(given[0]), W)
    place.check_surroundings()
    return [to_host(given_L).copy(), to_host(given[1]).copy()]


@DTYPES
@pytest.mark.parametrize("members", [None, 1, 3])
def test_the_penalty_equals_the_reference(xp: ModuleType, members: int | None, dtype: str) -> None:
    for P, offset, apart in itertools.product((1, 7, 33, 1025, 2049, 20000), (0, 1, 4), (0, 3, 4)):
        check_penalty(xp, dtype, P, members, offset, apart)
    check_penalty(xp, dtype, 33, members, 0, 4, with_gradient=False)
    check_penalty(xp, dtype, 5000, members, 1, 3, with_gradient=False)


@pytest.mark.parametrize("members", [None, 3])
def test_the_penalty_in_array_maths_equals_the_reference(members: int | None, numpy_ops: None) -> None:
    for P, apart in itertools.product((1, 33, 200_000), (0, 3)):
        check_penalty(np, "float64", P, members, 1, apart)


def test_the_penalty_repeats_bit_for_bit(xp: ModuleType) -> None:
    first, second = (check_penalty(xp, "float32", 9999, 2, 0, 1) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_weights_cost_nothing(xp: ModuleType) -> None:
    L = xp.ones(2)
    assert add_l2(xp.zeros((2, 0)), 0.1, xp.zeros((2, 0)), L) is L
    np.testing.assert_array_equal(to_host(L), [1, 1])


# What is true of the launches.


@contextlib.contextmanager
def small_grids(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sums in two chunks, each of many rows; grids of at most 2 x 2 blocks, each for several members in turn."""
    launch = cuda.launch
    with monkeypatch.context() as patch:
        patch.setattr(launches, "BLOCKS", 6)
        patch.setattr(
            cuda, "launch", lambda stem, kernel, grid, *rest: launch(stem, kernel, (*(min(2, g) for g in grid),), *rest)
        )
        yield


def test_any_grid_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    with small_grids(monkeypatch), fake.installed() as xp:
        for name in LOSSES:
            check(xp, name, "float32", (700, 10), 5, "own", "own", 0)
        check_penalty(xp, "float32", 9999, 5, 0, 1)


@given(st.integers(1, 2**30), st.integers(1, 2**20), st.integers(1, 2**20))
def test_launch_shapes_are_within_the_limits(N: int, K: int, members: int) -> None:
    width, height = launches.row_block(K)
    assert width in (1, 2, 4, 8, 16, 32, 256)
    assert width * height == 256
    assert width == 1 or width < K  # at least as many scores as threads
    assert (width == 256) == (K > 2048)
    C = launches.chunks(members, -(-N // height), N)
    assert 1 <= C <= min(N, launches.BLOCKS)
    for W in (1, 2, 4):
        chunk = launches.chunk_of(N, C, W)
        assert chunk % W == 0
        assert chunk * C >= N > (chunk - W) * C
    *lead_, C = penalty_launches.partial_sums_shape((members, K))
    assert lead_ == [members]
    assert 1 <= C <= min(K, launches.BLOCKS)


def test_one_launch_where_there_is_one_chunk_and_no_memory_is_allocated() -> None:
    with fake.installed(record=True) as xp:
        rng = np.random.default_rng(0)
        for name, (N, count) in itertools.product(sorted(LOSSES), [(64, 1), (400, 2)]):
            loss = LOSSES[name]
            Y, w = xp.asarray(rng.normal(size=(N, 10 * loss.heads))), xp.asarray(np.ones(N))
            T = xp.asarray(rng.integers(10, size=N) if "softmax" in name else rng.random((N, 10)))
            if name == "quantiles":
                loss.forward(Y, T)  # its quantiles are brought to the device once
                count = 2
            out = {key: xp.empty(buffer.shape) for key, buffer in loss.buffers(Y.shape, xp).items()}
            assert set(out) == {"dL_dY", "L", "losses", "w"}
            assert_allocates_nothing(xp, count, lambda loss=loss, args=(Y, T, w, out): loss.forward(*args))
        for P, count in ((2048, 1), (2049, 2)):
            W, dL_dW, L = xp.ones((P + 3,)), xp.ones((P + 3,)), xp.zeros(())
            scratch = xp.empty(penalty_launches.partial_sums_shape((P,)))
            arrays = (W[:P], 0.1, dL_dW[:P], L, scratch)
            assert_allocates_nothing(xp, count, lambda arrays=arrays: add_l2(*arrays))


def assert_allocates_nothing(xp: Any, launches: int, call: Any) -> None:
    assert fake.machine.launches is not None
    before, allocated = len(fake.machine.launches), []
    with xp.cuda.using_allocator(allocated.append):
        call()
    assert len(fake.machine.launches) - before == launches
    assert allocated == []


@pytest.mark.parametrize(("K", "offset", "width"), [(8, 0, 4), (10, 0, 1), (8, 1, 1), (8, 4, 4), (8, 2, 1)])
def test_rows_are_read_by_the_pack_where_they_are_aligned(K: int, offset: int, width: int) -> None:
    with fake.installed(record=True) as xp:
        check(xp, "softmax_cross_entropy", "float32", (9, K), 2, "own", "own", offset)
        # Elementwise losses go over whole members, and pairs of double are packs too.
        check(xp, "squared_error", "float32", (9, K), None, "own", "own", offset)
        check_penalty(xp, "float32", 40, 2, offset, 4 - offset % 4 if K == 8 else 2)
        assert [launch.kernel for launch in fake.machine.launches or []] == [
            f"softmax_cross_entropy<float, {width}>",
            f"elementwise_loss<SquaredError<float>, {4 if offset % 4 == 0 else 1}>",
            f"add_l2<float, {width}>",
        ]


def test_misfits_are_refused_before_a_kernel_sees_them(fake_cupy: ModuleType) -> None:
    xp = fake_cupy
    Y = xp.zeros((4, 6), "float32")
    for loss in LOSSES.values():
        with pytest.raises(ShapeError, match=r"T is float32 \(4, 5\)"):
            loss.forward(Y, xp.zeros((4, 5), "float32"))
        if loss.heads > 1:
            continue
        with pytest.raises(ShapeError, match="T is float64"):
            loss.forward(Y, xp.zeros((4, 6)))
        with pytest.raises(ShapeError, match=r"sample_weight is float32 \(5,\)"):
            loss.forward(Y, Y, xp.zeros(5, "float32"))
        with pytest.raises(DeviceError, match="number 2 on cpu"):
            loss.forward(Y, np.zeros((4, 6), "float32"))
        for name, wrong in [("dL_dY", Y[:, ::2]), ("dL_dY", Y[:, :3]), ("L", xp.zeros(1)), ("losses", xp.zeros(4))]:
            out = {key: xp.zeros(buffer.shape, "float32") for key, buffer in loss.buffers((4, 3), xp).items()}
            with pytest.raises(ShapeError, match=name):
                loss.forward(Y[:, :3], Y[:, :3], None, {**out, name: wrong})
        half = xp.zeros((2, 2), "float16")
        with pytest.raises(ShapeError, match="float32 or float64"):
            loss.forward(half, half)
    with pytest.raises(ShapeError, match=r"T is int64 \(5,\)"):
        LOSSES["softmax_cross_entropy"].forward(Y, xp.zeros(5, "int64"))
    W = xp.zeros(4096, "float32")
    with pytest.raises(ShapeError, match="dL_dW is float32"):
        add_l2(W, 0.1, W[:5], xp.zeros((), "float32"))
    with pytest.raises(ShapeError, match="dL_dW with strides"):
        add_l2(W[:2048], 0.1, W[::2], xp.zeros((), "float32"))
    with pytest.raises(ShapeError, match="L is float64"):
        add_l2(W, 0.1, None, xp.zeros(()))
    with pytest.raises(ShapeError, match="scratch is float32"):
        add_l2(W, 0.1, None, xp.zeros((), "float32"), xp.zeros(1, "float32"))
    half = xp.zeros(4, "float16")
    with pytest.raises(ShapeError, match="float32 or float64"):
        add_l2(half, 0.1, None, xp.zeros((), "float16"))


@pytest.mark.parametrize("file", ["losses", "penalty"])
def test_kernels_of_both_kinds_have_the_same_signatures(file: str, cpu_kernels: ModuleType) -> None:
    assert compiled.kernels_of(np) is cpu_kernels
    signatures = []
    for package in (cpu_kernels, cuda_kernels):
        module = getattr(package, file)
        names = {"takes", "softmax_cross_entropy", "elementwise_loss", "pair_loss", "add_l2"}
        signatures.append({name: inspect.signature(getattr(module, name)) for name in names & set(vars(module))})
    assert signatures[0] == signatures[1]


# Faults planted in the kernels' text must be noticed: beside each, what it breaks.
SOFTMAX_FAULTS = [
    ("first + threadIdx.y < end", "first + threadIdx.y < end - 1"),  # the last row of each chunk
    ("first = c * chunk;", "first = c * chunk + 1;"),  # its first row
    ("first += blockDim.y", "first += blockDim.y + 1"),  # a row of every so many
    ("there && threadIdx.x == 0", "there"),  # each row as often as it has threads
    ("there && threadIdx.x == 0", "threadIdx.x == 0"),  # rows that are not there
    ("T top = K > 0 ? Y[0] : T(0)", "T top = 0"),  # the shift of negative scores
    ("top = Largest::of(top, y.at[v]);", "(void)y;"),  # the shift
    ("top = over_group<Largest>(top, blockDim.x);", ""),  # the maximum over a row's threads
    ("a > b ? a : b", "a > b ? b : a"),
    ("total = over_group<Sum>(total, blockDim.x);", ""),
    ("of_targets = over_group<Sum>(of_targets, blockDim.x);", ""),
    ("k < K; k += step", "k < K - 1; k += step"),  # the last class
    ("inverse - t.at[v]", "inverse - 0 * t.at[v]"),  # the targets in the gradient
    ("k + v == one", "k == one"),  # classes within a pack
    ("counting.keep * t.at[v] + add", "t.at[v] + add"),
    ("counting.keep * t.at[v] + add", "counting.keep * t.at[v]"),
    ("(one >= 0 && one < K) ? counting.add", "true ? counting.add"),  # a smoothed class that is none
    ("class_weight[k + v]", "class_weight[k]"),  # of another class within a pack
    ("mass = over_group<Sum>(mass, blockDim.x);", ""),
    ("w * (mass * log(total)", "w * (log(total)"),
    ("inverse = mass / total", "inverse = 1 / total"),
    ("targets + e * targets_stride + n * K", "targets + n * K"),  # the targets of the second member
    ("classes[e * targets_stride + n]", "classes[n]"),
    ("sample_weight + e * weight_stride", "sample_weight"),
    (" / T(N)", ""),
    ("sums[e * C + c] = loss", "sums[c] = loss"),  # members mixed up
    ("by = min(threads, WARP) / 2; by > 0", "by = min(threads, WARP) / 2; by > 1"),  # half of each sum
    ("warp < threads / WARP", "warp < threads / WARP - 1"),  # a warp of each sum over a block
    ("    __syncthreads();\n    value", "    value"),  # a sum read before it is there
    ("c < C; c += blockDim.x) sum", "c < C - 1; c += blockDim.x) sum"),  # the last chunk
    ("sum += sums[e * C + c]", "sum += sums[c]"),
]
ELEMENTWISE_FAULTS = [
    ("(c + 1) * chunk);", "(c + 1) * chunk) - 1;"),  # the last output of each chunk
    ("c * chunk + threadIdx.x * W", "c * chunk + (threadIdx.x + 1) * W"),  # the first
    ("if (i + v >= end) continue;", ""),  # outputs behind the last one
    ("own.n * M", "0 * M"),  # targets of the first row
    ("own.n * M + own.m", "own.n * M"),  # the first target of a row
    ("own.h * each_h", "0"),  # the first parameter
    ("own.m * each_m", "0"),
    ("!(missing && t.at[v] != t.at[v])", "true"),  # missing targets
    ("!(missing && t.at[v] != t.at[v])", "t.at[v] == t.at[v]"),  # NaN that is no missing target
    ("e * weight_stride + own.n]", "e * weight_stride + own.m]"),
    ("e * weight_stride + own.n]", "e * weight_stride + at.n]"),  # the weights of rows that end within a pack
    ("walks = sample_weight ||", "walks ="),  # places that are never told
    ("walks = sample_weight || H != 1 || each", "walks = sample_weight || H != 1"),
    ("n += by.n;", ""),
    ("h += by.h;", ""),
    ("m += by.m;", ""),
    ("m -= M;", ""),
    ("            ++h;\n", ""),
    ("h -= H;", ""),
    ("            ++n;\n", ""),
    ("heads - n * H", "heads"),
    ("i - heads * M", "0"),
    ("Position::of(blockDim.x * W, H, M)", "Position::of(W, H, M)"),
    ("e * weight_stride +", "0 +"),
    ("targets + e * targets_stride + i", "targets + i"),
    ("Y + e * size + i", "Y + i"),
    ("T w = T(1) / T(N)", "T w = T(1)"),
    ("sums[e * C + c] = loss", "sums[c] = loss"),
    ("2 * scale * (y - t)", "scale * (y - t)"),
    ("scale * ((y - t) * (y - t))", "scale * fabs(y - t)"),
    ("fabs(y - t)", "y - t"),
    ("T(y > t) - T(y < t)", "T(y > t) - T(y <= t)"),  # the gradient on a target
    ("T(y > t) - T(y < t)", "T(y > t)"),
    ("(y - t - m / 2)", "(y - t)"),
    ("d < -delta ? -delta : d", "d"),
    ("y < t ? -q : 1 - q", "y < t ? -q : q"),
    ("y > t ? 1 - q : y < t ? -q : T(0)", "y > t ? 1 - q : -q"),  # the gradient on a target
    ("t > 0 ? t * (log(t) - y) : t", "t * (log(t) - y)"),  # a count of zero
    ("exp(y) - t))", "exp(y)))"),
    ("2 * (exp(y) - t); }\n};", "(exp(y) - t); }\n};"),
    ("more * t * (positive - y + rest)", "more * t * (positive - y)"),
    ("more * t * (p - 1)", "more * t * p"),
    ("smoothing * (T(0.5) - t)", "smoothing * T(0.5)"),
    ("y < 0 ? 0 : y", "y"),
    ("exp(-fabs(y))", "exp(-y)"),
    ("- t * y", "+ t * y"),
    ("return p - t", "return p"),
]
PAIR_FAULTS = [
    ("const Index size = N * M", "const Index size = N * M - 1"),
    ("(e * N + n) * 2 * M", "n * 2 * M"),
    ("+ target.m", ""),
    ("Position::of(blockDim.x, 1, M)", "Position::of(1, 1, M)"),
    ("targets[e * targets_stride + i]", "targets[i]"),
    ("T w = T(1) / T(N)", "T w = T(1)"),
    ("e * weight_stride + n]", "n]"),
    ("if (!(missing && t != t))", "if (true)"),
    ("if (!(missing && t != t))", "if (t == t)"),
    ("dL_dsecond *= w;", ""),
    ("dL_dY[at + M] = dL_dsecond;", "dL_dY[at + M] = dL_dfirst;"),
    ("Y[at + M], t", "Y[at], t"),
    ("(s < 0 ? 0 : s) +", ""),
    ("+ least;", ";"),
    ("(1 - d * quotient)", "(1 - quotient)"),
    ("/ variance * Sigmoid", "* Sigmoid"),
    ("6.283185307179586", "3.14"),
    ("sums[e * C + c] = loss", "sums[c] = loss"),
]
PENALTY_FAULTS = [
    ("(c + 1) * chunk);", "(c + 1) * chunk) - 1;"),
    ("c * chunk + threadIdx.x * W", "c * chunk + (threadIdx.x + 1) * W"),
    ("weights + e * weights_stride", "weights + e * P"),
    ("load<W>(dL_dW + e * dL_dW_stride", "load<W>(dL_dW"),
    ("store(dL_dW + e * dL_dW_stride", "store(dL_dW"),
    ("T(0.5) * ", ""),
    ("(onto ? sums[e * C + c] : T(0))", "T(0)"),  # the loss so far, in one chunk
    ("(onto ? sums[e * C + c] : T(0))", "sums[e * C + c]"),  # what was in the scratch, in several
    ("+= alpha * w.at[v]", "= alpha * w.at[v]"),
    ("w.at[v] * w.at[v]", "w.at[v]"),
    ("if (v < there) to[v]", "to[v]"),  # writes behind the last weight
    ("onto ? L[e] + sum : sum", "sum"),  # the loss so far, in several chunks
]


def softmax_checks(xp: ModuleType) -> None:
    for shape, targets in [((700, 10), "own classes"), ((40, 4), "own"), ((3, 2051), "own"), ((3, 2052), "classes")]:
        check(xp, "softmax_cross_entropy", "float32", shape, 3, targets, "own", 0)
    check(xp, "softmax_cross_entropy", "float32", (30, 12), 3, "own", "own", 0, size=1e4)
    check(xp, "softmax_cross_entropy", "float32", (9, 1), None, "own", "own", 0, size=1e4)
    check(xp, "smoothed softmax", "float32", (30, 12), 3, "own", "own", 0)
    check(xp, "smoothed softmax", "float32", (30, 12), 3, "classes", "own", 0)
    for K in (3, 12, 100):
        check_class_weights(xp, "float32", K)


def elementwise_checks(xp: ModuleType) -> None:
    for name, shape, members in [
        *itertools.product(("binary_cross_entropy", "squared_error"), [(700, 10), (3, 2051)], [3]),
        *((name, (33, 7), members) for name in LOSSES if "softmax" not in name for members in (None, 3)),
    ]:
        check(xp, name, "float32", shape, members, "own", "own", 0)
    for name in ("binary_cross_entropy", "quantiles"):
        check_missing(xp, name, "float32")
    check_kinks(xp)
    check(xp, "binary_cross_entropy", "float32", (30, 12), 3, "own", "own", 0, size=1e4)


def pair_checks(xp: ModuleType) -> None:
    for shape, members in [((700, 10), 3), ((33, 7), None), ((900, 1), None)]:
        check(xp, "gaussian_nll", "float32", shape, members, "own", "own", 0)
    check_missing(xp, "gaussian_nll", "float32")


def penalty_checks(xp: ModuleType) -> None:
    for P, apart in ((9999, 1), (33, 3), (33, 4)):
        check_penalty(xp, "float32", P, 3, 0, apart)
    check_penalty(xp, "float32", 33, None, 0, 0)
    check_penalty(xp, "float32", 33, None, 0, 0, with_gradient=False)


FAULTS = [
    *((softmax_checks, *fault) for fault in SOFTMAX_FAULTS),
    *((elementwise_checks, *fault) for fault in ELEMENTWISE_FAULTS),
    *((pair_checks, *fault) for fault in PAIR_FAULTS),
    *((penalty_checks, *fault) for fault in PENALTY_FAULTS),
]


def in_both_orders(checks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for reverse in (False, True):
        with small_grids(monkeypatch), fake.installed(reverse_threads=reverse) as xp:
            checks(xp)


@pytest.mark.parametrize("checks", [softmax_checks, elementwise_checks, pair_checks, penalty_checks])
def test_no_fault_is_noticed_where_none_is_planted(checks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    in_both_orders(checks, monkeypatch)


@pytest.mark.parametrize(("checks", "right", "wrong"), FAULTS, ids=[wrong or right for _, right, wrong in FAULTS])
def test_planted_fault_is_noticed(checks: Any, right: str, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = cuda.source
    assert right in original("losses") + original("penalty")
    monkeypatch.setattr(cuda, "source", lambda stem: original(stem).replace(right, wrong))
    with pytest.raises(AssertionError):
        in_both_orders(checks, monkeypatch)
