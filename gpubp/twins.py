"""What a layer is elsewhere: its twin in PyTorch, as data, and the ONNX graph that it writes itself into."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol


class TorchTwin(NamedTuple):
    """The PyTorch module that computes what a layer does.

    Attributes:
        module: Its name in ``torch.nn``; with `forward` the name of one that is made.
        settings: Our name of each setting to PyTorch's, of the argument and of the module's attribute.
        arrays: Our name of each parameter and constant to PyTorch's. Each travels transposed, as W (n_in, n_out) does,
            which is weight (n_out, n_in) there.
        needs: Words to what must hold of a module for the layer to compute the same.
        config: From a module to further settings of ours.
        arguments: From a layer to further arguments of the module.
        counters: Further entries of the module's state, each with its value.
        forward: For a layer that ``torch.nn`` has no module for: Y of the module and X (..., n). The module has
            settings and arrays as attributes, and ``block``, an ``nn.Sequential``, for `Layer.inner`.
    """

    module: str
    settings: Mapping[str, str] = {}
    arrays: Mapping[str, str] = {}
    needs: Sequence[tuple[str, Callable[[Any], bool]]] = ()
    config: Callable[[Any], Mapping[str, Any]] = lambda module: {}
    arguments: Callable[[Any], Mapping[str, Any]] = lambda layer: {}
    counters: Mapping[str, int] = {}
    forward: Callable[[Any, Any], Any] | None = None


class OnnxGraph(Protocol):
    """A graph that grows: every method adds something and returns the name of its value."""

    dtype: Any
    """The network's, which its values have."""

    def add(self, operator: str, *values: Any, domain: str = "", **attributes: Any) -> str:
        """The result of an operator; a value that is no name becomes a constant."""
        ...

    def constant(self, value: Any, dtype: Any = None) -> str:
        """An array or a number, in the network's dtype if none is given."""
        ...

    def element_type(self, dtype: Any) -> Any:
        """ONNX's number for a dtype, for the operator Cast."""
        ...

    def per_row(self, vector: Any) -> Any:
        """(n,) as it is, and (E, n) as (E, 1, n), so that it broadcasts down the rows."""
        ...

    def columns(self, X: str, start: int, stop: int) -> str:
        """Neighbouring columns of X (..., N, n)."""
        ...

    def one_hot(self, index: str, categories: int) -> str:
        """Indices (..., N, 1) as rows (..., N, categories) of zeros with a 1, or of zeros where it is none of them."""
        ...

    def log1p_exp(self, Z: str) -> str:
        """``log(1 + exp(Z))``, computed so that no exp overflows."""
        ...


def is_own(kind: type, statement: str, *maths: str) -> bool:
    """Whether a class makes a statement about its own maths, and not a parent class about other maths.

    Args:
        kind: The class.
        statement: The attribute that states something.
        *maths: Methods that it is about.
    """

    def place(name: str) -> int:
        return next(position for position, parent in enumerate(kind.__mro__) if name in vars(parent))

    return all(place(statement) <= place(name) for name in maths if hasattr(kind, name))
