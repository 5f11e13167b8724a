"""Rows to train on, to validate with, and to hold out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpubp.errors import DataError
from gpubp.settings import require_in

Rows = npt.NDArray[np.int64]

FEWEST_ROWS = 10


@dataclass(frozen=True)
class Split:
    """Row indices of three parts that share no row and together hold all of them.

    Attributes:
        train: What the network learns from.
        validation: What early stopping watches.
        held_out: What neither has seen.
    """

    train: Rows
    validation: Rows
    held_out: Rows


def split_rows(
    T: npt.NDArray[np.generic], held_out: float, validation: float | None, rng: np.random.Generator, *, by_class: bool
) -> Split:
    """Split rows at random: first `held_out` of all, then `validation` of the rest.

    Args:
        T: Targets (N,).
        held_out: The share of all rows to hold out, between 0 and 1.
        validation: The share of the rest to validate with, between 0 and 1; None for none, where other rows serve.
        rng: Where the order of the rows is drawn from.
        by_class: Whether T holds class indices. Then each class is split in these shares: of two examples one is
            held out, and a single example is trained on.

    Raises:
        SettingError: A share is outside its range.
        DataError: There are too few rows, or too few of each class.
    """
    for name, share in (("held_out", held_out), ("validation", validation)):
        if share is not None:
            require_in(None, name, share, "(0, 1)")
    if len(T) < FEWEST_ROWS:
        raise DataError(f"{len(T)} rows are too few to train on some and hold out others: {FEWEST_ROWS} are needed")
    rest, held_rows = _cut(np.arange(len(T)), T, held_out, rng, by_class)
    train, validation_rows = (rest, rest[:0]) if validation is None else _cut(rest, T, validation, rng, by_class)
    if not (train.size and (validation is None or validation_rows.size) and held_rows.size):
        what = "examples of each class" if by_class else "rows"
        raise DataError(f"too few {what} to train, to validate and to hold out {held_out:g} of them ({len(T)} rows)")
    return Split(train, validation_rows, held_rows)


def _cut(
    rows: Rows, T: npt.NDArray[np.generic], share: float, rng: np.random.Generator, by_class: bool
) -> tuple[Rows, Rows]:
    order = rng.permutation(rows)
    groups = [order[T[order] == value] for value in np.unique(T[order])] if by_class else [order]
    least = 1 if by_class else 2  # R2 needs two rows
    counts = [min(len(group) - 1, max(least, round(share * len(group)))) for group in groups]
    kept = np.concatenate([group[count:] for group, count in zip(groups, counts, strict=True)])
    taken = np.concatenate([group[:count] for group, count in zip(groups, counts, strict=True)])
    return rng.permutation(kept), rng.permutation(taken)
