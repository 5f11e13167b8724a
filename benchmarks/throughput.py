"""A training step taken apart: its time as a whole, that of its matrix products, that of its minibatch gather.

The step is the library's own: `Minibatches` over a shuffled data set that lives on the device, then `StepPlan.step`.
What counts as a matrix product and as the gather is recorded, not typed in: one step runs while every call of
`gpubp.ops.gemm.matmul` and of the gather is noted, and these same calls, on the same arrays, are what is timed alone.
A recorded list that does not hold the FLOPs of the network's layers is an error, so that a product computed elsewhere
can't hide.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any
from unittest import mock

import numpy as np

import gpubp
from gpubp.data import minibatches
from gpubp.ops import gemm

ROUND_SECONDS = 5e-3
"""A round runs as many steps as take this long, so that a clock read and a synchronisation are nothing beside it."""
ROUNDS = (5, 200)
"""Fewest and most rounds of a cell."""
WARMUP_ROUNDS = 1


@dataclass(frozen=True)
class Cell:
    """One place in the table.

    Attributes:
        widths: ``(784, 128, 10)``: a sigmoid network with softmax cross-entropy.
        optimizer: ``"sgd"`` or ``"adam"``, with default settings.
        device: ``"cpu"`` or ``"cuda"``.
        batch: Examples in a step.
    """

    widths: tuple[int, ...]
    optimizer: str
    device: str
    batch: int

    @property
    def net(self) -> str:
        """The widths as a word: ``784-128-10``."""
        return "-".join(map(str, self.widths))


def random_data(rows: int, n_in: int, classes: int, device: str) -> tuple[Any, Any]:
    """Standard normal X (rows, n_in) and class indices T (rows,) on the device: zeros would flatter a GPU."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, n_in), dtype=np.float32)
    return gpubp.to_device(X, device), gpubp.to_device(rng.integers(classes, size=rows), device)


class Step:
    """The training step of a cell, whole and in parts.

    Args:
        cell: What to run.
        X: (N, n_in) on the cell's device; N is at least the cell's batch, and X larger than the caches.
        T: (N,) class indices.

    Attributes:
        products: The matrix products of a step: arguments of `gpubp.ops.gemm.matmul`, in order.
        gathers: The arguments of the gathers of a step.

    Raises:
        RuntimeError: The products that were recorded are not those that the network's layers need.
    """

    def __init__(self, cell: Cell, X: Any, T: Any) -> None:
        self.cell = cell
        self.network = gpubp.mlp(cell.widths, activation="sigmoid", device=cell.device, rng=0)
        self._optimizer = gpubp.optimizer_by_name(cell.optimizer)
        self._plan = gpubp.StepPlan(self.network, cell.batch)
        data = minibatches.Minibatches(X, T, None, cell.batch, minibatches.shuffled(0), self.network.device)
        self._batches = itertools.chain.from_iterable(map(data.epoch, itertools.count()))
        self._loss: Any = None
        with recorded(gemm, "matmul") as self.products, recorded(minibatches, "gather") as self.gathers:
            self.whole(1)
        if self.flops != network_flops(self.network, cell.batch):
            raise RuntimeError(
                f"{cell}: {self.flops} FLOPs went through gpubp.ops.gemm.matmul, the network's layers need "
                f"{network_flops(self.network, cell.batch)}: some product is computed elsewhere, or twice"
            )
        order = self.network.device.module.asarray(np.random.default_rng(1).permutation(data.N))
        self._rows = itertools.cycle([order[k : k + cell.batch] for k in range(0, data.N - cell.batch + 1, cell.batch)])

    @property
    def flops(self) -> int:
        """Multiplications and additions in the products of one step."""
        return sum(2 * out.size * A.shape[-1] for A, _, out in self.products)

    def whole(self, steps: int) -> None:
        """So many training steps: gather, forward, loss, backward, update."""
        for X, T, weight in itertools.islice(self._batches, steps):
            self._loss = self._plan.step(X, T, weight, self._optimizer)
        self._synchronize()

    def matmuls(self, steps: int) -> None:
        """The matrix products of so many steps, and nothing else."""
        for _ in range(steps):
            for operands in self.products:
                gemm.matmul(*operands)
        self._synchronize()

    def gather(self, steps: int) -> None:
        """The gathers of so many steps, each of other examples, and nothing else."""
        for rows in itertools.islice(self._rows, steps):
            for data, index, out, axis in self.gathers:
                minibatches.gather(data, rows[: index.size], out, axis)
        self._synchronize()

    def loss(self) -> float:
        """The loss of the latest step.

        Raises:
            RuntimeError: It is not finite: what was timed was no training.
        """
        loss = float(gpubp.to_host(self._loss))
        if not math.isfinite(loss):
            raise RuntimeError(f"{self.cell}: the loss is {loss}")
        return loss

    def schedule(self, seconds: float) -> tuple[int, int]:
        """Steps in a round, and rounds, so that the whole measurement takes about so many seconds."""
        steps = 1
        while (taken := seconds_of(self.whole, steps)) < ROUND_SECONDS and steps < 2**20:
            steps *= 2
        return steps, min(max(round(seconds / (2 * taken)), ROUNDS[0]), ROUNDS[1])

    def _synchronize(self) -> None:
        device = self.network.device
        if device.is_cuda:
            device.module.cuda.Device(device.index).synchronize()


def network_flops(network: gpubp.Network, batch: int) -> int:
    """What the layers of a single network need: X @ W, dL_dW, and dL_dX but for the first layer that is trained.

    That is ``6 * batch * sum(n_in * n_out)``, less the ``2 * batch * n_in * n_out`` of the first layer's dL_dX.
    """
    weights = [
        (k, math.prod(layer.parameters["W"].shape[-2:]))
        for k, layer in enumerate(network.executed)
        if "W" in layer.parameters
    ]
    return sum(2 * batch * size * (2 + (k > network.first_trained)) for k, size in weights)


@contextlib.contextmanager
def recorded(owner: Any, name: str) -> Iterator[list[tuple[Any, ...]]]:
    """The positional arguments of every call of a function within the block."""
    function, calls = getattr(owner, name), []
    signature = inspect.signature(function)

    def record(*args: Any, **kwargs: Any) -> Any:
        calls.append(signature.bind(*args, **kwargs).args)
        return function(*args, **kwargs)

    with mock.patch.object(owner, name, record):
        yield calls


def seconds_of(part: Callable[[int], None], steps: int) -> float:
    """The time that a part of so many steps takes."""
    began = time.perf_counter()
    part(steps)
    return time.perf_counter() - began


def measure(benchmark: Any, step: Step, seconds: float) -> None:
    """Time a cell with pytest-benchmark, whole steps and parts in turn, and note the result in ``extra_info``.

    Args:
        benchmark: The fixture; its own statistics are of rounds of ``steps_per_round`` steps.
        step: The cell's step.
        seconds: About how long to measure.
    """
    with step.network.device.activate():
        steps, rounds = step.schedule(seconds)
        matmul: list[float] = []
        gather: list[float] = []

        def parts() -> tuple[tuple[int], dict[str, Any]]:
            matmul.append(seconds_of(step.matmuls, steps))
            gather.append(seconds_of(step.gather, steps))
            return (steps,), {}

        benchmark.pedantic(step.whole, setup=parts, rounds=rounds, warmup_rounds=WARMUP_ROUNDS)
        step.loss()
    if benchmark.disabled:
        return
    whole_s = benchmark.stats.stats.median / steps
    matmul_s, gather_s = (median(times[WARMUP_ROUNDS:]) / steps for times in (matmul, gather))
    cell = step.cell
    benchmark.extra_info.update(
        {
            "net": cell.net,
            "optimizer": cell.optimizer,
            "device": cell.device,
            "batch": cell.batch,
            "samples_per_second": cell.batch / whole_s,
            "step_seconds": whole_s,
            "matmul_seconds": matmul_s,
            "gather_seconds": gather_s,
            "other_share": 1 - (matmul_s + gather_s) / whole_s,
            "matmul_flops": step.flops,
            "matmul_flops_per_second": step.flops / matmul_s,
            "steps_per_round": steps,
        }
    )
