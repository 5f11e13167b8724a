"""PyTorch, eager: F.linear on leaf tensors (cheaper a call than modules), its own autograd and optimizers."""

from __future__ import annotations

from typing import Any

from ..cases import ADAM_RATE, BETA1, BETA2, EPSILON, SGD_RATE, Case, Data, Weights
from . import Peer, Run

PRECISIONS = {"float32": "highest", "tf32": "high"}
"""What `torch.set_float32_matmul_precision` calls them. It is the one setting that old and new versions of PyTorch take
without a warning, and that keeps ``allow_tf32`` and the newer ``fp32_precision`` of cuBLAS in step with each other."""


class TorchRun(Run):
    """What all uses of PyTorch share: tensors, model, optimizer.

    Args:
        case: What to do.
        data: On what.
        fused: Whether the optimizer is to update all weights in one kernel; else it does what it does by default.
        **settings: More settings of the optimizer.
    """

    def __init__(self, case: Case, data: Data, fused: bool | None = None, **settings: Any) -> None:
        import torch

        super().__init__(case)
        torch.set_float32_matmul_precision(PRECISIONS[case.precision])
        self.torch, device = torch, torch.device(case.device)
        self.X_all, self.T_all = (torch.from_numpy(array).to(device) for array in (data.X, data.T))
        first = torch.from_numpy(data.order[: case.batch]).to(device)
        self.X, self.T = self.X_all[first], self.T_all[first]
        # nn.Linear's layout: W is (n_out, n_in).
        self.parameters = [
            torch.from_numpy(array.T.copy()).to(device).requires_grad_(case.work != "forward") for array in data.weights
        ]
        self.device = device
        self.optimizer: Any = None
        if case.work == "step" and case.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(self.parameters, lr=SGD_RATE, fused=fused)
        elif case.work == "step":
            self.optimizer = torch.optim.Adam(
                self.parameters, lr=ADAM_RATE, betas=(BETA1, BETA2), eps=EPSILON, fused=fused, **settings
            )
        self.made: Any = None

    def logits(self, X: Any) -> Any:
        """The last layer's output (batch, classes)."""
        linear, parameters = self.torch.nn.functional.linear, self.parameters
        for k in range(0, len(parameters) - 2, 2):
            X = self.torch.sigmoid(linear(X, parameters[k], parameters[k + 1]))
        return linear(X, parameters[-2], parameters[-1])

    def loss(self, X: Any, T: Any) -> Any:
        return self.torch.nn.functional.cross_entropy(self.logits(X), T)

    def probabilities(self, X: Any) -> Any:
        return self.torch.softmax(self.logits(X), dim=1)

    def steps(self, index: Any) -> None:
        super().steps(self.torch.from_numpy(index).to(self.device))

    def step(self, rows: Any) -> None:
        X, T = self.X_all.index_select(0, rows), self.T_all.index_select(0, rows)  # 3 times as fast as X_all[rows]
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(X, T).backward()
        self.optimizer.step()

    def gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        self.loss(self.X, self.T).backward()

    def forward(self) -> None:
        with self.torch.inference_mode():
            self.made = self.probabilities(self.X)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def results(self) -> Weights:
        if self.case.work == "forward":
            return [self.made.cpu().numpy()]
        tensors = self.parameters if self.case.work == "step" else [parameter.grad for parameter in self.parameters]
        return [tensor.detach().cpu().numpy().T.copy() for tensor in tensors]


class TorchEager(Peer):
    """With the optimizer's default: a loop over the weights on the CPU, "foreach" on a GPU."""

    name, package, module = "torch", "torch", "torch"

    def absent(self, device: str) -> str | None:
        reason = super().absent(device)
        if reason is None and device == "cuda":
            import torch

            return None if torch.cuda.is_available() else f"PyTorch {torch.__version__} finds no CUDA device"
        return reason

    def prepare(self, case: Case, data: Data) -> Run:
        return TorchRun(case, data)

    def facts(self) -> dict[str, str]:
        import torch

        return {
            "version": torch.__version__,
            "threads": f"torch.get_num_threads() is {torch.get_num_threads()}",
            "products": f"float32 matrix products of {torch.get_float32_matmul_precision()} precision",
        }


class TorchFused(TorchEager):
    """With fused=True."""

    name = "torch-fused"

    def supports(self, case: Case) -> str | None:
        if case.work != "step":
            return "the optimizer is all that tells it from torch"
        if case.optimizer == "adam" or case.device != "cpu":  # on a GPU every launch that is saved counts
            return None
        return "shown for Adam only, where fusing matters"

    def prepare(self, case: Case, data: Data) -> Run:
        return TorchRun(case, data, fused=True)


PEERS: list[Peer] = [TorchEager(), TorchFused()]
