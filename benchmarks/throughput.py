"""A training step taken apart: as a whole, its passes alone, its matrix products, its minibatch gather.

The steps are the library's own: `StepPlan.steps` on the examples of a shuffled data set that lives on the device. What
counts as a matrix product and as the gather is recorded, not typed in: one step runs while every call of
`gpubp.ops.gemm.matmul` and of the gather is noted, and these same calls, on the same arrays, are what is timed: the
gathers alone, and the gathers with the products, which is a step without all the rest. So the share of the products,
the gather apart, is of two times that one and the same gather was subtracted from, and can't exceed 1 but for noise.
Where the plan runs steps as a program of CPU kernels, what is timed is a program of some of its lines; elsewhere it is
call by call, as a step is (but on a GPU, where a step is a graph, and faster than that). A recorded list that does not
hold the FLOPs that `Network.costs` counts is an error, so that a product computed elsewhere can't hide.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from itertools import cycle, islice, pairwise
from statistics import median
from typing import Any
from unittest import mock

import numpy as np

import gpubp
from gpubp import cpu, cublas, cuda, plan
from gpubp.cost import Ceilings, Cost, floor_seconds
from gpubp.ops import gemm
from gpubp.ops.gather import example_rows

from .cells import Cell
from .timing import WARMUP_ROUNDS, Part, schedule, seconds_of, synchronize


class Step:
    """The training step of a cell, whole and in parts; each part does its work so many times.

    Args:
        cell: What to run; without an optimizer, SGD.
        X: (N, n_in) on the cell's device; N is at least the cell's batch, and X larger than the caches.
        T: (N,) class indices.

    Attributes:
        products: The matrix products of a step: arguments of `gpubp.ops.gemm.matmul`, in order.
        gathers: The arguments of the gathers of a step.
        gather: The part that is these gathers, each of other examples, and nothing else.
        bare: The part that is these gathers and then these products, and nothing else.

    Raises:
        RuntimeError: The products that were recorded are not those that the network's layers need.
    """

    def __init__(self, cell: Cell, X: Any, T: Any) -> None:
        self.cell = cell
        self.network = cell.network()
        self.optimizer = gpubp.optimizer_by_name(cell.optimizer or "sgd")
        self._plan = gpubp.StepPlan(self.network, cell.batch)
        self._data = X, T
        steps = len(X) // cell.batch
        order = np.random.default_rng(0).permutation(len(X))[: steps * cell.batch].astype(np.int64)
        self._index = gpubp.to_device(order.reshape(steps, cell.batch), cell.device)  # of the steps of an epoch
        self._rows = Around(self._index)
        self._slices = cycle([slice(k * cell.batch, (k + 1) * cell.batch) for k in range(steps)])

        def step() -> Any:
            """A step that shows its gradients to somebody runs call by call, never as a program."""
            return self._plan.steps(X, T, None, self._index[:1], self.optimizer, reduce_gradients=lambda _: None)

        step()  # on a device the first one is looked at for its kernels before
        with (
            cpu.recorded() as lines,
            recorded(gemm, "matmul") as self.products,
            recorded(plan, "gather") as self.gathers,
        ):
            first = step()
        self._loss = first[-1]
        self._nanoseconds = sum(line.nanoseconds for line in lines)
        needed = sum(cost.flops for cost in self.costs if cost.name.endswith("matmul"))
        if self.flops != needed:
            raise RuntimeError(
                f"{cell}: {self.flops} FLOPs went through gpubp.ops.gemm.matmul, the network's layers need "
                f"{needed}: some product is computed elsewhere, or twice"
            )
        gathers: list[Callable[[Any], Any]] = [
            lambda rows, data=data, out=out, axis=axis: plan.gather(data, rows, out, axis)
            for data, _, out, axis, *_ in self.gathers
        ]
        products = [lambda _, a=arguments: gemm.matmul(*a, precision=cell.precision) for arguments in self.products]
        self.gather = self._as_the_plan_runs(gathers)
        self.bare = self._as_the_plan_runs([*gathers, *products])

    @property
    def plan(self) -> gpubp.StepPlan:
        """What runs the steps."""
        return self._plan

    def launch_by_launch(self) -> None:
        """One training step, never as a recording: Python is called in it."""
        self._plan.steps(*self._data, None, self._index[:1], self.optimizer, reduce_gradients=lambda _: None)
        synchronize(self.network.device)

    def count_launches(self) -> int:
        """How many kernels and matrix products one step launches on a device; 0 on a CPU."""
        with recorded(cuda, "function") as kernels, recorded(cublas, "gemm") as products:
            self.launch_by_launch()
        return len(kernels) + len(products)

    @property
    def costs(self) -> list[Cost]:
        """What a step needs at least, the gather included."""
        return self.network.costs(self.cell.batch, self.optimizer)

    @property
    def flops(self) -> int:
        """Multiplications and additions in the products of one step."""
        return sum(2 * out.size * A.shape[-1] for A, _, out in self.products)

    def whole(self, times: int) -> None:
        """So many training steps: gather, forward, loss, backward, update."""
        for rows in self._rows.take(times):
            self._loss = self._plan.steps(*self._data, None, rows, self.optimizer)[-1]
        synchronize(self.network.device)

    def forward(self, times: int) -> None:
        """The forward pass alone, on the latest minibatch, into the plan's buffers."""
        X, buffers = self.gathers[0][2], self._plan.buffers(self.cell.batch)
        for _ in range(times):
            self.network.run_forward(X, buffers.forward)
        synchronize(self.network.device)

    def gradients(self, times: int) -> None:
        """Forward, loss and backward, without gather and update, on the latest minibatch."""
        (_, _, X, *_), (_, _, T, *_) = self.gathers
        buffers = self._plan.buffers(self.cell.batch)
        for _ in range(times):
            self._loss = self.network.run_step(X, T, None, buffers)
        synchronize(self.network.device)

    def copies(self, times: int) -> None:
        """What the gathers are held against: as many bytes, of examples that lie next to each other, plainly copied."""
        xp = self.network.device.module
        for rows in islice(self._slices, times):
            for data, _, out, *_ in self.gathers:
                xp.copyto(out, data[example_rows(data, rows)])
        synchronize(self.network.device)

    def loss(self) -> float:
        """The loss of the latest step.

        Raises:
            RuntimeError: It is not finite: what was timed was no training.
        """
        loss = float(gpubp.to_host(self._loss))
        if not math.isfinite(loss):
            raise RuntimeError(f"{self.cell}: the loss is {loss}")
        return loss

    def _as_the_plan_runs(self, calls: list[Callable[[Any], Any]]) -> Part:
        """Calls, given the examples (batch,) of a step, as a part: as a program if all of them are CPU kernels."""
        examples = Around(self._index)
        if not self.network.device.is_cuda and cpu.kernels() is not None:
            index = self._index.copy()  # step s of a program reads row s
            with cpu.recorded() as lines:
                counts = [0]
                for call in calls:
                    call(index[0])
                    counts.append(len(lines))
            if all(before < after for before, after in pairwise(counts)):  # a kernel or more for each call
                program = cpu.Program(lines)
                # As many threads as in the whole step, though this alone might be too little work for them.
                program.nanoseconds = self._nanoseconds

                def run(times: int) -> None:
                    for rows in examples.take(times):
                        index[: len(rows)] = rows
                        program.run(len(rows))

                return run

        def part(times: int) -> None:
            for rows in examples.take(times):
                for one in rows:
                    for call in calls:
                        call(one)
            synchronize(self.network.device)

        return part


class Around:
    """The rows of an array (S, ...), one after the other, around and around.

    Args:
        rows: The array.
    """

    def __init__(self, rows: Any) -> None:
        self._rows, self._next = rows, 0

    def take(self, times: int) -> Iterator[Any]:
        """The next so many rows, as slices of the array; goes on where the last call stopped."""
        while times:
            rows = self._rows[self._next : self._next + times]
            self._next = (self._next + len(rows)) % len(self._rows)
            times -= len(rows)
            yield rows


@contextlib.contextmanager
def recorded(owner: Any, name: str) -> Iterator[list[tuple[Any, ...]]]:
    """The positional arguments of every call of a function within the block."""
    function, calls = getattr(owner, name), []
    signature = inspect.signature(function)

    def record(*args: Any, **kwargs: Any) -> Any:
        calls.append(signature.bind(*args, **kwargs).args)
        return function(*args, **kwargs)

    with mock.patch.object(owner, name, record):
        yield calls


def measure(benchmark: Any, step: Step, ceilings: Ceilings, seconds: float) -> None:
    """Time a cell with pytest-benchmark, whole steps and parts in turn, and note the result in ``extra_info``.

    Args:
        benchmark: The fixture; its own statistics are of rounds of ``steps_per_round`` steps.
        step: The cell's step.
        ceilings: What the machine can do at most.
        seconds: About how long to measure.
    """
    parts = {"bare": step.bare, "gather": step.gather, "copy": step.copies}
    with step.network.device.activate():
        step.whole(1)  # the plan records its program, kernels are compiled
        steps, rounds = schedule(step.whole, seconds, blocks_a_round=2)  # the parts take less than a whole step more
        measured: dict[str, list[float]] = {name: [] for name in parts}

        def time_parts() -> tuple[tuple[int], dict[str, Any]]:
            for name, part in parts.items():
                measured[name].append(seconds_of(part, steps))
            return (steps,), {}

        benchmark.pedantic(step.whole, setup=time_parts, rounds=rounds, warmup_rounds=WARMUP_ROUNDS)
        step.loss()
    if benchmark.disabled:
        return
    whole = benchmark.stats.stats.median / steps
    bare, gather, copy = (median(measured[name][WARMUP_ROUNDS:]) / steps for name in parts)
    floor = floor_seconds(step.costs, ceilings)
    benchmark.extra_info.update(
        {
            "kind": "step",
            **step.cell.info,
            "samples_per_second": step.cell.batch / whole,
            "step_seconds": whole,
            "bare_seconds": bare,
            "matmul_seconds": bare - gather,
            "gather_seconds": gather,
            "copy_seconds": copy,
            "other_share": 1 - bare / whole,
            "matmul_share": (bare - gather) / (whole - gather),
            "gather_over_copy": gather / copy,
            "floor_seconds": floor,
            "share_of_floor": floor / whole,
            "matmul_flops": step.flops,
            "matmul_flops_per_second": step.flops / (bare - gather),
            "steps_per_round": steps,
            **ceilings_info(ceilings),
        }
    )


def measure_pass(benchmark: Any, step: Step, kind: str, costs: list[Cost], ceilings: Ceilings, seconds: float) -> None:
    """Time one of the passes of a step, ``"forward"`` or ``"gradients"``, and note the result in ``extra_info``.

    Args:
        benchmark: The fixture; its own statistics are of rounds of ``passes_per_round`` passes.
        step: The cell's step.
        kind: Which pass.
        costs: What the pass needs at least.
        ceilings: What the machine can do at most.
        seconds: About how long to measure.
    """
    part: Part = {"forward": step.forward, "gradients": step.gradients}[kind]
    with step.network.device.activate():
        part(1)
        passes, rounds = schedule(part, seconds)
        benchmark.pedantic(part, args=(passes,), rounds=rounds, warmup_rounds=WARMUP_ROUNDS)
        step.loss()
    if benchmark.disabled:
        return
    taken = benchmark.stats.stats.median / passes
    floor = floor_seconds(costs, ceilings)
    benchmark.extra_info.update(
        {
            "kind": kind,
            **step.cell.info,
            "samples_per_second": step.cell.batch / taken,
            "pass_seconds": taken,
            "floor_seconds": floor,
            "share_of_floor": floor / taken,
            "passes_per_round": passes,
            **ceilings_info(ceilings),
        }
    )


def ceilings_info(ceilings: Ceilings) -> dict[str, Any]:
    """The ceilings, for the JSON."""
    return {f"ceiling_{name}": value for name, value in vars(ceilings).items()}
