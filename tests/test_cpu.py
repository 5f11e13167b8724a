"""Launching and recording CPU kernels; threads; and what happens where there are no kernels."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import gpubp
from gpubp import cpu
from gpubp.errors import SettingError
from gpubp.ops import gemm

ROOT = Path(__file__).resolve().parents[1]


def run_python(code, **environment):
    """Run code in a fresh Python; its standard output."""
    command = [sys.executable, "-W", "error", "-c", code]
    known = {name: value for name, value in os.environ.items() if not name.startswith(("GPUBP_", "OMP_"))}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**known, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def trained(widths=(6, 5, 3), *, steps=20, N=16, optimizer=None, l2=0.0, **settings):
    """Theta after some steps by `StepPlan.steps`, their losses, and whether they were recorded."""
    rng = np.random.default_rng(0)
    X, T = rng.normal(size=(200, widths[0])), rng.integers(widths[-1], size=200)
    net = gpubp.mlp(widths, rng=1, l2=l2, **settings)
    net.adapt(X)
    plan = gpubp.StepPlan(net, N)
    X = net.inputs(X)
    losses = plan.steps(X, net.targets(T, X), None, rng.integers(200, size=(steps, N)), optimizer or gpubp.Adam())
    return net.theta, losses, [recording is not None for _, recording in plan._recordings.values()]


# With and without kernels.


def test_the_setting_turns_kernels_off_and_a_wrong_one_is_told(monkeypatch):
    monkeypatch.setenv(cpu.SETTING, "numpy")
    assert "turns them off" in cpu.why_no_kernels()
    monkeypatch.setenv(cpu.SETTING, "cython")
    with pytest.raises(SettingError, match="'cython': use 'auto', 'numba' or 'numpy'"):
        cpu.why_no_kernels()


def test_without_numba_the_reason_and_the_way_out_are_told(monkeypatch):
    find = cpu.importlib.util.find_spec
    monkeypatch.setattr(cpu.importlib.util, "find_spec", lambda name: None if name == "numba" else find(name))
    monkeypatch.setenv(cpu.SETTING, "auto")
    assert cpu.why_no_kernels() == "numba: not installed. pip install 'gpubp[cpu]'"
    monkeypatch.setenv(cpu.SETTING, "numba")
    with pytest.raises(SettingError, match=r"gpubp\[cpu\]"):
        cpu.why_no_kernels()


def test_without_threadpoolctl_no_limit_is_silently_ignored(tmp_path):
    (tmp_path / "threadpoolctl.py").write_text("raise ImportError('not installed')")
    code = """
import importlib.util, sys
sys.path.insert(0, PATH)
import numpy as np, gpubp
from gpubp import cpu
find = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == "threadpoolctl" else find(name)
print(cpu.why_no_kernels())
X, t, net = np.zeros((4, 2)), np.zeros(4, int), gpubp.mlp([2, 3])
gpubp.fit(net, X, t, epochs=1, progress=False)
try:
    gpubp.fit(net, X, t, epochs=1, progress=False, threads=2)
except gpubp.GpubpError as error:
    print(error)
"""
    why, error = run_python(code.replace("PATH", repr(str(tmp_path)))).splitlines()
    if importlib.util.find_spec("numba") is not None:
        assert why == "threadpoolctl: not installed. pip install 'gpubp[cpu]'"
    assert error == "threads can't be limited without threadpoolctl: pip install threadpoolctl"


def test_numpy_alone_gives_the_same_training():
    code = """
import sys, numpy as np, gpubp
rng = np.random.default_rng(0)
X, t = rng.normal(size=(100, 6)), rng.integers(3, size=100)
net = gpubp.mlp([6, 5, 3], dtype="float64", rng=0, l2=0.01, standardize=True)
gpubp.fit(net, X, t, epochs=3, batch_size=32, progress=False)
print("numba" in sys.modules, *net.theta.tolist())
"""
    without, *theta = run_python(code, GPUBP_CPU_KERNELS="numpy").split()
    assert without == "False"
    used, *other = run_python(code).split()
    assert used == str(all(map(importlib.util.find_spec, ("numba", "scipy", "platformdirs", "threadpoolctl"))))
    np.testing.assert_allclose(np.array(theta, float), np.array(other, float), rtol=1e-10, atol=1e-13)


# Launches and programs.


def test_a_recorded_step_equals_steps_one_by_one(cpu_kernels):
    for settings in (
        {},
        {"l2": 0.01},
        {"standardize": True},
        {"members": 3},
        {"activation": "tanh", "dtype": "float64"},
    ):
        for optimizer in (gpubp.Adam, lambda: gpubp.SGD(0.1, momentum=0.9, nesterov=True)):
            theta, losses, recorded = trained(optimizer=optimizer(), **settings)
            assert recorded == [True], settings
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(gpubp.StepPlan, "_recorded_steps", lambda *_: 0)
                expected, expected_losses, _ = trained(optimizer=optimizer(), **settings)
            tolerance = 1e-5 if theta.dtype == np.float32 else 1e-12
            np.testing.assert_allclose(theta, expected, rtol=tolerance, atol=tolerance)
            np.testing.assert_allclose(losses, expected_losses, rtol=tolerance)


def test_a_layer_without_kernel_is_noticed_and_trained_all_the_same(cpu_kernels):
    class Cubed(gpubp.Activation):
        derivative_of = "X"

        def evaluate(self, xp, X, out, scratch):
            xp.power(X, 3, out=out)

        def derivative(self, xp, saved, out):
            xp.power(saved, 2, out=out)
            xp.multiply(out, 3, out=out)

    try:
        theta, losses, recorded = trained(activation=Cubed())
        assert recorded == [False]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu, "kernels", lambda: None)
            expected, expected_losses, _ = trained(activation=Cubed())
        np.testing.assert_allclose(theta, expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(losses, expected_losses, rtol=1e-3)
    finally:
        del gpubp.Layer.by_name["Cubed"]


def test_a_recording_sees_a_new_learning_rate_and_a_change_of_the_weights(cpu_kernels):
    rng = np.random.default_rng(0)
    X, T, index = rng.normal(size=(50, 4)).astype("f4"), rng.integers(3, size=50), rng.integers(50, size=(5, 8))
    nets = [gpubp.mlp([4, 3], rng=0) for _ in range(2)]
    plans, optimizers = [gpubp.StepPlan(net, 8) for net in nets], [gpubp.SGD(0.1), gpubp.SGD(0.1)]
    plans[1]._recorded_steps = lambda *_: 0
    for net, plan, optimizer in zip(nets, plans, optimizers, strict=True):
        plan.steps(X, T, None, index, optimizer)
        optimizer.learning_rate = 0.5
        net.parameters["0.W"][...] *= 2
        plan.steps(X, T, None, index, optimizer)
    assert len(plans[0]._recordings) == 1
    np.testing.assert_allclose(nets[0].theta, nets[1].theta, rtol=1e-5)
    plans[0].forget_recordings()
    assert not plans[0]._recordings


def test_a_changed_setting_of_the_optimizer_makes_a_new_recording(cpu_kernels):
    rng = np.random.default_rng(0)
    X, T, index = rng.normal(size=(50, 4)).astype("f4"), rng.integers(3, size=50), rng.integers(50, size=(2, 8))
    net, optimizer = gpubp.mlp([4, 3], rng=0), gpubp.Adam()
    plan = gpubp.StepPlan(net, 8)
    plan.steps(X, T, None, index, optimizer)
    optimizer.beta1 = 0.5
    plan.steps(X, T, None, index, optimizer)
    assert len(plan._recordings) == 2


def test_rates_for_another_stack_are_refused_before_anything_changes(cpu_kernels):
    with pytest.raises(gpubp.GpubpError, match="3 learning rates were given for a stack of 2"):
        trained(members=2, optimizer=gpubp.SGD([0.1, 0.2, 0.3]))


def test_recording_leaves_network_and_optimizer_as_they_are(cpu_kernels):
    rng = np.random.default_rng(0)
    X, T = rng.normal(size=(50, 4)).astype("f4"), rng.integers(3, size=50)
    net, optimizer = gpubp.mlp([4, 3], rng=0), gpubp.Adam()
    theta = net.theta.copy()
    recording = gpubp.StepPlan(net, 8)._record((X, T), np.arange(8), optimizer)
    assert recording is not None
    np.testing.assert_array_equal(net.theta, theta)
    assert optimizer.steps == 0
    assert not any(array.any() for array in optimizer.state.values())


class Shrinking(gpubp.Dense, register=False):
    """Its weights become smaller by themselves in each training step."""

    def forward(self, X, out=None, *, training=False, rng=None):
        self.parameters["W"][...] *= 0.5
        return super().forward(X, out, training=training, rng=rng)


class Bounded(gpubp.Dense, register=False):
    """Its weights are cut off: doing that twice changes no more than doing it once."""

    def forward(self, X, out=None, *, training=False, rng=None):
        np.clip(self.parameters["W"], -0.05, 0.05, out=self.parameters["W"])
        return super().forward(X, out, training=training, rng=rng)


@pytest.mark.parametrize("layer", [Shrinking, Bounded])
def test_a_layer_that_changes_its_weights_is_trained_step_by_step(cpu_kernels, layer):
    rng = np.random.default_rng(0)
    X, T, index = rng.normal(size=(50, 4)).astype("f4"), rng.integers(3, size=50), rng.integers(50, size=(2, 8))
    thetas = []
    for recorded in (True, False):
        net = gpubp.Network([gpubp.Dense(4, 5), gpubp.Tanh(), layer(5, 3)], "softmax_cross_entropy", rng=0)
        plan = gpubp.StepPlan(net, 8)
        if not recorded:
            plan._recorded_steps = lambda *_: 0
        plan.steps(X, T, None, index, gpubp.SGD(1.0))
        thetas.append(net.theta)
    np.testing.assert_array_equal(*thetas)


def test_an_optimizer_without_kernel_is_run_all_the_same(cpu_kernels):
    class Signs(gpubp.Optimizer):
        def __init__(self, learning_rate=0.01):
            super().__init__(learning_rate)

        def _update(self, xp, rate, theta, dL_dtheta, scratch):
            xp.sign(dL_dtheta, out=scratch)
            xp.multiply(scratch, rate, out=scratch)
            xp.subtract(theta, scratch, out=theta)

    try:
        theta, losses, recorded = trained(optimizer=Signs(), steps=4)
        assert recorded == [False]
        assert np.isfinite(losses).all()
        assert np.abs(theta - gpubp.mlp((6, 5, 3), rng=1).theta).max() == pytest.approx(0.04, rel=1e-4)
    finally:
        del gpubp.Optimizer.by_name["signs"]


def test_more_steps_than_a_recording_holds(cpu_kernels, monkeypatch):
    expected, losses, _ = trained(steps=20)
    monkeypatch.setattr("gpubp.recording.MOST_STEPS", 3)
    theta, again, recorded = trained(steps=20)
    assert recorded == [True]
    np.testing.assert_array_equal(theta, expected)
    np.testing.assert_array_equal(again, losses)


def compare_with_eager(change=None, *, T=None, N=16, calls=3, **settings):
    """Theta after some calls of `StepPlan.steps` with a change before each later one, recorded and not."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 6)).astype("f4")
    T = rng.integers(3, size=60) if T is None else T
    index = rng.integers(60, size=(calls, 4, N))
    thetas = []
    for recorded in (True, False):
        net, optimizer = gpubp.mlp([6, 5, 3], rng=1, **settings), gpubp.Adam(0.05)
        plan = gpubp.StepPlan(net, N)
        if not recorded:
            plan._recorded_steps = lambda *_: 0
        for call in range(calls):
            if call and change is not None:
                optimizer = change(net, optimizer) or optimizer
            plan.steps(X, net.targets(T, X), None, index[call], optimizer)
        thetas.append(net.theta)
    np.testing.assert_allclose(*thetas, rtol=1e-4, atol=1e-5)


def test_targets_that_lie_apart_are_not_taken_from_the_first_batch(cpu_kernels):
    table = np.random.default_rng(1).integers(3, size=(60, 4))
    for T in (table[:, 0], table[::-1, 1]):
        assert not T.flags.c_contiguous
        compare_with_eager(T=T)
        net, again = (gpubp.mlp([6, 3], rng=0) for _ in range(2))
        X = np.random.default_rng(0).normal(size=(60, 6))
        gpubp.fit(net, X, T, epochs=3, batch_size=16, progress=False)
        gpubp.fit(again, X, T.copy(), epochs=3, batch_size=16, progress=False)
        np.testing.assert_array_equal(net.theta, again.theta)


@pytest.mark.parametrize(
    "change",
    [
        lambda net, optimizer: optimizer.reset(),
        lambda net, optimizer: setattr(net, "l2", 0.5),
        lambda net, optimizer: setattr(net.layers[1], "parameter", 0.9),
        lambda net, optimizer: setattr(optimizer, "learning_rate", 0.5),
        lambda net, optimizer: setattr(optimizer, "beta1", 0.1),
        lambda net, optimizer: optimizer.restore((0, {})),
        lambda net, optimizer: net.theta.__imul__(0.5) is None,
    ],
)
def test_whatever_changes_between_two_launches_counts(change, cpu_kernels):
    def applied(net, optimizer):
        change(net, optimizer)
        net.layers[1].slope = net.layers[1].parameter

    compare_with_eager(applied, activation="leaky_relu")


def test_the_scale_of_a_loss_counts_too(cpu_kernels):
    rng = np.random.default_rng(0)
    compare_with_eager(
        lambda net, optimizer: setattr(net.loss, "scale", 3.0), loss="squared_error", T=rng.normal(size=(60, 3))
    )


def test_another_optimizer_is_not_taken_for_the_first(cpu_kernels):
    net = gpubp.mlp([6, 3], rng=0)
    plan, X = gpubp.StepPlan(net, 8), np.ones((10, 6), "f4")
    run = lambda optimizer: plan.steps(X, np.zeros(10, int), None, np.zeros((2, 8), int), optimizer)  # noqa: E731
    run(gpubp.SGD(0.1))
    before = net.theta.copy()
    run(gpubp.SGD(1e-9))
    np.testing.assert_allclose(net.theta, before, atol=1e-6)


def test_a_layer_that_makes_its_own_arrays_is_trained_on_every_batch(cpu_kernels):
    class Doubled(gpubp.Layer):
        def buffers(self, shape, xp=np):
            return {}

        def forward(self, X, out=None, *, training=False, rng=None):
            return X * 2, {}

        def backward(self, dL_dY, saved, out=None, *, input_gradient=True):
            return dL_dY * 2

    try:
        X, T = np.random.default_rng(0).normal(size=(40, 4)).astype("f4"), np.arange(40) % 3
        index = np.arange(40).reshape(5, 8)
        thetas = []
        for _ in range(2):
            net = gpubp.Network([gpubp.Dense(4, 3)], "softmax_cross_entropy", rng=0)
            net.executed = [Doubled(), *net.executed]
            net.first_trained = 1
            net._fresh = type(net._fresh)([None] * 2, None, [None] * 2)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(gpubp.StepPlan, "buffers", lambda self, N, L=None, net=net: net._fresh)
                patch.setattr("gpubp.workspace.lives", lambda *_: [])
                plan = gpubp.StepPlan(net, 8)
                if thetas:
                    plan._recorded_steps = lambda *_: 0
                plan.steps(X, T, None, index, gpubp.SGD(0.5))
            thetas.append(net.theta)
        np.testing.assert_allclose(*thetas, rtol=1e-5)
    finally:
        del gpubp.Layer.by_name["Doubled"]


def test_rates_of_a_wrong_length_are_told_before_any_step(cpu_kernels):
    optimizer, rng = gpubp.SGD([0.1, 0.2]), np.random.default_rng(0)
    net, X, T = gpubp.mlp([4, 3], members=2), rng.normal(size=(20, 4)).astype("f4"), rng.integers(3, size=20)
    plan, index = gpubp.StepPlan(net, 8), rng.integers(20, size=(2, 8))
    plan.steps(X, T, None, index, optimizer)
    theta = net.theta.copy()
    optimizer.learning_rate = [0.1, 0.2, 0.3]
    with pytest.raises(gpubp.GpubpError, match="3 learning rates were given for a stack of 2"):
        plan.steps(X, T, None, index, optimizer)
    np.testing.assert_array_equal(net.theta, theta)
    assert optimizer.steps == 2


# Data that no kernel may be let loose on.


def test_bytes_in_another_order_and_indices_out_of_range_are_safe(cpu_kernels):
    Z = np.random.default_rng(0).normal(size=(4, 3))
    np.testing.assert_allclose(gpubp.Sigmoid().forward(Z.astype(">f4"))[0], 1 / (1 + np.exp(-Z)), rtol=1e-5)
    loss, Y = gpubp.SoftmaxCrossEntropy(), Z.astype("f4")
    for wrong in (3, -1, 10**6, -(10**6)):
        T = np.array([0, 1, wrong, 2])
        L, saved = loss.forward(Y, T)
        gradient = loss.backward(saved)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cpu, "kernels", lambda: None)
            expected, state = loss.forward(Y, T)
            np.testing.assert_allclose(gradient, loss.backward(state), rtol=1e-5, atol=1e-7)
        assert L == pytest.approx(float(expected), rel=1e-5)
    for T in (np.zeros(3, int), np.zeros((3, 3), "f4")):
        with pytest.raises(ValueError, match="shape"):
            loss.forward(Y, T)
    with pytest.raises(ValueError, match="shape"):
        loss.forward(Y, np.zeros(4, int), np.ones(2, "f4"))
    data, out = np.arange(12.0).reshape(4, 3), np.empty((2, 3))
    from gpubp.ops.gather import gather

    np.testing.assert_array_equal(gather(data, np.array([-(10**9), 10**9]), out, -2), data[[0, 3]])


def test_a_numba_that_can_not_be_imported_is_as_good_as_none(tmp_path):
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 1.0 or less')")
    code = """
import sys; sys.path.insert(0, PATH)
import numpy as np, gpubp
from gpubp import cpu
print(gpubp.mlp([2, 3]).predict(np.ones((1, 2))).shape, cpu.why_no_kernels())
"""
    said = run_python(code.replace("PATH", repr(str(tmp_path))))
    assert said.strip() == "(1, 3) Numba is installed but can't be used (Numba needs NumPy 1.0 or less)"


# Threads.


@pytest.fixture
def eager_team(monkeypatch):
    """Threads share even the smallest work."""
    monkeypatch.setattr(cpu, "ALONE_NANOSECONDS", 0)
    monkeypatch.setattr(cpu, "STEP_NANOSECONDS", 0)
    monkeypatch.setattr(cpu, "SHARE_NANOSECONDS", 1)


@pytest.mark.usefixtures("eager_team")
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_run_repeats_bit_for_bit_on_any_number_of_threads(threads, cpu_kernels):
    with cpu.limited_threads(threads):
        (theta, losses, _), (again, losses_again, _) = (trained((40, 33, 10), N=150) for _ in range(2))
    np.testing.assert_array_equal(theta, again)
    np.testing.assert_array_equal(losses, losses_again)
    with cpu.limited_threads(1):
        alone, _, _ = trained((40, 33, 10), N=150)
    np.testing.assert_allclose(theta, alone, rtol=1e-4, atol=1e-6)


def trained_by(threads):
    """Widths and dtype at which OpenBLAS rounds a part of a product otherwise than the whole, on some processors."""
    with cpu.limited_threads(threads):
        return trained((100, 90, 10), N=150, dtype="float64")[:2]


@pytest.mark.usefixtures("eager_team")
def test_a_thread_pool_around_it_neither_hangs_nor_changes_results(cpu_kernels):
    expected, losses = trained_by(3)
    with ThreadPoolExecutor(4) as pool:
        for theta, others in pool.map(trained_by, [3] * 16):
            np.testing.assert_array_equal(theta, expected)
            np.testing.assert_array_equal(others, losses)


@pytest.mark.usefixtures("eager_team")
@pytest.mark.parametrize("threads", [2, 3, 5])
def test_one_thread_in_the_place_of_a_busy_team_computes_the_same_to_the_bit(threads, cpu_kernels, monkeypatch):
    expected, losses = trained_by(threads)
    monkeypatch.setattr(cpu._Team, "_run_together", lambda *_: pytest.fail("the team is busy"))
    with cpu._team._busy:
        theta, others = trained_by(threads)
    np.testing.assert_array_equal(theta, expected)
    np.testing.assert_array_equal(others, losses)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_trains_too(cpu_kernels):
    code = """
import os, sys, warnings, numpy as np, gpubp
from gpubp import cpu
sys.path.insert(0, "tests")
cpu.ALONE_NANOSECONDS = cpu.STEP_NANOSECONDS = 0
cpu.SHARE_NANOSECONDS = 1
import test_cpu
with cpu.limited_threads(3):
    theta, _, _ = test_cpu.trained()
    assert len(cpu._team._members) == 2
    warnings.simplefilter("ignore")  # a fork beside threads, which is what this is about
    child = os.fork()
    again, _, _ = test_cpu.trained()
    same = np.array_equal(theta, again) and len(cpu._team._members) == 2
    if child == 0:
        os._exit(0 if same else 1)
    print(os.waitpid(child, 0)[1], same)
"""
    assert run_python(code).split() == ["0", "True"]


def test_threads_are_limited_and_the_limit_ends(monkeypatch):
    before = cpu.threads()
    with cpu.limited_threads(7):
        assert cpu.threads() == 7
        with cpu.limited_threads(None):
            assert cpu.threads() == 7
    assert cpu.threads() == before
    for bad in (0, -1, 1.5, True, "2"):
        with pytest.raises(SettingError, match="at least 1"), cpu.limited_threads(bad):
            pass
    assert run_python("from gpubp import cpu; print(cpu.threads())", OMP_NUM_THREADS="3") == "3\n"


@pytest.fixture
def blas():
    """The BLAS libraries, each with three threads, whatever the machine has."""
    libraries = cpu._libraries()
    before = [library.threads for library in libraries]
    for library in libraries:
        library._set(3)
    yield libraries
    for library, threads in zip(libraries, before, strict=True):
        library._set(threads)


def threads_of(libraries):
    return {library.path: library.threads for library in libraries}


def test_every_blas_is_found_and_that_of_the_kernels_among_them(cpu_kernels, blas):
    trained()
    threadpoolctl = pytest.importorskip("threadpoolctl")
    loaded = {pool["filepath"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}
    assert {str(library.path) for library in blas} == loaded
    assert {library.path for library in cpu.kernel_libraries()} <= {library.path for library in blas}


@pytest.mark.parametrize(
    ("names", "small"),
    [
        (["SkylakeX"], True),
        (["SKYLAKEX", "Cooperlake"], True),
        (["Haswell"], False),
        (["SkylakeX", "Haswell"], False),
        (["SkylakeX", None], False),
        ([], False),
    ],
)
def test_which_blas_has_kernels_for_small_products(cpu_kernels, monkeypatch, names, small):
    libraries = [types.SimpleNamespace(architecture=name) for name in names]
    monkeypatch.setattr(cpu, "kernel_libraries", lambda: libraries)
    assert cpu_kernels.gemm._has_small_kernels.__wrapped__() is small


def test_the_name_of_the_processor_is_the_one_that_blas_tells(cpu_kernels):
    threadpoolctl = pytest.importorskip("threadpoolctl")
    told = {pool["filepath"]: pool.get("architecture") for pool in threadpoolctl.threadpool_info()}
    for library in cpu.kernel_libraries():
        assert library.architecture == told[str(library.path)]


def test_a_kernel_calls_blas_on_its_own_thread(cpu_kernels, blas, monkeypatch):
    """Products are split between threads by the kernels; NumPy's own BLAS keeps its threads for NumPy."""
    ours = {library.path for library in cpu.kernel_libraries()}
    expected = {library.path: 1 if library.path in ours else 3 for library in blas}
    seen = []

    def watched(run):
        return lambda *arguments: (seen.append(threads_of(blas)), run(*arguments))

    function, team = cpu._FUNCTION, cpu_kernels.team
    monkeypatch.setattr(cpu, "_FUNCTION", lambda address: watched(function(address)))
    monkeypatch.setattr(team, "run", watched(team.run))
    monkeypatch.setattr(team, "run_alone", watched(team.run_alone))
    A = np.ones((8, 8), "f4")
    gemm.matmul(A, A, np.empty_like(A))  # a small one runs on this thread
    gemm.matmul(np.ones((8, 4096), "f4"), np.ones((4096, 8), "f4"), np.empty_like(A))
    assert seen[:2] == [expected] * 2
    seen.clear()
    with cpu.recorded() as lines:
        gemm.matmul(A, A, np.empty_like(A))
    for threads in (1, 2):
        with cpu.limited_threads(threads):
            cpu.Program(lines).run(2)
            gemm.matmul(np.ones((512, 512), "f4"), np.ones((512, 512), "f4"), np.empty((512, 512), "f4"))
    assert all(now[path] == 1 for now in seen for path in ours)
    assert set(threads_of(blas).values()) == {3}


def test_other_kernels_leave_blas_alone(cpu_kernels, blas, monkeypatch):
    monkeypatch.setattr(cpu._Library, "limit", lambda *_: pytest.fail("a kernel without a product"))
    gpubp.Sigmoid().forward(np.ones((4, 4), "f4"))


def test_a_limit_counts_from_whichever_thread_it_comes(blas):
    """With threadpoolctl alone it would not: it lets one thread set OpenBLAS, the first that asks."""

    def limited():
        with cpu.limited_threads(2):
            return set(threads_of(blas).values())

    assert limited() == {2}
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(limited).result() == {2}
    assert set(threads_of(blas).values()) == {3}


def test_limits_of_several_threads_end_as_they_began():
    before, blas = cpu.threads(), threads_of(cpu._libraries())
    first, second = cpu.limited_threads(1), cpu.limited_threads(2)
    inside, leave = threading.Event(), threading.Event()

    def other():
        with second:
            inside.set()
            leave.wait(10)
            assert cpu.threads() == 2

    thread = threading.Thread(target=other)
    with first:
        thread.start()
        inside.wait(10)
        assert cpu.threads() == 1
    leave.set()
    thread.join()
    assert cpu.threads() == before
    assert threads_of(cpu._libraries()) == blas


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no alarm here")
def test_an_interrupt_at_any_moment_leaves_a_team_that_works(cpu_kernels):
    code = """
import random, signal, sys, time
sys.path.insert(0, "tests")
import numpy as np, gpubp, test_cpu
from gpubp import cpu
cpu.ALONE_NANOSECONDS = cpu.STEP_NANOSECONDS = 0
cpu.SHARE_NANOSECONDS = 1

def interrupt(*_):
    raise KeyboardInterrupt

with cpu.limited_threads(3):
    net, X = gpubp.mlp([20, 30, 5], rng=0), np.ones((64, 20), "f4")
    expected = net.predict(X)
    signal.signal(signal.SIGALRM, interrupt)
    interrupts, began = 0, time.monotonic()
    while time.monotonic() - began < 3:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-3))
            while True:
                net.predict(X)
        except KeyboardInterrupt:
            interrupts += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    print(interrupts > 100, np.array_equal(net.predict(X), expected))
"""
    assert run_python(code).split() == ["True", "True"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_is_forked_in_a_limited_block_leaves_it_and_trains_on(cpu_kernels):
    code = """
import os, sys, threading, warnings
sys.path.insert(0, "tests")
import test_cpu
from gpubp import cpu
for library in cpu._libraries():
    library._set(3)
threads = lambda: {library.threads for library in cpu._libraries()}
entered, leave = threading.Event(), threading.Event()

def other():
    with cpu.limited_threads(1):
        entered.set()
        leave.wait(60)

warnings.simplefilter("ignore")  # a fork beside threads, which is what this is about
thread = threading.Thread(target=other)
thread.start()
entered.wait(60)
with cpu.limited_threads(2):
    assert threads() == {1}
    child = os.fork()
    if child == 0:
        assert threads() == {2}  # the other thread is not there, nor is its limit
        test_cpu.trained()
        assert threads() == {2} and cpu.threads() == 2
if child == 0:
    assert threads() == {3}
    test_cpu.trained()
    os._exit(0)
status = os.waitpid(child, 0)[1]
assert threads() == {1}
leave.set()
thread.join()
print(status, threads())
"""
    assert run_python(code) == "0 {3}\n"


@pytest.mark.usefixtures("eager_team")
def test_the_team_sleeps_between_programs(cpu_kernels):
    with cpu.limited_threads(3):
        trained()
        began, used = time.perf_counter(), time.process_time()
        threading.Event().wait(0.3)
        assert time.process_time() - used < 0.5 * (time.perf_counter() - began)


TOLD = "import logging, sys; logging.basicConfig(stream=sys.stdout, format='%(message)s')\n"
"""What the library logs goes to standard output."""


def test_kernels_are_cached_on_disk_under_a_name_that_follows_their_text(cpu_kernels, tmp_path):
    code = """
import gpubp, numpy as np, sys
net = gpubp.mlp([6, 3]); gpubp.fit(net, np.ones((8, 6)), np.zeros(8, int), epochs=1, progress=False)
from gpubp.cpu_kernels import activation, functions
compiled = activation._bias_activation(functions.Identity, np.float32)
print(compiled.cache_hits)
"""
    cold, warm = (run_python(TOLD + code, NUMBA_CACHE_DIR=str(tmp_path)).splitlines() for _ in range(2))
    assert warm == ["1"]
    (folder,) = tmp_path.glob("kernels-*")
    assert cold == [
        f"compiling CPU kernels for this machine, once, as they are needed; from then on they come from {folder}",
        "0",
    ]
    assert list(folder.rglob("*.nbc"))


def test_kernels_that_are_not_in_the_cache_yet_are_announced_before_they_are_compiled(cpu_kernels, tmp_path):
    code = """
import gpubp, numpy as np
print("begin")
gpubp.Sigmoid().forward(np.ones((1, 1)))
print("sigmoid")
gpubp.Tanh().forward(np.ones((1, 1)))
print("tanh")
"""
    said = run_python(TOLD + code, NUMBA_CACHE_DIR=str(tmp_path)).splitlines()
    assert [line.split(",")[0] for line in said] == [
        *("begin", "compiling CPU kernels for this machine", "sigmoid", "tanh"),
    ]
    code = code.replace("Tanh", "ELU")
    said = run_python(TOLD + code, NUMBA_CACHE_DIR=str(tmp_path)).splitlines()
    assert [line.split(",")[0] for line in said] == [
        *("begin", "sigmoid", "compiling CPU kernels for this machine", "tanh"),
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_log_handler_may_fork_while_a_kernel_is_compiled(cpu_kernels, tmp_path):
    code = """
import logging, os, warnings, numpy as np, gpubp
warnings.simplefilter("ignore")  # a fork beside threads
children = []

class Forks(logging.Handler):
    def emit(self, record):
        children.append(os.fork())

logging.getLogger("gpubp").addHandler(Forks())
print(gpubp.Sigmoid().forward(np.zeros((1, 1)))[0][0, 0], flush=True)
if not children[0]:
    os._exit(0)
assert os.waitpid(children[0], 0)[1] == 0
print(gpubp.Tanh().forward(np.zeros((1, 1)))[0][0, 0] == 0)
"""
    assert run_python(code, NUMBA_CACHE_DIR=str(tmp_path)).split() == ["0.5", "0.5", "True"]


def test_where_no_cache_can_be_written_kernels_work_all_the_same(cpu_kernels, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way of a folder")
    environment = {"NUMBA_CACHE_DIR": str(blocked), "HOME": str(blocked), "XDG_CACHE_HOME": str(blocked)}
    code = "import gpubp; print(gpubp.Sigmoid().forward(__import__('numpy').zeros((1, 1)))[0][0, 0])"
    message, result = run_python(TOLD + code, **environment).splitlines()
    assert result == "0.5"
    assert "in every process anew, as they can't be kept" in message
    assert str(blocked) in message


def test_a_cache_folder_that_can_only_be_read_is_told(cpu_kernels, tmp_path):
    code = """
import os
allowed = os.access
os.access = lambda path, mode: mode != os.W_OK and allowed(path, mode)
import gpubp; print(gpubp.Sigmoid().forward(__import__('numpy').zeros((1, 1)))[0][0, 0])
"""
    message, result = run_python(TOLD + code, NUMBA_CACHE_DIR=str(tmp_path)).splitlines()
    assert result == "0.5"
    (folder,) = tmp_path.glob("kernels-*")
    assert f"as they can't be kept ({folder} is not writable)" in message


def test_a_numba_that_may_not_compile_is_as_good_as_none(cpu_kernels):
    code = """
import numpy as np, gpubp
from gpubp import cpu
gpubp.fit(gpubp.mlp([2, 3]), np.zeros((4, 2)), np.zeros(4, int), epochs=2, progress=False)
print(cpu.why_no_kernels())
"""
    said = run_python(code, NUMBA_DISABLE_JIT="1")
    assert said == "Numba is installed but can't be used (NUMBA_DISABLE_JIT keeps it from compiling)\n"
