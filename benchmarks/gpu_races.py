"""The races of `benchmarks.on_a_gpu`: which cells, and against whom."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import product

from . import race
from .cases import Case
from .gpu_work import BATCHES, NARROW, NETS, RACED, WIDE, Note, Place, Row
from .peers import all_peers


@dataclass(frozen=True)
class Race:
    """Cells that are raced: every net with every optimizer and batch."""

    peers: tuple[str, ...]
    steps: tuple[tuple[str, str, int], ...]
    precision: str = "float32"

    def cases(self, place: Place) -> tuple[Case, ...]:
        """The cells, or to try a race out, some that are small."""
        steps = (("6-5-3", "adam", 4), ("6-5-3", "adam", 8)) if place.tiny else self.steps
        precision = "float32" if place.tiny else self.precision
        return tuple(Case(*step, "step", place.device, precision) for step in steps)


PEERS = ("gpubp", "torch", "torch-graph-32", "jax-scan")
RACES = {
    "race": Race(PEERS, tuple((net, name, batch) for net, batch, name in product(NETS, (*BATCHES, 256), RACED))),
    "race-compile": Race(("gpubp", "torch-compile"), ((WIDE, "adam", 4096), (NARROW, "adam", 32))),
    "race-tf32": Race(PEERS, ((WIDE, "adam", 4096),), "tf32"),
}
"""The last batch size of the first is the least telling."""


def run_race(name: str, place: Place, note: Note) -> None:
    """Race in the cells that an earlier run has not done; what is noted holds those of both."""
    began, chosen, earlier = time.perf_counter(), RACES[name], place.known.get(name, {})
    identity = ("net", "optimizer", "batch")
    done = {tuple(cell[key] for key in identity) for cell in earlier.get("cells", ())}
    cases = chosen.cases(place)
    missing = tuple(case for case in cases if tuple(getattr(case, key) for key in identity) not in done)
    if not missing:
        return
    names = ("gpubp", "numpy-naive") if place.tiny else chosen.peers
    settings = race.Settings(
        cases=missing,
        peers=tuple(peer for peer in all_peers() if peer.name in names),
        device=place.device,
        threads=1 if place.tiny else 4,
        seconds=0.002 if place.tiny else 0.06,
        rounds=2 if place.tiny else 3,
        data_rows=64 if place.tiny else 65536,
        timeout=min(40.0, place.seconds),  # torch.compile takes half of that where nothing is cached
        budget=place.seconds,
        deadline=place.seconds,
        ceilings_seconds=0.01 if place.tiny else 0.5,
    )

    def tell(count: int, words: str) -> None:
        print(f"{time.perf_counter() - began:6.1f} s: {count} of {len(missing)} cells, {words}", flush=True)

    def save(content: Row) -> None:
        cells = [*earlier.get("cells", ()), *content["cells"]]
        peers = {**earlier.get("peers", {}), **content["peers"]}
        note(name, {**content, "cells": cells, "cells_planned": len(cases), "peers": peers})

    race.Race(settings, f"python benchmarks/on_a_gpu.py: {name}", save, tell).run()
