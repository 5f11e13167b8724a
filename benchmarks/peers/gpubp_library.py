"""gpubp itself, by its public way: `StepPlan.steps` on a data set and an order of examples, as `gpubp.fit` calls it."""

from __future__ import annotations

import importlib.metadata
import os
from typing import Any, ClassVar
from unittest import mock

from numpy.typing import NDArray

import gpubp
from gpubp import cpu

from ..cases import ADAM_RATE, BETA1, BETA2, EPSILON, SGD_RATE, Case, Data, Weights
from ..results import NO_KERNELS
from . import Peer, Run


class GpubpRun(Run):
    def __init__(self, case: Case, data: Data) -> None:
        super().__init__(case)
        self.network = gpubp.mlp(
            case.widths, activation="sigmoid", device=case.device, rng=0, matmul_precision=case.precision
        )
        self.names = [f"{2 * k}.{name}" for k in range(len(case.widths) - 1) for name in ("W", "b")]
        self.device = self.network.device
        for name, initial in zip(self.names, data.weights, strict=True):
            self.network.parameters[name][...] = gpubp.to_device(initial, self.device)
        if case.optimizer == "sgd":
            self.optimizer: Any = gpubp.SGD(SGD_RATE)
        else:
            self.optimizer = gpubp.Adam(ADAM_RATE, BETA1, BETA2, EPSILON)
        first = data.order[: case.batch]
        self.X, self.T = (gpubp.to_device(array[first], self.device) for array in (data.X, data.T))
        self.made: Any = None
        if case.work == "step":
            self.X_all = self.network.inputs(data.X)
            self.T_all = self.network.targets(data.T, self.X_all)
            self.plan = gpubp.StepPlan(self.network, case.batch)

    def steps(self, index: NDArray[Any]) -> None:
        with self.device.activate():
            if self.case.work != "step":
                super().steps(index)
                return
            rows = gpubp.to_device(index, self.device)
            self.plan.steps(self.X_all, self.T_all, None, rows, self.optimizer)
            self.synchronize()

    def forward(self) -> None:
        self.made = self.network.predict(self.X)

    def gradients(self) -> None:
        _, self.made = self.network.loss_and_gradients(self.X, self.T)

    def synchronize(self) -> None:
        if self.device.is_cuda:
            self.device.module.cuda.Device(self.device.index).synchronize()

    def results(self) -> Weights:
        if self.case.work == "forward":
            return [gpubp.to_host(self.made)]
        named = self.network.parameters if self.case.work == "step" else self.made
        return [gpubp.to_host(named[name]).copy() for name in self.names]


class Gpubp(Peer):
    """As installed: with fused CPU kernels where Numba is there."""

    name, package, module = "gpubp", "gpubp", "gpubp"
    own = True

    def absent(self, device: str) -> str | None:
        return gpubp.why_no_cuda() if device == "cuda" else None

    def prepare(self, case: Case, data: Data) -> Run:
        return GpubpRun(case, data)

    def facts(self) -> dict[str, str]:
        reason = cpu.why_no_kernels()
        if reason is None:
            numba = importlib.metadata.version("numba")
            return {"version": gpubp.__version__, "kernels": f"CPU kernels by Numba {numba}, {cpu.threads()} threads"}
        return {"version": gpubp.__version__, "kernels": f"{NO_KERNELS}{reason}"}


class GpubpNumpy(Gpubp):
    """Its array maths alone: what an installation without Numba runs."""

    name = "gpubp-numpy"
    environment: ClassVar = {cpu.SETTING: "numpy"}

    def absent(self, device: str) -> str | None:
        if device == "cuda":
            return "on a CUDA device, gpubp is the same with and without Numba"
        with mock.patch.dict(os.environ, {cpu.SETTING: "auto"}):  # as the process of "gpubp" has it
            reason = cpu.why_no_kernels()
        return None if reason is None else f"gpubp itself is the same here: {reason}"


PEERS: list[Peer] = [Gpubp(), GpubpNumpy()]
