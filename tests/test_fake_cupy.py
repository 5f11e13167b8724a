"""The stand-in for CuPy refuses what CuPy refuses, has what CuPy has, and whole layers run on it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import fake_cupy as fake
import numpy as np
import pytest

from gpubp.backend import Device, array_module, as_array, device_of, resolve_device, to_device, to_host, why_no_cuda
from gpubp.errors import DeviceError
from gpubp.layers.base import Activation
from gpubp.layers.dense import Dense
from gpubp.layers.dense_activation import DenseActivation
from gpubp.layers.leaky_relu import LeakyReLU
from gpubp.layers.sigmoid import Sigmoid

HOST = np.arange(6.0).reshape(2, 3)


@pytest.fixture(params=[None, *fake.ORDERS], ids=str)
def fake_cupy(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The stand-in, which does its work at once, or deferred in either order."""
    with fake.installed(order=request.param) as module:
        yield module


@pytest.fixture(params=fake.ORDERS)
def deferred(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The stand-in with deferred work."""
    with fake.installed(order=request.param) as module:
        yield module


REFUSED: dict[str, Callable[[ModuleType, Any], Any]] = {
    "a NumPy ufunc": lambda xp, A: np.exp(A),
    "a NumPy function": lambda xp, A: np.sum(A),
    "NumPy's conversion": lambda xp, A: np.asarray(A),
    "NumPy's conversion of rows": lambda xp, A: np.array(list(A)),
    "NumPy's conversion of a number": lambda xp, A: np.asarray(A.sum()),
    "a buffer": lambda xp, A: memoryview(A),
    "host + device": lambda xp, A: HOST + A,
    "device + host": lambda xp, A: A + HOST,
    "device @ host": lambda xp, A: A @ HOST.T,
    "adding a host array in place": lambda xp, A: A.__iadd__(HOST),
    "a host array in a function": lambda xp, A: xp.add(A, HOST),
    "a host array in a list": lambda xp, A: xp.concatenate([A, HOST]),
    "a host array as out": lambda xp, A: xp.exp(A, out=np.empty((2, 3))),
    "assigning a host array": lambda xp, A: A.__setitem__(..., HOST),
    "a host array as an index": lambda xp, A: A[np.array([0])],
    "a device array as out of NumPy": lambda xp, A: np.exp(HOST, out=A),
    "assigning to a host array": lambda xp, A: HOST.copy().__setitem__(..., A),
    "a list index by a device number": lambda xp, A: [1, 2][xp.argmax(A)],
    "where= of a ufunc": lambda xp, A: xp.add(A, A, where=A > 1),
    "mode= of take": lambda xp, A: xp.take(A, xp.asarray([0]), axis=0, mode="clip"),
    "mode of take by its place": lambda xp, A: xp.take(A, xp.asarray([0]), 0, None, "clip"),
    "the first argument by NumPy's name": lambda xp, A: xp.flip(m=A),
    "initial= of a sum": lambda xp, A: A.sum(initial=1.0),
    "the truth of several numbers": lambda xp, A: bool(A),
    "one number of several": lambda xp, A: float(A),
}


@pytest.mark.parametrize("attempt", REFUSED.values(), ids=REFUSED)
def test_is_refused(fake_cupy: ModuleType, attempt: Callable[[ModuleType, Any], Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        attempt(fake_cupy, fake_cupy.asarray(HOST))


def test_names_that_numpy_has_alone(fake_cupy: ModuleType) -> None:
    A = fake_cupy.asarray(HOST)
    for name in ("__index__", "__contains__", "setflags", "resize"):
        assert hasattr(HOST, name)
        assert not hasattr(A, name)
    for name in ("errstate", "nditer", "memmap", "vecdot"):
        assert hasattr(np, name)
        assert not hasattr(fake_cupy, name)
    assert not hasattr(fake_cupy.add, "reduce")  # CuPy has it for some ufuncs only


def test_values_are_numpys(fake_cupy: ModuleType) -> None:
    xp, A = fake_cupy, fake_cupy.asarray(HOST)
    for made, expected in [
        (xp.exp(A) + 1, np.exp(HOST) + 1),
        (2 * A - np.float64(3), 2 * HOST - 3),
        (np.float32(2) * A, 2 * HOST),
        (A @ A.mT, HOST @ HOST.T),
        (A.T[1:], HOST.T[1:]),
        (A[A > 2], HOST[HOST > 2]),
        (A[:, None, 1], HOST[:, None, 1]),
        (A.mean(axis=0, keepdims=True), HOST.mean(axis=0, keepdims=True)),
        (A.max(axis=-1), HOST.max(axis=-1)),
        (xp.where(A > 2, A, -1), np.where(HOST > 2, HOST, -1)),
        (xp.take(A, xp.asarray([1, 0]), axis=0), HOST[[1, 0]]),
        (A.astype("float32"), HOST.astype("float32")),
        (-(A**2) / 3, -(HOST**2) / 3),
        (abs(1 - A) <= 1, abs(1 - HOST) <= 1),
        (copy.deepcopy(A), HOST),
    ]:
        assert type(made) is xp.ndarray
        assert made.dtype == expected.dtype
        np.testing.assert_array_equal(made.get(), expected)
    assert float(A.sum()) == A.sum().item() == 15
    assert type(A.sum()) is xp.ndarray
    assert f"{A.sum():.1f}" == "15.0"
    assert len(A) == 2
    assert A.tolist() == HOST.tolist()


def test_out_views_and_identity(fake_cupy: ModuleType) -> None:
    xp, A = fake_cupy, fake_cupy.asarray(HOST)
    out = xp.empty(3)
    assert np.isnan(out.get()).all(), "new memory is poisoned"
    assert A.sum(axis=0, out=out) is out
    assert out.tolist() == [3, 5, 7]
    assert xp.ascontiguousarray(A) is A
    assert A.reshape(2, 3).data.ptr == A.data.ptr
    B = A
    B += 1
    B *= A
    assert B is A
    A[0, 0].fill(9)  # a single element is a view
    A[1, 1:] = xp.zeros(2)
    assert A.tolist() == [[9, 4, 9], [16, 0, 0]]
    assert HOST[0, 0] == 0, "asarray copies from the host"


def test_devices() -> None:
    with fake.installed(device_count=2) as xp:
        A = xp.ones(3)
        with xp.cuda.Device(1):
            B = xp.ones(3)
            with pytest.raises(ValueError, match="array of device 0 used while device 1 is current"):
                A + 1
            with xp.cuda.Device(0):
                A += 1
            np.testing.assert_array_equal(A.get(), 2)  # a transfer works from anywhere, and so does a view
            assert A[1:].device.id == 0
        assert (A.device.id, B.device.id, xp.cuda.Device().id) == (0, 1, 0)
        with pytest.raises(xp.cuda.runtime.CUDARuntimeError, match="invalid device"), xp.cuda.Device(2):
            pass
        assert B.device == Device("cuda", 1).module.cuda.Device(1)


def streams(xp: ModuleType) -> tuple[Any, Any]:
    return xp.cuda.Stream(non_blocking=True), xp.cuda.Stream(non_blocking=True)


def test_work_is_deferred_until_the_host_waits(deferred: ModuleType) -> None:
    xp, (stream, _) = deferred, streams(deferred)
    A = xp.zeros((2, 3))
    A.get()
    with stream:
        A += 1
        B = A[0] * 2
        assert np.isnan(B._array).all()
        assert (A._array == 0).all()
        event = stream.record()
        A += 1
    assert not event.done
    event.synchronize()
    assert event.done
    assert B._array.tolist() == [2, 2, 2]
    assert (A._array == 1).all()
    xp.cuda.Device().synchronize()
    assert (A._array == 2).all()


def test_what_is_made_of_deferred_arrays_is_deferred(deferred: ModuleType) -> None:
    xp = deferred
    A = xp.asarray(HOST)
    A *= 2
    made = [A, A[:, 1], A.T, A.T.reshape(-1), xp.asarray(A, "float32"), A[xp.asarray([1, 0])], copy.deepcopy(A)]
    assert all(np.isnan(array._array).all() for array in made)
    expected = [2 * HOST, 2 * HOST[:, 1], 2 * HOST.T, 2 * HOST.T.reshape(-1), 2 * HOST, 2 * HOST[[1, 0]], 2 * HOST]
    for array, values in zip(made, expected, strict=True):
        np.testing.assert_array_equal(array.get(), values)


@pytest.mark.parametrize(("order", "expected"), [("late", 1 + 2), ("newest", 1 * 2 + 2)])
def test_streams_that_do_not_wait_are_in_disorder(order: str, expected: int) -> None:
    with fake.installed(order=order) as xp:
        first, second = streams(xp)
        A = xp.ones(())
        xp.cuda.Device().synchronize()
        with first:
            A += 2
        with second:
            A *= 2
        first.synchronize()
        assert A._array == expected


def test_streams_wait_for_events(deferred: ModuleType) -> None:
    xp, (first, second) = deferred, streams(deferred)
    A = xp.ones(())
    xp.cuda.Device().synchronize()
    with first:
        A += 2
    event = first.record()
    second.wait_event(event)
    event.record()  # elsewhere; it is waited for as it was
    with second:
        A *= 2
    second.synchronize()
    assert A._array == (1 + 2) * 2


def test_a_copy_reads_the_host_when_it_runs(deferred: ModuleType) -> None:
    xp, (stream, _) = deferred, streams(deferred)
    for waits, expected in ((False, 7), (True, 1)):
        A, host = xp.zeros(3), np.ones(3)
        xp.cuda.Device().synchronize()
        A.set(host, stream=stream)
        if waits:
            stream.synchronize()
        host[...] = 7
        stream.synchronize()
        assert A.tolist() == [expected] * 3
    B = xp.asarray(host)
    host[...] = 8
    assert B.tolist() == [7, 7, 7], "asarray reads at once"


@pytest.mark.parametrize("waits", [False, True])
def test_memory_that_was_freed_is_its_streams(waits: bool) -> None:
    with fake.installed(order="newest") as xp:
        stream, _ = streams(xp)
        A, B = xp.ones(3), xp.zeros(3)
        xp.cuda.Device().synchronize()
        with stream:
            B += A
        if waits:
            xp.cuda.get_current_stream().wait_event(stream.record())
        del A
        C = xp.zeros(3)  # may lie where A lay
        assert C.tolist() == [0, 0, 0]
        stream.synchronize()
        assert B.tolist() == [1, 1, 1] if waits else np.isnan(B.get()).all()


@pytest.mark.parametrize("waits", [False, True])
def test_new_memory_was_just_somebody_elses(waits: bool) -> None:
    with fake.installed(order="late") as xp:
        stream, _ = streams(xp)
        A = xp.empty(3)
        if waits:
            stream.wait_event(xp.cuda.get_current_stream().record())
        with stream:
            A.fill(1)
        stream.synchronize()
        assert A.tolist() == [1, 1, 1] if waits else np.isnan(A.get()).all()


def test_graphs_are_launched_in_the_order_of_their_stream(deferred: ModuleType) -> None:
    xp, (stream, _) = deferred, streams(deferred)
    A, B = xp.ones(3), xp.ones(3)
    xp.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        A *= 2
        B += A
        graph = stream.end_capture()
        graph.launch(stream)
        A += 1
        graph.launch()
    assert A._array.tolist() == [1, 1, 1]
    stream.synchronize()
    assert (A.tolist(), B.tolist()) == ([6, 6, 6], [9, 9, 9])
    del A
    with pytest.raises(RuntimeError, match="memory that was freed"):
        graph.launch(stream)


def test_what_is_not_deferred_is_refused(deferred: ModuleType) -> None:
    with pytest.raises(NotImplementedError, match="waits for the default one unasked"):
        deferred.cuda.Stream()
    with pytest.raises(ValueError, match="order 'early' is not one of"), fake.installed(order="early"):
        pass


def test_backend_sees_cupy() -> None:
    before = sys.modules.get("cupy")
    with fake.installed(device_count=2) as xp:
        assert why_no_cuda() is None
        assert resolve_device("auto") == Device("cuda", 0)
        A = to_device(HOST, "cuda:1")
        assert device_of(A) == Device("cuda", 1)
        assert to_device(A, "cuda:1") is A
        np.testing.assert_array_equal(to_host(A), HOST)
        assert array_module(A) is xp
        with pytest.raises(DeviceError, match="cuda:1"):
            as_array(A, Device("cuda", 0))
        with pytest.raises(DeviceError, match=r"2 CUDA device\(s\)"):
            resolve_device("cuda:2")
    assert sys.modules.get("cupy") is before
    with fake.installed(device_count=0):
        assert "no CUDA device" in str(why_no_cuda())
        assert resolve_device("auto") == Device("cpu")


@pytest.mark.parametrize("activation", [Sigmoid(), LeakyReLU(0.2)], ids=repr)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("members", [None, 3])
def test_layers_run_on_it(fake_cupy: ModuleType, activation: Activation, dtype: str, members: int | None) -> None:
    X = np.random.default_rng(0).normal(size=(130, 5)).astype(dtype)  # rows enough for more than one chunk
    results = []
    for device in ("cpu", "cuda"):
        dense = Dense(5, 40)
        dense.initialize(0, dtype=dtype, device=device, members=members)
        dense.parameters["b"].fill(0.1)
        layer = DenseActivation(dense, activation)
        Y, saved = layer.forward(to_device(X, device))
        dL_dX = layer.backward(Y, saved)
        results.append([Y, dL_dX, dense.gradients["W"], dense.gradients["b"]])
    for on_cpu, on_device in zip(*results, strict=True):
        assert type(on_device) is fake_cupy.ndarray
        np.testing.assert_allclose(to_host(on_device), on_cpu, rtol=1e-4 if dtype == "float32" else 1e-12, atol=1e-5)
