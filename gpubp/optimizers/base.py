"""What every optimizer is: settings, state of the shape of theta, and an update by tiles of the flat buffer."""

from __future__ import annotations

import inspect
import math
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from gpubp.backend import Array, array_module
from gpubp.errors import SettingError, ShapeError
from gpubp.ops import tiles


class Optimizer:
    """Base class of all optimizers; a subclass registers itself under its class name in lower case.

    An optimizer belongs to the first network that it updates: its state (`state`, `steps`) is that network's, and a
    second `fit` goes on with it.

    Args:
        learning_rate: Positive; a sequence of E numbers gives each member of a stack its own.

    Raises:
        SettingError: The learning rate is not a positive finite number.
    """

    by_name: ClassVar[dict[str, type[Optimizer]]] = {}
    state_names: tuple[str, ...] = ()

    def __init_subclass__(cls) -> None:
        Optimizer.by_name[cls.__name__.lower()] = cls

    def __init__(self, learning_rate: Any) -> None:
        self.learning_rate = learning_rate
        self.steps = 0
        self.state: dict[str, Array] = {}
        self._theta: Array = None
        self._dL_dtheta: Array = None
        self._tiles: list[tuple[Any, ...]] = []

    @property
    def learning_rate(self) -> float | list[float]:
        """The learning rate, or that of each member of a stack; a new one counts from the next update on."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        rates = np.asarray(learning_rate, dtype=float)
        if rates.ndim > 1 or not (np.isfinite(rates) & (rates > 0)).all():
            raise SettingError(f"{type(self).__name__}: learning_rate={learning_rate!r} is not positive and finite")
        self._learning_rate: float | list[float] = float(rates) if rates.ndim == 0 else rates.tolist()
        self._rates: Array = None

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain JSON."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.config().items())})"

    def update(self, theta: Array, dL_dtheta: Array) -> None:
        """Take one step: change theta in place.

        Args:
            theta: (P,), or (E, P) with one member a row.
            dL_dtheta: The same shape; left unchanged.

        Raises:
            ShapeError: The optimizer holds the state of another network, or learning rates for another stack.
        """
        if theta is not self._theta or dL_dtheta is not self._dL_dtheta:
            self._attach(theta, dL_dtheta)
        rate, rates = self._learning_rate, self._member_rates()
        self.steps += 1
        self._begin(self.steps)
        for xp, rows, *arrays in self._tiles:
            self._update(xp, rate if rates is None else rates[rows], *arrays)

    def reset(self) -> None:
        """Forget the state, and with it the network that it belongs to."""
        self.steps, self.state, self._tiles = 0, {}, []
        self._theta = self._dL_dtheta = self._rates = None

    def snapshot(self) -> tuple[int, dict[str, Array]]:
        """A copy of the state, for `restore`."""
        return self.steps, {name: array.copy() for name, array in self.state.items()}

    def restore(self, snapshot: tuple[int, dict[str, Array]]) -> None:
        """Go back to a snapshot; one from before the first step means state of zeros."""
        self.steps, state = snapshot
        for name, array in self.state.items():
            array[...] = state.get(name, 0)

    def _attach(self, theta: Array, dL_dtheta: Array) -> None:
        if self._theta is not None and theta is not self._theta:
            raise ShapeError(
                f"this {type(self).__name__} holds the state of another network: use a new one, or call reset() on it"
            )
        if theta.shape != dL_dtheta.shape:
            raise ShapeError(f"theta has shape {theta.shape}, its gradient {dL_dtheta.shape}: they must be equal")
        xp, scratch = tiles.prepare(theta)
        if self._theta is None:
            self.state = {name: xp.zeros_like(theta) for name in self.state_names}
        self._theta, self._dL_dtheta = theta, dL_dtheta
        self._tiles = [
            (
                xp,
                tile[:-1],
                theta[tile],
                dL_dtheta[tile],
                *(self.state[name][tile] for name in self.state_names),
                part,
            )
            for tile, part in tiles.over(theta, scratch)
        ]

    def _member_rates(self) -> Array:
        """The learning rates as an array (E, 1), one for each row of theta; None where there is one for all."""
        rates, theta = self._learning_rate, self._theta
        if isinstance(rates, list) and self._rates is None:
            if theta.ndim != 2 or len(rates) != theta.shape[0]:
                raise ShapeError(
                    f"{len(rates)} learning rates were given for a "
                    + (f"stack of {theta.shape[0]} networks" if theta.ndim == 2 else "single network")
                )
            self._rates = array_module(theta).asarray(rates, dtype=theta.dtype)[:, None]
        return self._rates

    def _begin(self, step: int) -> None:
        """Compute what is the same for all tiles of the given step, counted from 1."""

    def _update(self, xp: ModuleType, rate: Any, theta: Array, dL_dtheta: Array, *state_and_scratch: Array) -> None:
        """Update one tile: views of theta, dL_dtheta, each state array by `state_names`, and scratch of their shape."""
        raise NotImplementedError


def require_fraction(owner: object, name: str, value: float) -> float:
    """The value as a float.

    Raises:
        SettingError: It is not within 0 <= value < 1.
    """
    if not (0 <= value < 1 and math.isfinite(value)):
        raise SettingError(f"{type(owner).__name__}: {name}={value!r} is outside 0 <= {name} < 1")
    return float(value)


def optimizer_by_name(name: str, **settings: Any) -> Optimizer:
    """An optimizer by its name, ``"sgd"`` or ``"adam"``.

    Raises:
        SettingError: There is no optimizer of that name.
    """
    if name not in Optimizer.by_name:
        raise SettingError(f"unknown optimizer {name!r}: use one of {', '.join(sorted(Optimizer.by_name))}")
    return Optimizer.by_name[name](**settings)
