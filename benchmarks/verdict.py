"""What the figures say, in words: who is ahead where, and what has changed between two runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import median
from typing import Any

from .results import SUBJECT, Panel, Results, rate, ratio

LEVEL = 1.03
"""Ratios below this, either way, are called level."""
CEILINGS = {
    "flops_per_second": ("GFLOP/s", 1e9),
    "bytes_per_second": ("GB/s from memory", 1e9),
    "cache_bytes_per_second": ("GB/s in the caches", 1e9),
}
"""What the ceilings are called, and in which unit they are told."""


def verdict(results: Results) -> list[str]:
    """One sentence for each network and optimizer; one more where gpubp was not all that it can be."""
    sentences = [f"{', '.join(panel)}: {_sentence(results, panel)}" for panel in results.panels]
    if reason := results.why_no_kernels:
        sentences.append(f"{SUBJECT} ran WITHOUT its compiled CPU kernels: {reason}.")
    return sentences


def _sentence(results: Results, panel: Panel) -> str:
    judged = [(cell["batch"], *judge(results, cell)) for cell in results.cells(panel)]
    if not any(against is not None for _, _, against, _ in judged):
        return f"nothing to compare: a figure of {SUBJECT} and one of a peer are needed."
    return "; ".join(_clauses(judged)) + "."


def judge(results: Results, cell: dict[str, Any]) -> tuple[str, str | None, float]:
    """Who is ahead in a cell: the outcome (``ahead``, ``level``, ``behind``, ``none``), the best peer, and the ratio
    of gpubp to it.
    """
    best = results.best_peer(cell)
    if best is None or (value := ratio(cell, SUBJECT, best)) is None:
        return "none", None, 0.0
    if value >= LEVEL:
        return "ahead", best, value
    return ("level" if value > 1 / LEVEL else "behind"), best, value


def _clauses(judged: Sequence[tuple[int, str, str | None, float]]) -> Iterator[str]:
    """A clause for each run of neighbouring batch sizes with the same outcome (and, if behind, the same winner)."""
    for (outcome, _), group in groupby(judged, key=lambda j: (j[1], j[2] if j[1] in ("behind", "level") else None)):
        members = list(group)
        where = f"at batch {span([batch for batch, *_ in members])}"
        best, ratios = members[0][2], [value for *_, value in members]
        if outcome == "ahead":
            yield f"{where} {SUBJECT} is ahead ({times(ratios)} the best peer)"
        elif outcome == "level":
            yield f"{where} {SUBJECT} and {best} are level"
        elif outcome == "behind":
            yield f"{where} {best} is ahead ({times([1 / value for value in ratios])} {SUBJECT})"
        else:
            yield f"{where} there is nothing to compare"


def span(batches: Sequence[int]) -> str:
    """``8 to 512``, or ``8``."""
    return f"{batches[0]:,}" if len(batches) == 1 else f"{batches[0]:,} to {batches[-1]:,}"


def times(ratios: Sequence[float]) -> str:
    """``1.40 to 3.10 times``, or ``12 times``."""
    low, high = (f"{value:.{2 if value < 9.995 else 0}f}" for value in (min(ratios), max(ratios)))
    return f"{low} times" if low == high else f"{low} to {high} times"


def change(new: Results, old: Results) -> list[str]:
    """For each network and optimizer that both have, how many times as fast as before gpubp and its peers are."""
    sentences = []
    for panel in new.panels:
        ratios = changes(new, old, panel)
        own = [value for (_, name), value in ratios.items() if name == SUBJECT]
        others = [value for (_, name), value in ratios.items() if not new.is_own(name)]
        if own:
            control = ""
            if others:
                drift = median(others)
                control = (
                    f"; the peers, which tell the machine's drift: {drift:.2f} times, so against them {SUBJECT} is "
                    f"{median(own) / drift:.2f} times as fast as before"
                )
            sentences.append(
                f"{', '.join(panel)}: {SUBJECT} is {median(own):.2f} times as fast as before, as the median over "
                f"batch sizes ({min(own):.2f} to {max(own):.2f}){control}."
            )
    return sentences or ["the two files have no case in common."]


def changes(new: Results, old: Results, panel: Panel) -> dict[tuple[int, str], float]:
    """By batch size and peer: samples per second now, divided by those before."""
    before = {cell["batch"]: cell for cell in old.cells(panel)}
    found = {}
    for cell in new.cells(panel):
        earlier = before.get(cell["batch"])
        if earlier is None or _kind(earlier) != _kind(cell):
            continue
        for name in cell["peers"]:
            now, then = rate(cell, name), rate(earlier, name)
            if now and then:
                found[cell["batch"], name] = now / then
    return found


def _kind(cell: dict[str, Any]) -> tuple[str, str, str]:
    """What two cells must have in common to be compared; files from before there was a precision hold float32."""
    return cell["work"], cell["device"], cell.get("precision", "float32")


def differences(new: Results, old: Results) -> list[str]:
    """What differs between two runs besides the figures: the machine's facts and ceilings, settings, versions of peers.

    Ceilings are measured, and never quite the same: those count that are not level.
    """
    sentences = []
    for told, before in zip(_facts(new), _facts(old), strict=True):
        for name in dict.fromkeys((*told, *before)):
            now, then = told.get(name, "not told"), before.get(name, "not told")
            if now != then:
                sentences.append(f"{name}: {then} before, {now} now")
    ceilings, earlier = new.content.get("ceilings", {}), old.content.get("ceilings", {})
    for name, (words, scale) in CEILINGS.items():
        now, then = ceilings.get(name), earlier.get(name)
        if now and then and not 1 / LEVEL <= now / then <= LEVEL:
            sentences.append(f"ceiling, {words}: {then / scale:,.1f} before, {now / scale:,.1f} now")
    return sentences


def _facts(results: Results) -> Iterator[dict[str, Any]]:
    """What a run tells about the machine, its settings, and the version of each peer."""
    yield results.content["machine"]
    yield results.content["settings"]
    yield {
        f"peer {name}": "absent" if "absent" in known else known["facts"]["version"]
        for name, known in results.content["peers"].items()
    }
