"""Examples that are arrays already: from ``.npz``, ``.npy`` and IDX files, not by way of text."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gpubp.data.tables import Table, listed
from gpubp.errors import DataError

Values = npt.NDArray[Any]
Part = Literal["train", "test"]

TARGET = "target"
"""What the targets of arrays are called; arrays have no names of columns."""

_CHECKED = 2**18  # numbers to look at in one go, so that the look takes no memory to speak of
_KEPT = ("uint8", "float16", "float32", "float64")
_DAMAGED = (OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, SyntaxError, TypeError,
            OverflowError, zipfile.BadZipFile, zlib.error, tokenize.TokenError)  # fmt: skip


@dataclass(frozen=True)
class ArrayData:
    """Examples and targets as arrays.

    Attributes:
        source: What errors call them, such as the file's name.
        X: (N, n) in a dtype that minibatches are gathered from, maybe mapped from a file.
        targets: A table with the column `TARGET` alone; None where there are no targets.
    """

    source: str
    X: Values
    targets: Table | None

    def __len__(self) -> int:
        return int(self.X.shape[0])


def array_data(source: str, X: Values, T: Values | None = None, targets_source: str | None = None) -> ArrayData:
    """Examples and targets as `ArrayData`, after a look at both.

    X stays where it is if it is uint8, float16, float32 or float64 in C order, and becomes floats in memory if not.

    Args:
        source: What errors call X.
        X: (N, ...) numbers; more axes than two are made one.
        T: (N,) or (N, 1), numbers or texts.
        targets_source: What errors call T; None for `source`.

    Raises:
        DataError: The arrays have other shapes or hold something else, or a number is not finite.
    """
    if X.dtype.kind not in "fiub":
        raise DataError(f"{source} holds {X.dtype} values; numbers are needed")
    if X.ndim < 2:
        raise DataError(
            f"{source} has shape {X.shape}; (N, features) is needed. Targets go by --targets, the examples are DATA"
        )
    if not X.size:
        raise DataError(f"{source} has shape {X.shape}: it holds nothing")
    X = X.reshape(len(X), -1)  # (N, n), a view where X is in C order
    if X.dtype.name not in _KEPT or not X.dtype.isnative:
        X = X.astype(np.float64 if X.dtype.itemsize > 2 and X.dtype.kind in "iu" else np.result_type(X, np.float16))
    _require_finite(source, X)
    return ArrayData(source, X, None if T is None else _targets(targets_source or source, T, source, len(X)))


def _targets(source: str, T: Values, examples: str, N: int) -> Table:
    if T.ndim == 2 and T.shape[1] == 1:
        T = T[:, 0]
    if T.ndim != 1:
        raise DataError(
            f"{source} has targets of shape {T.shape}; (N,) is needed, a class or a number for each example. "
            "More than one for each are trained on in Python: gpubp.fit"
        )
    if len(T) != N:
        raise DataError(f"{source} has {len(T)} targets, but {examples} has {N} examples")
    if T.dtype.kind not in "fiubUT":
        raise DataError(f"{source} has targets of {T.dtype}; numbers or texts are needed")
    cells: Any = T.astype(T.dtype.newbyteorder("=")) if T.dtype.kind in "fiu" else [str(t).strip() for t in T.tolist()]
    return Table(source, {TARGET: cells}, range(1, N + 1), "row")


def _require_finite(source: str, X: Values) -> None:
    if X.dtype.kind != "f":
        return
    rows = max(1, _CHECKED // X.shape[1])
    for start in range(0, len(X), rows):
        wrong = ~np.isfinite(X[start : start + rows])
        if wrong.any():
            row, column = (int(index) for index in np.argwhere(wrong)[0])
            raise DataError(
                f"{source}, row {start + row + 1}, column {column + 1}: {X[start + row, column]} is not a finite "
                "number. Fill it in, or remove the row; --missing median fills in columns of tables alone"
            )


def read_npy(path: str | Path) -> Values:
    """The array of a ``.npy`` file, mapped, not read.

    Raises:
        DataError: The file can't be read, is damaged, or holds Python objects.
    """
    path = Path(path)
    array: Values = _loaded(path, lambda: np.load(path, mmap_mode="r", allow_pickle=False))
    return array


def read_npz(path: str | Path, part: Part = "train") -> tuple[str, Values, str | None, Values | None]:
    """The examples and targets of a ``.npz`` file with their names there; None for no targets.

    They are called X and T, or X and y, or x_train and y_train (x_test and y_test for the part ``"test"`` if there
    are any), in letters of either case, or `data` and `target`; or there is one array alone.

    Raises:
        DataError: The file can't be read, is damaged, holds Python objects, or has other names.
    """
    path = Path(path)
    found: tuple[str, Values, str | None, Values | None] = _loaded(path, lambda: _examples_in(path, part))
    return found


def _examples_in(path: Path, part: Part) -> tuple[str, Values, str | None, Values | None]:
    other: Part = "test" if part == "train" else "train"
    pairs = [("x", ("t", "y")), (f"x_{part}", (f"y_{part}", f"t_{part}")), ("data", ("target", "targets", "labels"))]
    if part == "test":
        pairs.insert(2, (f"x_{other}", (f"y_{other}", f"t_{other}")))
    with open(path, "rb") as content:  # NumPy would not close a damaged one
        file: Any = np.load(content, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise DataError(f"{path.name} is a .npy file by another name: rename it")
        names = {name.lower(): name for name in file.files}
        for x, targets in pairs:
            if x in names:
                t = next((names[name] for name in targets if name in names), None)
                return names[x], file[names[x]], t, None if t is None else file[t]
        if len(names) == 1:
            return file.files[0], file[file.files[0]], None, None
    raise DataError(
        f"{path.name} holds {listed(names.values()) or 'nothing'}: which are the examples? "
        "Name the arrays X and T, or x_train and y_train"
    )


def _loaded(path: Path, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except FileNotFoundError:
        raise DataError(f"there is no file {str(path)!r}") from None
    except DataError:
        raise
    except _DAMAGED as error:
        if "pickle" in str(error) or "Python objects" in str(error):
            raise DataError(
                f"{path.name} holds Python objects, which are not loaded; save arrays of numbers"
            ) from error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path.name} can't be read: it is no such file, cut off or damaged ({reason})") from error
