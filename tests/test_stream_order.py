"""Streams wait for each other where they must: trainings are the same whatever order a device does its work in.

The stand-in for CuPy defers all work here, and then does it in an order as bad as the events allow. A wait that is
taken out of the library is noticed.
"""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

import fake_cupy as fake
import numpy as np
import pytest

import gpubp
from gpubp import cuda
from gpubp.backend import to_device, to_host
from gpubp.data import minibatches
from gpubp.errors import TrainingDivergedError

Result = list[np.ndarray]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps in a part of the streamed examples, and a workspace of cuBLAS that is quickly filled."""
    monkeypatch.setattr(minibatches.StreamedMinibatches, "BYTES", 400)
    monkeypatch.setattr("gpubp.cublas._MIB", 16)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(53, 6)), rng.dirichlet(np.ones(3), size=53), rng.uniform(0.5, 1, size=53)


def fitted(**settings: Any) -> Result:
    X, T, w = data()
    net = gpubp.mlp([6, 9, 3], standardize=True, device="cuda")
    settings = {"optimizer": gpubp.Adam(0.01), "epochs": 2, "batch_size": 8, "validation": (X, T), **settings}
    history = gpubp.fit(net, X, T, sample_weight=w, **settings)
    assert net.plan.why_not_captured is None
    return [to_host(net.theta), np.array(history.columns["loss"])]


def fitted_twice() -> Result:
    """The second network takes the memory that the first one gave back."""
    return [*fitted(resident=False), *fitted(resident=False)]


def trained_in_turn(**settings: Any) -> Result:
    """Two networks, each with streams of its own, on arrays that nobody holds while steps read them."""
    X, T, _ = data()
    nets = [gpubp.mlp(widths, device="cuda", rng=k) for k, widths in enumerate(([6, 9, 3], [6, 4, 4, 3]))]
    plans, optimizers = [gpubp.StepPlan(net, 8) for net in nets], [gpubp.Adam(0.01), gpubp.SGD(0.1, 0.9)]
    losses = []
    for steps in (11, 2):
        for net, plan, optimizer in zip(nets, plans, optimizers, strict=True):
            examples = net.inputs(X)
            index = to_device(np.random.default_rng(steps).integers(53, size=(steps, 8)), net.device)
            losses.append(plan.steps(examples, net.targets(T, examples), None, index, optimizer, **settings))
    return [to_host(array) for array in (*losses, *(net.theta for net in nets))]


def halved(gradient: Any) -> None:
    gradient *= 0.5


TRAININGS: dict[str, Callable[[], Result]] = {
    "resident": fitted,
    "streamed": lambda: fitted(resident=False),
    "streamed micro-batches": lambda: fitted(resident=False, micro_batch_size=3),
    "streamed twice": fitted_twice,
    "two networks": trained_in_turn,
    "two networks, not captured": lambda: trained_in_turn(reduce_gradients=halved),
}


def at_once(training: str) -> Result:
    with fake.installed():
        return TRAININGS[training]()


@functools.cache
def expected_of(training: str) -> Result:
    return at_once(training)


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("order", fake.ORDERS)
def test_training_is_the_same_in_any_order(training: str, order: str) -> None:
    with fake.installed(order=order):
        actual = TRAININGS[training]()
    for a, b in zip(actual, expected_of(training), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("resident", [True, False])
def test_an_epoch_makes_no_events_and_none_has_a_clock(resident: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[fake.Event] = []  # kept, so that none takes another's place in memory
    wait, wait_event = cuda.wait, fake.Stream.wait_event
    monkeypatch.setattr(cuda, "wait", lambda event: (waited.append(event), wait(event)))
    monkeypatch.setattr(
        fake.Stream, "wait_event", lambda stream, event: (waited.append(event), wait_event(stream, event))
    )
    counts = []
    for epochs in (2, 5):
        waited.clear()
        with fake.installed():
            fitted(epochs=epochs, resident=resident)
        assert not any(event._is_timed for event in waited)
        counts.append(len({*map(id, waited)}))
    assert counts[0] == counts[1] <= 6  # of the plan one, of the trainer two; of the streamed examples four


SLOT, STREAMED = minibatches._Slot, minibatches.StreamedMinibatches
FAULTS = {  # where a line is taken out, and a training that notices it
    "steps do not wait for what they read": (cuda, "ordered", "stream.wait_event(event)", "two networks"),
    "nobody waits for the steps": (cuda, "ordered", "caller.wait_event(event)", "two networks"),
    "examples are replaced that steps still read": (SLOT, "filled", "stream.wait_event(self.in_use)", "streamed"),
    "reading them is not recorded": (STREAMED, "parts", "slot.in_use.record()", "streamed"),
    "steps do not wait for their examples": (
        SLOT,
        "filled",
        "xp.cuda.get_current_stream().wait_event(self._copied)",
        "streamed",
    ),
    "copying them is not recorded": (SLOT, "filled", "self._copied.record(stream)", "streamed"),
    "examples are replaced that are still copied": (SLOT, "filled", "self._copied.synchronize()", "streamed"),
    "memory is taken that is still somebody else's": (SLOT, "__init__", "self.in_use.record()", "streamed twice"),
}


@pytest.mark.parametrize(("owner", "name", "line", "training"), FAULTS.values(), ids=FAULTS)
def test_a_missing_ordering_is_noticed(
    owner: Any, name: str, line: str, training: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = expected_of(training)
    source = textwrap.dedent(inspect.getsource(getattr(owner, name)))
    assert source.count(line) == 1
    namespace = dict(vars(inspect.getmodule(getattr(owner, name))))
    exec(source.replace(line, "pass"), namespace)
    monkeypatch.setattr(owner, name, namespace[name])
    for a, b in zip(at_once(training), expected, strict=True):
        np.testing.assert_array_equal(a, b)  # a device that does everything at once notices nothing
    noticed = []
    for order in fake.ORDERS:
        try:
            with fake.installed(order=order):
                same = all(map(np.array_equal, TRAININGS[training](), expected))
        except TrainingDivergedError:  # it met memory that nobody has written yet
            same = False
        if not same:
            noticed.append(order)
    assert noticed
