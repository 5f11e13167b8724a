"""What `benchmarks.on_a_gpu` runs on: versions, what is missing, and the answers to some questions about the device."""

from __future__ import annotations

import datetime
import functools
import importlib.util
import sys
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np

import gpubp
from gpubp import cublas
from gpubp.ops import gemm

from . import kernels, machine
from .timing import median_seconds

WITHOUT = {
    "cupy": "no GPU figure at all",
    "nvmath": "cuBLAS is called by ctypes",
    "scipy": "no GELU in the references",
    "numba": "references in NumPy alone",
    "platformdirs": "references in NumPy alone",
    "threadpoolctl": "references in NumPy alone, threads of peers untold",
    "torch": "no such peer",
    "jax": "no such peer",
    "pytest": "no tests",
    "xdist": "tests in one process",
    "hypothesis": "tests that use it can't be collected",
    "typer": "no command line",
    "rich": "no progress bar",
    "safetensors": "no model files",
}
"""Modules that may be missing, and what is then."""
BATCHES = (32, 4096)
"""Examples in the products that are asked about."""


def facts(device: str, note: Callable[[str, Any], None]) -> None:
    """Versions, what is missing, and on a CUDA device the answers to some questions, each noted at once."""
    missing = [f"{name} ({words})" for name, words in WITHOUT.items() if not is_there(name)]
    found = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        **machine.facts(),
        "not installed": ", ".join(missing) or "nothing that is of use",
    }
    note("facts", found)
    for question, answer in QUESTIONS.items() if device != "cpu" else ():
        try:
            there = gpubp.resolve_device(device)
            with there.activate():
                found[question] = answer(there)
        except Exception as error:  # that is an answer, too
            found[question] = f"FAILED: {type(error).__name__}: {error}"
        note("facts", found)


def is_there(name: str) -> bool:
    """Whether a module can be imported, by what tells it without importing it."""
    return sys.modules.get(name) is not None or importlib.util.find_spec(name) is not None


def _launch_cost(device: gpubp.Device) -> str:
    name = "does_nothing"
    module = device.module.RawModule(code=f"__global__ void {name}() {{}}", name_expressions=(name,))
    function = module.get_function(name)
    kernel = kernels.Kernel(device, (lambda: function((1, 1, 1), (32, 1, 1), ()),) * 100, list)
    part, count = kernel.timed()
    in_stream, in_graph = median_seconds(kernel.run, 0.1), median_seconds(part, 0.1) / count
    return f"{1e6 * in_stream:.2f} us in a stream, {1e6 * in_graph:.2f} us as a node of a graph"


def _cupys_products(device: gpubp.Device) -> str:
    A, out = (device.module.ones((64, 64), np.float32) for _ in range(2))
    kernel = kernels.Kernel(device, (lambda: device.module.matmul(A, A, out=out),), list)
    _, count = kernel.timed()
    return "captured" if count > 1 else "refused"


def _product_nodes(device: gpubp.Device) -> str:
    words = []
    for batch, precision in product(BATCHES, ("float32", "tf32")):
        random = kernels.Numbers(str(device), "float32")
        X, W, Y = (random.normal(shape) for shape in ((batch, 784), (784, 512), (batch, 512)))
        call = functools.partial(gemm.matmul, X, W, Y, precision=precision)
        part, count = kernels.Kernel(device, (call,) * 20, list).timed()
        words.append(f"({batch}, 784) by (784, 512) in {precision} {1e6 * median_seconds(part, 0.05) / count:.1f} us")
    return ", ".join(words)


QUESTIONS: dict[str, Callable[[gpubp.Device], str]] = {
    "cuBLAS": lambda _: cublas.why_no_handle() or cublas.version(),
    "an empty kernel": _launch_cost,
    "CuPy's own products in a capture": _cupys_products,
    "products as nodes of a graph": _product_nodes,
}
