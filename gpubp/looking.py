"""A look into a network: what its layers give and learn from, with dead units and saturated activations found."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from gpubp.backend import Array, array_module, to_host
from gpubp.layers.base import Activation, Layer, all_layers
from gpubp.network import Network, StepBuffers, require_batch_size, require_examples
from gpubp.ops.gather import example_rows, row_slices
from gpubp.showing import Table, new_figure, save_figure

SATURATED = 0.01
"""An output is saturated where the slope of its activation is below this share of the steepest."""
TOO_MANY = 0.5
"""From which share on a layer's dead units or saturated outputs are told in a sentence."""

_WHY_SATURATED = "its gradient is below 1 % of the largest; smaller weights, standardised inputs or ReLU help"
_WHY_DEAD = (
    "these units give 0 for every example, and learn nothing; "
    "a smaller learning rate, He's initial weights or LeakyReLU help"
)
_BINS = 64
_FAR = 32.0  # where an activation that has flat ends is flat
_NAMED = 8  # members of a stack that a sentence names

F64 = NDArray[np.float64]


class Histogram:
    """Counts of numbers that come in parts, in at most 64 bins whose width is a power of two.

    Numbers outside the bins so far make the bins wider, two or more into one, so that no count is lost; those that are
    not finite are counted apart.

    Attributes:
        count: How many finite numbers there were.
        not_finite: How many others.
        mean: Their mean; 0 of none.
        smallest, largest: The extremes; infinite of none.
        counts: (B,), of numbers at least as large as ``edges[k]`` and smaller than ``edges[k + 1]``.
    """

    def __init__(self) -> None:
        self.count = self.not_finite = 0
        self.mean = self._squares = 0.0  # the sum of (value - mean)^2
        self.smallest, self.largest = math.inf, -math.inf
        self.counts: NDArray[np.int64] = np.zeros(0, np.int64)
        self._first = 0  # edges[k] is (first + k) * 2^exponent
        self._exponent: int | None = None

    @property
    def deviation(self) -> float:
        """The standard deviation (of the population); 0 of none."""
        return math.sqrt(self._squares / max(1, self.count))

    @property
    def rms(self) -> float:
        """The root of the mean square."""
        return math.hypot(self.mean, self.deviation)

    @property
    def edges(self) -> F64:
        """(B + 1,)."""
        edges: F64 = np.ldexp(float(self._first) + np.arange(len(self.counts) + 1), self._exponent or 0)
        return edges

    def add(self, values: Any) -> None:
        """Count some more numbers."""
        values = np.asarray(values, np.float64).ravel()
        finite = values[np.isfinite(values)]
        self.not_finite += values.size - finite.size
        if not finite.size:
            return
        count = self.count + finite.size
        with np.errstate(over="ignore", invalid="ignore"):  # near the largest number there is, a square is infinite
            mean = finite.mean()
            shift = mean - self.mean
            squares = ((finite - mean) ** 2).sum() + shift * (shift * self.count * finite.size / count)
            self._squares = float(self._squares + squares)
            self.mean = float(self.mean + shift * finite.size / count)
        self.count = count
        self.smallest = min(self.smallest, float(finite.min()))
        self.largest = max(self.largest, float(finite.max()))
        first, exponent = self._bins()
        if self._exponent is not None:  # the old bins within the new ones
            old = (self._first + np.arange(len(self.counts))) >> min(exponent - self._exponent, 63)
        else:
            old = np.zeros(0, np.int64)
        new = np.bincount(_places(finite, exponent) - first)
        kept = np.bincount(old - first, self.counts, len(new)).astype(np.int64)
        kept[: len(new)] += new
        self.counts, self._first, self._exponent = kept, first, exponent

    def _bins(self) -> tuple[int, int]:
        """The first bin and the exponent of the narrowest bins that hold everything: never narrower than before."""
        reach = max(abs(self.smallest), abs(self.largest))
        exponent = max(math.frexp(reach)[1] - 40, -1022)  # places and edges are numbers that float64 holds
        if (spread := self.largest - self.smallest) > 0:
            exponent = max(exponent, math.frexp(spread)[1] - 6)
        while True:
            first, last = _places(np.array([self.smallest, self.largest]), exponent)
            if last - first < _BINS:
                return int(first), exponent
            exponent += 1


def _places(values: F64, exponent: int) -> NDArray[np.int64]:
    """``floor(value / 2^exponent)``, which is -1 also where a negative value is so small that the quotient is 0."""
    places = np.floor(np.ldexp(values, -exponent))
    return np.where(values < 0, np.minimum(places, -1), places).astype(np.int64)


class Distribution:
    """How the numbers of an array are distributed, for each member of a stack apart.

    Args:
        members: None for a single network; E for a stack.

    Attributes:
        histograms: One a member; one alone for a single network.
    """

    def __init__(self, members: int | None) -> None:
        self._single = members is None
        self.histograms = [Histogram() for _ in range(members or 1)]

    def add(self, values: Array) -> None:
        """Count the numbers of an array (...), or (E, ...) for a stack."""
        for histogram, row in zip(self.histograms, [values] if self._single else values, strict=True):
            histogram.add(to_host(row))

    @property
    def mean(self) -> Any:
        """The mean, () or (E,), as all the following."""
        return self._of(lambda histogram: histogram.mean)

    @property
    def deviation(self) -> Any:
        """The standard deviation."""
        return self._of(lambda histogram: histogram.deviation)

    @property
    def rms(self) -> Any:
        """The root of the mean square."""
        return self._of(lambda histogram: histogram.rms)

    @property
    def smallest(self) -> Any:
        """The smallest number."""
        return self._of(lambda histogram: histogram.smallest)

    @property
    def largest(self) -> Any:
        """The largest number."""
        return self._of(lambda histogram: histogram.largest)

    @property
    def not_finite(self) -> Any:
        """The share of numbers that are not finite; the others' figures leave these out."""
        return self._of(lambda histogram: histogram.not_finite / max(1, histogram.not_finite + histogram.count))

    def _of(self, figure: Callable[[Histogram], float]) -> Any:
        figures = [figure(histogram) for histogram in self.histograms]
        return figures[0] if self._single else np.array(figures)


@dataclass
class LayerLook:
    """What was seen of one layer; shares and figures are numbers, or arrays (E,) for a stack.

    Attributes:
        position: Its place in `Network.layers`; of a layer in a block its path, such as ``"1.0"``.
        name: The layer as it prints.
        Y: Its output.
        dL_dY: The gradient of the loss by its output; None where no targets were given, or no gradient is needed.
        parameters: Name to the distribution of its values.
        gradients: Name to the distribution of the gradient by it; empty without targets.
        dead: The share of units whose output is 0, and whose slope is small, for every example; None where the layer
            is no activation.
        saturated: The share of outputs where the slope is below `SATURATED` of the steepest; None where the layer is
            no activation with two flat ends.
    """

    position: int | str
    name: str
    Y: Distribution
    dL_dY: Distribution | None = None
    parameters: dict[str, Distribution] = field(default_factory=dict)
    gradients: dict[str, Distribution] = field(default_factory=dict)
    dead: Any = None
    saturated: Any = None


@dataclass(frozen=True)
class Finding:
    """Something to know about a layer; it prints as a sentence.

    Attributes:
        layer: The position of the layer, see `LayerLook`.
        kind: ``"saturated"``, ``"dead"`` or ``"not finite"``.
        sentence: What is wrong, and what helps.
    """

    layer: int | str
    kind: str
    sentence: str

    def __str__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class LookReport:
    """What `look` saw; printable.

    Attributes:
        layers: One entry a layer of the network, in order, each followed by those of the layers in its block.
        examples: How many examples were looked at.
        members: None for a single network; E for a stack.
    """

    layers: tuple[LayerLook, ...]
    examples: int
    members: int | None = None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What there is to worry about, layer by layer."""
        found = []
        for seen in self.layers:
            layer = f"layer {seen.position}, {seen.name},"
            for kind, share, words in (
                ("saturated", seen.saturated, _WHY_SATURATED),
                ("dead", seen.dead, _WHY_DEAD),
            ):
                if share is not None and (shares := self._members_with(share, TOO_MANY)):
                    sentence = f"more than half ({_percent(shares)}) of {layer} is {kind}{self._who(shares)}: {words}"
                    found.append(Finding(seen.position, kind, sentence))
            if shares := self._members_with(seen.Y.not_finite, 0):
                sentence = f"{_percent(shares)} of the output of {layer} is not finite{self._who(shares)}"
                found.append(Finding(seen.position, "not finite", sentence))
        return tuple(found)

    def _members_with(self, share: Any, more_than: float) -> dict[int, float]:
        """The members whose share is larger, with it."""
        return {e: float(value) for e, value in enumerate(np.atleast_1d(share)) if value > more_than}

    def _who(self, shares: Mapping[int, float]) -> str:
        if self.members is None:
            return ""
        if len(shares) > _NAMED:
            return f" in {len(shares)} of {self.members} members"
        return f" in member{'s' if len(shares) > 1 else ''} {', '.join(map(str, shares))}"

    def _table(self) -> Table:
        """A row for each layer's output, with a row for each of its parameters below."""
        rows = []
        for seen in self.layers:
            of_layer = (_share(seen.dead), _share(seen.saturated))
            rows.append((f"{seen.position} {seen.name}", *_figures(seen.Y, seen.dL_dY), *of_layer))
            for name, values in seen.parameters.items():
                rows.append((f"    {name}", *_figures(values, seen.gradients.get(name)), "", ""))
        header = ("layer, parameter", "mean", "deviation", "rms of gradient", "dead", "saturated")
        shown = [k for k in range(len(header)) if k < 3 or any(row[k] for row in rows)]
        means = "" if self.members is None else f", means of {self.members} members"
        return Table(
            [header[k] for k in shown],
            [[row[k] for k in shown] for row in rows],
            [f"of {self.examples:,} examples{means}", *map(str, self.findings)],
        )

    def __str__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw histograms: a row for each layer, with its output, and where targets were given the gradients.

        Args:
            path: Where to write the picture; the ending says which kind (``.png``, ``.svg``, ``.pdf``). None for
                nowhere.

        Returns:
            The Matplotlib figure.

        Raises:
            GpubpError: Matplotlib is not installed, the ending is unknown, or the file can't be written.
        """
        with_gradients = any(seen.dL_dY or seen.gradients for seen in self.layers)
        columns = 3 if with_gradients else 1
        figure = new_figure(3.6 * columns, 1.7 * len(self.layers) + 0.4)
        grid = figure.subplots(len(self.layers), columns, squeeze=False)
        for row, seen in zip(grid, self.layers, strict=True):
            drawn: list[dict[str, Distribution]] = [{"Y": seen.Y}]
            if with_gradients:
                drawn.append({} if seen.dL_dY is None else {"dL_dY": seen.dL_dY})
                drawn.append({f"dL_d{name}": values for name, values in seen.gradients.items()})
            for axes, distributions in zip(row, drawn, strict=True):
                _draw(axes, distributions)
            row[0].set_title(f"{seen.position} {seen.name}", fontsize=8, loc="left")
        if path is not None:
            save_figure(figure, path)
        return figure


def _figures(values: Distribution, gradient: Distribution | None) -> tuple[str, str, str]:
    numbers = (values.mean, values.deviation, None if gradient is None else gradient.rms)
    return tuple("" if number is None else f"{np.mean(number):.3g}" for number in numbers)  # type: ignore[return-value]


def _share(share: Any) -> str:
    return "" if share is None else _percent({0: float(np.mean(share))})


def _percent(shares: Mapping[int, float]) -> str:
    low, high = (f"{100 * share:.3g}" for share in (min(shares.values()), max(shares.values())))
    return f"{low} %" if low == high else f"{low} to {high} %"


def _draw(axes: Any, distributions: Mapping[str, Distribution]) -> None:
    """Draw histograms of some arrays, each as high as the others; those of a stack's members as outlines."""
    axes.tick_params(labelsize=7)
    axes.set_yticks([])
    if not distributions:
        axes.set_axis_off()
        return
    for k, (name, distribution) in enumerate(distributions.items()):
        single = len(distribution.histograms) == 1
        for e, histogram in enumerate(distribution.histograms):
            if histogram.count:
                heights, label = histogram.counts / histogram.counts.max(), None if e else name
                axes.stairs(heights, histogram.edges, fill=single, color=f"C{k}", alpha=0.6, label=label)
    axes.locator_params(axis="x", nbins=5)
    axes.ticklabel_format(axis="x", scilimits=(-3, 4))
    axes.xaxis.get_offset_text().set_fontsize(7)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7, frameon=False, loc="upper right")


class _Watched:
    """A layer of the copy that is looked at: it tells what goes through it, and else is the layer.

    Attributes:
        inner: The layers of its block, watched too.
    """

    def __init__(self, layer: Layer, position: int | str, members: int | None) -> None:
        self.layer, self.members, self.share = layer, members, 1.0
        self.seen = LayerLook(position, repr(layer), Distribution(members))
        self._steepest: float | None = None
        if isinstance(layer, Activation):
            self._steepest, self._saturates = _steepest(layer)
        self._alive: Any = np.False_  # (n,) or (E, n): which units are not dead
        self._flat: Any = 0  # how many outputs are saturated
        self._outputs = 0
        self.inner = [_Watched(inner, f"{position}.{k}", members) for k, inner in enumerate(layer.inner)]
        layer.fuse(lambda _: cast(list[Layer], self.inner))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.layer, name)

    def forward(self, X: Array, out: Any = None, *, training: bool = False, **settings: Any) -> Any:
        """Look at Y, where this is no training step."""
        Y, saved = self.layer.forward(X, out, training=training, **settings)
        if not training:
            self.seen.Y.add(self._each(Y))
            if self._steepest is not None:
                self._look(to_host(Y), _slopes(self.layer, Y, saved) < SATURATED * self._steepest)
        return Y, saved

    def backward(self, dL_dY: Array, saved: Any, out: Any = None, **settings: Any) -> Any:
        """Look at dL_dY, as part of the gradient over all examples."""
        if self.seen.dL_dY is None:
            self.seen.dL_dY = Distribution(self.members)
        self.seen.dL_dY.add(self._each(dL_dY) * self.share)
        return self.layer.backward(dL_dY, saved, out, **settings)

    def _look(self, Y: Any, flat: Any) -> None:
        """Count dead units and saturated outputs: Y and whether f' is small there, (..., N, n) both."""
        self._alive = self._alive | ((Y != 0) | ~flat).any(axis=-2)
        self.seen.dead = self._share((~self._alive).mean(axis=-1))
        if self._saturates:
            self._flat = self._flat + flat.sum(axis=(-2, -1))
            self._outputs += math.prod(Y.shape[-2:])
            self.seen.saturated = self._share(self._flat / self._outputs)

    def _share(self, share: Any) -> Any:
        return float(share) if self.members is None else np.broadcast_to(share, (self.members,))

    def _each(self, array: Array) -> Any:
        """An array (N, n) or (E, N, n) with the members' axis, which it lacks where all members share it."""
        host = to_host(array)
        if self.members is None or host.ndim > 2:
            return host
        return np.broadcast_to(host, (self.members, *host.shape))


def _slopes(layer: Layer, Y: Array, saved: Any) -> F64:
    """``|f'|`` of an activation, as its own backward has it."""
    slopes = layer.backward(array_module(Y).ones_like(Y), saved)
    size: F64 = np.abs(to_host(slopes).astype(np.float64))
    return size


def _steepest(layer: Activation) -> tuple[float, bool]:
    """The largest ``|f'|`` of an activation, and whether both ends of it are flat, as those of a sigmoid."""
    X = np.linspace(-_FAR, _FAR, 16 * int(_FAR) + 1)[None]  # (1, n) with 0 among them
    Y, saved = layer.forward(X)
    slopes = _slopes(layer, Y, saved)[0]
    steepest = float(slopes.max())
    return steepest, max(slopes[0], slopes[-1]) < SATURATED * steepest


def look(network: Network, X: Any, T: Any = None, *, sample_weight: Any = None, batch_size: int = 8192) -> LookReport:
    """Look at what each layer gives for some examples, and with targets at the gradients.

    Outputs are those of inference. Gradients are those of a training step on all the examples, the L2 penalty
    included; a layer with statistics of its batch takes those of `batch_size` examples. The network stays as it is.

    Args:
        network: The network.
        X: (N, n_in), or (E, N, n_in) with other examples for each member of a stack.
        T: Targets as the loss takes them; None for no gradients.
        sample_weight: (N,) or (E, N); None weighs all examples the same.
        batch_size: How many examples to compute at a time.

    Returns:
        A report: ``.layers``, ``.findings``, ``.plot()``, printable.

    Raises:
        DataError, ShapeError, DeviceError: The examples do not fit the network, or there are none.
    """
    size = require_batch_size(batch_size)
    X = network.inputs(X, as_given=True)
    N = require_examples(X)
    targets, weights = None if T is None else network.targets(T, X), network.sample_weights(sample_weight, X)
    other = network.copy()
    other.adapt(X)
    watched = [_Watched(layer, position, other.members) for position, layer in enumerate(other.layers)]
    other.executed = cast(list[Layer], watched)
    other.first_trained = next(k for k, layer in enumerate(other.layers) if layer.declare())
    nothing: list[None] = [None] * len(watched)
    everything = cast(list[_Watched], list(all_layers(other.executed)))
    with other.device.activate(), np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for rows in row_slices(N, size):
            other.run_forward(other.inputs(X[..., rows, :]), nothing)
        _told_apart(
            other.parameters, {layer.seen.position: layer.seen.parameters for layer in everything}, other.members
        )
        if targets is not None:
            gradient: Any = 0.0
            other.draws.begin_steps(0)
            for number, rows in enumerate(row_slices(N, size)):
                other.draws.part, share = number, (rows.stop - rows.start) / N
                for layer in everything:
                    layer.share = share
                w = None if weights is None else weights[..., rows]
                part = other.inputs(X[..., rows, :])
                other.run_step(part, targets[example_rows(targets, rows)], w, StepBuffers(nothing, None, nothing))
                gradient = gradient + other.dL_dtheta * share
            _told_apart(
                other.named_gradients(gradient),
                {layer.seen.position: layer.seen.gradients for layer in everything},
                other.members,
            )
    return LookReport(tuple(layer.seen for layer in everything), N, other.members)


def _told_apart(
    named: Mapping[str, Array], into: Mapping[int | str, dict[str, Distribution]], members: int | None
) -> None:
    """Put arrays ``"0.W"`` into the dictionaries of their layers, as ``"W"``."""
    for name, array in named.items():
        path, _, own = name.rpartition(".")
        position = int(path) if path.isdecimal() else path
        into[position][own] = Distribution(members)
        into[position][own].add(array)
