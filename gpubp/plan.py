"""The planned training step: every array that a step writes, laid out once in one workspace. No maths in this file.

Layers and losses say what they write (`buffers`) and what backward reads again (`saves`). From that follows the life of
each array: the steps from its first write to its last read. Arrays whose lives do not overlap share memory. The step
itself is `Network.run_step`, the same code that runs eagerly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from gpubp.backend import Array
from gpubp.buffers import Buffer, Shape
from gpubp.errors import ShapeError
from gpubp.network import Network, StepBuffers
from gpubp.optimizers.base import Optimizer

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


class StepPlan:
    """The buffers of a training step of at most `batch_size` examples.

    Args:
        network: The network to train.
        batch_size: The largest number of examples in a step.
        stacked: Whether each member of a stack has its own examples, X (E, N, n_in), rather than sharing (N, n_in).

    Attributes:
        workspace: The one array that holds every buffer.
    """

    def __init__(self, network: Network, batch_size: int, *, stacked: bool = False) -> None:
        self.network, self.batch_size, self.stacked = network, batch_size, stacked
        self._planned = self._lives(batch_size)
        self._size = _lay_out(self._planned, ALIGNMENT // network.dtype.itemsize)
        with network.device.activate():
            self.workspace = _aligned(network.device.module, self._size, network.dtype)
        self._buffers: dict[int, StepBuffers] = {}

    @property
    def workspace_bytes(self) -> int:
        """Size of the workspace."""
        return int(self.workspace.nbytes)

    def step(
        self,
        X: Array,
        T: Array,
        sample_weight: Array | None,
        optimizer: Optimizer,
        *,
        reduce_gradients: Callable[[Array], None] | None = None,
    ) -> Array:
        """One training step on at most `batch_size` examples.

        Args:
            X: As `Network.inputs` gives it.
            T: As `Network.targets` gives it.
            sample_weight: As `Network.sample_weights` gives it.
            optimizer: Changes the network's parameters.
            reduce_gradients: Called with dL_dtheta before the update, to change it in place (an average over
                processes, say).

        Returns:
            The loss before the update, of shape () or (E,).
        """
        network = self.network
        with network.device.activate():
            L = network.run_step(X, T, sample_weight, self.buffers(X.shape[-2]))
            if reduce_gradients is not None:
                reduce_gradients(network.dL_dtheta)
            optimizer.update(network.theta, network.dL_dtheta)
        return L

    def buffers(self, N: int) -> StepBuffers:
        """Views of the workspace for a step of N examples; the last, smaller batch of an epoch uses the same memory.

        Raises:
            ShapeError: N is larger than the plan's batch size.
        """
        if N > self.batch_size:
            raise ShapeError(
                f"{N} examples in a step that was planned for at most {self.batch_size}: make a new StepPlan"
            )
        if N not in self._buffers:
            layers = range(len(self.network.executed))
            forward: list[dict[str, Array]] = [{} for _ in layers]
            backward: list[dict[str, Array]] = [{} for _ in layers]
            loss: dict[str, Array] = {}
            views = {"forward": forward, "loss": [loss], "backward": backward}
            for planned, actual in zip(self._planned, self._lives(N), strict=True):
                part, k, name = planned.place
                memory = self.workspace[planned.offset : planned.offset + actual.size]
                views[part][k][name] = memory.reshape(actual.shape)
            self._buffers[N] = StepBuffers(forward, loss, backward)
        return self._buffers[N]

    def __str__(self) -> str:
        """A table: each array, its shape, its life, where it lies."""
        lines = [f"{'array':<24}{'shape':<20}{'life':<10}{'bytes from':>12}"]
        itemsize = self.network.dtype.itemsize
        for planned in self._planned:
            part, k, name = planned.place
            owner = "loss" if part == "loss" else f"{k} {part}"
            life = f"{planned.born}-{planned.dies}"
            lines.append(f"{owner + ' ' + name:<24}{planned.shape!s:<20}{life:<10}{planned.offset * itemsize:>12,}")
        unshared = sum(planned.size for planned in self._planned) * itemsize
        lines.append(f"workspace: {self.workspace_bytes:,} bytes; without sharing: {unshared:,} bytes")
        return "\n".join(lines)

    def _lives(self, N: int) -> list[Planned]:
        """Every array that a step of N examples writes, with its life.

        Time runs 0 .. K-1 forward through the K layers, K in the loss, K+1 .. 2K backward from the last layer.
        """
        network, layers = self.network, self.network.executed
        xp, K = network.device.module, len(layers)
        shape: Shape = (*((network.members,) if self.stacked and network.members else ()), N, network.n_in)
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
                if not name.startswith("dL_d"):
                    lives.append(Planned(("forward", k, name), buffer.shape, k, dies))
        at_loss = {
            name: Planned(("loss", 0, name), b.shape, K, K) for name, b in network.loss.buffers(shape, xp).items()
        }
        gradient = at_loss["dL_dY"]
        gradient.dies = K + 1
        gradient.inside = at_loss.get(network.loss.buffers(shape, xp)["dL_dY"].overwrites or "")
        lives.extend(at_loss.values())
        for k in reversed(range(network.first_trained, K)):
            incoming, time = gradient, 2 * K - k
            for name, buffer in needs[k].items():
                if name == "Y" or name in layers[k].saves or (name == "dL_dX" and k == network.first_trained):
                    continue
                planned = Planned(("backward", k, name), buffer.shape, time, time + (name == "dL_dX"))
                if buffer.overwrites == "dL_dY" and buffer.shape == incoming.shape:
                    planned.inside = incoming
                if name == "dL_dX":
                    gradient = planned
                lives.append(planned)
        return lives


def _aligned(xp: ModuleType, size: int, dtype: Any) -> Array:
    """An empty array that starts at a multiple of `ALIGNMENT`."""
    if xp is not np:
        return xp.empty(size, dtype)  # CuPy's pool aligns to 512 bytes
    room = np.empty(size * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : start + size * dtype.itemsize].view(dtype)


def _lay_out(lives: list[Planned], alignment: int) -> int:
    """Set the offset of every array, so that no two that live at the same time overlap; returns the total size.

    Arrays that take over another's memory count as one with it. The rest go in by decreasing size, each to the lowest
    place that is free during its whole life.
    """
    groups: dict[int, list[Planned]] = {}
    for planned in lives:
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
