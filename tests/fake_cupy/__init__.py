"""A stand-in for CuPy where there is no GPU.

What real CuPy would refuse, or do at the price of a hidden transfer, is refused here: NumPy functions on device
arrays, NumPy arrays in CuPy functions, functions and keyword arguments that CuPy 14.2 does not have, arrays of a
device that is not the current one. Kernels run on the host, see `cuda_host`. New memory is full of NaN, as the memory
of a device might be.
"""

from __future__ import annotations

import contextlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import cuda_host
import numpy as np

from fake_cupy.array import call, ndarray, unwrap, wrap
from fake_cupy.driver import CompileException, CUDARuntimeError, Device, Launch, Stream, machine
from fake_cupy.names import CONSTANTS, FUNCTIONS
from gpubp import cuda as gpubp_cuda


class RawModule:
    """Kernels from source text, run on the host; compiled when the first one is asked for."""

    def __init__(self, *, code: str, options: tuple[str, ...] = (), name_expressions: Any = None) -> None:
        if not isinstance(options, tuple):
            raise TypeError("options must be a tuple")
        self._code, self._names = code, tuple(name_expressions or ())

    def get_function(self, name: str) -> Any:
        if name not in self._names:
            raise CompileException(f"{name} is not among the name expressions")
        try:
            cuda_host.library(self._code, name)
        except cuda_host.CompileError as error:
            raise CompileException(str(error)) from error
        code = self._code

        def kernel(grid: tuple[int, ...], block: tuple[int, ...], args: Any, *, shared_mem: int = 0) -> None:
            if shared_mem:
                raise NotImplementedError("dynamic shared memory")
            # A float is passed as a double, an array as a pointer; a NumPy array is refused as CuPy refuses it.
            values = [np.float64(value) if type(value) is float else unwrap(value) for value in args]
            if machine.launches is not None:
                machine.launches.append(Launch(code, name, grid, block, tuple(values)))
            cuda_host.launch(code, name, grid, block, values, reverse=machine.reverse_threads)

        return kernel


def _module() -> types.ModuleType:
    """The module that `installed` shows as ``cupy``."""
    cupy = types.ModuleType("cupy")
    for name in CONSTANTS:
        setattr(cupy, name, getattr(np, name))
    for name, keywords in FUNCTIONS.items():
        setattr(cupy, name, _function(getattr(np, name), name, keywords))

    def poisoned(make: Any) -> Any:
        def empty(*args: Any, **kwargs: Any) -> ndarray:
            made: ndarray = make(*args, **kwargs)
            if made.dtype.kind == "f":
                made.fill(np.nan)
            return made

        return empty

    def asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: bool | None = None) -> ndarray:
        if isinstance(a, ndarray) and not copy and (dtype is None or a.dtype == dtype):
            return a
        return wrap(np.array(a._array if isinstance(a, ndarray) else a, dtype=dtype, order=order or "C"))

    def array(obj: Any, dtype: Any = None, copy: bool = True) -> ndarray:
        return asarray(obj, dtype, copy=copy)

    def asnumpy(a: Any) -> np.ndarray:
        return a.get() if isinstance(a, ndarray) else np.asarray(a)

    def from_dlpack(_: Any) -> Any:
        raise BufferError("the fake device shares memory with nobody")

    def get_array_module(*args: Any) -> types.ModuleType:
        return cupy if any(isinstance(arg, ndarray) for arg in args) else np

    def device_properties(device: int) -> dict[str, Any]:
        return {"name": b"Fake GPU", "major": 9, "minor": 0, "multiProcessorCount": 132, "totalGlobalMem": 1 << 37}

    runtime = types.SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDevice=lambda: machine.current_device,
        setDevice=lambda device: Device(device).use(),
        getDeviceCount=lambda: machine.device_count,
        getDeviceProperties=device_properties,
        memGetInfo=lambda: (1 << 36, 1 << 37),
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000,
        deviceSynchronize=lambda: None,
    )
    vars(cupy).update(
        ndarray=ndarray,
        empty=poisoned(cupy.empty),
        empty_like=poisoned(cupy.empty_like),
        asarray=asarray,
        array=array,
        asnumpy=asnumpy,
        from_dlpack=from_dlpack,
        get_array_module=get_array_module,
        RawModule=RawModule,
        __version__="14.2.0",
        cuda=types.SimpleNamespace(
            Device=Device,
            Stream=Stream,
            get_current_stream=Stream,
            is_available=lambda: machine.device_count > 0,
            runtime=runtime,
            compiler=types.SimpleNamespace(CompileException=CompileException),
        ),
    )
    return cupy


def _function(numpy_function: Any, name: str, keywords: tuple[str, ...]) -> Any:
    return lambda *args, **kwargs: call(numpy_function, name, keywords, args, kwargs)


@contextlib.contextmanager
def installed(
    device_count: int = 1, *, reverse_threads: bool = False, record: bool = False
) -> Iterator[types.ModuleType]:
    """Let ``import cupy`` give the fake for the duration of a ``with`` block.

    Args:
        device_count: How many devices the machine has.
        reverse_threads: Run the threads of kernels in the opposite order.
        record: Keep every kernel launch in ``fake_cupy.machine.launches``.
    """
    before = sys.modules.get("cupy")
    machine.device_count, machine.current_device = device_count, 0
    machine.reverse_threads, machine.launches = reverse_threads, [] if record else None
    gpubp_cuda.clear_cache()
    sys.modules["cupy"] = cupy = _module()
    try:
        yield cupy
    finally:
        del sys.modules["cupy"]
        if before is not None:
            sys.modules["cupy"] = before
        machine.launches = None
        gpubp_cuda.clear_cache()
