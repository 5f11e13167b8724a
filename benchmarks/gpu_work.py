"""What `benchmarks.on_a_gpu` has done in processes of its own: small jobs that note each figure as soon as it is there.

A job goes on with what an earlier one of its name has noted. An error of which the device recovers belongs into the row
that it befell; after any other the process is of no use, and ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any
from unittest import mock

import numpy as np

import gpubp
from gpubp import cublas, cuda
from gpubp.cost import Ceilings, floor_seconds

from . import ceilings, kernels, machine
from .agreement import share_of_tf32
from .cells import Cell
from .throughput import Step
from .timing import median_seconds, synchronize

Row = dict[str, Any]
Note = Callable[[str, Any], None]
"""Keeps what a job has found by now, by the job's name."""

WIDE, NARROW = "784-512-512-10", "64-64-64-64-10"
NETS = (WIDE, NARROW)
BATCHES = (32, 4096, 65536)
OPTIMIZERS: dict[str, Callable[[], gpubp.Optimizer]] = {
    "adam": lambda: gpubp.Adam(1e-3),
    "sgd": lambda: gpubp.SGD(0.01),
    "sgd momentum": lambda: gpubp.SGD(0.01, 0.9),
    "sgd nesterov": lambda: gpubp.SGD(0.01, 0.9, nesterov=True),
}
RACED = ("adam", "sgd")
PRECISIONS = ("float32", "tf32")
"""Of the steps that are held against their floor."""
OPERAND = 2**28
"""Bytes of the array that a kernel is about whose bandwidth is measured: far more than a cache holds."""
SMOKE_SHARE = 0.01
"""How far float32 may be from float64 after some steps, as a share of what they change, in the mean."""
BF16_OVER_TF32 = 8
"""How many times as far off as TF32 bf16 rounds a factor: to 7 binary digits behind the point instead of 10."""


@dataclass(frozen=True)
class Place:
    """Where a job runs, and how much it does.

    Attributes:
        device: ``"cuda"``, or ``"cpu"`` to try the jobs out.
        tiny: Whether small nets and short times are enough, to try the jobs out.
        seconds: What the job may take; it ends by itself then.
        known: All that was noted so far, by job.
    """

    device: str
    tiny: bool
    seconds: float
    known: Mapping[str, Any]

    @property
    def nets(self) -> tuple[str, ...]:
        """The nets, the more telling first."""
        return ("6-5-3", "8-4-4-3") if self.tiny else NETS


def each(
    name: str,
    entries: Callable[[Place], list[Row]],
    measure: Callable[[Place, Row, Note], Row],
    place: Place,
    note: Note,
) -> None:
    """A job that is a list of rows: measure those that are not known yet, as long as there is time.

    Args:
        name: The job's.
        entries: What makes each row the one that it is.
        measure: The figures of a row.
        place: Where.
        note: Where to keep them.

    Raises:
        SystemExit: The device is lost for this process.
    """
    stop = time.monotonic() + place.seconds
    rows, planned = list(place.known.get(name, {}).get("rows", ())), entries(place)
    note(name, {"planned": len(planned), "rows": rows})
    for entry in planned:
        if any(entry.items() <= row.items() for row in rows):
            continue
        if time.monotonic() > stop:
            return
        row = dict(entry)
        try:
            row |= measure(place, entry, note)
        except Exception as error:  # whatever a row fails with belongs into it
            row["failed"] = f"{type(error).__name__}: {error}"
        print(row, flush=True)
        rows.append(row)
        note(name, {"planned": len(planned), "rows": rows})
        if "failed" in row and is_lost(place.device):
            raise SystemExit(f"the device is lost for this process: {row['failed']}")


def is_lost(device: str) -> bool:
    """Whether a device can't be used any more by this process."""
    try:
        synchronize(gpubp.resolve_device(device))
    except Exception:  # every call fails after such an error
        return True
    return False


# Whether it is right.


def smoke_rows(place: Place) -> list[Row]:
    """Each net and optimizer; of the lower precisions, which a CPU does not have, one row each."""
    rows = [(net, name, "float32") for net, name in product(place.nets, OPTIMIZERS)]
    if place.device != "cpu":
        rows[1:1] = [(place.nets[0], "sgd", precision) for precision in ("tf32", "bf16")]
    return [dict(zip(("net", "optimizer", "precision"), row, strict=True)) for row in rows]


def smoke(place: Place, entry: Row, _: Note) -> Row:
    """Some steps: captured or not, and the weights against float64 on the CPU."""
    widths, batch, examples = widths_of(entry["net"]), 32, 512
    host = gpubp.mlp(widths, activation="sigmoid", dtype="float64", device="cpu", rng=0)
    there = gpubp.mlp(widths, activation="sigmoid", device=place.device, rng=0, matmul_precision=entry["precision"])
    for name, parameter in there.parameters.items():
        parameter[...] = gpubp.to_device(host.parameters[name].astype(np.float32), there.device)
    start = host.theta.copy()
    rng = np.random.default_rng(0)
    X = rng.standard_normal((examples, widths[0]), dtype=np.float32)
    T = rng.integers(widths[-1], size=examples)
    index = rng.integers(examples, size=(42, batch))  # on a device 1 as ever, then graphs of 32, 8 and 1
    for network in (host, there):
        plan = gpubp.StepPlan(network, batch)
        X_there = network.inputs(X)
        arrays = X_there, network.targets(T, X_there), None
        plan.steps(*arrays, gpubp.to_device(index, network.device), OPTIMIZERS[entry["optimizer"]]())
    apart = [
        np.abs(gpubp.to_host(parameter) - host.parameters[name]).ravel() for name, parameter in there.parameters.items()
    ]
    share = float(np.concatenate(apart).mean() / np.abs(host.theta - start).mean())
    why = plan.why_not_captured if there.device.is_cuda else "not a CUDA device"
    allowed = smoke_share(entry["precision"], len(widths) - 1)
    return {"why_not_captured": why, "share": share, "agrees": share < allowed}


def smoke_share(precision: str, layers: int) -> float:
    """How far a net of so many layers may be from float64; see `SMOKE_SHARE`."""
    rounded = {"float32": 0, "tf32": 1, "bf16": BF16_OVER_TF32}[precision]
    return SMOKE_SHARE + rounded * share_of_tf32(layers)


def widths_of(net: str) -> tuple[int, ...]:
    """``784-128-10`` as numbers."""
    return tuple(map(int, net.split("-")))


# How fast it is.


def ceilings_of(place: Place, note: Note) -> Mapping[str, float]:
    """What the device can do at most: a large copy, and matrix products of each precision; measured once."""
    if (found := place.known.get("ceilings")) is not None:
        return found
    device, seconds = gpubp.resolve_device(place.device), 0.01 if place.tiny else 0.3
    with _small_ceilings() if place.tiny else contextlib.nullcontext(), device.activate():
        rates = {"copy": ceilings.copy_rate(device, seconds)}
        for precision in PRECISIONS if device.is_cuda and cublas.why_no_handle() is None else PRECISIONS[:1]:
            rates[precision] = ceilings.product_rate(device, "float32", seconds, precision)
    note("ceilings", rates)
    return rates


def _small_ceilings() -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    for name in ("COPY_BYTES", "PRODUCT_WIDTH"):
        stack.enter_context(mock.patch.dict(getattr(ceilings, name), {"cpu": 128, "cuda": 128}))
    stack.enter_context(mock.patch.object(machine, "last_level_cache_bytes", return_value=0))
    return stack


def floor_rows(place: Place) -> list[Row]:
    """Each net by batch size, precision and optimizer."""
    batches = (4, 8) if place.tiny else BATCHES
    precisions = PRECISIONS if place.device != "cpu" else PRECISIONS[:1]
    every = product(place.nets, batches, precisions, RACED)
    return [dict(zip(("net", "batch", "precision", "optimizer"), row, strict=True)) for row in every]


def floor(place: Place, entry: Row, note: Note) -> Row:
    """The step against its floor, of the ceiling of its own precision, and the nodes of its graph."""
    rates = ceilings_of(place, note)
    if entry["precision"] not in rates:
        raise RuntimeError(f"there is no measured ceiling of {entry['precision']} products")
    widths, batch = widths_of(entry["net"]), entry["batch"]
    rows = 64 if place.tiny else max(65536, 4 * batch)
    X = kernels.Numbers(place.device, "float32").normal((rows, widths[0]))
    T = gpubp.to_device(np.random.default_rng(0).integers(widths[-1], size=rows), place.device)
    step = Step(Cell(widths, entry["optimizer"], place.device, batch, precision=entry["precision"]), X, T)
    with step.network.device.activate():
        with noted_graphs() as graphs:
            step.whole(max(2, min(42, rows // batch)))  # one as ever, then graphs of 32, 8 and 1
        taken = median_seconds(step.whole, 0.01 if place.tiny else 0.3)
        step.loss()
    why = step.plan.why_not_captured
    nodes = None if why is not None or len(graphs) < 2 else nodes_of(graphs[1])  # the first is of the gradients alone
    least = floor_seconds(step.costs, Ceilings(rates[entry["precision"]], rates["copy"]))
    count = nodes or step.count_launches()
    return {
        "step_seconds": taken,
        "floor_seconds": least,
        "times_floor": taken / least,
        "nodes": count,
        "counted": "in the graph" if nodes else "launched one by one",
        "us_per_node": 1e6 * taken / count if count else None,
        "why_not_captured": why,
    }


@contextlib.contextmanager
def noted_graphs() -> Iterator[list[Any]]:
    """The CUDA graphs that are captured meanwhile."""
    graphs: list[Any] = []
    captured = cuda.captured

    def noted(*arguments: Any) -> Any:
        graphs.append(captured(*arguments))
        return graphs[-1]

    with mock.patch.object(cuda, "captured", noted):
        yield graphs


def nodes_of(graph: Any) -> int | None:
    """How many nodes a graph of CuPy has; None where that is not to be known."""
    count = ctypes.c_size_t()
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        failed = driver.cuGraphGetNodes(ctypes.c_void_p(graph.graph), None, ctypes.byref(count))
    except (OSError, AttributeError):
        return None
    return None if failed else count.value


def bandwidth_rows(place: Place) -> list[Row]:
    """Every operation."""
    return [{"kernel": name, "bytes": 2**12 if place.tiny else OPERAND} for name in kernels.operations()]


def bandwidth(place: Place, entry: Row, note: Note) -> Row:
    """An operation on arrays from memory: its rates, and its share of the copy's."""
    rates, device = ceilings_of(place, note), gpubp.resolve_device(place.device)
    make = kernels.operations()[entry["kernel"]]
    with device.activate():
        kernel = make(entry["bytes"], place.device, "float32", 64 if place.tiny else 65536)
        part, count = kernel.timed()
        taken = median_seconds(part, 0.005 if place.tiny else 0.05) / count
    costs = kernel.costs()
    moved = sum(cost.bytes for cost in costs)
    most = Ceilings(rates["float32"], rates["copy"])
    return {
        "seconds": taken,
        "bytes_per_second": moved / taken,
        "share_of_copy": moved / taken / rates["copy"],
        "share_of_ceiling": floor_seconds(costs, most) / taken,
        "as_graph": count > 1,
    }
