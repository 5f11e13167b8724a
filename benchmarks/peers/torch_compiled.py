"""PyTorch with torch.compile: gather, forward and loss compiled with their backward, the optimizer fused.

On a GPU the compiled parts run as CUDA graphs. These copy every argument whose address they don't take for constant,
and they take so the parameters of modules alone: weights and data set here are marked, or each step would copy them.
"""

from __future__ import annotations

import shutil
from typing import Any, ClassVar

from ..cases import Case, Data
from . import Peer, Run
from .torch_eager import TorchEager, TorchRun


class CompiledRun(TorchRun):
    """What is compiled, and how.

    Args:
        case: What to do.
        data: On what.
        mode: Of `torch.compile`.
    """

    def __init__(self, case: Case, data: Data, mode: str) -> None:
        super().__init__(case, data, fused=True)
        self.torch._dynamo.reset()  # forget the last case, or its shapes would make this one's "dynamic"
        if case.device == "cuda":
            for tensor in (*self.parameters, self.X_all, self.T_all, self.X, self.T):
                self.torch._dynamo.mark_static_address(tensor)
        self.gathered_loss = self.torch.compile(self._gathered_loss, mode=mode, dynamic=False)
        self.loss = self.torch.compile(super().loss, mode=mode, dynamic=False)
        self.probabilities = self.torch.compile(super().probabilities, mode=mode, dynamic=False)

    def _gathered_loss(self, rows: Any) -> Any:
        logits = self.logits(self.X_all.index_select(0, rows))
        return self.torch.nn.functional.cross_entropy(logits, self.T_all.index_select(0, rows))

    def step(self, rows: Any) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.gathered_loss(rows).backward()
        self.optimizer.step()


class TorchCompiled(TorchEager):
    name = "torch-compile"
    environment: ClassVar = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}  # no pool of compiling processes beside it

    def absent(self, device: str) -> str | None:
        if reason := super().absent(device):
            return reason
        if device == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++", "cl"))):
            return "torch.compile needs a C++ compiler, and there is none here: install g++"
        return None

    def prepare(self, case: Case, data: Data) -> Run:
        return CompiledRun(case, data, "reduce-overhead" if case.device == "cuda" else "default")


class TorchCompiledMax(TorchCompiled):
    """With every kernel tuned, matrix products too, for minutes: at a few cases that say what it brings."""

    name = "torch-compile-max"
    CASES: ClassVar = {("784-512-512-10", batch) for batch in (256, 4096, 65536)}

    def absent(self, device: str) -> str | None:
        return super().absent(device) or (None if device == "cuda" else "tunes for a GPU")

    def supports(self, case: Case) -> str | None:
        if case.work == "step" and (case.net, case.batch) in self.CASES:
            return None
        return "tunes for minutes: shown for steps of 784-512-512-10 at batch 256, 4,096 and 65,536"

    def prepare(self, case: Case, data: Data) -> Run:
        return CompiledRun(case, data, "max-autotune")


PEERS: list[Peer] = [TorchCompiled(), TorchCompiledMax()]
