"""System A: a list of layers, the bias as a column of ones, and a gradient that is not divided by N.

Its maths, transcribed below in plain NumPy, and the same network in gpubp:

    system A                                        gpubp
    W (1 + n_in, n_out), P = [1 | A], Z = P W       Dense: row 0 of W is b, the other rows are W
    cost = sum((A - T)^2) / N                       SquaredError(scale=1): the same value
    gradient starts from 2 (A - T), not over N      N times the gradient of that cost: multiply the learning rate by N
    W -= alpha dC_dW, layer by layer                one update of all parameters at once (the gradient is passed on
                                                    with the weights from before, so the order makes no difference)
    standardise, a zero variance becomes one        Standardize
    batches in order, floor(n / batch) of them      shuffle=False, on the first floor(n / batch) * batch examples
    predict = softmax of the last activations       the link of SoftmaxCrossEntropy, on what predict gives
"""

from itertools import pairwise

import numpy as np
import pytest

import gpubp

BATCH, ALPHA, EPOCHS = 25, 0.02, 20
N_TRAIN, N_TEST, N_IN, LABELS = 130, 60, 6, 3  # 130 examples: 5 batches of 25, and 5 examples that are never seen
UPDATES = EPOCHS * (N_TRAIN // BATCH)


# The transcription. Activations come as (f, slope of f at Z).

SIGMOID = (lambda Z: 1 / (1 + np.exp(-Z)), lambda Z: np.exp(-Z) / (1 + np.exp(-Z)) ** 2)


def leaky_relu(slope):
    return lambda Z: np.where(Z > 0, Z, slope * Z), lambda Z: np.where(Z > 0, 1.0, slope)


def with_ones(A):
    return np.concatenate([np.ones((len(A), 1)), A], axis=1)  # (N, 1 + n)


def statistics(X):
    mean, variance = X.mean(axis=0), X.var(axis=0)
    variance[variance == 0] = 1
    return mean, variance


def outputs(X, weights, activations):
    """The last activations (N, n_out), and for each layer its padded input P and its Z."""
    A, kept = X, []
    for W, (f, _) in zip(weights, activations, strict=True):
        P = with_ones(A)  # (N, 1 + n_in)
        Z = P @ W  # (N, 1 + n_in) @ (1 + n_in, n_out) -> (N, n_out)
        A = f(Z)
        kept.append((P, Z))
    return A, kept


def update(X, T, weights, activations, alpha):
    """One update of `weights`, in place; returns the cost before it."""
    A, kept = outputs(X, weights, activations)
    cost = ((A - T) ** 2).sum() / len(X)
    dC_dA = 2 * (A - T)  # not divided by N
    for k in reversed(range(len(weights))):
        P, Z = kept[k]
        _, slope = activations[k]
        dC_dZ = dC_dA * slope(Z)
        dC_dA = (dC_dZ @ weights[k].T)[:, 1:]  # with the weights from before; nothing is behind the column of ones
        weights[k] = weights[k] - alpha * P.T @ dC_dZ
    return cost


def softmax(A):
    e = np.exp(A)
    return e / e.sum(axis=1, keepdims=True)


def share_equal(predicted, T):
    """What system A calls its test: the share of examples where prediction and target have the same argmax."""
    return (predicted.argmax(axis=1) == T.argmax(axis=1)).mean()


# The comparison.


@pytest.fixture(scope="module")
def data():
    """Three blobs; column 1 is far from zero, column 4 does not vary in training, but does afterwards."""
    rng = np.random.default_rng(0)
    centres = rng.normal(scale=2, size=(LABELS, N_IN))
    labels = rng.integers(0, LABELS, N_TRAIN + N_TEST)
    X = centres[labels] + rng.normal(size=(len(labels), N_IN))
    X[:, 1] = 10 + 4 * X[:, 1]
    X[:N_TRAIN, 4] = 3.0
    return X, np.eye(LABELS)[labels]


def sigmoids():
    """The default network: 10-sigmoid-12-sigmoid, and a last layer of the label size with sigmoid appended."""
    return [N_IN, 10, 12, LABELS], [SIGMOID] * 3, [gpubp.Sigmoid() for _ in range(3)]


def leaky_relus():
    """Hidden layers with relu(0.1), which is leaky."""
    layers = [gpubp.LeakyReLU(0.1), gpubp.LeakyReLU(0.1), gpubp.Sigmoid()]
    return [N_IN, 8, 7, LABELS], [leaky_relu(0.1), leaky_relu(0.1), SIGMOID], layers


def both(widths, activation_layers, standardize, loss):
    """Truncated-normal weights (1 + n_in, n_out) for system A, and a network that starts from the same."""
    draw, rng = gpubp.TruncatedNormal(std=0.3), np.random.default_rng(1)
    shapes = list(pairwise(widths))
    weights = [draw(rng, 1 + n_in, n_out) for n_in, n_out in shapes]
    layers = [gpubp.Standardize(widths[0])] if standardize else []
    denses = [gpubp.Dense(n_in, n_out) for n_in, n_out in shapes]
    for dense, activation in zip(denses, activation_layers, strict=True):
        layers += [dense, activation]
    network = gpubp.Network(layers, loss, dtype="float64", device="cpu")
    for dense, W in zip(denses, weights, strict=True):
        dense.parameters["b"][...], dense.parameters["W"][...] = W[0], W[1:]
    return weights, network, denses


TWO_WAYS = {
    "alpha times N": (gpubp.SquaredError(scale=1), ALPHA * BATCH, 1),
    "loss times N": (gpubp.SquaredError(scale=BATCH), ALPHA, BATCH),  # its value is N times the cost, then
}


def test_truncated_normal_weights():
    """None beyond two standard deviations of the normal; what is left has 0.8796 of its standard deviation."""
    W = gpubp.TruncatedNormal(std=0.3)(np.random.default_rng(0), 200, 100)
    assert abs(W).max() <= 2 * 0.3
    assert abs(W.std() / 0.3 - 0.8796) < 0.01


@pytest.mark.parametrize("way", TWO_WAYS)
@pytest.mark.parametrize("standardize", [False, True], ids=["plain", "standardised"])
@pytest.mark.parametrize("architecture", [sigmoids, leaky_relus])
def test_hundred_updates(architecture, standardize, way, data):
    loss, learning_rate, factor = TWO_WAYS[way]
    widths, activations, activation_layers = architecture()
    X, T = data
    X_train, X_test, T_train = X[:N_TRAIN], X[N_TRAIN:], T[:N_TRAIN]
    if not standardize:
        X_train, X_test = X_train / 10, X_test / 10  # so that no sigmoid is saturated
    weights, network, denses = both(widths, activation_layers, standardize, loss)

    mean, variance = statistics(X_train) if standardize else (0, 1)
    scaled_train, scaled_test = ((part - mean) / np.sqrt(variance) for part in (X_train, X_test))
    costs = [
        update(scaled_train[rows], T_train[rows], weights, activations, ALPHA)
        for _ in range(EPOCHS)
        for rows in np.split(np.arange(N_TRAIN // BATCH * BATCH), N_TRAIN // BATCH)
    ]
    assert len(costs) == UPDATES == 100

    network.adapt(X_train)  # statistics of all training examples, the dropped ones included
    seen = N_TRAIN // BATCH * BATCH
    history = gpubp.fit(
        network,
        X_train[:seen],
        T_train[:seen],
        optimizer=gpubp.SGD(learning_rate),
        epochs=EPOCHS,
        batch_size=BATCH,
        shuffle=False,
    )

    for W, dense in zip(weights, denses, strict=True):
        np.testing.assert_allclose(dense.parameters["b"], W[0], rtol=0, atol=1e-10)
        np.testing.assert_allclose(dense.parameters["W"], W[1:], rtol=0, atol=1e-10)
    cost_of_epoch = np.reshape(costs, (EPOCHS, -1)).mean(axis=1)
    np.testing.assert_allclose(np.array(history["loss"]) / factor, cost_of_epoch, rtol=0, atol=1e-10)
    assert cost_of_epoch[-1] < cost_of_epoch[0]

    predicted = softmax(outputs(scaled_test, weights, activations)[0])
    probabilities = gpubp.SoftmaxCrossEntropy().link(network.predict(X_test))
    np.testing.assert_allclose(probabilities, predicted, rtol=0, atol=1e-10)
    assert share_equal(probabilities, T[N_TRAIN:]) == share_equal(predicted, T[N_TRAIN:])


def test_it_learns(data):
    """The default network, standardised, trained five times as long: nearly every blob is told from the others."""
    X, T = data
    _, network, _ = both(sigmoids()[0], sigmoids()[2], True, gpubp.SquaredError(scale=1))
    gpubp.fit(network, X[:125], T[:125], optimizer=gpubp.SGD(ALPHA * BATCH), epochs=100, batch_size=BATCH)
    assert share_equal(network.predict(X[N_TRAIN:]), T[N_TRAIN:]) >= 0.95
