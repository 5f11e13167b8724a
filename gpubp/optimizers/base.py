"""What every optimizer is: settings, state of the shape of theta, and an update by tiles of the flat buffer."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from gpubp import compiled
from gpubp.backend import Array, array_module, to_host
from gpubp.cost import Cost
from gpubp.errors import SettingError, ShapeError
from gpubp.ops import tiles
from gpubp.ops.combine import combine
from gpubp.parameters import zeros_like
from gpubp.schedules import Schedule, require_rate, schedule
from gpubp.settings import require_in, require_positive

AVERAGE = "average"
"""The name under which `state` holds the running average of the weights."""


class Optimizer:
    """Base class of all optimizers; a subclass registers itself under its class name in lower case.

    An optimizer belongs to the first network that it updates: its state (`state`, `steps`) is that network's, and a
    second `fit` goes on with it.

    Args:
        learning_rate: Positive; a sequence of E numbers gives each member of a stack its own; or a
            `gpubp.schedules.Schedule`.
        clip_norm: The gradient, of each member for itself, is made shorter where its Euclidean norm is larger:
            ``dL_dtheta * min(1, clip_norm / norm)``. A norm that is not finite leaves it as it is, for the divergence
            to be noticed. None clips nothing. Source: Pascanu et al., "On the difficulty of training recurrent neural
            networks" (2013), algorithm 1.
        average: At least 0 and below 1: keep ``A = average A + (1 - average) theta`` too, after each update; see
            `averaged`. None keeps none.

    Raises:
        SettingError: A setting is outside its range.
    """

    by_name: ClassVar[dict[str, type[Optimizer]]] = {}
    _setting_names: ClassVar[tuple[str, ...]] = ()
    state_names: tuple[str, ...] = ()
    flops: int = 2
    """Operations for each parameter; a square root counts as one."""
    weight_decay: float = 0.0
    """Before each update ``theta -= learning_rate * weight_decay * theta``, for weights alone."""

    def __init_subclass__(cls) -> None:
        Optimizer.by_name[cls.__name__.lower()] = cls
        cls._setting_names = tuple(name for name in inspect.signature(cls).parameters if name != "learning_rate")

    def __init__(self, learning_rate: Any, *, clip_norm: float | None = None, average: float | None = None) -> None:
        self.learning_rate = learning_rate
        self.clip_norm = None if clip_norm is None else require_positive(self, "clip_norm", clip_norm)
        self.average = None if average is None else require_in(self, "average", average, "[0, 1)")
        self.steps = 0
        self.state: dict[str, Array] = {}
        self._theta: Array = None
        self._dL_dtheta: Array = None
        self._decayed = 0  # leading columns of theta
        self._tiles: list[tuple[Any, ...]] = []
        self._compiled: Any = None  # the update as kernels, where there are some

    @property
    def learning_rate(self) -> float | list[float] | Schedule:
        """The learning rate, that of each member of a stack, or a schedule; a new one counts from the next update."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate: Any) -> None:
        is_plain = not isinstance(learning_rate, Schedule | dict)
        self._learning_rate: float | list[float] | Schedule = (
            require_rate(self, "learning_rate", learning_rate) if is_plain else schedule(learning_rate)
        )

    @property
    def current_rate(self) -> float | list[float]:
        """The learning rate of the last update, or that of each member; before the first update, that of the first."""
        if not isinstance(self._learning_rate, Schedule):
            return self._learning_rate
        (rates,) = self._learning_rate.rates(max(0, self.steps - 1), 1).tolist()
        return float(rates[0]) if len(rates) == 1 and not isinstance(self._learning_rate.rate, list) else list(rates)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain JSON."""
        values = {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}
        return {name: value.config() if isinstance(value, Schedule) else value for name, value in values.items()}

    def held(self) -> tuple[Any, ...]:
        """The objects whose memory a recorded step holds fast."""
        return (self, self._compiled, *self.state.values())

    def settings(self) -> tuple[Any, ...]:
        """What a recorded step holds fast: the settings but for the learning rate."""
        return tuple((name, getattr(self, name)) for name in self._setting_names)

    def costs(self, shape: tuple[int, ...], itemsize: int) -> list[Cost]:
        """What an update of a theta of this shape needs: the gradient read, theta and all state read and written."""
        size = math.prod(shape)
        costs = [Cost("update", self.flops * size, (3 + 2 * len(self.state_names)) * size * itemsize)]
        if self.clip_norm is not None:
            costs.append(Cost("clip", 2 * size, size * itemsize))
        if self.average is not None:
            costs.append(Cost("average", 3 * size, 3 * size * itemsize))
        return costs

    def __repr__(self) -> str:
        names = inspect.signature(type(self)).parameters
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def begin_training(self, steps: int, measures: Sequence[str]) -> None:
        """Tell a schedule how many steps more there will be, if any, and what will be measured after each epoch.

        Raises:
            SettingError: The schedule does not go with that.
        """
        if steps and isinstance(self._learning_rate, Schedule):
            self._learning_rate.begin(self.steps + steps, measures)

    def observe(self, measured: Mapping[str, Any]) -> None:
        """Tell a schedule what was measured after an epoch."""
        if isinstance(self._learning_rate, Schedule):
            self._learning_rate.observe(measured)

    def update(self, theta: Array, dL_dtheta: Array, decayed: int | None = None) -> None:
        """Take one step: change theta in place.

        Args:
            theta: (P,), or (E, P) with one member a row.
            dL_dtheta: The same shape; left unchanged.
            decayed: How many leading columns are weights, which a weight decay is for; None for all.

        Raises:
            ShapeError: The optimizer holds the state of another network, or learning rates for another stack.
        """
        self._attach(theta, dL_dtheta, decayed)
        self.begin_steps(1)
        if self.launch(theta, dL_dtheta, decayed):
            return
        self._begin(self.steps)
        rate, factor = self._tile_rate(), self._clip_factor()
        for xp, tile, *arrays in self._tiles:
            *rows, columns = tile
            own_rate = rate if isinstance(rate, float) else rate[rows[0]]
            if self.weight_decay:
                W = arrays[0][..., : max(0, self._decayed - columns.start)]
                xp.multiply(W, 1 - own_rate * self.weight_decay, out=W)
            if factor is not None:
                arrays[1] = arrays[1] * (factor[rows[0]] if rows else factor)
            self._update(xp, own_rate, *arrays)
        self._add_to_average()

    def launch(self, theta: Array, dL_dtheta: Array, decayed: int | None = None) -> bool:
        """Launch the kernels of an update, if there are some, and say whether: the part of `update` that is recorded.

        The step that it takes is the one that `begin_steps` has begun.
        """
        self._attach(theta, dL_dtheta, decayed)
        update = self._compiled
        if update is None:
            return False
        update.weight_decay, update.decayed = self.weight_decay, self._decayed
        update.clip(self.clip_norm)
        if not self._launch(update):
            return False
        self._add_to_average()
        return True

    def begin_steps(self, count: int) -> None:
        """Count so many steps, and tell the kernels what they read in them."""
        rates: Any = self._learning_rate
        if isinstance(rates, Schedule):
            rates = rates.rates(self.steps, max(1, count))
        if self._theta is not None:
            self._require_members(rates)
        if self._compiled is not None:
            self._compiled.begin(rates, self._corrections(self.steps + 1, max(1, count)))
        self.steps += count

    @property
    def averaged_theta(self) -> Array:
        """The average of the weights after each update, the later ones weighing more; a fresh array of theta's shape.

        It is divided by the sum of its weights, ``1 - average^steps``, so that it says nothing of the weights before
        the first update.

        Raises:
            SettingError: There is no average, or no update yet.
        """
        if self.average is None or not self.steps:
            raise SettingError(f"{self!r} holds no average: pass average=0.999, say, and train")
        return self.state[AVERAGE] / (1 - self.average**self.steps)

    @contextlib.contextmanager
    def averaged(self, network: Any) -> Iterator[None]:
        """Within the block the network has the averaged weights: to evaluate, to predict, to save it with them.

        The running statistics of a `BatchNorm` stay those that were taken in training, with the weights of each step:
        the average is of weights alone.

        Raises:
            SettingError: There is no average, or no update yet.
            ShapeError: The optimizer belongs to another network.
        """
        if self._theta is not None and network.theta is not self._theta:
            raise ShapeError(f"this {type(self).__name__} holds the average of another network")
        with network.device.activate():
            averaged, own = self.averaged_theta, network.theta.copy()
            network.theta[...] = averaged
        try:
            yield
        finally:
            with network.device.activate():
                network.theta[...] = own

    def reset(self) -> None:
        """Forget the state, and with it the network that it belongs to, and what a schedule has seen."""
        self.steps, self.state, self._tiles = 0, {}, []
        self._theta = self._dL_dtheta = self._compiled = None
        if isinstance(self._learning_rate, Schedule):
            self._learning_rate.reset()

    def bytes_to_train(self, theta: Array) -> int:
        """Device memory that training theta will take: a snapshot; state and scratch, if they are not there yet."""
        state = len(self._names_of_state())
        return int(theta.nbytes) * (state if self._theta is not None else 2 * state + 1)

    def _names_of_state(self) -> tuple[str, ...]:
        return (*self.state_names, *([] if self.average is None else [AVERAGE]))

    def snapshot(self) -> tuple[int, dict[str, Array]]:
        """A copy of the state, for `restore`."""
        return self.steps, {name: array.copy() for name, array in self.state.items()}

    def restore(self, snapshot: tuple[int, dict[str, Array]]) -> None:
        """Go back to a snapshot; one from before the first step means state of zeros.

        An optimizer that is new, or was `reset`, takes it over: for a network that was saved and loaded meanwhile.
        """
        self.steps, state = snapshot
        if self._theta is None:
            self.state = {name: array.copy() for name, array in state.items()}
        for name, array in self.state.items():
            array[...] = state.get(name, 0)

    def _attach(self, theta: Array, dL_dtheta: Array, decayed: int | None) -> None:
        """Make ready for these buffers, where they are not those of the last step."""
        self._decayed = theta.shape[-1] if decayed is None else decayed
        if theta is self._theta and dL_dtheta is self._dL_dtheta:
            return
        if self._theta is not None and theta is not self._theta:
            raise ShapeError(
                f"this {type(self).__name__} holds the state of another network: use a new one, or call reset() on it"
            )
        if theta.shape != dL_dtheta.shape:
            raise ShapeError(f"theta has shape {theta.shape}, its gradient {dL_dtheta.shape}: they must be equal")
        xp, scratch = tiles.prepare(theta)
        kernels = compiled.kernels_of(xp)
        update = kernels and kernels.optimizers.of(theta, dL_dtheta)
        if self._theta is None:
            self.state = {name: self._taken_over(name, theta) for name in self._names_of_state()}
        self._tiles = [
            (xp, tile, theta[tile], dL_dtheta[tile], *(self.state[name][tile] for name in self.state_names), part)
            for tile, part in tiles.over(theta, scratch)
        ]
        self._theta, self._dL_dtheta, self._compiled = theta, dL_dtheta, update  # once there was memory for all of it

    def _taken_over(self, name: str, theta: Array) -> Array:
        """An array of the state: of a snapshot, if there was one before the first step, else zeros."""
        xp, array = array_module(theta), self.state.get(name)
        taken = zeros_like(theta)
        if array is None:
            return taken
        if array.shape != theta.shape or array.dtype != theta.dtype:
            raise ShapeError(
                f"the snapshot's {name} is {array.dtype} {array.shape}, theta {theta.dtype} {theta.shape}: it is "
                "one of another network"
            )
        taken[...] = xp.asarray(to_host(array))
        return taken

    def _require_members(self, rates: Any) -> None:
        """Raise a ShapeError where there are rates of members, but not one of each."""
        theta = self._theta
        if isinstance(rates, list):
            count = len(rates)
        elif isinstance(rates, np.ndarray) and rates.shape[1] > 1:
            count = rates.shape[1]
        else:
            return
        if theta.ndim != 2 or count != theta.shape[0]:
            raise ShapeError(
                f"{count} learning rates were given for a "
                + (f"stack of {theta.shape[0]} networks" if theta.ndim == 2 else "single network")
            )

    def _tile_rate(self) -> Any:
        """The learning rate of the step that has begun: a float, or an array (E, 1) in theta's dtype."""
        rate = self.current_rate
        if isinstance(rate, float):
            return rate
        return array_module(self._theta).asarray(rate, dtype=self._theta.dtype)[:, None]

    def _clip_factor(self) -> Any:
        """What the gradient is multiplied by, () or (E, 1) in theta's dtype; None where nothing is clipped."""
        if self.clip_norm is None:
            return None
        xp, lead = array_module(self._theta), self._theta.shape[:-1]
        squares = xp.zeros(lead, np.float64)
        for _, tile, _, dL_dtheta, *_ in self._tiles:
            squares[tile[:-1]] += (dL_dtheta.astype(np.float64) ** 2).sum(axis=-1)
        norm = xp.sqrt(squares)
        clipped = (norm > self.clip_norm) & xp.isfinite(norm)
        factor = xp.where(clipped, self.clip_norm / xp.where(clipped, norm, 1), 1)
        return factor.astype(self._theta.dtype)[..., None] if lead else factor.astype(self._theta.dtype)

    def _add_to_average(self) -> None:
        if self.average is not None:
            combine(self.state[AVERAGE], self.average, self._theta, 1 - self.average)

    def _launch(self, update: Any) -> bool:
        """Launch a kernel of `gpubp.cpu_kernels.optimizers.Update`, or its like in `gpubp.cuda_kernels`; say whether.

        Called in a step that is recorded too, so that it may launch, but not allocate or wait.
        """
        return False

    def _corrections(self, first: int, count: int) -> np.ndarray[Any, Any] | None:
        """What an update takes from the number of its step: a row for each of so many steps, counted from 1."""
        return None

    def _begin(self, step: int) -> None:
        """Compute what is the same for all tiles of the given step, counted from 1."""

    def _update(self, xp: ModuleType, rate: Any, theta: Array, dL_dtheta: Array, *state_and_scratch: Array) -> None:
        """Update one tile: views of theta, dL_dtheta, each state array by `state_names`, and scratch of their shape."""
        raise NotImplementedError


def optimizer_by_name(name: str, **settings: Any) -> Optimizer:
    """An optimizer by its name, such as ``"sgd"`` or ``"adam"``.

    Raises:
        SettingError: There is no optimizer of that name.
    """
    if name not in Optimizer.by_name:
        raise SettingError(f"unknown optimizer {name!r}: use one of {', '.join(sorted(Optimizer.by_name))}")
    return Optimizer.by_name[name](**settings)
