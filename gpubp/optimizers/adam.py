"""Adam, and the same with a weight decay that is no part of the gradient."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from gpubp.backend import Array
from gpubp.optimizers.base import Optimizer
from gpubp.settings import require_in, require_positive


class Adam(Optimizer):
    """``theta -= learning_rate * M_hat / (sqrt(V_hat) + epsilon)``, with bias-corrected running moments.

    ``M = beta1 M + (1 - beta1) dL_dtheta`` and ``V = beta2 V + (1 - beta2) dL_dtheta^2``; at step t,
    ``M_hat = M / (1 - beta1^t)`` and ``V_hat = V / (1 - beta2^t)``. Source: Kingma and Ba, "Adam: a method for
    stochastic optimization" (2015), algorithm 1.

    Args:
        learning_rate: Positive; a sequence of E numbers gives each member of a stack its own; or a schedule.
        beta1: Decay of the first moment, at least 0 and below 1.
        beta2: Decay of the second moment, at least 0 and below 1.
        epsilon: Positive.
        clip_norm, average: See `gpubp.optimizers.base.Optimizer`.

    Raises:
        SettingError: A setting is outside its range.
    """

    state_names = ("M", "V")
    flops = 12

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        *,
        clip_norm: float | None = None,
        average: float | None = None,
    ) -> None:
        super().__init__(learning_rate, clip_norm=clip_norm, average=average)
        self.beta1 = require_in(self, "beta1", beta1, "[0, 1)")
        self.beta2 = require_in(self, "beta2", beta2, "[0, 1)")
        self.epsilon = require_positive(self, "epsilon", epsilon)

    def _corrections(self, first: int, count: int) -> np.ndarray[Any, Any]:
        """(count, 2): what the rate and what epsilon are multiplied by, with M and V in place of M_hat and V_hat."""
        t = np.arange(first, first + count)  # an array of one too, so that a step has the same bits in every launch
        root = np.sqrt(1 - self.beta2**t)  # of V_hat: numerator and denominator are both multiplied by it
        return np.array([root / (1 - self.beta1**t), root]).T

    def _begin(self, step: int) -> None:
        self._rate_correction, self._epsilon_correction = self._corrections(step, 1)[0].tolist()

    def _launch(self, update: Any) -> bool:
        update.adam(self.state["M"], self.state["V"], self.beta1, self.beta2, self.epsilon)
        return True

    def _update(self, xp: ModuleType, rate: Any, theta: Array, dL_dtheta: Array, *state_and_scratch: Array) -> None:
        M, V, scratch = state_and_scratch
        xp.multiply(M, self.beta1, out=M)
        xp.multiply(dL_dtheta, 1 - self.beta1, out=scratch)
        xp.add(M, scratch, out=M)

        xp.multiply(V, self.beta2, out=V)
        xp.multiply(dL_dtheta, dL_dtheta, out=scratch)
        xp.multiply(scratch, 1 - self.beta2, out=scratch)
        xp.add(V, scratch, out=V)

        xp.sqrt(V, out=scratch)
        xp.add(scratch, self.epsilon * self._epsilon_correction, out=scratch)
        xp.divide(M, scratch, out=scratch)
        xp.multiply(scratch, rate * self._rate_correction, out=scratch)
        xp.subtract(theta, scratch, out=theta)


class AdamW(Adam):
    """`Adam`, and before each update ``theta -= learning_rate * weight_decay * theta`` for weights, not for biases.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization" (2019), algorithm 2, with the learning rate
    in front of the decay, as PyTorch has it.

    Args:
        learning_rate: Positive; a sequence of E numbers gives each member of a stack its own; or a schedule.
        beta1: Decay of the first moment, at least 0 and below 1.
        beta2: Decay of the second moment, at least 0 and below 1.
        epsilon: Positive.
        weight_decay: At least 0.
        clip_norm, average: See `gpubp.optimizers.base.Optimizer`.

    Raises:
        SettingError: A setting is outside its range.
    """

    flops = 14

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        clip_norm: float | None = None,
        average: float | None = None,
    ) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon, clip_norm=clip_norm, average=average)
        self.weight_decay = require_in(self, "weight_decay", weight_decay, "[0, inf)")
