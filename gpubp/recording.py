"""Training steps that are recorded once and then run many at a time: a program of CPU kernels, or CUDA graphs.

A recording reads and writes the very arrays that it was made with. What differs from step to step is in its `index`,
and in what the optimizer is told by `begin_steps`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gpubp import cpu, cuda, faults
from gpubp.backend import Array, to_host
from gpubp.network import Network
from gpubp.ops.random import Draws
from gpubp.optimizers.base import Optimizer

MOST_STEPS = 256
"""Steps that one call of a program of CPU kernels runs at most, ..."""
MOST_INDICES = 65536
"""... and the examples in them, as long as that is more than one step."""


class NotFiniteError(Exception):
    """A step can't be recorded now, as its loss or its gradient is not a finite number."""


@dataclass(frozen=True)
class StepToRecord:
    """A step on the examples of a data set.

    Attributes:
        network: Whose step it is.
        gradients: Loss and gradient: ``gradients(rows, L)`` for the examples (N,) returns the loss, which it writes to
            L if it can, and leaves the gradient in `dL_dtheta`.
        dL_dtheta: The gradient that the update takes.
        L: Where the loss may be written.
        written: Everything else that `gradients` writes before it reads it.
        examples: How many the data set has.
    """

    network: Network
    gradients: Callable[[Array, Array], Array]
    dL_dtheta: Array
    L: Array
    written: Callable[[], list[Array]]
    examples: int

    @staticmethod
    def index_bytes(N: int) -> int:
        """Most device memory of the arrays that `index_and_losses` gives for steps of N examples, losses apart."""
        return GraphSteps.LENGTHS[0] * N * np.dtype(np.int64).itemsize

    def index_and_losses(self, N: int, steps: int) -> tuple[Array, Array]:
        """Arrays for the examples and the losses of the steps of one launch."""
        network, xp = self.network, self.network.device.module
        lead = () if network.members is None else (network.members,)
        return xp.empty((steps, N), np.int64), xp.empty((steps, *lead), network.dtype)

    def is_faithful(self, index: Array, replay: Callable[[], None], L: Array) -> bool:
        """Whether replaying the recorded step computes all that the step itself computes.

        The last of the steps is tried on other examples than it was recorded with, and all that a step writes is filled
        with NaN before: what a replay leaves out stays NaN, and what it holds fast is told by the comparison.

        Args:
            index: (S, N), where the replay reads which examples to take, and that of the first step.
            replay: Runs the recorded step so many times.
            L: Where the replay writes the loss.

        Raises:
            NotFiniteError: Loss or gradient is not finite, and nothing is to be told from NaN.
        """
        index[-1] = self.examples - 1 - index[0]
        network, before = self.network, self.network.snapshot(weights=False)
        for s, rows in enumerate(index):
            network.draws.offset = s
            L_expected = np.array(to_host(self.gradients(rows, self.L)))
        network.draws.offset = 0
        expected = [L_expected, *(np.array(to_host(array)) for array in (self.dL_dtheta, *network.statistics))]
        network.restore(before)
        if not all(np.isfinite(array).all() for array in expected):
            raise NotFiniteError
        for array in (*self.written(), self.dL_dtheta, L):
            array.fill(np.nan if array.dtype.kind == "f" else 0)
        replay()
        return all(map(_same, map(to_host, (L, self.dL_dtheta, *network.statistics)), expected))


def programmed(step: StepToRecord, rows: Array, optimizer: Optimizer) -> Recording | None:
    """Steps as a program of CPU kernels, if they compute all of it. Network and optimizer stay as they are.

    Raises:
        NotFiniteError: See there.
    """
    N = len(rows)
    index, losses = step.index_and_losses(N, max(1, min(MOST_STEPS, MOST_INDICES // N)))
    index[0] = rows
    with cpu.recorded() as lines:
        L = step.gradients(index[0], step.L)
    if not isinstance(L, np.ndarray):  # computed in NumPy
        return None
    tried = index[: min(2, len(index))]
    if not step.is_faithful(tried, lambda: cpu.Program(lines).run(len(tried)), L):
        return None
    with cpu.recorded(run=False) as update:
        if not optimizer.launch(step.network.theta, step.dL_dtheta, step.network.weights_size):
            return None
        cpu.kernels().losses.store(L, losses)
    return ProgramSteps(cpu.Program([*lines, *update]), index, losses, step.network.draws)


def captured(step: StepToRecord, rows: Array, optimizer: Optimizer, stream: Any) -> Recording:
    """Steps as CUDA graphs. The optimizer has made a step before: its state and its kernels are there.

    Raises:
        Exception: Whatever keeps the step from being captured.
    """
    index, losses = step.index_and_losses(len(rows), GraphSteps.LENGTHS[0])

    def gradients(rows: Array, L: Array) -> None:
        result = step.gradients(rows, L)
        if result is not L:
            L[...] = result

    def whole(rows: Array, L: Array) -> None:
        gradients(rows, L)
        if not optimizer.launch(step.network.theta, step.dL_dtheta, step.network.weights_size):
            raise NotImplementedError(f"{type(optimizer).__name__} has no CUDA kernel")

    index[0] = rows
    graph = cuda.captured(stream, lambda: gradients(index[0], losses[0]))
    if not step.is_faithful(index[:1], lambda: graph.launch(stream), losses[0]):
        raise NotImplementedError("a part of it runs on the host, or holds fast what changes between steps")
    return GraphSteps(whole, stream, index, losses, optimizer, step.network.draws)


class Recording(Protocol):
    """Recorded training steps.

    Attributes:
        index: (most steps of a launch, N) int64, the examples of each.
        losses: (most steps of a launch,), or that many rows of E.
    """

    index: Array
    losses: Array

    def run(self, index: Array, optimizer: Optimizer, losses: Array) -> None:
        """Do step s on the examples ``index[s]``, (S, N) int64, and write its loss to ``losses[s]``, (S,) or (S, E)."""


class ProgramSteps:
    """Steps as a program of CPU kernels.

    Args:
        program: Does step s of a launch on the examples ``index[s]``, and writes ``losses[s]``.
        index: (most steps of a launch, N) int64.
        losses: As many, or that many rows of E.
        draws: What its random layers draw.
    """

    def __init__(self, program: cpu.Program, index: Array, losses: Array, draws: Draws) -> None:
        self.program, self.index, self.losses, self._draws = program, index, losses, draws

    def run(self, index: Array, optimizer: Optimizer, losses: Array) -> None:
        """See `Recording.run`."""
        most = len(self.index)
        for start in range(0, len(index), most):
            count = min(most, len(index) - start)
            self.index[:count] = index[start : start + count]
            optimizer.begin_steps(count)
            self._draws.begin_steps(count)
            self.program.run(count)
            losses[start : start + count] = self.losses[:count]


class GraphSteps:
    """Steps as CUDA graphs of several lengths, each captured when it is first needed.

    Args:
        step: Enqueues a whole step: ``step(rows, L)`` with the examples (N,) and the array that receives the loss.
        stream: The stream that is captured and that runs the graphs.
        index: (the longest graph's steps, N) int64.
        losses: As many, or that many rows of E.
        optimizer: What updates the parameters.
        draws: What the random layers draw.

    Raises:
        Exception: Whatever keeps a step from being captured.
    """

    LENGTHS = (32, 8, 1)
    """Steps of the graphs: a node of a graph costs a quarter of a launch from the host, and a graph one launch."""

    def __init__(
        self,
        step: Callable[[Array, Array], None],
        stream: Any,
        index: Array,
        losses: Array,
        optimizer: Optimizer,
        draws: Draws,
    ) -> None:
        self._step, self._stream, self.index, self.losses, self._draws = step, stream, index, losses, draws
        self._graphs: dict[int, Any] = {}
        self._failed: set[int] = set()
        self._graph(1, optimizer)

    def run(self, index: Array, optimizer: Optimizer, losses: Array) -> None:
        """See `Recording.run`; nothing in it waits for the device."""
        start = 0
        for length in self.LENGTHS:
            while len(index) - start >= length and (graph := self._graph_or_none(length, optimizer)) is not None:
                part = slice(start, start + length)
                self.index[:length] = index[part]
                optimizer.begin_steps(length)
                self._draws.begin_steps(length)
                graph.launch(self._stream)
                losses[part] = self.losses[:length]
                start += length

    def _graph_or_none(self, length: int, optimizer: Optimizer) -> Any:
        """A graph of so many steps; None, with a warning the first time, where it can't be had: shorter ones can."""
        if length not in self._failed:
            try:
                return self._graph(length, optimizer)
            except Exception as error:  # of the driver, out of memory above all
                faults.raise_if_lost(error)
                self._failed.add(length)
                warnings.warn(f"{length} steps are not captured as one CUDA graph: {error}", stacklevel=2)
        return None

    def _graph(self, length: int, optimizer: Optimizer) -> Any:
        if length not in self._graphs:
            optimizer.begin_steps(0)  # each step of the graph is told how many of the graph's steps came before it

            def steps() -> None:
                for s in range(length):
                    self._draws.offset = s
                    self._step(self.index[s], self.losses[s])

            try:
                self._graphs[length] = cuda.captured(self._stream, steps)
            finally:
                self._draws.offset = 0
        return self._graphs[length]


def _same(actual: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    """Whether two arrays are finite and the same, but for rounding; the expected one is lost."""
    bound = 1e-3 * max(expected.max(initial=0.0), -expected.min(initial=0.0))
    with np.errstate(invalid="ignore"):
        difference = np.subtract(actual.reshape(expected.shape), expected, out=expected)
        return bool((np.abs(difference, out=difference) <= bound).all())
