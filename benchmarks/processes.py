"""The controller's side of the workers: start, ask, wait no longer than allowed, end."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any

from .peers import Peer

CODE = (
    "import json, sys; said = json.loads(sys.argv[1]); sys.path[:] = said['path']; "
    "from gpubp.benchmarking import benchmarks_module; "
    "benchmarks_module('worker').main(said['module'], said['name'], said['device'])"
)
"""What a worker's Python runs: the controller's own import path, then `worker.main`."""
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "PJRT_NPROC")
"""PJRT_NPROC is how XLA's thread pool on the CPU is limited."""


class WorkerError(Exception):
    """A worker has failed; the text says how, in one line."""


class LostWorkerError(WorkerError):
    """A worker that ended, or that had to be ended."""


def worker_environment(peer: Peer, threads: int, device: str) -> dict[str, str]:
    """The environment of a peer's process.

    Args:
        peer: Whose own variables come last.
        threads: How many threads each library may use.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``: a worker sees one GPU at most.
    """
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    environment.setdefault("KMP_BLOCKTIME", "40")  # ms that Intel's OpenMP spins after its work: less than our pause
    environment["PYTHONWARNINGS"] = "ignore"  # a peer's warnings are not this program's
    if device == "cpu":
        environment.update(CUDA_VISIBLE_DEVICES="", JAX_PLATFORMS="cpu")
    else:
        index = int(device.partition(":")[2] or 0)
        visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        environment["CUDA_VISIBLE_DEVICES"] = visible[index] if index < len(visible) else str(index)
        environment["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # it would leave the others a quarter of the GPU
    return {**environment, **peer.environment}


class WorkerProcess:
    """The process of one peer.

    Args:
        peer: The peer; its module must be importable by name.
        threads: See `worker_environment`.
        device: Likewise.
    """

    def __init__(self, peer: Peer, threads: int, device: str) -> None:
        self.peer = peer
        said = {
            "path": [os.path.abspath(entry) for entry in sys.path],
            "module": type(peer).__module__,
            "name": peer.name,
            "device": device.partition(":")[0],
        }
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
        self._process = subprocess.Popen(
            [sys.executable, "-c", CODE, json.dumps(said)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=worker_environment(peer, threads, device),
            start_new_session=True,  # so that Ctrl-C does not reach it, and so that its children end with it
        )
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def send(self, do: str, **arguments: Any) -> None:
        """Give a command; `receive` takes its answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: `receive` says how
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()

    def receive(self, seconds: float) -> dict[str, Any]:
        """The answer to the command given before.

        Raises:
            WorkerError: The worker answers that the command failed.
            LostWorkerError: It has ended, or does not answer in so many seconds; its process is gone.
        """
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            self.close()
            raise LostWorkerError(f"no answer within {seconds:g} s") from None
        if line is None:
            raise LostWorkerError(self._how_it_ended())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(" ".join(answer["error"].split()))
        return answer

    def ask(self, do: str, seconds: float, /, **arguments: Any) -> dict[str, Any]:
        """Give a command and wait for its answer."""
        self.send(do, **arguments)
        return self.receive(seconds)

    def close(self) -> None:
        """End the process and its children, whatever they are doing."""
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was never sent can't be flushed
                    pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def _how_it_ended(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        said = [line for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        how = f"ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        self.close()
        return how + (f": {said[-1].strip()}" if said else "")
