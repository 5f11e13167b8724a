"""``gpubp info``: what this machine offers, and why a GPU is used or not."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import gpubp
from gpubp import cpu, cublas, cublas_library


def info() -> None:
    """Show versions, devices, and why a GPU is used or not."""
    for name, value in _facts():
        print(f"{name + ':':<16}{value}")


def _facts() -> Iterator[tuple[str, str]]:
    yield "gpubp", gpubp.__version__
    yield "Python", f"{platform.python_version()} on {platform.platform()}"
    yield "NumPy", np.__version__
    yield "BLAS", _blas()
    yield "CPU cores", f"{os.cpu_count()}{_usable_cores()}"
    yield "memory", _memory()
    reason = cpu.why_no_kernels()
    yield "CPU kernels", f"NumPy alone ({reason})" if reason else f"Numba {_numba()}, up to {cpu.threads()} threads"
    reason = gpubp.why_no_cuda()
    if reason is None:
        yield from _cuda_facts()
    for misfit in _misfits():
        yield "CUDA parts", misfit
    yield "device 'auto'", str(gpubp.resolve_device("auto"))
    yield "GPU", "used" if reason is None else f"not used: {reason}"


def _numba() -> str:
    return importlib.metadata.version("numba")


def _usable_cores() -> str:
    if not hasattr(os, "sched_getaffinity"):
        return ""
    return f", {len(os.sched_getaffinity(0))} usable by this process"


def _memory() -> str:
    try:
        free, total = (os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") for name in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # these are facts that not every system tells
        return "unknown"
    return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _blas() -> str:
    found = np.show_config(mode="dicts").get("Build Dependencies", {}).get("blas", {})
    name = f"{found.get('name', 'unknown')} {found.get('version', '')}".strip()
    pools = importlib.import_module("threadpoolctl").threadpool_info()
    threads = [str(pool["num_threads"]) for pool in pools if pool["user_api"] == "blas"]
    return f"{name}, {threads[0]} threads" if threads else name


def _cuda_facts() -> Iterator[tuple[str, str]]:
    cupy = importlib.import_module("cupy")
    runtime = cupy.cuda.runtime
    yield "CuPy", f"{cupy.__version__}, CUDA runtime {runtime.runtimeGetVersion()}, driver {runtime.driverGetVersion()}"
    reason = cublas.why_no_handle()
    yield "cuBLAS", cublas.version() if reason is None else f"through CuPy, never in a CUDA graph ({reason})"
    for index in range(runtime.getDeviceCount()):
        name = runtime.getDeviceProperties(index)["name"].decode()
        with cupy.cuda.Device(index):
            free, total = runtime.memGetInfo()
        yield f"cuda:{index}", f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"


def _misfits() -> Iterator[str]:
    """Parts of CUDA that are of different versions, or missing."""
    wheels = sorted(set(importlib.metadata.packages_distributions().get("cupy", [])))
    if len(wheels) > 1:
        yield f"{' and '.join(wheels)} overwrite each other's files: uninstall all of them, then install one"
    cupy = sys.modules.get("cupy")  # imported where it can be
    if cupy is None:
        return
    runtime = cupy.cuda.runtime
    major, of_driver = runtime.runtimeGetVersion() // 1000, runtime.driverGetVersion() // 1000
    if 0 < of_driver < major:  # 0 where there is none
        yield f"CuPy is of CUDA {major}, the driver of {of_driver}: update the driver, or install cupy-cuda{of_driver}x"
    for library in ("nvrtc", "cublas"):
        try:
            path = cublas_library.found(library)
        except ImportError:  # a CuPy from before 14 finds its libraries otherwise
            return
        except RuntimeError:
            yield f"{library} is not found: pip install 'cupy-cuda{major}x[ctk]'"
            continue
        version = re.search(r"(?:\.so\.|64_)(\d\d)", Path(path).name)
        if version and int(version[1]) != major:
            yield f"CuPy is of CUDA {major}, but {path} is found first: uninstall the packages of CUDA {version[1]}"
