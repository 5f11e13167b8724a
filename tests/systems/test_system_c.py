"""System C: how can a *batch* of examples give a single set of weights?

Averaging first, the inputs or the errors, is wrong: the network then learns the mean target and answers it for every
example. Gradients are per example, and the sum over examples comes last: it is the sum over the batch axis that the
matrix product ``X.mT @ dL_dY`` does.

Both wrong answers and the right one are transcribed in plain NumPy, one example at a time, and compared with gpubp.
"""

import numpy as np
import pytest

import gpubp

X = np.array([[0.05, 0.1], [0.9, 0.2]])
T = np.array([[0.2, 0.3], [1.0, 0.1]])
MEAN_TARGET = [0.6, 0.2]
RATE = 0.5


def network():
    """2-4-2: a sigmoid hidden layer and a linear output, small weights."""
    small = gpubp.TruncatedNormal(std=0.05)
    layers = [gpubp.Dense(2, 4, small), gpubp.Sigmoid(), gpubp.Dense(4, 2, small)]
    return gpubp.Network(layers, gpubp.SquaredError(scale=0.5), dtype="float64", device="cpu", rng=0)


# The transcription: all arrays of one example are vectors.


def forward(x, parameters):
    W1, b1, W2, b2 = parameters
    h = 1 / (1 + np.exp(-(x @ W1 + b1)))
    return h, h @ W2 + b2


def gradients(x, h, error, parameters):
    """The gradient of 0.5 * ||y - t||^2 of one example, from its input x, hidden h and error y - t."""
    *_, W2, _ = parameters
    blame = (W2 @ error) * h * (1 - h)
    return [np.outer(x, blame), blame, np.outer(h, error), error]


def right(parameters):
    """A gradient for each example; their mean last."""
    each = []
    for x, t in zip(X, T, strict=True):
        h, y = forward(x, parameters)
        each.append(gradients(x, h, y - t, parameters))
    return [np.mean(same_parameter, axis=0) for same_parameter in zip(*each, strict=True)]


def averaged_inputs(parameters):
    """Wrong: one mean example."""
    x, t = X.mean(axis=0), T.mean(axis=0)
    h, y = forward(x, parameters)
    return gradients(x, h, y - t, parameters)


def averaged_errors(parameters):
    """Wrong: every example is blamed for the mean error."""
    passed = [forward(x, parameters) for x in X]
    error = np.mean([y - t for (_, y), t in zip(passed, T, strict=True)], axis=0)
    each = [gradients(x, h, error, parameters) for x, (h, _) in zip(X, passed, strict=True)]
    return [np.mean(same_parameter, axis=0) for same_parameter in zip(*each, strict=True)]


# The same three in gpubp: what one step is shown.


def shown_right(net):
    return X, T


def shown_averaged_inputs(net):
    return X.mean(axis=0, keepdims=True), T.mean(axis=0, keepdims=True)


def shown_averaged_errors(net):
    Y = net.forward(X)
    return X, Y - (Y - T).mean(axis=0)  # targets that leave every example with the mean error


def train(net, shown, updates):
    plan, optimizer = gpubp.StepPlan(net, batch_size=2), gpubp.SGD(RATE)
    for _ in range(updates):
        inputs, targets = shown(net)
        plan.step(inputs, targets, None, optimizer)


@pytest.mark.parametrize(
    ("transcribed", "shown"),
    [(right, shown_right), (averaged_inputs, shown_averaged_inputs), (averaged_errors, shown_averaged_errors)],
)
def test_hundred_updates(transcribed, shown):
    net = network()
    parameters = [net.parameters[name].copy() for name in ("0.W", "0.b", "2.W", "2.b")]
    for _ in range(100):
        parameters = [p - RATE * dL_dp for p, dL_dp in zip(parameters, transcribed(parameters), strict=True)]
    train(net, shown, 100)
    for name, expected in zip(("0.W", "0.b", "2.W", "2.b"), parameters, strict=True):
        np.testing.assert_allclose(net.parameters[name], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shown", [shown_averaged_inputs, shown_averaged_errors])
def test_averaging_first_answers_the_mean_target_for_every_example(shown):
    net = network()
    train(net, shown, 2000)
    Y = net.predict(X)
    np.testing.assert_allclose(Y, [MEAN_TARGET, MEAN_TARGET], rtol=0, atol=2e-3)
    # prediction minus target, as the question prints it: [0.400, -0.100] and [-0.399, 0.100]
    np.testing.assert_allclose(Y - T, [[0.4, -0.1], [-0.4, 0.1]], rtol=0, atol=2e-3)


def test_gradients_per_example_fit_both_targets():
    net = network()
    train(net, shown_right, 4000)
    np.testing.assert_allclose(net.predict(X), T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("loss", [gpubp.SquaredError(), gpubp.BinaryCrossEntropy(), gpubp.SoftmaxCrossEntropy()])
def test_the_gradient_of_a_batch_is_the_mean_of_the_gradients_of_its_examples(loss):
    rng = np.random.default_rng(0)
    layers = [gpubp.Dense(3, 5), gpubp.Tanh(), gpubp.Dense(5, 4)]
    net = gpubp.Network(layers, loss, dtype="float64", device="cpu")
    inputs, targets = rng.normal(size=(7, 3)), loss.example_targets(rng, (7, 4))
    value, batch = net.loss_and_gradients(inputs, targets)
    each = [net.loss_and_gradients(inputs[n : n + 1], targets[n : n + 1]) for n in range(7)]
    np.testing.assert_allclose(value, np.mean([value_n for value_n, _ in each]), rtol=1e-12)
    for name, dL_dp in batch.items():
        mean = np.mean([gradient_n[name] for _, gradient_n in each], axis=0)
        np.testing.assert_allclose(dL_dp, mean, rtol=0, atol=1e-12)


def test_the_matrix_product_sums_the_outer_products_of_the_examples():
    """``X.mT @ dL_dY``: the rule, its index form, and the sum over examples that it does."""
    rng = np.random.default_rng(0)
    inputs, dL_dY = rng.normal(size=(7, 3)), rng.normal(size=(7, 4))
    outer_products = [np.outer(x, row) for x, row in zip(inputs, dL_dY, strict=True)]
    dense = gpubp.Dense(3, 4)
    dense.initialize(dtype="float64")
    _, saved = dense.forward(inputs)
    dense.backward(dL_dY, saved)
    np.testing.assert_allclose(dense.gradients["W"], np.sum(outer_products, axis=0), rtol=0, atol=1e-12)
    (rule,) = (rule for rule in gpubp.Dense.rules if rule.gradient == "dL_dW")
    assert (rule.formula, rule.index_form) == ("X.mT @ dL_dY", "dL_dW[i,o] = sum_n X[n,i] * dL_dY[n,o]")
