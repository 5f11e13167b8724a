"""The Gaussian negative log likelihood: a mean and a variance for each target."""

from __future__ import annotations

import math

from gpubp.backend import Array, array_module
from gpubp.losses.base import Loss
from gpubp.losses.elementwise import ElementwiseLoss
from gpubp.ops import elementary
from gpubp.rules import Rule
from gpubp.settings import require_positive
from gpubp.twins import OnnxGraph


class GaussianNLL(ElementwiseLoss):
    """``L = sum_n w[n] * sum_m 0.5 (log(2 pi V) + (M - T)^2 / V)``, with the constant: the density itself.

    For targets (N, K) the network has 2K outputs: means M, then K numbers S that the variances
    ``V = log(1 + exp(S)) + minimum_variance`` are computed of. So no output overflows, whatever its size, and no
    variance is zero. `predict` gives (N, 2K): means, then variances.

    Args:
        minimum_variance: Is added to each variance; beyond it a network gains nothing by being more certain.
        allow_missing: Whether a NaN among the targets is one that is missing, and costs nothing.

    Raises:
        SettingError: minimum_variance is not a positive finite number.
    """

    name = "gaussian_nll"
    functor = "GaussianNLL"
    kernel = "pair_loss"
    heads = 2
    flops = 20
    rules = (
        Rule(
            "dL_dM",
            "w[..., None] * (M - T) / (log(1 + exp(S)) + minimum_variance)",
            "dL_dM[n,o] = w[n] * (M[n,o] - T[n,o]) / (log(1 + exp(S[n,o])) + minimum_variance)",
            "half a square has its base as derivative, here divided by the variance V",
        ),
        Rule(
            "dL_dS",
            "0.5 * w[..., None] * (1 - (M - T) * (M - T) / V) / V / (1 + exp(-S))",
            "dL_dS[n,o] = 0.5 * w[n] * (1 - (M[n,o] - T[n,o]) * (M[n,o] - T[n,o]) / V[n,o]) / V[n,o]"
            " / (1 + exp(-S[n,o]))",
            "log V has the derivative 1 / V, 1 / V has -1 / V^2, and V by S has the sigmoid of S",
        ),
    )

    def __init__(self, minimum_variance: float = 1e-6, *, allow_missing: bool = False) -> None:
        super().__init__(allow_missing=allow_missing)
        self.minimum_variance = require_positive(self, "minimum_variance", minimum_variance)

    @classmethod
    def examples(cls) -> list[Loss]:
        """The default, and one that is never certain."""
        return [cls(), cls(0.1)]

    @property
    def parameters(self) -> tuple[float, float]:
        """The least variance."""
        return self.minimum_variance, 0.0

    def parts(self, Y: Array) -> dict[str, Array]:
        """The means M and what the variances are computed of, S: each (..., N, K)."""
        K = Y.shape[-1] // 2
        return {"M": Y[..., :K], "S": Y[..., K:]}

    def names(self, Y: Array, T: Array) -> dict[str, Array]:
        """See `Loss.names`; and the variances V."""
        return {**super().names(Y, T), "V": self.parts(self.link(Y))["S"]}

    def of_outputs(self, Y: Array, T: Array, values: Array, slopes: Array) -> None:
        """See `ElementwiseLoss.of_outputs`; the loss of both outputs is written to the first."""
        xp = array_module(Y, T)
        M, S, T = Y[..., 0, :], Y[..., 1, :], T[..., 0, :]  # (..., N, K)
        value, Q, by_S = values[..., 0, :], slopes[..., 0, :], slopes[..., 1, :]
        V = self._variance(S, values[..., 1, :], by_S)
        xp.subtract(M, T, out=Q)
        xp.multiply(Q, Q, out=value)
        xp.divide(value, V, out=value)  # (M - T)^2 / V
        xp.divide(Q, V, out=Q)  # (M - T) / V
        elementary.sigmoid(xp, S, by_S)
        xp.divide(by_S, V, out=by_S)
        xp.multiply(by_S, 0.5, out=by_S)
        xp.subtract(1, value, out=value)
        xp.multiply(by_S, value, out=by_S)
        xp.multiply(Q, Q, out=value)
        xp.multiply(value, V, out=value)  # (M - T)^2 / V again
        xp.multiply(V, 2 * math.pi, out=V)
        xp.add(value, xp.log(V, out=V), out=value)
        xp.multiply(value, 0.5, out=value)
        V.fill(0)

    def _variance(self, S: Array, V: Array, scratch: Array) -> Array:
        """V of the class's docstring, for S of the same shape."""
        xp = array_module(S)
        xp.maximum(S, 0, out=V)
        xp.add(V, elementary.log1p_exp_minus_abs(xp, S, scratch), out=V)
        return xp.add(V, self.minimum_variance, out=V)

    def link(self, Y: Array) -> Array:
        """Means, then variances: (..., N, 2K)."""
        P = Y.copy()
        S = self.parts(Y)["S"]
        self._variance(S, self.parts(P)["S"], array_module(Y).empty_like(S))
        return P

    def onnx(self, graph: OnnxGraph, Y: str, n_out: int) -> str:
        """See `Loss.onnx`."""
        half = n_out // 2
        variances = graph.add("Add", graph.log1p_exp(graph.columns(Y, half, n_out)), self.minimum_variance)
        return graph.add("Concat", graph.columns(Y, 0, half), variances, axis=-1)
