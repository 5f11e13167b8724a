"""The planned step on a CUDA device: captured as graphs, streamed, in micro-batches, with too little memory.

On the stand-in for CuPy the graphs hold addresses, as real ones do, and refuse to read memory that was freed.
"""

from __future__ import annotations

import _thread
import gc
import importlib
import re
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import lead

import gpubp
from gpubp import cublas, cuda, workspace
from gpubp.backend import Device, device_of, to_device, to_host
from gpubp.buffers import Buffer
from gpubp.data.minibatches import StreamedMinibatches
from gpubp.data.prepared import prepared as prepared_to_fit
from gpubp.errors import DeviceError, OutOfDeviceMemoryError
from gpubp.losses.base import Loss
from gpubp.ops.combine import combine
from gpubp.parameters import Parameter
from gpubp.recording import GraphSteps

OPTIMIZERS = {
    "sgd": lambda: gpubp.SGD(0.1),
    "momentum": lambda: gpubp.SGD(0.1, 0.9),
    "nesterov": lambda: gpubp.SGD(0.1, 0.9, nesterov=True),
    "adam": lambda: gpubp.Adam(0.01),
    "adamw": lambda: gpubp.AdamW(gpubp.WarmUp(4, gpubp.Cosine(0.01, total=9)), clip_norm=0.1),
    "rmsprop": lambda: gpubp.RMSprop(0.01, momentum=0.9, average=0.9),
    "lion": lambda: gpubp.Lion(0.01, weight_decay=0.1),
}
LOSSES = ["softmax_cross_entropy", "binary_cross_entropy", "squared_error", "huber", "poisson"]


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """A CUDA device, or what stands in for one."""
    if request.param == "stand-in":
        request.getfixturevalue("fake_cupy")
    return "cuda:0"


def data(N=50, members=None, dtype="float64"):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(*lead(members), N, 6)).astype(dtype)
    return X, rng.dirichlet(np.ones(3), size=(*lead(members), N)), rng.uniform(0.5, 1, size=(*lead(members), N))


def prepared(net, X, T, w=None):
    X = net.inputs(X)
    return X, net.targets(T, X), net.sample_weights(w, X)


def index_of(net, steps, N, examples=50):
    return to_device(np.random.default_rng(1).integers(examples, size=(steps, N)), net.device)


def run(net, arrays, index, optimizer, captured=True, **settings):
    """Losses and parameters after these steps; without capture, as ever step by step."""
    plan = gpubp.StepPlan(net, index.shape[1], stacked=arrays[0].ndim == 3, **settings)
    if not captured:
        plan._recorded_steps = lambda *_: 0
    losses = to_host(plan.steps(*arrays, index, optimizer))
    assert plan.why_not_captured is None
    assert bool(plan._recordings) == captured
    return losses, to_host(net.theta)


EACH = [(loss, "adam") for loss in LOSSES] + [(LOSSES[0], name) for name in OPTIMIZERS if name != "adam"]


@pytest.mark.parametrize(("members", "weighted"), [(None, False), (3, True)])
@pytest.mark.parametrize(("loss", "optimizer"), EACH)
def test_captured_steps_are_the_steps_bit_for_bit(device, loss, optimizer, members, weighted):
    nets = [gpubp.mlp([6, 9, 3], loss=loss, members=members, l2=0.1, standardize=True, device=device) for _ in range(2)]
    X, T, w = data(members=members)
    results = []
    for net, captured in zip(nets, (True, False), strict=True):
        net.adapt(X)
        arrays = prepared(net, X, T, w if weighted else None)
        results.append(run(net, arrays, index_of(net, 11, 8), OPTIMIZERS[optimizer](), captured))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "relu", "leaky_relu", "identity", "gelu"])
def test_captured_training_gives_the_weights_of_the_cpu_in_float64(device, activation, members):
    X, T, w = data(members=members)
    cpu = gpubp.mlp([6, 9, 7, 3], activation=activation, members=members, dtype="float64", l2=0.01, device="cpu")
    net = cpu.copy(device=device)
    for n in (cpu, net):
        gpubp.fit(n, X, T, sample_weight=w, optimizer=gpubp.Adam(0.01), epochs=4, batch_size=8)
    assert net.plan.why_not_captured is None
    np.testing.assert_allclose(to_host(net.theta), cpu.theta, atol=1e-11)


def test_the_same_run_twice_is_the_same_bit_for_bit(device):
    X, T, _ = data(700)
    thetas = []
    for _ in range(2):
        net = gpubp.mlp([6, 33, 3], device=device)
        gpubp.fit(net, X, T, epochs=3, batch_size=100)
        thetas.append(to_host(net.theta))
    np.testing.assert_array_equal(*thetas)


def test_a_new_learning_rate_and_changed_weights_are_seen_by_the_graphs(device):
    nets = [gpubp.mlp([6, 9, 3], device=device) for _ in range(2)]
    X, T, _ = data()
    for net, captured in zip(nets, (True, False), strict=True):
        arrays, index, optimizer = prepared(net, X, T), index_of(net, 20, 8), gpubp.Adam(0.01)
        plan = gpubp.StepPlan(net, 8)
        if not captured:
            plan._recorded_steps = lambda *_: 0
        plan.steps(*arrays, index, optimizer)
        optimizer.learning_rate = 0.1
        net.parameters["0.W"][...] = 0.5
        plan.steps(*arrays, index, optimizer)
        assert optimizer.steps == 40
    np.testing.assert_array_equal(to_host(nets[0].theta), to_host(nets[1].theta))


def test_graphs_outlive_other_arrays_that_come_and_go(device):
    net = gpubp.mlp([6, 9, 3], device=device)
    again = net.copy()
    X, T, _ = data()
    arrays, optimizer, plan = prepared(net, X, T), gpubp.SGD(0.1), gpubp.StepPlan(net, 8)
    for k in range(4):
        plan.steps(*arrays, index_of(net, 40, 8), optimizer)
        with net.device.activate():  # memory that the pool may hand out again
            for size in (10, 1000, 100_000):
                net.device.module.empty(size + k, np.float32).fill(np.nan)
    expected = run(again, arrays, net.device.module.concatenate([index_of(net, 40, 8)] * 4), gpubp.SGD(0.1), False)
    np.testing.assert_array_equal(to_host(net.theta), expected[1])


def test_two_networks_trained_in_turn_do_not_disturb_each_other(device):
    X, T, _ = data()
    pairs = []
    for captured in (True, False):
        nets = [gpubp.mlp(widths, device=device, rng=k) for k, widths in enumerate(([6, 9, 3], [6, 4, 4, 3]))]
        plans, optimizers = [gpubp.StepPlan(net, 8) for net in nets], [gpubp.Adam(0.01), gpubp.SGD(0.1, 0.9)]
        for round_ in range(3):
            for net, plan, optimizer in zip(nets, plans, optimizers, strict=True):
                if not captured:
                    plan._recorded_steps = lambda *_: 0
                plan.steps(*prepared(net, X, T), index_of(net, 11 + round_, 8), optimizer)
        pairs.append([to_host(net.theta) for net in nets])
    for a, b in zip(*pairs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def threads(device, monkeypatch):
    """A device that several threads use: of the stand-in each has its own current device, stream and allocator."""
    if Device("cuda").module.ndarray.__module__.startswith("fake_cupy"):
        import cuda_host
        from fake_cupy import machine

        for name, value in (("current_device", 0), ("stream", None), ("allocator", None)):
            monkeypatch.setattr(type(machine), name, PerThread(name, value))
        launch, one_at_a_time = cuda_host.launch, threading.Lock()  # its fibers belong to one thread

        def launched(*arguments, **settings):
            with one_at_a_time:
                launch(*arguments, **settings)

        monkeypatch.setattr(cuda_host, "launch", launched)
    return device


class PerThread:
    """An attribute with a value of each thread."""

    def __init__(self, name, value):
        self._name, self._value, self._local = name, value, threading.local()

    def __get__(self, instance, owner=None):
        return getattr(self._local, self._name, self._value)

    def __set__(self, instance, value):
        setattr(self._local, self._name, value)


def test_two_networks_trained_in_two_threads_do_not_disturb_each_other(threads):
    X, T, _ = data(200)
    together, cupy = threading.Barrier(2), Device("cuda").module

    def trained(k, alone):
        """The parameters after training network k on a stream of its own."""
        net = gpubp.mlp([[6, 9, 3], [6, 4, 4, 3]][k], device=threads, rng=k)
        optimizer = [gpubp.Adam(0.01), gpubp.SGD(0.1, 0.9)][k]
        with net.device.activate(), cupy.cuda.Stream(non_blocking=True):
            for epochs in (1, 4):
                if not alone:
                    together.wait(60)
                gpubp.fit(net, X, T, optimizer=optimizer, epochs=epochs, batch_size=8)
            assert net.plan.why_not_captured is None
            return to_host(net.theta)

    expected = [trained(k, alone=True) for k in range(2)]
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(trained, k, alone=False) for k in range(2)]
        thetas = [future.result() for future in running]
    for theta, theta_alone in zip(thetas, expected, strict=True):
        np.testing.assert_array_equal(theta, theta_alone)


def test_an_epoch_waits_for_the_device_once_at_its_end(fake_cupy):
    import fake_cupy as fake

    X, T, _ = data(403)
    net = gpubp.mlp([6, 9, 3], device="cuda")
    trainer = gpubp.Trainer(net, gpubp.Adam(0.01), batch_size=8, progress=False)
    trainer.fit(X, T, epochs=1)  # kernels are compiled
    waits = []
    plan_steps = gpubp.StepPlan.steps

    def steps(self, *arguments, **settings):
        before = fake.machine.waits
        result = plan_steps(self, *arguments, **settings)
        waits.append(fake.machine.waits - before)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpubp.StepPlan, "steps", steps)
        trainer.fit(X, T, epochs=3)
    assert len(waits) == 6  # all full batches of an epoch are enqueued at once
    assert sum(waits) == sum(w > 0 for w in waits) * max(waits)  # where a recording is proven, and nowhere else
    assert sum(w > 0 for w in waits) == 2  # of the full batch, and of the smaller last one


def test_few_launches_carry_many_steps(fake_cupy):
    import fake_cupy as fake

    net = gpubp.mlp([6, 9, 3], device="cuda")
    arrays, optimizer, plan = prepared(net, *data()[:2]), gpubp.SGD(0.1), gpubp.StepPlan(net, 8)
    plan.steps(*arrays, index_of(net, 2, 8), optimizer)
    before = fake.machine.graph_launches
    plan.steps(*arrays, index_of(net, 3 * 32 + 2 * 8 + 1, 8), optimizer)
    assert fake.machine.graph_launches - before == 3 + 2 + 1


class Calls(gpubp.Callback):
    """How many steps each call of `StepPlan.steps` did, epoch by epoch, and what was done in each epoch besides."""

    def __init__(self, monkeypatch, counted):
        self.epochs, self._steps, self._counted, self._before = [], [], counted, counted()
        plan_steps = gpubp.StepPlan.steps

        def steps(plan, X, T, w, index, optimizer, **settings):
            self._steps.append(len(index))
            return plan_steps(plan, X, T, w, index, optimizer, **settings)

        monkeypatch.setattr(gpubp.StepPlan, "steps", steps)

    def on_epoch_end(self, network, measured):
        now = self._counted()
        self.epochs.append((self._steps, now - self._before))
        self._steps, self._before = [], now


def test_an_epoch_takes_as_few_launches_as_there_are_graphs_for(fake_cupy, monkeypatch):
    import fake_cupy as fake

    calls = Calls(monkeypatch, lambda: fake.machine.graph_launches)
    X, T, _ = data(403)
    net = gpubp.mlp([6, 9, 3], device="cuda")
    gpubp.fit(net, X, T, epochs=4, batch_size=8, callbacks=[calls])
    assert [steps for steps, _ in calls.epochs] == [[50, 1]] * 4
    assert [launches for _, launches in calls.epochs[2:]] == [1 + 2 + 2 + 1] * 2  # of 32, 8, 1 steps, and the last one


@pytest.mark.parametrize("patience", [0.0, 1e9])
def test_a_progress_bar_moves_and_is_at_most_two_launches_behind(fake_cupy, monkeypatch, patience):
    import fake_cupy as fake

    events, waits, record = [], [], fake.Event.record
    monkeypatch.setattr(fake.Event, "record", lambda *given: (events.append(given[0]), record(*given))[1])
    monkeypatch.setattr("gpubp.cuda.wait", lambda event: waits.append(event is events[-1]))
    monkeypatch.setattr("gpubp.trainer.LAUNCH_SECONDS", patience)
    monkeypatch.setattr("gpubp.trainer.Progress", ShownProgress)
    calls = Calls(monkeypatch, lambda: 0)
    X, T, _ = data(8 * 130)
    gpubp.fit(gpubp.mlp([6, 9, 3], device="cuda"), X, T, epochs=3, batch_size=8, callbacks=[calls])
    longer = [[32, 64, 34], [128, 2], [130]] if patience else [[32, 32, 32, 32, 2]] * 3
    assert [steps for steps, _ in calls.epochs] == longer
    # For the launch before each, and at the end of the epoch for all.
    assert waits == [waited for steps in longer for waited in [False] * len(steps) + [True]]


class ShownProgress(gpubp.callbacks.Progress):
    """A bar that is shown nowhere."""

    shown, due = True, True


def test_on_the_cpu_launches_grow_from_epoch_to_epoch(monkeypatch):
    monkeypatch.setattr("gpubp.trainer.LAUNCH_SECONDS", 1e9)
    calls = Calls(monkeypatch, lambda: 0)
    X, T, _ = data(8 * 12)
    trainer = gpubp.Trainer(gpubp.mlp([6, 9, 3], device="cpu"), gpubp.SGD(0.1), batch_size=8)
    trainer.callbacks.append(calls)
    for _ in range(2):  # each fit begins anew: it may be on other data
        trainer.fit(X, T, epochs=3)
    assert [steps for steps, _ in calls.epochs] == [[1, 2, 4, 5], [8, 4], [12]] * 2


def test_ctrl_c_is_heard_while_the_device_works(fake_cupy, monkeypatch):
    timer = threading.Timer(0.2, _thread.interrupt_main)
    asked = []

    def never(event):
        if not asked:
            timer.start()
        asked.append(event)
        return 600  # cudaErrorNotReady

    monkeypatch.setattr(fake_cupy.cuda.runtime, "eventQuery", never)
    with pytest.raises(KeyboardInterrupt):
        gpubp.fit(gpubp.mlp([6, 3], device="cuda"), *data()[:2])
    timer.join()
    assert len(set(asked)) == 1


@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("micro", [3, 4, 8])
def test_micro_batches_are_the_whole_batch(device, micro, members):
    X, T, w = data(members=members)
    nets = [gpubp.mlp([6, 9, 3], members=members, dtype="float64", l2=0.1, device=device) for _ in range(2)]
    for net, settings in zip(nets, ({}, {"micro_batch_size": micro}), strict=True):
        settings = {"optimizer": gpubp.Adam(0.01), "epochs": 3, "batch_size": 8, **settings}
        gpubp.fit(net, X, T, sample_weight=w, **settings)
        assert net.plan.why_not_captured is None
    assert nets[1].plan.workspace_bytes <= nets[0].plan.workspace_bytes
    np.testing.assert_allclose(to_host(nets[1].theta), to_host(nets[0].theta), atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "float16"])
def test_streamed_examples_train_as_resident_ones(device, dtype, members, weighted, monkeypatch):
    monkeypatch.setattr(StreamedMinibatches, "BYTES", 1000)  # a few steps in a part
    X, T, w = data(205, members)
    X = (X * 20 + 100).astype(dtype)
    nets = [gpubp.mlp([6, 9, 3], members=members, standardize=True, device=device) for _ in range(2)]
    for net, resident in zip(nets, (True, False), strict=True):
        settings = {"optimizer": gpubp.Adam(0.01), "epochs": 2, "batch_size": 8, "resident": resident}
        gpubp.fit(net, X, T, sample_weight=w if weighted else None, validation=(X, T), **settings)
        assert net.plan.why_not_captured is None
    np.testing.assert_allclose(to_host(nets[1].theta), to_host(nets[0].theta), rtol=1e-5, atol=1e-6)


@pytest.fixture
def small_constants(monkeypatch):
    """A workspace of cuBLAS, and small arrays, that fit into the little memory that these tests leave."""
    monkeypatch.setattr("gpubp.cublas._MIB", 16)
    monkeypatch.setattr("gpubp.plan.SMALL_BYTES", 2**12)


@pytest.fixture
def limit(device):
    """Sets how much more memory than now CuPy's pool may hand out."""
    pool = Device("cuda").module.get_default_memory_pool()

    def set_limit(more):
        gc.collect()
        pool.free_all_blocks()
        pool.set_limit(size=pool.used_bytes() + more)

    yield set_limit
    pool.set_limit(size=0)


def named(**settings):
    """The largest batch that fits, and the largest micro-batch, as the error says, when this is trained."""
    try:
        gpubp.fit(**settings)
    except OutOfDeviceMemoryError as error:
        return [int(number.replace(",", "")) for number in re.findall(r"at most ([\d,]+\d)", str(error))]
    pytest.fail("there is memory enough")


def test_examples_that_do_not_fit_are_streamed(fake_cupy, small_constants, tmp_path):
    import fake_cupy as fake

    X, T, _ = data(40_000, dtype="float32")
    T = T.argmax(axis=-1)
    np.save(tmp_path / "X.npy", X)
    nets = [gpubp.mlp([6, 3], standardize=True, device="cuda") for _ in range(2)]
    gpubp.fit(nets[0], X, T, epochs=1)
    fake.machine.free_bytes = X.nbytes * 3 // 4
    gpubp.fit(nets[1], np.load(tmp_path / "X.npy", mmap_mode="r"), T, epochs=1)
    np.testing.assert_allclose(to_host(nets[1].theta), to_host(nets[0].theta), rtol=1e-5, atol=1e-6)


def test_too_little_memory_for_a_plan_says_how_much_it_takes(fake_cupy, small_constants):
    import fake_cupy as fake

    net = gpubp.mlp([6, 100, 3], device="cuda")
    itemsize, N = 4, 20_000
    minibatch = N * (6 + 1 + 3) * itemsize
    recordings = 2 * 32 * N * 8 + net.theta.nbytes  # examples of the steps of a graph; weights to go back to
    needed = gpubp.StepPlan(net, N).workspace_bytes + minibatch + recordings + 32 * 16 + 2**12
    fake.machine.free_bytes = needed
    gpubp.StepPlan(net, N)
    fake.machine.free_bytes = needed - 1
    with pytest.raises(OutOfDeviceMemoryError, match=rf"20,000 examples needs {needed:,} bytes .* {needed - 1:,} are"):
        gpubp.StepPlan(net, N)
    with pytest.raises(OutOfDeviceMemoryError, match=rf"needs {needed + 5:,} bytes"):
        gpubp.StepPlan(net, N, beside=5)
    fake.machine.free_bytes = 500
    with pytest.raises(OutOfDeviceMemoryError, match="not even a batch of one fits"):
        gpubp.StepPlan(net, 64)


@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize(
    "optimizer", [lambda: gpubp.SGD(0.1), lambda: gpubp.Adam(0.01, clip_norm=0.1, average=0.9)], ids=["sgd", "adam"]
)
def test_the_batch_that_is_named_fits_and_little_more_does(device, limit, optimizer, members):
    X, T, _ = data(4000, members, "float32")
    T = T.argmax(axis=-1)

    def settings(batch_size, **more):
        net = gpubp.mlp([6, 64, 3], standardize=True, members=members, device=device)
        return {"network": net, "X": X, "T": T, "optimizer": optimizer(), "batch_size": batch_size, "epochs": 2, **more}

    room = cublas.workspace_bytes() + 2**20 + (3 if members is None else 5) * 2**20
    limit(room)
    batch, micro = named(**settings(4000))
    assert 100 < micro < batch < 3900
    for batch_size, more in [(batch, {}), (4000, {"micro_batch_size": micro})]:
        limit(room)
        trained = settings(batch_size, **more)
        gpubp.fit(**trained)
        assert trained["network"].plan.why_not_captured is None
        del trained
    limit(room)
    assert batch * 0.9 < named(**settings(batch + 100))[0] < batch + 100


def test_the_optimizers_state_is_counted_as_long_as_it_is_not_there(device, limit):
    X, T, _ = data(64)
    net, optimizer = gpubp.mlp([6, 2000, 3], device=device), gpubp.Adam(0.01)
    trainer = gpubp.Trainer(net, optimizer, batch_size=16)
    batches = trainer._minibatches(*prepared_to_fit(net, X, T))
    before = trainer._beside(batches)
    trainer.fit(X, T, epochs=1)
    assert before - trainer._beside(batches) == 3 * net.theta.nbytes  # two arrays of state, and scratch
    assert trainer._beside(batches) > 3 * net.theta.nbytes  # copies of theta and the state, to go back to


def test_a_network_that_is_dropped_leaves_its_memory_at_once(device):
    pool = Device("cuda").module.get_default_memory_pool()
    X, T, _ = data(50)
    gc.collect()
    gc.disable()
    try:
        before = pool.used_bytes()
        for members in (None, 2):
            net, optimizer = gpubp.mlp([6, 9, 3], standardize=True, members=members, device=device), gpubp.Adam(0.01)
            for _ in range(2):
                gpubp.fit(net, X, T, optimizer=optimizer, epochs=2, batch_size=8)
            assert net.plan.why_not_captured is None
            del net, optimizer
            assert pool.used_bytes() == before
            net = gpubp.mlp([6, 9, 3], members=members, device=device)
            plan = gpubp.StepPlan(net, 8)
            plan.steps(*prepared(net, X, T), index_of(net, 40, 8), gpubp.SGD(0.1))
            assert plan.why_not_captured is None
            del plan, net
            assert pool.used_bytes() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("what", ["examples", "plan"])
def test_what_hangs_in_a_cycle_is_collected_before_memory_is_said_to_lack(device, limit, what):
    (X, T, _), net = data(4000, dtype="float32"), gpubp.mlp([6, 64, 3], device=device)
    limit(48 * 2**20)
    gc.disable()
    try:
        cycle = [to_device(np.zeros(48 * 2**20 - 2**16, np.uint8), device)]
        cycle.append(cycle)
        del cycle
        if what == "plan":
            gpubp.StepPlan(net, 100)
        else:
            placed, *_ = prepared_to_fit(net, X, T)
            assert device_of(placed) == Device("cuda", 0)
    finally:
        gc.enable()


def test_what_can_not_be_captured_is_launched_step_by_step_with_one_warning(device):
    class Doubled(gpubp.Layer, register=False):
        def buffers(self, shape, xp=np):
            return {}

        def forward(self, X, out=None, *, training=False, rng=None):
            return X * 2, {}  # new memory in each step

        def backward(self, dL_dY, saved, out=None, *, input_gradient=True):
            return dL_dY * 2

    X, T, _ = data()
    net = gpubp.mlp([6, 9, 3], device=device)
    net.executed = [*net.executed, Doubled()]
    net._fresh = type(net._fresh)([None] * 3, None, [None] * 3)
    arrays, optimizer = prepared(net, X, T), gpubp.SGD(0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpubp.StepPlan, "buffers", lambda self, N, L=None: net._fresh)
        patch.setattr("gpubp.workspace.lives", lambda *_: [])
        plan = gpubp.StepPlan(net, 8)
        with pytest.warns(UserWarning, match=r"not captured as a CUDA graph: .*bytes of device memory were asked for"):
            losses = to_host(plan.steps(*arrays, index_of(net, 30, 8), optimizer))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            plan.steps(*arrays, index_of(net, 3, 8), optimizer)
            plan.steps(*arrays, index_of(net, 3, 7), optimizer)
    assert np.isfinite(losses).all()
    assert losses[-8:].mean() < losses[:8].mean()
    assert optimizer.steps == 36


def test_a_shared_input_behind_a_layer_that_is_not_stacked_is_captured(device):
    class Passing(gpubp.Layer, register=False):
        """X as it is, for all members alike, and a parameter that nothing depends on."""

        def declare(self):
            return {"c": Parameter((2,), lambda rng: np.zeros(2), False)}

        def output_width(self, n_in):
            return n_in

        def buffers(self, shape, xp=np):
            return {"Y": Buffer(shape), "dL_dX": Buffer(shape)}

        def forward(self, X, out=None, *, training=False, rng=None):
            out = self._fresh(X) if out is None else out
            return combine(out["Y"], 0.0, X, 1.0), {}

        def backward(self, dL_dY, saved, out=None, *, input_gradient=True):
            assert dL_dY.ndim == 2
            self.gradients["c"][...] = dL_dY[0, :2]  # of what reaches this layer
            return None

    def network(device, activation):
        layers = [Passing(), gpubp.Dense(6, 9), *activation, gpubp.Dense(9, 3)]
        return gpubp.Network(layers, loss="squared_error", members=3, dtype="float64", device=device, rng=0)

    for activation in ([], [gpubp.Tanh()]):
        net, on_host, on_numpy = (network(where, activation) for where in (device, "cpu", "cpu"))
        X, T, _ = data()
        index = index_of(net, 12, 8)
        losses, theta = run(net, prepared(net, X, T), index, gpubp.SGD(0.1, 0.9))  # captured, and no product is CuPy's
        expected = gpubp.StepPlan(on_host, 8).steps(*prepared(on_host, X, T), to_host(index), gpubp.SGD(0.1, 0.9))
        np.testing.assert_allclose(losses, expected, rtol=1e-10)
        np.testing.assert_allclose(theta, on_host.theta, rtol=1e-9, atol=1e-12)
        # dL_dX is the sum over the members of what each of them passes back.
        _, gradients = on_numpy.loss_and_gradients(X[:8], T[:8])
        by_member = []
        for e in range(3):
            W = {name: array[e] for name, array in on_numpy.parameters.items()}
            H = X[:8] @ W["1.W"] + W["1.b"]
            H = np.tanh(H) if activation else H
            last = len(on_numpy.layers) - 1
            D = (H @ W[f"{last}.W"] + W[f"{last}.b"] - T[:8]) * 2 * on_numpy.loss.scale / 8 @ W[f"{last}.W"].T
            by_member.append((D * (1 - H**2) if activation else D) @ W["1.W"].T)
        np.testing.assert_allclose(gradients["0.c"], np.tile(np.sum(by_member, axis=0)[0, :2], (3, 1)), rtol=1e-10)


def test_the_kernels_of_a_step_are_compiled_together_before_the_first_is_launched(monkeypatch, caplog):
    import fake_cupy

    compiled, running, most, lock = [], [], [], threading.Lock()
    inner = cuda._compiled

    def watched(device, stem, kernel):
        with lock:
            compiled.append((kernel, len(fake_cupy.machine.launches)))
            running.append(kernel)
            most.append(len(running))
        time.sleep(0.05)  # for the others to begin
        try:
            return inner(device, stem, kernel)
        finally:
            running.remove(kernel)

    monkeypatch.setattr(cuda, "_compiled", watched)
    monkeypatch.setattr(cuda, "ANNOUNCED_AFTER", 0)
    X, T, _ = data()
    with fake_cupy.installed(record=True):
        net = gpubp.mlp([6, 9, 3], device="cuda", l2=0.1)
        before = to_host(net.theta).copy()
        gpubp.fit(net, X, T, optimizer=gpubp.AdamW(clip_norm=1.0, average=0.9), epochs=0)
        np.testing.assert_array_equal(to_host(net.theta), before)
        gpubp.fit(net, X, T, optimizer=gpubp.AdamW(clip_norm=1.0, average=0.9), epochs=1, batch_size=16)
        launched = {launch.kernel for launch in fake_cupy.machine.launches}
        (said,) = [record.getMessage() for record in caplog.records]
        assert {name for name, _ in compiled} == launched
        assert {launches for _, launches in compiled} == {0}
        assert max(most) > 1
        for name in launched:
            assert name.partition("<")[0] in said
        gpubp.fit(net, X, T, epochs=1, optimizer=gpubp.AdamW(clip_norm=1.0, average=0.9), batch_size=16)
        assert len(compiled) == len(launched)  # none twice


def test_a_layer_of_the_users_own_sees_no_memory_that_nobody_has_written(device):
    class Watching(gpubp.Layer, register=False):
        """X as it is; keeps the mean of all that it saw."""

        seen = 0.0

        def buffers(self, shape, xp=np):
            return {"Y": Buffer(shape), "dL_dX": Buffer(shape)}

        def forward(self, X, out=None, *, training=False, rng=None):
            out = self._fresh(X) if out is None else out
            Watching.seen = Watching.seen + X.mean()
            return combine(out["Y"], 0.0, X, 1.0), {}

        def backward(self, dL_dY, saved, out=None, *, input_gradient=True):
            return combine(out["dL_dX"], 0.0, dL_dY, 1.0)

    layers = [gpubp.Dense(6, 9), Watching(), gpubp.Dense(9, 3)]
    net = gpubp.Network(layers, loss="squared_error", device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for memory, and is not captured
        gpubp.fit(net, *data()[:2], epochs=1, batch_size=16, progress=False)
    assert np.isfinite(float(Watching.seen))


def test_steps_of_one_kind_are_looked_at_once_for_their_kernels(fake_cupy, monkeypatch):
    asked, inner = [], cuda.compile_ahead
    monkeypatch.setattr(cuda, "compile_ahead", lambda kernels: asked.append(len(kernels)) or inner(kernels))
    net = gpubp.mlp([6, 9, 3], device="cuda")
    for _ in range(3):
        gpubp.fit(net, *data()[:2], epochs=2, batch_size=16, optimizer=gpubp.Adam(), progress=False)
    assert len(asked) == 2  # full batches, and the last one
    assert min(asked) > 3


def test_a_kernel_that_does_not_compile_ends_a_training_before_it_begins(fake_cupy, monkeypatch):
    net = gpubp.mlp([6, 9, 3], device="cuda")
    before, right = to_host(net.theta).copy(), cuda.source
    monkeypatch.setattr(cuda, "source", lambda stem: "wrong" if stem == "optimizers" else right(stem))
    with pytest.raises(DeviceError, match=r"kernel adam<float> of optimizers.cu does not compile on cuda:0"):
        gpubp.fit(net, *data()[:2], epochs=1)
    np.testing.assert_array_equal(to_host(net.theta), before)


def test_a_part_that_runs_on_the_host_is_noticed(fake_cupy):
    """A layer whose numbers come from the host would be held fast by a graph."""

    class Scaled(gpubp.Layer, register=False):
        def buffers(self, shape, xp=np):
            return {"Y": Buffer(shape), "dL_dX": Buffer(shape)}

        def forward(self, X, out=None, *, training=False, rng=None):
            self.calls = getattr(self, "calls", 0) + 1
            return fake_cupy.multiply(X, float(self.calls), out=out["Y"]), {}

        def backward(self, dL_dY, saved, out=None, *, input_gradient=True):
            return fake_cupy.multiply(dL_dY, float(self.calls), out=out["dL_dX"])

    net = gpubp.mlp([6, 9, 3], device="cuda")
    net.executed = [*net.executed, Scaled()]
    net._fresh = type(net._fresh)([None] * 3, None, [None] * 3)
    plan = gpubp.StepPlan(net, 8)
    with pytest.warns(UserWarning, match="runs on the host, or holds fast"):
        plan.steps(*prepared(net, *data()[:2]), index_of(net, 5, 8), gpubp.SGD(0.1))


def test_a_second_device_is_used_alone_by_captured_steps():
    import fake_cupy

    X, T, _ = data(200)
    with fake_cupy.installed(device_count=2, record=True) as cupy:
        net = gpubp.mlp([6, 9, 3], device="cuda:1", standardize=True)
        for resident in (True, False):
            gpubp.fit(net, X, T, epochs=2, batch_size=16, resident=resident, micro_batch_size=10)
            assert net.plan.why_not_captured is None
        assert device_of(net.theta) == Device("cuda", 1)
        assert cupy.cuda.runtime.getDevice() == 0


@pytest.mark.gpu
def test_two_real_devices_are_kept_apart():
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("one device")
    X, T, _ = data(200)
    used = cupy.cuda.Device(0).mem_info[0]
    net = gpubp.mlp([6, 9, 3], device="cuda:1")
    gpubp.fit(net, X, T, epochs=2, batch_size=16)
    assert cupy.cuda.Device(0).mem_info[0] == used


TRAIN_ON_THE_SECOND_DEVICE = """
import ctypes
import cupy
import numpy as np
import gpubp

cupy.cuda.Device(1).use()  # CUDA opens a device when it becomes current, again too after a block on another
rng = np.random.default_rng(0)
X, T = rng.normal(size=(200, 6)), rng.integers(0, 3, 200)
for resident in (True, False):
    net = gpubp.mlp([6, 9, 3], device="cuda:1", standardize=True)
    gpubp.fit(net, X, T, epochs=2, batch_size=16, resident=resident, validation=(X, T))
    assert net.plan.why_not_captured is None, net.plan.why_not_captured
net.predict(X)
driver = ctypes.CDLL("libcuda.so.1")
for device in (0, 1):
    flags, active = ctypes.c_uint(), ctypes.c_int(-1)
    assert driver.cuDevicePrimaryCtxGetState(device, ctypes.byref(flags), ctypes.byref(active)) == 0
    print(active.value)
"""


@pytest.mark.gpu
def test_a_network_on_the_second_device_never_opens_the_first():
    import cupy

    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("NOT CHECKED: that a network on cuda:1 leaves cuda:0 alone, as this machine has one device")
    command = [sys.executable, "-c", TRAIN_ON_THE_SECOND_DEVICE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.split()) == (0, ["0", "1"]), result.stderr


def test_a_batch_larger_than_the_data_is_the_data(device):
    X, T, _ = data(20)
    net = gpubp.mlp([6, 9, 3], device=device)
    gpubp.fit(net, X, T, epochs=4, batch_size=1000)
    assert net.plan.batch_size == 20


def test_data_of_another_device_is_refused():
    import fake_cupy

    X, T, _ = data(20)
    with fake_cupy.installed(device_count=2) as cupy:
        with cupy.cuda.Device(0):
            elsewhere = cupy.asarray(X)
        net = gpubp.mlp([6, 9, 3], device="cuda:1")
        with pytest.raises(DeviceError, match="X is on cuda:0, the network on cuda:1"):
            gpubp.fit(net, elsewhere, T)


def test_graphs_of_several_lengths_are_captured_when_they_are_needed(device):
    net = gpubp.mlp([6, 9, 3], device=device)
    arrays, optimizer, plan = prepared(net, *data()[:2]), gpubp.SGD(0.1), gpubp.StepPlan(net, 8)
    lengths = []
    for steps in (1, 1, 9, 33):
        plan.steps(*arrays, index_of(net, steps, 8), optimizer)
        lengths.append([sorted(recording._graphs) for _, recording in plan._recordings.values()])
    assert lengths == [[], [[1]], [[1, 8]], [[1, 8, 32]]]
    assert GraphSteps.LENGTHS == (32, 8, 1)


@pytest.mark.parametrize("kernels", ["numpy", "compiled"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("micro", [1, 3, 8, 15])
def test_micro_batches_on_the_cpu_are_the_whole_batch(micro, members, weighted, kernels, monkeypatch):
    if kernels == "numpy":
        monkeypatch.setattr("gpubp.cpu.kernels", lambda: None)
    X, T, w = data(101, members)
    nets = [gpubp.mlp([6, 9, 3], members=members, dtype="float64", l2=0.1, device="cpu") for _ in range(2)]
    for net, settings in zip(nets, ({}, {"micro_batch_size": micro}), strict=True):
        settings = {"optimizer": gpubp.Adam(0.01), "epochs": 3, "batch_size": 16, **settings}
        gpubp.fit(net, X, T, sample_weight=w if weighted else None, **settings)
    np.testing.assert_allclose(nets[1].theta, nets[0].theta, atol=1e-12)


def test_longer_graphs_that_can_not_be_had_are_done_without(fake_cupy, monkeypatch):
    captured, lengths = cuda.captured, []

    def failing(stream, work):
        graph = captured(stream, work)
        lengths.append(len(graph.nodes))
        if len(graph.nodes) > 3 * lengths[0]:  # more than the gradients alone, and one step
            raise RuntimeError("no memory for so long a graph")
        return graph

    monkeypatch.setattr(cuda, "captured", failing)
    nets = [gpubp.mlp([6, 9, 3], device="cuda") for _ in range(2)]
    arrays, index = prepared(nets[0], *data()[:2]), index_of(nets[0], 45, 8)
    plan, optimizer = gpubp.StepPlan(nets[0], 8), gpubp.SGD(0.1)
    with pytest.warns(UserWarning, match="steps are not captured as one CUDA graph: no memory for so long a graph"):
        losses = to_host(plan.steps(*arrays, index, optimizer))
    assert optimizer.steps == 45
    monkeypatch.undo()
    expected, theta = run(nets[1], arrays, index, gpubp.SGD(0.1), captured=False)
    np.testing.assert_array_equal(losses, expected)
    np.testing.assert_array_equal(to_host(nets[0].theta), theta)


def test_without_a_cublas_of_our_own_steps_are_launched_one_by_one(fake_cupy, monkeypatch):
    monkeypatch.setattr("gpubp.cublas._bindings", lambda: importlib.import_module("no_such_module"))
    net, again = (gpubp.mlp([6, 9, 3], device="cuda", dtype="float64") for _ in range(2))
    X, T, _ = data()
    with pytest.warns(UserWarning, match="no cuBLAS but CuPy's.*pip install"):
        gpubp.fit(net, X, T, optimizer=gpubp.SGD(0.1), epochs=2, batch_size=8)
    cpu = again.copy(device="cpu")
    gpubp.fit(cpu, X, T, optimizer=gpubp.SGD(0.1), epochs=2, batch_size=8)
    np.testing.assert_allclose(to_host(net.theta), cpu.theta, atol=1e-12)


def test_what_an_error_leaves_running_is_waited_for(fake_cupy):
    import fake_cupy as fake

    net, waited = gpubp.mlp([6, 9, 3], device="cuda"), []

    def reduce(gradient):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake.Stream, "wait_event", lambda self, event: waited.append(self.ptr))
        with pytest.raises(KeyboardInterrupt):
            gpubp.StepPlan(net, 8).steps(
                *prepared(net, *data()[:2]), index_of(net, 3, 8), gpubp.SGD(0.1), reduce_gradients=reduce
            )
    assert waited[-1] == 0  # the caller's stream waits for the plan's


def test_a_lack_of_memory_anywhere_is_told_with_the_way_out(fake_cupy, small_constants):
    import fake_cupy as fake

    net = gpubp.mlp([6, 100, 3], device="cuda")
    X, T, _ = data(3000, dtype="float32")
    optimizer = gpubp.Adam(0.01)
    fake.machine.free_bytes = 4000  # less than a copy of the weights
    with pytest.raises(OutOfDeviceMemoryError, match="not even a batch of one fits"):
        gpubp.fit(net, X[:64], T[:64].argmax(axis=-1), optimizer=optimizer, batch_size=4, resident=False)
    with pytest.raises(OutOfDeviceMemoryError, match="predict with a batch_size"):
        net.predict(X[:160])
    fake.machine.free_bytes = 1 << 30
    gpubp.fit(net, X, T, optimizer=optimizer, epochs=1)


@pytest.mark.parametrize("dtype", [">f4", ">f8", "float16", "uint8", "float64"])
@pytest.mark.parametrize("order", ["C", "F", "strided"])
@pytest.mark.parametrize("resident", [True, False])
def test_examples_lie_and_are_written_as_they_please(device, dtype, order, resident):
    X, T, _ = data(60)
    X = (X * 20 + 100).astype(dtype)
    given = {"C": X, "F": np.asfortranarray(X), "strided": np.repeat(X, 2, axis=1)[:, ::2]}[order]
    nets = [gpubp.mlp([6, 9, 3], standardize=True, device=where) for where in (device, "cpu")]
    for net, examples in zip(nets, (given, X.astype("f4")), strict=True):
        gpubp.fit(net, examples, T, epochs=2, batch_size=16, resident=resident)
    assert nets[0].plan.why_not_captured is None
    np.testing.assert_allclose(to_host(nets[0].theta), nets[1].theta, rtol=1e-4, atol=1e-5)


def test_numbers_too_large_for_the_network_are_told(device):
    X, T, _ = data(20)
    X[3, 2] = 1e300
    with pytest.raises(gpubp.errors.DataError, match=r"X at index \(3, 2\) is inf in float32"):
        gpubp.fit(gpubp.mlp([6, 3], device=device), X, T)
    there = gpubp.to_device(X, device)
    with pytest.raises(gpubp.errors.DataError, match=r"X at index \(3, 2\) is inf in float32"):
        gpubp.fit(gpubp.mlp([6, 3], device=device), there, T)


def test_validation_examples_stay_on_the_device(fake_cupy):
    import fake_cupy as fake

    X, T, _ = data(200, dtype="float32")
    net = gpubp.mlp([6, 3], device="cuda")
    moved = []
    asarray = fake_cupy.asarray
    fake_cupy.asarray = lambda a, *more, **settings: (
        moved.append(a.nbytes if isinstance(a, np.ndarray) and a.shape == X.shape else 0),
        asarray(a, *more, **settings),
    )[1]
    gpubp.fit(net, X, T, epochs=4, validation=(X, T))
    assert sum(moved) == 2 * X.nbytes
    assert fake.machine.waits


def test_a_program_whose_second_step_reads_elsewhere_is_not_used(monkeypatch):
    if gpubp.cpu.kernels() is None:
        pytest.skip("no CPU kernels")
    monkeypatch.setattr(
        gpubp.StepPlan, "_parts", lambda self, data, rows: lambda some: self.minibatch(data, rows[some], len(rows) - 1)
    )
    net = gpubp.mlp([6, 9, 3], device="cpu")
    plan = gpubp.StepPlan(net, 8)
    plan.steps(*prepared(net, *data()[:2]), index_of(net, 5, 8), gpubp.SGD(0.1))
    assert [recording for _, recording in plan._recordings.values()] == [None]


LOSSES_AND_OUTPUTS = [
    (loss, outputs)
    for kind in Loss.by_name.values()
    for loss in kind.examples()
    for outputs in (3, 30, 3000)
    if kind.__module__.startswith("gpubp.")
    and (outputs == 3 or not any(isinstance(value, tuple) for value in vars(loss).values()))  # settings for 3 outputs
]


@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("loss", "outputs"), LOSSES_AND_OUTPUTS, ids=repr)
def test_the_gradient_of_a_loss_takes_the_place_of_the_outputs(device, loss, outputs, dtype, members):
    loss = type(loss)(**loss.config())
    N, K = 5, outputs * loss.heads
    rng = np.random.default_rng(0)
    nets = [gpubp.mlp([6, K], loss=loss, members=members, dtype=dtype, device=device) for _ in range(2)]
    X = nets[0].inputs(rng.normal(size=(N, 6)))
    T = nets[0].targets(loss.example_targets(rng, (N, outputs)), X)
    plan = gpubp.StepPlan(nets[0], N)
    plan.workspace.fill(np.nan)
    L, expected = plan.gradients(X, T, None), nets[1].run_step(X, T, None)  # that into fresh arrays
    np.testing.assert_array_equal(to_host(L), to_host(expected))
    np.testing.assert_array_equal(to_host(plan.dL_dtheta), to_host(nets[1].dL_dtheta))

    places = {planned.place: planned for planned in plan._planned}
    Y, dL_dY = places["forward", 0, "Y"], places["loss", 0, "dL_dY"]
    assert dL_dY.inside is Y
    size = plan.workspace.size
    dL_dY.inside = None
    assert size < workspace.lay_out(plan._planned, nets[0].dtype.itemsize)


def test_outputs_that_backward_reads_again_stay(device):
    net = gpubp.Network([gpubp.Dense(6, 30), gpubp.Sigmoid()], "squared_error", device=device)
    places = {planned.place: planned for planned in gpubp.StepPlan(net, 8)._planned}
    assert places["loss", 0, "dL_dY"].inside is None
    assert places["forward", 0, "Y"].offset != places["loss", 0, "dL_dY"].offset
