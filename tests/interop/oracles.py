"""What the interoperation tests share: examples of every layer."""

from __future__ import annotations

import pkgutil

import numpy as np

import gpubp
import gpubp.layers
from gpubp.layers.base import Layer

REGISTERED = {name: kind for name, kind in Layer.by_name.items() if kind.__module__.startswith("gpubp.")}
EXAMPLES = [
    (name, position) for name, kind in REGISTERED.items() for position, (layer, _) in enumerate(kind.examples())
]


def require_every_layer(names):
    """Fail unless these are the layers of the package: one in each file, and with an example at least."""
    files = {f"gpubp.layers.{found.name}" for found in pkgutil.iter_modules(gpubp.layers.__path__)}
    assert {kind.__module__ for kind in REGISTERED.values()} == files - {
        "gpubp.layers.base",
        "gpubp.layers.dense_activation",  # the fusion of two of them
    }
    assert set(names) == set(REGISTERED)


def example(name, position):
    """A new layer, and the input width to try it with."""
    return REGISTERED[name].examples()[position]


def around(name, position, inner, n_out):
    """The layer between two dense ones, or first where it takes indices; and what makes an X (N, n_in) for them."""
    layer, n_in = example(name, position)
    last = gpubp.Dense(layer.output_width(n_in), n_out)
    if layer.index_columns:
        return [layer, last], lambda N: layer.example_inputs(np.random.default_rng(2), (N, n_in))
    return [gpubp.Dense(inner, n_in), layer, last], lambda N: np.random.default_rng(2).normal(size=(N, inner))


def randomized(network, seed=5):
    """The network with other values in every parameter and constant, of each member if there are some."""
    rng = np.random.default_rng(seed)
    network.theta[...] = rng.normal(size=network.theta.shape)
    lead = network.theta.shape[:-1]
    for layer in network.layers:
        layer.constants = {
            name: rng.uniform(0.5, 2, size=(*lead, *shape)).astype(network.dtype)
            for name, shape in layer.constant_shapes().items()
        }
    return network
