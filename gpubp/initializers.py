"""Initial weights. All draw from one NumPy generator, so that a seed gives the same network on every device.

Sources: Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks" (2010),
equation 16; He et al., "Delving deep into rectifiers" (2015), equation 10; LeCun et al., "Efficient backprop" (1998),
equation 16; Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks" (2014).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gpubp.errors import SettingError
from gpubp.settings import require_positive


@dataclass(frozen=True)
class Initializer:
    """Draws a weight matrix of shape (n_in, n_out), in float64."""

    _by_name: ClassVar[dict[str, type[Initializer]]] = {}

    def __init_subclass__(cls) -> None:
        if not cls.__name__.startswith("_"):
            Initializer._by_name[cls.__name__] = cls

    def __call__(self, rng: np.random.Generator, n_in: int, n_out: int) -> NDArray[np.float64]:
        """Draw the weights."""
        raise NotImplementedError

    def config(self) -> dict[str, Any]:
        """What `initializer` turns back into an equal object; plain JSON."""
        return {"name": type(self).__name__, **asdict(self)}


@dataclass(frozen=True)
class _VarianceScaling(Initializer):
    distribution: str = "uniform"

    def __post_init__(self) -> None:
        if self.distribution not in ("uniform", "normal"):
            raise SettingError(f"unknown distribution {self.distribution!r}: use 'uniform' or 'normal'")

    def variance(self, n_in: int, n_out: int) -> float:
        raise NotImplementedError

    def __call__(self, rng: np.random.Generator, n_in: int, n_out: int) -> NDArray[np.float64]:
        variance = self.variance(n_in, n_out)
        if self.distribution == "normal":
            return rng.normal(0.0, math.sqrt(variance), (n_in, n_out))
        limit = math.sqrt(3 * variance)  # a uniform distribution on +-limit has variance limit^2 / 3
        return rng.uniform(-limit, limit, (n_in, n_out))


class Glorot(_VarianceScaling):
    """Variance 2 / (n_in + n_out): keeps the scale of activations and gradients through sigmoid-like layers."""

    def variance(self, n_in: int, n_out: int) -> float:
        """The variance of one weight."""
        return 2 / (n_in + n_out)


class He(_VarianceScaling):
    """Variance 2 / n_in: keeps the scale of activations through ReLU layers, which silence half of their inputs."""

    def variance(self, n_in: int, n_out: int) -> float:
        """The variance of one weight."""
        return 2 / n_in


class LeCun(_VarianceScaling):
    """Variance 1 / n_in: a layer's sums have the scale of its inputs, where these have mean 0 and variance 1."""

    def variance(self, n_in: int, n_out: int) -> float:
        """The variance of one weight."""
        return 1 / n_in


@dataclass(frozen=True)
class Orthogonal(Initializer):
    """`gain` times a matrix with orthonormal rows or columns, whichever are fewer; all such matrices equally likely."""

    gain: float = 1.0

    def __post_init__(self) -> None:
        require_positive(self, "gain", self.gain)

    def __call__(self, rng: np.random.Generator, n_in: int, n_out: int) -> NDArray[np.float64]:
        """Draw the weights."""
        Q, R = np.linalg.qr(rng.normal(size=(max(n_in, n_out), min(n_in, n_out))))
        # QR leaves the signs open, and LAPACK does not draw them: with R's diagonal positive there is but one Q. See
        # Mezzadri, "How to generate random matrices from the classical compact groups" (2007).
        Q = Q * np.where(np.diagonal(R) < 0, -1, 1)
        return self.gain * (Q if n_in >= n_out else Q.T)


@dataclass(frozen=True)
class TruncatedNormal(Initializer):
    """Normal with standard deviation `std`, values beyond two standard deviations drawn again."""

    std: float = 0.05

    def __post_init__(self) -> None:
        require_positive(self, "std", self.std)

    def __call__(self, rng: np.random.Generator, n_in: int, n_out: int) -> NDArray[np.float64]:
        """Draw the weights."""
        weights = rng.normal(size=n_in * n_out)
        while (beyond := np.flatnonzero(abs(weights) > 2)).size:
            weights[beyond] = rng.normal(size=beyond.size)
        return self.std * weights.reshape(n_in, n_out)


def initializer(choice: str | dict[str, Any] | Initializer) -> Initializer:
    """The initializer meant by an object, its `config`, or a name such as ``"glorot_uniform"``.

    Raises:
        SettingError: There is no such initializer.
    """
    if isinstance(choice, Initializer):
        return choice
    if isinstance(choice, dict):
        settings = dict(choice)
        name = settings.pop("name", None)
        if name not in Initializer._by_name:
            raise SettingError(f"unknown initializer {name!r}: use one of {', '.join(sorted(Initializer._by_name))}")
        return Initializer._by_name[name](**settings)
    named = {
        "glorot_uniform": Glorot("uniform"),
        "glorot_normal": Glorot("normal"),
        "he_uniform": He("uniform"),
        "he_normal": He("normal"),
        "lecun_uniform": LeCun("uniform"),
        "lecun_normal": LeCun("normal"),
        "orthogonal": Orthogonal(),
        "truncated_normal": TruncatedNormal(),
    }
    if not isinstance(choice, str) or choice not in named:
        raise SettingError(f"unknown initializer {choice!r}: use one of {', '.join(named)}")
    return named[choice]
