"""Callbacks and the record of a training run: `History`, progress bar, early stopping."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gpubp.errors import GpubpError, SettingError
from gpubp.files import write_atomically

if TYPE_CHECKING:
    from gpubp.network import Network


class History:
    """What was measured after each epoch, column by column.

    Attributes:
        columns: Name (``epoch``, ``loss``, ``validation_loss``, ``seconds``, ``examples_per_second``) to a list with
            one entry an epoch. In a stack a loss is a list of E numbers.
    """

    def __init__(self) -> None:
        self.columns: dict[str, list[Any]] = {}

    def append(self, measured: Mapping[str, Any]) -> None:
        """Add one epoch."""
        for name, value in measured.items():
            self.columns.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __len__(self) -> int:
        return len(self.columns.get("epoch", []))

    def __repr__(self) -> str:
        last = ", ".join(f"{name}={column[-1]}" for name, column in self.columns.items() if column)
        return f"History({len(self)} epochs; last: {last})"

    def to_csv(self, path: str | Path) -> None:
        """Write one row an epoch; a stack's losses take a column for each member (``loss.0``, ``loss.1``, ...)."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        flat: dict[str, list[Any]] = {}
        for name, column in self.columns.items():
            if column and isinstance(column[0], list):
                flat.update({f"{name}.{e}": [row[e] for row in column] for e in range(len(column[0]))})
            else:
                flat[name] = column
        writer.writerow(flat)
        writer.writerows(zip(*flat.values(), strict=True))
        write_atomically(Path(path), text.getvalue().encode())

    def plot(self, path: str | Path) -> None:
        """Draw the loss curves into a picture; the ending says which kind (``.png``, ``.svg``, ``.pdf``).

        Raises:
            GpubpError: Matplotlib is not installed, the ending is unknown, or the file can't be written.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise GpubpError("drawing needs Matplotlib: pip install 'gpubp[plot]'") from error
        figure = Figure(figsize=(6.4, 4), layout="constrained")
        axes = figure.add_subplot()
        for name, label in (("loss", "training"), ("validation_loss", "validation")):
            if name in self:
                losses = np.array(self[name], dtype=float).reshape(len(self), -1)
                axes.plot(self["epoch"], losses, label=[label] + [None] * (losses.shape[1] - 1), linewidth=1.5)
        axes.set(xlabel="epoch", ylabel="loss")
        axes.grid(alpha=0.3)
        if len(self):
            axes.legend()
            if np.min(self["loss"]) > 0:
                axes.set_yscale("log")
        picture = io.BytesIO()
        try:
            figure.savefig(picture, format=Path(path).suffix[1:] or "png", dpi=150)
        except ValueError as error:
            raise GpubpError(f"{path}: no picture of that kind can be drawn ({error})") from error
        write_atomically(Path(path), picture.getvalue())


class Callback:
    """Looks on, and may stop the training: a subclass overrides what it needs."""

    def on_train_begin(self, network: Network, measures: Sequence[str]) -> None:
        """Called once before the first epoch, with the names of what will be measured after each (see `History`)."""

    def on_epoch_end(self, network: Network, measured: Mapping[str, Any]) -> bool:
        """Called after each epoch with what was measured (see `History`); True stops the training."""
        return False

    def on_train_end(self, network: Network) -> None:
        """Called once at the end, also when the training ends by an error."""


class EarlyStopping(Callback):
    """Stop when a loss no longer falls, and put the best weights back.

    Args:
        patience: How many epochs without a new best loss to wait for one.
        monitor: What to look at: ``"validation_loss"`` or ``"loss"``.
        minimum_change: How much lower than the best a loss must be to count as a new best.

    Attributes:
        best: The lowest loss so far, for a stack of each member (E,).
        best_epoch: The epoch it was measured in; each member's own in a stack.

    Raises:
        SettingError: A setting is outside its range.
    """

    def __init__(self, patience: int = 10, *, monitor: str = "validation_loss", minimum_change: float = 0.0) -> None:
        if patience < 1:
            raise SettingError(f"EarlyStopping: patience={patience} is not at least 1")
        if minimum_change < 0:
            raise SettingError(f"EarlyStopping: minimum_change={minimum_change} is negative")
        self.patience, self.monitor, self.minimum_change = patience, monitor, minimum_change

    def on_train_begin(self, network: Network, measures: Sequence[str]) -> None:
        """Forget earlier runs.

        Raises:
            SettingError: What is monitored will not be measured.
        """
        if self.monitor not in measures:
            raise SettingError(f"EarlyStopping watches {self.monitor!r}, which is not measured: pass validation=(X, T)")
        lead = () if network.members is None else (network.members,)
        self.best = np.full(lead, np.inf)
        self.best_epoch = np.full(lead, -1)
        self._stopped = np.full(lead, False)
        self._best_theta = network.theta.copy()

    def on_epoch_end(self, network: Network, measured: Mapping[str, Any]) -> bool:
        """Keep the weights where there is a new best; stop after `patience` epochs without one.

        A member of a stack that has run out of patience is done, whatever comes later: its weights are those that it
        would have ended with alone. The training stops when all members are done.
        """
        losses = np.asarray(measured[self.monitor], dtype=float)
        better = ~self._stopped & (losses < self.best - self.minimum_change)
        self.best = np.where(better, losses, self.best)
        self.best_epoch = np.where(better, measured["epoch"], self.best_epoch)
        if network.members is None:
            if better:
                self._best_theta[...] = network.theta
        else:
            for e in np.flatnonzero(better):
                self._best_theta[int(e)] = network.theta[int(e)]
        self._stopped |= measured["epoch"] - self.best_epoch >= self.patience
        return bool(self._stopped.all())

    def on_train_end(self, network: Network) -> None:
        """Put the best weights back."""
        network.theta[...] = self._best_theta


class Progress:
    """A progress bar with loss, examples/s and time left; nothing at all where the output is no terminal."""

    def __init__(self, total_steps: int, show: bool) -> None:
        self._bar: Any = None
        self._next = 0.0
        if not show or not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]} examples/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("", total=total_steps, epoch="0", loss="?", rate="?")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    @property
    def due(self) -> bool:
        """Whether it is time to show something new."""
        return self._bar is not None and time.perf_counter() >= self._next

    def show(self, steps: int, epoch: str, loss: float, rate: float) -> None:
        """Show how far the training is."""
        if self._bar:
            self._bar.update(self._task, completed=steps, epoch=epoch, loss=f"{loss:.4g}", rate=f"{rate:,.0f}")
            self._next = time.perf_counter() + 0.1
