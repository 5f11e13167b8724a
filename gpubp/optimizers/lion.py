"""Lion: steps of one size, in the direction of a running mean of the gradient."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from gpubp.backend import Array
from gpubp.optimizers.base import Optimizer
from gpubp.settings import require_in


class Lion(Optimizer):
    """``theta -= learning_rate * (sign(beta1 M + (1 - beta1) dL_dtheta) + weight_decay * theta)``.

    Then ``M = beta2 M + (1 - beta2) dL_dtheta``. The decay is for weights, not for biases; the sign of 0 is 0. Source:
    Chen et al., "Symbolic discovery of optimization algorithms" (2023), program 1.

    Args:
        learning_rate: Positive; a sequence of E numbers gives each member of a stack its own; or a schedule. A third
            to a tenth of that of Adam.
        beta1: Share of M in the direction, at least 0 and below 1.
        beta2: Decay of M, at least 0 and below 1.
        weight_decay: At least 0.
        clip_norm, average: See `gpubp.optimizers.base.Optimizer`.

    Raises:
        SettingError: A setting is outside its range.
    """

    state_names = ("M",)
    flops = 9

    def __init__(
        self,
        learning_rate: Any = 1e-4,
        beta1: float = 0.9,
        beta2: float = 0.99,
        weight_decay: float = 0.0,
        *,
        clip_norm: float | None = None,
        average: float | None = None,
    ) -> None:
        super().__init__(learning_rate, clip_norm=clip_norm, average=average)
        self.beta1 = require_in(self, "beta1", beta1, "[0, 1)")
        self.beta2 = require_in(self, "beta2", beta2, "[0, 1)")
        self.weight_decay = require_in(self, "weight_decay", weight_decay, "[0, inf)")

    def _launch(self, update: Any) -> bool:
        update.lion(self.state["M"], self.beta1, self.beta2)
        return True

    def _update(self, xp: ModuleType, rate: Any, theta: Array, dL_dtheta: Array, *state_and_scratch: Array) -> None:
        M, scratch = state_and_scratch
        xp.subtract(dL_dtheta, M, out=scratch)
        xp.multiply(scratch, 1 - self.beta1, out=scratch)
        xp.add(scratch, M, out=scratch)
        xp.sign(scratch, out=scratch)
        xp.multiply(scratch, rate, out=scratch)
        xp.subtract(theta, scratch, out=theta)

        xp.multiply(M, self.beta2, out=M)
        xp.multiply(dL_dtheta, 1 - self.beta2, out=scratch)
        xp.add(M, scratch, out=M)
