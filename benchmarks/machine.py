"""What a measured figure depends on: processor, BLAS and its threads, versions, the GPU."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import gpubp
from gpubp import cpu

CORES = Path("/sys/devices/system/cpu")
THREAD_SETTINGS = re.compile(r"(OPENBLAS|OMP|MKL|BLIS|GOTO|NUMBA|GPUBP)_\w+")


def facts() -> dict[str, str]:
    """Name to fact, in the order to print them."""
    return {
        "CPU": _processor(),
        "cores": f"{usable_cores()} usable of {os.cpu_count()}",
        **_blas(),
        "CPU kernels": _cpu_kernels(),
        "environment": ", ".join(
            f"{name}={value}" for name, value in sorted(os.environ.items()) if THREAD_SETTINGS.fullmatch(name)
        )
        or "no BLAS or thread setting",
        "Python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "NumPy": np.__version__,
        "SciPy": _version("scipy"),
        "gpubp": _gpubp(),
        "GPU": _gpu(),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def last_level_cache_bytes() -> int:
    """Bytes in the last-level caches of the usable cores, together; 0 where the system does not tell."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    caches: dict[int, dict[str, int]] = {}  # level, which cores share it, bytes
    for core in cores:
        for cache in (CORES / f"cpu{core}" / "cache").glob("index*"):
            try:
                level, shared, size = (
                    (cache / name).read_text(encoding="ascii").strip() for name in ("level", "shared_cpu_list", "size")
                )
            except OSError:
                continue
            if found := re.fullmatch(r"(\d+)([KMG]?)", size):
                scale = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[found[2]]
                caches.setdefault(int(level), {})[shared] = int(found[1]) * scale
    return sum(caches[max(caches)].values()) if caches else 0


def _blas() -> dict[str, str]:
    """The BLAS of NumPy, and that of SciPy, which the CPU kernels call; wheels bring one each."""
    try:
        import threadpoolctl
    except ImportError:
        found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        words = f"{found['name']} {found['version']} (threadpoolctl, not installed, would tell the threads)"
        return {"BLAS": words, "BLAS of SciPy": "unknown (threadpoolctl, not installed, would tell)"}
    with contextlib.suppress(ImportError):
        importlib.import_module("scipy.linalg.cython_blas")  # loads the library
    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    return {"BLAS": _pools_of("numpy", pools), "BLAS of SciPy": _pools_of("scipy", pools)}


def _pools_of(package: str, pools: Sequence[Mapping[str, Any]]) -> str:
    """The thread pools whose library came with a package, or else those that came with neither of the two."""
    folders = {name: f"{name}.libs" for name in ("numpy", "scipy")}  # where wheels keep theirs
    own = [pool for pool in pools if folders[package] in Path(pool["filepath"]).parts]
    shared = [pool for pool in pools if not set(folders.values()) & set(Path(pool["filepath"]).parts)]
    words = {
        f"{pool['internal_api']} {pool['version']}, {pool['num_threads']} threads, "
        f"{pool.get('architecture', 'unknown')} kernels"
        for pool in own or shared
    }
    return "; ".join(sorted(words)) or "none that threadpoolctl knows"


def _cpu_kernels() -> str:
    if reason := cpu.why_no_kernels():
        return f"none: {reason}"
    return f"Numba {_version('numba')}, up to {cpu.threads()} threads"


def _gpubp() -> str:
    """The version, and in a checkout the commit."""
    folder = Path(gpubp.__file__).resolve().parents[1]
    if not (folder / ".git").exists():
        return gpubp.__version__
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
            ).stdout.strip()
            for arguments in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return f"{gpubp.__version__}, a checkout whose commit git does not tell"
    return f"{gpubp.__version__}, commit {commit}{' and changes' if changes else ''}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _gpu() -> str:
    if reason := gpubp.why_no_cuda():
        return f"none: {reason}"
    import cupy

    runtime = cupy.cuda.runtime
    name = runtime.getDeviceProperties(0)["name"].decode()
    versions = f"CUDA runtime {runtime.runtimeGetVersion()}, driver {runtime.driverGetVersion()}"
    return f"{name}, CuPy {cupy.__version__}, {versions}"
