"""The peers of the comparison: one small file each, behind one interface.

To add one: a file with a `PEERS` list, and its name in `MODULES`. A peer's file must be importable without the
peer's library. It is what an expert of that library would write, and it does the work of `benchmarks.cases.Case`:
the same network, initial weights, minibatches, loss and optimizer, with matrix products of the case's precision.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from numpy.typing import NDArray

from ..cases import Case, Data, Weights

MODULES = (
    "gpubp_library",
    "naive_numpy",
    "torch_eager",
    "torch_compiled",
    "torch_graph",
    "jax_functions",
    "scikit_learn",
    "thinc_chain",
)


class Run(ABC):
    """A peer that is ready for one case.

    A subclass gives `step`, `forward` and `gradients`; `steps` calls the one that the case asks for. The constructor
    keeps as ``self.X`` (batch, n_in) and ``self.T`` (batch,) the one batch of the work "forward" and "gradients".
    """

    chunk: int = 1
    """`steps` takes a multiple of so many."""

    def __init__(self, case: Case) -> None:
        self.case = case

    def steps(self, index: NDArray[Any]) -> None:
        """Do the work once for each row of `index`, and return when it is really finished.

        Args:
            index: (S, batch) row numbers: the next S minibatches of ``data.order``.
        """
        if self.case.work == "step":
            for rows in index:
                self.step(rows)
        else:
            work = self.forward if self.case.work == "forward" else self.gradients
            for _ in index:
                work()
        self.synchronize()

    def step(self, rows: Any) -> None:
        """One training step on these rows of the data set."""
        raise NotImplementedError

    def forward(self) -> None:
        """Class probabilities of ``self.X``."""
        raise NotImplementedError

    def gradients(self) -> None:
        """Loss and gradients of ``self.X`` and ``self.T``."""
        raise NotImplementedError

    def synchronize(self) -> None:  # noqa: B027  (nothing to do on the CPU)
        """Wait for a device."""

    @abstractmethod
    def results(self) -> Weights:
        """What the work has made, as NumPy arrays.

        "step": the weights; "gradients": the gradients, in the order of the weights; "forward": the probabilities
        (batch, classes).
        """


class Peer(ABC):
    """Something that can do the work.

    Attributes:
        name: As the tables call it.
        package: What pip calls the library.
        module: What Python calls it.
        environment: Environment variables that its process needs.
        own: Whether it is gpubp itself.
        uncorrected_epsilon: Whether its Adam divides by ``sqrt(V) + epsilon`` and corrects the bias of V in the rate,
            the second form in the paper. It then is checked against that form.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    module: ClassVar[str]
    environment: ClassVar[Mapping[str, str]] = {}
    own: ClassVar[bool] = False
    uncorrected_epsilon: ClassVar[bool] = False

    def absent(self, device: str) -> str | None:
        """Why it can't run on this machine, or None. Called in its own process; tries the import."""
        try:
            importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if error.name == self.module:
                return f"not installed: pip install {self.package}"
            return f"can't be imported: {error}"
        except Exception as error:  # a broken install fails in many ways; all of them are told
            return f"can't be imported: {type(error).__name__}: {error}"
        return None

    def supports(self, case: Case) -> str | None:
        """Why it can't do this case, or None."""
        return None

    @abstractmethod
    def prepare(self, case: Case, data: Data) -> Run:
        """Everything before the first step: arrays in place, functions compiled."""

    def facts(self) -> dict[str, str]:
        """Version, and settings that a reader of the figures should know."""
        return {"version": importlib.metadata.version(self.package)}


def cpu_only(case: Case) -> str | None:
    """The answer of `Peer.supports` for a peer without a device."""
    return None if case.device == "cpu" else "runs on the CPU only"


def all_peers() -> list[Peer]:
    """Every peer, gpubp first, in the order of the tables."""
    return [peer for name in MODULES for peer in importlib.import_module(f".{name}", package=__name__).PEERS]
