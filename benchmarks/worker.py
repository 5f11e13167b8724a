"""The process of one peer: it takes commands as JSON lines on standard input and answers each with one.

A process for each, because the thread pools of several BLAS and OpenMP libraries in one process wait for each other
by spinning, and falsify every figure. It ends when its standard input does, whatever it is doing: no process is left
behind, however the controller ends.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import queue
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from . import agreement
from .cases import Case, DataSet, Stream
from .peers import Peer, Run

BLOCKS = 5
"""A turn is timed in about so many blocks, whose median counts: what disturbs one of them disturbs no figure."""
WARM_UP = 0.2
"""Untimed steps before a turn, as a share of its time: threads wake up, caches fill."""
LONG_STEP = 0.25
"""Seconds: steps as long as this need no warming up."""
MOST_INDICES = 2**24
LOST = re.compile(
    r"illegal (memory access|address|instruction)|misaligned address|launch failure|device is lost", re.IGNORECASE
)
"""How CUDA, and whoever passes its words on, names the errors after which a process can't use the device any more."""


class Worker:
    """What a peer's process knows; each method but `__init__` is a command, with its answer."""

    def __init__(self, peer: Peer, device: str) -> None:
        self.peer, self.device = peer, device
        self.case: Case | None = None
        self.data_set: tuple[str, DataSet] | None = None
        self.run: Run | None = None
        self.stream: Stream | None = None
        self.step_seconds = 0.0

    def start(self) -> dict[str, Any]:
        """Why the peer is absent; or what is to be known about it."""
        if reason := self.peer.absent(self.device):
            return {"absent": reason}
        set_threads()
        return {"facts": {**self.peer.facts(), **thread_pools()}}

    def prepare(self, case: dict[str, Any], data: str) -> dict[str, Any]:
        """Get ready for a case; or say why the peer can't do it."""
        self.release()
        self.case = Case(**case)
        if reason := self.peer.supports(self.case):
            return {"unsupported": reason}
        if self.data_set is None or self.data_set[0] != data:
            self.data_set = None  # not two at a time
            self.data_set = data, DataSet.read(Path(data))
        part = self.data_set[1].of(self.case)
        self.run, self.stream = self.peer.prepare(self.case, part), Stream(part, self.case.batch)
        self.step_seconds = 0.0
        return {}

    def check(self, results: str) -> dict[str, Any]:
        """Do the work three times and write what it has made as ``.npz``."""
        run, stream = self._ready()
        chunk, run.chunk = run.chunk, agreement.STEPS
        run.steps(stream.take(agreement.STEPS))
        run.chunk = chunk
        np.savez(results, **{f"w{k}": array for k, array in enumerate(run.results())})
        return {"facts": {**self.peer.facts(), **thread_pools()}}

    def measure(self, seconds: float) -> dict[str, Any]:
        """Time the work for about so many seconds: the median seconds per step of some blocks, after a warm-up."""
        run, stream = self._ready()
        if not self.step_seconds:  # the first calls compile, fault pages in, size the pools
            self._block(run, stream, run.chunk)
            self.step_seconds = self._block(run, stream, run.chunk)
        if self.step_seconds < LONG_STEP:
            self.step_seconds = self._block(run, stream, self._steps(WARM_UP * seconds))
        steps, blocks, spent = self._steps(seconds / BLOCKS), [], 0.0
        while spent < seconds:
            blocks.append(self._block(run, stream, steps))
            spent += blocks[-1] * steps
        self.step_seconds = median(blocks)
        return {"step_seconds": self.step_seconds, "blocks": len(blocks), "steps": steps * len(blocks)}

    def release(self) -> dict[str, Any]:
        """Give back the memory of a case, but for the data set, which the next case may need again."""
        self.run = self.stream = None
        if self.device != "cpu":
            give_back_memory()
        return {}

    def machine(self, ceilings_seconds: float, precision: str = "float32") -> dict[str, Any]:
        """The machine's facts and ceilings, as seen with the threads that the peers have."""
        from . import ceilings, machine

        measured = ceilings.measure(self.device, "float32", ceilings_seconds, precision)
        return {"machine": machine.facts(), "ceilings": vars(measured)}

    def costs(self, cases: list[dict[str, Any]]) -> dict[str, Any]:
        """What each case needs at least, as gpubp counts it: for each case its operations as [name, flops, bytes]."""
        import gpubp

        answers, networks = [], {}
        for case in (Case(**settings) for settings in cases):
            if case.net not in networks:
                networks[case.net] = gpubp.mlp(case.widths, activation="sigmoid", device="cpu", rng=0)
            step = case.work == "step"
            optimizer = gpubp.optimizer_by_name(case.optimizer) if step else None
            costs = networks[case.net].costs(case.batch, optimizer, gather=step)
            if case.work == "forward":
                costs = [cost for cost in costs if "forward" in cost.name]
            answers.append([[cost.name, cost.flops, cost.bytes] for cost in costs])
        return {"costs": answers}

    def _ready(self) -> tuple[Run, Stream]:
        if self.run is None or self.stream is None:
            raise RuntimeError("no case is prepared")
        return self.run, self.stream

    def _steps(self, seconds: float) -> int:
        """How many steps take about so long: a multiple of the run's chunk."""
        run, stream = self._ready()
        most = max(1, MOST_INDICES // stream.batch)
        steps = min(max(1, round(seconds / max(self.step_seconds, 1e-7))), most)
        return -(-steps // run.chunk) * run.chunk

    def _block(self, run: Run, stream: Stream, steps: int) -> float:
        """Seconds per step; the row numbers are taken before the clock starts."""
        index = stream.take(steps)
        began = time.perf_counter()
        run.steps(index)
        return (time.perf_counter() - began) / steps


def give_back_memory() -> None:
    """Let go of what the libraries of this process keep of a GPU's memory for later: other processes need it now."""
    compiler, torch, cupy = (sys.modules.get(name) for name in ("torch._dynamo", "torch", "cupy"))
    if compiler is not None and hasattr(compiler, "reset"):
        compiler.reset()  # compiled functions hold their graphs, and these their memory
    gc.collect()  # arrays that a cycle holds
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if cupy is not None:
        cupy.get_default_memory_pool().free_all_blocks()
        cupy.get_default_pinned_memory_pool().free_all_blocks()


def set_threads() -> None:
    """PyTorch takes its number of threads from a call, the others from the environment that the controller made."""
    torch = sys.modules.get("torch")
    if torch is not None and "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def thread_pools() -> dict[str, str]:
    """The thread pools that the libraries of this process really have."""
    try:
        import threadpoolctl
    except ImportError:
        return {"pools": "threads unknown (threadpoolctl, not installed, would tell)"}
    words = []
    for pool in threadpoolctl.threadpool_info():
        version = f" {pool['version']}" if pool.get("version") else ""
        kernels = f", {pool['architecture']} kernels" if pool.get("architecture") else ""
        words.append(f"{pool['internal_api']}{version}, {pool['num_threads']} threads{kernels}")
    return {"pools": "; ".join(sorted(set(words))) or "no thread pool that threadpoolctl knows"}


def commands() -> Iterator[dict[str, Any]]:
    """The commands, one for each line of standard input; its end is the end of this process."""
    waiting: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            waiting.put(line)
        os._exit(0)  # also out of the middle of a step

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(waiting.get())


def main(module: str, name: str, device: str) -> None:
    """Serve the peer of this name in a module of peers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the controller's; it ends this process
    # What libraries print must not get among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    worker: Worker | None = None
    for command in commands():
        do = command.pop("do")
        try:
            if worker is None:
                (peer,) = (peer for peer in importlib.import_module(module).PEERS if peer.name == name)
                worker = Worker(peer, device)
            answer = getattr(worker, do)(**command)
        except Exception as error:  # whatever a peer fails with belongs into its cell
            answer = {"error": f"{type(error).__name__}: {error}"}
            if LOST.search(answer["error"]):  # for this process: the next case gets a new one
                os.write(2, " ".join(answer["error"].split()).encode())
                os._exit(1)
        print(json.dumps(answer), file=answers, flush=True)
