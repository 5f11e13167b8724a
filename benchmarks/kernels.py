"""Single operations, each on arrays of a given size that are there already: what the kernel benchmarks time.

Every operation brings its own cost data (`gpubp.cost.Cost`), from which bytes and FLOPs per second follow and the
share of the machine's ceiling. On a GPU an operation of 16 MiB and more takes another set of arrays in each call, and
the sets together are several times as large as the card's cache: what is timed comes from memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, cycle, islice, pairwise, product
from typing import Any

import numpy as np

import gpubp
from gpubp import cuda
from gpubp.cost import Cost
from gpubp.losses import penalty
from gpubp.ops import activation as activation_op
from gpubp.ops import combine as combine_op
from gpubp.ops import gather as gather_op
from gpubp.ops import gemm
from gpubp.ops import random as random_op
from gpubp.ops import rows as rows_op

from .cells import NETS
from .timing import Part, synchronize

COLUMNS = 128
"""Width of the matrices of the activations."""
CLASSES = 10
"""Width of the matrices of the losses."""
FEATURES = 784
"""Width of the examples that are gathered."""
SIZES = {"64 KiB": 2**16, "1 MiB": 2**20, "16 MiB": 2**24, "64 MiB": 2**26}
"""Bytes of the array that an operation is about."""
GPU_SIZES = {**SIZES, "256 MiB": 2**28}
"""And where there is a GPU."""
FROM_MEMORY = 2**24
"""From so many bytes on, on a GPU, ..."""
ROTATED = 2**28
"""... the sets of arrays together have so many: five times the cache of a large card."""
GRAPH_CALLS = 16
"""Calls in a CUDA graph, at least: its launch is little beside them."""
MATMUL_BATCHES = (32, 512, 8192)
BLOCK_NUMBERS = 2**22
"""So many random numbers are made on the host, and repeated."""


@dataclass
class Kernel:
    """One operation, ready to run again and again.

    Attributes:
        device: Where it runs.
        calls: Each runs it once, the next one on other arrays; then from the beginning.
        costs: What one run needs at least; asked for only when it has been timed.
    """

    device: gpubp.Device
    calls: tuple[Callable[[], Any], ...]
    costs: Callable[[], list[Cost]] = field(repr=False)

    def __post_init__(self) -> None:
        self._around = cycle(self.calls)

    def run(self, times: int) -> None:
        """Run it so many times, and wait for the end."""
        for call in islice(self._around, times):
            call()
        synchronize(self.device)

    def timed(self) -> tuple[Part, int]:
        """What is to be timed, and how often that runs the operation.

        On a GPU it is a CUDA graph of several calls: one by one the host might take longer than the device. Where an
        operation can't be captured, being array maths, it is called one by one.
        """
        self.run(len(self.calls))  # kernels are compiled, state is made
        if not self.device.is_cuda:
            return self.run, 1
        count = -(-GRAPH_CALLS // len(self.calls)) * len(self.calls)
        stream = self.device.module.cuda.Stream(non_blocking=True)
        try:
            with stream:
                self.calls[0]()  # a product needs a handle of cuBLAS for the stream, before it is captured
            stream.synchronize()
            graph = cuda.captured(stream, lambda: [call() for call in islice(cycle(self.calls), count)])
        except Exception:  # of the driver, of CuPy: whatever does not let it be captured
            return self.run, 1

        def part(times: int) -> None:
            for _ in range(times):
                graph.launch(stream)
            synchronize(self.device)

        return part, count


Maker = Callable[[int, str, str, int], Kernel]
"""(bytes, device, dtype, rows of the data set) -> the kernel."""


def operations() -> dict[str, Maker]:
    """Every operation but the matrix product, by name: those of each activation, loss and optimizer there is."""
    activations = sorted(
        name for name, kind in gpubp.Layer.by_name.items() if issubclass(kind, gpubp.Activation) and in_library(kind)
    )
    losses = sorted(name for name, kind in gpubp.Loss.by_name.items() if in_library(kind))
    optimizers = sorted(name for name, kind in gpubp.Optimizer.by_name.items() if in_library(kind))
    momentum: dict[str, dict[str, Any]] = {
        "sgd momentum": {"momentum": 0.9},
        "sgd nesterov": {"momentum": 0.9, "nesterov": True},
        "sgd clipped": {"clip_norm": 1.0},
    }
    layers: dict[str, Callable[[], gpubp.Layer]] = {
        "Softmax": gpubp.Softmax,
        "LayerNorm": lambda: gpubp.LayerNorm(COLUMNS),
        "BatchNorm": lambda: gpubp.BatchNorm(COLUMNS),
        "Dropout": lambda: gpubp.Dropout(0.1),
        "Embedding": lambda: gpubp.Embedding(COLUMNS, {0: (1000, 32), 1: (10, 8)}),
        "Residual": lambda: gpubp.Residual([gpubp.LayerNorm(COLUMNS)]),
    }
    makers: dict[str, Maker] = {
        **{f"bias_activation {name}": partial(bias_activation, name) for name in activations},
        **{f"activation_backward {name}": partial(activation_backward, name) for name in activations},
        **{f"loss {name}": partial(loss, name, True) for name in losses},
        "loss softmax_cross_entropy rows": partial(loss, "softmax_cross_entropy", False),
        "penalty": l2_penalty,
        "gather": partial(gather, None),
        **{f"gather from {name}": partial(gather, name) for name in ("uint8", "float16", "float32", "float64")},
        "gather classes": gather_classes,
        **{f"layer {name}": partial(layer, make) for name, make in layers.items()},
        "add_bias": add_bias,
        "standardize": standardize,
        "column_sum": column_sum,
        "combine": combine,
        "uniform": uniform,
        **{f"update {name}": partial(update, name, {}) for name in optimizers},
        **{f"update {name}": partial(update, "sgd", settings) for name, settings in momentum.items()},
    }
    return {name: partial(rotated, maker) for name, maker in makers.items()}


def in_library(kind: type) -> bool:
    """Whether a class is the library's own: those of a user or of a test register themselves too."""
    return kind.__module__.startswith("gpubp.")


def rotated(make: Maker, size: int, device: str, dtype: str, data_rows: int) -> Kernel:
    """The kernel on as many sets of arrays as it takes to get past a GPU's cache; elsewhere on one."""
    first = make(size, device, dtype, data_rows)
    count = -(-ROTATED // size) if first.device.is_cuda and size >= FROM_MEMORY else 1
    others = [make(size, device, dtype, data_rows) for _ in range(count - 1)]
    calls = tuple(
        call for several in zip(*(kernel.calls for kernel in (first, *others)), strict=True) for call in several
    )
    return Kernel(first.device, calls, first.costs)


def bias_activation(name: str, size: int, device: str, dtype: str, _: int) -> Kernel:
    """``Y = f(Z + b)``, in place where a training step runs it in place."""
    function = gpubp.activation_by_name(name)
    random = Numbers(device, dtype)
    shape = (rows_in(size, COLUMNS, dtype), COLUMNS)
    Z = random.normal(shape)
    in_place = function.derivative_of == "Y"
    # Run again and again in place, f alone would drive many an array to zero or to denormal numbers: b keeps it alive.
    # Where Z stays beside Y and is added to, a bias of zero keeps it from drifting away.
    b = random.normal((COLUMNS,)) if in_place else 0 * random.normal((COLUMNS,))
    Y = Z if in_place else random.xp.empty_like(Z)
    workspace = _workspace(function, random, shape)
    return Kernel(
        random.device,
        (lambda: activation_op.bias_activation(function, Z, b, Y, workspace),),
        lambda: function.costs(shape, Z.itemsize)[0],
    )


def activation_backward(name: str, size: int, device: str, dtype: str, _: int) -> Kernel:
    """dL_dZ and dL_db, into an array of its own: in place the gradient would fade away, run by run."""
    function = gpubp.activation_by_name(name)
    random = Numbers(device, dtype)
    shape = (rows_in(size, COLUMNS, dtype), COLUMNS)
    dL_dY, Z = random.normal(shape), random.normal(shape)
    workspace = _workspace(function, random, shape)
    saved = random.xp.empty_like(Z)
    if function.derivative_of == "Y":
        activation_op.bias_activation(function, Z, None, saved, workspace)
    else:
        saved[...] = Z
    dL_dZ, dL_db = Z, random.normal((COLUMNS,))
    return Kernel(
        random.device,
        (lambda: activation_op.activation_backward(function, dL_dY, saved, dL_dZ, dL_db, workspace),),
        lambda: function.costs(shape, Z.itemsize)[1],
    )


def loss(name: str, of_classes: bool, size: int, device: str, dtype: str, _: int) -> Kernel:
    """A loss forward and backward, into buffers laid out as in a training step.

    Args:
        name: The loss.
        of_classes: Whether the softmax's targets are class indices, as the nets' data sets have them; else rows.
        size: Bytes of the scores.
        device: Where.
        dtype: Of the scores.
    """
    function = gpubp.Loss.by_name[name].examples()[0]
    random = Numbers(device, dtype)
    shape = (rows_in(size, CLASSES, dtype), CLASSES)
    width = CLASSES // function.heads  # of the targets
    Y = random.normal(shape)
    block = min(shape[0], BLOCK_NUMBERS // CLASSES)
    if name == "softmax_cross_entropy" and of_classes:
        given = random.repeated(random.rng.integers(CLASSES, size=block), (shape[0],))
    else:
        targets = np.asarray(function.example_targets(random.rng, (block, width)), dtype)
        given = random.repeated(targets, (shape[0], width))
    T = function.targets(given, shape, Y.dtype)
    buffers = function.buffers(shape, random.xp)
    out = {key: random.xp.empty(buffer.shape, Y.dtype) for key, buffer in buffers.items()}
    out |= {key: out[buffer.overwrites] for key, buffer in buffers.items() if buffer.overwrites in out}

    def call() -> None:
        _, saved = function.forward(Y, T, None, out)
        function.backward(saved, out)

    return Kernel(random.device, (call,), lambda: function.costs(shape, Y.itemsize))


def layer(make: Callable[[], gpubp.Layer], size: int, device: str, dtype: str, _: int) -> Kernel:
    """A layer forward in training, and backward, into buffers of its own."""
    tried, random = make(), Numbers(device, dtype)
    shape = (rows_in(size, COLUMNS, dtype), COLUMNS)
    block = tried.example_inputs(random.rng, (min(shape[0], BLOCK_NUMBERS // COLUMNS), COLUMNS))
    X = random.repeated(block.astype(dtype), shape)
    tried.initialize(0, dtype=dtype, device=device)
    draws = random_op.Draws(0, random.xp)
    out = {name: random.xp.empty(b.shape, X.dtype) for name, b in tried.buffers(shape, random.xp).items()}
    dL_dY = random.normal(out["Y"].shape)

    def call() -> Any:
        _, saved = tried.forward(X, out, training=True, rng=draws)
        return tried.backward(dL_dY, saved, out)

    return Kernel(random.device, (call,), lambda: list(chain(*tried.costs(shape, X.itemsize))))


def l2_penalty(size: int, device: str, dtype: str, _: int) -> Kernel:
    """The L2 penalty of so many weights, with its gradient."""
    random = Numbers(device, dtype)
    shape = (size // np.dtype(dtype).itemsize,)
    W, dL_dW, L = random.normal(shape), random.normal(shape), random.normal(())
    scratch = penalty.scratch_for(W)
    return Kernel(
        random.device,
        (lambda: penalty.add_l2(W, 1e-6, dL_dW, L, scratch),),
        lambda: [penalty.cost("penalty", shape, W.itemsize)],
    )


def gather(given: str | None, size: int, device: str, dtype: str, data_rows: int) -> Kernel:
    """Examples at random places of a data set, others in each run.

    Args:
        given: dtype of the data set; None for that of the result.
        size: Bytes of the result.
        device: Where.
        dtype: Of the result.
        data_rows: Examples in the data set, at least.
    """
    random = Numbers(device, dtype)
    shape = (rows_in(size, FEATURES, dtype), FEATURES)
    X = random.normal((max(data_rows, shape[0]), FEATURES))
    if given == "uint8":
        X = (abs(X) * 64).astype(given)
    elif given is not None:
        X = X.astype(given)
    out = random.xp.empty(shape, dtype)
    return Kernel(
        random.device,
        tuple(partial(gather_op.gather, X, index, out, -2) for index in random.batches(len(X), shape[0])),
        lambda: [gather_op.cost("gather", shape, out.itemsize, X.itemsize)],
    )


def gather_classes(size: int, device: str, dtype: str, data_rows: int) -> Kernel:
    """Class indices at random places, others in each run."""
    random, count = Numbers(device, dtype), max(1, size // 8)
    N = max(data_rows, count)
    T = random.repeated(random.rng.integers(CLASSES, size=min(N, BLOCK_NUMBERS)), (N,))
    out = random.xp.empty(count, T.dtype)
    return Kernel(
        random.device,
        tuple(partial(gather_op.gather, T, index, out, -1) for index in random.batches(N, count)),
        # The index is as long as the result here: it counts too.
        lambda: [gather_op.cost("gather", (count,), 8, 16)],
    )


def add_bias(size: int, device: str, dtype: str, _: int) -> Kernel:
    """``Y += b``; b is zero, so that Y stays where it is."""
    random, shape = Numbers(device, dtype), (rows_in(size, COLUMNS, dtype), COLUMNS)
    Y, b = random.normal(shape), 0 * random.normal((COLUMNS,))
    return Kernel(
        random.device,
        (lambda: rows_op.add_bias(Y, b),),
        lambda: [rows_op.cost("add_bias", shape, Y.itemsize, written=True)],
    )


def standardize(size: int, device: str, dtype: str, _: int) -> Kernel:
    """``Y = (X - mean) / scale``."""
    random, shape = Numbers(device, dtype), (rows_in(size, COLUMNS, dtype), COLUMNS)
    X, mean, scale = random.normal(shape), random.normal((COLUMNS,)), abs(random.normal((COLUMNS,))) + 0.5
    Y = random.xp.empty_like(X)
    return Kernel(
        random.device,
        (lambda: rows_op.standardize(X, mean, scale, Y),),
        lambda: [rows_op.cost("standardize", shape, X.itemsize, written=True)],
    )


def column_sum(size: int, device: str, dtype: str, _: int) -> Kernel:
    """``out = X.sum(axis=-2)``."""
    random, shape = Numbers(device, dtype), (rows_in(size, COLUMNS, dtype), COLUMNS)
    X, out = random.normal(shape), random.normal((COLUMNS,))
    partial_sums = random.xp.empty(rows_op.partial_sums_shape(random.xp, shape), X.dtype)
    return Kernel(
        random.device,
        (lambda: rows_op.column_sum(X, out, partial_sums),),
        lambda: [rows_op.cost("column_sum", shape, X.itemsize, written=False)],
    )


def combine(size: int, device: str, dtype: str, _: int) -> Kernel:
    """A weighted sum of two gradients."""
    random, shape = Numbers(device, dtype), (size // np.dtype(dtype).itemsize,)
    out, X = random.normal(shape), random.normal(shape)
    return Kernel(
        random.device,
        (lambda: combine_op.combine(out, 0.5, X, 0.5),),
        lambda: [Cost("combine", 3 * out.size, 3 * out.nbytes)],
    )


def uniform(size: int, device: str, dtype: str, _: int) -> Kernel:
    """Uniform random numbers, the same in each run."""
    random = Numbers(device, dtype)
    out = random.normal((size // np.dtype(dtype).itemsize,))
    draw = random.xp.zeros(1, np.int64)
    return Kernel(
        random.device,
        (lambda: random_op.uniform(out, 0, draw),),
        lambda: [random_op.cost("uniform", out.shape, out.itemsize)],
    )


def update(name: str, settings: dict[str, Any], size: int, device: str, dtype: str, _: int) -> Kernel:
    """One update of so many parameters by an optimizer, with default settings but for those given."""
    optimizer = gpubp.optimizer_by_name(name, **settings)
    random = Numbers(device, dtype)
    shape = (size // np.dtype(dtype).itemsize,)
    theta, dL_dtheta = random.normal(shape), random.normal(shape)

    return Kernel(
        random.device,
        (
            launched(optimizer, theta, dL_dtheta)
            if random.device.is_cuda
            else lambda: optimizer.update(theta, dL_dtheta),
        ),
        lambda: optimizer.costs(shape, theta.itemsize),
    )


def launched(optimizer: gpubp.Optimizer, theta: Any, dL_dtheta: Any) -> Callable[[], None]:
    """An update as its kernel alone: in a training step of a CUDA graph, what tells it the rate has run before."""

    def launch() -> None:
        if not optimizer.steps or not optimizer.launch(theta, dL_dtheta):
            optimizer.update(theta, dL_dtheta)

    return launch


@dataclass(frozen=True)
class Product:
    """A matrix product of a dense layer's training step.

    Attributes:
        what: ``"Y"`` for X @ W, ``"dL_dW"`` for X.mT @ dL_dY, ``"dL_dX"`` for dL_dY @ W.mT.
        batch, n_in, n_out: Examples, and the layer's widths.
    """

    what: str
    batch: int
    n_in: int
    n_out: int

    @property
    def layer(self) -> str:
        """``dL_dW 784-128``."""
        return f"{self.what} {self.n_in}-{self.n_out}"

    def kernel(self, device: str, dtype: str) -> Kernel:
        """The product on random matrices, with the transposes that backward has."""
        random = Numbers(device, dtype)
        X, W, dL_dY = (
            random.normal(shape)
            for shape in ((self.batch, self.n_in), (self.n_in, self.n_out), (self.batch, self.n_out))
        )
        A, B, out = {"Y": (X, W, dL_dY), "dL_dW": (X.mT, dL_dY, W), "dL_dX": (dL_dY, W.mT, X)}[self.what]
        return Kernel(
            random.device,
            (lambda: gemm.matmul(A, B, out),),
            lambda: [gemm.cost(f"{self.what} matmul", A.shape, B.shape, out.itemsize)],
        )


def products() -> list[Product]:
    """The products of the nets of the throughput benchmark, each once."""
    layers = sorted({layer for widths in NETS for layer in pairwise(widths)})
    return [
        Product(what, batch, n_in, n_out)
        for (n_in, n_out), what, batch in product(layers, ("Y", "dL_dW", "dL_dX"), MATMUL_BATCHES)
    ]


def rows_in(size: int, columns: int, dtype: str) -> int:
    """How many rows of so many columns take about `size` bytes; at least one."""
    return max(1, round(size / (columns * np.dtype(dtype).itemsize)))


class Numbers:
    """Standard normal arrays on a device."""

    def __init__(self, device: str, dtype: str) -> None:
        self.device, self.dtype = gpubp.resolve_device(device), np.dtype(dtype)
        self.xp = self.device.module
        self.rng = np.random.default_rng(0)

    def normal(self, shape: tuple[int, ...]) -> Any:
        count = int(np.prod(shape))
        return self.repeated(self.rng.standard_normal(min(count, BLOCK_NUMBERS), dtype=self.dtype), (count,)).reshape(
            shape
        )

    def repeated(self, block: Any, shape: tuple[int, ...]) -> Any:
        """An array of this shape on the device: a block of its first rows, made on the host, over and over again."""
        with self.device.activate():
            made, rows = self.xp.empty(shape, block.dtype), gpubp.to_device(block, self.device)
            for start in range(0, shape[0], len(block)):
                part = made[start : start + len(block)]
                part[...] = rows[: len(part)]
        return made

    def batches(self, N: int, count: int) -> list[Any]:
        """Permuted whole numbers below N, `count` at a time."""
        order = gpubp.to_device(self.rng.permutation(N), self.device)
        return [order[start : start + count] for start in range(0, N - count + 1, count)]


def _workspace(function: Any, random: Numbers, shape: tuple[int, ...]) -> dict[str, Any]:
    shapes = activation_op.workspace(function, random.xp, shape)
    return {name: random.xp.empty(scratch, random.dtype) for name, scratch in shapes.items()}
