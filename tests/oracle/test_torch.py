"""PyTorch's autograd, in float64, as an outside oracle: losses, gradients, optimizer steps, and stacks.

Without PyTorch these tests are skipped, unless GPUBP_REQUIRE_TORCH=1, which makes that a failure.
"""

import numpy as np
import pytest
from lion import Lion
from outside import required

import gpubp
from gpubp.layers.base import Layer

torch = required("torch", "GPUBP_REQUIRE_TORCH")
functional = torch.nn.functional

N_IN, HIDDEN, N_OUT, N = 4, 6, 3, 7
TOLERANCE = {"rtol": 0, "atol": 1e-9}


# What PyTorch calls things. That nothing is missing is tested in test_torch_layers.py.

ACTIVATIONS = {
    "ELU": lambda layer: torch.nn.ELU(layer.alpha),
    "GELU": lambda layer: torch.nn.GELU(),
    "Identity": lambda layer: torch.nn.Identity(),
    "LeakyReLU": lambda layer: torch.nn.LeakyReLU(layer.slope),
    "ReLU": lambda layer: torch.nn.ReLU(),
    "SiLU": lambda layer: torch.nn.SiLU(),
    "Sigmoid": lambda layer: torch.nn.Sigmoid(),
    "Softplus": lambda layer: torch.nn.Softplus(layer.beta),
    "Tanh": lambda layer: torch.nn.Tanh(),
}
REGISTERED = [
    name
    for name, kind in Layer.by_name.items()
    if issubclass(kind, gpubp.Activation) and kind.__module__.startswith("gpubp.")
]


def indices(rng, shape):
    return rng.integers(0, shape[-1], shape[:-1])


def probabilities(rng, shape):
    return rng.dirichlet(np.ones(shape[-1]), shape[:-1])


def zeros_and_ones(rng, shape):
    return rng.integers(0, 2, shape).astype(float)


def numbers(rng, shape):
    return rng.normal(size=shape)


# Name -> (the loss, how to draw targets, the loss of each example (N,) by PyTorch).
LOSSES = {
    "softmax, indices": (
        gpubp.SoftmaxCrossEntropy(),
        indices,
        lambda Y, T: functional.cross_entropy(Y, T, reduction="none"),
    ),
    "softmax, probabilities": (
        gpubp.SoftmaxCrossEntropy(),
        probabilities,
        lambda Y, T: functional.cross_entropy(Y, T, reduction="none"),
    ),
    "binary, logits": (
        gpubp.BinaryCrossEntropy(),
        zeros_and_ones,
        lambda Y, T: functional.binary_cross_entropy_with_logits(Y, T, reduction="none").sum(dim=1),
    ),
    "squared, scale 0.5": (
        gpubp.SquaredError(),
        numbers,
        lambda Y, T: 0.5 * functional.mse_loss(Y, T, reduction="none").sum(dim=1),
    ),
    "squared, scale 1": (
        gpubp.SquaredError(scale=1),
        numbers,
        lambda Y, T: functional.mse_loss(Y, T, reduction="none").sum(dim=1),
    ),
}


def counts(rng, shape):
    return rng.poisson(1.5, shape).astype(float)


def with_holes(draw):
    def drawn(rng, shape):
        return np.where(rng.random(shape) < 0.3, np.nan, draw(rng, shape))

    return drawn


def indices_with_holes(rng, shape):
    classes = indices(rng, shape)
    return np.where(np.arange(classes.shape[-1]) % 4 == 1, -1, classes)


def pinball(Y, T, q):
    return torch.maximum(q * (T - Y), (q - 1) * (T - Y)).sum(dim=1)


def poisson_deviance(Y, T):
    nll = functional.poisson_nll_loss(Y, T, log_input=True, reduction="none")
    return 2 * (nll + torch.xlogy(T, T) - T).sum(dim=1)


LOSSES |= {
    "absolute": (
        gpubp.AbsoluteError(),
        numbers,
        lambda Y, T: functional.l1_loss(Y, T, reduction="none").sum(dim=1),
    ),
    "absolute, missing": (
        gpubp.AbsoluteError(allow_missing=True),
        with_holes(numbers),
        lambda Y, T: (functional.l1_loss(Y, T.nan_to_num(), reduction="none") * ~T.isnan()).sum(dim=1),
    ),
    "huber": (
        gpubp.Huber(0.4),
        numbers,
        lambda Y, T: functional.huber_loss(Y, T, reduction="none", delta=0.4).sum(dim=1),
    ),
    "quantile": (gpubp.Quantile(0.3), numbers, lambda Y, T: pinball(Y, T, 0.3)),
    "quantiles": (
        gpubp.Quantile((0.1, 0.5, 0.8)),
        numbers,
        lambda Y, T: pinball(Y, T, torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64)),
    ),
    "poisson": (gpubp.PoissonDeviance(), counts, poisson_deviance),
    "softmax, weighted and smoothed, missing": (
        gpubp.SoftmaxCrossEntropy((0.5, 2, 3), label_smoothing=0.2, allow_missing=True),
        indices_with_holes,
        lambda Y, T: functional.cross_entropy(
            Y, T, torch.tensor([0.5, 2, 3], dtype=torch.float64), reduction="none", label_smoothing=0.2, ignore_index=-1
        ),
    ),
    "softmax, weighted and smoothed probabilities": (
        gpubp.SoftmaxCrossEntropy((0.5, 2, 3), label_smoothing=0.2),
        probabilities,
        lambda Y, T: functional.cross_entropy(
            Y, T, torch.tensor([0.5, 2, 3], dtype=torch.float64), reduction="none", label_smoothing=0.2
        ),
    ),
    "binary, weighted": (
        gpubp.BinaryCrossEntropy((0.5, 2, 3)),
        zeros_and_ones,
        lambda Y, T: functional.binary_cross_entropy_with_logits(
            Y, T, reduction="none", pos_weight=torch.tensor([0.5, 2, 3], dtype=torch.float64)
        ).sum(dim=1),
    ),
}


def gaussian_nll(Y, T):
    M, S = Y.chunk(2, dim=1)
    return functional.gaussian_nll_loss(M, T, functional.softplus(S) + 0.1, full=True, reduction="none")


def without_holes(losses):
    """The losses of targets, those that are missing left out."""
    return lambda Y, T: (losses(Y, T.nan_to_num()) * ~T.isnan()).sum(dim=1)


def logistic(Y, T):
    return functional.binary_cross_entropy_with_logits(Y, T, reduction="none")


MORE_LOSSES = {
    "gaussian": (gpubp.GaussianNLL(0.1), numbers, lambda Y, T: gaussian_nll(Y, T).sum(dim=1)),
    "gaussian, missing": (
        gpubp.GaussianNLL(0.1, allow_missing=True),
        with_holes(numbers),
        without_holes(gaussian_nll),
    ),
    "squared, missing": (
        gpubp.SquaredError(allow_missing=True),
        with_holes(numbers),
        without_holes(lambda Y, T: 0.5 * (Y - T) ** 2),
    ),
    "huber, missing": (
        gpubp.Huber(0.4, allow_missing=True),
        with_holes(numbers),
        without_holes(lambda Y, T: functional.huber_loss(Y, T, reduction="none", delta=0.4)),
    ),
    "quantile, missing": (
        gpubp.Quantile(0.3, allow_missing=True),
        with_holes(numbers),
        without_holes(lambda Y, T: torch.maximum(0.3 * (T - Y), -0.7 * (T - Y))),
    ),
    "poisson, missing": (
        gpubp.PoissonDeviance(allow_missing=True),
        with_holes(counts),
        without_holes(lambda Y, T: 2 * (Y.exp() - T * Y + torch.xlogy(T, T) - T)),
    ),
    "binary, smoothed": (
        gpubp.BinaryCrossEntropy(label_smoothing=0.2),
        zeros_and_ones,
        lambda Y, T: logistic(Y, 0.8 * T + 0.1).sum(dim=1),
    ),
    "binary, missing": (
        gpubp.BinaryCrossEntropy(allow_missing=True),
        with_holes(zeros_and_ones),
        without_holes(logistic),
    ),
}
CASES = [
    *((activation, loss) for activation in REGISTERED for loss in LOSSES),
    *(("Tanh", loss) for loss in MORE_LOSSES),
]
LOSSES |= MORE_LOSSES


def widths(loss):
    """How many outputs, and how many targets: three outputs, or that many for each of several heads."""
    n_out = N_OUT if N_OUT % loss.heads == 0 else N_OUT * loss.heads
    return n_out, n_out // loss.heads


OPTIMIZERS = {
    "sgd": (lambda: gpubp.SGD(0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": (lambda: gpubp.SGD(0.02, 0.9), lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9)),
    "nesterov": (
        lambda: gpubp.SGD(0.02, 0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    ),
    "adam": (lambda: gpubp.Adam(0.02), lambda p: torch.optim.Adam(p, lr=0.02)),
    "adamw, no decay": (
        lambda: gpubp.AdamW(0.02, weight_decay=0),
        lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0),
    ),
    "lion": (lambda: gpubp.Lion(0.003), lambda p: Lion(p, lr=0.003)),
    "rmsprop": (lambda: gpubp.RMSprop(0.01), lambda p: torch.optim.RMSprop(p, lr=0.01)),
    "rmsprop with momentum": (
        lambda: gpubp.RMSprop(0.01, 0.9, 1e-6, 0.5),
        lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9, eps=1e-6, momentum=0.5),
    ),
}

EXTRAS = {  # (l2, whether examples are weighted)
    "plain": (0.0, False),
    "l2": (0.3, False),
    "weighted": (0.0, True),
    "l2, weighted": (0.3, True),
}


class Peer:
    """The same network in PyTorch: a copy of the parameters of one network, or of member e of a stack."""

    def __init__(self, network, activation, loss_of_examples, member=None):
        arrays = {name: array if member is None else array[member] for name, array in network.parameters.items()}
        self.parameters = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
        self.activation, self.loss_of_examples, self.l2 = activation, loss_of_examples, network.l2
        self.mean_weight = None  # of all examples, where a batch holds only some of them

    def loss(self, X, T, w):
        W1, b1, W2, b2, W3, b3 = self.parameters.values()
        A1 = self.activation(torch.tensor(X) @ W1 + b1)
        A2 = self.activation(A1 @ W2 + b2)
        losses = self.loss_of_examples(A2 @ W3 + b3, torch.tensor(T))  # (N,)
        weights = torch.ones(len(X), dtype=torch.float64) if w is None else torch.tensor(w)
        of_all = weights.mean() if self.mean_weight is None else self.mean_weight
        return (losses * weights).mean() / of_all + 0.5 * self.l2 * sum((W**2).sum() for W in (W1, W2, W3))

    def gradients(self, X, T, w):
        gradients = torch.autograd.grad(self.loss(X, T, w), list(self.parameters.values()))
        return dict(zip(self.parameters, gradients, strict=True))

    def train(self, optimizer, batches):
        """One step a batch (X, T, w); the loss before each step."""
        losses = []
        for batch in batches:
            optimizer.zero_grad()
            loss = self.loss(*batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses


def network_of(activation, loss, l2, **settings):
    """4-6-6-3, or 6 for a loss of two heads: an activation after each layer but the last, biases that are not zero."""
    layers = [
        gpubp.Dense(N_IN, HIDDEN),
        gpubp.activation_by_name(activation),
        gpubp.Dense(HIDDEN, HIDDEN),
        gpubp.activation_by_name(activation),
        gpubp.Dense(HIDDEN, widths(loss)[0]),
    ]
    network = gpubp.Network(layers, loss, dtype="float64", device="cpu", rng=0, l2=l2, **settings)
    rng = np.random.default_rng(1)
    for name in ("0.b", "2.b", "4.b"):
        network.parameters[name][...] = 0.5 * rng.normal(size=network.parameters[name].shape)
    return network


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Matrices of a few rows gain nothing by threads, and lose much where other work is going on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def peer_activation(name):
    return ACTIVATIONS[name](gpubp.activation_by_name(name))


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize(("activation", "loss"), CASES)
def test_loss_gradients_and_twenty_steps(activation, loss, extra):
    """Loss and gradients at the start; then, for each optimizer, every loss of 20 steps and where they lead."""
    l2, weighted = EXTRAS[extra]
    gpubp_loss, draw, loss_of_examples = LOSSES[loss]
    rng = np.random.default_rng(2)
    X, T = rng.normal(size=(N, N_IN)), draw(rng, (N, widths(gpubp_loss)[1]))
    if "poisson" in loss:  # its rates are exponentials: with larger outputs the training diverges, here and there
        X *= 0.2
    w = rng.uniform(0.1, 2, N) if weighted else None

    network = network_of(activation, gpubp_loss, l2)
    peer = Peer(network, peer_activation(activation), loss_of_examples)
    value, gradients = network.loss_and_gradients(X, T, w)
    np.testing.assert_allclose(value, peer.loss(X, T, w).item(), **TOLERANCE)
    for name, expected in peer.gradients(X, T, w).items():
        np.testing.assert_allclose(gradients[name], expected, **TOLERANCE, err_msg=name)

    for optimizer, (mine, theirs) in OPTIMIZERS.items():
        trained = network.copy()
        peer = Peer(network, peer_activation(activation), loss_of_examples)
        losses = peer.train(theirs(peer.parameters.values()), [(X, T, w)] * 20)
        history = gpubp.fit(trained, X, T, sample_weight=w, optimizer=mine(), epochs=20, batch_size=N, shuffle=False)
        np.testing.assert_allclose(history["loss"], losses, **TOLERANCE, err_msg=optimizer)
        for name, expected in peer.parameters.items():
            np.testing.assert_allclose(
                trained.parameters[name], expected.detach(), **TOLERANCE, err_msg=f"{optimizer}: {name}"
            )


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_minibatches_with_a_smaller_last_one(optimizer):
    """7 examples in batches of 3, 3 and 1; the weights of examples are relative to the mean weight of all 7.

    The loss of an epoch is the mean over its batches, each as long as it is.
    """
    mine, theirs = OPTIMIZERS[optimizer]
    gpubp_loss, draw, loss_of_examples = LOSSES["softmax, indices"]
    rng = np.random.default_rng(3)
    X, T, w = rng.normal(size=(N, N_IN)), draw(rng, (N, N_OUT)), rng.uniform(0.1, 2, N)
    network = network_of("Tanh", gpubp_loss, l2=0.1)
    peer = Peer(network, torch.tanh, loss_of_examples)
    peer.mean_weight = w.mean()
    batches = [(X[rows], T[rows], w[rows]) for rows in (slice(0, 3), slice(3, 6), slice(6, 7))]
    losses = np.reshape(peer.train(theirs(peer.parameters.values()), batches * 7), (7, 3))
    history = gpubp.fit(network, X, T, sample_weight=w, optimizer=mine(), epochs=7, batch_size=3, shuffle=False)
    np.testing.assert_allclose(history["loss"], losses @ [3, 3, 1] / 7, **TOLERANCE)
    for name, expected in peer.parameters.items():
        np.testing.assert_allclose(network.parameters[name], expected.detach(), **TOLERANCE, err_msg=name)


@pytest.mark.parametrize("own_data", [False, True], ids=["shared data", "own data"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("loss", LOSSES)
def test_stack_against_separate_nets(loss, optimizer, own_data):
    """Member e of a stack is a network of its own: PyTorch trains each alone, with the learning rate of that member.

    There are as many members as examples, so that a stack's axis taken for the examples' one would not go unseen.
    """
    members = 5
    gpubp_loss, draw, loss_of_examples = LOSSES[loss]
    rng = np.random.default_rng(4)
    lead = (members,) if own_data else ()
    X, T, w = (
        rng.normal(size=(*lead, 5, N_IN)),
        draw(rng, (*lead, 5, widths(gpubp_loss)[1])),
        rng.uniform(0.1, 2, (*lead, 5)),
    )
    network = network_of("Sigmoid", gpubp_loss, l2=0.1, members=members)
    peers = [Peer(network, torch.sigmoid, loss_of_examples, member=e) for e in range(members)]

    mine, theirs = OPTIMIZERS[optimizer]
    settings = mine().config()
    rate = settings.pop("learning_rate")
    rates = [rate * (1 + e) / members for e in range(members)]
    history = gpubp.fit(
        network,
        X,
        T,
        sample_weight=w,
        optimizer=type(mine())(rates, **settings),
        epochs=20,
        batch_size=5,
        shuffle=False,
    )
    for e, peer in enumerate(peers):
        own = (X[e], T[e], w[e]) if own_data else (X, T, w)
        optimizer_e = theirs(peer.parameters.values())
        optimizer_e.param_groups[0]["lr"] = rates[e]
        losses = peer.train(optimizer_e, [own] * 20)
        np.testing.assert_allclose([row[e] for row in history["loss"]], losses, **TOLERANCE)
        for name, expected in peer.parameters.items():
            np.testing.assert_allclose(
                network.parameters[name][e], expected.detach(), **TOLERANCE, err_msg=f"member {e}: {name}"
            )
