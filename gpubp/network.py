"""`Network`: a list of layers and a loss over one flat parameter buffer, and `mlp`, which writes the list."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from gpubp.architecture import chained_widths, fused
from gpubp.backend import Array, Device, as_array, resolve_device, to_host
from gpubp.errors import DataError, SettingError, ShapeError
from gpubp.layers.base import Activation, Layer, activation_by_name
from gpubp.layers.dense import Dense
from gpubp.layers.standardize import Standardize
from gpubp.losses.base import Loss, loss_by_name
from gpubp.losses.penalty import add_l2
from gpubp.ops import tiles
from gpubp.ops.gather import example_rows, row_slices
from gpubp.parameters import FlatParameters

Out = Mapping[str, Array] | None


class StepBuffers(NamedTuple):
    """What one step writes: a mapping for each layer forward, one for the loss, a mapping for each layer backward."""

    forward: Sequence[Out]
    loss: Out
    backward: Sequence[Out]


class Network:
    """Layers one after the other, with a loss at the end: a single network, or a stack of E networks trained at once.

    Args:
        layers: The layers, in order; each belongs to this network from now on.
        loss: A `Loss`, or its name: ``"softmax_cross_entropy"``, ``"binary_cross_entropy"``, ``"squared_error"``.
        dtype: ``"float32"`` or ``"float64"``.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"`` for a CUDA device where there is one.
        rng: Seed or generator for the initial parameters.
        members: None for a single network; E for a stack of E, whose results have a leading axis of that length.
        l2: Strength alpha of the penalty ``0.5 * alpha * sum(W^2)`` on all weights; part of the loss.

    Attributes:
        layers: The layers that the user gave.
        loss: The loss.
        theta: All parameters: (P,), or (E, P) with one member a row.
        dL_dtheta: The gradient that the last backward wrote; the shape of theta.
        n_in, n_out: Widths of the input and the output.

    Raises:
        ShapeError: Neighbouring layers do not fit; the message names them and their widths.
        SettingError: A setting is outside its range.
        DeviceError: The device can't be used.
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
    ) -> None:
        self.layers = list(layers)
        self.loss = loss if isinstance(loss, Loss) else loss_by_name(loss)
        if dtype not in ("float32", "float64", np.float32, np.float64):
            raise SettingError(f"dtype={dtype!r}: use 'float32' or 'float64'")
        self.dtype = np.dtype(dtype)
        if members is not None and (not isinstance(members, int | np.integer) or members < 1):
            raise SettingError(f"members={members}: a whole number of at least 1 is needed, or None for no stack")
        if not 0 <= l2 < float("inf"):
            raise SettingError(f"l2={l2}: the strength of the penalty is a finite number, at least 0")
        self.l2 = float(l2)
        self.members = members
        self.n_in, self.n_out = chained_widths(self.layers)
        for position, layer in enumerate(self.layers):
            if layer.parameters:
                raise SettingError(
                    f"layer {position}, {layer!r}, has parameters already: make a new one for this network"
                )
        self.device = resolve_device(device)
        self._flat = FlatParameters(self.layers, self.dtype, self.device, members, np.random.default_rng(rng))
        self.theta, self.dL_dtheta = self._flat.theta, self._flat.dL_dtheta
        self.executed = fused(self.layers)
        """The layers as they run: each Dense with the activation after it as one."""
        self.first_trained = next((k for k, layer in enumerate(self.executed) if layer.declare()), len(self.executed))
        """Position in `executed` of the first layer with parameters: no gradient is needed before it."""
        self._scratch: Array = None  # of the penalty
        self.plan: Any = None  # the trainer keeps its step plan here, so that a second fit uses it again
        self.epochs_trained = 0
        """How many epochs `fit` has trained this network for; the next one goes on from there."""
        self._fresh = StepBuffers([None] * len(self.executed), None, [None] * len(self.executed))

    def __repr__(self) -> str:
        stack = "" if self.members is None else f", members={self.members}"
        return f"Network({self.layers!r}, loss={self.loss!r}, dtype='{self.dtype}', device='{self.device}'{stack})"

    # Parameters.

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
        settings = {"dtype": str(self.dtype), "device": str(self.device), "members": self.members, "l2": self.l2}
        return _unpickled, (layers, self.loss, settings, to_host(self.theta), self.epochs_trained)

    def copy(self, *, dtype: Any = None, device: str | Device | None = None) -> Network:
        """An independent network with the same layers and values, in another dtype or on another device if asked."""
        layers = [type(layer)(**layer.config()) for layer in self.layers]
        other = Network(
            layers,
            type(self.loss)(**self.loss.config()),
            dtype=dtype or self.dtype,
            device=device or self.device,
            members=self.members,
            l2=self.l2,
        )
        with other.device.activate():
            other.theta[...] = other.device.module.asarray(to_host(self.theta), dtype=other.dtype)
            for mine, theirs in zip(self.layers, layers, strict=True):
                for name, array in mine.constants.items():
                    theirs.constants[name] = other.device.module.asarray(to_host(array), dtype=other.dtype)
        return other

    # Data in and out.

    def inputs(self, X: Any) -> Array:
        """X as an array of the network's device and dtype, after a look at its shape.

        Raises:
            ShapeError: X is not (N, n_in), nor, for a stack, (E, N, n_in).
            DataError, DeviceError: See `gpubp.backend.as_array`.
        """
        array = as_array(X, self.device, dtype=self.dtype, name="X")
        stacked = self.members is not None and array.ndim == 3
        if array.ndim != 2 and not stacked:
            wanted = "(N, n_in)" if self.members is None else "(N, n_in) or (members, N, n_in)"
            raise ShapeError(f"X has shape {array.shape}; {wanted} is needed, one row an example")
        if stacked and array.shape[0] != self.members:
            raise ShapeError(f"X has shape {array.shape}, but the stack has {self.members} members")
        if array.shape[-1] != self.n_in:
            raise ShapeError(f"X has {array.shape[-1]} features (shape {array.shape}), the network takes {self.n_in}")
        return array

    def targets(self, T: Any, X: Array) -> Array:
        """T as the loss wants it for the examples X; see `Loss.targets`."""
        array = as_array(T, self.device, name="T")
        outputs = (*(() if self.members is None else (self.members,)), X.shape[-2], self.n_out)
        with self.device.activate():
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
        with self.device.activate():
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
        with self.device.activate():
            return self.run_forward(self.inputs(X))[0]

    def predict(self, X: Any, batch_size: int | None = None) -> Array:
        """Predictions (..., N, n_out): probabilities for the cross-entropies, values for squared error.

        Args:
            X: (N, n_in), or (E, N, n_in) for a stack.
            batch_size: How many examples to compute at a time; None for all at once.
        """
        array = self.inputs(X)
        size = max(1, array.shape[-2]) if batch_size is None else require_batch_size(batch_size)
        with self.device.activate():
            parts = [
                self.loss.link(self.run_forward(array[..., rows, :])[0]) for rows in row_slices(array.shape[-2], size)
            ]
            return parts[0] if len(parts) == 1 else self.device.module.concatenate(parts, axis=-2)

    def loss_and_gradients(
        self, X: Any, T: Any, sample_weight: Any = None
    ) -> tuple[float | np.ndarray[Any, Any], dict[str, Array]]:
        """The loss over all these examples, the L2 penalty included, and its gradient by every parameter.

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
        with self.device.activate():
            L = self.run_step(array, targets, weights)
            gradients = self.named_gradients(self.dL_dtheta.copy())
        loss = to_host(L).astype(np.float64)
        return (float(loss) if self.members is None else loss), gradients

    def evaluate(self, X: Any, T: Any, sample_weight: Any = None, batch_size: int = 8192) -> Any:
        """The loss over these examples in inference mode, the L2 penalty included: a float, or (E,) for a stack."""
        X = self.inputs(X)
        return self.evaluate_prepared(X, self.targets(T, X), self.sample_weights(sample_weight, X), batch_size)

    def evaluate_prepared(self, X: Array, T: Array, sample_weight: Array | None, batch_size: int = 8192) -> Any:
        """`evaluate` on what `inputs`, `targets` and `sample_weights` gave."""
        N = require_examples(X)
        total: Any = 0.0
        with self.device.activate():
            for rows in row_slices(N, require_batch_size(batch_size)):
                w = None if sample_weight is None else sample_weight[..., rows]
                Y, _ = self.run_forward(X[..., rows, :])
                L, _ = self.loss.forward(Y, T[example_rows(T, rows)], w)
                total = total + to_host(L).astype(np.float64) * (rows.stop - rows.start)
            loss = total / N
            if self.l2:
                loss = loss + to_host(self.penalty()).astype(np.float64)
        return float(loss) if self.members is None else loss

    def adapt(self, X: Any) -> None:
        """Let every layer that needs statistics of the training data, and has none yet, take them from X."""
        waiting = [layer for layer in self.layers if isinstance(layer, Standardize) and not layer.adapted]
        if not waiting:
            return
        with self.device.activate():
            Y = self.inputs(X)
            for layer in self.layers:
                if layer in waiting:
                    layer.adapt(Y)
                    waiting.remove(layer)
                if not waiting:
                    return
                Y, _ = layer.forward(Y)

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
            X, state = layer.forward(X, out, training=training)
            saved.append(state)
        return X, saved

    def run_step(
        self,
        X: Array,
        T: Array,
        sample_weight: Array | None,
        buffers: StepBuffers | None = None,
    ) -> Array:
        """Forward, loss, backward: fills `dL_dtheta` and returns the loss L of shape () or (E,).

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
        return L + self.penalty(self.dL_dtheta) if self.l2 else L

    def penalty(self, dL_dtheta: Array | None = None) -> Array:
        """The L2 penalty alone, of shape () or (E,); its gradient is added onto `dL_dtheta` where one is given."""
        weights = slice(0, self.weights_size)
        gradient = None if dL_dtheta is None else dL_dtheta[..., weights]
        if self._scratch is None:
            _, self._scratch = tiles.prepare(self.theta[..., weights])
        return add_l2(self.theta[..., weights], self.l2, gradient, self._scratch)


def mlp(
    widths: Sequence[int],
    *,
    activation: str | Activation = "sigmoid",
    loss: str | Loss = "softmax_cross_entropy",
    standardize: bool = False,
    initializer: Any = None,
    **settings: Any,
) -> Network:
    """A multilayer perceptron: dense layers of the given widths with an activation between them.

    Args:
        widths: ``[n_in, hidden, ..., n_out]``, at least two.
        activation: The activation after each layer but the last: a name or an activation layer to take copies of.
        loss: A loss or its name.
        standardize: Whether to begin with a `Standardize` layer.
        initializer: Of the weights; None takes the one that suits the activation.
        **settings: `dtype`, `device`, `rng`, `members`, `l2` of `Network`.

    Raises:
        SettingError: There are fewer than two widths, or one is no positive whole number, or a name is unknown.
    """
    if len(widths) < 2:
        raise SettingError(f"mlp({list(widths)}): at least the input's and the output's width are needed")
    template = activation if isinstance(activation, Activation) else activation_by_name(activation)
    initializer = initializer or template.initializer
    layers: list[Layer] = [Standardize(widths[0])] if standardize else []
    for position, (n_in, n_out) in enumerate(pairwise(widths)):
        if position:
            layers.append(type(template)(**template.config()))
        layers.append(Dense(n_in, n_out, initializer))
    return Network(layers, loss, **settings)


def _unpickled(layers: Any, loss: Loss, settings: dict[str, Any], theta: Array, epochs_trained: int) -> Network:
    network = Network([kind(**config) for kind, config, _ in layers], loss, **settings)
    with network.device.activate():
        network.theta[...] = network.device.module.asarray(theta)
        for layer, (_, _, constants) in zip(network.layers, layers, strict=True):
            layer.constants = {name: network.device.module.asarray(array) for name, array in constants.items()}
    network.epochs_trained = epochs_trained
    return network


def require_batch_size(batch_size: Any) -> int:
    """The batch size as an int.

    Raises:
        SettingError: It is not a whole number of at least 1.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise SettingError(f"batch_size={batch_size!r}: a whole number of at least 1 is needed")
    return int(batch_size)


def require_examples(X: Array) -> int:
    """The number of examples in X (..., N, n).

    Raises:
        DataError: There are none.
    """
    if X.shape[-2] == 0:
        raise DataError("no examples: the mean of a loss over none is not defined")
    return int(X.shape[-2])
