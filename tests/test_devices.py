"""Whole networks on a CUDA device: the stand-in for CuPy with kernels run on the host, or a real card.

The same code as on the CPU must give the same numbers. A stray NumPy call on device data fails on the stand-in.
"""

from __future__ import annotations

import numpy as np
import pytest
from cases import lead

import gpubp
from gpubp.backend import Device, device_of, to_host
from gpubp.data.minibatches import in_order
from gpubp.errors import DeviceError, TrainingDivergedError

LOSSES = ["softmax_cross_entropy", "binary_cross_entropy", "squared_error"]
OPTIMIZERS = [lambda: gpubp.SGD(0.1), lambda: gpubp.SGD(0.1, 0.9, nesterov=True), lambda: gpubp.Adam(0.01)]


@pytest.fixture(params=["stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """A CUDA device, or what stands in for one."""
    if request.param == "stand-in":
        request.getfixturevalue("fake_cupy")
    return "cuda:0"


def data(N=50, members=None):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(*lead(members), N, 6))
    return X, rng.dirichlet(np.ones(3), size=(*lead(members), N)), rng.uniform(0.5, 1, size=(*lead(members), N))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize(
    "activation", ["sigmoid", "tanh", "relu", "leaky_relu", "identity", "elu", "gelu", "silu", "softplus"]
)
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_gradients_equal_those_of_the_cpu(device, loss, activation, members, weighted):
    X, T, w = data(members=members)
    cpu = gpubp.mlp([6, 9, 3], activation=activation, loss=loss, members=members, dtype="float64", l2=0.1, device="cpu")
    net = cpu.copy(device=device)
    L, gradients = net.loss_and_gradients(X, T, w if weighted else None)
    L_cpu, gradients_cpu = cpu.loss_and_gradients(X, T, w if weighted else None)
    np.testing.assert_allclose(L, L_cpu, rtol=1e-12)
    for name, array in gradients.items():
        assert str(device_of(array)) == device
        np.testing.assert_allclose(to_host(array), gradients_cpu[name], atol=1e-12)
    np.testing.assert_allclose(to_host(net.predict(X)), cpu.predict(X), atol=1e-12)


@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("make_optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_training_gives_the_weights_of_the_cpu(device, loss, make_optimizer, members):
    X, T, w = data(members=members)
    cpu = gpubp.mlp([6, 9, 3], loss=loss, members=members, dtype="float64", l2=0.01, standardize=True, device="cpu")
    net = cpu.copy(device=device)
    runs = [
        gpubp.fit(n, X, T, optimizer=make_optimizer(), epochs=3, batch_size=16, sample_weight=w, validation=(X, T))
        for n in (cpu, net)
    ]
    np.testing.assert_allclose(to_host(net.theta), cpu.theta, atol=1e-11)
    for name in ("loss", "validation_loss"):
        np.testing.assert_allclose(runs[1][name], runs[0][name], rtol=1e-10)


def test_float32_training_stays_close_to_float64_on_the_cpu(device):
    X, T, _ = data()
    cpu = gpubp.mlp([6, 9, 3], dtype="float64", device="cpu")
    net = cpu.copy(device=device, dtype="float32")
    for n in (cpu, net):
        gpubp.fit(n, X, T, optimizer=gpubp.SGD(0.1), epochs=5, batch_size=16)
    assert net.theta.dtype == np.float32
    np.testing.assert_allclose(to_host(net.theta), cpu.theta, atol=2e-5)


def test_class_indices_layers_that_are_not_fused_and_early_stopping(device):
    rng = np.random.default_rng(0)
    X, t = rng.normal(size=(40, 6)), rng.integers(0, 3, 40)
    layers = [gpubp.Tanh(), gpubp.Dense(6, 5), gpubp.Sigmoid(), gpubp.LeakyReLU(), gpubp.Dense(5, 3)]
    cpu = gpubp.Network(layers, "softmax_cross_entropy", dtype="float64", device="cpu")
    net = cpu.copy(device=device)
    histories = []
    for n in (cpu, net):
        stopping = gpubp.EarlyStopping(patience=2)
        settings = {"epochs": 30, "batch_size": 7, "validation": (X[::-1].copy(), t), "callbacks": [stopping]}
        histories.append(gpubp.fit(n, X, t, optimizer=gpubp.Adam(0.05), **settings))
    assert len(histories[0]) == len(histories[1]) < 30
    np.testing.assert_allclose(to_host(net.theta), cpu.theta, atol=1e-10)


@pytest.mark.parametrize("members", [None, 2])
def test_layer_normalisation_first_and_within_and_a_softmax_between_layers(device, members):
    X, T, _ = data()
    layers = [gpubp.LayerNorm(6), gpubp.Dense(6, 9), gpubp.LayerNorm(9), gpubp.GELU(), gpubp.Dense(9, 4),
              gpubp.Softmax(), gpubp.Dense(4, 3)]  # fmt: skip
    cpu = gpubp.Network(layers, "squared_error", dtype="float64", device="cpu", members=members, l2=0.01)
    net = cpu.copy(device=device)
    for n in (cpu, net):
        gpubp.fit(n, X, T, optimizer=gpubp.Adam(0.01), epochs=3, batch_size=16)
    if members is None:
        assert net.plan.why_not_captured is None
    np.testing.assert_allclose(to_host(net.theta), cpu.theta, atol=1e-10)
    assert np.abs(cpu.parameters["0.gamma"] - 1).min() > 1e-4  # it is trained, in a stack that shares the data too


@pytest.mark.parametrize(("N", "batch_size"), [(605, 600), (6000, 5000)])
def test_batches_large_enough_for_sums_in_several_chunks_and_a_small_last_one(device, N, batch_size):
    X, T, _ = data(N)
    cpu = gpubp.mlp([6, 9, 3], loss="squared_error", dtype="float64", device="cpu")
    net = cpu.copy(device=device)
    for n in (cpu, net):
        optimizer = gpubp.SGD(0.1)
        gpubp.fit(n, X, T, optimizer=optimizer, epochs=2, batch_size=batch_size)
        gpubp.fit(n, X, T, optimizer=optimizer, epochs=1, batch_size=batch_size // 3)
    np.testing.assert_allclose(to_host(net.theta), cpu.theta, atol=1e-11)


@pytest.mark.parametrize("members", [None, 2])
def test_planned_steps_equal_eager_steps_bit_for_bit(device, members):
    X, T, w = data(700, members)
    eager, planned = (gpubp.mlp([6, 9, 3], members=members, l2=0.1, device=device, rng=0) for _ in range(2))
    X, w = eager.inputs(X), eager.sample_weights(w, eager.inputs(X))
    T = eager.targets(T, X)
    plan = gpubp.StepPlan(planned, 700, stacked=members is not None)
    plan.workspace.fill(np.nan)
    optimizers = gpubp.Adam(0.01), gpubp.Adam(0.01)
    for N in (700, 30, 1):
        part = X[..., :N, :], T[..., :N, :], w[..., :N]
        with eager.device.activate():
            L = eager.run_step(*part)
            optimizers[0].update(eager.theta, eager.dL_dtheta)
        np.testing.assert_array_equal(to_host(plan.step(*part, optimizers[1])), to_host(L))
        np.testing.assert_array_equal(to_host(planned.theta), to_host(eager.theta))


def test_data_that_lies_on_the_device_is_used_there(device):
    X, T, _ = data()
    net = gpubp.mlp([6, 9, 3], loss="squared_error", device=device)
    X_device, T_device = gpubp.to_device(X.astype("float32"), device), gpubp.to_device(T.astype("float32"), device)
    assert net.inputs(X_device) is X_device
    gpubp.fit(net, X_device, T_device, epochs=1, order=in_order)
    assert gpubp.to_device(X_device, device) is X_device
    np.testing.assert_array_equal(to_host(X_device), X.astype("float32"))


def test_a_model_travels_between_devices_through_its_file(device, tmp_path):
    X, T, _ = data()
    net = gpubp.mlp([6, 9, 3], standardize=True, device=device)
    gpubp.fit(net, X, T, epochs=1)
    gpubp.save(net, tmp_path / "model")
    there, here = gpubp.load(tmp_path / "model", device=device), gpubp.load(tmp_path / "model", device="cpu")
    np.testing.assert_array_equal(to_host(there.theta), here.theta)
    np.testing.assert_allclose(to_host(there.predict(X)), here.predict(X), atol=1e-6)


def test_a_network_on_a_device_is_checked_on_the_cpu(device):
    X, T, _ = data(5)
    net = gpubp.mlp([6, 9, 3], device=device)
    assert gpubp.check_gradients(net, X, T).ok
    assert gpubp.check_gradients(net, gpubp.to_device(X, device), gpubp.to_device(T, device)).ok


def test_divergence_is_told_on_a_device_too(device):
    X, T, _ = data()
    net = gpubp.mlp([6, 9, 3], activation="relu", loss="squared_error", device=device)
    kept = to_host(net.theta).copy()
    with pytest.raises(TrainingDivergedError, match=r"epoch \d+, batch \d+ of"):
        gpubp.fit(net, X * 1e3, T, optimizer=gpubp.SGD(1e6), epochs=3, batch_size=10)
    assert np.isfinite(to_host(net.theta)).all()
    assert net.epochs_trained or (to_host(net.theta) == kept).all()


def test_arrays_of_two_devices_in_one_call_are_refused(device):
    X, _, _ = data()
    net = gpubp.mlp([6, 3], device=device, dtype="float64")
    cpu = gpubp.mlp([6, 3], device="cpu", dtype="float64")
    with pytest.raises(DeviceError, match=r"two devices.*cpu.*cuda:0.*gpubp.to_device"):
        net.layers[0].forward(X)
    with pytest.raises(DeviceError, match=r"two devices"):
        cpu.layers[0].forward(gpubp.to_device(X, device))
    with pytest.raises(DeviceError, match=r"X is on cuda:0, the network on cpu.*gpubp.to_device\(array, 'cpu'\)"):
        cpu.predict(gpubp.to_device(X, device))


def test_auto_takes_the_device_that_is_there(device):
    assert gpubp.mlp([6, 3]).device == Device("cuda", 0)


def test_a_second_device_is_used_alone(tmp_path):
    import fake_cupy

    X, T, _ = data()
    with fake_cupy.installed(device_count=2) as cupy:
        net = gpubp.mlp([6, 9, 3], device="cuda:1", standardize=True)
        gpubp.fit(net, X, T, epochs=1, batch_size=20, validation=(X, T))
        assert device_of(net.theta) == Device("cuda", 1)
        assert device_of(net.predict(X)) == Device("cuda", 1)
        assert cupy.cuda.runtime.getDevice() == 0
        with cupy.cuda.Device(0):
            elsewhere = cupy.asarray(X)
        with pytest.raises(DeviceError, match="X is on cuda:0, the network on cuda:1"):
            net.predict(elsewhere)
