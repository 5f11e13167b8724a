"""Where the arrays of a training step lie: the life of each, and one workspace, shared by lives that never meet.

Layers and losses say what they write (`buffers`) and what backward reads again (`saves`). From that follows the life of
each array: the steps from its first write to its last read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gpubp.buffers import Buffer, Shape

ALIGNMENT = 64
"""Bytes: every array of the workspace starts at a multiple of this, a cache line."""


@dataclass
class Planned:
    """One array of the plan.

    Attributes:
        place: Where the step looks for it: pass (``forward``, ``loss``, ``backward``), layer, name.
        shape: Its shape for a full batch.
        born: The step that writes it first.
        dies: The step that reads it last.
        inside: The array whose memory it takes over, element by element; None where it has its own.
        offset: Where it starts in the workspace, in elements.
    """

    place: tuple[str, int, str]
    shape: Shape
    born: int
    dies: int
    inside: Planned | None = None
    offset: int = 0

    @property
    def size(self) -> int:
        """Its number of elements."""
        return math.prod(self.shape)


def lives(network: Any, N: int, stacked: bool) -> list[Planned]:
    """Every array that a step of N examples writes, with its life.

    Time runs 0 .. K-1 forward through the K layers, K in the loss, K+1 .. 2K backward from the last layer.

    Args:
        network: What has the attributes of `gpubp.Network`.
        N: How many examples.
        stacked: Whether each member of a stack has its own.
    """
    layers = network.executed
    xp, K = network.device.module, len(layers)
    shape: Shape = (*((network.members,) if stacked and network.members else ()), N, network.n_in)
    needs: list[dict[str, Buffer]] = []
    for layer in layers:
        needs.append(layer.buffers(shape, xp))
        shape = needs[-1]["Y"].shape
    lives = []
    for k, layer in enumerate(layers):
        for name, buffer in needs[k].items():
            dies = 2 * K - k if name in layer.saves else k
            if name == "Y":  # read by the next layer too, which may want it again in its own backward
                again = k + 1 < K and "X" in layers[k + 1].saves
                dies = max(dies, 2 * K - (k + 1) if again else k + 1)
            if not _own(name).startswith("dL_d"):
                lives.append(Planned(("forward", k, name), buffer.shape, k, dies))
    of_loss = network.loss.buffers(shape, xp)
    at_loss = {name: Planned(("loss", 0, name), buffer.shape, K, K) for name, buffer in of_loss.items()}
    if "L" in at_loss:
        at_loss["L"].dies = 2 * K  # it is the result of the step, and the penalty is added to it at its end
    gradient = at_loss["dL_dY"]
    gradient.dies = K + 1
    read_last = {planned.place[2]: planned for planned in lives if planned.place[1] == K - 1 and planned.dies == K}
    gradient.inside = {"Y": read_last.get("Y"), **at_loss}.get(of_loss["dL_dY"].overwrites or "")
    lives.extend(at_loss.values())
    for k in reversed(range(network.first_trained, K)):
        incoming, time = gradient, 2 * K - k
        for name, buffer in needs[k].items():
            unused = name.startswith("dL_dX") and k == network.first_trained
            if _own(name) == "Y" or name in layers[k].saves or unused:
                continue
            planned = Planned(("backward", k, name), buffer.shape, time, time + (name == "dL_dX"))
            if buffer.overwrites == "dL_dY" and buffer.shape == incoming.shape:
                planned.inside = incoming
            if name == "dL_dX":
                gradient = planned
            lives.append(planned)
    return lives


def _own(name: str) -> str:
    """What the layer calls it that writes it, within a layer that is made of others: ``Y`` for ``0.Y``."""
    return name.rpartition(".")[2]


def lay_out(arrays: list[Planned], itemsize: int) -> int:
    """Set the offset of every array, so that no two that live at the same time overlap; returns the total of elements.

    Arrays that take over another's memory count as one with it. The rest go in by decreasing size, each to the lowest
    place that is free during its whole life.
    """
    alignment = ALIGNMENT // itemsize
    groups: dict[int, list[Planned]] = {}
    for planned in arrays:
        root = planned
        while root.inside is not None:
            root = root.inside
        groups.setdefault(id(root), []).append(planned)
    placed: list[tuple[int, int, int, int]] = []  # born, dies, start, stop
    for group in sorted(groups.values(), key=lambda group: -group[0].size):
        born, dies = min(p.born for p in group), max(p.dies for p in group)
        size = -(-max(p.size for p in group) // alignment) * alignment
        start = 0
        for other_born, other_dies, other_start, other_stop in sorted(placed, key=lambda entry: entry[2]):
            if other_born <= dies and born <= other_dies and other_start < start + size and start < other_stop:
                start = other_stop
        placed.append((born, dies, start, start + size))
        for planned in group:
            planned.offset = start
    return max((stop for *_, stop in placed), default=0)
