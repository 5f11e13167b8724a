"""Bias plus activation and its backward, on every executor, against a float64 reference written for this test alone."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import fake_cupy as fake
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpubp import cuda
from gpubp.backend import to_host
from gpubp.cuda_kernels import activation as launches
from gpubp.cuda_kernels import tiles
from gpubp.errors import DeviceError, ShapeError
from gpubp.layers.elu import ELU
from gpubp.layers.gelu import GELU
from gpubp.layers.identity import Identity
from gpubp.layers.leaky_relu import LeakyReLU
from gpubp.layers.relu import ReLU
from gpubp.layers.sigmoid import Sigmoid
from gpubp.layers.silu import SiLU
from gpubp.layers.softplus import Softplus
from gpubp.layers.tanh import Tanh
from gpubp.ops import activation


class Cube:
    """z^3: here for a function that has no functor, and for array maths on a device."""

    derivative_of, functor, parameter = "X", None, 0.0

    def evaluate(self, xp: ModuleType, X: Any, out: Any, scratch: Any) -> None:
        xp.multiply(X, X, out=scratch)
        xp.multiply(X, scratch, out=out)

    def derivative(self, xp: ModuleType, saved: Any, out: Any) -> None:
        xp.multiply(saved, 3 * saved, out=out)


def logistic(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def normal_distribution(z: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erfc, [float])(-z / math.sqrt(2)) / 2


def normal_density(z: np.ndarray) -> np.ndarray:
    return np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def silu_slope(z: np.ndarray) -> np.ndarray:
    return logistic(z) + z * logistic(z) * logistic(-z)


REFERENCE: dict[str, tuple[Callable[[np.ndarray], Any], Callable[[np.ndarray], Any]]] = {  # f and f', both of z
    "Identity": (lambda z: z, np.ones_like),
    "Sigmoid": (logistic, lambda z: logistic(z) * logistic(-z)),
    "Tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2),
    "ReLU": (lambda z: np.where(z > 0, z, 0), lambda z: np.where(z > 0, 1, 0)),
    "LeakyReLU": (lambda z: np.where(z > 0, z, 0.3 * z), lambda z: np.where(z > 0, 1, 0.3)),
    "ELU": (lambda z: np.where(z > 0, z, 1.7 * np.expm1(z)), lambda z: np.where(z > 0, 1, 1.7 * np.exp(z))),
    "GELU": (lambda z: z * normal_distribution(z), lambda z: normal_distribution(z) + z * normal_density(z)),
    "Softplus": (lambda z: np.logaddexp(0, 2.5 * z) / 2.5, lambda z: logistic(2.5 * z)),
    "SiLU": (lambda z: z * logistic(z), silu_slope),
    "Cube": (lambda z: z**3, lambda z: 3 * z**2),
}
FUNCTIONS = pytest.mark.parametrize(
    "function",
    [Identity(), Sigmoid(), Tanh(), ReLU(), LeakyReLU(0.3), ELU(1.7), GELU(), Softplus(2.5), SiLU(), Cube()],
    ids=lambda function: type(function).__name__,
)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])

SHAPES = [
    (0, 7),
    (7, 0),
    (1, 1),
    (1, 33),
    (33, 1),
    (7, 33),
    (33, 7),
    (1025, 1),
    (1, 1025),
    (257, 33),
    (1025, 10),
    (70, 264),
]
OPTIONS = itertools.cycle(itertools.product([True, False], [True, False], [0, 1]))
CASES = [(shape, members, *next(OPTIONS)) for members in (None, 1, 3) for shape in SHAPES]  # 36 cases, 8 options


class Placed:
    """Arrays on a device in the middle of something larger: `offset` elements late, with sentinels around."""

    SENTINEL = 77.0

    def __init__(self, xp: ModuleType, dtype: str, offset: int) -> None:
        self.xp, self.dtype, self.offset = xp, dtype, offset
        self.placed: list[tuple[Any, slice]] = []

    def __call__(self, values: np.ndarray, *, apart: bool = False) -> Any:
        """An array of these values, aligned to one element; `apart` puts a gap between rows, as parameters have it."""
        lead, size = (values.shape[:-1], values.shape[-1]) if apart else ((), values.size)
        flat = self.xp.full((*lead, self.offset + size + 1), self.SENTINEL, self.dtype)
        region = slice(self.offset, self.offset + size)
        view = flat[..., region].reshape(values.shape)
        view[...] = self.xp.asarray(values.astype(self.dtype))
        self.placed.append((flat, region))
        return view

    def check_surroundings(self) -> None:
        for flat, region in self.placed:
            np.testing.assert_array_equal(np.delete(to_host(flat), region, axis=-1), self.SENTINEL)


def nan(shape: Any) -> np.ndarray:
    return np.full(shape, np.nan)


def workspace_for(xp: ModuleType, function: Any, shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    shapes = activation.workspace(function, xp, shape)
    return {name: xp.full(shape, np.nan, dtype) for name, shape in shapes.items()}


def assert_close(actual: Any, expected: np.ndarray, dtype: str, scale: Any = 1.0) -> None:
    """Equal to 16 roundings of the larger of the value and `scale`."""
    actual = to_host(actual)
    assert actual.dtype == dtype
    error = np.abs(actual.astype(np.float64) - expected)
    bound = 16 * np.finfo(dtype).eps * np.maximum(np.abs(expected), scale)
    assert np.all(error <= bound), f"off by {np.max(error / bound):.3g} times the bound"


def check(
    xp: ModuleType,
    function: Any,
    dtype: str,
    shape: tuple[int, int],
    members: int | None,
    with_bias: bool,
    in_place: bool,
    offset: int,
) -> list[np.ndarray]:
    """Both operations once; returns what they wrote."""
    lead = () if members is None else (members,)
    full, row = (*lead, *shape), (*lead, shape[1])
    rng = np.random.default_rng([*full, with_bias])
    z, dL_dY_host = (rng.normal(size=full).astype(dtype).astype(np.float64) for _ in range(2))
    b_host = rng.normal(size=row).astype(dtype).astype(np.float64)
    expected_Z = z + b_host[..., None, :] if with_bias else z
    f, slope = REFERENCE[type(function).__name__]
    place = Placed(xp, dtype, offset)
    work = workspace_for(xp, function, full, dtype)

    needs_Z = function.derivative_of == "X"
    Z = place(z)
    Y = Z if in_place and not needs_Z else place(nan(full))
    b = place(b_host, apart=True) if with_bias else None
    assert activation.bias_activation(function, Z, b, Y, work) is Y
    assert_close(Y, f(expected_Z), dtype)
    if needs_Z or (Y is not Z and not with_bias):
        assert_close(Z, expected_Z, dtype)

    saved = Z if needs_Z else Y
    saved_before = to_host(saved).copy()
    dL_dY = place(dL_dY_host)
    dL_dZ = dL_dY if in_place else place(nan(full))
    dL_db = place(nan(row), apart=True) if with_bias else None
    assert activation.activation_backward(function, dL_dY, saved, dL_dZ, dL_db, work) is dL_dZ
    expected_dL_dZ = dL_dY_host * slope(expected_Z)
    assert_close(dL_dZ, expected_dL_dZ, dtype, np.abs(dL_dY_host))
    if with_bias:
        rounding = (1 + np.sqrt(shape[0]) / 16) * np.abs(dL_dY_host).sum(axis=-2)
        assert_close(dL_db, expected_dL_dZ.sum(axis=-2), dtype, rounding)
    np.testing.assert_array_equal(to_host(saved), saved_before)
    if not in_place:
        np.testing.assert_array_equal(to_host(dL_dY), dL_dY_host)
    place.check_surroundings()
    return [to_host(array).copy() for array in (Y, dL_dZ, *([] if dL_db is None else [dL_db]))]


@FUNCTIONS
@DTYPES
def test_equals_the_reference(xp: ModuleType, function: Any, dtype: str) -> None:
    for case in CASES:
        check(xp, function, dtype, *case)


@pytest.mark.parametrize(("shape", "members"), [((1025, 1025), None), ((70000, 1), None), ((3, 1), 200)])
def test_large_shapes(xp: ModuleType, shape: tuple[int, int], members: int | None) -> None:
    check(xp, Sigmoid(), "float32", shape, members, True, False, 1)


def test_repeats_bit_for_bit(xp: ModuleType) -> None:
    runs = [check(xp, Tanh(), "float32", (1025, 33), 2, True, False, 0) for _ in range(2)]
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)


def test_order_of_threads_does_not_matter() -> None:
    runs = []
    for reverse in (False, True):
        with fake.installed(reverse_threads=reverse) as xp:
            runs.append(check(xp, Tanh(), "float32", (1025, 33), 2, True, False, 0))
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)


def test_sigmoid_keeps_its_digits_in_both_tails(xp: ModuleType) -> None:
    z = np.linspace(-80, 80, 161, dtype="float32").reshape(1, -1)
    Y = xp.full(z.shape, np.nan, "float32")
    work = workspace_for(xp, Sigmoid(), z.shape, "float32")
    activation.bias_activation(Sigmoid(), xp.asarray(z), None, Y, work)
    np.testing.assert_allclose(to_host(Y), logistic(z.astype(np.float64)), rtol=1e-6)
    extremes = xp.asarray(np.array([[-1e30, -np.inf, 1e30, np.inf]], "float32"))
    activation.bias_activation(Sigmoid(), extremes, None, extremes, workspace_for(xp, Sigmoid(), (1, 4), "float32"))
    np.testing.assert_allclose(to_host(extremes), [[0, 0, 1, 1]], atol=1e-37)


@FUNCTIONS
def test_nan_stays_nan(xp: ModuleType, function: Any) -> None:
    Z = xp.asarray(np.array([[np.nan, 1.0]]))
    Y = xp.zeros((1, 2))
    activation.bias_activation(function, Z, None, Y, workspace_for(xp, function, (1, 2), "float64"))
    assert np.isnan(to_host(Y)[0, 0])
    assert not np.isnan(to_host(Y)[0, 1])


# Faults planted in the kernels' text must be noticed. Beside each: a function that shows it, and what it breaks.
FAULTS = [
    ("row < member_end; row", "row + length < member_end; row", Tanh()),  # the last band forward
    ("left < length; left += gridDim.x * width) {\n            g.begin", "false;) {\n            g.begin", Tanh()),
    ("b + e * b_stride", "b + e * n", Tanh()),  # the bias of the second member
    ("while (j >= n) j -= n;", "if (j >= n) j -= n;", Tanh()),  # the bias of the third row of a band
    ("if (b && !Activation::from_output) store<W>(Z, begin, end, z[u]);", "", SiLU()),  # Z, which the derivative needs
    ("min(row + u * step + length, end), sum", "end, sum", Tanh()),  # numbers of the band below in scalar tiles
    ("+ c * chunk, end", "+ c * chunk + length, end", Tanh()),  # the first band of each chunk
    ("min((e + 1) * N * n, begin + chunk)", "begin + chunk - length", Tanh()),  # its last band
    ("partial_sums[e * sums_stride + c * n + j] = sum", "partial_sums[c * n + j] = sum", Tanh()),  # members mixed up
    ("dL_db[e * dL_db_stride + j] = sum", "dL_db[e * n + j] = sum", Tanh()),  # dL_db of the second member
    ("c < C; c += blockDim.y) sum", "c < C - 1; c += blockDim.y) sum", Tanh()),  # the last chunk
    ("m = 1; m < joined", "m = 2; m < joined", Tanh()),  # a row of each band
    ("(rows + 1) / 2", "rows / 2", Tanh()),  # the last of an odd number of bands
    ("rows > 1;)", "rows > 2;)", Tanh()),  # half of each sum
    ("    __syncthreads();  // a slower thread may still read the", "//", Tanh()),  # sums overwritten too early
    ("        __syncthreads();\n#pragma unroll", "#pragma unroll", Tanh()),  # a sum read before it is there
    ("    __syncthreads();  // the rows", "//", Tanh()),  # a row of a band read before it is summed
    ("half > 0; half", "half > 1; half", Tanh()),  # half of the chunks
    ("e * r", "r", Sigmoid()),  # the sigmoid below zero
    ("1 - y * y", "1 - y", Tanh()),  # the derivative of tanh
    (": slope;", ": 0;", LeakyReLU(0.3)),  # the derivative below zero
    (": alpha * expm1(z)", ": expm1(z)", ELU(1.7)),
    (": y + alpha", ": y + 1", ELU(1.7)),
    ("T(0.5) * erfc(", "T(0.5) * exp(", GELU()),
    ("distribution(z) + z * exp", "distribution(z) - z * exp", GELU()),
    ("s * (1 + z * (1 - s))", "s * (1 - s)", SiLU()),
    ("return z * Sigmoid<T>(0).value(z)", "return z < 0 ? 0 : z", SiLU()),
    ("log1p(exp(-fabs(beta * z))) / beta", "log1p(exp(-fabs(beta * z)))", Softplus(2.5)),
    ("Sigmoid<T>(0).value(beta * z)", "Sigmoid<T>(0).value(z)", Softplus(2.5)),
]


@pytest.mark.parametrize(("right", "wrong", "function"), FAULTS, ids=[wrong or right for right, wrong, _ in FAULTS])
def test_planted_fault_is_noticed(right: str, wrong: str, function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = cuda.source("activation")
    assert text.count(right) == 1
    monkeypatch.setattr(launches, "GRID_LIMIT", 2)  # a block works on several chunks and members in turn
    monkeypatch.setattr(tiles, "GRID_LIMIT", 2)  # and a thread on several bands
    for faulty in (False, True):
        monkeypatch.setattr(cuda, "source", lambda stem, faulty=faulty: text.replace(right, wrong) if faulty else text)
        with pytest.raises(AssertionError) if faulty else contextlib.nullcontext():
            for reverse, (shape, offset) in itertools.product(
                (False, True), [((4200, 3), 1), ((1100, 6), 0), ((20, 1030), 1)]
            ):
                with fake.installed(reverse_threads=reverse) as xp:
                    check(xp, function, "float32", shape, 3, True, False, offset)


def test_any_grid_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "GRID_LIMIT", 2)
    monkeypatch.setattr(launches._Launch, "_grid", lambda self, down: (2, min(2, down), 2))
    for shape in [(700, 100), (40, 1025), (40, 400)]:
        with fake.installed() as xp:
            check(xp, SiLU(), "float32", shape, 5, True, False, 0)


def test_sums_do_not_depend_on_where_the_arrays_lie(fake_cupy: ModuleType) -> None:
    """An array that begins at a multiple of 16 bytes is read by packs of numbers, another one number by number."""
    for shape in [(900, 10), (900, 33), (200, 128), (3000, 1)]:
        runs = [check(fake_cupy, Tanh(), "float32", shape, None, True, False, offset) for offset in (0, 1)]
        for first, second in zip(*runs, strict=True):
            np.testing.assert_array_equal(first, second)


@given(st.integers(1, 2**40), st.integers(1, 2**40), st.integers(1, 2**20), st.sampled_from([4, 8]))
def test_launch_shapes_are_within_the_limits(rows: int, columns: int, members: int, itemsize: int) -> None:
    shape = (members, rows, columns)
    tile = tiles.tiles(columns, itemsize)
    pack = 16 // itemsize
    assert tile.width * tile.height <= 256
    assert tile.width * tile.height > 128 or tile.width > 128  # most threads of a block that could be have a place
    assert 1 <= tile.joined <= pack
    assert tile.across * tile.width * pack >= tile.joined * columns  # tiles cover a band
    assert (tile.across - 1) * tile.width * pack < tile.joined * columns
    assert tile.joined == 1 or (tile.joined * columns % pack == 0 and tile.across == 1)
    chunks = launches.chunks(shape)
    assert 1 <= chunks <= min(rows, tiles.BLOCKS)
    blocks = tiles.blocks_down(rows, tile.height, members * tile.across)
    assert 1 <= blocks <= min(65535, -(-rows // tile.height))


@pytest.mark.parametrize(("rows", "launches"), [(64, 1), (65, 2)])
def test_one_launch_where_there_is_one_chunk(rows: int, launches: int) -> None:
    with fake.installed(record=True) as xp:
        X = xp.ones((rows, 128))
        work = workspace_for(xp, ReLU(), X.shape, "float64")
        activation.activation_backward(ReLU(), X, X, X, xp.zeros(128), work)
        assert fake.machine.launches is not None
        assert len(fake.machine.launches) == launches
        assert set(work) == {"partial_sums"}  # whatever the shape: a smaller batch has the buffers of a larger one


@pytest.mark.parametrize(
    ("shape", "offset", "biased", "width"),
    [
        ((7, 33), 0, True, 4),
        ((7, 33), 1, True, 1),
        ((8, 1025), 0, True, 1),  # rows that begin anywhere
        ((8, 1025), 0, False, 4),  # a flat array
        ((2, 3, 5), 0, True, 1),  # members that do
        ((2, 4, 5), 0, True, 4),
    ],
)
def test_sixteen_bytes_are_read_at_once_where_that_is_possible(
    shape: tuple[int, ...], offset: int, biased: bool, width: int
) -> None:
    with fake.installed(record=True) as xp:
        place = Placed(xp, "float32", offset)
        Z, b = place(np.ones(shape)), place(np.ones((*shape[:-2], shape[-1]))) if biased else None
        work = workspace_for(xp, ReLU(), Z.shape, "float32")
        activation.bias_activation(ReLU(), Z, b, Z, work)
        activation.activation_backward(ReLU(), Z, Z, Z, b, work)
        assert fake.machine.launches is not None
        assert {launch.kernel for launch in fake.machine.launches} == {
            f"bias_activation<ReLU<float>, {width}>",
            f"activation_backward<ReLU<float>, {width}>",
        }


def test_inputs_may_have_gaps(xp: ModuleType) -> None:
    rng = np.random.default_rng(0)
    host = rng.normal(size=(14, 66))
    strided = xp.asarray(host.copy())[::2, ::2]
    b = xp.asarray(rng.normal(size=66))[::2]
    Y, dL_dZ, dL_db = xp.zeros((7, 33)), xp.zeros((7, 33)), xp.zeros(33)
    work = workspace_for(xp, Tanh(), (7, 33), "float64")
    activation.activation_backward(Tanh(), strided, strided, dL_dZ, dL_db, work)
    expected = host[::2, ::2] * (1 - host[::2, ::2] ** 2)
    np.testing.assert_allclose(to_host(dL_dZ), expected)
    np.testing.assert_allclose(to_host(dL_db), expected.sum(axis=0))
    activation.bias_activation(Identity(), strided, b, Y, work)
    np.testing.assert_allclose(to_host(Y), host[::2, ::2] + to_host(b))


def test_misfits_are_refused_before_a_kernel_sees_them(fake_cupy: ModuleType) -> None:
    xp = fake_cupy
    Z = xp.zeros((4, 6), "float32")
    with pytest.raises(ShapeError, match=r"b is float32 \(5,\)"):
        activation.bias_activation(ReLU(), Z, xp.zeros(5, "float32"), Z, {})
    with pytest.raises(ShapeError, match="b is float64"):
        activation.bias_activation(ReLU(), Z, xp.zeros(6), Z, {})
    with pytest.raises(DeviceError, match="number 3 on cpu"):
        activation.bias_activation(ReLU(), Z, np.zeros(6, "float32"), Z, {})
    with pytest.raises(ShapeError, match="Y with strides"):
        activation.bias_activation(ReLU(), Z[:, ::2], None, Z[:, ::2], {})
    with pytest.raises(ShapeError, match="Z with strides"):
        activation.bias_activation(SiLU(), Z[:, ::2], xp.zeros(3, "float32"), xp.zeros((4, 3), "float32"), {})
    with pytest.raises(ShapeError, match="dL_db with strides"):
        activation.activation_backward(ReLU(), Z, Z, Z, xp.zeros(12, "float32")[::2], {})
    with pytest.raises(ShapeError, match="saved is float32"):
        activation.activation_backward(ReLU(), Z, Z[:2], Z, None, {})
    half = xp.zeros((2, 2), "float16")
    with pytest.raises(ShapeError, match="float32 or float64"):
        activation.bias_activation(ReLU(), half, None, half, {})
