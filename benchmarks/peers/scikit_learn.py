"""scikit-learn's MLPClassifier, by partial_fit on many minibatches at a time.

Its rows lie in the order of the minibatches already, so that each batch is a slice: it is spared the gather, which
flatters it a little. One call of partial_fit has a fixed cost (checks of the data), shared by all its minibatches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cases import ADAM_RATE, BETA1, BETA2, EPSILON, SGD_RATE, Case, Data, Weights
from . import Peer, Run, cpu_only


class ScikitLearnRun(Run):
    def __init__(self, case: Case, data: Data) -> None:
        from sklearn.neural_network import MLPClassifier

        super().__init__(case)
        self.X_all, self.T_all = data.X[data.order], data.T[data.order]
        self.X = self.X_all[: case.batch]
        self.next = 0
        self.made: Any = None
        self.model = MLPClassifier(
            case.widths[1:-1],
            activation="logistic",
            solver="adam" if case.optimizer == "adam" else "sgd",
            alpha=0,
            batch_size=case.batch,
            learning_rate_init=SGD_RATE if case.optimizer == "sgd" else ADAM_RATE,
            momentum=0,
            nesterovs_momentum=False,
            beta_1=BETA1,
            beta_2=BETA2,
            epsilon=EPSILON,
            shuffle=False,
            n_iter_no_change=2**62,  # nothing here is to stop because the loss no longer falls
        )
        # The first call makes weights of its own and a state for the optimizer: both are replaced.
        self.model.partial_fit(self.X_all[: case.batch], self.T_all[: case.batch], classes=np.arange(case.widths[-1]))
        del self.model._optimizer
        own = [array for pair in zip(self.model.coefs_, self.model.intercepts_, strict=True) for array in pair]
        for array, initial in zip(own, data.weights, strict=True):
            array[...] = initial

    def steps(self, index: NDArray[Any]) -> None:
        if self.case.work != "step":
            super().steps(index)
            return
        left = index.size
        while left:
            stop = min(self.next + left, len(self.X_all))
            self.model.partial_fit(self.X_all[self.next : stop], self.T_all[self.next : stop])
            left -= stop - self.next
            self.next = stop % len(self.X_all)

    def forward(self) -> None:
        self.made = self.model.predict_proba(self.X)

    def results(self) -> Weights:
        if self.case.work == "forward":
            return [self.made]
        return [array for pair in zip(self.model.coefs_, self.model.intercepts_, strict=True) for array in pair]


class ScikitLearn(Peer):
    name, package, module = "sklearn", "scikit-learn", "sklearn"
    uncorrected_epsilon = True

    def supports(self, case: Case) -> str | None:
        if case.work == "gradients":
            return "has no public way to gradients"
        if case.widths[-1] < 3:
            return "has one output for two classes: another network"
        return cpu_only(case)

    def prepare(self, case: Case, data: Data) -> Run:
        return ScikitLearnRun(case, data)


PEERS: list[Peer] = [ScikitLearn()]
