"""The CUDA kernels of the optimizers against NumPy in float64: rates of members, odd sizes, any alignment, graphs."""

from __future__ import annotations

import contextlib
import itertools
import math
from types import ModuleType
from typing import Any

import fake_cupy as fake
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpubp
from gpubp import cpu, cuda
from gpubp.backend import Device, to_host
from gpubp.cuda_kernels import optimizers as launches

METHODS = [("sgd", {}), ("sgd", {"momentum": 0.9}), ("sgd", {"momentum": 0.8, "nesterov": True}),
           ("adam", {}), ("adam", {"beta1": 0.0, "beta2": 0.9, "epsilon": 1e-3}),
           ("rmsprop", {}), ("rmsprop", {"decay": 0.8, "momentum": 0.7, "epsilon": 1e-3}),
           ("lion", {}), ("lion", {"beta1": 0.6, "beta2": 0.9})]  # fmt: skip
SHAPES = [(1,), (7,), (33,), (1025,), (1, 1), (3, 7), (5, 33), (2, 1025), (300, 3), (0, 5), (3, 0), (0,)]
STEPS = 20


@pytest.fixture(params=["stand-in", "stand-in-reversed", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request: pytest.FixtureRequest) -> Any:
    """Kernels run on the host, with threads in either order, and kernels on a GPU."""
    if request.param == "cupy":
        yield Device("cuda").module
    else:
        with fake.installed(reverse_threads=request.param.endswith("reversed")) as module:
            yield module


def placed(xp: ModuleType, values: np.ndarray, dtype: str, offset: int, gap: int = 0) -> tuple[Any, Any]:
    """An array of these values that begins `offset` elements late in a larger one, rows `gap` elements apart; both."""
    rows = 1 if values.ndim == 1 else len(values)
    pitch = values.shape[-1] + gap
    flat = xp.full(rows * pitch + offset + 3, 77, dtype)
    view = flat[offset : offset + rows * pitch].reshape(rows, pitch)[:, : values.shape[-1]]
    view = view.reshape(values.shape) if values.ndim == 1 else view
    view[...] = xp.asarray(values.astype(dtype))
    return view, flat


def reference(
    name: str, theta: np.ndarray, gradients: np.ndarray, rates: Any, clip: float | None, weight_decay: float,
    decayed: int, momentum: float = 0.0, nesterov: bool = False, beta1: float = 0.9, beta2: float | None = None,
    epsilon: float = 1e-8, decay: float = 0.99,
) -> np.ndarray:  # fmt: skip
    """All steps in float64, from the papers."""
    theta, M, V = theta.copy(), np.zeros_like(theta), np.zeros_like(theta)
    beta2 = {"lion": 0.99}.get(name, 0.999) if beta2 is None else beta2
    rate = np.reshape(rates, (-1, 1) if theta.ndim == 2 else (-1,))
    for t, dL_dtheta in enumerate(gradients, start=1):
        norm = np.sqrt((dL_dtheta**2).sum(axis=-1, keepdims=True))
        g = dL_dtheta if clip is None else dL_dtheta * np.minimum(1, clip / np.maximum(norm, 1e-300))
        theta[..., :decayed] -= (rate * weight_decay * theta)[..., :decayed]
        if name == "sgd":
            V = momentum * V + g
            theta -= rate * (g + momentum * V if nesterov else V)
        elif name == "rmsprop":
            V = decay * V + (1 - decay) * g**2
            M = momentum * M + g / (np.sqrt(V) + epsilon)
            theta -= rate * M
        elif name == "lion":
            theta -= rate * np.sign(beta1 * M + (1 - beta1) * g)
            M = beta2 * M + (1 - beta2) * g
        else:
            M, V = beta1 * M + (1 - beta1) * g, beta2 * V + (1 - beta2) * g**2
            theta -= rate * (M / (1 - beta1**t)) / (np.sqrt(V / (1 - beta2**t)) + epsilon)
    return theta


def check(
    xp: ModuleType,
    method: tuple[str, dict[str, Any]],
    shape: tuple[int, ...],
    dtype: str,
    offsets: tuple[int, int] = (0, 0),
    own_rates: bool = False,
    clipped: bool = False,
    weight_decay: float = 0.0,
    gap: int = 0,
) -> np.ndarray:
    """All steps once, against the reference; returns theta."""
    name, settings = method
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=shape), rng.normal(size=(STEPS, *shape))
    members = shape[0] if len(shape) == 2 else 1
    rates: Any = list(np.linspace(0.001, 0.05, members)) if own_rates and len(shape) == 2 else 0.01
    clip = 0.8 * max(1, shape[-1]) ** 0.5 if clipped else None  # nearly always shorter than the gradients
    decayed = shape[-1] * 2 // 3 if weight_decay else 0

    theta, around = placed(xp, start, dtype, offsets[0], gap)
    dL_dtheta, _ = placed(xp, np.zeros(shape), dtype, offsets[1], gap)
    optimizer = gpubp.optimizer_by_name(name, learning_rate=rates, clip_norm=clip, **settings)
    optimizer.weight_decay = weight_decay  # of any optimizer, as far as the kernels are concerned
    for gradient in gradients:
        dL_dtheta[...] = xp.asarray(gradient.astype(dtype))
        optimizer.update(theta, dL_dtheta, decayed)
        assert isinstance(optimizer._compiled, launches.Update)
    expected = reference(name, start, gradients, rates, clip, weight_decay, decayed, **settings)
    tolerance = 1e-12 if dtype == "float64" else 2e-5
    found = to_host(theta).copy()
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    theta[...] = 77
    np.testing.assert_array_equal(to_host(around), 77)
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_twenty_steps_equal_those_of_float64(xp, method, dtype):
    options = itertools.cycle(itertools.product([(0, 0), (1, 1), (0, 1), (3, 2)], [False, True], [False, True]))
    for shape in SHAPES:
        for _ in range(3):
            offsets, own_rates, extras = next(options)
            clipped = extras and shape[0] < 300
            check(xp, method, shape, dtype, offsets, own_rates, clipped, 0.3 if extras else 0.0)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_rows_may_lie_apart(xp, method):
    kept = check(xp, method, (3, 37), "float32", (0, 0), True, True, 0.3)
    for gap in (3, 4):
        found = check(xp, method, (3, 37), "float32", (0, 0), True, True, 0.3, gap)
        np.testing.assert_allclose(found, kept, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_where_an_array_begins_does_not_show(xp, method):
    kept = [check(xp, method, (3, 37), "float32", offsets, True) for offsets in ((0, 0), (1, 1), (2, 3), (0, 1))]
    for other in kept[1:]:
        np.testing.assert_allclose(other, kept[0], rtol=1e-6)


def test_the_cpu_kernels_and_the_tiles_give_the_same(xp, monkeypatch):
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(2, 33)), rng.normal(size=(STEPS, 2, 33))

    def run(module, name, settings):
        theta, dL_dtheta = module.asarray(start.copy()), module.empty((2, 33))
        optimizer = gpubp.optimizer_by_name(name, learning_rate=[0.1, 0.02], **settings)
        for gradient in gradients:
            dL_dtheta[...] = module.asarray(gradient)
            optimizer.update(theta, dL_dtheta)
        return to_host(theta)

    for name, settings in METHODS:
        there = run(xp, name, settings)
        np.testing.assert_allclose(there, run(np, name, settings), rtol=1e-12, atol=1e-13)
        with monkeypatch.context() as patch:
            patch.setattr(cpu, "kernels", lambda: None)
            np.testing.assert_allclose(there, run(np, name, settings), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_graph_of_three_steps_goes_on_counting_and_takes_new_rates(xp, method):
    name, settings = method
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(2, 9)), rng.normal(size=(4, 2, 9))

    def run(captured):
        theta, there = xp.asarray(start), xp.asarray(np.zeros((2, 9)))
        optimizer = gpubp.optimizer_by_name(name, learning_rate=[0.1, 0.2], **settings)
        stream = xp.cuda.Stream(non_blocking=True)
        with cuda.ordered(stream, cuda.event()):
            there[...] = xp.asarray(gradients[0])
            optimizer.update(theta, there)  # makes the state, compiles
            if captured:
                optimizer.begin_steps(0)
                graph = cuda.captured(stream, lambda: [optimizer.launch(theta, there) for _ in range(3)])
            for gradient, rates in zip(gradients[1:], ([0.1, 0.2], [0.01, 0.3], 0.05), strict=True):
                there[...] = xp.asarray(gradient)
                optimizer.learning_rate = rates
                if captured:
                    optimizer.begin_steps(3)
                    graph.launch(stream)
                else:
                    for _ in range(3):
                        optimizer.update(theta, there)
        assert optimizer.steps == 10
        return to_host(theta)

    np.testing.assert_array_equal(run(True), run(False))


def test_an_update_asks_for_no_memory_and_waits_for_nothing(fake_cupy):
    xp = fake_cupy
    theta, dL_dtheta = xp.ones((2, 5)), xp.ones((2, 5))
    for optimizer in (
        gpubp.SGD([0.1, 0.2], 0.9),
        gpubp.AdamW(0.1, clip_norm=1.0, average=0.9),
        gpubp.RMSprop(0.1, momentum=0.5, clip_norm=1.0),
        gpubp.Lion(0.1, average=0.9),
    ):
        theta = xp.ones((2, 5))
        optimizer.update(theta, dL_dtheta)
        optimizer.begin_steps(1)
        before = fake.machine.waits
        with xp.cuda.using_allocator(lambda nbytes: pytest.fail(f"{nbytes} bytes asked for")):
            assert optimizer.launch(theta, dL_dtheta)
        assert fake.machine.waits == before


def test_buffers_that_no_kernel_takes_are_updated_in_tiles(xp):
    for theta in (xp.ones((3, 8))[:, ::2], xp.ones((2, 2, 3)), xp.ones((3, 8), "float16")):
        assert launches.of(theta, xp.ones_like(theta)) is None
    assert launches.of(xp.ones(3), xp.ones(6)[::2]) is None
    assert launches.of(xp.ones(3), xp.ones(3, "float32")) is None
    theta = xp.ones((3, 8))[:, ::2]
    gpubp.SGD(0.5).update(theta, xp.ones((3, 4)))
    np.testing.assert_array_equal(to_host(theta), 0.5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("shape", "off"), [((1,), 0), ((33,), 1), ((3, 7), 0), ((2, 9000), 0), ((2, 9001), 1)])
def test_factors_are_those_of_float64_and_repeat_bit_for_bit(xp, dtype, shape, off):
    check_factors(xp, dtype, shape, off)


def check_factors(xp: ModuleType, dtype: str, shape: tuple[int, ...], off: int) -> None:
    """Each member's factor, against NumPy."""
    rng = np.random.default_rng(0)
    host = rng.normal(size=shape).astype(dtype)
    gradient, _ = placed(xp, host, dtype, off)
    update = launches.of(xp.zeros(shape, dtype), gradient)
    norms = np.sqrt((host.astype(np.float64) ** 2).sum(axis=-1))
    clip = float(np.min(norms)) * 1.001 if np.size(norms) > 1 else float(norms) / 3
    update.clip(clip)
    first = to_host(update._factors).copy()
    expected = np.reshape(np.minimum(1, clip / norms), -1)
    np.testing.assert_allclose(first, expected, rtol=1e-6 if dtype == "float32" else 1e-14)
    update.clip(clip)
    np.testing.assert_array_equal(to_host(update._factors), first)
    if shape[-1] > 9000:
        assert update._squares.shape[1] > 1


def test_a_row_of_rates_for_every_step_of_a_launch():
    from gpubp import recording

    assert launches.MOST_STEPS >= max(recording.GraphSteps.LENGTHS)
    if cpu.kernels() is not None:
        assert cpu.kernels().optimizers.MOST_STEPS >= recording.MOST_STEPS


def test_launches_beyond_the_rows_take_the_last_row(fake_cupy):
    theta = fake_cupy.zeros((2, 3))
    update = launches.of(theta, fake_cupy.ones((2, 3)))
    update.begin(np.arange(1.0, launches.MOST_STEPS + 1)[:, None], None)
    for _ in range(launches.MOST_STEPS + 1):
        update.sgd(None, 0.0, False)
    np.testing.assert_array_equal(to_host(theta), -sum(range(launches.MOST_STEPS + 1)) - launches.MOST_STEPS)


# Faults planted in the kernels' text must be noticed; those that read beyond an array are in test_cuda.py.
FAULTS = [
    ("i < head ? i : i + packs * SIZE", "i + packs * SIZE"),  # what comes before the first pack
    ("        if (STATES > 1) *reinterpret_cast<Pack*>(M + begin) = m;\n", ""),
    ("        if (STATES > 0) V[j] = v;\n", ""),
    ("P - packs * SIZE;", "0;"),
    ("factors ? factors[e] : T(1)", "T(1)"),
    ("j < decayed", "j <= decayed"),
    ("rate * weight_decay", "weight_decay"),
    ("nesterov ? momentum * v + g : v", "v"),
    ("v = kept * v + added * (g * g);", "v = kept * v + added * g;"),
    ("m = momentum * m + scaled(j, t, g, v);", "m = momentum * (m + scaled(j, t, g, v));"),
    ("const T along = m + added1 * (g - m);", "const T along = g + added1 * (m - g);"),
    ("m = kept2 * m + added2 * g;", "m = kept2 * m + added1 * g;"),
    ("along < 0 ? -member.rate : along", "-member.rate"),  # 0 stays
    ("if (threadIdx.x == 0) sums[e * C + c] = sum;", "if (threadIdx.x == 0) sums[c] = sum;"),
    ("c += blockDim.x) sum += sums[e * C + c];", "c += gridDim.x * blockDim.x) sum += sums[c];"),
    ("clip / norm : 1;", "clip : 1;"),
    ("norm > clip && isfinite(norm)", "norm > clip"),
    ("c * chunk + threadIdx.x * W", "c * chunk + (threadIdx.x + 1) * W"),
    ("squares += g.at[v] * g.at[v];", "squares = g.at[v] * g.at[v];"),
    ("epsilon * corrections[1]", "epsilon"),
    ("scaled_rate = member.rate * correction", "scaled_rate = member.rate"),
    ("dL_dtheta + e * pitch, none, V + e * pitch, P", "dL_dtheta, none, V, P"),  # members mixed up
    (
        "member(e, rates[e], factors, weight_decay, decayed);\n        const T scaled",
        "member(e, rates[0], factors, weight_decay, decayed);\n        const T scaled",
    ),
    ("update_row<2>(step, theta + e * pitch", "update_row<2>(step, theta + e * P"),  # rows that lie apart
    ("load<W>(dL_dtheta + e * pitch + i", "load<W>(dL_dtheta + e * P + i"),
]


@pytest.mark.parametrize(("right", "wrong"), FAULTS, ids=[wrong[:40] or right[:40] for right, wrong in FAULTS])
def test_planted_fault_is_noticed(right, wrong, monkeypatch):
    text = cuda.source("optimizers")
    assert text.count(right) == 1

    def everything():
        for reverse in (False, True):
            with fake.installed(reverse_threads=reverse) as xp:
                adam = ("adam", {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-2})
                for method in (METHODS[0], METHODS[2], adam, METHODS[6], METHODS[8]):
                    for shape, offsets, gap in (((3, 13), (0, 0), 2), ((3, 13), (1, 2), 0), ((3, 1), (0, 0), 0)):
                        check(xp, method, shape, "float32", offsets, True, True, 0.3, gap)
                check_factors(xp, "float32", (2, 4501), 1)
                check_zeros(xp)

    for faulty in (False, True):
        monkeypatch.setattr(cuda, "source", lambda stem, faulty=faulty: text.replace(right, wrong) if faulty else text)
        with pytest.raises(AssertionError) if faulty else contextlib.nullcontext():
            everything()


def check_zeros(xp: ModuleType) -> None:
    """Lion on gradients that are 0, and on one that is none."""
    theta = xp.ones((2, 2))
    gpubp.Lion(0.5, clip_norm=1.0).update(theta, xp.asarray(np.array([[0.0, 5.0], [math.inf, -1.0]])))
    np.testing.assert_array_equal(to_host(theta), [[1, 0.5], [0.5, 1.5]])


def test_any_grid_is_enough(monkeypatch):
    monkeypatch.setattr(launches, "_grid", lambda *_: (2, 2, 1))
    monkeypatch.setattr(launches, "_block", lambda *_: (4, 2))
    monkeypatch.setattr(launches, "BLOCKS", 2)  # of the factors
    monkeypatch.setattr(launches, "GRID_LIMIT", 2)
    with fake.installed() as xp:
        for method in METHODS:
            check(xp, method, (7, 133), "float32", (1, 1), True, True, 0.1)


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.sampled_from([4, 8]))
def test_launch_shapes_are_within_the_limits(E, P, itemsize):
    width, height = launches._block(P, itemsize)
    assert width * height == 256
    assert width & (width - 1) == 0
    grid = launches._grid(E, P, itemsize)
    assert min(grid) >= 1
    assert grid[1] <= 65535
    assert grid[0] * grid[1] <= max(launches.BLOCKS, grid[1])


def test_begin_writes_only_what_is_new(fake_cupy):
    update = launches.of(fake_cupy.ones((2, 3)), fake_cupy.ones((2, 3)))

    def rates():
        return to_host(update._rates._numbers)

    corrections = np.array([[0.25, 0.5], [0.75, 1.0]])
    update.begin([0.5, 0.25], corrections)
    np.testing.assert_array_equal(rates(), [[0.5, 0.25]] * launches.MOST_STEPS)
    np.testing.assert_array_equal(to_host(update._corrections.row(1)), [0.75, 1.0])
    with fake_cupy.cuda.using_allocator(lambda nbytes: pytest.fail("memory asked for")):
        update.begin([0.5, 0.25], corrections)
    update.begin(0.125, corrections[1:])
    np.testing.assert_array_equal(rates(), 0.125)
    np.testing.assert_array_equal(to_host(update._corrections.row(0)), [0.75, 1.0])
    update.begin(np.array([[0.5], [0.75]]), None)
    np.testing.assert_array_equal(rates()[:3], [[0.5, 0.5], [0.75, 0.75], [0.125, 0.125]])
    with fake_cupy.cuda.using_allocator(lambda nbytes: pytest.fail("memory asked for")):
        update.begin(np.array([[0.5], [0.75]]), None)
    update.begin(np.array([[0.25, 0.5]]), None)
    np.testing.assert_array_equal(rates()[:2], [[0.25, 0.5], [0.75, 0.75]])
    update.begin(0.125, None)
    np.testing.assert_array_equal(rates(), 0.125)
