"""The training loop: minibatches through the planned step, epoch after epoch."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gpubp.backend import Array, to_host
from gpubp.callbacks import Callback, History, Progress
from gpubp.data.minibatches import Minibatches, Order, in_order, shuffled
from gpubp.errors import SettingError, TrainingDivergedError
from gpubp.losses.base import require_finite
from gpubp.network import Network, require_batch_size, require_examples
from gpubp.ops.gather import row_slices
from gpubp.optimizers.adam import Adam
from gpubp.optimizers.base import Optimizer
from gpubp.plan import StepPlan

MEASURES = ("epoch", "loss", "seconds", "examples_per_second")


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
            parallelism.
        progress: Whether to show a progress bar, on a terminal only.

    Raises:
        SettingError: The batch size is not a positive whole number.
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

        Args:
            X: (N, n_in), or (E, N, n_in) with other examples for each member of a stack.
            T: Targets as the loss takes them.
            epochs: How many times to visit every example.
            sample_weight: (N,) or (E, N), relative to their mean over all examples, so that minibatches of any size
                minimise the weighted mean of the losses; None weighs all examples the same.
            validation: ``(X, T)`` or ``(X, T, sample_weight)`` to measure the loss on after each epoch.

        Returns:
            What was measured after each epoch.

        Raises:
            DataError, ShapeError, DeviceError: The data does not fit the network; it is unchanged.
            TrainingDivergedError: The loss or a weight is no longer a finite number. The weights and the optimizer's
                state are those from before the epoch; with `EarlyStopping` the weights are the best ones.
        """
        if isinstance(epochs, bool) or not isinstance(epochs, int | np.integer) or epochs < 0:
            raise SettingError(f"epochs={epochs!r}: a whole number of at least 0 is needed")
        if validation is not None and not (isinstance(validation, tuple | list) and len(validation) in (2, 3)):
            raise SettingError("validation: a tuple (X, T) or (X, T, sample_weight) is needed")
        network, history = self.network, History()
        with network.device.activate(), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            data = self._prepared(X, T, sample_weight)
            checked = None if validation is None else self._prepared(*validation, *[None] * (3 - len(validation)))
            batches = Minibatches(*data, self.batch_size, self.order, network.device)
            network.adapt(data[0])
            plan = self._plan(batches)
            measures = [*MEASURES, *([] if checked is None else ["validation_loss"])]
            for callback in self.callbacks:
                callback.on_train_begin(network, measures)
            try:
                with Progress(epochs * len(batches), self.progress) as bar:
                    for done in range(epochs):
                        measured = self._epoch(plan, batches, bar, done, epochs)
                        if checked is not None:
                            measured["validation_loss"] = _listed(network.evaluate_prepared(*checked))
                        history.append(measured)
                        stops = [callback.on_epoch_end(network, measured) for callback in self.callbacks]
                        if any(stops):
                            break
            finally:
                for callback in self.callbacks:
                    callback.on_train_end(network)
        return history

    def _prepared(self, X: Any, T: Any, sample_weight: Any) -> tuple[Array, Array, Array | None]:
        network = self.network
        X = network.inputs(X)
        for rows in row_slices(require_examples(X), 65536):
            require_finite(X[..., rows, :], "X")
        return X, network.targets(T, X), network.sample_weights(sample_weight, X)

    def _plan(self, batches: Minibatches) -> StepPlan:
        plan, stacked = self.network.plan, batches.X.ndim == 3
        if plan is None or plan.batch_size < batches.batch_size or plan.stacked != stacked:
            plan = self.network.plan = StepPlan(self.network, batches.batch_size, stacked=stacked)
        return plan  # type: ignore[no-any-return]

    def _epoch(self, plan: StepPlan, batches: Minibatches, bar: Progress, done: int, epochs: int) -> dict[str, Any]:
        """One epoch, and what was measured in it."""
        network, epoch, began = self.network, self.network.epochs_trained, time.perf_counter()
        xp, lead = network.device.module, () if network.members is None else (network.members,)
        losses = xp.empty((*lead, len(batches)), network.dtype)  # read once, at the end: no wait within the epoch
        theta, state = network.theta.copy(), self.optimizer.snapshot()
        for b, (X, T, w) in enumerate(batches.epoch(epoch)):
            L = plan.step(X, T, w, self.optimizer, reduce_gradients=self.reduce_gradients)
            losses[..., b] = L
            if bar.due:
                shown = float(to_host(L).mean())
                if not np.isfinite(shown):
                    break
                seen = min((b + 1) * batches.batch_size, batches.N)
                rate = seen / (time.perf_counter() - began)
                bar.show(done * len(batches) + b + 1, f"{done + 1}/{epochs}", shown, rate)
        measured_losses = to_host(losses[..., : b + 1]).astype(np.float64)
        seconds = time.perf_counter() - began  # after the losses have come, and so all that they waited for
        bad = ~np.isfinite(measured_losses).reshape(-1, b + 1)  # (E, batches), E = 1 for a single network
        bad[:, -1] |= ~to_host(xp.isfinite(network.theta).all(axis=-1)).reshape(-1)  # the last update went too far
        if bad.any():
            self._raise_diverged(plan, batches, theta, state, bad)
        network.epochs_trained += 1
        sizes = [rows.stop - rows.start for rows in row_slices(batches.N, batches.batch_size)]
        loss = np.average(measured_losses, axis=-1, weights=sizes)
        return dict(zip(MEASURES, (epoch + 1, _listed(loss), seconds, batches.N / seconds), strict=True))

    def _raise_diverged(
        self, plan: StepPlan, batches: Minibatches, theta: Array, state: Any, bad: np.ndarray[Any, Any]
    ) -> None:
        """Train the epoch again up to the first bad batch, look at every layer there, go back to its start, raise."""
        network, epoch = self.network, self.network.epochs_trained
        first = int(np.flatnonzero(bad.any(axis=0))[0])
        who = "" if network.members is None else f" of member {', '.join(map(str, np.flatnonzero(bad[:, first])))}"
        network.theta[...] = theta
        self.optimizer.restore(state)
        for b, (X, T, w) in enumerate(batches.epoch(epoch)):
            if b == first:
                lines = self._largest(X, T, w)
                break
            plan.step(X, T, w, self.optimizer, reduce_gradients=self.reduce_gradients)
        network.theta[...] = theta
        self.optimizer.restore(state)
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
        network.run_step(X, T, w)
        for layer in network.executed:
            X, _ = layer.forward(X, training=True)
            gradients = [_largest(gradient) for gradient in layer.gradients.values()]
            rows.append(f"  {layer!r:<44}{_largest(X):>22}{', '.join(gradients):>22}")
        return rows


def _largest(array: Array) -> str:
    host = to_host(array)
    finite = np.isfinite(host)
    share = "" if finite.all() else f" ({1 - finite.mean():.0%} not finite)"
    return f"{np.abs(host[finite]).max() if finite.any() else float('nan'):.3g}{share}"


def _listed(loss: Any) -> Any:
    """A loss as a plain float, or a list of E floats."""
    return np.asarray(loss).tolist()


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
    )
    return trainer.fit(X, T, epochs=epochs, sample_weight=sample_weight, validation=validation)
