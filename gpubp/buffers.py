"""Buffers: what a layer or a loss says it writes, and arrays made on the spot for callers that bring none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from gpubp.backend import Array

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Buffer:
    """An array that a layer or a loss writes.

    Attributes:
        shape: Its shape.
        overwrites: An array of the same shape that is read for the last time while this one is written element by
            element, so that both may be the same memory if nobody else needs the first.
    """

    shape: Shape
    overwrites: str | None = None


class FreshBuffers(Mapping[str, Any]):
    """Buffers made when they are asked for, each time anew: what ``out=None`` means."""

    def __init__(self, xp: ModuleType, dtype: Any, buffers: Mapping[str, Buffer]) -> None:
        self._xp, self._dtype, self._buffers = xp, dtype, buffers

    def __getitem__(self, name: str) -> Array:
        return self._xp.empty(self._buffers[name].shape, self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._buffers)

    def __len__(self) -> int:
        return len(self._buffers)
