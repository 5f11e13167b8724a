"""The array-module abstraction: which module owns an array, which device computes, how arrays travel.

NumPy arrays live on the CPU, CuPy arrays on a CUDA device. Everything above this file asks `array_module` for the
module that owns its arguments and is otherwise the same code on both. CuPy is imported when a CUDA device is first
looked for, never at ``import gpubp``.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from gpubp import faults
from gpubp.errors import DataError, DeviceError, OutOfDeviceMemoryError, SettingError

Array: TypeAlias = Any
"""A ``numpy.ndarray`` or a ``cupy.ndarray``."""

_DLPACK_CPU, _DLPACK_CUDA = 1, 2  # DLDeviceType of the DLPack specification


@dataclass(frozen=True)
class Device:
    """Where arrays live and computation runs: ``cpu``, or a CUDA device by its index."""

    kind: str
    index: int = 0

    @property
    def is_cuda(self) -> bool:
        """Whether this is a CUDA device."""
        return self.kind == "cuda"

    @property
    def module(self) -> ModuleType:
        """The array module of this device: ``numpy`` or ``cupy``."""
        return _import_cupy() if self.is_cuda else np

    def activate(self, doing: str = "") -> contextlib.AbstractContextManager[Any]:
        """Make this the current device for the duration of a ``with`` block, and what fails in it an error of ours.

        That is an `OutOfDeviceMemoryError` for a lack of device memory, a `DeviceLostError` where the process can't
        use the device any more, and a `DeviceError` for a lack of CUDA's compiler, headers or cuBLAS and for everything
        else that CuPy, CUDA or cuBLAS raises.

        Args:
            doing: What is done in the block, such as ``"predicting"``, for such an error to say.
        """
        return self._activated(doing) if self.is_cuda else contextlib.nullcontext()

    @contextlib.contextmanager
    def _activated(self, doing: str) -> Iterator[None]:
        with self.telling(doing), self.module.cuda.Device(self.index):
            yield

    @contextlib.contextmanager
    def telling(self, doing: str) -> Iterator[None]:
        """The part of `activate` that is about errors."""
        with faults.doing(doing):
            try:
                yield
            except Exception as error:
                if faults.lacks_toolkit(error):
                    cuda = self.module.cuda.runtime.runtimeGetVersion() // 1000
                    raise DeviceError(faults.missing_toolkit_message(self, error, cuda)) from error
                if not faults.is_of_cuda(error):
                    raise
                faults.raise_if_lost(error, self)
                if faults.is_out_of_memory(error):
                    raise OutOfDeviceMemoryError(
                        f"{faults.failure_message(self, error, 'has not enough memory')}; {free_bytes(self):,} bytes "
                        "are free. Use a smaller batch_size or a micro_batch_size, keep the examples on the host with "
                        "resident=False, or predict with a batch_size"
                    ) from error
                raise DeviceError(f"{faults.failure_message(self, error)}. Try again, or use device='cpu'") from error

    def __str__(self) -> str:
        return f"cuda:{self.index}" if self.is_cuda else self.kind


CPU = Device("cpu")


def _import_cupy() -> ModuleType:
    return importlib.import_module("cupy")


def _is_cupy(array: object) -> bool:
    cupy = sys.modules.get("cupy")  # an array of a module that was never imported can't exist
    return cupy is not None and isinstance(array, cupy.ndarray)


def device_of(array: Array) -> Device:
    """The device on which an array lives.

    Raises:
        DeviceError: It is neither a NumPy nor a CuPy array.
    """
    if isinstance(array, np.ndarray | np.generic):
        return CPU
    if _is_cupy(array):
        return Device("cuda", int(array.device.id))
    raise DeviceError(f"a NumPy or CuPy array was expected, not {type(array).__module__}.{type(array).__qualname__}")


def array_module(*arrays: Array) -> ModuleType:
    """The module, ``numpy`` or ``cupy``, that owns all of these arrays.

    Raises:
        DeviceError: The arrays live on different devices, or one of them is no array.
    """
    for array in arrays:
        if type(array) is not np.ndarray:
            break
    else:  # the common case, and a plain loop is the fastest way to it
        return np
    devices = [device_of(array) for array in arrays]
    for position, device in enumerate(devices[1:], start=2):
        if device != devices[0]:
            raise DeviceError(
                f"arrays of two devices in one call: the first is on {devices[0]}, number {position} on {device}. "
                f"Move one of them with gpubp.to_device(array, {str(devices[0])!r}) or gpubp.to_host(array)"
            )
    return devices[0].module


def why_no_cuda() -> str | None:
    """Why no CUDA device can be used here, with the way out; None where one can."""
    if "cupy" not in sys.modules and importlib.util.find_spec("cupy") is None:
        return (
            "CuPy is not installed. On a machine with an NVIDIA GPU: pip install 'gpubp[cuda13x]' "
            "(or 'gpubp[cuda12x]' for a CUDA 12 driver)"
        )
    try:
        cupy = _import_cupy()
    except Exception as error:  # a broken CuPy install fails in many ways; all of them mean: no GPU, and here is why
        reason = faults.first_line(error)
        return f"CuPy is installed but can't be imported ({reason}). Reinstall one cupy-cuda wheel, only one"
    if cupy.__version__ == "14.1.0":
        return "CuPy 14.1.0 is installed, which fails beside other packages that use CUDA. Install a later version"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        faults.raise_if_lost(error)
        return (
            f"CuPy {cupy.__version__} is installed but finds no usable NVIDIA driver ({faults.first_line(error)}). "
            "Check that nvidia-smi works, and that its CUDA version is at least that of the CuPy wheel"
        )
    return None if count else f"CuPy {cupy.__version__} is installed but this machine shows no CUDA device"


def resolve_device(device: str | Device) -> Device:
    """The `Device` meant by ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"auto"`` (a CUDA device where there is one).

    Raises:
        SettingError: The name is none of these.
        DeviceError: A CUDA device was asked for and can't be used; the message says why.
    """
    if isinstance(device, Device):
        return device
    if device == "cpu":
        return CPU
    if device == "auto":
        return CPU if why_no_cuda() else Device("cuda", 0)
    kind, _, index = device.partition(":") if isinstance(device, str) else ("", "", "")
    if kind != "cuda" or not (index.isdecimal() or device == "cuda"):
        raise SettingError(f"unknown device {device!r}: use 'cpu', 'cuda', 'cuda:1' or 'auto'")
    if reason := why_no_cuda():
        raise DeviceError(f"device {device!r} was asked for, but {reason}. Or use device='cpu'")
    with Device("cuda", int(index or 0)).telling("looking for it"):
        count = _import_cupy().cuda.runtime.getDeviceCount()
    if int(index or 0) >= count:
        raise DeviceError(f"device {device!r} was asked for, but this machine has {count} CUDA device(s), from cuda:0")
    return Device("cuda", int(index or 0))


def to_host(array: Array) -> np.ndarray[Any, Any]:
    """The array as a NumPy array; a NumPy array is returned as it is."""
    if not _is_cupy(array):
        return np.asarray(array)
    with device_of(array).activate("copying results to the host"):
        host: np.ndarray[Any, Any] = array.get()
        return host


def to_device(array: Array, device: str | Device) -> Array:
    """The array on the given device; one that is there already is returned as it is, without a copy.

    Raises:
        OutOfDeviceMemoryError: It does not fit there.
    """
    target = resolve_device(device)
    if not target.is_cuda:
        return to_host(array)
    if _is_cupy(array) and device_of(array) == target:
        return array
    xp = target.module
    with target.activate("copying data to the device"):
        try:
            return xp.asarray(array)
        except xp.cuda.memory.OutOfMemoryError as error:
            raise OutOfDeviceMemoryError(
                f"an array of {array.nbytes:,} bytes was to be moved to {target}, where {free_bytes(target):,} are free"
            ) from error


def free_bytes(device: Device) -> int:
    """How much memory can be had on a CUDA device, as far as CuPy's pool may grow; what that keeps for later counts."""
    cupy = device.module
    with device.activate():
        pool = cupy.get_default_memory_pool()
        free = int(cupy.cuda.runtime.memGetInfo()[0] + pool.free_bytes())
        limit = pool.get_limit()  # 0 for none
        return min(free, max(0, int(limit - pool.used_bytes()))) if limit else free


def has_room(device: Device, nbytes: float) -> bool:
    """Whether so much memory can be had on a CUDA device."""
    if nbytes > free_bytes(device):
        gc.collect()  # what was dropped in a cycle of references is not free before
    return nbytes <= free_bytes(device)


def as_array(data: Any, device: Device, *, dtype: Any = None, name: str = "the array", move: bool = True) -> Array:
    """What a user handed in, as an array on `device`; shared, not copied, where that is possible.

    Takes NumPy and CuPy arrays, whatever speaks ``__cuda_array_interface__`` or DLPack (PyTorch and JAX tensors,
    for example), and nested sequences of numbers. Data on the host is moved to a CUDA device; data on a CUDA device
    is never moved silently.

    Args:
        data: The data.
        device: Where the array is wanted.
        dtype: The wanted dtype; None keeps what the data has.
        name: What to call the data in an error.
        move: Whether data on the host is moved; without, it stays there.

    Raises:
        DeviceError: The data lives on another CUDA device, or on one at all where `device` is the CPU.
        DataError: The data is no array of numbers.
    """
    if isinstance(data, np.ma.MaskedArray):
        raise DataError(f"{name} is a masked array, and masks are not looked at: fill or drop what is masked")
    array = _imported(data, name)
    if not isinstance(array, np.ndarray) and device_of(array) != device:
        raise DeviceError(
            f"{name} is on {device_of(array)}, the network on {device}. "
            f"Move the data with gpubp.to_device(array, {str(device)!r}), or build the network there"
        )
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} holds {array.dtype} values; numbers are needed")
    if dtype is not None and array.dtype != dtype:
        with device_of(array).activate():
            array = array.astype(dtype)
    return to_device(array, device) if move else array


def _imported(data: Any, name: str) -> Array:
    """An array that shares memory with `data` where it can, on whatever device `data` lives."""
    if isinstance(data, np.ndarray) or _is_cupy(data):
        return data
    try:
        if on_cuda := hasattr(data, "__cuda_array_interface__"):
            return _import_cupy().asarray(data)
        if hasattr(data, "__dlpack_device__"):
            kind, _ = data.__dlpack_device__()
            if on_cuda := kind == _DLPACK_CUDA:
                return _import_cupy().from_dlpack(data)
            if kind == _DLPACK_CPU:
                return np.from_dlpack(data)
        return np.asarray(data)
    except ImportError as error:
        raise DeviceError(f"{name} is on a CUDA device, but {why_no_cuda()}") from error
    except (BufferError, RuntimeError, TypeError, ValueError) as error:  # a tensor that wants grad, a ragged list
        if on_cuda:
            faults.raise_if_lost(error)
        raise DataError(f"{name} can't be read as an array of numbers: {faults.first_line(error)}") from error
