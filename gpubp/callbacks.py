"""Callbacks and the record of a training run: `History`, early stopping, log files, a look inside, progress bar."""

from __future__ import annotations

import csv
import io
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpubp.backend import to_host
from gpubp.errors import GpubpError, SettingError
from gpubp.files import write_atomically
from gpubp.looking import LookReport, look
from gpubp.network import Network
from gpubp.settings import require_count, require_in
from gpubp.showing import Table, new_figure, save_figure

SHARED = ("epoch", "seconds", "examples_per_second")
"""What the members of a stack have in common; all else is measured for each."""

_SHOWN = 20  # epochs of a history that a notebook shows at most
_BINS = 64  # of histograms


class History:
    """What was measured after each epoch, column by column.

    Attributes:
        columns: Name (``epoch``, ``loss``, ``validation_loss``, ``seconds``, ``examples_per_second``,
            ``learning_rate``, ``gradient_norm``) to a list with one entry an epoch. In a stack a loss, a rate and a
            norm are lists of E numbers. The norm is that of the gradient in the last step of the epoch.
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

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the losses, and below them the learning rate and the gradient's norm where they are known.

        An axis is logarithmic where what it shows spans more than a decade. For a stack there is a faint line for each
        member, and the mean.

        Args:
            path: Where to write the picture; the ending says which kind (``.png``, ``.svg``, ``.pdf``). None for
                nowhere.

        Returns:
            The Matplotlib figure.

        Raises:
            GpubpError: Matplotlib is not installed, the ending is unknown, or the file can't be written.
        """
        below = [name for name in ("learning_rate", "gradient_norm") if name in self]
        figure = new_figure(6.4, 5.6 if below else 4)
        grid = figure.add_gridspec(2 if below else 1, max(1, len(below)), height_ratios=(2, 1) if below else None)
        axes = figure.add_subplot(grid[0, :])
        self._draw(axes, {"loss": "training", "validation_loss": "validation"}, "loss")
        for k, name in enumerate(below):
            self._draw(figure.add_subplot(grid[1, k], sharex=axes), {name: None}, name.replace("_", " "))
        if path is not None:
            save_figure(figure, path)
        return figure

    def _draw(self, axes: Any, labels: Mapping[str, str | None], title: str) -> None:
        """Draw some columns into one pair of axes."""
        drawn = []
        for k, (name, label) in enumerate(labels.items()):
            if name in self:
                values = np.array(self[name], dtype=float).reshape(len(self), -1)  # (epochs, E)
                marker = "o" if len(self) == 1 else None
                line = {"color": f"C{k}", "marker": marker, "markersize": 3}
                if values.shape[1] > 1:
                    axes.plot(self["epoch"], values, alpha=0.25, linewidth=0.8, **line)
                    label = f"{label}, mean of {values.shape[1]}" if label else f"mean of {values.shape[1]}"
                axes.plot(self["epoch"], values.mean(axis=1), label=label, linewidth=1.5, **line)
                drawn.append(values[np.isfinite(values)])
        axes.set(xlabel="epoch", ylabel=title)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        everything = np.concatenate([*drawn, np.empty(0)])
        if everything.size and 0 < 10 * everything.min() < everything.max():
            axes.set_yscale("log")
        if axes.get_legend_handles_labels()[1]:
            axes.legend()

    def _repr_html_(self) -> str:
        """The last epochs as a notebook shows them; a stack's numbers as their means."""
        first = max(0, len(self) - _SHOWN)
        columns = [[_shown(value) for value in column[first:]] for column in self.columns.values()]
        notes = [f"the last {_SHOWN} of {len(self)} epochs"] if first else []
        if any(isinstance(value, list) for column in self.columns.values() for value in column[-1:]):
            notes.append("means over the members of the stack")
        return Table([*self.columns], [*zip(*columns, strict=True)], notes).html()


def _shown(value: Any) -> str:
    mean = float(np.mean(value))
    return str(int(mean)) if isinstance(value, int) else f"{mean:.4g}"


class Callback:
    """Looks on, and may stop the training: a subclass overrides what it needs.

    Attributes:
        for_each_member: Whether it may look at the members of a stack one after the other, each trained as a single
            network, as `gpubp.fit_lbfgs` does; not where it keeps, or writes, what belongs to one training.
    """

    for_each_member: bool = True

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
        self.patience, self.monitor = require_count(self, "patience", patience), monitor
        self.minimum_change = require_in(self, "minimum_change", minimum_change, "[0, inf)")

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
        self._best = [array.copy() for array in (network.theta, *network.statistics)]

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
                for best, array in zip(self._best, (network.theta, *network.statistics), strict=True):
                    best[...] = array
        else:
            for e in np.flatnonzero(better):
                for best, array in zip(self._best, (network.theta, *network.statistics), strict=True):
                    best[int(e)] = array[int(e)]
        self._stopped |= measured["epoch"] - self.best_epoch >= self.patience
        return bool(self._stopped.all())

    def on_train_end(self, network: Network) -> None:
        """Put the best weights back, and the statistics that go with them."""
        for best, array in zip(self._best, (network.theta, *network.statistics), strict=True):
            array[...] = best


class CSVLogger(Callback):
    """Write what is measured into a CSV file, a line after each epoch.

    A line is in the file as soon as its epoch is over, so that nothing is lost when the training is interrupted. What
    is measured for each member of a stack takes a column for each: ``loss.0``, ``loss.1``, ...

    Args:
        path: The file.
        append: Go on after the lines that are there; without, each training starts the file anew.
    """

    for_each_member = False

    def __init__(self, path: str | Path, *, append: bool = False) -> None:
        self.path, self.append = Path(path), append

    def on_train_begin(self, network: Network, measures: Sequence[str]) -> None:
        """Write the header, or look whether the one that is there is the same.

        Raises:
            GpubpError: The file can't be written, or holds lines under another header.
        """
        self._header = [name for name, _ in _by_member(network, dict.fromkeys(measures, 0.0), ".")]
        try:
            with open(self.path, "a+" if self.append else "w+", newline="", encoding="utf-8") as file:
                file.seek(0)
                before = file.read()
                if before:
                    self._require_header(next(csv.reader(io.StringIO(before)), []))
                    if not before.endswith(("\n", "\r")):  # a line that was cut short stays one of its own
                        file.write("\n")
                else:
                    csv.writer(file, lineterminator="\n").writerow(self._header)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise self._refused(error) from error

    def on_epoch_end(self, network: Network, measured: Mapping[str, Any]) -> bool:
        """Write a line.

        Raises:
            GpubpError: The file can't be written, or something else was measured than was announced.
        """
        row = dict(_by_member(network, measured, "."))
        self._require_header([*row])
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerow(row.values())
        except OSError as error:
            raise self._refused(error) from error
        return False

    def _require_header(self, found: list[str]) -> None:
        if found != self._header:
            raise GpubpError(
                f"{self.path}: the columns {', '.join(self._header)} are to be written, "
                f"not {', '.join(found) or 'none'}: take another file, or leave append out"
            )

    def _refused(self, error: Exception) -> GpubpError:
        return GpubpError(f"can't write {self.path}: {getattr(error, 'strerror', None) or error}")


class TensorBoard(Callback):
    """Write what is measured into an event file for TensorBoard, under the measures' names.

    For a member of a stack the name is followed by its number: ``loss/0``, ``loss/1``, ... A second training with the
    same folder adds a file, whose epochs go on where the first one stopped. To look at it: ``tensorboard --logdir``.

    Args:
        folder: Where the files go; it is made if it is missing.
        histograms: Whether to write histograms of all parameters and of their gradients in the last step, too, under
            ``parameters/0.W`` and ``gradients/0.W``.

    Raises:
        GpubpError: tensorboardX is not installed.
    """

    for_each_member = False

    def __init__(self, folder: str | Path, *, histograms: bool = False) -> None:
        self.folder, self.histograms = Path(folder), histograms
        self._writer: Any = None
        self._tensorboardX()

    def on_train_begin(self, network: Network, measures: Sequence[str]) -> None:
        """Make the folder.

        Raises:
            GpubpError: That is impossible.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GpubpError(f"can't write into the folder {self.folder}: {error.strerror or error}") from error

    def on_epoch_end(self, network: Network, measured: Mapping[str, Any]) -> bool:
        """Write the numbers of an epoch."""
        if self._writer is None:  # not before, so that a training that never begins leaves no writer open
            unique = f".{time.time_ns()}"  # the name has the time in seconds alone
            self._writer = self._tensorboardX().event_file_writer.EventsWriter(str(self.folder / "events"), unique)
        summary, epoch = self._tensorboardX().summary, measured["epoch"]
        for name, value in _by_member(network, measured, "/"):
            if name != "epoch":
                self._write(summary.scalar(name, value), epoch)
        if self.histograms:
            gradient = network.dL_dtheta if network.plan is None else network.plan.dL_dtheta
            named = {"parameters": network.parameters, "gradients": network.named_gradients(gradient)}
            arrays = {f"{kind}/{name}": to_host(a) for kind, views in named.items() for name, a in views.items()}
            for name, values in _by_member(network, arrays, "/"):
                self._write(summary.histogram(name, values, bins=_BINS), epoch)
        self._writer.flush()
        return False

    def on_train_end(self, network: Network) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, summary: Any, epoch: int) -> None:
        # Not by a SummaryWriter, whose thread leaves it open when an event gets into the file.
        event = self._tensorboardX().proto.event_pb2.Event(wall_time=time.time(), step=epoch, summary=summary)
        self._writer.write_event(event)

    @staticmethod
    def _tensorboardX() -> Any:
        try:
            import tensorboardX
            import tensorboardX.event_file_writer
            import tensorboardX.proto.event_pb2
            import tensorboardX.summary
        except ImportError as error:
            raise GpubpError("event files need tensorboardX: pip install 'gpubp[tensorboard]'") from error
        return tensorboardX


def _by_member(network: Network, named: Mapping[str, Any], separator: str) -> Iterator[tuple[str, Any]]:
    """Names and values; in a stack, for what is not shared, one of each for every member."""
    for name, value in named.items():
        if network.members is None or name in SHARED:
            yield name, value
        else:
            each = np.broadcast_to(value, (network.members,)) if np.ndim(value) < 1 else value
            yield from ((f"{name}{separator}{e}", each[e]) for e in range(network.members))


class Look(Callback):
    """Look for dead units and saturated layers while training, and warn once of each layer that has too many.

    Args:
        X: Some examples (N, n_in) to look with; a thousand tell enough.
        T: Their targets, for gradients in the report, too.
        every: How many epochs from one look to the next.

    Attributes:
        report: What the last look found, a `gpubp.looking.LookReport`; None before the first.

    Raises:
        SettingError: `every` is less than 1.
    """

    def __init__(self, X: Any, T: Any = None, *, every: int = 1) -> None:
        self.X, self.T, self.every = X, T, require_count(self, "every", every)
        self.report: LookReport | None = None

    def on_train_begin(self, network: Network, measures: Sequence[str]) -> None:
        """Forget earlier trainings."""
        self.report, self._told = None, set[tuple[int | str, str]]()

    def on_epoch_end(self, network: Network, measured: Mapping[str, Any]) -> bool:
        """Look, if it is time to."""
        if measured["epoch"] % self.every == 0:
            self.report = look(network, self.X, self.T)
            for finding in self.report.findings:
                if (finding.layer, finding.kind) not in self._told:
                    self._told.add((finding.layer, finding.kind))
                    warnings.warn(f"after epoch {measured['epoch']}, {finding}", stacklevel=2)
        return False


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
    def shown(self) -> bool:
        """Whether there is a bar to be moved."""
        return self._bar is not None

    @property
    def due(self) -> bool:
        """Whether it is time to show something new."""
        return self._bar is not None and time.perf_counter() >= self._next

    def show(self, steps: int, epoch: str, loss: float, rate: float) -> None:
        """Show how far the training is."""
        if self._bar:
            self._bar.update(self._task, completed=steps, epoch=epoch, loss=f"{loss:.4g}", rate=f"{rate:,.0f}")
            self._next = time.perf_counter() + 0.1
