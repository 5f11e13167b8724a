"""The toy net of Stanford's course CS231n (assignment 1, `two_layer_net`): published scores and loss, and the gradient.

Inputs 10 * randn(5, 4) (seed 1), labels 0, 1, 2, 2, 1; a ReLU layer of 10 and 3 classes, weights of std 0.1 (seed 0).
Its loss is the softmax cross-entropy plus 0.05 * sum(W^2), and gpubp's penalty 0.5 * l2 * sum(W^2): so l2 is 0.1.
"""

import numpy as np
import pytest

import gpubp

PUBLISHED_LOSS = 1.30378789133
PUBLISHED_SCORES = [
    [-0.81233741, -1.27654624, -0.70335995],
    [-0.17129677, -1.18803311, -0.47310444],
    [-0.51590475, -1.01354314, -0.85042150],
    [-0.15419291, -0.48629638, -0.52901952],
    [-0.00618733, -0.12435261, -0.15226949],
]


@pytest.fixture
def net():
    network = gpubp.mlp([4, 10, 3], activation="relu", l2=0.1, dtype="float64", device="cpu")
    random = np.random.RandomState(0)  # the stream of np.random.seed(0)
    for name, shape in (("0.W", (4, 10)), ("2.W", (10, 3))):
        network.parameters[name][...] = 0.1 * random.randn(*shape)
    return network


@pytest.fixture
def data():
    return 10 * np.random.RandomState(1).randn(5, 4), np.array([0, 1, 2, 2, 1])


def test_scores(net, data):
    np.testing.assert_allclose(net.forward(data[0]), PUBLISHED_SCORES, rtol=0, atol=0.5e-8)


def test_loss(net, data):
    loss, _ = net.loss_and_gradients(*data)
    assert abs(loss - PUBLISHED_LOSS) < 0.5e-11  # to every digit that is printed
    assert abs(net.evaluate(*data) - PUBLISHED_LOSS) < 0.5e-11


def test_gradient(net, data):
    report = gpubp.check_gradients(net, *data, tolerance=1e-7)
    assert report.ok, str(report)
    assert report.kinks == 0


def test_gradient_by_the_measure_of_the_course(net, data):
    """The course compares entry by entry: |a - n| / max(1e-8, |a| + |n|), the largest of a parameter, at most 1e-7."""
    _, gradients = net.loss_and_gradients(*data)
    for name, parameter in net.parameters.items():
        differences = np.zeros_like(parameter)
        for index in np.ndindex(parameter.shape):
            kept = parameter[index]
            values = []
            for step in (1e-5, -1e-5):
                parameter[index] = kept + step
                values.append(net.evaluate(*data))
            parameter[index] = kept
            differences[index] = (values[0] - values[1]) / 2e-5
        a, n = gradients[name], differences
        assert (abs(a - n) / np.maximum(1e-8, abs(a) + abs(n))).max() <= 1e-7, name


def test_it_overfits_its_five_examples(net, data):
    net.l2 = 0.0
    history = gpubp.fit(net, *data, optimizer=gpubp.SGD(0.1), epochs=200, batch_size=5)
    assert history["loss"][-1] < 0.02
    np.testing.assert_array_equal(net.predict(data[0]).argmax(axis=1), data[1])
