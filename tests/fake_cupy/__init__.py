"""A stand-in for CuPy where there is no GPU.

What real CuPy would refuse, or do at the price of a hidden transfer, is refused here: NumPy functions on device
arrays, NumPy arrays in CuPy functions, functions and keyword arguments that CuPy 14.2 does not have, arrays of a
device that is not the current one. Kernels run on the host, see `cuda_host`. New memory is full of NaN, as the memory
of a device might be. Work is done at once, or as late and in as bad an order as streams and events allow.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import cuda_host
import numpy as np

from fake_cupy import cublas
from fake_cupy.array import call, filled, ndarray, signature, unwrap, wrap
from fake_cupy.driver import (
    ORDERS,
    CompileException,
    CUDADriverError,
    CUDARuntimeError,
    Device,
    Event,
    Graph,
    Launch,
    OutOfMemoryError,
    Stream,
    event_query,
    get_device,
    machine,
    used_bytes,
)
from fake_cupy.names import CONSTANTS, FUNCTIONS, SPECIAL_FUNCTIONS
from gpubp import cublas as gpubp_cublas
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
        machine.call("module")
        code = self._code

        def kernel(grid: tuple[int, ...], block: tuple[int, ...], args: Any, *, shared_mem: int = 0) -> None:
            if shared_mem:
                raise NotImplementedError("dynamic shared memory")
            # A float is passed as a double, an array as a pointer; a NumPy array is refused as CuPy refuses it.
            values = [np.float64(value) if type(value) is float else unwrap(value) for value in args]
            if machine.launches is not None:
                machine.launches.append(Launch(code, name, grid, block, tuple(values)))
            machine.call("launch")
            launch = functools.partial(cuda_host.launch, reverse=machine.reverse_threads)
            machine.submit(launch, code, name, grid, block, values)

        return kernel


class MemoryPool:
    """CuPy's pool of device memory, which keeps nothing for later here."""

    free_bytes = staticmethod(lambda: 0)
    used_bytes = staticmethod(used_bytes)
    get_limit = staticmethod(lambda: machine.limit)

    @staticmethod
    def set_limit(size: int) -> None:
        machine.limit = size

    @staticmethod
    def free_all_blocks() -> None:
        """There are none."""


def _module() -> types.ModuleType:
    """The module that `installed` shows as ``cupy``."""
    cupy = types.ModuleType("cupy")
    for name in CONSTANTS:
        setattr(cupy, name, getattr(np, name))
    for name, keywords in FUNCTIONS.items():
        setattr(cupy, name, _function(getattr(np, name), name, keywords))

    def poisoned(make: Any) -> Any:
        @functools.wraps(make)
        def empty(*args: Any, **kwargs: Any) -> ndarray:
            made: ndarray = make(*args, **kwargs)
            if machine.order is None and made.dtype.kind == "f":
                made.fill(np.nan)
            return made

        return empty

    def asarray(a: Any, dtype: Any = None, order: Any = None, *, copy: bool | None = None) -> ndarray:
        if isinstance(a, ndarray) and not copy and (dtype is None or a.dtype == dtype):
            return a
        given = np.asarray(a._array if isinstance(a, ndarray) else a)
        kept = "F" if given.flags.fnc else "C"  # as CuPy keeps it
        made = np.array(given, dtype=dtype, order=order or kept)
        machine.allocate(made.nbytes)
        machine.call("copy")
        if machine.order is None:
            return wrap(made)
        if isinstance(a, ndarray):
            return wrap(filled(made, np.array, given, made.dtype))
        return wrap(filled(made, lambda: made))  # CuPy, too, copies what lies on the host before it returns

    def array(obj: Any, dtype: Any = None, copy: bool = True) -> ndarray:
        return asarray(obj, dtype, copy=copy)

    def clip(a: Any, a_min: Any, a_max: Any, out: Any = None) -> Any:
        return call(np.clip, "clip", ("a_min", "a_max", "out"), (a, a_min, a_max, out), {})

    def asnumpy(a: Any) -> np.ndarray:
        return a.get() if isinstance(a, ndarray) else np.asarray(a)

    def from_dlpack(array: Any) -> Any:
        raise BufferError("the fake device shares memory with nobody")

    def get_array_module(*args: Any) -> types.ModuleType:
        return cupy if any(isinstance(arg, ndarray) for arg in args) else np

    def asked(answer: Any) -> Any:
        machine.call("ask")
        return answer

    def pinned_memory(size: int) -> bytearray:
        machine.call("pinned")
        return bytearray(size)

    def device_properties(device: int) -> dict[str, Any]:
        machine.call("ask")
        return {"name": b"Fake GPU", "major": 9, "minor": 0, "multiProcessorCount": 132, "totalGlobalMem": 1 << 37}

    @contextlib.contextmanager
    def using_allocator(allocator: Any) -> Iterator[None]:
        before, machine.allocator = machine.allocator, allocator
        try:
            yield
        finally:
            machine.allocator = before

    runtime = types.SimpleNamespace(
        CUDARuntimeError=CUDARuntimeError,
        getDevice=get_device,
        setDevice=lambda device: Device(device).use(),
        getDeviceCount=lambda: asked(machine.device_count),
        getDeviceProperties=device_properties,
        memGetInfo=lambda: asked((machine.free_bytes, 1 << 37)),
        eventQuery=event_query,
        streamQuery=lambda stream: machine.status(),
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000,
        deviceSynchronize=lambda: machine.wait_for_all(),
    )
    vars(cupy).update(
        ndarray=ndarray,
        empty=poisoned(cupy.empty),
        empty_like=poisoned(cupy.empty_like),
        asarray=asarray,
        array=array,
        asnumpy=asnumpy,
        clip=clip,
        from_dlpack=from_dlpack,
        get_array_module=get_array_module,
        RawModule=RawModule,
        __version__="14.2.0",
        get_default_memory_pool=lambda: MemoryPool,
        cuda=types.SimpleNamespace(
            Device=Device,
            Stream=Stream,
            Event=Event,
            Graph=Graph,
            get_current_stream=lambda: (get_device(), machine.stream or machine.default)[1],
            using_allocator=using_allocator,
            alloc_pinned_memory=pinned_memory,
            memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            is_available=lambda: machine.device_count > 0,
            runtime=runtime,
            driver=types.SimpleNamespace(CUDADriverError=CUDADriverError),
            compiler=types.SimpleNamespace(CompileException=CompileException),
        ),
    )
    return cupy


def _cupyx() -> dict[str, types.ModuleType]:
    """What `installed` shows as ``cupyx``."""
    special = types.ModuleType("cupyx.scipy.special")
    for name in SPECIAL_FUNCTIONS:
        function = getattr(importlib.import_module("scipy.special"), name)
        setattr(special, name, _function(function, name, FUNCTIONS["exp"]))
    modules = {name: types.ModuleType(name) for name in ("cupyx", "cupyx.scipy")}
    return {**modules, "cupyx.scipy.special": special}


def _function(numpy_function: Any, name: str, allowed: tuple[str, ...]) -> Any:
    def function(*args: Any, **kwargs: Any) -> Any:
        return call(numpy_function, name, allowed, args, kwargs)

    function.__signature__ = signature(numpy_function, allowed)  # type: ignore[attr-defined]
    return function


@contextlib.contextmanager
def installed(
    device_count: int = 1, *, reverse_threads: bool = False, record: bool = False, order: str | None = None
) -> Iterator[types.ModuleType]:
    """Let ``import cupy`` give the fake for the duration of a ``with`` block.

    Args:
        device_count: How many devices the machine has.
        reverse_threads: Run the threads of kernels in the opposite order.
        record: Keep every kernel launch in ``fake_cupy.machine.launches``.
        order: Keep work in the queues of its streams until the host waits for it, and do it in this order then, one of
            `ORDERS`; None to do everything at once.
    """
    if order not in (None, *ORDERS):
        raise ValueError(f"order {order!r} is not one of {ORDERS}")
    modules = {"cupy": _module(), **_cupyx(), **cublas.modules()}
    before = {name: sys.modules.get(name) for name in modules}
    machine.device_count, machine.current_device = device_count, 0
    machine.reverse_threads, machine.launches = reverse_threads, [] if record else None
    machine.stream, machine.allocator, machine.free_bytes, machine.limit = None, None, 1 << 36, 0
    machine.waits = machine.graph_launches = 0
    machine.calls, machine.fault, machine.lost, machine.running_into = [], None, 0, 0
    machine.order, machine.default, machine.busy, machine.enqueued = order, Stream(null=True), [], 0
    gpubp_cuda.clear_cache()
    gpubp_cublas.clear_cache()
    sys.modules.update(modules)
    try:
        yield modules["cupy"]
        if machine.busy and not machine.lost:
            machine.wait_for_all()  # what nobody has waited for may be wrong, too
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
        machine.launches, machine.order, machine.busy = None, None, []
        machine.fault, machine.lost, machine.running_into = None, 0, 0
        gpubp_cuda.clear_cache()
        gpubp_cublas.clear_cache()
