"""A device that fails: what a user is told, and that nothing hangs, is passed over, or stays half done."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from typing import Any

import fake_cupy as fake
import numpy as np
import pytest
from every_fault import bounded
from fake_cupy.driver import STATUSES

import gpubp
from gpubp import faults
from gpubp.errors import DeviceError, DeviceLostError, OutOfDeviceMemoryError

X = np.random.default_rng(0).normal(size=(40, 4)).astype("float32")
T = np.arange(40) % 2


def network(device: str = "cuda") -> gpubp.Network:
    return gpubp.mlp([4, 3, 2], device=device)


def fit(net: gpubp.Network, **settings: Any) -> None:
    gpubp.fit(net, X, T, **{"optimizer": gpubp.SGD(0.1), "epochs": 3, "batch_size": 8, **settings})


class At(gpubp.callbacks.Callback):
    """Does something to the machine after an epoch."""

    def __init__(self, epoch: int, **changes: Any) -> None:
        self.epoch, self.changes = epoch, changes

    def on_epoch_end(self, network: Any, measured: Any) -> bool:
        if measured["epoch"] == self.epoch:
            for name, value in self.changes.items():
                setattr(fake.machine, name, value)
        return False


def test_what_loses_a_device_is_what_cuda_says_it_is() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    words = "the process must be terminated and relaunched"
    documented = {int(status) for status in runtime.cudaError_t if words in " ".join((status.__doc__ or "").split())}
    assert {700, 716, 719} <= documented <= faults.LOST


@pytest.mark.usefixtures("fake_cupy")
@pytest.mark.parametrize("status", [700, 716, 719])
def test_an_event_that_is_never_passed_ends_a_training(status: int) -> None:
    net = network()
    with (
        bounded(),
        pytest.raises(
            DeviceLostError, match=rf"^cuda:0 failed while training, epoch 3 \({STATUSES[status][0]}: .*restart"
        ),
    ):
        fit(net, callbacks=[At(2, running_into=status)], epochs=9)
    for call in (lambda: net.predict(X), lambda: net.evaluate(X, T), lambda: fit(net), network):
        with bounded(), pytest.raises(DeviceLostError):
            call()


def streamed(net: gpubp.Network) -> None:
    fit(net, resident=False)


def in_many_steps(net: gpubp.Network) -> None:
    fit(net, batch_size=1)


STAGES = [
    ("training, copying data to the device", "copy", 1, fit),
    ("training, epoch 1", "record", 1, fit),
    ("training, epoch 1, streaming the examples", "copy", 2, streamed),  # the targets are copied first
    ("training, epoch 1, capturing a step", "beginCapture", 1, fit),
    ("training, epoch 1, capturing a step", "beginCapture", 2, fit),
    ("training, epoch 1", "beginCapture", 3, in_many_steps),  # of 32 steps together
    ("predicting", "launch", 1, lambda net: net.predict(X)),
    ("evaluating", "launch", 1, lambda net: net.evaluate(X, T)),
    ("computing gradients", "launch", 1, lambda net: net.loss_and_gradients(X, T)),
    ("copying results to the host", "wait", 1, lambda net: gpubp.to_host(net.theta)),
]


@pytest.mark.usefixtures("fake_cupy")
@pytest.mark.parametrize(("stage", "kind", "left", "call"), STAGES)
def test_the_stage_is_named(
    stage: str, kind: str, left: int, call: Callable[[gpubp.Network], Any], recwarn: pytest.WarningsRecorder
) -> None:
    net = network()

    def fault(number: int, of_kind: str) -> None:
        nonlocal left
        left -= of_kind == kind
        if not left:
            fake.machine.lost = 700

    fake.machine.fault = fault
    with bounded(), pytest.raises(DeviceLostError, match=rf"failed while {stage} \(.*an illegal memory access"):
        call(net)
    assert [str(warning.message) for warning in recwarn] == []  # that it was not captured, say


@pytest.mark.usefixtures("fake_cupy")
def test_what_fails_while_cleaning_up_does_not_hide_the_first_error() -> None:
    ended = []

    class Ends(gpubp.callbacks.Callback):
        def on_train_end(self, network: Any) -> None:
            ended.append(network)

    callbacks = [gpubp.EarlyStopping(monitor="loss"), At(1, running_into=700), Ends()]  # the first puts weights back
    with bounded(), pytest.raises(DeviceLostError, match="training, epoch 2"):
        fit(network(), callbacks=callbacks)
    assert len(ended) == 1


@pytest.mark.usefixtures("fake_cupy")
@pytest.mark.parametrize(
    ("error", "raised", "words"),
    [
        (fake.CUDARuntimeError(1), DeviceError, r"epoch 1 \(cudaErrorInvalidValue: invalid argument\)\. Try again"),
        (fake.CUDADriverError(2), OutOfDeviceMemoryError, "cuda:0 has not enough memory"),
        (fake.OutOfMemoryError(8, 0), OutOfDeviceMemoryError, "cuda:0 has not enough memory"),
        (fake.cublas.cuBLASError("INTERNAL_ERROR"), DeviceError, "epoch 1 .*CUBLAS_STATUS_INTERNAL_ERROR"),
        (urllib.error.HTTPError("", 404, "gone", None, None), urllib.error.HTTPError, "gone"),  # it has a status, too
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_within_an_epoch_undoes_it(error: Exception, raised: type[Exception], words: str) -> None:
    for device in ("cuda", "cpu") if isinstance(error, urllib.error.HTTPError) else ("cuda",):
        net, other, optimizer, theirs = network(device), network(device), gpubp.Adam(0.1), gpubp.Adam(0.1)
        steps = []

        def fails(gradient: Any, steps: list[int] = steps) -> None:
            steps.append(1)
            if len(steps) == 3:
                raise error

        trainer = gpubp.Trainer(net, optimizer, batch_size=8, reduce_gradients=fails)
        with pytest.raises(raised, match=words):
            trainer.fit(X, T, epochs=1)
        assert (net.epochs_trained, optimizer.steps) == (0, 0)
        np.testing.assert_array_equal(gpubp.to_host(net.theta), gpubp.to_host(other.theta))
        fit(net, optimizer=optimizer)
        fit(other, optimizer=theirs)
        np.testing.assert_allclose(gpubp.to_host(net.theta), gpubp.to_host(other.theta), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("fake_cupy")
def test_data_that_cannot_be_read_is_no_excuse_for_a_lost_device() -> None:
    class Tensor:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

    net = network()
    fake.machine.lost = 700
    with pytest.raises(DeviceLostError):
        net.predict(Tensor())
