"""Networks from scikit-learn's multilayer perceptrons: `from_sklearn`."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubp.backend import Device
from gpubp.errors import NotReadyError, SettingError
from gpubp.interop.filling import Arrays, filled_network
from gpubp.layers.base import Layer, layer_from_config
from gpubp.losses.base import Loss
from gpubp.network import Network

ACTIVATIONS = {"identity": "Identity", "logistic": "Sigmoid", "tanh": "Tanh", "relu": "ReLU"}
LOSSES = {
    "softmax": "softmax_cross_entropy",
    "logistic": "binary_cross_entropy",
    "identity": "squared_error",
    "exp": "poisson",
}
"""What the last layer's activation is here: the link of a loss."""

_TAKEN = "an MLPClassifier, an MLPRegressor, or a Pipeline of a StandardScaler and one of them"


def from_sklearn(estimator: Any, *, dtype: Any = None, device: str | Device = "auto") -> Network:
    """A network that predicts what a fitted scikit-learn perceptron does.

    `Network.predict` gives what ``predict_proba`` gives: a column a class, or a label; for two classes the one
    probability (N, 1) of ``classes_[1]``. For a regressor it gives what ``predict`` gives, as (N, n_out). The L2
    penalty is not taken over, as scikit-learn divides it by the number of examples.

    Args:
        estimator: A fitted MLPClassifier or MLPRegressor, alone or behind a StandardScaler in a Pipeline.
        dtype: ``"float32"`` or ``"float64"``; None for that of the fitted weights.
        device: Where the network lives.

    Raises:
        NotReadyError: The estimator is not fitted.
        SettingError: It is none of these, or computes something that gpubp does not have.
    """
    layers: list[Layer] = []
    arrays: list[Arrays] = []
    if "Pipeline" in _kinds(estimator):
        *before, estimator = [step for _, step in estimator.steps]
        for step in before:
            if "StandardScaler" not in _kinds(step) or layers:
                raise SettingError(f"the Pipeline's step {_name(step)} can't be converted: {_TAKEN} is needed")
            layer, given = _standardize(step)
            layers.append(layer)
            arrays.append(given)
    if not _kinds(estimator) & {"MLPClassifier", "MLPRegressor"}:
        raise SettingError(f"{_name(estimator)} can't be converted: {_TAKEN} is needed")
    _require_fitted(estimator, "coefs_")
    if estimator.activation not in ACTIVATIONS:
        raise SettingError(
            f"{_name(estimator)}: unknown activation {estimator.activation!r}; supported are {', '.join(ACTIVATIONS)}"
        )
    loss = LOSSES.get(estimator.out_activation_)
    if loss not in Loss.by_name:
        supported = ", ".join(name for name, loss in LOSSES.items() if loss in Loss.by_name)
        raise SettingError(
            f"{_name(estimator)}: no loss here has the output activation {estimator.out_activation_!r}; "
            f"supported are {supported}"
        )
    for position, (W, b) in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True)):
        if position:
            layers.append(layer_from_config(ACTIVATIONS[estimator.activation], {}))
            arrays.append({})
        layers.append(layer_from_config("Dense", dict(zip(("n_in", "n_out"), W.shape, strict=True))))
        arrays.append({"W": W, "b": b})
    return filled_network(layers, arrays, loss, dtype or estimator.coefs_[0].dtype, device)


def _standardize(scaler: Any) -> tuple[Layer, Arrays]:
    _require_fitted(scaler, "n_features_in_")
    n = int(scaler.n_features_in_)
    mean = scaler.mean_ if scaler.with_mean else np.zeros(n)
    scale = scaler.scale_ if scaler.with_std else np.ones(n)
    return layer_from_config("Standardize", {"n": n}), {"mean": mean, "scale": scale}


def _require_fitted(estimator: Any, attribute: str) -> None:
    if not hasattr(estimator, attribute):
        raise NotReadyError(f"this {_name(estimator)} is not fitted yet: call its fit first")


def _kinds(estimator: Any) -> set[str]:
    """The names of the scikit-learn classes that it is an instance of."""
    return {kind.__name__ for kind in type(estimator).__mro__ if kind.__module__.startswith("sklearn.")}


def _name(estimator: Any) -> str:
    return repr(estimator) if isinstance(estimator, str) else type(estimator).__name__
