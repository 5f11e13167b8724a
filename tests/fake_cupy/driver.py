"""The fake machine: its devices, the current one, streams, and a log of kernel launches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class Machine:
    """What the fake driver knows; `fake_cupy.installed` starts it afresh."""

    device_count: int = 1
    current_device: int = 0
    reverse_threads: bool = False
    launches: list[Launch] | None = None
    """Every launch so far, where somebody wants to know; it keeps the arrays alive."""


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, with arrays as NumPy arrays."""

    source: str
    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: tuple[Any, ...]


machine = Machine()


class Device:
    """Makes a device the current one, as a context manager or for good with `use`."""

    def __init__(self, device: int | None = None) -> None:
        self.id = machine.current_device if device is None else int(device)
        self._before: list[int] = []

    def use(self) -> None:
        if self.id >= machine.device_count:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        machine.current_device = self.id

    def __enter__(self) -> Device:
        self._before.append(machine.current_device)
        self.use()
        return self

    def __exit__(self, *_: object) -> None:
        machine.current_device = self._before.pop()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return self.id

    def synchronize(self) -> None:
        """Everything here has happened already."""


class Stream:
    """A stream on which everything happens at once."""

    ptr = 0

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False) -> None:
        pass

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def use(self) -> Stream:
        return self

    def synchronize(self) -> None:
        """Everything here has happened already."""


class CUDARuntimeError(RuntimeError):
    """What the CUDA runtime complains about."""


class CompileException(Exception):  # noqa: N818 - CuPy's name
    """What the kernel compiler complains about."""
