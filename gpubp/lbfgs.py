"""Training by L-BFGS, of SciPy, over the flat parameter buffer: for small networks, and all examples in each step."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubp import cpu
from gpubp.backend import Array, to_host
from gpubp.callbacks import Callback, History
from gpubp.data.prepared import prepared
from gpubp.errors import GpubpError, SettingError, TrainingDivergedError
from gpubp.examples import RowsOf
from gpubp.network import Network
from gpubp.ops.gather import example_axis
from gpubp.plan import StepPlan
from gpubp.settings import require_count, require_positive

MEASURES = ("epoch", "loss", "seconds", "gradient_norm")


def fit_lbfgs(
    network: Network,
    X: Any,
    T: Any,
    *,
    iterations: int = 200,
    tolerance: float = 1e-5,
    memory: int = 10,
    sample_weight: Any = None,
    validation: Sequence[Any] | None = None,
    callbacks: Sequence[Callback] = (),
    threads: int | None = None,
    micro_batch_size: int | None = None,
) -> History:
    """Train a network by L-BFGS: ``scipy.optimize.minimize(method="L-BFGS-B")`` on the loss over all examples.

    SciPy computes in float64; the network's loss and gradient are in its own dtype, and in float64 this gets further.
    The members of a stack are trained one after the other, each as the single network that callbacks see; what writes
    one file of a training, `CSVLogger` and `TensorBoard`, is refused there. Random layers draw the same numbers in
    every evaluation, so that there is one function to minimise. Running statistics take in what was seen where an
    iteration ended, once, and nothing of the points that were tried on the way.

    Args:
        network: The network; a second call goes on from its weights.
        X: (N, n_in), or (E, N, n_in) with other examples for each member of a stack; with a `micro_batch_size`, a
            NumPy array mapped from a file, or a `RowsOf`, is read part by part.
        T: Targets as the loss takes them.
        iterations: How many there are at most; each takes one evaluation of the loss over all examples, or some.
        tolerance: Stop where no component of the gradient is larger than this, or the loss changes by rounding alone.
        memory: Of how many steps to remember the change of the gradient.
        sample_weight: As for `gpubp.fit`.
        validation: ``(X, T)`` or ``(X, T, sample_weight)`` to measure the loss on after each iteration.
        callbacks: Look on after each iteration, as after an epoch.
        threads: How many CPU threads to use; None for `gpubp.cpu.threads`.
        micro_batch_size: How many examples to compute at a time; None for all at once.

    Returns:
        What was measured after each iteration. In a stack a member that is done keeps its last row.

    Raises:
        SettingError: A setting is outside its range, or a callback is for a single network.
        DataError, ShapeError, DeviceError: The data does not fit the network; it is unchanged.
        TrainingDivergedError: The loss, or that of a member, is not finite to begin with; weights and running
            statistics, those of all members, are unchanged.
        GpubpError: SciPy is not installed.
    """
    require_count(None, "iterations", iterations, least=0)
    require_positive(None, "tolerance", tolerance)
    require_count(None, "memory", memory)
    if micro_batch_size is not None:
        require_count(None, "micro_batch_size", micro_batch_size)
    if validation is not None and not (isinstance(validation, tuple | list) and len(validation) in (2, 3)):
        raise SettingError("validation: a tuple (X, T) or (X, T, sample_weight) is needed")
    for callback in callbacks:
        if network.members is not None and not callback.for_each_member:
            raise SettingError(
                f"{type(callback).__name__} keeps one training, and fit_lbfgs trains the members of a stack one after "
                "the other: take the history that it returns, whose rows have all members side by side"
            )
    options = {
        "maxiter": iterations,
        "maxfun": 20 * iterations + 20,
        "maxcor": memory,
        "gtol": tolerance,
        "ftol": float(np.finfo(network.dtype).eps),
    }
    with (
        network.device.activate("training"),
        cpu.limited_threads(cpu.require_threads(threads)),
        np.errstate(over="ignore", invalid="ignore", divide="ignore"),
    ):
        data = prepared(network, X, T, sample_weight)
        if micro_batch_size is None or micro_batch_size >= data[0].shape[-2]:  # all at once: converted but once
            data = network.device.module.ascontiguousarray(network.converted(data[0])), *data[1:]
        checked = None if validation is None else prepared(network, *validation)
        network.adapt(data[0])
        if network.members is None:
            histories = [_fit(network, data, checked, callbacks, options, micro_batch_size)]
        else:
            histories, before = [], network.snapshot()
            for e in range(network.members):
                single = _member(network, e)
                own, own_checked = _of_member(data, e), None if checked is None else _of_member(checked, e)
                try:
                    histories.append(_fit(single, own, own_checked, callbacks, options, micro_batch_size))
                except TrainingDivergedError as error:
                    network.restore(before)
                    raise TrainingDivergedError(f"member {e}: {error}") from error
                _put_back(single, network, e)
            network.epochs_trained += max(map(len, histories))
    return histories[0] if network.members is None else _side_by_side(histories)


def _fit(
    network: Network, data: Any, checked: Any, callbacks: Sequence[Callback], options: dict[str, Any], micro: int | None
) -> History:
    """Train a single network."""
    try:
        minimize = importlib.import_module("scipy.optimize").minimize
    except ImportError as error:
        raise GpubpError("L-BFGS is SciPy's: pip install scipy") from error
    xp, history, began = network.device.module, History(), time.perf_counter()
    plan = StepPlan(network, data[0].shape[-2], micro_batch_size=micro)
    tried = start = to_host(network.theta).astype(np.float64)
    accepted, norm = network.snapshot(), float("nan")

    def loss_and_gradient(theta: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        nonlocal tried, norm
        network.restore(accepted)  # statistics too: nothing of other points is in them
        network.theta[...] = xp.asarray(theta, dtype=network.dtype)
        L = float(to_host(plan.gradients(*data)))
        gradient = to_host(plan.dL_dtheta).astype(np.float64)
        tried, norm = theta.copy(), float(np.linalg.norm(gradient))
        return L, gradient

    def after_iteration(intermediate_result: Any) -> None:
        nonlocal accepted, began
        if not np.array_equal(tried, intermediate_result.x):  # it is where SciPy looked last, which nobody promises
            loss_and_gradient(intermediate_result.x)
        accepted = network.snapshot()
        network.epochs_trained += 1
        values = network.epochs_trained, float(intermediate_result.fun), time.perf_counter() - began, norm
        measured = dict(zip(MEASURES, values, strict=True))
        if checked is not None:
            measured["validation_loss"] = network.evaluate_prepared(*checked)
        history.append(measured)
        stops = [callback.on_epoch_end(network, measured) for callback in callbacks]
        began = time.perf_counter()
        if any(stops):
            raise StopIteration

    first, _ = loss_and_gradient(start)
    network.restore(accepted)  # SciPy will look there again
    if not np.isfinite(first):
        raise TrainingDivergedError(
            f"the loss is {first} before the first iteration; the network is unchanged. Try other initial weights, or "
            "inputs that a Standardize layer has scaled."
        )
    for callback in callbacks:
        callback.on_train_begin(network, [*MEASURES, *([] if checked is None else ["validation_loss"])])
    with contextlib.ExitStack() as at_the_end:
        for callback in reversed(callbacks):  # called in their order, each of them whatever the others do
            at_the_end.callback(callback.on_train_end, network)
        at_the_end.callback(lambda: network.restore(accepted))
        if options["maxiter"]:
            settings = {"jac": True, "method": "L-BFGS-B", "callback": after_iteration, "options": options}
            minimize(loss_and_gradient, start, **settings)
    return history


def _of_member(data: Any, e: int) -> tuple[Array, Array, Array | None]:
    """The data of one member of a stack."""
    X, T, w = data
    own_w = w if w is None or w.ndim == 1 else w[e]
    if X.ndim == 3:
        X = X.of(X.data[e]) if isinstance(X, RowsOf) else X[e]
    return X, T if T.ndim == -example_axis(T) else T[e], own_w


def _member(network: Network, e: int) -> Network:
    """A single network with the values of one member of a stack."""
    single = Network(
        [type(layer)(**layer.config()) for layer in network.layers],
        type(network.loss)(**network.loss.config()),
        dtype=network.dtype,
        device=network.device,
        l2=network.l2,
        matmul_precision=network.matmul_precision,
    )
    single.theta[...] = network.theta[e]
    single.epochs_trained = network.epochs_trained
    for mine, theirs in zip(network.layers, single.layers, strict=True):
        shapes = mine.constant_shapes()
        theirs.constants = {
            name: (array[e] if array.ndim > len(shapes[name]) else array).copy()
            for name, array in mine.constants.items()
        }
    return single


def _put_back(single: Network, network: Network, e: int) -> None:
    """Give a member the values that it has as a single network."""
    network.theta[e] = single.theta
    for mine, theirs in zip(network.layers, single.layers, strict=True):
        for name, array in mine.constants.items():
            own = theirs.constants[name]
            (array[e] if array.ndim > own.ndim else array)[...] = own


def _side_by_side(histories: list[History]) -> History:
    """The histories of the members of a stack as that of the stack."""
    together, longest = History(), max(histories, key=len)
    for k in range(len(longest)):
        row: dict[str, Any] = {}
        for name, column in longest.columns.items():  # of a member that had nothing to do: not a number
            row[name] = [h[name][min(k, len(h) - 1)] if len(h) else float("nan") for h in histories]
            if name == "epoch":
                row[name] = column[k]
        together.append({**row, "seconds": float(np.nansum(row["seconds"]))})
    return together
