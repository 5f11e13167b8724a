"""Lets every call of the driver fail in turn, in short trainings on the stand-in for CuPy: a program, not a test.

Run ``python tests/every_fault.py``, for some trainings alone with their names, with ``--every 20`` for a sample. Each
call fails in each of the ways of `KINDS`. Whatever a user calls must then end within `SECONDS`, and if not as ever then
with an error of gpubp's. After an error that a device survives, the network is as it was before the epoch, computes as
the same one on the CPU does, and goes on training as if nothing had been. The exit code is 1 where that is not so.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import fake_cupy as fake  # noqa: E402

import gpubp  # noqa: E402
from gpubp.errors import DeviceLostError, GpubpError  # noqa: E402

SECONDS = 20
"""What no call takes that is not held up for ever, on a slow machine too."""
EPOCHS = 2
STATUSES = (700, 716, 719)
"""Of errors that a device does not survive; one of them is chosen by the number of the call."""
ALLOCATIONS = {"allocate", "pinned", "instantiate", "event", "stream", "module"}
"""The kinds of calls that take memory, of the device or of the driver."""


def no_memory(n: int, kind: str) -> None:
    """There is no memory left, this once."""
    raise fake.OutOfMemoryError(512, 0) if kind == "allocate" else fake.CUDARuntimeError(2)


def refused(n: int, kind: str) -> None:
    """The call is refused, this once."""
    raise (fake.CUDADriverError if kind == "launch" else fake.CUDARuntimeError)(1)


def lost(n: int, kind: str) -> None:
    """The device is lost, and this call is the first to say so."""
    fake.machine.lost = STATUSES[n % 3]


def lost_unnoticed(n: int, kind: str) -> None:
    """A kernel fails, and nobody knows before the host waits: queries give that status for ever."""
    fake.machine.running_into = STATUSES[n % 3]


KINDS: dict[str, Callable[[int, str], None]] = {
    "no memory": no_memory,
    "refused": refused,
    "lost": lost,
    "lost unnoticed": lost_unnoticed,
}
SURVIVED = {"no memory", "refused"}


class HeldUpError(BaseException):
    """A call took too long; no `Exception`, so that nothing that is watched lets it pass."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Raise a `HeldUpError` in the main thread where a block takes longer."""

    def held_up(*_: Any) -> None:
        raise HeldUpError(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, held_up)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class ShownProgress(gpubp.callbacks.Progress):
    """A bar that is shown nowhere."""

    shown, due = True, True


@dataclass
class Session:
    """A user's network, data and optimizer, and what he does with them."""

    members: int | None = None
    order: str | None = None
    optimizer: Callable[[], Any] = lambda: gpubp.Adam(0.02, clip_norm=1.0)
    settings: dict[str, Any] = field(default_factory=dict)
    shown: bool = False
    stops: bool = False
    call: Callable[[Session], Any] | None = None
    """What is called in place of `fit`."""

    def begin(self, device: str = "cuda") -> None:
        rng = np.random.default_rng(0)
        self.X, self.T = rng.normal(size=(11, 3)).astype(np.float32), rng.integers(0, 2, 11)
        layers = [gpubp.Dense(3, 4), gpubp.BatchNorm(4), gpubp.Tanh(), gpubp.Dropout(0.25), gpubp.Dense(4, 2)]
        self.net = gpubp.Network(layers, "softmax_cross_entropy", device=device, rng=1, members=self.members, l2=0.01)
        self.used = self.optimizer()

    def fit(self, epochs: int) -> None:
        callbacks = [gpubp.EarlyStopping(1)] if self.stops else []
        settings = {"validation": (self.X[:5], self.T[:5]), **self.settings} if self.stops else self.settings
        gpubp.fit(
            self.net, self.X, self.T, optimizer=self.used, epochs=epochs, batch_size=4, callbacks=callbacks, **settings
        )

    def act(self) -> Any:
        return self.fit(EPOCHS) if self.call is None else self.call(self)

    def state(self) -> dict[str, np.ndarray]:
        """All that a training changes."""
        arrays = {"theta": self.net.theta, **{f"statistics {k}": a for k, a in enumerate(self.net.statistics)}}
        arrays |= {f"optimizer's {name}": array for name, array in self.used.state.items()}
        counts = {"epochs": self.net.epochs_trained, "steps": self.used.steps, "draws": self.net.draws.steps}
        return {name: np.array(gpubp.to_host(value)) for name, value in {**arrays, **counts}.items()}


def evaluated(session: Session) -> Any:
    return session.net.evaluate(session.X, session.T, batch_size=4)


def predicted(session: Session) -> Any:
    return gpubp.to_host(session.net.predict(session.X, batch_size=4))


def gradients(session: Session) -> Any:
    L, named = session.net.loss_and_gradients(session.X, session.T)
    return [L, *map(gpubp.to_host, named.values())]


def by_lbfgs(session: Session) -> None:
    gpubp.fit_lbfgs(session.net, session.X, session.T, iterations=2)


def begun(session: Session) -> Any:
    session.begin()


SESSIONS: dict[str, Callable[[], Session]] = {
    "resident": Session,
    "streamed": lambda: Session(settings={"resident": False}),
    "micro-batches": lambda: Session(settings={"micro_batch_size": 3}),
    "a stack": lambda: Session(members=2, optimizer=lambda: gpubp.SGD([0.1, 0.2], 0.9)),
    "early stopping": lambda: Session(stops=True),
    "a progress bar": lambda: Session(shown=True),
    "work is late": lambda: Session(order="late"),
    "the newest work first, streamed": lambda: Session(order="newest", settings={"resident": False}),
    "predict": lambda: Session(call=predicted),
    "evaluate": lambda: Session(call=evaluated),
    "loss_and_gradients": lambda: Session(call=gradients),
    "L-BFGS": lambda: Session(call=by_lbfgs),
    "a new network": lambda: Session(call=begun),
}


class Campaign:
    """What was tried, and what came of it.

    Attributes:
        tried: By training and kind: how many calls were made to fail.
        ended: By what a user's call ended with: how many times.
        wrong: What must not be, in words.
    """

    def __init__(self) -> None:
        self.tried: collections.Counter[tuple[str, str]] = collections.Counter()
        self.ended: collections.Counter[str] = collections.Counter()
        self.wrong: list[str] = []
        self._known: dict[str, tuple[list[str], list[dict[str, np.ndarray]], Any]] = {}

    @contextlib.contextmanager
    def session(self, name: str) -> Iterator[Session]:
        session = SESSIONS[name]()
        progress = gpubp.trainer.Progress
        gpubp.trainer.Progress = ShownProgress if session.shown else progress
        with fake.installed(order=session.order), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*captured as (a|one) CUDA graph")
            try:
                session.begin()
                yield session
            finally:
                gpubp.trainer.Progress = progress

    def known(self, name: str) -> tuple[list[str], list[dict[str, np.ndarray]], Any]:
        """The calls that a training makes where none fails, its states from epoch to epoch, and what was returned."""
        if name not in self._known:
            with self.session(name) as session:
                fake.machine.calls.clear()
                result = session.act()
                calls = list(fake.machine.calls)
            states = []
            with self.session(name) as session:
                if session.call is None:
                    for _ in range(EPOCHS + 1):
                        states.append(session.state())
                        session.fit(1)
                    states.append(session.state())
            self._known[name] = calls, states, result
        return self._known[name]

    def numbers(self, name: str, kind: str) -> list[int]:
        """Which calls of a training can fail in this way, counted from 1."""
        calls, *_ = self.known(name)
        return [n for n, call in enumerate(calls, start=1) if kind != "no memory" or call in ALLOCATIONS]

    def attempt(self, name: str, kind: str, n: int) -> None:
        """Let the n-th call, from 1 on, fail."""
        self.tried[name, kind] += 1
        what = f"{name}: {kind} at call {n}"
        try:
            with self.session(name) as session:
                self._attempt(session, name, kind, n, what)
        except AssertionError as error:
            self.wrong.append(f"{what}: {error}")
        except (Exception, HeldUpError) as error:
            where = "".join(traceback.format_exception(error)[-3:])
            self.wrong.append(f"{what}: {type(error).__name__} afterwards: {error}\n{where}")

    def _attempt(self, session: Session, name: str, kind: str, n: int, what: str) -> None:
        _, states, result = self.known(name)
        struck: list[str] = []
        before = session.state()

        def fault(number: int, of_kind: str) -> None:
            if number >= n and not struck:
                struck.append(of_kind)
                KINDS[kind](n, of_kind)

        fake.machine.calls.clear()
        fake.machine.fault = fault
        returned: Any = None
        try:
            with bounded():
                returned = session.act()
        except GpubpError as error:
            self.ended[type(error).__name__] += 1
            said = str(error)
        except (Exception, HeldUpError) as error:
            self.ended[type(error).__name__] += 1
            where = "".join(traceback.format_exception(error)[-4:])
            raise AssertionError(f"at {struck}: {type(error).__name__}: {error}\n{where}") from None
        else:
            self.ended["no error"] += 1
            said = ""
        fake.machine.fault = None
        if kind not in SURVIVED:
            # Without an error only where nobody has waited since; the next to wait is told.
            assert said or not fake.machine.lost, f"at {struck}: the call ended as if nothing had been"
            assert not said or ("restarted" in said and " while " in said), f"at {struck}: {said}"
            with bounded():
                self._stays_lost(session)
            return
        with bounded():
            if not said and session.call is not None and result is not None:
                _close(returned, result, "what was returned")
            if session.call is begun:
                session.begin()
            if session.call is None:
                self._goes_on(session, states)
            elif said and struck != ["setDevice"] and "copying results" not in said and session.call is not by_lbfgs:
                # Before that all was done; L-BFGS keeps the iterations that were.
                _close(session.state(), before, "before")
            self._computes(session)

    def _stays_lost(self, session: Session) -> None:
        """Whatever comes next says the same."""
        for call in (predicted, evaluated):
            try:
                call(session)
            except DeviceLostError:
                continue
            except GpubpError as error:
                raise AssertionError(f"{call.__name__} says something else afterwards: {error}") from error
            raise AssertionError(f"{call.__name__} computes on a lost device")

    def _goes_on(self, session: Session, states: list[dict[str, np.ndarray]]) -> None:
        """The network is what it was after a whole number of epochs, and the next epoch is what it would have been."""
        if session.stops:  # it has the best weights, whichever these are
            assert any(np.allclose(session.state()["theta"], state["theta"], atol=1e-5) for state in states)
            session.fit(1)
            return
        done = session.net.epochs_trained
        _close(session.state(), states[done], f"after {done} epochs")
        if done <= EPOCHS:
            session.fit(1)
            _close(session.state(), states[done + 1], f"after one epoch more than {done}")

    def _computes(self, session: Session) -> None:
        """The network computes what the same one computes on the CPU."""
        other = SESSIONS["resident"]()
        other.begin("cpu")
        other.X, other.T, other.net = session.X, session.T, session.net.copy(device="cpu")
        for call in (predicted, evaluated, gradients):
            _close(call(session), call(other), call.__name__)


def _close(found: Any, expected: Any, what: str) -> None:
    """Raise an AssertionError where numbers differ by more than rounding."""
    if isinstance(found, dict):
        for name in expected:
            _close(found[name], expected[name], f"{name} {what}")
        for name in found.keys() - expected.keys():  # state that was made, and put back to what it is before any step
            assert not found[name].any(), f"{name} {what}: not zero"
    elif isinstance(found, list):
        for one, other in zip(found, expected, strict=True):
            _close(one, other, what)
    else:
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-5), f"{what}: {found} instead of {expected}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="TRAINING", help=f"of: {', '.join(SESSIONS)}")
    parser.add_argument("--every", type=int, default=1, help="try every so many-th call only")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.names if name not in SESSIONS]:
        parser.error(f"there is no training {', '.join(unknown)}")
    if options.every < 1:
        parser.error("--every: a positive number is needed")
    campaign = Campaign()
    for name in options.names or SESSIONS:
        calls, *_ = campaign.known(name)
        for kind in KINDS:
            numbers = campaign.numbers(name, kind)[:: options.every]
            before = len(campaign.wrong)
            for n in numbers:
                campaign.attempt(name, kind, n)
            print(
                f"{name}: {kind} at {len(numbers)} of {len(calls)} calls, {len(campaign.wrong) - before} wrong",
                flush=True,
            )
    print(*campaign.wrong, sep="\n")
    print(f"{sum(campaign.tried.values())} calls tried; ended with: {dict(campaign.ended.most_common())}")
    print(f"{campaign.ended['HeldUpError']} held up, {len(campaign.wrong)} wrong")
    return int(bool(campaign.wrong))


if __name__ == "__main__":
    sys.exit(main())
