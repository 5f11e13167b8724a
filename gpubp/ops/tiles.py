"""Walking over flat parameter buffers in tiles that stay in cache on the CPU; on a device, one tile is everything."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np

from gpubp.backend import Array, array_module

TILE_ELEMENTS = 65536
"""Elements of one array in a CPU tile; Adam's five float32 arrays of that size take 1.25 MiB."""

Tile = tuple[slice, ...]


def prepare(flat: Array, scratch: Array | None = None) -> tuple[ModuleType, Array]:
    """The module of a flat buffer, and scratch space for its tiles: `scratch` itself, or new where there is none."""
    xp = array_module(flat)
    if scratch is None:
        scratch = xp.empty(min(flat.size, TILE_ELEMENTS) if xp is np else flat.size, flat.dtype)
    return xp, scratch


def over(flat: Array, scratch: Array) -> Iterator[tuple[Tile, Array]]:
    """Tiles that cover a buffer (P,) or (E, P), each with a piece of `scratch` of its shape."""
    *lead, columns = flat.shape
    limit = max(1, scratch.size)
    width = min(columns, limit)
    height = max(1, limit // max(1, width))
    for row in range(0, lead[0] if lead else 1, height):
        rows = slice(row, min(row + height, lead[0])) if lead else None
        for column in range(0, columns, max(1, width)):
            piece = slice(column, min(column + width, columns))
            if rows is None:
                yield (piece,), scratch[: piece.stop - piece.start]
            else:
                shape = (rows.stop - rows.start, piece.stop - piece.start)
                yield (rows, piece), scratch[: shape[0] * shape[1]].reshape(shape)
