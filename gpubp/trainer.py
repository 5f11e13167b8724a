"""The training loop: minibatches through the planned step, epoch after epoch."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from gpubp import cpu, cuda
from gpubp.backend import Array, array_module, to_host
from gpubp.callbacks import Callback, History, Progress
from gpubp.data.minibatches import Minibatches, Order, StreamedMinibatches, in_order, shuffled
from gpubp.data.prepared import prepared
from gpubp.errors import DeviceLostError, SettingError, TrainingDivergedError
from gpubp.examples import RowsOf
from gpubp.network import Network, require_batch_size
from gpubp.ops.gather import row_slices
from gpubp.optimizers.adam import Adam
from gpubp.optimizers.base import Optimizer
from gpubp.plan import StepPlan
from gpubp.settings import require_count

LAUNCH_SECONDS = 0.05
"""About how long to leave the step plan alone: between launches the progress bar moves, and Ctrl-C is heard."""

CUDA_STEPS = 32
"""Steps of the first launch on a device: those of the longest CUDA graph."""

NORM_ELEMENTS = {"cpu": 2**14, "cuda": 2**18}
"""Elements of a gradient whose squares are kept at a time for its norm: few on the CPU, to stay in cache."""

MEASURES = ("epoch", "loss", "seconds", "examples_per_second", "learning_rate", "gradient_norm")


class Trainer:
    """Trains a network; `fit` is the same in one call.

    Args:
        network: The network; a second run on it goes on where the first one stopped.
        optimizer: The optimizer; it keeps its state from run to run.
        batch_size: Examples in a step; the last, smaller batch of an epoch is trained on too. Larger than N means N.
        shuffle: Whether each epoch visits the examples in another order, a function of (rng, epoch) alone.
        rng: Seed of that order; None for another one in each run.
        order: An order provider (epoch, N) -> indices, in place of `shuffle` and `rng`.
        callbacks: Look on after each epoch; see `gpubp.callbacks.Callback`.
        reduce_gradients: Called with dL_dtheta before each update, to change it in place: the seam for data
            parallelism. The rows of a stack may lie apart on a device, see `gpubp.parameters.ROW_BYTES`.
        progress: Whether to show a progress bar, on a terminal only.
        threads: How many CPU threads to use; None for `gpubp.cpu.threads`. Results repeat for the same number.
        resident: Whether examples on the host are moved to the CUDA device as a whole, rather than streamed in parts;
            None for the first where they take at most half of the memory that is free there.
        micro_batch_size: How many examples of a batch are computed at a time, so that a batch may be larger than what
            fits in memory; their gradients are added up. None for all at once.

    Raises:
        SettingError: The batch size or the number of threads is not a positive whole number.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Optimizer,
        *,
        batch_size: int = 256,
        shuffle: bool = True,
        rng: int | np.random.Generator | None = 0,
        order: Order | None = None,
        callbacks: Sequence[Callback] = (),
        reduce_gradients: Callable[[Array], None] | None = None,
        progress: bool = True,
        threads: int | None = None,
        resident: bool | None = None,
        micro_batch_size: int | None = None,
    ) -> None:
        self.network, self.optimizer = network, optimizer
        self.batch_size = require_batch_size(batch_size)
        if rng is not None and not isinstance(rng, np.random.Generator) and (not isinstance(rng, int) or rng < 0):
            raise SettingError(f"rng={rng!r}: a whole number of at least 0, a numpy Generator, or None is needed")
        seed = rng if isinstance(rng, int) else int(np.random.default_rng(rng).integers(2**63))
        self.order = order or (shuffled(seed) if shuffle else in_order)
        self.callbacks = list(callbacks)
        self.reduce_gradients = reduce_gradients
        self.progress = progress
        self.threads = cpu.require_threads(threads)
        self.resident = resident
        if micro_batch_size is not None:
            require_count(None, "micro_batch_size", micro_batch_size)
        self.micro_batch_size = micro_batch_size
        self._steps = 1  # that take about `LAUNCH_SECONDS`, as far as is known
        self._events: list[Any] = []  # after the last launch, and after the one before

    def fit(
        self,
        X: Any,
        T: Any,
        *,
        epochs: int = 10,
        sample_weight: Any = None,
        validation: Sequence[Any] | None = None,
    ) -> History:
        """Train for some epochs.

        After an error in an epoch, whoever raised it, the weights and the optimizer's state are those from before the
        epoch; with `EarlyStopping` the weights are the best ones. Where a device is lost they are lost with it.

        Args:
            X: (N, n_in), or (E, N, n_in) with other examples for each member of a stack; a NumPy array mapped from a
                file is read minibatch by minibatch, and `RowsOf` stands for some of its rows.
            T: Targets as the loss takes them.
            epochs: How many times to visit every example.
            sample_weight: (N,) or (E, N), relative to their mean over all examples, so that minibatches of any size
                minimise the weighted mean of the losses; None weighs all examples the same.
            validation: ``(X, T)`` or ``(X, T, sample_weight)`` to measure the loss on after each epoch.

        Returns:
            What was measured after each epoch.

        Raises:
            DataError, ShapeError, DeviceError: The data does not fit the network; it is unchanged.
            TrainingDivergedError: The loss or a weight is no longer a finite number.
            OutOfDeviceMemoryError, DeviceError: The device has not the memory, or refused a call.
            DeviceLostError: The device failed; nothing can be computed on it before the process is restarted.
        """
        require_count(None, "epochs", epochs, least=0)
        if validation is not None and not (isinstance(validation, tuple | list) and len(validation) in (2, 3)):
            raise SettingError("validation: a tuple (X, T) or (X, T, sample_weight) is needed")
        network, history = self.network, History()
        with (
            network.device.activate("training"),
            cpu.limited_threads(self.threads),
            np.errstate(over="ignore", invalid="ignore", divide="ignore"),
        ):
            data = prepared(network, X, T, sample_weight, resident=self.resident)
            checked = None if validation is None else prepared(network, *validation, resident=self.resident)
            network.adapt(data[0])
            batches = self._minibatches(*data)
            plan = self._plan(batches)
            measures = [*MEASURES, *([] if checked is None else ["validation_loss"])]
            self.optimizer.begin_training(epochs * len(batches), measures)
            self._steps = CUDA_STEPS if network.device.is_cuda else 1
            self._events = [cuda.event(), cuda.event()] if network.device.is_cuda else []
            for callback in self.callbacks:
                callback.on_train_begin(network, measures)
            with contextlib.ExitStack() as at_the_end, Progress(epochs * len(batches), self.progress) as bar:
                for callback in reversed(self.callbacks):  # called in their order, each of them whatever the others do
                    at_the_end.callback(callback.on_train_end, network)
                at_the_end.callback(plan.forget_recordings)
                for done in range(epochs):
                    measured = self._epoch(plan, batches, bar, done, epochs)
                    if checked is not None:
                        measured["validation_loss"] = _listed(network.evaluate_prepared(*checked))
                    history.append(measured)
                    self.optimizer.observe(measured)
                    stops = [callback.on_epoch_end(network, measured) for callback in self.callbacks]
                    if any(stops):
                        break
        return history

    def _minibatches(self, X: Array, T: Array, sample_weight: Array | None) -> Minibatches:
        device, more = self.network.device, (T, sample_weight, self.batch_size, self.order, self.network.device)
        streamed = device.is_cuda and isinstance(X.data if isinstance(X, RowsOf) else X, np.ndarray)
        return (StreamedMinibatches if streamed else Minibatches)(X, *more)

    def _plan(self, batches: Minibatches) -> StepPlan:
        plan: StepPlan | None = self.network.plan
        size, stacked = batches.batch_size, batches.X.ndim == 3
        micro = min(size, self.micro_batch_size or size)
        fits = plan is not None and plan.stacked == stacked and plan.batch_size >= size
        if plan is None or not fits or plan.micro_batch_size != (plan.batch_size if micro == size else micro):
            self.network.plan = None  # its memory is free for the new one
            network = weakref.proxy(self.network)  # which keeps the plan: so the memory of both is free once it is gone
            plan = self.network.plan = StepPlan(
                network, size, stacked=stacked, micro_batch_size=micro, beside=self._beside(batches)
            )
        return plan

    def _beside(self, batches: Minibatches) -> int:
        """Device memory that an epoch takes besides its steps: copies to go back to, the order, the losses, a norm."""
        network, theta = self.network, self.network.theta
        copies = theta.nbytes + sum(array.nbytes for array in network.statistics)
        of_order = 8 * batches.N
        of_losses = 2 * len(batches) * network.dtype.itemsize * (network.members or 1)
        of_norm = 8 * min(theta.size, NORM_ELEMENTS[network.device.kind])
        return int(copies + self.optimizer.bytes_to_train(theta) + of_order + of_losses + of_norm)

    def _epoch(self, plan: StepPlan, batches: Minibatches, bar: Progress, done: int, epochs: int) -> dict[str, Any]:
        """One epoch, or none of it where it fails; and what was measured in it."""
        network = self.network
        before, state = network.snapshot(), self.optimizer.snapshot()

        def undo() -> None:
            network.restore(before)
            self.optimizer.restore(state)

        try:
            with network.device.activate(f"epoch {network.epochs_trained + 1}"):
                measured = self._steps_of_epoch(plan, batches, bar, done, epochs, undo)
        except DeviceLostError:
            raise
        except Exception:
            try:
                if network.device.is_cuda:  # steps may still be running on the plan's stream
                    network.device.module.cuda.Device().synchronize()
            finally:
                undo()
            raise
        network.epochs_trained += 1
        return measured

    def _steps_of_epoch(
        self, plan: StepPlan, batches: Minibatches, bar: Progress, done: int, epochs: int, undo: Callable[[], None]
    ) -> dict[str, Any]:
        network, epoch, began = self.network, self.network.epochs_trained, time.perf_counter()
        xp, lead = network.device.module, () if network.members is None else (network.members,)
        losses = xp.empty((len(batches), *lead), network.dtype)  # read once, at the end: no wait within the epoch
        b = examples = 0
        for part in batches.parts(epoch, self._launches(batches, bar)):
            steps = len(part.index)
            losses[b : b + steps] = plan.steps(*part, self.optimizer, reduce_gradients=self.reduce_gradients)
            b, examples = b + steps, examples + part.index.size
            if bar.due:
                shown = float(to_host(losses[b - 1]).mean())
                if not np.isfinite(shown):
                    break
                rate = examples / (time.perf_counter() - began)
                bar.show(done * len(batches) + b, f"{done + 1}/{epochs}", shown, rate)
        if network.device.is_cuda:
            self._events[0].record()
            cuda.wait(self._events[0])
        measured_losses = to_host(losses[:b]).astype(np.float64).T  # (..., batches)
        seconds = time.perf_counter() - began  # after the losses have come, and so all that they waited for
        bad = ~np.isfinite(measured_losses).reshape(-1, b)  # (E, batches), E = 1 for a single network
        bad[:, -1] |= ~to_host(xp.isfinite(network.theta).all(axis=-1)).reshape(-1)  # the last update went too far
        if bad.any():
            self._raise_diverged(plan, batches, undo, bad)
        sizes = [rows.stop - rows.start for rows in row_slices(batches.N, batches.batch_size)]
        loss = np.average(measured_losses, axis=-1, weights=sizes)
        rate = np.broadcast_to(self.optimizer.current_rate, lead)
        norm = _listed(norm_of(plan.dL_dtheta))
        values = (epoch + 1, _listed(loss), seconds, batches.N / seconds, _listed(rate), norm)
        return dict(zip(MEASURES, values, strict=True))

    def _launches(self, batches: Minibatches, bar: Progress) -> Iterator[int]:
        """How many full batches to do at a time: as many as take `LAUNCH_SECONDS`.

        On a device all of them, as they are only enqueued, and Ctrl-C is heard meanwhile; but for a progress bar to
        move, two launches ahead of it at most.
        """
        full, is_cuda = batches.N // batches.batch_size, self.network.device.is_cuda
        done = 0
        while done < full:
            began = time.perf_counter()
            steps = full if is_cuda and not bar.shown else min(self._steps, full - done)
            yield steps
            done += steps
            if is_cuda and bar.shown:
                self._events.reverse()
                self._events[0].record()
                cuda.wait(self._events[1])
            if steps == self._steps and (time.perf_counter() - began) * 2 < LAUNCH_SECONDS:
                self._steps *= 2

    def _raise_diverged(
        self, plan: StepPlan, batches: Minibatches, undo: Callable[[], None], bad: np.ndarray[Any, Any]
    ) -> None:
        """Train the epoch again up to the first bad batch, look at every layer there, and raise."""
        network, epoch = self.network, self.network.epochs_trained
        first = int(np.flatnonzero(bad.any(axis=0))[0])
        who = "" if network.members is None else f" of member {', '.join(map(str, np.flatnonzero(bad[:, first])))}"
        undo()
        left = first
        for part in batches.parts(epoch):
            first_ones = part._replace(index=part.index[:left])
            plan.steps(*first_ones, self.optimizer, reduce_gradients=self.reduce_gradients)
            if left < len(part.index):
                lines = self._largest(*plan.minibatch(part[:3], part.index[left]))
                break
            left -= len(part.index)
        raise TrainingDivergedError(
            f"the loss or a weight{who} is not a finite number in epoch {epoch + 1}, "
            f"batch {first + 1} of {len(batches)}.\n"
            + "\n".join(lines)
            + f"\nWhat was learned in this epoch is undone. Try a smaller learning rate than "
            f"{self.optimizer.learning_rate}, or inputs that a Standardize layer has scaled."
        )

    def _largest(self, X: Array, T: Array, w: Array | None) -> list[str]:
        """A table of the largest activation and gradient of each layer, for a batch that went wrong."""
        network = self.network
        rows = [
            f"  {'layer':<44}{'largest |activation|':>22}{'largest |gradient|':>22}",
            f"  {'X':<44}{_largest(X):>22}",
        ]
        network.draws.begin_steps(0)
        network.run_step(X, T, w)
        for layer in network.executed:
            X, _ = layer.forward(X, training=True, rng=network.draws)
            gradients = [_largest(gradient) for gradient in layer.gradients.values()]
            rows.append(f"  {layer!r:<44}{_largest(X):>22}{', '.join(gradients):>22}")
        return rows


def _largest(array: Array) -> str:
    host = to_host(array)
    finite = np.isfinite(host)
    share = "" if finite.all() else f" ({1 - finite.mean():.0%} not finite)"
    return f"{np.abs(host[finite]).max() if finite.any() else float('nan'):.3g}{share}"


def norm_of(gradient: Array) -> np.ndarray[Any, Any]:
    """The Euclidean norm of a gradient (P,), or of each row of (E, P), summed in float64."""
    P = gradient.shape[-1]
    rows, xp = gradient.reshape(-1, P), array_module(gradient)
    most = NORM_ELEMENTS["cpu" if xp is np else "cuda"]
    squares = xp.zeros(len(rows), np.float64)
    for some in row_slices(len(rows), max(1, most // max(1, P))):
        for columns in row_slices(P, most):
            part = rows[some, columns].astype(np.float64)
            part *= part
            squares[some] += part.sum(axis=-1)
            del part  # before the next one is made
    squares = squares.reshape(gradient.shape[:-1])
    norm: np.ndarray[Any, Any] = np.sqrt(to_host(squares))
    return norm


def _listed(numbers: Any) -> Any:
    """One number as a plain float, E of them as a list."""
    return np.asarray(numbers).tolist()


def fit(
    network: Network,
    X: Any,
    T: Any,
    *,
    optimizer: Optimizer | None = None,
    epochs: int = 10,
    batch_size: int = 256,
    shuffle: bool = True,
    sample_weight: Any = None,
    validation: Sequence[Any] | None = None,
    callbacks: Sequence[Callback] = (),
    rng: int | np.random.Generator | None = 0,
    order: Order | None = None,
    progress: bool = True,
    threads: int | None = None,
    resident: bool | None = None,
    micro_batch_size: int | None = None,
) -> History:
    """Train a network: `Trainer` in one call; see there for the arguments and errors.

    A second call with the same network and optimizer goes on where the first one stopped.
    """
    trainer = Trainer(
        network,
        optimizer or Adam(),
        batch_size=batch_size,
        shuffle=shuffle,
        rng=rng,
        order=order,
        callbacks=callbacks,
        progress=progress,
        threads=threads,
        resident=resident,
        micro_batch_size=micro_batch_size,
    )
    return trainer.fit(X, T, epochs=epochs, sample_weight=sample_weight, validation=validation)
