"""What is compared: the cases, the data set and the initial weights, the same for every peer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Weights = list[NDArray[Any]]
"""W0, b0, W1, b1, ...: W (n_in, n_out), b (n_out,)."""

NETS = ("784-128-10", "784-512-512-10", "64-64-64-64-10")
GPU_NETS = ("4096-4096-4096-4096-4096",)
"""Only where there is a GPU: a step of this one takes a CPU seconds."""
OPTIMIZERS = ("sgd", "adam")
NO_OPTIMIZER = "no optimizer"
"""In place of an optimizer's name where nothing is updated."""
PRECISIONS = {
    "float32": "float32",
    "tf32": "float32 factors rounded to TF32 (10 binary digits behind the point) by matrix products, sums in float32",
}
"""What matrix products do with float32 factors; the second on a CUDA device alone."""
BATCH_SIZES = (1, 8, 32, 128, 512, 2048, 8192, 32768, 65536)
WORK = {
    "step": "training step: gather of the minibatch, forward, loss, backward, update",
    "forward": "class probabilities of one batch",
    "gradients": "forward, loss and backward on one batch, no update",
}
DATA_ROWS = 65536
"""Examples in the data set. That of the largest nets is larger than any cache."""

SGD_RATE = 0.01
ADAM_RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-8


@dataclass(frozen=True)
class Case:
    """One row of a table: a network with sigmoid hidden layers and softmax cross-entropy, on float32 arrays.

    Attributes:
        net: The widths as a word, ``784-128-10``.
        optimizer: ``"sgd"`` (rate 0.01, no momentum), ``"adam"`` (rate 0.001, betas 0.9 and 0.999, epsilon 1e-8), or
            `NO_OPTIMIZER`.
        batch: Examples in a step.
        work: What is timed, a key of `WORK`.
        device: ``"cpu"`` or ``"cuda"``.
        precision: Of matrix products, a key of `PRECISIONS`.
    """

    net: str
    optimizer: str
    batch: int
    work: str = "step"
    device: str = "cpu"
    precision: str = "float32"

    @cached_property
    def widths(self) -> tuple[int, ...]:
        """The widths: inputs, hidden layers, classes."""
        return tuple(map(int, self.net.split("-")))

    @property
    def words(self) -> str:
        """The case in words."""
        precision = "" if self.precision == "float32" else f", {self.precision}"
        return f"{self.net}, {self.optimizer}, batch {self.batch:,}{precision}"


@dataclass(frozen=True)
class Data:
    """The data set of a case, in memory, and where training starts.

    Attributes:
        X: (N, n_in) float32, standard normal (zeros would flatter a GPU); N is a multiple of the batch size.
        T: (N,) class indices, int64.
        order: (N,) a permutation: the minibatches are its parts of `batch` rows, over and over again.
        weights: The initial weights, float32.
    """

    X: NDArray[np.float32]
    T: NDArray[np.int64]
    order: NDArray[np.int64]
    weights: Weights


def make_data_set(net: str, rows: int, path: Path) -> None:
    """Write a data set of so many rows as an ``.npz`` file, for `DataSet.read`."""
    widths = tuple(map(int, net.split("-")))
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, widths[0]), dtype=np.float32)
    T = rng.integers(widths[-1], size=rows)
    T[: widths[-1]] = np.arange(widths[-1])[:rows]  # so that every class occurs
    np.savez(path, X=X, T=T, **{f"w{k}": w for k, w in enumerate(initial_weights(widths))})


@dataclass(frozen=True)
class DataSet:
    """What `make_data_set` wrote: X (N, n_in), T (N,) and the initial weights. Nobody may change these arrays."""

    X: NDArray[np.float32]
    T: NDArray[np.int64]
    weights: Weights

    @classmethod
    def read(cls, path: Path) -> DataSet:
        """The data set in a file."""
        with np.load(path) as file:
            return cls(file["X"], file["T"], [file[f"w{k}"] for k in range(len(file.files) - 2)])

    def of(self, case: Case) -> Data:
        """The part for a case: a multiple of its batch size."""
        N = len(self.T) // case.batch * case.batch
        return Data(self.X[:N], self.T[:N], np.random.default_rng(1).permutation(N), self.weights)


def initial_weights(widths: tuple[int, ...]) -> Weights:
    """Normal weights of Glorot's variance; biases are not zero, so that a peer that forgets them is found out."""
    rng = np.random.default_rng(2)
    weights: Weights = []
    for n_in, n_out in pairwise(widths):
        weights.append(np.float32(np.sqrt(2 / (n_in + n_out))) * rng.standard_normal((n_in, n_out), dtype=np.float32))
        weights.append(np.float32(0.1) * rng.standard_normal(n_out, dtype=np.float32))
    return weights


class Stream:
    """The row numbers of the minibatches, one after the other, without end."""

    def __init__(self, data: Data, batch: int) -> None:
        self.batch = batch
        self._batches = data.order.reshape(-1, batch)  # (N / batch, batch)
        self._next = 0

    def take(self, steps: int) -> NDArray[np.int64]:
        """The next so many minibatches: (steps, batch)."""
        count = len(self._batches)
        index = self._batches[(self._next + np.arange(steps)) % count]
        self._next = (self._next + steps) % count
        return index
