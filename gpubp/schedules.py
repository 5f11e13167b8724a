"""Learning rates that change from step to step: any of them may stand where a learning rate does.

A schedule is a base rate, or one of each member of a stack, times a factor of the step, which is counted from 0 over
all fits of an optimizer. How many steps there are in all, `total`, is what `gpubp.fit` will have done at its end; a
training that was interrupted and goes on by a second fit for the epochs that were left is thus on the same curve. To
train by several fits along one curve, give the steps of all of them as `total`; a curve that ends before a training
does is an error, as the rest would be at its last rate, which is nearly nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from gpubp.errors import SettingError
from gpubp.settings import of, require_count, require_in, require_positive


class Schedule:
    """Base class of all schedules; a subclass registers itself under its class name.

    Args:
        rate: The base rate, positive; a sequence of E numbers gives each member of a stack its own.

    Attributes:
        total: How many steps there are in all; None for as long as that is not known.

    Raises:
        SettingError: The rate is not positive and finite.
    """

    by_name: ClassVar[dict[str, type[Schedule]]] = {}

    def __init_subclass__(cls) -> None:
        Schedule.by_name[cls.__name__] = cls

    def __init__(self, rate: Any = 1.0, total: int | None = None) -> None:
        self.rate = require_rate(self, "rate", rate)
        self._given = None if total is None else require_count(self, "total", total)
        self.total = self._given

    def __call__(self, step: Any) -> Any:
        """The factor of the base rate in a step counted from 0, a number; or in several steps, an array.

        Raises:
            SettingError: It depends on how many steps there are in all, which nobody has said.
        """
        factor = self._factor(np.asarray(step, dtype=np.float64))
        return factor if np.ndim(factor) else float(factor)

    def rates(self, first: int, count: int) -> NDArray[np.float64]:
        """The rates of so many steps from the first one on: (count, 1), or (count, E) for E members."""
        factors = np.asarray(self(np.arange(first, first + count)))
        return factors.reshape(count, factors.size // count) * np.asarray(self.rate, dtype=np.float64)

    def begin(self, total: int, measures: Sequence[str]) -> None:
        """Called before a training, with how many steps there will have been at its end, and what will be measured.

        Raises:
            SettingError: The schedule ends before the training, or its warm-up does not, or it needs what is not
                measured.
        """
        if self._given is not None and self._given < total:
            raise SettingError(
                f"{self!r} ends after {self._given} steps, and the training after {total}: leave total out, or give all"
            )
        self.total = total if self._given is None else self._given

    def reset(self) -> None:
        """Forget what was told by `begin` and `observe`."""
        self.total = self._given

    def observe(self, measured: Mapping[str, Any]) -> None:
        """Called after each epoch with what was measured."""

    def config(self) -> dict[str, Any]:
        """What `schedule` turns back into an equal object; plain JSON."""
        return {"name": type(self).__name__, **{key: _plain(value) for key, value in self._arguments().items()}}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self._arguments().items())
        return f"{type(self).__name__}({arguments})"

    def _arguments(self) -> dict[str, Any]:
        return {
            name: self._given if name == "total" else getattr(self, name)
            for name in inspect.signature(type(self)).parameters
        }

    def _steps(self) -> int:
        if self.total is None:
            raise SettingError(f"{self!r} depends on how many steps there are: pass total=..., or train with gpubp.fit")
        return self.total

    def _factor(self, step: NDArray[np.float64]) -> Any:
        """The factor in each of some steps; that of each member has one more axis, (..., E)."""
        raise NotImplementedError


class InverseScaling(Schedule):
    """``rate / (step + 1)^power``. Source: Robbins and Monro, "A stochastic approximation method" (1951).

    Args:
        rate: That of the first step.
        power: Above 0; 1/2 and 1 are what theory knows.
    """

    def __init__(self, rate: Any, power: float = 0.5) -> None:
        super().__init__(rate)
        self.power = require_positive(self, "power", power)

    def _factor(self, step: NDArray[np.float64]) -> Any:
        return (step + 1) ** -self.power


class StepDecay(Schedule):
    """``rate * factor^k`` after k times so many steps.

    Args:
        rate: That of the first steps.
        every: After how many steps to multiply.
        factor: Above 0 and below 1.
    """

    def __init__(self, rate: Any, every: int, factor: float = 0.1) -> None:
        super().__init__(rate)
        self.every = require_count(self, "every", every)
        self.factor = require_in(self, "factor", factor, "(0, 1)")

    def _factor(self, step: NDArray[np.float64]) -> Any:
        return self.factor ** (step // self.every)


class Cosine(Schedule):
    """From the base rate down to a share of it, along half a cosine, and no further.

    Source: Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts" (2017), equation 5, without
    the restarts.

    Args:
        rate: That of the first step.
        final: Where it leads to, as a share of the base rate, at least 0 and below 1.
        total: After how many steps, those of all fits that are planned; None for those of the training.
    """

    def __init__(self, rate: Any, final: float = 0.0, total: int | None = None) -> None:
        super().__init__(rate, total)
        self.final = require_in(self, "final", final, "[0, 1)")

    def _factor(self, step: NDArray[np.float64]) -> Any:
        done = np.minimum(step / max(1, self._steps()), 1)
        return self.final + (1 - self.final) * 0.5 * (1 + np.cos(np.pi * done))


class WarmUp(Schedule):
    """From near zero up to the rate of what comes then, in equal steps.

    Step s has the share ``(s + 1) / steps`` of it. Source: Goyal et al., "Accurate, large minibatch SGD" (2017).

    Args:
        steps: How many, at least 1.
        then: A rate, that of each member, or a schedule, whose steps are counted from the end of the warm-up on.
    """

    def __init__(self, steps: int, then: Any) -> None:
        self.steps = require_count(self, "steps", steps)
        given = schedule(then)
        self._then = given if isinstance(given, Schedule) else None
        self.then: Any = given
        super().__init__(given if self._then is None else self._then.rate)

    def begin(self, total: int, measures: Sequence[str]) -> None:
        """See `Schedule.begin`."""
        super().begin(total, measures)
        if total < self.steps:
            raise SettingError(f"{self!r}: a warm-up of {self.steps} steps is longer than the training, of {total}")
        if self._then is not None:
            self._then.begin(total - self.steps, measures)

    def observe(self, measured: Mapping[str, Any]) -> None:
        """See `Schedule.observe`."""
        if self._then is not None:
            self._then.observe(measured)

    def reset(self) -> None:
        """See `Schedule.reset`."""
        super().reset()
        if self._then is not None:
            self._then.reset()

    def _factor(self, step: NDArray[np.float64]) -> Any:
        warm = np.minimum((step + 1) / self.steps, 1)
        if self._then is None:
            return warm
        then = np.asarray(self._then(np.maximum(step - self.steps, 0)))
        return warm.reshape(warm.shape + (1,) * (then.ndim - warm.ndim)) * then  # of each member, perhaps


class OneCycle(Schedule):
    """Up to the base rate along half a cosine, and down along another one, to nearly nothing.

    Source: Smith and Topin, "Super-convergence: very fast training of neural networks using large learning rates"
    (2018), with cosines for lines, as PyTorch has it.

    Args:
        rate: The largest one.
        warm_up: The share of all steps that lead up to it, above 0 and below 1.
        start: Where it begins, as a share of the base rate, above 0 and below 1.
        final: Where it ends, as a share of the base rate, above 0 and below 1.
        total: How many steps there are in all fits that are planned; None for those of the training.
    """

    def __init__(
        self, rate: Any, warm_up: float = 0.3, start: float = 0.04, final: float = 4e-6, total: int | None = None
    ) -> None:
        super().__init__(rate, total)
        self.warm_up = require_in(self, "warm_up", warm_up, "(0, 1)")
        self.start = require_in(self, "start", start, "(0, 1)")
        self.final = require_in(self, "final", final, "(0, 1)")

    def _factor(self, step: NDArray[np.float64]) -> Any:
        last = self._steps() - 1  # the step with the final rate
        peak = max(0.0, self.warm_up * self._steps() - 1)
        up = step / max(peak, 1e-9)  # no step is between 0 and 1e-9
        down = np.minimum((step - peak) / max(last - peak, 1e-9), 1)
        rising = 1 + (self.start - 1) * 0.5 * (1 + np.cos(np.pi * up))
        falling = self.final + (1 - self.final) * 0.5 * (1 + np.cos(np.pi * down))
        return np.where(step < peak, rising, falling)


class ReduceOnPlateau(Schedule):
    """The rate is multiplied when a loss has not fallen for a while; that of each member of a stack for itself.

    Args:
        rate: That of the first steps.
        factor: Above 0 and below 1.
        patience: How many epochs in a row without a new best loss to put up with.
        monitor: What to look at; None for ``"validation_loss"`` where that is measured, else ``"loss"``.
        minimum_change: How much lower than the best a loss must be to count as a new best.
        minimum: The share of the base rate that it is never reduced below, at least 0 and below 1.

    Attributes:
        scale: The factor so far, () or (E,).
        best: The lowest loss so far, () or (E,).
        waited: For how many epochs it has been that.
    """

    def __init__(
        self,
        rate: Any,
        factor: float = 0.1,
        patience: int = 10,
        monitor: str | None = None,
        minimum_change: float = 0.0,
        minimum: float = 0.0,
    ) -> None:
        super().__init__(rate)
        self.factor = require_in(self, "factor", factor, "(0, 1)")
        self.patience = require_count(self, "patience", patience, least=0)
        self.monitor = monitor
        self.minimum_change = require_in(self, "minimum_change", minimum_change, "[0, inf)")
        self.minimum = require_in(self, "minimum", minimum, "[0, 1)")
        self.reset()

    def reset(self) -> None:
        """See `Schedule.reset`; the rate is the base rate again."""
        super().reset()
        self.scale: Any = np.ones(())
        self.best: Any = np.full((), np.inf)
        self.waited: Any = np.zeros((), np.int64)

    def begin(self, total: int, measures: Sequence[str]) -> None:
        """See `Schedule.begin`."""
        super().begin(total, measures)
        if self.monitor is not None and self.monitor not in measures:
            raise SettingError(
                f"ReduceOnPlateau watches {self.monitor!r}, which is not measured: pass validation=(X, T)"
            )

    def observe(self, measured: Mapping[str, Any]) -> None:
        """Look at the loss of an epoch."""
        monitor = self.monitor or ("validation_loss" if "validation_loss" in measured else "loss")
        losses = np.asarray(measured[monitor], dtype=np.float64)
        better = losses < self.best - self.minimum_change
        self.best = np.where(better, losses, self.best)
        waited = np.where(better, 0, self.waited + 1)
        enough = waited > self.patience
        self.waited = np.where(enough, 0, waited)
        self.scale = np.where(enough, np.maximum(self.scale * self.factor, self.minimum), self.scale)

    def _factor(self, step: NDArray[np.float64]) -> Any:
        return np.broadcast_to(self.scale, (*step.shape, *self.scale.shape))


def schedule(given: Any) -> Schedule | float | list[float]:
    """What is meant by a learning rate: a schedule, or its `config`, or a number, or that of each member.

    Raises:
        SettingError: It is none of these, or not positive and finite.
    """
    if isinstance(given, Schedule):
        return given
    if isinstance(given, dict):
        settings = dict(given)
        name = settings.pop("name", None)
        if name not in Schedule.by_name:
            raise SettingError(f"unknown schedule {name!r}: use one of {', '.join(sorted(Schedule.by_name))}")
        return Schedule.by_name[name](**settings)
    return require_rate(None, "learning_rate", given)


def schedule_by_name(name: str, rate: Any) -> Schedule | float | list[float]:
    """A learning rate by the name of how it changes: ``"constant"``, or that of a schedule with its default settings.

    Raises:
        SettingError: There is no schedule of that name.
    """
    kinds = {
        "constant": lambda rate: schedule(rate),
        "cosine": Cosine,
        "inverse_scaling": InverseScaling,
        "one_cycle": OneCycle,
        "plateau": ReduceOnPlateau,
    }
    if name not in kinds:
        raise SettingError(f"unknown schedule {name!r}: use one of {', '.join(kinds)}")
    made: Schedule | float | list[float] = kinds[name](rate)
    return made


def require_rate(owner: object, name: str, value: Any) -> float | list[float]:
    """A learning rate as a float, or those of the members as a list.

    Raises:
        SettingError: It is not positive and finite.
    """
    try:
        rates = np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        rates = np.asarray(np.nan)
    if rates.ndim > 1 or not (np.isfinite(rates) & (rates > 0)).all():
        raise SettingError(f"{of(owner)}{name}={value!r} is not positive and finite")
    number_or_list: float | list[float] = rates.tolist()
    return number_or_list


def _plain(value: Any) -> Any:
    return value.config() if isinstance(value, Schedule) else value
