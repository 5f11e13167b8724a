"""How the threads of a launch share a matrix (..., N, n): see ``kernels/tiles.cuh``."""

from __future__ import annotations

import math
from typing import NamedTuple

from gpubp.backend import Array
from gpubp.cuda_kernels.memory import GRID_LIMIT

BLOCK_THREADS = 256
"""Most threads of a CUDA block; ``MAX_THREADS`` of ``kernels/common.cuh``."""
PACK_BYTES = 16
"""What a thread reads or writes at once."""
WARP = 32
"""Packs along a row that are enough for a tile: neighbouring threads read 512 bytes."""
IN_FLIGHT = 2
"""Bands that a thread reads before it computes, as in ``kernels/tiles.cuh``."""
BLOCKS = 1024
"""Blocks that fill a large card, about eight for each multiprocessor; only then a thread gets more than one band."""


class Tiles(NamedTuple):
    """Tiles of `height` bands of `joined` rows; `across` tiles beside each other, each `width` packs wide."""

    joined: int
    across: int
    width: int
    height: int

    @property
    def block(self) -> tuple[int, int]:
        """Threads along x and y."""
        return self.width, self.height


def tiles(columns: int, itemsize: int) -> Tiles:
    """The tiles of a matrix of so many columns: a function of the shape alone, so that sums repeat bit for bit."""
    pack = PACK_BYTES // itemsize
    joined = pack // math.gcd(columns, pack)
    if joined > 1 and joined * columns // pack <= BLOCK_THREADS:  # one tile is a whole band
        width = joined * columns // pack
        return Tiles(joined, 1, width, BLOCK_THREADS // width)
    return Tiles(1, *row_tiles(columns, itemsize))


def row_tiles(columns: int, itemsize: int) -> tuple[int, int, int]:
    """Count, width and height of tiles whose rows are not joined."""
    packs = max(1, -(-columns // (PACK_BYTES // itemsize)))
    count = -(-packs // WARP)
    width = -(-packs // count)  # no tile much narrower than the others
    return count, width, BLOCK_THREADS // width


def blocks_down(bands: int, height: int, others: int) -> int:
    """Blocks along y for so many bands, where each stands for `others` along x and z."""
    blocks = -(-bands // height)
    return min(GRID_LIMIT, max(1, min(blocks, max(BLOCKS // max(1, others), -(-blocks // IN_FLIGHT)))))


def pack_width(*arrays: Array, step: int = 0) -> int:
    """How many numbers of a dtype a thread reads at once: what the kernels call W.

    They are `PACK_BYTES` of them where all of the arrays, and what lies `step` elements further in each, begin at
    multiples of that; else one.
    """
    pack = PACK_BYTES // int(arrays[0].itemsize)
    return pack if step % pack == 0 and are_aligned(*arrays) else 1


def are_aligned(*arrays: Array, nbytes: int = PACK_BYTES) -> bool:
    """Whether all of these device arrays begin at a multiple of so many bytes."""
    return all(array.data.ptr % nbytes == 0 for array in arrays)
