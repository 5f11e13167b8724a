"""scikit-learn's MLPClassifier on iris, as in its gallery example `plot_mlp_training_curves`: the same final losses.

What scikit-learn 1.9.1 does, said with gpubp:

    weights and biases uniform in +-sqrt(6 / (n_in + n_out)), from RandomState   assigned into `parameters`
    indices shuffled again and again by the same RandomState                     an order provider
    0.5 * alpha * sum(W^2) / batch size                                          l2 = alpha / batch size
    stops when the loss did not fall by 1e-4 for more than 10 epochs             a callback
    Adam with epsilon beside sqrt(V), before the bias correction                 epsilon, set anew before each step

The last batch of an epoch must be as large as the others: scikit-learn divides the penalty by each batch's own size.
"""

import numpy as np
import pytest

import gpubp

datasets = pytest.importorskip("sklearn.datasets")
neural_network = pytest.importorskip("sklearn.neural_network")
exceptions = pytest.importorskip("sklearn.exceptions")

ALPHA = 1e-4  # scikit-learn's default


@pytest.fixture(scope="module")
def iris():
    """Features scaled to 0 .. 1, and class indices."""
    X, y = datasets.load_iris(return_X_y=True)
    return (X - X.min(axis=0)) / (X.max(axis=0) - X.min(axis=0)), y


def network_of(random, batch_size):
    """4-100-3 with ReLU; for each layer W, then b."""
    network = gpubp.mlp([4, 100, 3], activation="relu", l2=ALPHA / batch_size, dtype="float64", device="cpu")
    for layer in ("0", "2"):
        W, b = network.parameters[f"{layer}.W"], network.parameters[f"{layer}.b"]
        bound = np.sqrt(6 / sum(W.shape))
        W[...] = random.uniform(-bound, bound, W.shape)
        b[...] = random.uniform(-bound, bound, b.shape)
    return network


def orders(random, N, epochs):
    """An order provider: each epoch a shuffle of the indices 0 .. N-1, all from the one stream of random numbers."""
    permutations = []
    index = np.arange(N)
    for _ in range(epochs):
        places = np.arange(N)
        random.shuffle(places)
        index = index[places]  # each epoch shuffles the order of the one before
        permutations.append(index)
    return lambda epoch, N: permutations[epoch]


class Tolerance(gpubp.Callback):
    """Stop when the training loss was not 1e-4 below the best one for more than 10 epochs in a row."""

    def __init__(self):
        self.best, self.waited = np.inf, 0

    def on_epoch_end(self, network, measured):
        self.waited = self.waited + 1 if measured["loss"] > self.best - 1e-4 else 0
        self.best = min(self.best, measured["loss"])
        return self.waited > 10


class EpsilonBeforeCorrection(gpubp.Callback):
    """Give Adam, before step t, epsilon / sqrt(1 - beta2^t), for an update with one batch an epoch.

    With it, M_hat / (sqrt(V_hat) + epsilon) is what scikit-learn computes, and the end of section 2 of Kingma and Ba
    (2015) proposes: sqrt(1 - beta2^t) / (1 - beta1^t) * M / (sqrt(V) + 1e-8).
    """

    def __init__(self, adam):
        self.adam, self.epsilon = adam, adam.epsilon
        self.set_for_next_step()

    def set_for_next_step(self):
        self.adam.epsilon = self.epsilon / np.sqrt(1 - self.adam.beta2 ** (self.adam.steps + 1))

    def on_epoch_end(self, network, measured):
        self.set_for_next_step()
        return False


@pytest.mark.parametrize(
    ("name", "settings", "published"),
    [
        ("sgd", {"learning_rate": 0.2}, 0.096950),
        ("sgd", {"learning_rate": 0.2, "momentum": 0.9}, 0.049530),
        ("adam", {"learning_rate": 0.01}, 0.045311),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_published_final_loss(name, settings, published, iris):
    X, y = iris
    optimizer = gpubp.optimizer_by_name(name, **settings)
    random, callbacks = np.random.RandomState(0), [Tolerance()]
    if name == "adam":
        callbacks.append(EpsilonBeforeCorrection(optimizer))
    network = network_of(random, batch_size=len(X))  # scikit-learn's default, min(200, N): all examples at once
    order = orders(random, len(X), epochs=400)
    history = gpubp.fit(
        network, X, y, optimizer=optimizer, epochs=400, batch_size=len(X), order=order, callbacks=callbacks
    )
    assert abs(history["loss"][-1] - published) <= 0.5e-6  # to every digit that is printed


@pytest.mark.parametrize(
    ("momentum", "nesterov"), [(0, False), (0.9, False), (0.9, True)], ids=["sgd", "momentum", "nesterov"]
)
def test_minibatches_against_scikit_learn_itself(momentum, nesterov, iris):
    """Five shuffled batches an epoch: loss curve and weights of the installed scikit-learn."""
    X, y = iris
    epochs, batch_size = 20, 30
    peer = neural_network.MLPClassifier(
        solver="sgd",
        learning_rate_init=0.05,
        momentum=momentum,
        nesterovs_momentum=nesterov,
        batch_size=batch_size,
        max_iter=epochs,
        random_state=0,
        tol=0,
    )
    with pytest.warns(exceptions.ConvergenceWarning, match="Maximum iterations"):
        peer.fit(X, y)
    random = np.random.RandomState(0)
    network = network_of(random, batch_size)
    order = orders(random, len(X), epochs)
    optimizer = gpubp.SGD(0.05, momentum, nesterov)
    history = gpubp.fit(network, X, y, optimizer=optimizer, epochs=epochs, batch_size=batch_size, order=order)
    np.testing.assert_allclose(history["loss"], peer.loss_curve_, rtol=0, atol=1e-9)
    for layer, W, b in zip(("0", "2"), peer.coefs_, peer.intercepts_, strict=True):
        np.testing.assert_allclose(network.parameters[f"{layer}.W"], W, rtol=0, atol=1e-9)
        np.testing.assert_allclose(network.parameters[f"{layer}.b"], b, rtol=0, atol=1e-9)
