"""Results of a race as a file of JSON, and what can be asked of them.

The file holds ``machine`` (facts), ``ceilings``, ``settings``, ``peers`` (by name: facts, or why absent) and ``cells``:
one for each case, with what a step needs at least (``flops``, ``bytes``, as `gpubp.cost` counts them), and samples per
second of every peer in every round, or the reason why there are none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from gpubp.errors import DataError
from gpubp.files import write_atomically

from .cases import WORK

FORMAT = "gpubp bench 1"
REASONS = {"failed": "failed", "disagrees": "disagrees", "unsupported": "n/a"}
"""Why a cell has no figure, and the word for it in a table."""
SUBJECT = "gpubp"
"""The peer that all others are compared with: the library as it is installed."""
NO_KERNELS = "no CPU kernels: "
"""How the fact about gpubp's CPU kernels begins where it runs without them; the reason follows."""

_NUMBER = (int, float)
_Kinds = Mapping[str, type | tuple[type, ...]]
_CONTENT: _Kinds = {
    "date": str,
    "command": str,
    "settings": dict,
    "machine": dict,
    "peers": dict,
    "cells_planned": int,
    "cells": list,
}
_SETTINGS: _Kinds = {"precision": str, "device": str, "threads": int, "seconds": _NUMBER}
_CELL: _Kinds = {
    "net": str,
    "optimizer": str,
    "batch": int,
    "work": str,
    "device": str,
    "floor_samples_per_second": _NUMBER,
    "checked_at_batch": int,
    "peers": dict,
}
_CEILINGS: _Kinds = {"flops_per_second": _NUMBER, "bytes_per_second": _NUMBER}
"""What the parts of a file must hold to be shown; there may be more in them."""

Panel = tuple[str, str]
"""A network and an optimizer: one table, one plot."""


@dataclass(frozen=True)
class Results:
    """What is in a file of results."""

    content: dict[str, Any]

    @property
    def panels(self) -> list[Panel]:
        """Every network and optimizer, in the order of the cells."""
        return list(dict.fromkeys((cell["net"], cell["optimizer"]) for cell in self.content["cells"]))

    def cells(self, panel: Panel) -> list[dict[str, Any]]:
        """The cells of a panel, by batch size."""
        found = [cell for cell in self.content["cells"] if (cell["net"], cell["optimizer"]) == panel]
        return sorted(found, key=lambda cell: cell["batch"])

    @property
    def racers(self) -> list[str]:
        """The peers that are not absent, in the order of the tables."""
        return [name for name, known in self.content["peers"].items() if "absent" not in known]

    def is_own(self, name: str) -> bool:
        """Whether a peer is gpubp itself."""
        return bool(self.content["peers"].get(name, {}).get("own"))

    @property
    def why_no_kernels(self) -> str | None:
        """Why gpubp ran on the CPU without its compiled kernels; None where it had them, or ran elsewhere."""
        facts = self.content["peers"].get(SUBJECT, {}).get("facts", {})
        found = facts.get("kernels", "")
        if self.content["settings"]["device"] != "cpu" or not found.startswith(NO_KERNELS):
            return None
        return str(found.removeprefix(NO_KERNELS))

    def best_peer(self, cell: dict[str, Any]) -> str | None:
        """The fastest of those that are not gpubp, by the median of their rounds; None if there is no figure."""
        rates = {name: rate(cell, name) for name in self.racers if not self.is_own(name)}
        fastest = max(rates, key=lambda name: rates[name] or 0, default=None)
        return fastest if fastest is not None and rates[fastest] else None

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_atomically(path, (json.dumps(self.content, indent=1) + "\n").encode())


def rate(cell: dict[str, Any], name: str) -> float | None:
    """Samples per second of a peer: the median of its rounds."""
    found = cell["peers"].get(name, {}).get("samples_per_second")
    return None if found is None else float(found)


def ratio(cell: dict[str, Any], name: str, other: str) -> float | None:
    """How many times as fast as another a peer is: the median over the rounds, each with its own conditions."""
    pairs = zip(_rounds(cell, name), _rounds(cell, other), strict=False)
    ratios = [a / b for a, b in pairs if a and b]
    return median(ratios) if ratios else None


def _rounds(cell: dict[str, Any], name: str) -> list[float | None]:
    return list(cell["peers"].get(name, {}).get("rounds", ()))


def reasons(cell: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, kind and reason of every peer without a figure."""
    for name, entry in cell["peers"].items():
        for kind in REASONS:
            if kind in entry:
                yield name, kind, entry[kind]
                break


def load(path: Path) -> Results:
    """The results in a file.

    Raises:
        DataError: It can't be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path} is not a file of gpubp bench: it is no JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path} is not a file of gpubp bench, of the format {FORMAT!r}")
    if not content.get("cells"):
        raise DataError(f"{path} holds no figure: the run was stopped before the first one")
    if wrong := next(_faults(content), None):
        raise DataError(f"{path} is not a whole file of gpubp bench: {wrong}")
    return Results(content)


def _faults(content: dict[str, Any]) -> Iterator[str]:
    """What is missing, or of the wrong kind, in a file; the first one counts, as others follow from it."""
    yield from _lacks(content, _CONTENT, "the file")
    yield from _lacks(content["settings"], _SETTINGS, "'settings'")
    if "ceilings" in content:
        yield from _lacks(content["ceilings"], _CEILINGS, "'ceilings'")
    for name, known in content["peers"].items():
        yield from _lacks(known, {}, f"peer {name!r}")
        yield from _lacks(known, {"absent": str} if "absent" in known else {"facts": dict}, f"peer {name!r}")
        if "absent" not in known:
            yield from _lacks(known["facts"], {"version": str}, f"'facts' of peer {name!r}")
    for number, cell in enumerate(content["cells"], 1):
        where = f"cell {number}"
        yield from _lacks(cell, _CELL, where)
        if cell["work"] not in WORK:
            yield f"{where} has the unknown work {cell['work']!r}"
        for name, entry in cell["peers"].items():
            yield from _lacks(entry, {}, f"{where}, peer {name!r}")
            kinds: dict[str, Any] = {"rounds": list, "samples_per_second": _NUMBER, **dict.fromkeys(REASONS, str)}
            given = {key: kind for key, kind in kinds.items() if key in entry}
            yield from _lacks(entry, given, f"{where}, peer {name!r}")
            if not all(rate is None or isinstance(rate, _NUMBER) for rate in entry.get("rounds", ())):
                yield f"{where}, peer {name!r} has rounds that are no numbers"


def _lacks(part: Any, kinds: _Kinds, where: str) -> Iterator[str]:
    """In words, what a part of a file should be or hold, and does not."""
    if not isinstance(part, dict):
        yield f"{where} is no JSON object"
        return
    for name, kind in kinds.items():
        if not isinstance(part.get(name), kind):
            yield f"{where} has no {name!r}, or one of another kind"
