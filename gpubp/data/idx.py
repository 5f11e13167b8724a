"""IDX, the format of MNIST: a magic number, the sizes of the axes, then numbers, all big-endian; often in gzip."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from gpubp.errors import DataError

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""The third byte of the magic number to what it stands for; the first two are 0, the fourth counts the axes."""

GZIP = b"\x1f\x8b"


def read_idx(path: str | Path) -> npt.NDArray[Any]:
    """The array of an IDX file: mapped, not read, where the file is not compressed.

    Raises:
        DataError: The file can't be read, is no IDX file, is cut off or damaged, or its length is not what its header
            says, or its header announces what can't be an array.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == GZIP
        with gzip.open(path, "rb") if packed else open(path, "rb") as file:
            dtype, shape, offset = _header(path.name, file)
            count, announced = math.prod(shape), " x ".join(map(str, shape))
            wanted = offset + count * dtype.itemsize
            content = file.read() if packed else b""
            held = offset + len(content) if packed else path.stat().st_size
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path.name} is cut off or damaged ({error}): fetch it again") from error
    except OSError as error:
        raise DataError(f"{str(path)!r} can't be read: {error.strerror}") from error
    if held != wanted:
        kind = "cut off" if held < wanted else "too long"
        raise DataError(
            f"{path.name} is {kind}: its header announces {announced} numbers, {wanted} bytes with "
            f"the header, but there are {held}. Fetch it again"
        )
    try:
        if packed or not count:
            return np.frombuffer(content, dtype, count).reshape(shape)
        return np.memmap(path, dtype, "r", offset, shape)
    except ValueError as error:  # too many axes, or sizes beyond all memory beside one of 0
        raise DataError(
            f"{path.name} is no array: its header announces {announced} numbers, {len(shape)} axes ({error})"
        ) from error


def looks_like_idx(start: bytes) -> bool:
    """Whether the first bytes of a file are the magic number of an IDX file."""
    return len(start) >= 4 and start[:2] == b"\0\0" and start[2] in DTYPES and start[3] > 0


def _header(source: str, file: BinaryIO | gzip.GzipFile) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """What the numbers are, how many there are along each axis, and where they begin."""
    magic = file.read(4)
    if not looks_like_idx(magic):
        raise DataError(
            f"{source} is no IDX file: it begins with {magic.hex(' ') or 'nothing'}, and an IDX file with 00 00, "
            f"one of {', '.join(f'{code:02x}' for code in DTYPES)}, and the number of axes"
        )
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(f"{source} is cut off within its header: {magic[3]} sizes were to follow. Fetch it again")
    return np.dtype(DTYPES[magic[2]]), tuple(np.frombuffer(sizes, ">u4").tolist()), 4 + len(sizes)
