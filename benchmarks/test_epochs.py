"""Whole epochs through `fit`, against the same steps without the loop around them: what the loop itself costs."""

from __future__ import annotations

from statistics import median
from typing import Any

import gpubp
from gpubp.data.minibatches import Minibatches, shuffled

from .cells import Cell, data_set, grid
from .timing import ROUNDS, WARMUP_ROUNDS, seconds_of, synchronize

CELLS = [
    *grid(nets=[(64, 64, 64, 64, 10)], batches=[32, 512, 8192], gpu_nets=[]),
    *grid(nets=[(784, 128, 10)], batches=[512, 8192], gpu_nets=[]),  # its batch of 32 takes long, and says less
]


EPOCHS = 2
"""Of one call of `fit`: the first one bears what the call does once, the last one shows what goes on."""


class Epoch:
    """Epochs in two ways, on the same network, optimizer and data.

    Args:
        cell: What to run.
        X: (N, n_in) on the cell's device.
        T: (N,) class indices.
    """

    def __init__(self, cell: Cell, X: Any, T: Any) -> None:
        self.cell, self.network = cell, cell.network()
        self.optimizer = gpubp.optimizer_by_name(cell.optimizer or "sgd")
        self._data = X, T
        self._batches = Minibatches(X, T, None, cell.batch, shuffled(0), self.network.device)
        self._plan = gpubp.StepPlan(self.network, cell.batch)  # not that of `fit`, which begins anew in each call

    def fit(self, epochs: int) -> gpubp.History:
        """One call of `fit` for so many epochs, with all that a call does before and after its steps."""
        return gpubp.fit(
            self.network,
            *self._data,
            optimizer=self.optimizer,
            epochs=epochs,
            batch_size=self.cell.batch,
            progress=False,
        )

    def bare(self, epochs: int) -> None:
        """So many epochs of nothing but the bare steps, gather included, in the order that `fit` takes next."""
        for epoch in range(epochs):
            for part in self._batches.parts(self.network.epochs_trained + epoch):
                self._plan.steps(*part, self.optimizer)
        synchronize(self.network.device)


def overhead(fit: list[float], bare: list[float]) -> float:
    """What `fit` takes beyond the bare steps, as a share of these: the median over rounds, each taken by itself."""
    return median(one / other for one, other in zip(fit, bare, strict=True)) - 1


def test_epoch(benchmark: Any, cell: Cell, data_rows: int, cell_seconds: float) -> None:
    """Rounds of both in turn, so that a machine that becomes slower makes both slower."""
    X, T = data_set(max(cell.batch, data_rows), cell.widths[0], cell.widths[-1], cell.device, cell.dtype)
    epoch = Epoch(cell, X, T)
    benchmark.group = f"epoch {cell.net} {cell.optimizer} {cell.dtype} {cell.device}"
    bare: list[float] = []
    last: list[float] = []
    with epoch.network.device.activate():
        epoch.fit(1)
        epoch.bare(1)
        taken = EPOCHS * (seconds_of(epoch.bare, 1) + seconds_of(epoch.fit, 1))
        rounds = min(max(round(2 * cell_seconds / taken), ROUNDS[0]), ROUNDS[1])

        def time_bare() -> None:
            bare.append(seconds_of(epoch.bare, EPOCHS))

        def through_fit() -> None:
            last.append(epoch.fit(EPOCHS)["seconds"][-1])

        benchmark.pedantic(through_fit, setup=time_bare, rounds=rounds, warmup_rounds=WARMUP_ROUNDS)
    if benchmark.disabled:
        return
    bare, last, fit = bare[WARMUP_ROUNDS:], last[WARMUP_ROUNDS:], benchmark.stats.stats.data
    examples = int(X.shape[-2])
    benchmark.extra_info.update(
        {
            "kind": "epoch",
            **cell.info,
            "examples": examples,
            "steps": -(-examples // cell.batch),
            "epochs": EPOCHS,
            "fit_seconds": median(fit),
            "bare_seconds": median(bare),
            "last_epoch_seconds": median(last),
            "samples_per_second": EPOCHS * examples / median(fit),
            "bare_samples_per_second": EPOCHS * examples / median(bare),
            "loop_overhead": overhead(fit, bare),
            "last_epoch_overhead": overhead([EPOCHS * seconds for seconds in last], bare),
            "rounds": [list(seconds) for seconds in zip(fit, bare, last, strict=True)],
        }
    )
