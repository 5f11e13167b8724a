"""The configurations that the generic tests run over: what is registered is tested."""

from __future__ import annotations

from typing import Any

import numpy as np

import gpubp
from gpubp.layers.base import Activation, Layer
from gpubp.layers.dense_activation import DenseActivation
from gpubp.losses.base import Loss
from gpubp.ops.random import Draws

SHAPES = [(5, None), (3, None), (1, None), (2, 2), (4, 3), (3, 3)]
"""(N, members): N unlike the widths 3 and 4, N equal to them, a single example, and stacks with E == N and without."""


def layers() -> list[Any]:
    """Every registered layer's examples, and each activation fused behind a dense layer, as (name, make, n_in).

    A layer that does something else in training is there a second time, with a forward that is in training.
    """
    cases = []
    for name, kind in sorted(Layer.by_name.items()):
        for position, (_, n_in) in enumerate(kind.examples()):
            cases.append((f"{name}-{position}", lambda kind=kind, p=position: kind.examples()[p][0], n_in))
            if kind.examples()[position][0].differs_in_training:
                cases.append((f"{name}-{position}-training", lambda make=cases[-1][1]: in_training(make()), n_in))
            if issubclass(kind, Activation):
                for width in (4, 3):
                    cases.append(
                        (
                            f"Dense+{name}-{position}-{width}x3",
                            lambda kind=kind, p=position, w=width: DenseActivation(
                                gpubp.Dense(w, 3), kind.examples()[p][0]
                            ),
                            width,
                        )
                    )
    return cases


def in_training(layer: Layer) -> Layer:
    """The layer with a forward that is in training, and draws the same each time."""
    forward = layer.forward

    def train(X: Any, out: Any = None) -> Any:
        return forward(X, out, training=True, rng=Draws(5))

    layer.forward = train  # type: ignore[method-assign]
    return layer


def losses() -> list[Loss]:
    """Every registered loss's examples."""
    return [loss for _, kind in sorted(Loss.by_name.items()) for loss in kind.examples()]


def ready(make: Any, members: int | None, dtype: str = "float64", seed: int = 1) -> Any:
    """A layer with random parameters, biases too, and constants in the right dtype."""
    layer = make()
    owner = layer.dense if isinstance(layer, DenseActivation) else layer
    owner.initialize(seed, dtype=dtype, members=members)
    rng = np.random.default_rng(seed + 1)
    for array in owner.parameters.values():
        array[...] = rng.normal(size=array.shape)
    for name, array in owner.constants.items():
        owner.constants[name] = array.astype(dtype)
    return layer


def normal(shape: tuple[int, ...], seed: int, dtype: str = "float64") -> np.ndarray:
    """Random numbers, none closer to zero than 1e-3, so that no kink is within reach of a difference."""
    values = np.random.default_rng(seed).normal(size=shape)
    return (np.sign(values) * np.maximum(np.abs(values), 1e-3)).astype(dtype)


def inputs(layer: Layer, shape: tuple[int, ...], seed: int, dtype: str = "float64") -> np.ndarray:
    """An X that the layer takes."""
    return layer.example_inputs(np.random.default_rng(seed), shape).astype(dtype)


def lead(members: int | None) -> tuple[int, ...]:
    """The leading axes of a stack."""
    return () if members is None else (members,)
