"""NumPy as a textbook has it: one expression for each formula, every result a fresh array.

In float64 the same lines are what all peers are checked against.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cases import ADAM_RATE, BETA1, BETA2, EPSILON, SGD_RATE, Case, Data, Weights
from . import Peer, Run, cpu_only

Array = NDArray[Any]


def sigmoid(Z: Array) -> Array:
    return 1 / (1 + np.exp(-Z))


def softmax(Z: Array) -> Array:
    E = np.exp(Z - Z.max(axis=1, keepdims=True))  # (N, C)
    return E / E.sum(axis=1, keepdims=True)


def activations(weights: Weights, X: Array) -> list[Array]:
    """The input of every layer, and the logits (N, C) last."""
    A = [X]
    for k in range(0, len(weights) - 2, 2):
        A.append(sigmoid(A[-1] @ weights[k] + weights[k + 1]))  # (N, n_out)
    A.append(A[-1] @ weights[-2] + weights[-1])  # (N, C)
    return A


def loss_and_gradients(weights: Weights, X: Array, T: Array) -> tuple[float, Weights]:
    """The mean softmax cross-entropy of the class indices T (N,), and its gradient by every weight."""
    A = activations(weights, X)
    P = softmax(A[-1])  # (N, C)
    loss = -np.log(P[np.arange(len(T)), T]).mean()
    dL_dZ = (P - np.eye(P.shape[1], dtype=P.dtype)[T]) / len(T)  # (N, C)
    gradients: Weights = []
    for k in reversed(range(len(A) - 1)):
        gradients = [A[k].T @ dL_dZ, dL_dZ.sum(axis=0), *gradients]
        if k:
            dL_dZ = (dL_dZ @ weights[2 * k].T) * A[k] * (1 - A[k])  # (N, n_in)
    return loss, gradients


class SGD:
    def update(self, weights: Weights, gradients: Weights) -> Weights:
        return [w - SGD_RATE * g for w, g in zip(weights, gradients, strict=True)]


class Adam:
    """Kingma and Ba, "Adam: a method for stochastic optimization" (2015), algorithm 1.

    Args:
        weights: Whose shapes the moments have.
        uncorrected_epsilon: The form at the end of its section 2: epsilon is added before the bias is corrected.
    """

    def __init__(self, weights: Weights, uncorrected_epsilon: bool = False) -> None:
        self.M = [np.zeros_like(w) for w in weights]
        self.V = [np.zeros_like(w) for w in weights]
        self.t = 0
        self.uncorrected_epsilon = uncorrected_epsilon

    def update(self, weights: Weights, gradients: Weights) -> Weights:
        self.t += 1
        self.M = [BETA1 * m + (1 - BETA1) * g for m, g in zip(self.M, gradients, strict=True)]
        self.V = [BETA2 * v + (1 - BETA2) * g**2 for v, g in zip(self.V, gradients, strict=True)]
        c1, c2 = 1 - BETA1**self.t, 1 - BETA2**self.t
        epsilon = EPSILON / c2**0.5 if self.uncorrected_epsilon else EPSILON
        return [
            w - ADAM_RATE * (m / c1) / (np.sqrt(v / c2) + epsilon)
            for w, m, v in zip(weights, self.M, self.V, strict=True)
        ]


class NaiveRun(Run):
    """The textbook at work, in the dtype that is asked for."""

    def __init__(self, case: Case, data: Data, dtype: Any = np.float32, uncorrected_epsilon: bool = False) -> None:
        super().__init__(case)
        self.dtype, self.data = dtype, data
        self.weights = [w.astype(dtype) for w in data.weights]
        self.optimizer = SGD() if case.optimizer == "sgd" else Adam(self.weights, uncorrected_epsilon)
        self.X, self.T = self.gather(data.order[: case.batch])
        self.made: Weights = []

    def gather(self, rows: Array) -> tuple[Array, Array]:
        return self.data.X[rows].astype(self.dtype, copy=False), self.data.T[rows]

    def step(self, rows: Array) -> None:
        X, T = self.gather(rows)
        _, gradients = loss_and_gradients(self.weights, X, T)
        self.weights = self.optimizer.update(self.weights, gradients)

    def gradients(self) -> None:
        _, self.made = loss_and_gradients(self.weights, self.X, self.T)

    def forward(self) -> None:
        self.made = [softmax(activations(self.weights, self.X)[-1])]

    def results(self) -> Weights:
        return self.weights if self.case.work == "step" else self.made


class NaiveNumpy(Peer):
    name, package, module = "numpy-naive", "numpy", "numpy"

    def supports(self, case: Case) -> str | None:
        return cpu_only(case)

    def prepare(self, case: Case, data: Data) -> Run:
        return NaiveRun(case, data)


PEERS: list[Peer] = [NaiveNumpy()]
