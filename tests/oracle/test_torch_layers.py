"""PyTorch in float64 as an outside oracle: 20 steps through every layer; and that no part of the package lacks a case.

Elementwise layers, losses and optimizers have theirs in test_torch.py.
"""

from __future__ import annotations

import numpy as np
import pytest
from outside import required
from test_torch import ACTIVATIONS, LOSSES, OPTIMIZERS

import gpubp
from gpubp.layers.base import Layer
from gpubp.losses.base import Loss
from gpubp.optimizers.base import Optimizer

torch = required("torch", "GPUBP_REQUIRE_TORCH")
functional = torch.nn.functional

N, N_IN, WIDTH = 50, 5, 6


class Peer:
    """The network in PyTorch, from its first layer to its last, around a layer in the middle.

    Attributes:
        W: The parameters, by their names in the network.
        running: Running statistics, by their names.
        mask: What dropout multiplies by in this step.
    """

    def __init__(self, net, middle):
        self.W = {name: torch.tensor(array.copy(), requires_grad=True) for name, array in net.parameters.items()}
        self.middle, self.net, self.mask = middle, net, None
        self.running = {name: torch.tensor(array.copy()) for name, array in net.layers[1].constants.items()}

    def __call__(self, X):
        H = self.middle(self, self.dense("0", X))
        return self.dense("3", torch.tanh(H))

    def dense(self, path, X):
        return X @ self.W[f"{path}.W"] + self.W[f"{path}.b"]


def batch_norm(peer, H):
    mean, variance = peer.running["running_mean"], peer.running["running_variance"]
    return functional.batch_norm(H, mean, variance, peer.W["1.gamma"], peer.W["1.beta"], True, 0.3, 1e-5)


def residual(peer, H):
    return H + torch.tanh(peer.dense("1.2", torch.sigmoid(peer.dense("1.0", H))))


def embedding(peer, X):
    """Columns 0, 2, 4, and the rows of the tables for columns 1 and 3; -1 is no category and gives zeros."""
    rows = []
    for column in (1, 3):
        index = X[:, column].long()
        found = functional.embedding(index.clamp(min=0), peer.W[f"0.W{column}"])
        rows.append(found * (index >= 0)[:, None])
    return torch.cat([X[:, [0, 2, 4]], *rows], dim=1)


# Name -> (the layer in the middle of the network, what PyTorch computes there).
LAYERS = {
    "BatchNorm": (lambda: gpubp.BatchNorm(WIDTH, 0.3), batch_norm),
    "Dense": (lambda: gpubp.Dense(WIDTH, WIDTH), lambda peer, H: peer.dense("1", H)),
    "Dropout": (lambda: gpubp.Dropout(0.4), lambda peer, H: H * peer.mask),
    "Embedding": (lambda: gpubp.Embedding(N_IN, {1: (4, 3), 3: (30, 2)}), embedding),
    "LayerNorm": (
        lambda: gpubp.LayerNorm(WIDTH),
        lambda peer, H: functional.layer_norm(H, (WIDTH,), peer.W["1.gamma"], peer.W["1.beta"]),
    ),
    "Residual": (
        lambda: gpubp.Residual([gpubp.Dense(WIDTH, 7), gpubp.Sigmoid(), gpubp.Dense(7, WIDTH), gpubp.Tanh()]),
        residual,
    ),
    "Softmax": (gpubp.Softmax, lambda peer, H: functional.softmax(H, dim=-1)),
    "Standardize": (
        lambda: gpubp.Standardize(WIDTH),
        lambda peer, H: (H - peer.running["mean"]) / peer.running["scale"],
    ),
}


class EmbeddingPeer(Peer):
    """The same where the layer comes first."""

    def __call__(self, X):
        return self.dense("3", torch.tanh(self.dense("1", self.middle(self, X))))


@pytest.mark.parametrize("name", LAYERS)
def test_twenty_steps(name):
    """Parameters and running statistics after 20 steps on minibatches."""
    make, middle = LAYERS[name]
    rng = np.random.default_rng(5)
    X, T = rng.normal(size=(N, N_IN)), rng.normal(size=(N, 3))
    if name == "Embedding":
        X[:, 1], X[:, 3] = rng.integers(-1, 4, N), rng.integers(-1, 30, N)
        layers = [make(), gpubp.Dense(8, WIDTH), gpubp.Tanh(), gpubp.Dense(WIDTH, 3)]
    else:
        layers = [gpubp.Dense(N_IN, WIDTH), make(), gpubp.Tanh(), gpubp.Dense(WIDTH, 3)]
    net = gpubp.Network(layers, "squared_error", dtype="float64", device="cpu", rng=3)
    net.adapt(X)
    peer = (EmbeddingPeer if name == "Embedding" else Peer)(net, middle)
    before = {key: array.copy() for key, array in net.parameters.items()}
    if name == "BatchNorm":  # it takes away the bias before it: Adam would make steps of a gradient that is rounding
        steps, optimizer = torch.optim.SGD(peer.W.values(), lr=0.05, momentum=0.9), gpubp.SGD(0.05, 0.9)
    else:
        steps, optimizer = torch.optim.Adam(peer.W.values(), lr=0.02), gpubp.Adam(0.02)
    plan = gpubp.StepPlan(net, 12)
    for _ in range(20):
        rows = rng.permutation(N)[:12]
        if name == "Dropout":
            net.draws.begin_steps(0)
            _, saved = net.run_forward(net.inputs(X[rows]), training=True)
            peer.mask = torch.tensor(saved[1]["mask"])
        plan.steps(X, T, None, rows[None], optimizer)
        steps.zero_grad()
        (0.5 * ((peer(torch.tensor(X[rows])) - torch.tensor(T[rows])) ** 2).sum(dim=1).mean()).backward()
        steps.step()
    for key, array in net.parameters.items():
        np.testing.assert_allclose(array, peer.W[key].detach().numpy(), rtol=0, atol=1e-9, err_msg=key)
        assert (array != before[key]).any()
    for key, expected in peer.running.items():
        np.testing.assert_allclose(net.layers[1].constants[key], expected.numpy(), rtol=0, atol=1e-9, err_msg=key)


def of_the_package(by_name):
    return {kind for kind in by_name.values() if kind.__module__.startswith("gpubp.")}


def test_no_layer_lacks_a_case():
    assert not set(LAYERS) & set(ACTIVATIONS)
    assert {kind.__name__ for kind in of_the_package(Layer.by_name)} == {*LAYERS, *ACTIVATIONS}
    for name, (make, _) in LAYERS.items():
        assert type(make()).__name__ == name
    for name in ACTIVATIONS:
        assert type(gpubp.activation_by_name(name)).__name__ == name


def test_no_loss_lacks_a_case_nor_one_with_missing_targets():
    assert {type(loss) for loss, _, _ in LOSSES.values()} == of_the_package(Loss.by_name)
    assert {type(loss) for loss, _, _ in LOSSES.values() if loss.allow_missing} == of_the_package(Loss.by_name)


def test_no_optimizer_lacks_a_case():
    assert {type(mine()) for mine, _ in OPTIMIZERS.values()} == of_the_package(Optimizer.by_name)
