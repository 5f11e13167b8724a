"""How good predictions are, and how that is printed."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gpubp.data.encoding import Encoder
from gpubp.data.tables import listed

Values = npt.NDArray[Any]

_WIDEST_TABLE = 40
_LONGEST_NAME = 24
_WORST_SHOWN = 10


def scores(encoder: Encoder, Y: Values, T: Values) -> dict[str, float]:
    """Name to score: accuracy, or R2 and RMSE in the target's units.

    Args:
        encoder: What the network was trained with.
        Y: Outputs of the network (N, n_out).
        T: Targets (N,): class indices, or values in their own units.
    """
    if encoder.task == "classification":
        return {"accuracy": float((Y.argmax(axis=1) == T).mean())}
    squares = (encoder.restore_targets(Y) - T) ** 2  # (N,)
    spread = float(((T - T.mean()) ** 2).mean())
    return {
        "R2": 1 - float(squares.mean()) / spread if spread else float("nan"),
        "RMSE": float(np.sqrt(squares.mean())),
    }


def score_text(name: str, value: float) -> str:
    """A score as it is printed: four decimals, or for RMSE four digits and at least two decimals."""
    if name == "RMSE":
        return f"{value:.2f}" if value >= 10 else f"{value:.4g}"
    return f"{value:.4f}"


def confusion(Y: Values, T: Values) -> npt.NDArray[np.int64]:
    """Counts (C, C): rows are the true classes, columns the predicted ones."""
    C = Y.shape[1]
    return np.bincount(T * C + Y.argmax(axis=1), minlength=C * C).reshape(C, C)


def print_confusion(counts: npt.NDArray[np.int64], classes: tuple[str, ...]) -> None:
    """Print the counts as a table with rows for the truth; where that is too wide, the most frequent confusions."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    names = [_shortened(name) for name in classes]
    digits = len(str(int(counts.max())))
    if max(map(len, names)) <= max(digits, 3):
        rows, heads = names, names
    else:  # long names: the columns go by number, and each row says which number is which
        heads = [str(position) for position in range(1, len(names) + 1)]
        rows = [f"{name}  {head}" for name, head in zip(names, heads, strict=True)]
    width = max(map(len, [*rows, "truth"])) + sum(1 + max(len(head), digits) for head in heads)
    console = Console(highlight=False)
    if len(names) > _WIDEST_TABLE or (console.is_terminal and width > console.width):
        return _print_worst(counts, names)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="")
    table.add_column("truth", justify="right", no_wrap=True)
    for head in heads:
        table.add_column(Text(head), justify="right", no_wrap=True)
    for true, row in enumerate(counts.tolist()):
        table.add_row(Text(rows[true]), *(_cell(count, true == predicted) for predicted, count in enumerate(row)))
    print("held-out rows by true class (down) and predicted class (across):")
    Console(highlight=False, width=max(console.width, width)).print(table)
    return None


def imbalance(T: Values, classes: tuple[str, ...]) -> str | None:
    """How many rows each class has, where the rarest has less than a tenth of the commonest.

    Args:
        T: Class indices (N,).
        classes: Their names.
    """
    counts = np.bincount(T, minlength=len(classes))  # (C,)
    if 10 * counts.min() >= counts.max():
        return None
    order = np.argsort(-counts, kind="stable")
    return (
        f"classes are unbalanced: {listed((f'{_shortened(classes[c])} {counts[c]}' for c in order), 20)}; "
        f"always {_shortened(classes[order[0]])} would be right in {counts.max() / counts.sum():.1%}"
    )


def _cell(count: int, right: bool) -> Any:
    from rich.text import Text

    return Text(str(count) if count else ".", style="bold" if right else "red" if count else "dim")


def _print_worst(counts: npt.NDArray[np.int64], names: list[str]) -> None:
    wrong = counts - np.diag(np.diag(counts))
    worst = np.argsort(-wrong, axis=None, kind="stable")[:_WORST_SHOWN]
    print(f"most frequent confusions ({len(names)} classes are too many for a table here):")
    for true, predicted in zip(*np.unravel_index(worst, wrong.shape), strict=True):
        if wrong[true, predicted]:
            print(f"  {wrong[true, predicted]} of {counts[true].sum()} {names[true]} taken for {names[predicted]}")


def _shortened(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."
