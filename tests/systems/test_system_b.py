"""System B: a class with `fit_partial(x, y)`, no bias, and the questions that its reader asked, answered as tests.

Its maths in gpubp: the loss is ``0.5 * sum((Y - T)^2)`` over the batch. `SquaredError(scale=0.5)` divides that by N, so
the learning rate is alpha times N. Every `Dense` has a bias; it starts at zero and stays there when its part of the
gradient is zeroed before each update, which is what the `reduce_gradients` hook is able to do.
"""

from itertools import pairwise

import numpy as np
import pytest

import gpubp

WIDTHS, ALPHA = [3, 5, 4, 2], 1.0


class SystemB:
    """The transcription: sigmoid layers without biases, rows are examples."""

    def __init__(self, weights, alpha):
        self.W, self.alpha = [W.copy() for W in weights], alpha

    def fit_partial(self, x, y):
        A = [np.atleast_2d(x)]
        for W in self.W:
            A.append(1 / (1 + np.exp(-(A[-1] @ W))))
        error = A[-1] - y
        D = [error * A[-1] * (1 - A[-1])]
        for k in reversed(range(1, len(self.W))):
            delta = (D[0] @ self.W[k].T) * A[k] * (1 - A[k])
            D.insert(0, delta)
        for k in range(len(self.W)):
            self.W[k] -= self.alpha * A[k].T @ D[k]
        return A, D


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in pairwise(WIDTHS)]


@pytest.fixture
def data():
    rng = np.random.default_rng(1)
    return rng.normal(size=(10, WIDTHS[0])), rng.uniform(size=(10, WIDTHS[-1]))


def network_of(weights, scale=0.5):
    layers = [layer for W in weights for layer in (gpubp.Dense(*W.shape), gpubp.Sigmoid())]
    network = gpubp.Network(layers, gpubp.SquaredError(scale), dtype="float64", device="cpu")
    for k, W in enumerate(weights):
        network.parameters[f"{2 * k}.W"][...] = W
    return network


def without_biases(network):
    """A hook that zeroes the gradient of every bias: in a row of theta, weights come first, then biases."""

    def zero(dL_dtheta):
        dL_dtheta[..., network.weights_size :] = 0

    return zero


@pytest.mark.parametrize("rows", [1, 5])
def test_hundred_updates(rows, weights, data):
    X, T = data
    system, network = SystemB(weights, ALPHA), network_of(weights)
    epochs = 100 * rows // len(X)
    for _ in range(epochs):
        for start in range(0, len(X), rows):
            system.fit_partial(X[start : start + rows], T[start : start + rows])
    trainer = gpubp.Trainer(
        network,
        gpubp.SGD(ALPHA * rows),
        batch_size=rows,
        shuffle=False,
        reduce_gradients=without_biases(network),
    )
    trainer.fit(X, T, epochs=epochs)
    assert trainer.optimizer.steps == 100
    for k, W in enumerate(system.W):
        np.testing.assert_allclose(network.parameters[f"{2 * k}.W"], W, rtol=0, atol=1e-10)
        assert abs(W - weights[k]).max() > 0.1
        assert not network.parameters[f"{2 * k}.b"].any()


def test_why_is_there_no_factor_2(weights, data):
    """Because the cost is *half* the square. Without the half, the 2 goes into alpha and the updates are the same."""
    loss = gpubp.SquaredError(scale=0.5)
    Y, T = np.array([[0.7, 0.2]]), np.array([[1.0, 0.3]])
    _, saved = loss.forward(Y, T)
    np.testing.assert_array_equal(loss.backward(saved), Y - T)  # the error of one example
    half, whole = network_of(weights, scale=0.5), network_of(weights, scale=1)
    for network, alpha in ((half, ALPHA), (whole, ALPHA / 2)):
        gpubp.fit(network, *data, optimizer=gpubp.SGD(alpha), epochs=20)
    np.testing.assert_allclose(half.theta, whole.theta, rtol=0, atol=1e-12)


def test_is_there_always_one_row(weights, data):
    """No: N rows are N examples, and their update is the sum of the N updates that each row alone would make.

    The error and sigmoid' are multiplied elementwise, so both have the shape (N, n_out) of the output.
    """
    X, T = data
    together = SystemB(weights, ALPHA)
    A, D = together.fit_partial(X, T)
    assert A[-1].shape == D[-1].shape == (len(X), WIDTHS[-1])
    _, gradients = network_of(weights).loss_and_gradients(X, T)
    for k, W in enumerate(weights):
        steps = []
        for n in range(len(X)):
            alone = SystemB(weights, ALPHA)
            alone.fit_partial(X[n], T[n])
            steps.append(alone.W[k] - W)
        np.testing.assert_allclose(together.W[k] - W, np.sum(steps, axis=0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(gradients[f"{2 * k}.W"], -np.mean(steps, axis=0) / ALPHA, rtol=0, atol=1e-12)


def test_why_is_w_in_delta_and_why_transposed(weights, data):
    """A hidden activation i feeds every output o through W[i,o]: its blame is the sum over o, and o is W's 2nd axis."""
    A, D = SystemB(weights, ALPHA).fit_partial(*data)
    for k in (1, 2):
        dC_dA = np.einsum("no,io->ni", D[k], weights[k])  # the index form, written as indices
        np.testing.assert_allclose(D[k - 1], dC_dA * A[k] * (1 - A[k]), rtol=0, atol=1e-12)
    (rule,) = (rule for rule in gpubp.Dense.rules if rule.gradient == "dL_dX")
    assert rule.index_form == "dL_dX[n,i] = sum_o dL_dY[n,o] * W[i,o]"


def test_why_a_transposed_and_how_the_update_is_gradient_descent(weights, data):
    """W[i,o] acts on every example n, so dC/dW[i,o] is a sum over n, A's first axis; the update is W - alpha dC/dW."""
    system = SystemB(weights, ALPHA)
    A, D = system.fit_partial(*data)
    for k, W in enumerate(weights):
        dC_dW = np.einsum("ni,no->io", A[k], D[k])
        np.testing.assert_allclose(system.W[k], W - ALPHA * dC_dW, rtol=0, atol=1e-12)
    (rule,) = (rule for rule in gpubp.Dense.rules if rule.gradient == "dL_dW")
    assert rule.index_form == "dL_dW[i,o] = sum_n X[n,i] * dL_dY[n,o]"

    def cost(*W):
        Y = data[0]
        for each in W:
            Y = 1 / (1 + np.exp(-Y @ each))
        return 0.5 * ((Y - data[1]) ** 2).sum()

    def gradients(dC, *W):  # alpha 1, so that the change of W is -dC/dW itself
        taught = SystemB(W, 1.0)
        taught.fit_partial(*data)
        return [dC * (before - after) for before, after in zip(W, taught.W, strict=True)]

    report = gpubp.check_backward(cost, gradients, *weights)  # against central differences
    assert report.ok, str(report)


def test_what_is_special_about_the_last_layer(weights, data):
    """Nothing but where its error comes from: from the loss itself, while every other layer gets D W^T from the next.

    In gpubp the same split shows as `Loss.backward` and `Layer.backward`.
    """
    X, T = data
    A, D = SystemB(weights, ALPHA).fit_partial(X, T)
    network = network_of(weights)
    last, before = network.layers[-2:], network.layers[:-2]
    hidden = X
    for layer in before:
        hidden, _ = layer.forward(hidden)
    Z, saved_dense = last[0].forward(hidden)
    Y, saved_sigmoid = last[1].forward(Z)
    _, saved_loss = network.loss.forward(Y, T)
    dL_dY = network.loss.backward(saved_loss)  # the loss speaks, once
    dL_dZ = last[1].backward(dL_dY, saved_sigmoid)
    dL_dhidden = last[0].backward(dL_dZ, saved_dense)  # from here on, layers pass back what they are handed
    np.testing.assert_allclose(len(X) * dL_dZ, D[2], rtol=0, atol=1e-12)  # gpubp's loss is the mean over N
    np.testing.assert_allclose(len(X) * dL_dhidden * A[2] * (1 - A[2]), D[1], rtol=0, atol=1e-12)


def test_what_is_special_about_the_bias(weights, data):
    """It is the weight of an input that is always 1: dC/db is that input's row of A^T D, the sum of D over the rows."""
    A, D = SystemB(weights, ALPHA).fit_partial(*data)
    _, gradients = network_of(weights).loss_and_gradients(*data)
    for k in range(len(weights)):
        with_ones = np.concatenate([np.ones((len(A[k]), 1)), A[k]], axis=1)
        dC_dW = with_ones.T @ D[k]  # (1 + n_in, N) @ (N, n_out) -> (1 + n_in, n_out)
        np.testing.assert_allclose(len(data[0]) * gradients[f"{2 * k}.b"], dC_dW[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(len(data[0]) * gradients[f"{2 * k}.W"], dC_dW[1:], rtol=0, atol=1e-12)
