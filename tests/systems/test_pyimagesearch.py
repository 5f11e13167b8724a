"""The XOR net and the digits net of "Backpropagation from scratch with Python" (pyimagesearch.com, 2021-05-06).

Sigmoid layers; the input has a column of ones and every hidden layer one more unit than its name says, so 2-2-1 means
weights (3, 3) and (3, 1). No biases beyond that; one update per example with ``W -= alpha * A.T @ D``, the error being
A - y. In gpubp: SquaredError(scale=0.5), and a hook that zeroes the gradient of the biases before each update.

Seeds are tried as members of one stack: all of them are trained by the same calls.
"""

from itertools import pairwise

import numpy as np
import pytest

import gpubp

XOR_X = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
XOR_T = np.array([[0.0], [1.0], [1.0], [0.0]])


def with_ones(X):
    return np.concatenate([X, np.ones((len(X), 1))], axis=1)


def initial_weights(widths, seed):
    """W[k] = randn / sqrt(width before it), one unit added to every layer but the last."""
    random = np.random.RandomState(seed)
    counts = [*(width + 1 for width in widths[:-1]), widths[-1]]
    scales = [np.sqrt(width) for width in widths[:-1]]
    return [random.randn(*shape) / scale for shape, scale in zip(pairwise(counts), scales, strict=True)]


def stack(widths, seeds, dtype="float64"):
    """One network whose member e has the initial weights of seeds[e]."""
    weights = [initial_weights(widths, seed) for seed in seeds]
    layers = [layer for W in weights[0] for layer in (gpubp.Dense(*W.shape), gpubp.Sigmoid())]
    network = gpubp.Network(layers, gpubp.SquaredError(scale=0.5), dtype=dtype, device="cpu", members=len(seeds))
    for k in range(len(widths) - 1):
        network.parameters[f"{2 * k}.W"][...] = [W[k] for W in weights]
    return network


def without_biases(network):
    """A hook that zeroes the gradient of every bias: in a row of theta, weights come first, then biases."""

    def zero(dL_dtheta):
        dL_dtheta[..., network.weights_size :] = 0

    return zero


def train_on_each(network, X, T, alpha, epochs):
    """One update per example, in order: the plan's own step, with arrays that are prepared once."""
    plan, optimizer, hook = gpubp.StepPlan(network, batch_size=1), gpubp.SGD(alpha), without_biases(network)
    examples = []
    for n in range(len(X)):
        x = network.inputs(X[n : n + 1])
        examples.append((x, network.targets(T[n : n + 1], x)))
    for _ in range(epochs):
        for x, t in examples:
            plan.step(x, t, None, optimizer, reduce_gradients=hook)


def transcribed(X, T, weights, alpha, epochs):
    """The same maths in plain NumPy; returns the weights."""
    weights = [W.copy() for W in weights]
    for _ in range(epochs):
        for x, t in zip(X, T, strict=True):
            A = [x[None, :]]
            for W in weights:
                A.append(1 / (1 + np.exp(-(A[-1] @ W))))
            D = [(A[-1] - t) * A[-1] * (1 - A[-1])]
            for W, a in zip(weights[:0:-1], A[-2:0:-1], strict=True):
                D.insert(0, (D[0] @ W.T) * a * (1 - a))
            for W, a, d in zip(weights, A[:-1], D, strict=True):
                W -= alpha * a.T @ d
    return weights


def test_hundred_updates_of_every_seed():
    seeds, X = range(4), with_ones(XOR_X)
    network = stack([2, 2, 1], seeds)
    train_on_each(network, X, XOR_T, alpha=0.5, epochs=25)
    for seed in seeds:
        expected = transcribed(X, XOR_T, initial_weights([2, 2, 1], seed), alpha=0.5, epochs=25)
        for k, W in enumerate(expected):
            np.testing.assert_allclose(network.parameters[f"{2 * k}.W"][seed], W, rtol=0, atol=1e-10)
            assert not network.parameters[f"{2 * k}.b"].any()


def test_xor():
    """20,000 epochs: predictions like the published .005, .989, .988, .014, or stuck at .5, as seed 3 is."""
    network = stack([2, 2, 1], seeds=range(4))
    train_on_each(network, with_ones(XOR_X), XOR_T, alpha=0.5, epochs=20_000)
    predictions = network.predict(with_ones(XOR_X))[..., 0]  # (members, 4)
    learned = (abs(predictions - XOR_T[:, 0]) < 0.05).all(axis=1)
    assert learned.sum() >= 2, predictions.round(3)
    assert not learned[3], predictions.round(3)
    assert (abs(predictions[3] - 0.5) < 0.01).any(), predictions.round(3)
    assert ((predictions > 0.5) == (XOR_T[:, 0] > 0.5))[:3].all(), predictions.round(3)


def test_digits():
    """64-32-16-10 on scikit-learn's digits, a quarter of them held out: about 98% of those are told right.

    The publication makes 1.3 million updates of one example each (1,000 epochs). Here, to be quick: gradients summed
    over 8 examples, 100 epochs, a larger alpha; four seeds at once.
    """
    datasets = pytest.importorskip("sklearn.datasets")
    model_selection = pytest.importorskip("sklearn.model_selection")
    images, labels = datasets.load_digits(return_X_y=True)
    X = with_ones((images - images.min()) / (images.max() - images.min()))
    X_train, X_test, train, test = model_selection.train_test_split(X, labels, test_size=0.25, random_state=0)

    network = stack([64, 32, 16, 10], seeds=range(4), dtype="float32")
    trainer = gpubp.Trainer(
        network,
        gpubp.SGD(0.5 * 8),  # alpha 0.5; times 8, because gpubp's loss is the mean over the batch
        batch_size=8,
        shuffle=False,
        reduce_gradients=without_biases(network),
    )
    trainer.fit(X_train, np.eye(10)[train], epochs=100)
    shares = (network.predict(X_test).argmax(axis=-1) == test).mean(axis=-1)  # (members,)
    assert abs(shares.mean() - 0.98) <= 0.01, shares
