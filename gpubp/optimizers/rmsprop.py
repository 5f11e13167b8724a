"""RMSprop: each step divided by a running root mean square of the gradient."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from gpubp.backend import Array
from gpubp.optimizers.base import Optimizer
from gpubp.settings import require_in, require_positive


class RMSprop(Optimizer):
    """``V = decay V + (1 - decay) dL_dtheta^2``, then ``theta -= learning_rate * dL_dtheta / (sqrt(V) + epsilon)``.

    With momentum ``M = momentum M + dL_dtheta / (sqrt(V) + epsilon)`` and ``theta -= learning_rate * M``. Source:
    Tieleman and Hinton, "Neural networks for machine learning", lecture 6.5 (2012), with epsilon as PyTorch has it.

    Args:
        learning_rate: Positive; a sequence of E numbers gives each member of a stack its own; or a schedule.
        decay: Of the mean square, at least 0 and below 1.
        epsilon: Positive.
        momentum: At least 0 and below 1; 0 keeps no M.
        clip_norm, average: See `gpubp.optimizers.base.Optimizer`.

    Raises:
        SettingError: A setting is outside its range.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        decay: float = 0.99,
        epsilon: float = 1e-8,
        momentum: float = 0.0,
        *,
        clip_norm: float | None = None,
        average: float | None = None,
    ) -> None:
        super().__init__(learning_rate, clip_norm=clip_norm, average=average)
        self.decay = require_in(self, "decay", decay, "[0, 1)")
        self.epsilon = require_positive(self, "epsilon", epsilon)
        self.momentum = require_in(self, "momentum", momentum, "[0, 1)")
        self.state_names = ("V", "M") if self.momentum else ("V",)
        self.flops = 9 + 2 * bool(self.momentum)

    def _launch(self, update: Any) -> bool:
        update.rmsprop(self.state["V"], self.state.get("M"), self.decay, self.epsilon, self.momentum)
        return True

    def _update(self, xp: ModuleType, rate: Any, theta: Array, dL_dtheta: Array, *state_and_scratch: Array) -> None:
        V, *momentum, scratch = state_and_scratch
        xp.multiply(V, self.decay, out=V)
        xp.multiply(dL_dtheta, dL_dtheta, out=scratch)
        xp.multiply(scratch, 1 - self.decay, out=scratch)
        xp.add(V, scratch, out=V)

        xp.sqrt(V, out=scratch)
        xp.add(scratch, self.epsilon, out=scratch)
        step = xp.divide(dL_dtheta, scratch, out=scratch)
        if momentum:
            (M,) = momentum
            xp.multiply(M, self.momentum, out=M)
            step = xp.add(M, scratch, out=M)
        xp.multiply(step, rate, out=scratch)
        xp.subtract(theta, scratch, out=theta)
