"""The planned step: the same numbers as eager, in one workspace, with no allocation of its own."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest
from cases import lead

import gpubp
from gpubp.errors import ShapeError
from gpubp.losses.base import Loss
from gpubp.plan import StepPlan

NETS = {
    "mlp": lambda **k: gpubp.mlp([6, 8, 7, 3], **k),
    "relu, standardized": lambda **k: gpubp.mlp([6, 8, 3], activation="relu", standardize=True, **k),
    "one layer": lambda **k: gpubp.mlp([6, 3], **k),
    "unfused": lambda **k: gpubp.Network(
        [gpubp.Tanh(), gpubp.Dense(6, 8), gpubp.Sigmoid(), gpubp.Tanh(), gpubp.LeakyReLU(), gpubp.Dense(8, 3)],
        "softmax_cross_entropy",
        **k,
    ),
    "sigmoid at the end": lambda **k: gpubp.Network(
        [gpubp.Dense(6, 8), gpubp.Sigmoid(), gpubp.Dense(8, 3), gpubp.Sigmoid()], "squared_error", **k
    ),
    "binary": lambda **k: gpubp.mlp([6, 8, 3], loss="binary_cross_entropy", **k),
}


def data(net, N, members):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(*lead(members), N, 6))
    net.adapt(X)
    X, T = net.inputs(X), net.targets(rng.dirichlet(np.ones(3), size=(*lead(members), N)), net.inputs(X))
    return X, T, net.sample_weights(rng.uniform(0.5, 1, size=(*lead(members), N)), X)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("members", "stacked"), [(None, False), (3, False), (3, True)])
@pytest.mark.parametrize("name", NETS)
def test_planned_steps_equal_eager_steps_bit_for_bit(name, members, stacked, dtype, weighted):
    eager, planned = (NETS[name](members=members, dtype=dtype, l2=0.1, rng=0, device="cpu") for _ in range(2))
    X, T, w = data(eager, 8, members if stacked else None)
    data(planned, 8, members if stacked else None)
    w = w if weighted else None
    plan = StepPlan(planned, 8, stacked=stacked)
    plan.workspace.fill(np.nan)  # nothing may be read before it is written
    optimizers = gpubp.Adam(0.01), gpubp.Adam(0.01)
    for N in (8, 8, 5, 1, 8):  # smaller batches use the same memory
        part, targets = X[..., :N, :], T[..., :N, :]
        weights = None if w is None else w[..., :N]
        expected = eager.run_step(part, targets, weights)
        optimizers[0].update(eager.theta, eager.dL_dtheta)
        L = plan.step(part, targets, weights, optimizers[1])
        np.testing.assert_array_equal(L, expected)
        np.testing.assert_array_equal(planned.dL_dtheta, eager.dL_dtheta)
        np.testing.assert_array_equal(planned.theta, eager.theta)


@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize("name", NETS)
def test_arrays_that_live_at_the_same_time_never_share_memory(name, members):
    net = NETS[name](members=members, device="cpu")
    plan = StepPlan(net, 8, stacked=members is not None)

    def root(planned):
        return planned if planned.inside is None else root(planned.inside)

    arrays = plan._planned
    for i, a in enumerate(arrays):
        assert 0 <= a.offset <= a.offset + a.size <= plan.workspace.size
        assert (plan.workspace.ctypes.data + a.offset * net.dtype.itemsize) % 64 == 0
        for b in arrays[:i]:
            alive_together = a.born <= b.dies and b.born <= a.dies
            overlap = a.offset < b.offset + b.size and b.offset < a.offset + a.size
            assert not (alive_together and overlap) or root(a) is root(b), (a.place, b.place)


def test_a_deep_net_needs_much_less_than_all_its_arrays_together():
    plan = StepPlan(gpubp.mlp([64] * 12, device="cpu"), 256)
    unshared = sum(planned.size for planned in plan._planned) * 4
    saved_for_backward = 11 * 256 * 64 * 4
    assert saved_for_backward < plan.workspace_bytes < 0.55 * unshared
    assert f"workspace: {plan.workspace_bytes:,} bytes" in str(plan)


@pytest.mark.parametrize("loss", sorted(Loss.by_name))
@pytest.mark.parametrize("optimizer", [gpubp.SGD(0.1, momentum=0.9), gpubp.Adam()])
@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_allocates_nothing_that_grows_with_the_batch(loss, optimizer, weighted, members):
    N = 65536
    optimizer.reset()
    net = gpubp.mlp([8, 16, 10], loss=loss, members=members, l2=1e-4, device="cpu")
    rng = np.random.default_rng(0)
    X = net.inputs(rng.normal(size=(*lead(members), N, 8)))
    given = rng.integers(0, 10, N) if loss.startswith("softmax") else rng.random((N, 10 // net.loss.heads))
    T = net.targets(given, X)
    w = net.sample_weights(rng.uniform(0.5, 1, N), X) if weighted else None
    plan = StepPlan(net, N, stacked=members is not None)
    for _ in range(2):
        plan.step(X, T, w, optimizer)
    gc.collect()
    tracemalloc.start()
    for _ in range(3):
        plan.step(X, T, w, optimizer)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The smallest array of a step that grows with the batch, N numbers, takes 256 KiB; its largest 4 MiB. What is left
    # are views and the buffers of 8192 numbers through which NumPy casts and reduces.
    assert peak < 200 * 1024, peak


def test_a_step_larger_than_planned_is_refused():
    net = gpubp.mlp([6, 3], device="cpu", rng=0)
    X, T, _ = data(net, 4, None)
    kept = net.theta.copy()
    with pytest.raises(ShapeError, match="4 examples in a step that was planned for at most 3"):
        StepPlan(net, 3).step(X, T, None, gpubp.SGD(0.1))
    np.testing.assert_array_equal(net.theta, kept)


def test_gradients_can_be_changed_before_the_update():
    net = gpubp.mlp([6, 3], device="cpu", rng=0)
    X, T, _ = data(net, 4, None)
    kept = net.theta.copy()
    plan = StepPlan(net, 4)
    plan.step(X, T, None, gpubp.SGD(0.1), reduce_gradients=lambda dL_dtheta: dL_dtheta.fill(0))
    np.testing.assert_array_equal(net.theta, kept)


@pytest.mark.parametrize("micro", [3, 4])
@pytest.mark.parametrize("members", [None, 2])
def test_recorded_micro_batches_take_the_examples_of_their_own_step(members, micro):
    rng = np.random.default_rng(0)
    lead = () if members is None else (members,)
    X, T = rng.normal(size=(*lead, 50, 6)), rng.normal(size=(*lead, 50, 3))
    nets = [gpubp.mlp([6, 9, 3], loss="squared_error", members=members, dtype="float64", rng=1) for _ in range(2)]
    for net, size in zip(nets, (None, micro), strict=True):
        gpubp.fit(net, X, T, optimizer=gpubp.SGD(0.05), epochs=3, batch_size=8, progress=False, micro_batch_size=size)
    np.testing.assert_allclose(nets[1].theta, nets[0].theta, atol=1e-13)


@pytest.mark.parametrize("members", [None, 2])
def test_smaller_minibatches_lie_in_the_memory_of_the_largest(members):
    net = gpubp.mlp([6, 8, 3], members=members, device="cpu")
    X, T, w = data(net, 20, members)
    plan = StepPlan(net, 8, stacked=members is not None)
    for N in (5, 8, 3):
        batch = plan.minibatch((X, T, w), np.arange(N)[::-1].copy())
        for array, whole, axis in zip(batch, (X, T, w), (-2, -2, -1), strict=True):
            np.testing.assert_array_equal(array, whole.take(np.arange(N)[::-1], axis=axis))
        if N == 5:
            addresses = [array.ctypes.data for array in batch]
        assert [array.ctypes.data for array in batch] == addresses
    larger = plan.minibatch((X, T, None), np.arange(20))  # as who looks at what went wrong asks for
    np.testing.assert_array_equal(larger[0], X)


def test_the_bytes_that_a_plan_holds_are_those_of_its_arrays(cpu_kernels):
    rng = np.random.default_rng(0)
    X, T, w = rng.normal(size=(50, 4)).astype("f4"), rng.integers(3, size=50), np.ones(50, "f4")
    net = gpubp.mlp([4, 5, 3], rng=0)
    for micro_batch_size, gradient in ((None, 0), (4, net.theta.nbytes)):
        plan = gpubp.StepPlan(net, 8, micro_batch_size=micro_batch_size)
        before = plan.workspace_bytes + 4 + gradient
        assert plan.bytes_held == before
        plan.steps(X, T, w, rng.integers(50, size=(2, 8)), gpubp.SGD(0.1))
        minibatch = (micro_batch_size or 8) * (4 * 4 + 8 + 4)
        index_and_losses = 256 * (8 * 8 + 4)
        assert plan.bytes_held == before + minibatch + index_and_losses
        plan.forget_recordings()
        assert plan.bytes_held == before
