"""Peers that go wrong in all the ways that a race has to cope with; each one is otherwise the naive NumPy peer."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import numpy as np
from gpubp.benchmarks.peers import Peer, Run
from gpubp.benchmarks.peers.naive_numpy import NaiveNumpy, NaiveRun


class Good(NaiveNumpy):
    name = "good"


class Absent(NaiveNumpy):
    name, package, module = "absent", "no-such-package", "no_such_module"


class Broken(NaiveNumpy):
    """Installed, but its import fails."""

    name = "broken"

    def absent(self, device: str) -> str | None:
        raise OSError("libnothing.so: cannot open shared object file")


class Picky(NaiveNumpy):
    name = "picky"

    def supports(self, case: Any) -> str | None:
        return "does odd batch sizes only"


class Raising(NaiveNumpy):
    name = "raising"

    def prepare(self, case: Any, data: Any) -> Run:
        raise ValueError("no such\nshape")


class _Run(NaiveRun):
    """Goes wrong in the fourth step, when the check is done."""

    done = 0

    def step(self, rows: Any) -> None:
        super().step(rows)
        self.done += 1
        if self.done > 3:
            self.go_wrong()

    def go_wrong(self) -> None:
        raise NotImplementedError


class Crashing(NaiveNumpy):
    name = "crashing"

    def prepare(self, case: Any, data: Any) -> Run:
        class CrashingRun(_Run):
            def go_wrong(self) -> None:
                print("last words", file=sys.stderr, flush=True)
                os._exit(3)

        return CrashingRun(case, data)


class Lost(NaiveNumpy):
    """Its process can't use the device any more."""

    name = "lost"

    def prepare(self, case: Any, data: Any) -> Run:
        class LostRun(_Run):
            def go_wrong(self) -> None:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")

        return LostRun(case, data)


class Hanging(NaiveNumpy):
    name = "hanging"

    def prepare(self, case: Any, data: Any) -> Run:
        class HangingRun(_Run):
            def go_wrong(self) -> None:
                time.sleep(600)

        return HangingRun(case, data)


class Lazy(NaiveNumpy):
    """Does nothing, and is very fast."""

    name = "lazy"

    def prepare(self, case: Any, data: Any) -> Run:
        run = NaiveRun(case, data)
        run.step = lambda rows: None
        return run


class Hasty(NaiveNumpy):
    """Takes a rate that is three percent too high."""

    name = "hasty"

    def prepare(self, case: Any, data: Any) -> Run:
        class HastyRun(NaiveRun):
            def step(self, rows: Any) -> None:
                before = self.weights
                super().step(rows)
                self.weights = [b + np.float32(1.03) * (w - b) for b, w in zip(before, self.weights, strict=True)]

        return HastyRun(case, data)


class Chatty(NaiveNumpy):
    """Prints where the answers go, from Python and from below."""

    name = "chatty"

    def prepare(self, case: Any, data: Any) -> Run:
        print('{"error": "not an answer"}', flush=True)
        os.write(1, b"nor this\n")
        return NaiveRun(case, data)


PEERS: list[Peer] = [
    kind() for kind in (Good, Absent, Broken, Picky, Raising, Crashing, Lost, Hanging, Lazy, Hasty, Chatty)
]
