"""thinc: a chain of its Sigmoid layers and a Softmax layer, with its own optimizers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from ..cases import ADAM_RATE, BETA1, BETA2, EPSILON, SGD_RATE, Case, Data, Weights
from . import Peer, Run, cpu_only


class ThincRun(Run):
    def __init__(self, case: Case, data: Data) -> None:
        from thinc.api import SGD, Adam, NumpyOps, Sigmoid, Softmax, chain, set_current_ops

        super().__init__(case)
        # Its matrix products by NumPy's BLAS: the default, its own BLIS, uses one thread and is many times slower.
        set_current_ops(NumpyOps(use_blis=False))
        self.data = data
        widths = case.widths
        layers = [Sigmoid(n_out, n_in) for n_in, n_out in pairwise(widths[:-1])]
        layers.append(Softmax(widths[-1], widths[-2]))
        self.model: Any = chain(*layers) if len(layers) > 1 else layers[0]
        self.model.initialize()
        self.layers = layers
        for k, layer in enumerate(layers):
            layer.set_param("W", data.weights[2 * k].T.copy())  # (n_out, n_in)
            layer.set_param("b", data.weights[2 * k + 1].copy())
        plain: dict[str, Any] = {"L2": 0.0, "grad_clip": 0.0, "use_averages": False}
        if case.optimizer == "sgd":
            self.optimizer: Any = SGD(SGD_RATE, **plain)
        else:
            self.optimizer = Adam(ADAM_RATE, beta1=BETA1, beta2=BETA2, eps=EPSILON, **plain)
        self.numbers = np.arange(case.batch)
        first = data.order[: case.batch]
        self.X, self.T = data.X[first], data.T[first]
        self.loss, self.made = np.float32(0), None

    def backward(self, X: Any, T: Any) -> None:
        """Forward, loss and backward; gradients are added to those that the layers hold."""
        P, backprop = self.model.begin_update(X)  # (batch, classes)
        self.loss = -np.log(P[self.numbers, T]).mean()
        P[self.numbers, T] -= 1  # its Softmax layer takes the gradient by the logits
        P /= len(T)
        backprop(P)

    def step(self, rows: Any) -> None:
        self.backward(self.data.X.take(rows, axis=0), self.data.T[rows])
        self.model.finish_update(self.optimizer)
        self.optimizer.step_schedules()

    def gradients(self) -> None:
        for layer in self.layers:
            for name in ("W", "b"):
                if layer.has_grad(name):
                    layer.get_grad(name)[...] = 0
        self.backward(self.X, self.T)

    def forward(self) -> None:
        self.made = self.model.predict(self.X)

    def results(self) -> Weights:
        if self.case.work == "forward":
            return [np.asarray(self.made)]
        read = "get_param" if self.case.work == "step" else "get_grad"
        return [getattr(layer, read)(name).T.copy() for layer in self.layers for name in ("W", "b")]


class Thinc(Peer):
    name, package, module = "thinc", "thinc", "thinc"
    uncorrected_epsilon = True

    def supports(self, case: Case) -> str | None:
        return cpu_only(case)

    def prepare(self, case: Case, data: Data) -> Run:
        return ThincRun(case, data)


PEERS: list[Peer] = [Thinc()]
