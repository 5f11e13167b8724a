"""What a measured figure depends on: processor, BLAS and its threads, versions, the GPU."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import numpy as np

import gpubp

THREAD_SETTINGS = re.compile(r"(OPENBLAS|OMP|MKL|BLIS|GOTO)_\w+")


def facts() -> dict[str, str]:
    """Name to fact, in the order to print them."""
    return {
        "CPU": _processor(),
        "cores": f"{_usable_cores()} usable of {os.cpu_count()}",
        "BLAS": _blas(),
        "environment": ", ".join(
            f"{name}={value}" for name, value in sorted(os.environ.items()) if THREAD_SETTINGS.fullmatch(name)
        )
        or "no BLAS or thread setting",
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "NumPy": np.__version__,
        "gpubp": _version("gpubp"),
        "GPU": _gpu(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _blas() -> str:
    try:
        import threadpoolctl
    except ImportError:
        found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return f"{found['name']} {found['version']} (threadpoolctl, not installed, would tell the threads)"
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    return "; ".join(
        f"{pool['internal_api']} {pool['version']}, {pool['num_threads']} threads, "
        f"{pool.get('architecture', 'unknown')} kernels"
        for pool in pools
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "a checkout, not installed"


def _gpu() -> str:
    if reason := gpubp.why_no_cuda():
        return f"none: {reason}"
    import cupy

    runtime = cupy.cuda.runtime
    name = runtime.getDeviceProperties(0)["name"].decode()
    versions = f"CUDA runtime {runtime.runtimeGetVersion()}, driver {runtime.driverGetVersion()}"
    return f"{name}, CuPy {cupy.__version__}, {versions}"
