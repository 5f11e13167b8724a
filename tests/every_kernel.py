"""Launches every CUDA kernel, and trains with all of them, against the CPU in float64: a program, not a test.

Run ``python tests/every_kernel.py`` on a machine with a GPU, by itself or under a tool that watches it, such as
``compute-sanitizer --tool memcheck python tests/every_kernel.py --without-pool --quick``. With ``--stand-in`` the
kernels run on the host. It ends with exit code 1 where a number is wrong, a kernel was never launched, or a step was
not captured. ``--compile`` does nothing but compile all of them, in as many processes as there are cores: whatever runs
afterwards finds them in CuPy's cache.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from kernel_names import all_kernels  # noqa: E402

import gpubp  # noqa: E402
from gpubp import cublas, cuda  # noqa: E402
from gpubp.losses import penalty  # noqa: E402
from gpubp.ops import (  # noqa: E402
    activation,
    batch_norm,
    combine,
    dropout,
    elementwise,
    embedding,
    gather,
    gemm,
    layer_norm,
    random,
    rows,
    softmax,
)

DTYPES = ("float32", "float64")
TOLERANCES = {"float32": 5e-5, "float64": 1e-10}
"""Of single operations, as a share of the largest number."""
TRAINED = {"float32": 1e-3, "float64": 1e-9}
"""Of parameters after a training."""
SHAPES = ((1, 1), (7, 1), (1, 33), (33, 7), (300, 10), (65, 128), (7, 1025), (4000, 12))
QUICK_SHAPES = ((33, 7), (300, 12), (7, 1025))
ACTIVATIONS = ("sigmoid", "tanh", "relu", "leaky_relu", "identity", "elu", "gelu", "silu", "softplus")
LOSSES = ("softmax_cross_entropy", "binary_cross_entropy", "squared_error")
MORE_LOSSES = ("absolute_error", "huber", "quantile", "poisson", "gaussian_nll")
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "SGD": lambda: gpubp.SGD(0.05),
    "SGD with momentum": lambda: gpubp.SGD(0.05, 0.9),
    "SGD with Nesterov's momentum": lambda: gpubp.SGD(0.05, 0.9, nesterov=True),
    # With the usual epsilon, rounding of a gradient near zero turns a whole step around.
    "Adam": lambda: gpubp.Adam(0.01, epsilon=1e-3),
    "RMSprop, clipped": lambda: gpubp.RMSprop(0.01, epsilon=1e-2, clip_norm=0.1),
    # Where a gradient is near zero, rounding chooses its sign, and with it a whole step.
    "Lion": lambda: gpubp.Lion(1e-5, average=0.9),
}
INPUTS = ("float32", "uint8", "float16", "float64")


class Checks:
    """What was compared, and what was wrong.

    Attributes:
        done: How many arrays were compared.
        wrong: What differs, in words.
        launched: Every kernel that was launched, as C++ names it.
    """

    def __init__(self) -> None:
        self.done = 0
        self.wrong: list[str] = []
        self.launched: set[str] = set()

    def close(self, what: str, found: Any, expected: Any, tolerance: float) -> None:
        """Note whether an array is another than expected, by more than so much of its largest number (or of 1)."""
        self.done += 1
        found, expected = gpubp.to_host(found), np.asarray(expected)
        if found.shape != expected.shape:
            self.wrong.append(f"{what}: shape {found.shape} instead of {expected.shape}")
            return
        apart = np.abs(found.astype(np.float64) - expected).max(initial=0.0)
        allowed = tolerance * max(1.0, float(np.abs(expected).max(initial=0.0)))
        if not apart <= allowed:
            self.wrong.append(f"{what}: off by {apart:.1e}, allowed is {allowed:.1e}")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Note the kernels that are launched meanwhile."""
        function = cuda.function

        def noted(stem: str, kernel: str) -> Any:
            self.launched.add(kernel)
            return function(stem, kernel)

        cuda.function = noted
        try:
            yield
        finally:
            cuda.function = function


class Place:
    """Where the arrays of one round of operations lie: on the device, in a dtype, at the start of a buffer or not."""

    def __init__(self, dtype: str, off: int) -> None:
        self.dtype, self.off = dtype, off
        self.xp = gpubp.resolve_device("cuda").module
        self.rng = np.random.default_rng(0)
        self.words = f"{dtype}, {off} elements off"

    def dtype_of(self, number: float) -> Any:
        """A number in this place's dtype."""
        return np.dtype(self.dtype).type(number)

    def device(self, array: Any) -> Any:
        """A copy on the device, up to the last element of its buffer."""
        host = np.asarray(array)
        buffer = self.xp.empty(host.size + self.off, host.dtype)
        placed = buffer[self.off :].reshape(host.shape)
        placed[...] = self.xp.asarray(host)
        return placed

    def normal(self, *shape: int) -> tuple[Any, Any]:
        """Standard normal numbers: on the device, and in float64 on the host, where they are the same numbers."""
        host = self.rng.standard_normal(shape).astype(self.dtype)
        return self.device(host), host.astype(np.float64)

    def empty(self, *shape: int) -> tuple[Any, Any]:
        """Room for a result, which holds NaN before: on the device, and in float64 on the host."""
        return self.device(np.full(shape, np.nan, self.dtype)), np.full(shape, np.nan)


def operations(checks: Checks, place: Place, members: int | None, shape: tuple[int, int]) -> None:
    """Every operation once, on matrices of one shape."""
    lead = () if members is None else (members,)
    N, n = shape
    full, row = (*lead, N, n), (*lead, n)
    where = f"{full}, {place.words}"
    tolerance = TOLERANCES[place.dtype] * max(1.0, N**0.5 / 8)  # sums of N terms

    def close(what: str, found: Any, expected: Any) -> None:
        checks.close(f"{what} of {where}", found, expected, tolerance)

    for name, biased in itertools.product(ACTIVATIONS, (True, False)):
        function = gpubp.activation_by_name(name)
        (Z, Z_host), (b, b_host), (Y, Y_host) = place.normal(*full), place.normal(*row), place.empty(*full)
        (dL_dY, dL_dY_host), (dL_dZ, dL_dZ_host), (dL_db, dL_db_host) = (
            place.normal(*full), place.empty(*full), place.empty(*row),
        )  # fmt: skip
        both = []
        for xp, arrays in (
            (place.xp, (Z, b, Y, dL_dY, dL_dZ, dL_db)),
            (np, (Z_host, b_host, Y_host, dL_dY_host, dL_dZ_host, dL_db_host)),
        ):
            work = {
                key: xp.empty(size, arrays[0].dtype) for key, size in activation.workspace(function, xp, full).items()
            }
            Z_, b_, Y_, dL_dY_, dL_dZ_, dL_db_ = arrays
            activation.bias_activation(function, Z_, b_ if biased else None, Y_, work)
            saved = Y_ if function.derivative_of == "Y" else Z_
            activation.activation_backward(function, dL_dY_, saved, dL_dZ_, dL_db_ if biased else None, work)
            both.append((Y_, dL_dZ_, *([dL_db_] if biased else [])))
        for what, found, expected in zip(("Y", "dL_dZ", "dL_db"), *both, strict=False):
            close(f"{what} of {name}{' with a bias' if biased else ''}", found, expected)

    (X, X_host), (b, b_host) = place.normal(*full), place.normal(*row)
    (out, _), (Y, _) = place.empty(*row), place.empty(*full)
    sums = place.xp.empty(rows.partial_sums_shape(place.xp, full), X.dtype)
    close("column_sum", rows.column_sum(X, out, sums), X_host.sum(axis=-2))
    close(
        "standardize",
        rows.standardize(X, b, abs(b) + 1, Y),
        (X_host - b_host[..., None, :]) / (abs(b_host) + 1)[..., None, :],
    )
    normalization(close, place, members, shape)
    close("add_bias", rows.add_bias(X, b), X_host + b_host[..., None, :])
    X_host = X_host + b_host[..., None, :]
    (Y, Y_host), (sum_, _) = place.normal(*full), place.empty(*full)
    close("combine", combine.combine(Y, 0.25, X, 0.5), 0.25 * Y_host + 0.5 * X_host)
    close("combine from nothing", combine.combine(sum_, 0.0, X, 0.5), 0.5 * X_host)
    (L, L_host), (W, W_host) = place.normal(*lead), place.normal(*lead, N * n)
    dL_dW, dL_dW_host = place.normal(*lead, N * n)
    penalty.add_l2(W, 0.1, dL_dW, L, penalty.scratch_for(W))
    checks.close(f"penalty of {where}", L, L_host + 0.05 * (W_host**2).sum(axis=-1), 10 * tolerance)
    close("the penalty's gradient", dL_dW, dL_dW_host + 0.1 * W_host)
    for name, make in OPTIMIZERS.items():
        (theta, theta_host), (dL_dtheta, dL_dtheta_host) = place.normal(*lead, N * n), place.normal(*lead, N * n)
        make().update(theta, dL_dtheta, n)
        make().update(theta_host, dL_dtheta_host, n)
        checks.close(f"update by {name} of {where}", theta, theta_host, TRAINED[place.dtype])
    draw, (uniform, _) = place.xp.full(1, 3, np.int64), place.empty(*full)
    expected = random.uniform(np.empty(full, place.dtype), 7, np.full(1, 3))
    checks.close(f"uniform of {where}", random.uniform(uniform, 7, draw), expected, 0.0)
    batch_norms(place, full, close)
    (Y, _), (mask, _) = place.empty(*full), place.empty(*full)
    dropout.dropout(X, mask, Y, 0.3, 7, draw)
    checks.close(f"mask of {where}", mask, (expected >= place.dtype_of(0.3)) * place.dtype_of(1 / 0.7), 0.0)
    close("dropout", Y, X_host * gpubp.to_host(mask))
    (A, A_host), (B, B_host) = place.normal(*full), place.normal(*full)
    close("sum", elementwise.add(A, B, Y), A_host + B_host)
    close("product", elementwise.multiply(A, B, B), A_host * B_host)
    lookups(place, full, close)
    product = place.xp.empty((*lead, N, N), X.dtype)
    checks.close(
        f"product of {where}", gemm.matmul(X, X.mT, product), X_host @ np.matrix_transpose(X_host), 10 * tolerance
    )
    losses(checks, place, full, tolerance)
    gathers(checks, place, full, tolerance)


def normalization(close: Callable[[str, Any, Any], None], place: Place, members: int | None, shape: Any) -> None:
    """Softmax and layer normalisation, forward and backward; members that share the data, too."""
    lead = () if members is None else (members,)
    full = (*lead, *shape)
    for own in sorted({lead, ()}):
        both = []
        (X, X_host), (dL_dY, dL_dY_host) = place.normal(*own, *shape), place.normal(*full)
        (gamma, gamma_host), (beta, beta_host) = (place.normal(*lead, shape[1]) for _ in range(2))
        for xp, empty, given in (
            (place.xp, lambda *size: place.empty(*size)[0], (X, dL_dY, gamma, beta)),
            (np, lambda *size: np.full(size, np.nan), (X_host, dL_dY_host, gamma_host, beta_host)),
        ):
            X_, dL_dY_, gamma_, beta_ = given
            Y, hat, inverse, dL_dX = empty(*full), empty(*X_.shape), empty(*X_.shape[:-1]), empty(*full)
            work = {key: empty(*size) for key, size in layer_norm.workspace(xp, full).items()}
            layer_norm.layer_norm(X_, gamma_, beta_, 1e-2, Y, hat, inverse)
            layer_norm.layer_norm_backward(dL_dY_, gamma_, hat, inverse, dL_dX, work)
            product, sums = empty(*gamma_.shape), empty(*rows.partial_sums_shape(xp, full))
            both.append((Y, hat, inverse, dL_dX, rows.product_sum(dL_dY_, hat, product, sums)))
            if own == lead:
                P, dL_dS, of_rows = empty(*full), empty(*full), empty(*full[:-1])
                softmax.softmax_backward(dL_dY_, softmax.softmax(X_, P, of_rows), dL_dS, of_rows)
                both[-1] = (*both[-1], P, dL_dS)
        names = ("Y", "X_hat", "inverse_std", "dL_dX", "product_sum", "softmax", "softmax_backward")
        for what, found, expected in zip(names, *both, strict=False):
            close(f"{what} of rows, members of X {own},", found, expected)


def lookups(place: Place, full: tuple[int, ...], close: Callable[[str, Any, Any], None]) -> None:
    """Rows of a table by the indices in column 0, their backward, and columns that pass."""
    *lead, N, n = full
    C, members = 9, () if len(full) == 2 else full[:1]
    for own in sorted({members, ()}):
        indices = place.rng.integers(-1, C, (*own, N, n)).astype(np.float64)
        X, both = place.device(indices.astype(place.dtype)), []
        (W, W_host), (dL_dY, dL_dY_host) = place.normal(*lead, C, n), place.normal(*full)
        for side, (xp, X_, W_, d) in enumerate(((place.xp, X, W, dL_dY), (np, indices, W_host, dL_dY_host))):
            (Y, dL_dW), passed = (place.empty(*size)[side] for size in (full, (*lead, C, n))), place.empty(*full)[side]
            sums = xp.empty(embedding.partial_sums_shape(xp, full, (C, n)), d.dtype)
            embedding.lookup(X_, 0, W_, Y, 0)
            embedding.lookup_backward(d, 0, X_, 0, dL_dW, sums)
            both.append((Y, dL_dW, embedding.pass_columns(X_, 0, n, passed, 0)))
        for name, found, expected in zip(("lookup", "dL_dW of a lookup", "columns that pass"), *both, strict=True):
            close(name, found, expected)


def batch_norms(place: Place, full: tuple[int, ...], close: Callable[[str, Any, Any], None]) -> None:
    """Batch normalisation, forward and backward."""
    row, share = (*full[:-2], full[-1]), 1 / full[-2]
    (X, X_host), (dL_dY, dL_dY_host) = place.normal(*full), place.normal(*full)
    both, sums = [], batch_norm.partial_sums_shape
    gamma, beta, statistics = place.normal(*row), place.normal(*row), [place.normal(*row) for _ in range(2)]
    for side, (xp, X_, d, dtype) in enumerate(((place.xp, X, dL_dY, X.dtype), (np, X_host, dL_dY_host, np.float64))):
        mean, r, of_gamma, of_beta = (place.empty(*row)[side] for _ in range(4))
        (Y, dL_dX), running = (place.empty(*full)[side] for _ in range(2)), [array[side] for array in statistics]
        partial = xp.empty(sums(xp, full), dtype)
        batch_norm.statistics(X_, mean, r, *running, 0.3, 0.1, partial)
        batch_norm.normalize(X_, mean, r, gamma[side], beta[side], Y)
        batch_norm.gradients(d, X_, mean, r, of_gamma, of_beta, partial)
        batch_norm.input_gradient(d, X_, mean, r, gamma[side], of_gamma, of_beta, dL_dX, share)
        both.append((mean, r, *running, Y, of_gamma, of_beta, dL_dX))
    names = ("mean", "r", "running mean", "running variance", "Y", "dL_dgamma", "dL_dbeta", "dL_dX")
    for name, found, expected in zip(names, *both, strict=True):
        close(f"{name} of batch normalisation", found, expected)


def losses(checks: Checks, place: Place, full: tuple[int, ...], tolerance: float) -> None:
    """Every loss with its gradient: targets and weights of each member and of all, classes, and none of them."""
    K = full[-1]
    every_loss = [
        *map(gpubp.loss_by_name, (*LOSSES, *MORE_LOSSES)),
        gpubp.Quantile((0.1, 0.5, 0.8)),
        gpubp.BinaryCrossEntropy((2.0,) * K, label_smoothing=0.1),
        gpubp.SoftmaxCrossEntropy((2.0,) * K, label_smoothing=0.1),
    ]
    for loss, own, weighted in itertools.product(every_loss, (True, False), (True, False)):
        name, outputs = loss.name, (*full[:-1], loss.heads * K)
        shape = full if own else full[-2:]
        T = np.asarray(loss.example_targets(place.rng, shape)).astype(place.dtype).astype(np.float64)
        w = place.rng.uniform(0.5, 1, shape[:-1]).astype(place.dtype).astype(np.float64) if weighted else None
        targets = [("rows", T)]
        if name == "softmax_cross_entropy":
            targets.append(("classes", place.rng.integers(full[-1], size=shape[:-1])))
        for kind, given in targets:
            Y, Y_host = place.normal(*outputs)
            expected_L, saved = loss.forward(Y_host, given, w)
            expected = loss.backward(saved)
            buffers = loss.buffers(outputs, place.xp)
            out = {key: place.empty(*buffer.shape)[0] for key, buffer in buffers.items()}
            on_device = place.device(given if kind == "classes" else given.astype(place.dtype))
            L, saved = loss.forward(Y, on_device, None if w is None else place.device(w.astype(place.dtype)), out)
            more = f"{' of each member' if own else ''}{', weighted' if weighted else ''}"
            what = f"{name}, {kind}{more}, {full}, {place.words}"
            checks.close(f"L of {what}", L, expected_L, tolerance)
            checks.close(f"dL_dY of {what}", loss.backward(saved, out), expected, tolerance)


def gathers(checks: Checks, place: Place, full: tuple[int, ...], tolerance: float) -> None:
    """Examples and class indices by index, from every dtype that a data set may have."""
    N = full[-2]
    index = place.rng.integers(N, size=N + 3)
    on_device = place.device(index)
    for dtype in INPUTS:
        data = np.abs(place.rng.standard_normal(full) * 50).astype(dtype)
        out, _ = place.empty(*full[:-2], N + 3, full[-1])
        gather.gather(place.device(data), on_device, out, -2)
        with np.errstate(over="ignore"):
            expected = np.take(data, index, axis=-2).astype(place.dtype)
        checks.close(f"gather of {dtype} {full}, {place.words}", out, expected, 0.0)
    for dtype in ("int64", "int32", "uint8"):
        data = place.rng.integers(9, size=full).astype(dtype)
        picked = place.device(np.zeros((*full[:-2], N + 3, full[-1]), np.int64))
        gather.gather(place.device(data), on_device, picked, -2)
        checks.close(f"gather of {dtype} {full}, {place.words}", picked, np.take(data, index, axis=-2), 0.0)
        T = place.rng.integers(9, size=full[:-1]).astype(dtype)
        chosen = place.device(np.zeros((*full[:-2], N + 3), np.int64))
        gather.gather(place.device(T), on_device, chosen, -1)
        checks.close(f"gather of {dtype} classes, {full}, {place.words}", chosen, np.take(T, index, axis=-1), 0.0)


def data_of(kind: str, loss: str, members: int | None, of_classes: bool, N: int = 50) -> tuple[Any, Any, Any]:
    """Examples of a dtype, targets and weights, on the host."""
    rng, lead = np.random.default_rng(1), () if members is None else (members,)
    X = rng.standard_normal((*lead, N, 6))
    X = (np.abs(X) * 60).astype(kind) if kind == "uint8" else X.astype(kind)
    T: Any = rng.dirichlet(np.ones(3), size=(*lead, N))
    if loss == "softmax_cross_entropy":
        T = rng.integers(3, size=(*lead, N))
        if not of_classes:
            T = np.eye(3)[T]
    return X, T, rng.uniform(0.5, 1, (*lead, N))


def trainings(checks: Checks, every: int) -> None:
    """Each activation with each loss and each optimizer: captured and step by step, against float64 on the CPU.

    What else there is to choose (dtypes, stacks, weights, targets, streaming, micro-batches) goes around.

    Args:
        checks: Where to note what differs.
        every: 1 for all of them; k for one of k.
    """
    for k, (name, loss, method) in enumerate(itertools.product(ACTIVATIONS, LOSSES, OPTIMIZERS)):
        if k % every:
            continue
        dtype, kind = DTYPES[(k + k // 4) % 2], INPUTS[k // 2 % 4]
        members, weighted, of_classes = (None, 3)[k // 3 % 2], k // 5 % 2 == 0, k // 7 % 2 == 0
        resident, micro = (True, False, None)[k % 3], (None, 7)[k // 4 % 2]
        X, T, w = data_of(kind, loss, members, of_classes)
        if kind == "float64" and dtype == "float32":
            X = X.astype("float32").astype("float64")
        host = gpubp.mlp(
            [6, 33, 7, 3], activation=name, loss=loss, members=members, dtype="float64", device="cpu", l2=0.01,
            standardize=kind == "uint8", rng=k,
        )  # fmt: skip
        captured, by_step = (host.copy(device="cuda", dtype=dtype) for _ in range(2))
        what = (
            f"{name}, {loss}, {method}, {dtype}, examples in {kind}, members={members}, resident={resident}, "
            f"micro_batch_size={micro}"
        )
        settings = {"batch_size": 16, "progress": False, "rng": k}
        run = {"epochs": 3, "sample_weight": w if weighted else None}
        histories = []
        for net, more in (
            (host, {}),
            (captured, {"resident": resident, "micro_batch_size": micro}),
            (by_step, {"reduce_gradients": lambda _: None}),
        ):
            trainer = gpubp.Trainer(net, OPTIMIZERS[method](), **settings, **more)
            histories.append(trainer.fit(X, T, **run))
        for net, history, how in ((captured, histories[1], "captured"), (by_step, histories[2], "step by step")):
            checks.close(f"{what}, {how}: parameters", net.theta, host.theta, TRAINED[dtype])
            checks.close(f"{what}, {how}: losses", np.array(history["loss"]), histories[0]["loss"], TRAINED[dtype])
        checks.close(f"{what}: predictions", captured.predict(X), host.predict(X), TRAINED[dtype])
        if captured.plan.why_not_captured is not None:
            checks.wrong.append(f"{what}: not captured: {captured.plan.why_not_captured}")


def layers_apart(checks: Checks) -> None:
    """Layers that are not fused with a neighbour, one of them without a bias, on batches of several chunks."""
    rng = np.random.default_rng(2)
    X, T = rng.standard_normal((6000, 6)), rng.standard_normal((6000, 3))
    layers = [gpubp.Tanh(), gpubp.Dense(6, 33), gpubp.Sigmoid(), gpubp.LeakyReLU(), gpubp.Dense(33, 3)]
    host = gpubp.Network(layers, "squared_error", dtype="float64", device="cpu", l2=0.01)
    for dtype in DTYPES:
        nets = host.copy(), host.copy(device="cuda", dtype=dtype)
        for net in nets:
            gpubp.fit(net, X, T, optimizer=gpubp.SGD(0.05), epochs=2, batch_size=2500, progress=False)
        checks.close(f"layers apart, {dtype}: parameters", nets[1].theta, nets[0].theta, TRAINED[dtype])


def planted() -> None:
    """A kernel of ours writes behind the end of an array: a tool that does not tell it does not see our kernels."""
    xp = gpubp.resolve_device("cuda").module
    small, size = xp.zeros(64, np.float32), 1 << 20
    scalars = np.float32(1), np.float32(1)
    arguments = (small, small, 1, size, 0, 0, *scalars)
    cuda.launch("combine", "combine<float, 1>", (size // 256, 1, 1), (256, 1), arguments)
    xp.cuda.Device().synchronize()


def work(checks: Checks, quick: bool) -> None:
    """All of it, on the current device."""
    shapes: Sequence[tuple[int, int]] = QUICK_SHAPES if quick else SHAPES
    with checks.watching():
        for dtype, off, members, shape in itertools.product(DTYPES, (0, 1), (None, 3), shapes):
            operations(checks, Place(dtype, off), members, shape)
        tell(checks, "operations")
        trainings(checks, 7 if quick else 1)
        tell(checks, "trainings")
        layers_apart(checks)
        tell(checks, "layers apart")
    checks.wrong += [f"never launched: {name}" for _, name in all_kernels() if name not in checks.launched]


def compile_one(stem: str, kernel: str) -> float | str:
    """Compile a kernel for the device: how many seconds that took, or what is wrong."""
    began = time.perf_counter()
    try:
        cuda.function(stem, kernel)
    except Exception as error:  # of the compiler, of the device; not every one could be sent back
        return f"{type(error).__name__}: {error}"
    return time.perf_counter() - began


def compile_all(pool: Any) -> list[str]:
    """Compile every kernel in the processes of a pool; what failed, in words."""
    seconds: dict[str, float] = {}
    wrong = []
    names = {pool.submit(compile_one, *kernel): kernel[1] for kernel in all_kernels()}
    for done in as_completed(names):
        if isinstance(taken := done.result(), float):
            seconds[names[done]] = taken
        else:
            wrong.append(f"{names[done]}: {taken}")
    slowest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:3]
    print(
        f"{len(seconds)} of {len(names)} kernels compiled in {time.perf_counter() - BEGAN:.1f} s; the slowest: "
        + ", ".join(f"{name} {seconds[name]:.1f} s" for name in slowest)
    )
    return wrong


def tell(checks: Checks, what: str) -> None:
    """Say how far it is."""
    kernels = f"{len(checks.launched)} kernels launched"
    print(f"{time.perf_counter() - BEGAN:6.1f} s: {what} done, {kernels}, {checks.done} arrays compared", flush=True)


BEGAN = time.perf_counter()


def main(arguments: Sequence[str] | None = None) -> int:
    """Do it, say what was wrong, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--stand-in", action="store_true", help="run the kernels on the host, behind a stand-in for CuPy"
    )
    parser.add_argument("--quick", action="store_true", help="fewer shapes and trainings, but every kernel")
    parser.add_argument(
        "--without-pool", action="store_true", help="every array in memory of its own, so that an overrun is noticed"
    )
    parser.add_argument("--compile", action="store_true", help="compile every kernel, and no more")
    parser.add_argument("--list", action="store_true", help="print every kernel that was launched")
    parser.add_argument("--names", action="store_true", help="print the name of every kernel there is, and no more")
    parser.add_argument(
        "--planted", action="store_true", help="write behind the end of an array, and no more: a tool must notice"
    )
    chosen = parser.parse_args(arguments)
    if chosen.names:
        print("\n".join(sorted({name.partition("<")[0] for _, name in all_kernels()})))
        return 0
    checks = Checks()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # that a step is not captured is told below
        if chosen.stand_in:
            import fake_cupy

            stack.enter_context(fake_cupy.installed())
        elif reason := gpubp.why_no_cuda():
            print(f"no CUDA device: {reason}")
            return 2
        if chosen.without_pool:
            import cupy

            cupy.cuda.set_allocator(None)
        if chosen.planted:
            planted()
            return 0
        if chosen.compile:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            with ProcessPoolExecutor(cores, multiprocessing.get_context("spawn")) as pool:
                return told(compile_all(pool))
        with gpubp.resolve_device("cuda").activate():
            work(checks, chosen.quick)
            reason = cublas.why_no_handle()
        if reason is not None:
            checks.wrong.insert(0, f"no step can be captured, there is no cuBLAS but CuPy's: {reason}")
    for kernel in sorted(checks.launched) if chosen.list else []:
        print(f"launched {kernel}")
    print(f"{len(checks.launched)} kernels launched, {checks.done} arrays compared, {len(checks.wrong)} wrong")
    return told(checks.wrong)


def told(wrong: list[str]) -> int:
    """Print what was wrong, and return the exit code."""
    for words in wrong[:50]:
        print(f"WRONG: {words}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
