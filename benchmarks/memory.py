"""How much memory a training takes beyond its data, measured in this process: run it in a fresh one.

``python -m benchmarks.memory '{"widths": [784, 128, 10], ...}'`` prints one JSON object; the keys are the arguments
of `measure`. On the CPU the peak is that of the resident set (or of what Python and NumPy allocate, as `tracemalloc`
counts it); on a GPU it is what CuPy's memory pool has taken from the device.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np

import gpubp
from gpubp.ops import gemm

SHARED_WIDTH = 208
"""Of factors whose product is just large enough to be shared between threads."""
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure(
    widths: list[int], optimizer: str, batch: int, rows: int, dtype: str, device: str, through: str, counter: str
) -> dict[str, Any]:
    """Train two epochs, and say how far memory rose above the level with modules and data set in place.

    Two, as an epoch begins with a copy of the optimizer's state, and in the first one there is none yet.

    Args:
        widths: Of a sigmoid network with softmax cross-entropy.
        optimizer: Its name.
        batch: Examples in a step.
        rows: Examples in the data set.
        dtype: ``"float32"`` or ``"float64"``.
        device: ``"cpu"`` or ``"cuda"``.
        through: ``"steps"`` for `StepPlan.steps` and nothing around it, ``"fit"`` for `gpubp.fit`.
        counter: ``"resident"`` or ``"traced"``; a GPU has its own.

    Returns:
        ``peak_bytes``, and what is planned: ``plan_bytes`` (`StepPlan.bytes_held`), ``parameter_bytes``,
        ``gradient_bytes``, ``state_bytes``, and their sum ``planned_bytes``; then what `gpubp.fit` takes beside its
        steps: ``undo_bytes``, the copy of weights and state that an epoch can be undone with, and ``order_bytes``, the
        shuffled indices of an epoch.
    """
    rng = np.random.default_rng(0)
    X = gpubp.to_device(rng.standard_normal((rows, widths[0]), dtype=np.dtype(dtype)), device)
    T = gpubp.to_device(rng.integers(widths[-1], size=rows), device)
    order = rng.permutation(rows)[: rows // batch * batch].astype(np.int64)
    index = gpubp.to_device(order.reshape(-1, batch), device)
    start_libraries(X, optimizer)
    peak = {"resident": ResidentPeak, "traced": TracedPeak}[counter]() if device == "cpu" else PoolPeak()
    network = gpubp.mlp(widths, activation="sigmoid", dtype=dtype, device=device, rng=0)
    updates = gpubp.optimizer_by_name(optimizer)
    if through == "fit":
        held = _PlanBytes()
        gpubp.fit(network, X, T, optimizer=updates, epochs=2, batch_size=batch, callbacks=[held], progress=False)
        plan_bytes = held.bytes
    else:
        network.plan = gpubp.StepPlan(network, batch)
        for _ in range(2):
            network.plan.steps(X, T, None, index, updates)
        plan_bytes = network.plan.bytes_held
    peak_bytes = peak.bytes()
    state = sum(int(array.nbytes) for array in updates.state.values())
    theta_bytes = int(network.theta.nbytes)
    planned = {
        "plan_bytes": plan_bytes,
        "parameter_bytes": theta_bytes,
        "gradient_bytes": int(network.dL_dtheta.nbytes),
        "state_bytes": state,
    }
    beside = {"undo_bytes": theta_bytes + state, "order_bytes": 8 * rows} if through == "fit" else {}
    return {"peak_bytes": peak_bytes, **planned, "planned_bytes": sum(planned.values()), **beside}


class _PlanBytes(gpubp.Callback):
    """What the plan holds at the end of an epoch; at the end of the training it lets go of some of it."""

    def __init__(self) -> None:
        self.bytes = 0

    def on_epoch_end(self, network: gpubp.Network, measured: Any) -> bool:
        self.bytes = network.plan.bytes_held
        return False


def start_libraries(X: Any, optimizer: str) -> None:
    """Let the BLAS take the buffers that it packs factors into, and kernels be compiled and loaded.

    They are there once, however many networks are trained, and none grows with a network.
    """
    xp, device = gpubp.array_module(X), "cpu" if isinstance(X, np.ndarray) else "cuda"
    A = xp.ones((1024, 1024), dtype=X.dtype)
    gemm.matmul(A, A, xp.empty_like(A))
    # The threads of the CPU kernels hold on to the arrays of their last work up to the next one. Let these be small:
    # what is given back while memory is measured would make room that nobody counts.
    last = xp.ones((SHARED_WIDTH, SHARED_WIDTH), dtype=X.dtype)
    gemm.matmul(last, last, xp.empty_like(last))
    small = gpubp.mlp([4, 3, 2], dtype=str(X.dtype), device=device)
    gpubp.fit(
        small,
        A[:8, :4],
        [0, 1] * 4,
        optimizer=gpubp.optimizer_by_name(optimizer),
        epochs=2,
        batch_size=4,
        progress=False,
    )


class ResidentPeak:
    """The peak of the resident set above its size now.

    Linux tells the peak of this program alone and resets it on request; `ru_maxrss` also covers what the process was
    before it became this program, a copy of its parent, and serves only where there is nothing better.
    """

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # not allowed, or not Linux: an earlier, higher peak then counts too
            CLEAR.write_text("5", encoding="ascii")
        self._start = self._read("VmRSS")

    def bytes(self) -> int:
        """The peak so far."""
        return self._read("VmHWM") - self._start

    @staticmethod
    def _read(name: str) -> int:
        if STATUS.exists():
            found = re.search(rf"^{name}:\s*(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
            if found:
                return int(found[1]) * 1024
        import resource

        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return highest if sys.platform == "darwin" else highest * 1024


class TracedPeak:
    """The peak of what Python objects and NumPy arrays take, from now on."""

    def __init__(self) -> None:
        tracemalloc.start()

    def bytes(self) -> int:
        """The peak so far."""
        return tracemalloc.get_traced_memory()[1]


class PoolPeak:
    """What CuPy's memory pool takes from the device beyond what it has now; it gives nothing back by itself."""

    def __init__(self) -> None:
        import cupy

        self._pool = cupy.get_default_memory_pool()
        self._pool.free_all_blocks()
        self._start = self._pool.total_bytes()

    def bytes(self) -> int:
        """The peak so far."""
        return int(self._pool.total_bytes() - self._start)


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
