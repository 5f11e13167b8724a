"""The flat buffers on a device: rows of a stack begin where packs and matrix products read at once."""

from __future__ import annotations

import numpy as np
import pytest

import gpubp
from gpubp.backend import to_host
from gpubp.parameters import ROW_BYTES, zeros_like

OPTIMIZERS = {
    "SGD": lambda: gpubp.SGD(0.1, 0.9, nesterov=True, clip_norm=0.5),
    "AdamW": lambda: gpubp.AdamW([0.01, 0.02, 0.03], weight_decay=0.1, average=0.9),
    "RMSprop": lambda: gpubp.RMSprop(0.01, momentum=0.5),
    "Lion": lambda: gpubp.Lion(0.01, clip_norm=0.5, average=0.9),
}


def trained(device: str, optimizer: gpubp.Optimizer, dtype: str) -> gpubp.Network:
    rng = np.random.default_rng(0)
    X, t = rng.normal(size=(20, 5)), rng.integers(3, size=20)
    net = gpubp.mlp([5, 4, 3], loss="softmax_cross_entropy", members=3, l2=0.01, dtype=dtype, device=device, rng=0)
    gpubp.fit(net, X, t, optimizer=optimizer, epochs=3, batch_size=8, micro_batch_size=4, progress=False)
    return net


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_padding_stays_zero_in_a_training_that_is_otherwise_the_same(fake_cupy, name, dtype):
    optimizer, on_host = OPTIMIZERS[name](), OPTIMIZERS[name]()
    net, host_net = trained("cuda", optimizer, dtype), trained("cpu", on_host, dtype)
    P = net.theta.shape[1]
    assert P % (ROW_BYTES // net.theta.itemsize) != 0
    buffers = [net.theta, net.dL_dtheta, net.plan.dL_dtheta, *optimizer.state.values()]
    for buffer in buffers:
        assert buffer.shape == (3, P)
        assert buffer.data.ptr % ROW_BYTES == buffer.strides[0] % ROW_BYTES == 0
        np.testing.assert_array_equal(to_host(buffer.base)[:, P:], 0)
    assert net.plan.why_not_captured is None
    tolerance = 1e-10 if dtype == "float64" else 1e-4
    np.testing.assert_allclose(to_host(net.theta), host_net.theta, rtol=tolerance, atol=tolerance)
    for key, array in optimizer.state.items():
        np.testing.assert_allclose(to_host(array), on_host.state[key], rtol=tolerance, atol=tolerance)


def test_a_single_network_and_the_host_have_no_padding(fake_cupy):
    for net in (
        gpubp.mlp([5, 3], loss="huber", device="cuda"),
        gpubp.mlp([5, 3], loss="huber", members=3, device="cpu"),
    ):
        assert net.theta.flags.c_contiguous


def test_zeros_lie_as_their_model_does(fake_cupy):
    for xp in (np, fake_cupy):
        for model in (xp.ones(5), xp.ones((3, 5)), xp.ones((3, 8))[:, :5], xp.ones((0, 5)), xp.ones((1, 8))[:, :5]):
            made = zeros_like(model)
            assert made.shape == model.shape
            assert made.strides == model.strides or model.size == 0
            np.testing.assert_array_equal(to_host(made), 0)
