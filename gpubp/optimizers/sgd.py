"""Stochastic gradient descent, with classical or Nesterov momentum."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from gpubp.backend import Array
from gpubp.errors import SettingError
from gpubp.optimizers.base import Optimizer
from gpubp.settings import require_in


class SGD(Optimizer):
    """``V = momentum * V + dL_dtheta``, then ``theta -= learning_rate * V``.

    With Nesterov's momentum the step is ``dL_dtheta + momentum * V``. Source: Sutskever et al., "On the importance of
    initialization and momentum in deep learning" (2013), with the learning rate outside V, as PyTorch has it.

    Args:
        learning_rate: Positive; a sequence of E numbers gives each member of a stack its own; or a schedule.
        momentum: At least 0 and below 1; 0 keeps no V.
        nesterov: Whether to look ahead.
        clip_norm, average: See `gpubp.optimizers.base.Optimizer`.

    Raises:
        SettingError: A setting is outside its range, or Nesterov's momentum was asked for without momentum.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        *,
        clip_norm: float | None = None,
        average: float | None = None,
    ) -> None:
        super().__init__(learning_rate, clip_norm=clip_norm, average=average)
        self.momentum = require_in(self, "momentum", momentum, "[0, 1)")
        self.nesterov = bool(nesterov)
        if self.nesterov and not self.momentum:
            raise SettingError("SGD: nesterov=True needs a momentum above 0")
        self.state_names = ("V",) if self.momentum else ()
        self.flops = 2 + 2 * bool(self.momentum) + 2 * self.nesterov

    def _launch(self, update: Any) -> bool:
        update.sgd(self.state.get("V"), self.momentum, self.nesterov)
        return True

    def _update(self, xp: ModuleType, rate: Any, theta: Array, dL_dtheta: Array, *state_and_scratch: Array) -> None:
        *state, scratch = state_and_scratch
        step = dL_dtheta
        if state:
            (V,) = state
            xp.multiply(V, self.momentum, out=V)
            xp.add(V, dL_dtheta, out=V)
            step = V
            if self.nesterov:
                xp.multiply(V, self.momentum, out=scratch)
                step = xp.add(scratch, dL_dtheta, out=scratch)
        xp.multiply(step, rate, out=scratch)
        xp.subtract(theta, scratch, out=theta)
