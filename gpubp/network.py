"""`Network`: a list of layers and a loss over one flat parameter buffer, and `mlp`, which writes the list."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from gpubp import faults
from gpubp.architecture import chained_widths, fused
from gpubp.backend import Array, Device, as_array, resolve_device, to_device, to_host
from gpubp.cost import Cost
from gpubp.errors import DataError, SettingError, ShapeError
from gpubp.examples import RowsOf
from gpubp.layers.base import Activation, Layer, activation_by_name, all_layers
from gpubp.layers.dense import Dense
from gpubp.layers.embedding import Embedding
from gpubp.layers.standardize import Standardize
from gpubp.losses.base import Loss, loss_by_name
from gpubp.losses.penalty import add_l2, scratch_for
from gpubp.ops import gemm
from gpubp.ops.gather import converts, example_rows, row_slices
from gpubp.ops.random import Draws
from gpubp.optimizers.base import Optimizer
from gpubp.parameters import FlatParameters
from gpubp.settings import require_count, require_in
from gpubp.summary import step_costs, summary_of

Out = Mapping[str, Array] | None


EVALUATED = 2**21
"""How many numbers of X to evaluate or predict at a time, at most: it may be larger than memory."""


class StepBuffers(NamedTuple):
    """What one step writes: a mapping for each layer forward, one for the loss, a mapping for each layer backward."""

    forward: Sequence[Out]
    loss: Out
    backward: Sequence[Out]


class Network:
    """Layers one after the other, with a loss at the end: a single network, or a stack of E networks trained at once.

    Args:
        layers: The layers, in order; each belongs to this network from now on.
        loss: A `Loss`, or its name, such as ``"softmax_cross_entropy"``, ``"squared_error"`` or ``"huber"``.
        dtype: ``"float32"`` or ``"float64"``.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"`` for a CUDA device where there is one.
        rng: Seed or generator for the initial parameters.
        members: None for a single network; E for a stack of E, whose results have a leading axis of that length.
        l2: Strength alpha of the penalty ``0.5 * alpha * sum(W^2)`` on all weights; part of the loss.
        matmul_precision: What a GPU rounds float32 factors to before it multiplies them: ``"float32"`` for nothing,
            ``"tf32"`` or ``"bf16"`` for speed. Parameters, sums and all else stay float32; on a CPU products do too.

    Attributes:
        layers: The layers that the user gave.
        loss: The loss.
        theta: All parameters: (P,), or (E, P) with one member a row. On a device such rows may lie apart, so that
            ``theta.reshape(-1)`` is a copy there: change theta itself, or a row of it.
        dL_dtheta: The gradient that the last backward wrote; the shape of theta.
        n_in, n_out: Widths of the input and the output.

    Raises:
        ShapeError: Neighbouring layers do not fit; the message names them and their widths.
        SettingError: A setting is outside its range.
        DeviceError: The device can't be used.

    Warns:
        UserWarning: Once, when it is first given targets: the last layer is what the loss applies by itself, such as
            Softmax before the softmax cross-entropy.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        loss: str | Loss,
        *,
        dtype: Any = "float32",
        device: str | Device = "auto",
        rng: int | np.random.Generator | None = 0,
        members: int | None = None,
        l2: float = 0.0,
        matmul_precision: str = "float32",
    ) -> None:
        self.layers = list(layers)
        self.loss = loss if isinstance(loss, Loss) else loss_by_name(loss)
        if dtype not in ("float32", "float64", np.float32, np.float64):
            raise SettingError(f"dtype={dtype!r}: use 'float32' or 'float64'")
        self.dtype = np.dtype(dtype)
        if matmul_precision not in gemm.PRECISIONS:
            raise SettingError(f"matmul_precision={matmul_precision!r}: use one of {', '.join(gemm.PRECISIONS)}")
        if matmul_precision != "float32" and self.dtype != np.float32:
            raise SettingError(
                f"matmul_precision={matmul_precision!r} is for float32 networks, and this one is {self.dtype}: "
                "leave it out, or use dtype='float32'"
            )
        self.l2 = require_in(None, "l2", l2, "[0, inf)")
        self.matmul_precision = matmul_precision
        self.members = members = None if members is None else require_count(None, "members", members)
        self.n_in, self.n_out = chained_widths(self.layers)
        for position, layer in enumerate(self.layers):
            if layer.parameters:
                raise SettingError(
                    f"layer {position}, {layer!r}, has parameters already: make a new one for this network"
                )
        for number, layer in enumerate(all_layers(self.layers)):
            layer.number = number
            if isinstance(layer, Dense):
                layer.matmul_precision = matmul_precision
        generator = np.random.default_rng(rng)
        with faults.doing("making a network"):
            self.device = resolve_device(device)
            self._flat = FlatParameters(self.layers, self.dtype, self.device, members, generator)
        self.theta, self.dL_dtheta = self._flat.theta, self._flat.dL_dtheta
        self.executed = fused(self.layers)
        """The layers as they run: each Dense with the activation after it as one."""
        self.first_trained = next((k for k, layer in enumerate(self.executed) if layer.declare()), len(self.executed))
        """Position in `executed` of the first layer with parameters: no gradient is needed before it."""
        is_random = any(layer.is_random for layer in all_layers(self.layers))
        self.set_draws(int(generator.integers(2**63)) if is_random else 0, 0)
        self._scratch: Array = None  # of the penalty
        self._link_comes_twice = type(self.layers[-1]).__name__ == self.loss.link_layer  # and nobody was told
        self.plan: Any = None  # the trainer keeps its step plan here, so that a second fit uses it again
        self.epochs_trained = 0
        """How many epochs `fit` has trained this network for; the next one goes on from there."""
        self._fresh = StepBuffers([None] * len(self.executed), None, [None] * len(self.executed))

    def __repr__(self) -> str:
        stack = "" if self.members is None else f", members={self.members}"
        return f"Network({self.layers!r}, loss={self.loss!r}, dtype='{self.dtype}', device='{self.device}'{stack})"

    def set_draws(self, seed: int, steps: int) -> None:
        """Let the random layers draw by this seed, 0 to 2^64 - 1, from this step on."""
        is_random = any(layer.is_random for layer in all_layers(self.layers))
        with self.device.activate("making a network"):
            self.draws = Draws(seed, self.device.module if is_random else None, steps)
            """What the random layers draw; see there for the seed and the steps that have begun."""

    # Parameters.

    @property
    def statistics(self) -> list[Array]:
        """The constants that training changes."""
        kept = (layer for layer in all_layers(self.layers) if layer.keeps_statistics and not layer.inner)
        return [array for layer in kept for array in layer.constants.values()]

    def snapshot(self, *, weights: bool = True) -> tuple[Array | None, list[Array], int]:
        """A copy of all that training changes, the optimizer's state apart, for `restore`.

        Args:
            weights: Whether theta is part of it; a forward or backward pass of this library's layers changes the rest.
        """
        theta = self.theta.copy() if weights else None
        return theta, [array.copy() for array in self.statistics], self.draws.steps

    def restore(self, snapshot: tuple[Array | None, list[Array], int]) -> None:
        """Go back to a snapshot."""
        theta, statistics, self.draws.steps = snapshot
        if theta is not None:
            self.theta[...] = theta
        for array, kept in zip(self.statistics, statistics, strict=True):
            array[...] = kept

    def has_weights_of(self, snapshot: tuple[Array | None, list[Array], int]) -> bool:
        """Whether theta is what it was when this snapshot of it was taken."""
        return bool((self.theta == snapshot[0]).all())

    @property
    def parameters(self) -> Mapping[str, Array]:
        """Name (``"0.W"``: position of the layer, name) to a view of theta; assigning into a view changes the net."""
        return MappingProxyType(self._flat.parameters)

    @property
    def weights_size(self) -> int:
        """How many leading columns of theta are weights, the part that the L2 penalty concerns."""
        return self._flat.decayed

    def named_gradients(self, flat: Array) -> dict[str, Array]:
        """Views of a buffer of theta's shape under the parameters' names."""
        return self._flat.named_views(flat)

    def __deepcopy__(self, memo: dict[int, Any]) -> Network:
        other = self.copy()
        other.epochs_trained = self.epochs_trained
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """A network is pickled by its description and its numbers, not by its views of one buffer."""
        layers = [
            (type(layer), layer.config(), {name: to_host(array) for name, array in layer.constants.items()})
            for layer in self.layers
        ]
        settings = {
            "dtype": str(self.dtype),
            "device": str(self.device),
            "members": self.members,
            "l2": self.l2,
            "matmul_precision": self.matmul_precision,
        }
        draws = self.draws.seed, self.draws.steps
        return _unpickled, (layers, self.loss, settings, to_host(self.theta), self.epochs_trained, draws)

    def copy(self, *, dtype: Any = None, device: str | Device | None = None) -> Network:
        """An independent network with the same layers and values, in another dtype or on another device if asked.

        A copy in float64 multiplies in float64, whatever the precision of this network's products.
        """
        dtype = dtype or self.dtype
        layers = [type(layer)(**layer.config()) for layer in self.layers]
        other = Network(
            layers,
            type(self.loss)(**self.loss.config()),
            dtype=dtype,
            device=device or self.device,
            members=self.members,
            l2=self.l2,
            matmul_precision=self.matmul_precision if dtype in ("float32", np.float32) else "float32",
        )
        with other.device.activate():
            other.theta[...] = other.device.module.asarray(to_host(self.theta), dtype=other.dtype)
            for mine, theirs in zip(self.layers, layers, strict=True):
                theirs.constants = {
                    name: other.device.module.asarray(to_host(array).astype(other.dtype))
                    for name, array in mine.constants.items()
                }
        other.set_draws(self.draws.seed, self.draws.steps)
        other._link_comes_twice = self._link_comes_twice
        return other

    # Data in and out.

    def examples(self, X: Any) -> Array:
        """X where it is and in its own dtype, after a look at its shape: slices of it are for `inputs`.

        Args:
            X: (N, n_in), or (E, N, n_in) for a stack.

        Raises:
            ShapeError: X is not (N, n_in), nor, for a stack, (E, N, n_in).
            DataError, DeviceError: See `gpubp.backend.as_array`.
        """
        if isinstance(X, RowsOf):
            return X.of(self.examples(X.data))
        array = as_array(X, self.device, name="X", move=False)
        stacked = self.members is not None and array.ndim == 3
        if array.ndim != 2 and not stacked:
            wanted = "(N, n_in)" if self.members is None else "(N, n_in) or (members, N, n_in)"
            raise ShapeError(f"X has shape {array.shape}; {wanted} is needed, one row an example")
        if stacked and array.shape[0] != self.members:
            raise ShapeError(f"X has shape {array.shape}, but the stack has {self.members} members")
        if array.shape[-1] != self.n_in:
            raise ShapeError(f"X has {array.shape[-1]} features (shape {array.shape}), the network takes {self.n_in}")
        return array

    def inputs(self, X: Any, *, as_given: bool = False) -> Array:
        """X as an array of the network's device and dtype, after a look at its shape.

        Args:
            X: (N, n_in), or (E, N, n_in) for a stack.
            as_given: Leave X where it is, and in its dtype where `gather` converts that and little would be gained.

        Raises:
            ShapeError: X is not (N, n_in), nor, for a stack, (E, N, n_in).
            DataError: An index column holds no index; or see `gpubp.backend.as_array`, as for DeviceError.
        """
        X = self.examples(X)
        if as_given:
            return X.of(self._gatherable(X.data)) if isinstance(X, RowsOf) else self._gatherable(X)
        array = self.converted(X)
        with self.device.activate("checking X"):
            self.require_valid(array)
        return array

    def converted(self, X: Array) -> Array:
        """What `examples` gave, or a slice of it, on the network's device and in its dtype."""
        return as_array(X[..., :, :] if isinstance(X, RowsOf) else X, self.device, dtype=self.dtype, name="X")

    def _gatherable(self, array: Array) -> Array:
        """The array, or where `gather` can't convert it, or much would be gained, a copy in the network's dtype."""
        stays = type(array) is not np.ndarray  # on a device or in a file: a copy would take more than conversions do
        return array if converts(array.dtype, array.dtype if stays else self.dtype) else array.astype(self.dtype)

    def require_valid(self, X: Array) -> None:
        """Check that the columns of X (..., N, n_in) that a layer takes as indices hold some.

        Raises:
            DataError: One does not.
        """
        for layer in self.layers:
            if layer.index_columns:
                layer.require_valid(X)
                return
            if not layer.kept_columns:
                return

    def targets(self, T: Any, X: Array) -> Array:
        """T as the loss wants it for the examples X; see `Loss.targets`."""
        if self._link_comes_twice:
            self._link_comes_twice = False
            warnings.warn(
                f"the last layer, {self.layers[-1]!r}, comes twice, as {self.loss.name} applies it by itself: leave it "
                "out; predict gives probabilities all the same",
                stacklevel=3,
            )
        array = as_array(T, self.device, name="T")
        outputs = (*(() if self.members is None else (self.members,)), X.shape[-2], self.n_out)
        with self.device.activate("checking the targets"):
            return self.loss.targets(array, outputs, self.dtype)

    def sample_weights(self, sample_weight: Any, X: Array) -> Array | None:
        """Example weights scaled to a mean of 1 (for each member), as an array of shape (N,) or (E, N); or None.

        Raises:
            ShapeError: The shape does not fit X.
            DataError: A weight is negative or not finite, or all of them are zero.
        """
        if sample_weight is None:
            return None
        array = as_array(sample_weight, self.device, dtype=self.dtype, name="sample_weight")
        shapes = [X.shape[-2:-1], *([] if self.members is None else [(self.members, X.shape[-2])])]
        if array.shape not in shapes:
            raise ShapeError(f"sample_weight has shape {array.shape}; {' or '.join(map(str, shapes))} is needed")
        with self.device.activate("checking sample_weight"):
            if not bool(((array >= 0) & (array < float("inf"))).all()):
                raise DataError("sample_weight holds a value that is negative or not finite")
            if not array.size:
                return array
            mean = array.mean(axis=-1, keepdims=True)
            if not bool((mean > 0).all()):
                raise DataError("sample_weight is zero for every example")
            return array / mean

    # Computing.

    def forward(self, X: Any) -> Array:
        """The output Y (..., N, n_out) of the last layer, in inference mode, before the loss's link."""
        with self.device.activate("computing the output"):
            return self.run_forward(self.inputs(X))[0]

    def predict(self, X: Any, batch_size: int | None = None) -> Array:
        """Predictions (..., N, n_out): probabilities for the cross-entropies, values for squared error.

        Args:
            X: (N, n_in), or (E, N, n_in) for a stack; a file's array or a `RowsOf` is read batch by batch.
            batch_size: How many examples to compute at a time; None for as many as take little memory.
        """
        X = self.examples(X)
        N = X.shape[-2]
        P: Array = None
        with self.device.activate("predicting"):
            for rows in row_slices(N, self._batch_size(batch_size)):
                part = self.loss.link(self.run_forward(self.inputs(X[..., rows, :]))[0])  # (..., rows, n_out)
                if part.shape[-2] == N:
                    return part
                if P is None:
                    P = self.device.module.empty((*part.shape[:-2], N, part.shape[-1]), part.dtype)
                P[..., rows, :] = part
        return P

    def _batch_size(self, batch_size: int | None) -> int:
        """The batch size; for None one whose X takes little memory."""
        return max(1, min(8192, EVALUATED // self.n_in)) if batch_size is None else require_batch_size(batch_size)

    def loss_and_gradients(
        self, X: Any, T: Any, sample_weight: Any = None
    ) -> tuple[float | np.ndarray[Any, Any], dict[str, Array]]:
        """The loss over all these examples, the L2 penalty included, and its gradient by every parameter.

        It is computed as a training step does: random layers draw what the next one will draw, and layers that keep
        statistics of their batches take these in.

        Args:
            X: (N, n_in), or (E, N, n_in) with other examples for each member of a stack.
            T: Targets as the loss takes them.
            sample_weight: (N,) or (E, N); None weighs all examples the same.

        Returns:
            The loss, a float, or (E,) in float64 for a stack; and ``{"0.W": array, ...}``, arrays that stay valid.
        """
        array = self.inputs(X)
        require_examples(array)
        targets, weights = self.targets(T, array), self.sample_weights(sample_weight, array)
        with self.device.activate("computing gradients"):
            before = self.snapshot(weights=False)
            try:
                self.draws.begin_steps(0)
                L = self.run_step(array, targets, weights)
                gradients = self.named_gradients(self.dL_dtheta.copy())
                loss = to_host(L).astype(np.float64)
            except Exception:  # of memory, say: what is tried again with fewer examples takes no statistics twice
                self.restore(before)
                raise
        return (float(loss) if self.members is None else loss), gradients

    def evaluate(self, X: Any, T: Any, sample_weight: Any = None, batch_size: int | None = None) -> Any:
        """The loss over these examples in inference mode, the L2 penalty included: a float, or (E,) for a stack.

        Args:
            X: (N, n_in), or (E, N, n_in) for a stack; a file's array or a `RowsOf` is read batch by batch.
            T: Targets as the loss takes them.
            sample_weight: (N,) or (E, N); None weighs all examples the same.
            batch_size: How many examples to compute at a time; None for as many as take little memory.
        """
        X = self.examples(X)
        return self.evaluate_prepared(X, self.targets(T, X), self.sample_weights(sample_weight, X), batch_size)

    def evaluate_prepared(
        self, X: Array, T: Array, sample_weight: Array | None, batch_size: int | None = None, *, training: bool = False
    ) -> Any:
        """`evaluate` on what `examples`, `targets` and `sample_weights` gave; if asked, as training computes it."""
        N, size = require_examples(X), self._batch_size(batch_size)
        total: Any = 0.0
        with self.device.activate("evaluating"):
            for rows in row_slices(N, size):
                w = None if sample_weight is None else sample_weight[..., rows]
                Y, _ = self.run_forward(self.inputs(X[..., rows, :]), training=training)
                L, _ = self.loss.forward(Y, T[example_rows(T, rows)], w)
                total = total + to_host(L).astype(np.float64) * (rows.stop - rows.start)
            loss = total / N
            if self.l2:
                zero = self.device.module.zeros(self.theta.shape[:-1], self.dtype)
                loss = loss + to_host(self.penalty(zero)).astype(np.float64)
        return float(loss) if self.members is None else loss

    def adapt(self, X: Any) -> None:
        """Let every layer that needs statistics of the training data, and has none yet, take them from X.

        Those within a `Residual` block take them of what goes into them, as all others do.
        """
        if any(map(_waits, all_layers(self.layers))):
            with self.device.activate():
                self._adapt(self.layers, self.inputs(X, as_given=True))

    def _adapt(self, layers: Sequence[Layer], Y: Array) -> None:
        """`adapt` some layers, one after the other, where Y is what goes into the first; and those that they hold."""
        for position, layer in enumerate(layers):
            if isinstance(layer, Standardize) and _waits(layer):
                layer.adapt(Y, self.dtype)
                layer.constants = {name: to_device(array, self.device) for name, array in layer.constants.items()}
            self._adapt(layer.inner, Y)
            if not any(map(_waits, all_layers(layers[position + 1 :]))):
                return
            if isinstance(Y, np.ndarray | RowsOf) and self.device.is_cuda:  # too much for the device, maybe
                rows = row_slices(Y.shape[-2], 8192)
                parts = [to_host(layer.forward(self.converted(Y[..., part, :]))[0]) for part in rows]
                Y = np.concatenate(parts, axis=-2)
            else:
                Y, _ = layer.forward(self.converted(Y))

    # The one pass that eager calls and the planned step share.

    def run_forward(
        self,
        X: Array,
        outs: Sequence[Out] | None = None,
        *,
        training: bool = False,
    ) -> tuple[Array, list[dict[str, Array]]]:
        """All layers forward: Y, and what each of `executed` saved. X is checked already."""
        saved = []
        for layer, out in zip(self.executed, outs or self._fresh.forward, strict=True):
            X, state = layer.forward(X, out, training=training, rng=self.draws)
            saved.append(state)
        return X, saved

    def run_step(
        self,
        X: Array,
        T: Array,
        sample_weight: Array | None,
        buffers: StepBuffers | None = None,
    ) -> Array:
        """Forward, loss, backward: fills `dL_dtheta` and returns the loss L of shape () or (E,), one of the buffers.

        Args:
            X: As `inputs` gives it.
            T: As `targets` gives it.
            sample_weight: As `sample_weights` gives it.
            buffers: What to write; None for fresh arrays.
        """
        buffers = buffers or self._fresh
        Y, saved = self.run_forward(X, buffers.forward, training=True)
        L, state = self.loss.forward(Y, T, sample_weight, buffers.loss)
        gradient = self.loss.backward(state, buffers.loss)  # dL_dY, (..., N, n_out)
        for k in reversed(range(self.first_trained, len(self.executed))):
            layer, out = self.executed[k], buffers.backward[k]
            gradient = layer.backward(gradient, saved[k], out, input_gradient=k > self.first_trained)
        return self.penalty(L, self.dL_dtheta) if self.l2 else L

    def penalty(self, L: Array, dL_dtheta: Array | None = None) -> Array:
        """Add the L2 penalty onto a loss L of shape () or (E,), and its gradient onto `dL_dtheta`; returns L."""
        W = self.theta[..., : self.weights_size]
        dL_dW = None if dL_dtheta is None else dL_dtheta[..., : self.weights_size]
        if self._scratch is None:
            self._scratch = scratch_for(W)
        L = self.device.module.asarray(L)  # a loss of the user's own may give a NumPy scalar
        return add_l2(W, self.l2, dL_dW, L, self._scratch)

    # What it takes.

    def costs(
        self, batch_size: int, optimizer: Optimizer | None = None, *, gather: bool = True, stacked: bool = False
    ) -> list[Cost]:
        """What a training step needs of the machine, operation by operation; see `gpubp.summary.step_costs`."""
        return step_costs(self, batch_size, optimizer, gather=gather, stacked=stacked)

    def summary(self, batch_size: int = 256) -> str:
        """A table: each layer with its output, parameters and floating-point operations; what a step takes at last.

        Args:
            batch_size: Examples in the step whose memory is told.
        """
        return summary_of(self, require_batch_size(batch_size)).text()

    def _repr_html_(self) -> str:
        """The summary as a notebook shows it."""
        return summary_of(self, 256).html()


def mlp(
    widths: Sequence[int],
    *,
    activation: str | Activation = "sigmoid",
    loss: str | Loss = "softmax_cross_entropy",
    standardize: bool = False,
    embeddings: Mapping[int, tuple[int, int]] | None = None,
    initializer: Any = None,
    **settings: Any,
) -> Network:
    """A multilayer perceptron: dense layers of the given widths with an activation between them.

    Args:
        widths: ``[n_in, hidden, ..., n_out]``, at least two.
        activation: The activation after each layer but the last: a name or an activation layer to take copies of.
        loss: A loss or its name.
        standardize: Whether to begin with a `Standardize` layer.
        embeddings: Columns of X that hold indices, each with the (categories, width) of its table; see `Embedding`.
        initializer: Of the weights; None takes the one that suits the activation.
        **settings: `dtype`, `device`, `rng`, `members`, `l2`, `matmul_precision` of `Network`.

    Raises:
        SettingError: There are fewer than two widths, or one is no positive whole number, or a name is unknown.
    """
    if len(widths) < 2:
        raise SettingError(f"mlp({list(widths)}): at least the input's and the output's width are needed")
    template = activation if isinstance(activation, Activation) else activation_by_name(activation)
    initializer = initializer or template.initializer
    layers: list[Layer] = [Standardize(widths[0], tuple(embeddings or ()))] if standardize else []
    if embeddings:
        layers.append(Embedding(widths[0], embeddings))
        widths = [layers[-1].output_width(widths[0]), *widths[1:]]
    for position, (n_in, n_out) in enumerate(pairwise(widths)):
        if position:
            layers.append(type(template)(**template.config()))
        layers.append(Dense(n_in, n_out, initializer))
    return Network(layers, loss, **settings)


def _unpickled(
    layers: Any,
    loss: Loss,
    settings: dict[str, Any],
    theta: Array,
    epochs_trained: int,
    draws: tuple[int, int] = (0, 0),
) -> Network:
    network = Network([kind(**config) for kind, config, _ in layers], loss, **settings)
    with network.device.activate():
        network.theta[...] = network.device.module.asarray(theta)
        for layer, (_, _, constants) in zip(network.layers, layers, strict=True):
            layer.constants = {name: network.device.module.asarray(array.copy()) for name, array in constants.items()}
    network.epochs_trained = epochs_trained
    network.set_draws(*draws)
    return network


def _waits(layer: Layer) -> bool:
    """Whether a layer needs statistics of the training data, and has none yet."""
    return isinstance(layer, Standardize) and not layer.adapted


def require_batch_size(batch_size: Any) -> int:
    """The batch size as an int.

    Raises:
        SettingError: It is not a whole number of at least 1.
    """
    return require_count(None, "batch_size", batch_size)


def require_examples(X: Array) -> int:
    """The number of examples in X (..., N, n).

    Raises:
        DataError: There are none.
    """
    if X.shape[-2] == 0:
        raise DataError("no examples: the mean of a loss over none is not defined")
    return int(X.shape[-2])
