"""The workers of a race: who is there, who is absent, who was lost and may come back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from .peers import Peer
from .processes import LostWorkerError, WorkerError, WorkerProcess

MOST_LOSSES = 2
"""A peer whose process was lost so often is not started again."""

Answers = dict[str, dict[str, Any]]
"""By the peer's name: what its worker answers, or ``{"failed": reason}``."""


class TimeIsUpError(Exception):
    """The race has used up its time."""


class Team:
    """A worker for each peer.

    Args:
        peers: In the order of the tables.
        threads: How many each library may use.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        timeout: Seconds that a peer may take for one command.
        left: Tells the seconds that are left for the race; nobody is waited for any longer.

    Attributes:
        peers: By name.
        known: By name: whether it is gpubp's own, whether it has the other form of Adam (`Peer.uncorrected_epsilon`),
            and either ``absent``, the reason, or ``facts``.
    """

    def __init__(
        self,
        peers: Iterable[Peer],
        threads: int,
        device: str,
        timeout: float,
        left: Callable[[], float] = lambda: math.inf,
    ) -> None:
        self.peers = {peer.name: peer for peer in peers}
        self.known: Answers = {}
        self._threads, self._device, self._timeout, self._left = threads, device, timeout, left
        self._workers: dict[str, WorkerProcess] = {}
        self._losses: dict[str, list[str]] = {name: [] for name in self.peers}

    def start(self) -> None:
        """Start, all at once, the workers that are not there: at the beginning all of them, later those lost."""
        names = [
            name
            for name, losses in self._losses.items()
            if name not in self._workers and "absent" not in self.known.get(name, {}) and len(losses) < MOST_LOSSES
        ]
        for name in names:  # one by one into the mapping: `close` must know them all, whatever happens
            self._workers[name] = WorkerProcess(self.peers[name], self._threads, self._device)
        for name, answer in self.ask_all(names, "start").items():
            if "failed" in answer:
                answer = {"absent": f"can't start: {answer['failed']}"}
            peer = self.peers[name]
            self.known[name] = {"own": peer.own, "uncorrected_epsilon": peer.uncorrected_epsilon, **answer}
            if "absent" in answer and name in self._workers:
                self._workers.pop(name).close()

    def present(self) -> Answers:
        """By name, for every peer that is not absent: nothing, or why it is not there at the moment."""
        return {
            name: {} if name in self._workers else {"failed": f"not tried again: {self._losses[name][-1]}"}
            for name, known in self.known.items()
            if "absent" not in known
        }

    def ask(self, name: str, do: str, /, **arguments: Any) -> dict[str, Any]:
        """Give one worker a command and wait for its answer."""
        return self.ask_all([name], do, **arguments)[name]

    def ask_all(
        self,
        names: Iterable[str],
        do: str,
        meanwhile: Callable[[], None] = lambda: None,
        **arguments: Any,
    ) -> Answers:
        """Give several workers the same command at the same time, and wait for all answers.

        Args:
            names: Whom to ask.
            do: The command.
            meanwhile: What to do while they work.
            **arguments: Of the command; ``{name}`` in a text stands for the worker's name.

        Raises:
            TimeIsUpError: There is no time left for the race.
        """
        asked = list(names)
        for name in asked:
            said = {
                key: value.replace("{name}", name) if isinstance(value, str) else value
                for key, value in arguments.items()
            }
            self._workers[name].send(do, **said)
        meanwhile()
        answers: Answers = {}
        for name in asked:
            if (left := self._left()) <= 0:
                raise TimeIsUpError
            try:
                answers[name] = self._workers[name].receive(min(self._timeout, left))
            except LostWorkerError as error:
                self._workers.pop(name)
                if self._left() <= 0:  # the peer did not fail: nobody could wait for it
                    raise TimeIsUpError from error
                self._losses[name].append(str(error))
                answers[name] = {"failed": str(error)}
            except WorkerError as error:
                answers[name] = {"failed": str(error)}
        return answers

    def close(self) -> None:
        """End all processes."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
