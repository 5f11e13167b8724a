"""System D: columns are examples. Three layers, sigmoid hidden ones and a linear output.

    W (n_out, n_in), b (n_out,), Z = W X + b[:, None],   loss = mean over examples of 0.5 * ||p - t||^2

gpubp has rows as examples, so every matrix is the transpose: ``Y = X @ W + b`` with W (n_in, n_out), and dL_dW the
transpose of D's. D's author asked how to write backward so that it can be verified five minutes later: with
`gpubp.check_backward`, which takes anybody's functions, as the last tests do.
"""

from itertools import pairwise

import numpy as np
import pytest

import gpubp

WIDTHS, N, RATE = [4, 6, 5, 3], 7, 0.5
NAMES = ("0.W", "0.b", "2.W", "2.b", "4.W", "4.b")


# The transcription.


def sigmoid(Z):
    return 1 / (1 + np.exp(-Z))


def forward(X, parameters):
    """Activations [X, A1, A2, P] of the shapes (n, N)."""
    W1, b1, W2, b2, W3, b3 = parameters
    A1 = sigmoid(W1 @ X + b1[:, None])
    A2 = sigmoid(W2 @ A1 + b2[:, None])
    return [X, A1, A2, W3 @ A2 + b3[:, None]]


def loss_of(activations, targets):
    return 0.5 * ((activations[-1] - targets) ** 2).sum(axis=0).mean()


def backward(activations, targets, parameters):
    """The gradient of the loss by each parameter: [dW1, db1, dW2, db2, dW3, db3]."""
    X, A1, A2, P = activations
    _, _, W2, _, W3, _ = parameters
    dL_dP = (P - targets) / targets.shape[1]  # (n_out, N); the output is linear, so this is dL_dZ3
    dL_dZ2 = (W3.T @ dL_dP) * A2 * (1 - A2)
    dL_dZ1 = (W2.T @ dL_dZ2) * A1 * (1 - A1)
    gradients = []
    for dL_dZ, A in ((dL_dZ1, X), (dL_dZ2, A1), (dL_dP, A2)):
        gradients += [dL_dZ @ A.T, dL_dZ.sum(axis=1)]  # (n_out, N) @ (N, n_in); sum over the examples
    return gradients


# The comparison.


@pytest.fixture
def net():
    layers = []
    for n_in, n_out in pairwise(WIDTHS):
        layers += [gpubp.Dense(n_in, n_out), gpubp.Sigmoid()]
    network = gpubp.Network(layers[:-1], gpubp.SquaredError(scale=0.5), dtype="float64", device="cpu", rng=0)
    rng = np.random.default_rng(1)
    for name in ("0.b", "2.b", "4.b"):
        network.parameters[name][...] = rng.normal(size=network.parameters[name].shape)
    return network


@pytest.fixture
def data():
    """Columns are examples."""
    rng = np.random.default_rng(2)
    return rng.normal(size=(WIDTHS[0], N)), rng.normal(size=(WIDTHS[-1], N))


def as_columns(arrays):
    """The arrays of gpubp in D's convention: matrices transposed, vectors as they are."""
    return [arrays[name].T.copy() for name in NAMES]


def test_gradients_are_the_transposes(net, data):
    X, targets = data
    parameters = as_columns(net.parameters)
    activations = forward(X, parameters)
    loss, gradients = net.loss_and_gradients(X.T, targets.T)
    np.testing.assert_allclose(loss, loss_of(activations, targets), rtol=1e-12)
    np.testing.assert_allclose(net.forward(X.T), activations[-1].T, rtol=0, atol=1e-12)
    for mine, theirs in zip(as_columns(gradients), backward(activations, targets, parameters), strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-12)


def test_hundred_updates(net, data):
    X, targets = data
    parameters = as_columns(net.parameters)
    losses = []
    for _ in range(100):
        activations = forward(X, parameters)
        losses.append(loss_of(activations, targets))
        gradients = backward(activations, targets, parameters)
        parameters = [p - RATE * dL_dp for p, dL_dp in zip(parameters, gradients, strict=True)]
    history = gpubp.fit(net, X.T, targets.T, optimizer=gpubp.SGD(RATE), epochs=100, batch_size=N, shuffle=False)
    np.testing.assert_allclose(history["loss"], losses, rtol=0, atol=1e-10)
    assert losses[-1] < losses[0] / 4
    for mine, theirs in zip(as_columns(net.parameters), parameters, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-10)


def check(data, net, backward):
    """Verify a backward of this signature: the loss as a function of the six parameters, against differences."""
    X, targets = data

    def loss(*parameters):
        return loss_of(forward(X, parameters), targets)

    def gradients(dL, *parameters):
        return [dL * dL_dp for dL_dp in backward(forward(X, parameters), targets, parameters)]

    return gpubp.check_backward(loss, gradients, *as_columns(net.parameters))


def test_its_backward_is_verified(net, data):
    report = check(data, net, backward)
    assert report.ok, str(report)
    assert [each.compared for each in report.checks] == [p.size for p in net.parameters.values()]


def not_divided(activations, targets, parameters):
    return [N * dL_dp for dL_dp in backward(activations, targets, parameters)]


def sigmoid_at_the_output(activations, targets, parameters):
    """As if the last layer had a sigmoid like the others: the usual slip with a linear output."""
    P = activations[-1]
    return backward(activations, targets + (P - targets) * (1 - P * (1 - P)), parameters)


def forgotten_bias(activations, targets, parameters):
    *gradients, _ = backward(activations, targets, parameters)
    return [*gradients, np.zeros(WIDTHS[-1])]


@pytest.mark.parametrize("mistaken", [not_divided, sigmoid_at_the_output, forgotten_bias])
def test_a_mistake_in_it_is_found(mistaken, net, data):
    report = check(data, net, mistaken)
    assert not report.ok
    assert "GRADIENTS DISAGREE" in str(report)


def test_a_forgotten_transpose_is_found(net, data):
    def untransposed(activations, targets, parameters):
        dW1, *others = backward(activations, targets, parameters)
        return [dW1.T, *others]

    with pytest.raises(gpubp.GpubpError, match=r"gradient 0 has shape \(4, 6\), its array has \(6, 4\)"):
        check(data, net, untransposed)
