"""What `benchmarks.on_a_gpu` has done in processes of its own: small jobs that note each figure as soon as it is there.

Every job is given a `Place` and a function to note with, so that what was measured is kept however the process ends.
"""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np

import gpubp
from gpubp import cublas, cuda
from gpubp.backend import free_bytes
from gpubp.cost import Ceilings, floor_seconds
from gpubp.cuda_kernels.gemm import matmul

from . import ceilings, kernels, race, results
from .agreement import share_of_tf32
from .cases import GPU_NETS, Case
from .cells import Cell
from .peers import all_peers
from .throughput import Step
from .timing import Part, schedule, seconds_of

Note = Callable[[str, Any], None]
"""Keeps a figure: the list that it goes to, and what it is; or a name, and what to keep by it."""

OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "sgd": lambda: gpubp.SGD(0.01),
    "sgd momentum": lambda: gpubp.SGD(0.01, 0.9),
    "sgd nesterov": lambda: gpubp.SGD(0.01, 0.9, nesterov=True),
    "adam": lambda: gpubp.Adam(1e-3),
}
LARGE = "784-512-512-10"
NARROW = "64-64-64-64-10"
LARGEST = GPU_NETS[0]
NETS = (LARGE, NARROW, "784-128-10", LARGEST)
PROFILED = {"64 MiB": 2**26, "256 MiB": 2**28}
"""Bytes of the arrays of single operations: far more than a cache holds."""
RACE_BATCHES = (32, 256, 4096, 65536)
IDENTITY = ("net", "optimizer", "batch", "precision")
"""What a cell of a race is known by."""
COMPILED = ("torch-compile", "torch-compile-max")
MAX_PEERS = ("gpubp", *COMPILED)
TELLING = ("gpubp", "torch-graph-32", "jax-scan", "torch", *COMPILED, "jax", "torch-graph", "torch-fused")
"""The peers, those first that are to run where there is no room for all."""
CONTEXT_BYTES = 700 * 2**20
"""What CUDA and its libraries take of a GPU's memory for each process."""
USED_SHARE = 0.9
"""Of the free memory: pools have holes."""
SMOKE_SHARE = 0.01
"""How far float32 may be from float64 after some steps, as a share of what they change, in the mean."""
BF16_OVER_TF32 = 8
"""How many times as far off as TF32 bf16 rounds a factor: to 7 binary digits behind the point instead of 10."""
PRECISIONS = ("float32", "tf32")
"""Of the steps that are held against their floor."""
RIDE_RATE = 1e-3
"""About how far one update moves a weight: far beyond rounding, and not to infinity in a thousand updates."""
LARGEST_STEPS = 4
"""Smoke steps of a network of millions of parameters, which float64 on the CPU takes seconds for."""


@dataclass(frozen=True)
class Place:
    """Where a job runs, and how much it does.

    Attributes:
        device: ``"cuda"``, or ``"cpu"`` to try the jobs out.
        tiny: Whether small nets and short times are enough, to try the jobs out.
        seconds: What the job may take.
        known: What an earlier run has noted: what is there is not done again.
    """

    device: str
    tiny: bool
    seconds: float
    known: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nets(self) -> tuple[str, ...]:
        """The nets, the most telling first."""
        return ("6-5-3", "8-4-4-3") if self.tiny else NETS


def widths_of(net: str) -> tuple[int, ...]:
    """``784-128-10`` as numbers."""
    return tuple(map(int, net.split("-")))


def is_known(place: Place, name: str, entry: dict[str, Any]) -> bool:
    """Whether an earlier run has noted this row of a list: one of which all that `entry` says is so."""
    return any(entry.items() <= {k: row.get(k) for k in entry}.items() for row in place.known.get(name, ()))


def smoke(place: Place, note: Note) -> None:
    """Some steps of each net and optimizer: captured or not, and the weights against float64 on the CPU.

    Of the lower precisions one row each; a CPU does not have them.
    """
    rows = [(net, name, "float32") for net, name in product(place.nets, OPTIMIZERS)]
    if place.device != "cpu":
        rows[1:1] = [(place.nets[0], "sgd", precision) for precision in ("tf32", "bf16")]
    note("smoke-planned", len(rows))
    for net, name, precision in rows:
        began = time.perf_counter()
        entry: dict[str, Any] = {"net": net, "optimizer": name, "precision": precision}
        if is_known(place, "smoke", entry):
            continue
        try:
            entry |= _smoke(place, net, OPTIMIZERS[name], precision)
        except Exception as error:  # whatever a net fails with belongs into its row
            entry |= {"agrees": False, "failed": f"{type(error).__name__}: {error}"}
        note("smoke", {**entry, "seconds": round(time.perf_counter() - began, 2)})


def smoke_share(precision: str, layers: int) -> float:
    """How far a net of so many layers may be from float64; see `SMOKE_SHARE`."""
    rounded = {"float32": 0, "tf32": 1, "bf16": BF16_OVER_TF32}[precision]
    return SMOKE_SHARE + rounded * share_of_tf32(layers)


def _smoke(place: Place, net: str, make: Callable[[], Any], precision: str) -> dict[str, Any]:
    widths, batch, examples = widths_of(net), 32, 512
    host = gpubp.mlp(widths, activation="sigmoid", dtype="float64", device="cpu", rng=0)
    there = gpubp.mlp(widths, activation="sigmoid", device=place.device, rng=0, matmul_precision=precision)
    there.theta[...] = gpubp.to_device(host.theta.astype(np.float32), there.device)
    start = host.theta.copy()
    rng = np.random.default_rng(0)
    X = rng.standard_normal((examples, widths[0]), dtype=np.float32)
    T = rng.integers(widths[-1], size=examples)
    steps = 42 if start.size < 5e6 else LARGEST_STEPS  # on a device 1 as ever, then graphs of 32, 8 and 1
    index = rng.integers(examples, size=(steps, batch))
    plans = []
    for network in (host, there):
        plans.append(gpubp.StepPlan(network, batch))
        X_there = network.inputs(X)
        arrays = X_there, network.targets(T, X_there), None
        plans[-1].steps(*arrays, gpubp.to_device(index, network.device), make())
    apart = np.abs(gpubp.to_host(there.theta) - host.theta).mean() / np.abs(host.theta - start).mean()
    is_cuda = there.device.is_cuda
    why = plans[1].why_not_captured if is_cuda else "not a CUDA device"
    return {
        "steps": steps,
        "cuda": is_cuda,
        "captured": why is None,
        "why": why,
        "share": float(apart),
        "agrees": bool(apart < smoke_share(precision, len(widths) - 1)),
    }


def _measure_ceilings(place: Place, note: Note) -> dict[str, float]:
    """What the device can do at most: a large copy, and matrix products of each precision."""
    device, found = gpubp.resolve_device(place.device), {}
    seconds = 0.01 if place.tiny else 0.4
    kinds = [("float32", "float32"), ("float64", "float32")]
    if device.is_cuda and cublas.why_no_handle() is None:
        kinds.insert(1, ("float32", "tf32"))
    with _small_ceilings() if place.tiny else _as_ever(), device.activate():
        found["copy"] = ceilings.copy_rate(device, seconds)
        for dtype, precision in kinds:
            found[precision if precision == "tf32" else dtype] = ceilings.product_rate(
                device, dtype, seconds, precision
            )
    note("ceilings", found)
    return found


@contextmanager
def _small_ceilings() -> Iterator[None]:
    with (
        mock.patch.object(ceilings, "COPY_BYTES", {"cpu": 2**20, "cuda": 2**20}),
        mock.patch.object(ceilings, "PRODUCT_WIDTH", {"cpu": 128, "cuda": 128}),
        mock.patch.object(ceilings.machine, "last_level_cache_bytes", return_value=0),
    ):
        yield


@contextmanager
def _as_ever() -> Iterator[None]:
    yield


def profile(place: Place, note: Note) -> None:
    """Each operation on arrays from memory, and the nets' matrix products: rates, and shares of the ceilings."""
    stop = time.monotonic() + place.seconds
    device = gpubp.resolve_device(place.device)
    sizes = {"4 KiB": 2**12} if place.tiny else PROFILED
    rows = 64 if place.tiny else 65536
    makers: list[tuple[str, str, Callable[[], kernels.Kernel]]] = [
        (name, size, lambda n=nbytes, make=make: make(n, place.device, "float32", rows))
        for (size, nbytes), (name, make) in product(sizes.items(), kernels.operations().items())
    ]
    large = [] if place.tiny else [one for one in kernels.products() if one.batch == max(kernels.MATMUL_BATCHES)]
    after = len(kernels.operations())  # products come after the first size
    makers[after:after] = [
        (f"matmul {one.layer}", f"batch {one.batch:,}", lambda one=one: one.kernel(place.device, "float32"))
        for one in large
    ]
    note("kernels-planned", len(makers))
    rates = _measure_ceilings(place, note)
    most = Ceilings(rates["float32"], rates["copy"])
    for name, size, make in makers:
        if time.monotonic() > stop:
            return
        entry: dict[str, Any] = {"kernel": name, "size": size, "bytes": sizes.get(size)}
        if not is_known(place, "kernels", entry):
            _profile(entry, make, most, place, device, note)


def _profile(
    entry: dict[str, Any],
    make: Callable[[], kernels.Kernel],
    most: Ceilings,
    place: Place,
    device: gpubp.Device,
    note: Note,
) -> None:
    try:
        with device.activate():
            kernel = make()
            part, count = kernel.timed()
            taken = _median_seconds(part, 0.005 if place.tiny else 0.1) / count
        costs = kernel.costs()
        flops, moved = sum(cost.flops for cost in costs), sum(cost.bytes for cost in costs)
        entry |= {
            "seconds": taken,
            "bytes_per_second": moved / taken,
            "flops_per_second": flops / taken,
            "share_of_copy": moved / taken / most.bytes_per_second,
            "share_of_ceiling": floor_seconds(costs, most) / taken,
            "as_graph": count > 1,
        }
    except Exception as error:  # whatever a kernel fails with belongs into its row
        entry["failed"] = f"{type(error).__name__}: {error}"
    note("kernels", entry)


def _median_seconds(part: Part, seconds: float) -> float:
    """The median time of a part done once; it has run before."""
    part(1)
    times, rounds = schedule(part, seconds)
    return median(seconds_of(part, times) for _ in range(rounds)) / times


def floors(place: Place, note: Note) -> None:
    """The step of each net against its floor, by batch size and precision, with the nodes of its graph.

    A floor is made of the ceiling of the step's own precision.
    """
    stop = time.monotonic() + place.seconds
    batches = (4, 8) if place.tiny else (4096, 65536, 32)
    precisions = PRECISIONS if place.device != "cpu" else PRECISIONS[:1]
    rows = list(product(batches, precisions, place.nets, ("sgd", "adam")))
    note("floors-planned", len(rows))
    rates = _measure_ceilings(place, note)
    for batch, precision, net, optimizer in rows:
        if time.monotonic() > stop:
            return
        entry: dict[str, Any] = {"net": net, "optimizer": optimizer, "batch": batch, "precision": precision}
        if is_known(place, "floors", entry):
            continue
        try:
            if precision not in rates:
                raise RuntimeError(f"there is no measured ceiling of {precision} products")
            entry |= _floor(place, entry, Ceilings(rates[precision], rates["copy"]))
        except Exception as error:  # whatever a net fails with belongs into its row
            entry["failed"] = f"{type(error).__name__}: {error}"
        note("floors", entry)


def _floor(place: Place, entry: dict[str, Any], most: Ceilings) -> dict[str, Any]:
    widths, rows, batch = widths_of(entry["net"]), 64 if place.tiny else 65536, entry["batch"]
    X = kernels.Numbers(place.device, "float32").normal((rows, widths[0]))
    T = gpubp.to_device(np.random.default_rng(0).integers(widths[-1], size=rows), place.device)
    cell = Cell(widths, entry["optimizer"], place.device, batch, precision=entry["precision"])
    step = Step(cell, X, T)
    with step.network.device.activate():
        with counted_nodes() as counts:
            step.whole(max(2, min(42, rows // batch)))  # one as ever, then graphs of 32, 8 and 1
        taken = _median_seconds(step.whole, 0.01 if place.tiny else 0.5)
        step.loss()
        nodes, how = nodes_of(step, counts)
    floor = floor_seconds(step.costs, most)
    return {
        "step_seconds": taken,
        "floor_seconds": floor,
        "times_floor": taken / floor,
        "samples_per_second": batch / taken,
        "nodes": nodes,
        "nodes_counted": how,
        "seconds_per_node": taken / nodes if nodes else None,
        "captured": step.plan.why_not_captured is None,
        "why": step.plan.why_not_captured,
    }


@contextmanager
def counted_nodes() -> Iterator[list[int]]:
    """How many nodes each CUDA graph has that is captured meanwhile; -1 where the driver does not tell."""
    counts: list[int] = []
    captured = cuda.captured

    def noted(stream: Any, work: Callable[[], None]) -> Any:
        def counting() -> None:
            work()
            counts.append(nodes_so_far(stream))

        return captured(stream, counting)

    with mock.patch.object(cuda, "captured", noted):
        yield counts


def nodes_so_far(stream: Any) -> int:
    """The nodes of the graph that a stream is being captured to: CuPy lets go of it when the capture has ended."""
    if hasattr(stream, "captured"):  # of the stand-in for CuPy
        return len(stream.captured)
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        status, number = ctypes.c_int(), ctypes.c_uint64()
        graph, count = ctypes.c_void_p(), ctypes.c_size_t()
        pointers = [ctypes.byref(place) for place in (status, number, graph)]
        if driver.cuStreamGetCaptureInfo_v2(ctypes.c_void_p(stream.ptr), *pointers, None, None):
            return -1
        if driver.cuGraphGetNodes(graph, None, ctypes.byref(count)):
            return -1
    except (OSError, AttributeError):
        return -1
    return count.value


def nodes_of(step: Step, counts: list[int]) -> tuple[int | None, str]:
    """How many nodes of a CUDA graph a step is, and how that is known.

    Args:
        step: A step, captured or not.
        counts: Of the graphs that were captured for it: that of the gradients, with which the capture is tried, that
            of one whole step, and longer ones.
    """
    if step.plan.why_not_captured is None and len(counts) > 1 and counts[1] > 0:
        return counts[1], "in the graph of one step"
    return step.count_launches() or None, "launches of a step"


def race_first(place: Place, note: Note) -> None:
    """The most telling cells: what the speed of a small and of a large step is judged by."""
    nets, batches = (place.nets, (4, 8)) if place.tiny else (NETS[:3], RACE_BATCHES)
    cases = _cases(place, nets, batches)
    _race(place, note, "race-first", cases, left_out=("torch-compile-max",), seconds=0.06)


def race_first_tf32(place: Place, note: Note) -> None:
    """One cell in TF32."""
    _race(place, note, "race-first-tf32", _cases(place, (LARGE,), (4096,), ("adam",), "tf32"), left_out=COMPILED)


def race_first_max(place: Place, note: Note) -> None:
    """One cell against torch.compile at its best, which tunes for a minute a case."""
    _race(place, note, "race-first-max", _cases(place, (LARGE,), (4096,), ("adam",)), names=MAX_PEERS)


def race_rest(place: Place, note: Note) -> None:
    """The largest net; without torch.compile, which would take the time of all others."""
    nets, batches = (place.nets[:1], (2,)) if place.tiny else ((LARGEST,), RACE_BATCHES)
    _race(place, note, "race-rest", _cases(place, nets, batches), left_out=COMPILED, seconds=0.06, rounds=2)


def race_tf32(place: Place, note: Note) -> None:
    """All nets in TF32, those in which products count before the others."""
    cases = _cases(place, (LARGE, LARGEST, NARROW, "784-128-10"), RACE_BATCHES, precision="tf32")
    _race(place, note, "race-tf32", cases, left_out=COMPILED, seconds=0.06, rounds=2)


def race_max(place: Place, note: Note) -> None:
    """The other cells of torch.compile at its best."""
    _race(place, note, "race-max", _cases(place, (LARGE,), (256, 65536), ("adam",)), names=MAX_PEERS)


def _cases(
    place: Place,
    nets: tuple[str, ...],
    batches: tuple[int, ...],
    optimizers: tuple[str, ...] = ("sgd", "adam"),
    precision: str = "float32",
) -> tuple[Case, ...]:
    return tuple(
        Case(net, optimizer, batch, "step", place.device, precision)
        for net in nets
        for batch, optimizer in product(batches, optimizers)
    )


def _race(
    place: Place,
    note: Note,
    key: str,
    cases: tuple[Case, ...],
    *,
    names: tuple[str, ...] | None = None,
    left_out: tuple[str, ...] = (),
    seconds: float = 0.1,
    rounds: int = 3,
) -> None:
    """Race in the cases that an earlier run has not done; what is noted holds those of both."""
    if place.tiny:
        names = ("gpubp", "numpy-naive")
        seconds, rounds = 0.002, 2
    earlier = place.known.get(key, {})
    done = {tuple(cell[name] for name in IDENTITY) for cell in earlier.get("cells", ())}
    missing = tuple(case for case in cases if tuple(getattr(case, name) for name in IDENTITY) not in done)
    if not missing:
        return
    peers = tuple(
        peer
        for peer in all_peers()
        if (peer.name in names if names is not None else peer.name not in left_out) and _is_of_use(peer, place)
    )
    data_rows = 64 if place.tiny else 65536
    device = gpubp.resolve_device(place.device)
    settings = race.Settings(
        cases=missing,
        peers=peers,
        device=place.device,
        threads=1 if place.tiny else 4,
        seconds=seconds,
        rounds=rounds,
        data_rows=data_rows,
        timeout=min(120.0, place.seconds),
        budget=place.seconds,
        ceilings_seconds=0.01 if place.tiny else 0.5,
        kept_out=kept_out(missing, [peer.name for peer in peers], data_rows, free_bytes(device))
        if device.is_cuda
        else {},
    )
    began = time.perf_counter()

    def tell(count: int, words: str) -> None:
        print(f"{time.perf_counter() - began:6.1f} s: {count} of {len(missing)} cells, {words}", flush=True)

    def save(content: dict[str, Any]) -> None:
        cells = [*earlier.get("cells", ()), *content["cells"]]
        peers_of_both = {**earlier.get("peers", {}), **content["peers"]}
        note(key, {**content, "cells": cells, "cells_planned": len(cases), "peers": peers_of_both})

    race.Race(settings, f"python benchmarks/on_a_gpu.py: {key}", save, tell).run()


def needed_bytes(case: Case, data_rows: int) -> int:
    """About what a peer takes on a GPU for a case: float32 arrays, and what its libraries take.

    The data set and a minibatch of it; for each layer what goes in and comes out, and its gradient; the parameters with
    their gradients, Adam's two moments, and as much again while they are made.
    """
    examples = max(case.batch, data_rows) + case.batch
    activations = 3 * case.batch * sum(case.widths[1:])
    parameters = sum((n_in + 1) * n_out for n_in, n_out in pairwise(case.widths))
    return CONTEXT_BYTES + 4 * (examples * case.widths[0] + activations + 6 * parameters)


def kept_out(cases: Sequence[Case], names: Sequence[str], data_rows: int, free: int) -> dict[Case, dict[str, str]]:
    """Who is to sit out a case because not all peers have room on the GPU at the same time, and why.

    gpubp stays, and the peers that tell most. Where not even two have room, nobody runs the case.

    Args:
        cases: The cases.
        names: The peers.
        data_rows: Examples in the data set.
        free: Bytes that are free on the GPU.
    """
    order = sorted(names, key=lambda name: TELLING.index(name) if name in TELLING else len(TELLING))
    out: dict[Case, dict[str, str]] = {}
    for case in cases:
        needed = needed_bytes(case, data_rows)
        count = int(USED_SHARE * free // needed)
        if count < len(order):
            why = (
                f"{needed / 2**30:.0f} GiB for each of {len(order)} peers, and {free / 2**30:.0f} GiB are free: "
                f"room for {count}"
            )
            out[case] = dict.fromkeys(order[count:] if count > 1 else order, why)
    return out


def _is_of_use(peer: Any, place: Place) -> bool:
    """Whether a peer can take part on the device at all; those for the CPU alone need not be started."""
    if place.device == "cpu":
        return True
    cpu_alone = peer.name in ("numpy-naive", "sklearn", "thinc", "gpubp-numpy")
    return not cpu_alone


def one_step(place: Place, note: Note) -> None:
    """A few steps, launch by launch, for a profiler to look at."""
    net, batch = (place.nets[0], 8) if place.tiny else (LARGE, 4096)
    widths = widths_of(net)
    X = kernels.Numbers(place.device, "float32").normal((2 * batch, widths[0]))
    T = gpubp.to_device(np.random.default_rng(0).integers(widths[-1], size=2 * batch), place.device)
    step = Step(Cell(widths, "adam", place.device, batch), X, T)
    with step.network.device.activate():
        for _ in range(3):
            step.launch_by_launch()
    note("one-step", {"launches": step.count_launches()})


def ride(place: Place, note: Note) -> None:
    """Whether plain SGD would pay inside the product that makes the weights' gradient.

    Held against each other: all products ``dL_dW = X.mT @ dL_dZ`` of a net and the SGD kernel over all parameters, as
    a step has them, and products that write ``W = W - rate * X.mT @ dL_dZ`` and the SGD kernel over the biases.
    """
    stop = time.monotonic() + place.seconds
    batches = (4, 8) if place.tiny else (32, 4096, 65536)
    rows = list(product(batches, PRECISIONS, place.nets))
    note("ride-planned", len(rows))
    for batch, precision, net in rows:
        if time.monotonic() > stop:
            return
        entry: dict[str, Any] = {"net": net, "batch": batch, "precision": precision}
        if is_known(place, "ride", entry):
            continue
        try:
            entry |= _ride(place, net, batch, precision)
        except Exception as error:  # whatever a net fails with belongs into its row
            entry["failed"] = f"{type(error).__name__}: {error}"
        note("ride", entry)


def _ride(place: Place, net: str, batch: int, precision: str) -> dict[str, Any]:
    if why := cublas.why_no_handle():
        raise RuntimeError(f"there is no cuBLAS of ours: {why}")
    network = Cell(widths_of(net), "sgd", place.device, batch, precision=precision).network()
    theta, dL_dtheta, biases = network.theta, network.dL_dtheta, slice(network.weights_size, None)
    random = kernels.Numbers(place.device, "float32")
    names = [name for name in network.parameters if name.endswith(".W")]
    shapes = [network.parameters[name].shape for name in names]
    factors = [(random.normal((batch, n_in)), random.normal((batch, n_out))) for n_in, n_out in shapes]
    rate = RIDE_RATE / batch**0.5  # the gradients grow so

    def products(outs: Mapping[str, Any], alpha: float, beta: float) -> None:
        for name, (X, dL_dZ) in zip(names, factors, strict=True):
            matmul(X.mT, dL_dZ, outs[name], precision, alpha=alpha, beta=beta)

    whole, of_biases = (
        kernels.launched(gpubp.SGD(rate), theta[part], dL_dtheta[part]) for part in (slice(None), biases)
    )
    gradients = network.named_gradients(dL_dtheta)

    def apart() -> None:
        products(gradients, 1.0, 0.0)
        whole()

    def riding() -> None:
        products(network.parameters, -rate, 1.0)
        of_biases()

    with network.device.activate():
        start, results = theta.copy(), []
        dL_dtheta.fill(0)
        for way in (apart, riding):
            theta[...] = start
            way()
            results.append(theta.copy())
        changed, differs = (gpubp.to_host(abs(results[0] - other).max()) for other in (start, results[1]))
        seconds = []
        for way in (apart, riding):
            part, count = kernels.Kernel(network.device, (way,), list).timed()
            seconds.append(_median_seconds(part, 0.005 if place.tiny else 0.1) / count)
    return {
        "apart_seconds": seconds[0],
        "riding_seconds": seconds[1],
        "times": seconds[0] / seconds[1],
        "agrees": bool(differs < 1e-3 * changed),
    }


JOBS: dict[str, Callable[[Place, Note], None]] = {
    "smoke": smoke,
    "race-first": race_first,
    "race-first-tf32": race_first_tf32,
    "race-first-max": race_first_max,
    "kernels": profile,
    "floors": floors,
    "ride": ride,
    "race-rest": race_rest,
    "race-tf32": race_tf32,
    "race-max": race_max,
    "one-step": one_step,
}
LISTS = ("smoke", "kernels", "floors", "ride")
"""What is noted row by row."""


def do(job: str, device: str, tiny: bool, seconds: float, path: Path) -> None:
    """Do a job, and write what it notes to a JSON file each time.

    Args:
        job: A key of `JOBS`.
        device: See `Place`.
        tiny: Likewise.
        seconds: Likewise.
        path: The file. What it holds is what an earlier run has noted, and stays.
    """
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = {name: list(what) if name in LISTS else what for name, what in known.items()}

    def note(name: str, what: Any) -> None:
        if name in LISTS:
            kept.setdefault(name, []).append(what)
            print(f"{name}: {what}", flush=True)
        else:
            kept[name] = what
        results.Results(kept).save(path)

    JOBS[job](Place(device, tiny, seconds, known), note)
