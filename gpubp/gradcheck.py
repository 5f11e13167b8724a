"""Is this gradient right? Hand-written derivatives against central differences, in float64.

The error of an array is ``max|a - n| / max(1, max|n|)`` for the analytic a and the numerical n. Where a function has a
kink (ReLU at zero) within reach of the difference, no numerical derivative exists: such places are found from function
values alone, counted and left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpubp.backend import as_array, to_host
from gpubp.errors import ShapeError
from gpubp.network import Network
from gpubp.showing import preformatted

EPSILON = 1e-5
"""Step of the central difference. Its own error is about epsilon^2 (cut off) plus 1e-16 / epsilon (rounding)."""
TOLERANCE = 1e-7

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class ArrayCheck:
    """The outcome for one array.

    Attributes:
        name: The array.
        error: ``max|a - n| / max(1, max|n|)`` over the entries that were compared.
        compared: How many entries were compared.
        kinks: How many entries were left out because the function has a kink there.
        size: How many entries the array has.
        worst: Index of the entry with the largest difference, with its analytic and numerical derivative.
    """

    name: str
    error: float
    compared: int
    kinks: int
    size: int
    worst: tuple[tuple[int, ...], float, float]


@dataclass(frozen=True)
class GradientReport:
    """The outcome of a gradient check; printable.

    Attributes:
        checks: One entry an array.
        tolerance: The largest error that passes.
    """

    checks: tuple[ArrayCheck, ...]
    tolerance: float

    @property
    def max_relative_error(self) -> float:
        """The largest error of any array."""
        return max((check.error for check in self.checks), default=0.0)

    @property
    def kinks(self) -> int:
        """How many entries were left out at kinks."""
        return sum(check.kinks for check in self.checks)

    @property
    def ok(self) -> bool:
        """Whether every array passes, and at least one entry of each non-empty one could be compared."""
        return all(check.error <= self.tolerance and (check.compared > 0 or check.size == 0) for check in self.checks)

    def __str__(self) -> str:
        lines = [f"{'array':<12}{'error':>10}{'compared':>14}{'kinks':>7}"]
        for check in self.checks:
            lines.append(
                f"{check.name:<12}{check.error:>10.1e}{f'{check.compared} of {check.size}':>14}{check.kinks:>7}"
            )
            if not check.error <= self.tolerance:
                index, analytic, numerical = check.worst
                lines.append(f"  wrong at {list(index)}: backward gives {analytic:.10g}, differences {numerical:.10g}")
            elif not check.compared and check.size:
                lines.append("  nothing to compare: every entry that was tried is at a kink")
        verdict = "gradients agree" if self.ok else "GRADIENTS DISAGREE"
        lines.append(
            f"{verdict}: largest error {self.max_relative_error:.1e}, tolerance {self.tolerance:.0e}"
            + (f"; {self.kinks} entries at a kink left out" if self.kinks else "")
        )
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return preformatted(str(self))


def compare(
    value: Callable[[], Any],
    array: F64,
    gradient: F64,
    name: str,
    *,
    epsilon: float = EPSILON,
    tolerance: float = TOLERANCE,
    entries: int | None = None,
    rng: np.random.Generator | None = None,
) -> ArrayCheck:
    """Compare a gradient with central differences of a function, entry by entry.

    Args:
        value: Computes the number to differentiate from the current content of `array`.
        array: float64; changed for each difference and put back.
        gradient: The analytic gradient, of the same shape.
        name: What to call the array.
        epsilon: The step.
        tolerance: Where the difference is larger than this, a kink is looked for.
        entries: How many entries to compare, drawn at random; None for all.
        rng: Where to draw them from.
    """
    chosen = np.arange(array.size)
    if entries is not None and entries < array.size:
        chosen = np.sort((rng or np.random.default_rng(0)).choice(array.size, entries, replace=False))
    at_zero = float(value())
    analytic, numerical, places, kinks = [], [], [], 0
    for flat in chosen:
        index = tuple(int(i) for i in np.unravel_index(flat, array.shape))

        def shifted(step: float, index: tuple[int, ...] = index) -> float:
            kept = array[index]
            array[index] = kept + step
            result = float(value())
            array[index] = kept
            return result

        plus, minus = shifted(epsilon), shifted(-epsilon)
        slope = (plus - minus) / (2 * epsilon)
        mismatch = not abs(slope - gradient[index]) <= tolerance * max(1.0, abs(slope))
        if mismatch and _has_kink(shifted, at_zero, plus, minus, epsilon):
            kinks += 1
            continue
        analytic.append(float(gradient[index]))
        numerical.append(slope)
        places.append(index)
    if not places:
        return ArrayCheck(name, 0.0, 0, kinks, array.size, ((), 0.0, 0.0))
    a, n = np.array(analytic), np.array(numerical)
    difference = np.where(np.isfinite(a - n), np.abs(a - n), np.inf)
    worst = int(difference.argmax())
    error = float(difference[worst] / max(1.0, np.abs(n[np.isfinite(n)]).max(initial=0.0)))
    return ArrayCheck(name, error, len(places), kinks, array.size, (places[worst], analytic[worst], numerical[worst]))


def _has_kink(shifted: Callable[[float], float], at_zero: float, plus: float, minus: float, epsilon: float) -> bool:
    """Whether a function bends sharply within `epsilon`, judged by its values alone.

    The bend ``(f(h) - 2 f(0) + f(-h)) / h`` of a smooth function halves with h. At a kink it stays, or disappears once
    h no longer reaches the kink. Three sizes of h are needed: for any two, there is a kink between them that fakes 1/2.
    """
    bends = [(plus - 2 * at_zero + minus) / epsilon]
    for h in (epsilon / 2, epsilon / 4):
        bends.append((shifted(h) - 2 * at_zero + shifted(-h)) / h)
    noise = 64 * np.finfo(float).eps * max(1.0, abs(at_zero)) / epsilon
    if not abs(bends[0]) > 16 * noise:
        return False
    ratios = [bends[1] / bends[0], bends[2] / bends[1] if abs(bends[1]) > 8 * noise else 0.0]
    return any(abs(ratio - 0.5) > 0.2 for ratio in ratios)


def check_gradients(
    network: Network,
    X: Any,
    T: Any,
    *,
    sample_weight: Any = None,
    epsilon: float = EPSILON,
    tolerance: float = TOLERANCE,
    entries: int | None = 200,
    rng: int | np.random.Generator = 0,
) -> GradientReport:
    """Check the gradient of the loss by every parameter of a network, on a copy in float64.

    Args:
        network: The network; it is left unchanged.
        X: A few examples (N, n_in), or (E, N, n_in).
        T: Their targets.
        sample_weight: Their weights.
        epsilon: The step of the central differences.
        tolerance: The largest error that passes.
        entries: How many entries of each parameter to check, drawn at random; None for all.
        rng: Where to draw them from.

    Returns:
        A report: ``.ok``, ``.max_relative_error``, printable.
    """
    other = network.copy(dtype="float64", device="cpu")

    def on_host(data: Any, name: str) -> Any:
        return to_host(as_array(data, network.device, name=name))

    X = other.inputs(on_host(X, "X"))
    T = other.targets(on_host(T, "T"), X)
    w = None if sample_weight is None else other.sample_weights(on_host(sample_weight, "sample_weight"), X)
    other.adapt(X)
    generator = np.random.default_rng(rng)

    def value() -> float:
        # As in training, on one batch, and with the same draws each time.
        L = other.evaluate_prepared(X, T, w, X.shape[-2], training=True)
        return float(np.sum(L))  # members of a stack do not touch each other

    _, gradients = other.loss_and_gradients(X, T, w)
    settings: dict[str, Any] = {"epsilon": epsilon, "tolerance": tolerance, "entries": entries, "rng": generator}
    checks = [compare(value, array, gradients[name], name, **settings) for name, array in other.parameters.items()]
    return GradientReport(tuple(checks), tolerance)


def check_backward(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    *arrays: Any,
    epsilon: float = EPSILON,
    tolerance: float = TOLERANCE,
    entries: int | None = None,
    rng: int | np.random.Generator = 0,
) -> GradientReport:
    """Check anybody's backward function: yours need not know gpubp.

    A random dL_dY is drawn and passed back; ``L = sum(forward(*arrays) * dL_dY)`` has the gradients to compare with.

    Args:
        forward: ``forward(*arrays) -> Y``.
        backward: ``backward(dL_dY, *arrays)`` -> one gradient for each array, in a tuple or list; or the bare gradient
            for a single array.
        *arrays: Where to check; computed on in float64.
        epsilon: The step of the central differences.
        tolerance: The largest error that passes.
        entries: How many entries of each array to check, drawn at random; None for all.
        rng: Where dL_dY and the entries are drawn from.

    Returns:
        A report: ``.ok``, ``.max_relative_error``, printable.

    Raises:
        ShapeError: A gradient is missing or has another shape than its array.
    """
    points = [np.array(to_host(array), dtype=np.float64) for array in arrays]
    generator = np.random.default_rng(rng)
    dL_dY = generator.normal(size=np.shape(forward(*points)))
    gradients = backward(dL_dY, *(point.copy() for point in points))
    if len(points) == 1 and not isinstance(gradients, tuple | list):
        gradients = (gradients,)
    if len(gradients) != len(points):
        raise ShapeError(f"backward returned {len(gradients)} gradients for {len(points)} arrays")
    checks = []
    for position, (point, gradient) in enumerate(zip(points, gradients, strict=True)):
        if np.shape(gradient) != point.shape:
            raise ShapeError(
                f"gradient {position} has shape {np.shape(gradient)}, its array has {point.shape}: they must be equal"
            )
        checks.append(
            compare(
                lambda: np.sum(forward(*points) * dL_dY),
                point,
                np.asarray(gradient, dtype=np.float64),
                f"argument {position}",
                epsilon=epsilon,
                tolerance=tolerance,
                entries=entries,
                rng=generator,
            )
        )
    return GradientReport(tuple(checks), tolerance)
