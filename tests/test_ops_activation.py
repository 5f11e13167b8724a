"""Bias plus activation and its backward, on every executor, against a float64 reference written for this test alone."""

from __future__ import annotations

import contextlib
import itertools
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
from gpubp.errors import DeviceError, ShapeError
from gpubp.layers.identity import Identity
from gpubp.layers.leaky_relu import LeakyReLU
from gpubp.layers.relu import ReLU
from gpubp.layers.sigmoid import Sigmoid
from gpubp.layers.tanh import Tanh
from gpubp.ops import activation


class SiLU:
    """z * sigmoid(z): here for a derivative that needs the input. Its functor is in no file, see `with_silu`."""

    derivative_of, functor, parameter = "X", "SiLU", 0.0

    def evaluate(self, xp: ModuleType, X: Any, out: Any, scratch: Any) -> None:
        xp.exp(-X, out=scratch)
        xp.divide(X, 1 + scratch, out=out)

    def derivative(self, xp: ModuleType, saved: Any, out: Any) -> None:
        s = 1 / (1 + xp.exp(-saved))
        xp.multiply(s, 1 + saved * (1 - s), out=out)


SILU_FUNCTOR = """
template <typename T>
struct SiLU {
    using Scalar = T;
    static constexpr bool from_output = false;
    explicit __device__ SiLU(T) {}
    __device__ T value(T z) const { return z / (1 + exp(-z)); }
    __device__ T derivative(T z) const {
        const T s = 1 / (1 + exp(-z));
        return s * (1 + z * (1 - s));
    }
};
"""


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


def silu_slope(z: np.ndarray) -> np.ndarray:
    return logistic(z) + z * logistic(z) * logistic(-z)


REFERENCE: dict[str, tuple[Callable[[np.ndarray], Any], Callable[[np.ndarray], Any]]] = {  # f and f', both of z
    "Identity": (lambda z: z, np.ones_like),
    "Sigmoid": (logistic, lambda z: logistic(z) * logistic(-z)),
    "Tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2),
    "ReLU": (lambda z: np.where(z > 0, z, 0), lambda z: np.where(z > 0, 1, 0)),
    "LeakyReLU": (lambda z: np.where(z > 0, z, 0.3 * z), lambda z: np.where(z > 0, 1, 0.3)),
    "SiLU": (lambda z: z * logistic(z), silu_slope),
    "Cube": (lambda z: z**3, lambda z: 3 * z**2),
}
FUNCTIONS = pytest.mark.parametrize(
    "function",
    [Identity(), Sigmoid(), Tanh(), ReLU(), LeakyReLU(0.3), SiLU(), Cube()],
    ids=lambda function: type(function).__name__,
)
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])

SHAPES = [(0, 7), (7, 0), (1, 1), (1, 33), (33, 1), (7, 33), (33, 7), (1025, 1), (1, 1025), (257, 33), (1025, 10)]
OPTIONS = itertools.cycle(itertools.product([True, False], [True, False], [0, 1]))
CASES = [(shape, members, *next(OPTIONS)) for members in (None, 1, 3) for shape in SHAPES]  # 33 cases, 8 options


@pytest.fixture(autouse=True)
def with_silu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernel sources that know the functor of `SiLU`."""
    original = cuda.source
    monkeypatch.setattr(cuda, "source", lambda stem: SILU_FUNCTOR + original(stem))


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
    ("row < N; row", "row < N - 1; row", Tanh()),  # the last row forward
    ("j < n; j +=", "j < n - 1; j +=", Tanh()),  # the last column forward
    ("b[e * b_stride + j]", "b[e * n + j]", Tanh()),  # the bias of the second member
    ("if (b && !Activation::from_output) Z[i] = z;", "", SiLU()),  # Z, which the derivative needs
    ("min(N, (c + 1) * chunk_rows)", "min(N, (c + 1) * chunk_rows) - 1", Tanh()),  # the last row of each chunk
    ("c * chunk_rows + threadIdx.y", "c * chunk_rows + threadIdx.y + 1", Tanh()),  # its first row
    ("partial_sums[e * sums_stride + c * n + j] = sum", "partial_sums[c * n + j] = sum", Tanh()),  # members mixed up
    ("dL_db[e * dL_db_stride + j] = sum", "dL_db[e * n + j] = sum", Tanh()),  # dL_db of the second member
    ("c < C; c += blockDim.y) sum", "c < C - 1; c += blockDim.y) sum", Tanh()),  # the last chunk
    ("half > 0; half", "half > 1; half", Tanh()),  # half of each sum
    ("    __syncthreads();  // a slower", "//", Tanh()),  # a sum read after the next one has begun
    ("        __syncthreads();\n", "", Tanh()),  # a sum read before it is there
    ("e * r", "r", Sigmoid()),  # the sigmoid below zero
    ("1 - y * y", "1 - y", Tanh()),  # the derivative of tanh
    (": slope;", ": 0;", LeakyReLU(0.3)),  # the derivative below zero
]


@pytest.mark.parametrize(("right", "wrong", "function"), FAULTS, ids=[wrong or right for right, wrong, _ in FAULTS])
def test_planted_fault_is_noticed(right: str, wrong: str, function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = cuda.source("activation")
    assert text.count(right) == 1
    monkeypatch.setattr(activation, "GRID_LIMIT", 2)  # a block works on several chunks and members in turn
    for faulty in (False, True):
        monkeypatch.setattr(cuda, "source", lambda stem, faulty=faulty: text.replace(right, wrong) if faulty else text)
        with pytest.raises(AssertionError) if faulty else contextlib.nullcontext():
            for reverse in (False, True):
                with fake.installed(reverse_threads=reverse) as xp:
                    check(xp, function, "float32", (700, 3), 3, True, False, 0)


def test_any_grid_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation, "GRID_LIMIT", 2)
    monkeypatch.setattr(activation, "_grid", lambda shape, blocks_of_rows: (2, min(2, blocks_of_rows), 2))
    with fake.installed() as xp:
        check(xp, SiLU(), "float32", (700, 100), 5, True, False, 0)


@given(st.integers(1, 2**40), st.integers(1, 2**40), st.integers(1, 2**20))
def test_launch_shapes_are_within_the_limits(rows: int, columns: int, members: int) -> None:
    shape = (members, rows, columns)
    width, height = activation._block(columns)
    assert width * height == 256
    assert width < 2 * columns  # at least half of the threads have a column
    assert height & (height - 1) == 0
    chunks = activation._chunks(shape)
    assert 1 <= chunks <= min(rows, activation.BLOCKS)
    grid = activation._grid(shape, chunks)
    assert all(blocks >= 1 for blocks in grid)
    assert max(grid[1:]) <= 65535


@pytest.mark.parametrize(("rows", "launches"), [(64, 1), (65, 2)])
def test_one_launch_where_there_is_one_chunk(rows: int, launches: int) -> None:
    with fake.installed(record=True) as xp:
        X = xp.ones((rows, 32))
        work = workspace_for(xp, ReLU(), X.shape, "float64")
        activation.activation_backward(ReLU(), X, X, X, xp.zeros(32), work)
        assert fake.machine.launches is not None
        assert len(fake.machine.launches) == launches
        assert set(work) == {"partial_sums"}  # whatever the shape: a smaller batch has the buffers of a larger one


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
