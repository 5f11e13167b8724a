"""Reading a file of any format that is known, by its name and what it begins with."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpubp.data.arrays import ArrayData, Part, array_data, read_npy, read_npz
from gpubp.data.idx import GZIP, looks_like_idx, read_idx
from gpubp.data.parquet import read_parquet
from gpubp.data.tables import Table, read_csv
from gpubp.errors import DataError

FORMATS = "CSV, Parquet, .npz, .npy or IDX file"

_BY_SUFFIX = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".npz": "npz",
    ".npy": "npy",
    ".idx": "idx",
}
_BY_START = {b"PAR1": "parquet", b"PK\x03\x04": "npz", b"\x93NUMPY": "npy"}


def read_file(path: str | Path, targets: str | Path | None = None, part: Part = "train") -> Table | ArrayData:
    """Read a file of examples: a table, or arrays with their targets.

    Args:
        path: The file.
        targets: A ``.npy`` or IDX file with the targets of a file that holds examples alone.
        part: Which arrays of a ``.npz`` file are meant, see `read_npz`.

    Raises:
        DataError: A file can't be read, or is not what it seems; or a table comes with a file of targets.
    """
    path = Path(path)
    kind = format_of(path)
    if kind in ("csv", "parquet"):
        if targets is not None:
            raise DataError(f"--targets {targets}: {path.name} is a table, which has a column of targets: use --target")
        return read_csv(path) if kind == "csv" else read_parquet(path)
    if kind != "npz":
        T = None if targets is None else _array_of(Path(targets))
        source = path.name if targets is None else Path(targets).name
        return array_data(path.name, _array_of(path), T, source)
    x, X, t, T = read_npz(path, part)
    source = f"{path.name} ({t})"
    if targets is not None:
        T, source = _array_of(Path(targets)), Path(targets).name
    return array_data(f"{path.name} ({x})", X, T, source)


def format_of(path: Path) -> str:
    """The format of a file: ``"csv"``, ``"parquet"``, ``"npz"``, ``"npy"`` or ``"idx"``.

    Raises:
        DataError: The file can't be read, or is compressed and something else than IDX.
    """
    if path.suffix.lower() in _BY_SUFFIX:
        return _BY_SUFFIX[path.suffix.lower()]
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except FileNotFoundError:
        raise DataError(f"there is no file {str(path)!r}") from None
    except IsADirectoryError:
        raise DataError(f"{str(path)!r} is a directory; a {FORMATS} is needed") from None
    except OSError as error:
        raise DataError(f"{str(path)!r} can't be read: {error.strerror}") from error
    for begin, kind in _BY_START.items():
        if start.startswith(begin):
            return kind
    if looks_like_idx(start) or "idx" in path.name or "ubyte" in path.name:
        return "idx"
    return _packed_format(path) if start.startswith(GZIP) else "csv"


def _packed_format(path: Path) -> str:
    try:
        with gzip.open(path, "rb") as file:
            start = file.read(4)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path.name} is cut off or damaged ({error}): fetch it again") from error
    if not looks_like_idx(start):
        raise DataError(f"{path.name} is compressed, and what is in it is no IDX file: unpack it first (gunzip)")
    return "idx"


def _array_of(path: Path) -> npt.NDArray[Any]:
    kind = format_of(path)
    if kind not in ("npy", "idx"):
        raise DataError(f"{path.name} holds no single array: a .npy or IDX file is needed")
    return np.asanyarray(read_npy(path) if kind == "npy" else read_idx(path))
