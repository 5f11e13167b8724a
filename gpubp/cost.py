"""What an operation needs of a machine, as data: from it the floor of a step is computed, not typed in.

The bytes are those of matrices; index arrays, targets and whatever has one number a row are left out, but for a loss's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Ceilings:
    """What a machine can do at most, as measured on it.

    Attributes:
        flops_per_second: Rate of large matrix products in the network's dtype.
        bytes_per_second: Bytes read plus bytes written by a large copy.
        cache_bytes_per_second: The same by small copies, whose data stays in the caches; None where it is not known.
        cache_bytes: How much the caches hold.
    """

    flops_per_second: float
    bytes_per_second: float
    cache_bytes_per_second: float | None = None
    cache_bytes: int = 0

    def rate_of(self, size: int) -> float:
        """The bytes per second of an operation on so many bytes.

        Where they fit in the caches, the operation before may have left them there: then the caches' rate counts.
        """
        if self.cache_bytes_per_second is None or size > self.cache_bytes:
            return self.bytes_per_second
        return max(self.bytes_per_second, self.cache_bytes_per_second)


@dataclass(frozen=True)
class Cost:
    """The least that one operation needs.

    Attributes:
        name: Which operation: ``"0 forward matmul"``, position of the layer first.
        flops: Additions, multiplications, divisions; an exp, log, tanh or square root counts as one.
        bytes: What must be read from and written to memory: each input and each output once, intermediates not at all.
    """

    name: str
    flops: int
    bytes: int

    def seconds(self, ceilings: Ceilings) -> float:
        """The longer of its arithmetic and its traffic with memory, or with the caches where its bytes fit in them."""
        return max(self.flops / ceilings.flops_per_second, self.bytes / ceilings.rate_of(self.bytes))


def floor_seconds(costs: Iterable[Cost], ceilings: Ceilings) -> float:
    """The floor of a step, each of its operations after the other."""
    return sum(cost.seconds(ceilings) for cost in costs)
