"""Every kernel against the NumPy ops in float64: odd sizes, stacks, in place and not, on one thread and on three."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import gpubp
from gpubp import cpu
from gpubp.layers.base import Activation, Layer
from gpubp.losses.base import Loss
from gpubp.losses.penalty import add_l2
from gpubp.ops import activation, gather, gemm, layer_norm, rows, softmax
from gpubp.optimizers.base import Optimizer

if cpu.kernels() is None:
    pytest.skip(f"no CPU kernels: {cpu.why_no_kernels()}", allow_module_level=True)


SHAPES = [(1, 1), (7, 33), (33, 7), (129, 10), (1025, 3), (300, 130), (3, 300, 10), (2, 1, 65), (4, 4, 4), (0, 5)]
ACTIVATIONS = [
    example
    for _, kind in sorted(Layer.by_name.items())
    if issubclass(kind, Activation)
    for example, _ in kind.examples()
    if example.functor
]


@pytest.fixture(params=[1, 3], autouse=True)
def threads(request, monkeypatch):
    """One thread, or three that share even the smallest work."""
    monkeypatch.setattr(cpu, "ALONE_NANOSECONDS", 0)
    monkeypatch.setattr(cpu, "STEP_NANOSECONDS", 0)
    monkeypatch.setattr(cpu, "SHARE_NANOSECONDS", 1)
    with cpu.limited_threads(request.param):
        yield request.param


@pytest.fixture
def launches(monkeypatch):
    """What was launched: a test that compares NumPy with itself proves nothing."""
    names = []
    launch = cpu.launch

    def count(compiled, *arguments, **more):
        names.append(compiled.__name__)
        launch(compiled, *arguments, **more)

    monkeypatch.setattr(cpu, "launch", count)
    return names


def in_numpy(call):
    """The same call with the ops in NumPy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "kernels", lambda: None)
        return call()


def random(*shape, dtype="float64", seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype) * 2


def assert_close(actual, expected, dtype, *, scale=1.0):
    """Within some units of the last place, of the largest value where sums cancel."""
    tolerance = scale * (20 if dtype == "float32" else 100) * np.finfo(dtype).eps
    expected = np.asarray(expected, dtype=np.float64)
    np.testing.assert_allclose(
        actual, expected, rtol=tolerance, atol=tolerance * max(1e-3, np.abs(expected).max(initial=0))
    )


def scratch(function, shape, dtype):
    return {name: np.full(s, np.nan, dtype) for name, s in activation.workspace(function, np, shape).items()}


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", ACTIVATIONS, ids=repr)
def test_bias_and_activation(function, dtype, bias, in_place, launches):
    for shape in SHAPES:
        launches.clear()
        check_bias_and_activation(function, shape, dtype, bias, in_place)
        assert launches == (["bias_activation" if bias else "activation"])


def check_bias_and_activation(function, shape, dtype, bias, in_place):
    """Against float64 in NumPy."""
    Z, b = random(*shape, dtype=dtype), random(*shape[:-2], shape[-1], dtype=dtype, seed=1) if bias else None
    expected = in_numpy(
        lambda: activation.bias_activation(
            function,
            Z.astype("f8"),
            None if b is None else b.astype("f8"),
            np.empty(shape),
            scratch(function, shape, "f8"),
        )
    )
    Y = Z if in_place else np.full(shape, np.nan, dtype)
    activation.bias_activation(function, Z, b, Y, scratch(function, shape, dtype))
    assert_close(Y, expected, dtype)


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("function", ACTIVATIONS, ids=repr)
def test_activation_backward_with_the_column_sum(function, dtype, bias, in_place, launches):
    for shape in SHAPES:
        launches.clear()
        check_activation_backward(function, shape, dtype, bias, in_place)
        assert set(launches) <= {"activation_backward", "derivative_product", "sum_chunks"}
        assert launches


def check_activation_backward(function, shape, dtype, bias, in_place):
    """Against float64 in NumPy."""
    dL_dY, Y = random(*shape, dtype=dtype), np.tanh(random(*shape, dtype=dtype, seed=1))

    def run(dL_dY, Y, dL_dZ, dtype):
        dL_db = np.full((*shape[:-2], shape[-1]), np.nan, dtype) if bias else None
        activation.activation_backward(function, dL_dY, Y, dL_dZ, dL_db, scratch(function, shape, dtype))
        return dL_dZ, np.zeros(1) if dL_db is None else dL_db

    expected = in_numpy(lambda: run(dL_dY.astype("f8"), Y.astype("f8"), np.empty(shape), "f8"))
    actual = run(dL_dY, Y, dL_dY if in_place else np.full(shape, np.nan, dtype), dtype)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, dtype, scale=10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows(shape, dtype, launches):
    X = random(*shape, dtype=dtype)
    lead, n = shape[:-2], shape[-1]
    # A parameter of a stack is a slice of each member's row: rows that lie apart.
    apart = random(*lead, n + 3, dtype=dtype, seed=1)[..., 1 : n + 1]
    assert_close(rows.add_bias(X.copy(), apart), X.astype("f8") + apart[..., None, :], dtype)
    out = np.full((*lead, n + 3), np.nan, dtype)
    rows.column_sum(X, out[..., 1 : n + 1], np.full(rows.partial_sums_shape(np, shape), np.nan, dtype))
    assert_close(out[..., 1 : n + 1], X.astype("f8").sum(axis=-2), dtype, scale=10)
    assert np.isnan(out[..., 0]).all()
    assert np.isnan(out[..., n + 1 :]).all()
    for mean_lead in {(), lead}:
        mean, scale = random(*mean_lead, n, dtype=dtype), np.abs(random(*mean_lead, n, dtype=dtype, seed=1)) + 1
        Y = rows.standardize(X, mean, scale, np.full(shape, np.nan, dtype))
        assert_close(Y, (X.astype("f8") - mean[..., None, :]) / scale[..., None, :], dtype)
    assert {"bias_activation", "column_sums", "standardize"} <= set(launches)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_activation_whose_derivative_needs_the_input(dtype, bias, launches):
    silu = gpubp.SiLU()
    for shape in SHAPES:
        Z = random(*shape, dtype=dtype)
        b = random(*shape[:-2], shape[-1], dtype=dtype, seed=1) if bias else None
        z = Z.astype("f8") + (b[..., None, :].astype("f8") if bias else 0)
        Y, dL_dY = np.full(shape, np.nan, dtype), random(*shape, dtype=dtype, seed=2)
        activation.bias_activation(silu, Z, b, Y, scratch(silu, shape, dtype))
        s = 1 / (1 + np.exp(-z))
        assert_close(Y, z * s, dtype)
        assert_close(Z, z, dtype)
        dL_db = np.full((*shape[:-2], shape[-1]), np.nan, dtype) if bias else None
        dL_dZ = np.full(shape, np.nan, dtype)
        activation.activation_backward(silu, dL_dY, Z, dL_dZ, dL_db, scratch(silu, shape, dtype))
        expected = dL_dY * s * (1 + z * (1 - s))
        assert_close(dL_dZ, expected, dtype, scale=10)
        if bias:
            assert_close(dL_db, expected.sum(axis=-2), dtype, scale=20)
    assert set(launches) >= (
        {"bias_activation", "activation_backward"} if bias else {"activation", "derivative_product"}
    )


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[-2]])
def test_softmax(shape, dtype, in_place, launches):
    X, dL_dY, of_rows = random(*shape, dtype=dtype), random(*shape, dtype=dtype, seed=1), np.empty(shape[:-1], dtype)
    Y = softmax.softmax(X, np.full(shape, np.nan, dtype), of_rows)
    wide = X.astype("f8")
    P = np.exp(wide - wide.max(axis=-1, keepdims=True))
    P /= P.sum(axis=-1, keepdims=True)
    assert_close(Y, P, dtype)
    expected = Y.astype("f8") * (dL_dY - (dL_dY.astype("f8") * Y).sum(axis=-1, keepdims=True))
    dL_dX = softmax.softmax_backward(dL_dY, Y, dL_dY if in_place else np.full(shape, np.nan, dtype), of_rows)
    assert_close(dL_dX, expected, dtype, scale=10)
    assert launches == ["softmax", "softmax_backward"]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[-2]])
def test_layer_normalisation(shape, dtype, in_place, shared, launches):
    lead, n = shape[:-2], shape[-1]
    X = random(*(() if shared else lead), *shape[-2:], dtype=dtype)
    dL_dY = random(*shape, dtype=dtype, seed=1)
    gamma, beta = (random(*lead, n + 3, dtype=dtype, seed=seed)[..., 1 : n + 1] for seed in (2, 3))

    def run(dtype):
        X_, dL_dY_, gamma_, beta_ = (array.astype(dtype, copy=False) for array in (X, dL_dY.copy(), gamma, beta))
        Y, X_hat, inverse = np.full(shape, np.nan, dtype), np.empty(X.shape, dtype), np.empty(X.shape[:-1], dtype)
        layer_norm.layer_norm(X_, gamma_, beta_, 0.1, Y, X_hat, inverse)
        sums = np.empty(rows.partial_sums_shape(np, shape), dtype)
        dL_dgamma = rows.product_sum(dL_dY_, X_hat, np.full(gamma.shape, np.nan, dtype), sums)
        work = {key: np.empty(size, dtype) for key, size in layer_norm.workspace(np, shape).items()}
        dL_dX = dL_dY_ if in_place else np.full(shape, np.nan, dtype)
        return Y, X_hat, inverse, dL_dgamma, layer_norm.layer_norm_backward(dL_dY_, gamma_, X_hat, inverse, dL_dX, work)

    for found, expected in zip(run(dtype), in_numpy(lambda: run("float64")), strict=True):
        assert_close(found, expected, dtype, scale=20)
    assert {"layer_norm", "layer_norm_backward", "product_sums"} <= set(launches)


def stored(*shape, transposed, dtype, seed):
    """A matrix, or a stack of them, that lies in memory row by row or column by column."""
    return (
        random(*shape[:-2], shape[-1], shape[-2], dtype=dtype, seed=seed).mT
        if transposed
        else random(*shape, dtype=dtype, seed=seed)
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("members", [None, 2, "shared"])
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 1, 1),
        (7, 33, 1025),
        (1, 5, 3),
        (33, 1, 17),
        (64, 7, 1),
        (130, 20, 50),
        (9, 1500, 5),
        (8, 300, 700),
        (700, 12, 250),
        (520, 500, 70),
        (100, 700, 150),
        (70, 2100, 90),
    ],
)
@pytest.mark.parametrize("small_kernels", [True, False])
def test_matrix_products(sizes, transposed, members, dtype, small_kernels, launches, monkeypatch):
    monkeypatch.setattr(cpu.kernels().gemm, "_has_small_kernels", lambda: small_kernels)
    M, K, N = sizes
    A = stored(*([2] if members == 2 else []), M, K, transposed=transposed[0], dtype=dtype, seed=0)
    B = stored(*([] if members is None else [2]), K, N, transposed=transposed[1], dtype=dtype, seed=1)
    # The gradient of a stack's weights is a slice of each member's row of the flat buffer.
    flat = np.full((*B.shape[:-2], M * N + 5), np.nan, dtype)
    out = flat[..., 2 : M * N + 2].reshape(*B.shape[:-2], M, N)
    assert np.shares_memory(out, flat)
    gemm.matmul(A, B, out)
    assert_close(out, A.astype("f8") @ B.astype("f8"), dtype, scale=max(1, K / 20))
    assert np.isnan(flat[..., :2]).all()
    assert np.isnan(flat[..., M * N + 2 :]).all()
    if K > 1024:
        assert launches == ["matmul_by_depth", "sum_chunks"]
    else:
        turned = ["turn"] if small_kernels and transposed[1] and M > 512 and K * N < 2**14 else []
        assert launches == [*turned, "outer_product" if K == 1 else "matmul"]


@pytest.mark.parametrize(
    ("sizes", "turned", "itemsize", "tile"),
    [
        ((64, 64, 64), (False, False), 4, (64, 64, 64)),  # small as it is
        ((2048, 64, 64), (False, False), 4, (240, 64, 64)),
        ((2048, 784, 128), (False, False), 4, (64, 64, 196)),
        ((784, 512, 128), (True, False), 4, (64, 80, 171)),
        ((8, 784, 512), (False, False), 4, (8, 512, 196)),
        ((8, 2048, 4096), (False, False), 4, (8, 544, 228)),  # few rows: each element of the factor is read once
        ((2048, 128, 4096), (False, False), 4, (2048, 4096, 128)),  # rows that lie too far apart
        ((2048, 128, 512), (False, False), 8, (2048, 512, 128)),
        ((784, 8192, 512), (True, False), 4, (784, 512, 8192)),  # more than the caches hold
        ((8, 512, 784), (False, True), 4, (8, 144, 512)),
        ((8, 1000, 300), (False, True), 4, (8, 144, 500)),
        ((8, 40, 128), (False, True), 4, (8, 128, 40)),  # too short a sum
        ((64, 100, 300), (False, True), 4, (64, 300, 100)),
        ((65, 512, 784), (False, True), 4, (65, 784, 512)),  # too many rows
        ((8, 512, 784), (True, True), 4, (8, 784, 512)),
    ],
)
def test_tiles(sizes, turned, itemsize, tile, monkeypatch):
    M, K, N = sizes
    cpu_gemm = cpu.kernels().gemm
    for small_kernels, expected in ((True, tile), (False, (M, N, K))):
        monkeypatch.setattr(cpu_gemm, "_has_small_kernels", lambda small=small_kernels: small)
        assert cpu_gemm._tile(M, N, K, *turned, itemsize) == expected


def in_parts(launch, parts):
    """What a launch computes, the range of its work items cut into so many."""
    with cpu.recorded(run=False) as lines:
        result = launch()
    program = cpu.Program(lines)
    program.code[:, 3] = parts
    cpu.kernels().team.run_alone(program.code, 1, parts)
    return result


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("members", [None, 3])
def test_a_product_with_a_factor_laid_out_anew_in_parts(members, parts, monkeypatch):
    monkeypatch.setattr(cpu.kernels().gemm, "_has_small_kernels", lambda: True)
    A = random(*([members] if members else []), 600, 70)
    B = stored(*([members] if members else []), 70, 50, transposed=True, dtype="float64", seed=1)
    out = np.full((*A.shape[:-1], 50), np.nan)
    assert_close(in_parts(lambda: gemm.matmul(A, B, out), parts), A @ B, "float64", scale=4)


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize(("columns", "dtype"), [(1, "int64"), (7, "float32"), (70, "float32"), (2000, "float64")])
@pytest.mark.parametrize("members", [None, 3])
def test_a_gather_in_parts(members, columns, dtype, parts):
    """Rows of some bytes and of some thousands, more than are looked ahead; what is no index is the nearest one."""
    X = (random(*([members] if members else []), 90, columns) * 1000).astype(dtype)
    index = np.random.default_rng(0).integers(-20, 110, size=131)
    out = np.zeros((*X.shape[:-2], 131, columns), dtype)
    expected = X[..., index.clip(0, 89), :]
    np.testing.assert_array_equal(in_parts(lambda: gather.gather(X, index, out, -2), parts), expected)


def test_a_product_with_every_second_element_of_a_row(launches):
    A, B, out = random(5, 1), random(1, 14, seed=1)[:, ::2], np.empty((5, 7))
    np.testing.assert_allclose(gemm.matmul(A, B, out), A * B, rtol=1e-15)
    assert launches == ["matmul"]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "int32", "uint8"])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_gather(lead, dtype, launches):
    index = np.random.default_rng(0).integers(50, size=21)
    X = (random(*lead, 50, 7) * 50).astype(dtype)
    out = np.zeros((*lead, 21, 7), dtype)
    np.testing.assert_array_equal(gather.gather(X, index, out, -2), X[..., index, :])
    out = np.zeros((*lead, 7, 21), dtype)
    np.testing.assert_array_equal(gather.gather(np.ascontiguousarray(X.mT), index, out, -1), X.mT[..., index])
    assert launches == ["gather", "gather"]


@pytest.mark.parametrize(
    ("source", "to", "kernel"),
    [
        ("float32", "float64", True),
        ("float64", "float32", True),
        ("uint8", "float32", True),
        ("uint8", "float64", True),
        ("uint8", "int64", True),
        ("int32", "int64", True),
        ("float16", "float32", False),  # Numba has no float16
        ("int64", "float64", False),
    ],
)
def test_gather_converts(source, to, kernel, launches):
    data = (random(3, 50, 7) * 20).astype("int8" if source[0] == "i" else "uint8").astype(source)
    index = np.random.default_rng(0).integers(50, size=21)
    out = gather.gather(data, index, np.zeros((3, 21, 7), to), -2)
    np.testing.assert_array_equal(out, data[:, index])
    assert launches == ["gather"] * kernel


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("softmax_cross_entropy", "indices"),
        *((name, kind) for name in sorted(Loss.by_name) for kind in ("rows", "own")),
        *((gpubp.Quantile((0.1, 0.5, 0.8)), kind) for kind in ("rows", "own")),
        *((gpubp.SoftmaxCrossEntropy(label_smoothing=0.1), kind) for kind in ("rows", "own", "indices")),
        (gpubp.BinaryCrossEntropy(3.0, label_smoothing=0.1), "rows"),
        (gpubp.Huber(0.3, allow_missing=True), "rows"),
    ],
)
def test_losses(name, kind, members, dtype, launches):
    for K, N, weighted in itertools.product((1, 3, 10, 64, 65, 131), (1, 7, 130, 300), (False, True)):
        launches.clear()
        check_loss(gpubp.loss_by_name(name) if isinstance(name, str) else name, kind, K, N, members, dtype, weighted)
        assert len(launches) == 2


def check_loss(loss, kind, K, N, members, dtype, weighted):
    """Loss and gradient against those in float64; the message of a failure names the case."""
    case = f"{loss!r}, {kind}, K={K}, N={N}, members={members}, weighted={weighted}"
    lead = () if members is None else (members,)
    rng = np.random.default_rng(1)
    Y = random(*lead, N, K * loss.heads, dtype=dtype) * 3
    T = loss.example_targets(rng, (*(lead if kind == "own" else ()), N, K)).astype(dtype)
    T = rng.integers(K, size=N) if kind == "indices" else T
    w = rng.random(N).astype(dtype) + 0.5 if weighted else None

    def run(Y, T, w):
        L, saved = loss.forward(Y, T, w)
        return L, loss.backward(saved)

    wide = [None if a is None or a.dtype.kind == "i" else a.astype("f8") for a in (Y, T, w)]
    expected = in_numpy(lambda: run(wide[0], T if kind == "indices" else wide[1], wide[2]))
    L, dL_dY = run(Y, T, w)
    assert L.dtype == dL_dY.dtype == dtype
    # The logarithm of a sum near 1, and a probability near 1 less a target, have the digits of 1.
    eps = np.finfo(dtype).eps
    many = 200 if loss.name == "gaussian_nll" else 30  # a small variance is a sum of the digits of 1
    # A rate less a target has the digits of the rate; smoothed targets are added up to 1.
    size = 50 if loss.name == "poisson" or getattr(loss, "label_smoothing", 0) else 4
    near = size * eps / N * (2 if weighted else 1)
    np.testing.assert_allclose(L, expected[0], rtol=many * eps, atol=2 * eps, err_msg=case)
    np.testing.assert_allclose(dL_dY, expected[1], rtol=many * eps, atol=near, err_msg=case)


@pytest.mark.parametrize("name", sorted(Loss.by_name))
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_losses_of_what_is_not_finite_are_not_finite(name, bad):
    """A training that diverges must be seen."""
    loss = gpubp.loss_by_name(name)
    for K in (2, 100):
        Y = np.ones((20, K * loss.heads), "float32")
        Y[3, 1] = bad
        T = loss.example_targets(np.random.default_rng(0), (20, K)).astype("float32")
        T[3] = 0
        with np.errstate(invalid="ignore"):
            L, _ = loss.forward(Y, T)
        assert not np.isfinite(L)


@pytest.mark.parametrize("rates", [0.1, [0.1, 0.2, 0.05]])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("P", [1, 33, 5000])
@pytest.mark.parametrize("settings", [("sgd", {}), ("sgd", {"momentum": 0.9}),
                                      ("sgd", {"momentum": 0.9, "nesterov": True}), ("adam", {}),
                                      ("adamw", {"weight_decay": 0.3}), ("rmsprop", {"epsilon": 0.1}),
                                      ("rmsprop", {"momentum": 0.9, "epsilon": 0.1}),
                                      ("lion", {"weight_decay": 0.3})])  # fmt: skip
@pytest.mark.parametrize("clip_norm", [None, 3.0])
def test_optimizers(settings, clip_norm, P, dtype, rates, launches):
    name, options = settings
    shape = (3, P) if isinstance(rates, list) else (P,)

    def run(dtype):
        theta, gradient = random(*shape).astype(dtype), np.empty(shape, dtype)
        optimizer = gpubp.optimizer_by_name(name, learning_rate=rates, clip_norm=clip_norm, **options)
        for step in range(5):
            gradient[...] = random(*shape, seed=step + 1)
            optimizer.update(theta, gradient, P * 2 // 3)
        return theta, optimizer.state

    expected = in_numpy(lambda: run("float64"))
    theta, state = run(dtype)
    assert_close(theta, expected[0], dtype, scale=5)
    for key, array in state.items():
        assert_close(array, expected[1][key], dtype, scale=5)
    clipping = [] if clip_norm is None else ["squares", "clip_factors"]
    assert launches == [*clipping, name.removesuffix("w")] * 5


def test_every_optimizer_has_a_kernel():
    tested = {"sgd", "adam", "adamw", "rmsprop", "lion"}
    assert set(Optimizer.by_name) == tested


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lead", [(), (3,)])
@pytest.mark.parametrize("P", [1, 7, 5000])
def test_penalty(P, lead, dtype, launches):
    W = random(*lead, P + 4, dtype=dtype)[..., :P]
    dL_dW = random(*lead, P + 4, dtype=dtype, seed=1)[..., :P]
    L = random(*lead, dtype=dtype, seed=2)
    L = np.asarray(L, dtype)  # without axes, a number
    wide = in_numpy(lambda: add_l2(W.astype("f8"), 0.3, None, L.astype("f8"))), dL_dW.astype("f8") + 0.3 * W
    assert_close(add_l2(W, 0.3, None, L.copy()), wide[0], dtype)
    assert_close(add_l2(W, 0.3, dL_dW, L), wide[0], dtype)
    assert_close(dL_dW, wide[1], dtype)
    assert launches == ["add_l2", "total"] * 2


def test_arrays_that_no_kernel_takes_are_computed_in_numpy(launches):
    X = random(9, 20, dtype="float32")[:, ::2]
    Y, _ = gpubp.Sigmoid().forward(X)
    np.testing.assert_allclose(Y, 1 / (1 + np.exp(-X.astype("f8"))), rtol=1e-6)
    out = np.empty((9, 9), "float32")
    np.testing.assert_allclose(gemm.matmul(X, X.T[::-1][::-1], out), X @ X.T, rtol=1e-5)
    assert launches == []


def test_a_subclass_with_other_maths_does_not_inherit_the_kernel():
    class Doubled(gpubp.Sigmoid):
        def evaluate(self, xp, X, out, scratch):
            super().evaluate(xp, X, out, scratch)
            xp.multiply(out, 2, out=out)

    try:
        Y, _ = Doubled().forward(np.zeros((2, 3)))
        np.testing.assert_array_equal(Y, 1)
    finally:
        del Layer.by_name["Doubled"]
