"""The places in the benchmarks' tables: which net, optimizer, device, precision and batch size; and their data."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

import gpubp

BATCHES = (1, 8, 32, 128, 512, 2048, 8192, 32768, 65536)
NETS = ((784, 128, 10), (784, 512, 512, 10), (64, 64, 64, 64, 10))
GPU_NETS = ((4096,) * 5,)
"""Too large to be of use on a CPU."""
OPTIMIZERS = ("sgd", "adam")
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "float64")
FLOAT64_BATCHES = (32, 2048)
"""Where float64 is measured unless all of it is asked for: it is to show what the precision costs."""


@dataclass(frozen=True)
class Cell:
    """One place in a table.

    Attributes:
        widths: ``(784, 128, 10)``: a sigmoid network with softmax cross-entropy.
        optimizer: ``"sgd"`` or ``"adam"``, with default settings; None where nothing is updated.
        device: ``"cpu"`` or ``"cuda"``.
        batch: Examples in a step.
        dtype: ``"float32"`` or ``"float64"``.
        precision: Of the matrix products, as `gpubp.Network` takes it; other than ``"float32"`` on a GPU alone.
    """

    widths: tuple[int, ...]
    optimizer: str | None
    device: str
    batch: int
    dtype: str = "float32"
    precision: str = "float32"

    @property
    def net(self) -> str:
        """The widths as a word: ``784-128-10``; ``4096x4`` for four layers of one width."""
        if len(self.widths) > 2 and len(set(self.widths)) == 1:
            return f"{self.widths[0]}x{len(self.widths) - 1}"
        return "-".join(map(str, self.widths))

    @property
    def name(self) -> str:
        """All of it, to select a cell by: ``cpu-float32-784-128-10-sgd-32``."""
        precision = None if self.precision == "float32" else self.precision
        return "-".join(filter(None, (self.device, self.dtype, precision, self.net, self.optimizer, str(self.batch))))

    @property
    def info(self) -> dict[str, Any]:
        """All of it, for the JSON."""
        return {
            "net": self.net,
            "optimizer": self.optimizer,
            "device": self.device,
            "dtype": self.dtype,
            "precision": self.precision,
            "batch": self.batch,
        }

    def network(self) -> gpubp.Network:
        """The network, with the initial weights of seed 0."""
        return gpubp.mlp(
            self.widths,
            activation="sigmoid",
            dtype=self.dtype,
            device=self.device,
            rng=0,
            matmul_precision=self.precision,
        )


def grid(
    nets: Iterable[tuple[int, ...]] = NETS,
    optimizers: Iterable[str | None] = OPTIMIZERS,
    batches: Iterable[int] = BATCHES,
    gpu_nets: Iterable[tuple[int, ...]] = GPU_NETS,
) -> list[Cell]:
    """Every combination, in an order that lets neighbours share a data set."""
    nets, gpu_nets = tuple(nets), tuple(gpu_nets)
    return [
        Cell(widths, optimizer, device, batch, dtype)
        for device, dtype in product(DEVICES, DTYPES)
        for widths, optimizer, batch in product(nets + (gpu_nets if device == "cuda" else ()), optimizers, batches)
    ]


def random_data(rows: int, n_in: int, classes: int, device: str, dtype: str = "float32") -> tuple[Any, Any]:
    """Standard normal X (rows, n_in) and class indices T (rows,) on the device: zeros would flatter a GPU."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((rows, n_in), dtype=np.dtype(dtype))
    return gpubp.to_device(X, device), gpubp.to_device(rng.integers(classes, size=rows), device)


@functools.lru_cache(maxsize=1)
def data_set(rows: int, n_in: int, classes: int, device: str, dtype: str) -> tuple[Any, Any]:
    """`random_data`, kept for the next cell; one data set at a time, as the largest takes 2 GiB."""
    return random_data(rows, n_in, classes, device, dtype)
