"""PyTorch with whole training steps captured as CUDA graphs: one step a graph, or 32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..cases import Case, Data
from . import Peer, Run
from .torch_eager import TorchEager, TorchRun

WARMUP_STEPS = 3
"""Before the capture, on a side stream, as PyTorch's documentation asks."""
MANY_STEPS = 32
"""Steps of the longer graph: as many as that of gpubp."""


class GraphRun(TorchRun):
    """The gather is part of the graph, which reads the row numbers from a tensor of its own.

    Args:
        case: What to do.
        data: On what.
        chunk: Steps of the longest graph; what is left over goes through one of a single step.
    """

    def __init__(self, case: Case, data: Data, chunk: int = 1) -> None:
        if case.optimizer == "adam":
            super().__init__(case, data, fused=True, capturable=True)
        else:
            super().__init__(case, data, fused=True)
        torch, self.chunk = self.torch, min(chunk, len(data.order) // case.batch)  # at most an epoch in a graph
        initial = [parameter.detach().clone() for parameter in self.parameters]
        first = torch.from_numpy(data.order[: case.batch]).to(self.device)
        self.rows = first.repeat(self.chunk, 1)  # (chunk, batch)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARMUP_STEPS):
                self._work(self.rows[0])
        torch.cuda.current_stream().wait_stream(side)
        if case.work == "step":
            self.optimizer.zero_grad(set_to_none=True)  # the capture allocates the gradients in the graph's own pool
        self.graph = self._captured(lambda: self._work(self.rows[0]))
        self.graph_of_many: Any = None
        if self.chunk > 1:
            self.graph_of_many = self._captured(lambda: [self._work(rows) for rows in self.rows])
        # Back to the start: the warm-up has trained, and the graph holds on to these very tensors.
        with torch.no_grad():
            for parameter, value in zip(self.parameters, initial, strict=True):
                parameter.copy_(value)
        for state in self.optimizer.state.values() if self.optimizer is not None else ():
            for tensor in state.values():
                if torch.is_tensor(tensor):
                    tensor.zero_()

    def _captured(self, work: Callable[[], Any]) -> Any:
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            work()
        return graph

    def _work(self, rows: Any) -> None:
        if self.case.work == "step":
            super().step(rows)
        elif self.case.work == "gradients":
            super().gradients()
        else:
            super().forward()

    def steps(self, index: Any) -> None:
        many = len(self.rows)
        if self.case.work != "step" or self.graph_of_many is None:
            super().steps(index)
            return
        index = self.torch.from_numpy(index).to(self.device)
        whole = len(index) // many * many
        for start in range(0, whole, many):
            self.rows.copy_(index[start : start + many])
            self.graph_of_many.replay()
        for rows in index[whole:]:
            self.step(rows)
        self.synchronize()

    def step(self, rows: Any) -> None:
        self.rows[0].copy_(rows)
        self.graph.replay()

    def gradients(self) -> None:
        self.graph.replay()

    def forward(self) -> None:
        self.graph.replay()


class TorchGraph(TorchEager):
    name = "torch-graph"

    def absent(self, device: str) -> str | None:
        return super().absent(device) or (None if device == "cuda" else "a CUDA graph needs a GPU")

    def prepare(self, case: Case, data: Data) -> Run:
        return GraphRun(case, data)


class TorchGraphs(TorchGraph):
    name = "torch-graph-32"

    def supports(self, case: Case) -> str | None:
        return None if case.work == "step" else "only steps follow one another"

    def prepare(self, case: Case, data: Data) -> Run:
        return GraphRun(case, data, MANY_STEPS)


PEERS: list[Peer] = [TorchGraph(), TorchGraphs()]
