"""`every_fault.py`: a sample of it, and that it notices what must not be."""

from __future__ import annotations

import random
import re
from typing import Any

import every_fault
import pytest

from gpubp import cuda, faults
from gpubp.network import Network
from gpubp.optimizers.base import Optimizer


@pytest.mark.parametrize("name", every_fault.SESSIONS)
def test_a_sample_of_calls(name: str) -> None:
    campaign = every_fault.Campaign()
    calls, *_ = campaign.known(name)
    chosen = random.Random(name)
    for kind in every_fault.KINDS:
        campaign.attempt(name, kind, chosen.choice(campaign.numbers(name, kind)))
    assert campaign.wrong == []
    assert len(calls) > 10


def polls(event: Any) -> None:
    """Wait as if an event that has not been passed were always still to come."""
    while not event.done:
        pass


PLANTED = {
    "a wait for ever": (cuda, "wait", polls, "lost unnoticed", 0.6, "HeldUpError"),
    "a lost device that is let pass": (faults, "raise_if_lost", lambda *_: None, "lost", 0.6, "Try again"),
    "weights that stay half trained": (Network, "restore", lambda *_: None, "refused", 0.9, "after . epochs"),
    "a state that stays half changed": (Optimizer, "restore", lambda *_: None, "no memory", 0.999, "optimizer's"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_must_not_be_is_noticed(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    owner, name, planted, kind, where, words = PLANTED[what]
    campaign = every_fault.Campaign()
    numbers = campaign.numbers("resident", kind)
    monkeypatch.setattr(owner, name, planted)
    monkeypatch.setattr(every_fault, "SECONDS", 3)
    campaign.attempt("resident", kind, numbers[int(where * len(numbers))])
    assert len(campaign.wrong) == 1
    assert re.search(words, campaign.wrong[0]), campaign.wrong


def test_the_program_says_what_it_tried(capsys: pytest.CaptureFixture[str]) -> None:
    assert every_fault.main(["a new network", "--every", "9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"a new network: no memory at 1 of \d+ calls, 0 wrong", lines[0])
    assert lines[-1] == "0 held up, 0 wrong"
