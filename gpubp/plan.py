"""The planned training step: every array that a step writes, laid out once in one workspace. No maths in this file.

The step itself is `Network.run_step`, the same code that runs eagerly. Where compiled kernels compute all of it, it is
recorded, as a program of CPU kernels or as a CUDA graph, and many steps run in one call.
"""

from __future__ import annotations

import contextlib
import math
import warnings
import weakref
from collections.abc import Callable
from itertools import chain
from typing import Any, TypeAlias

import numpy as np

from gpubp import cpu, cublas, cuda, faults, workspace
from gpubp.backend import Array, free_bytes, has_room
from gpubp.buffers import Shape
from gpubp.errors import OutOfDeviceMemoryError, ShapeError
from gpubp.layers.base import all_layers
from gpubp.network import Network, StepBuffers
from gpubp.ops.combine import combine
from gpubp.ops.gather import example_axis, example_rows, gather, row_slices
from gpubp.optimizers.base import Optimizer
from gpubp.parameters import zeros_like
from gpubp.recording import NotFiniteError, Recording, StepToRecord, captured, programmed

SMALL_BYTES = 2**20
"""Device memory for the many small arrays of a training, 512 bytes each at least, and for what the pool wastes."""

Batch: TypeAlias = tuple[Array, Array, Array | None]
"""X, T and sample_weight of some examples."""


class StepPlan:
    """The buffers of a training step of at most `batch_size` examples.

    Args:
        network: The network to train.
        batch_size: The largest number of examples in a step.
        stacked: Whether each member of a stack has its own examples, X (E, N, n_in), rather than sharing (N, n_in).
        micro_batch_size: How many examples are computed at a time; their gradients are added up to that of the whole
            step, which is the same but for rounding; layers that are random, or take statistics of a batch, do so for
            each part. None for all at once.
        beside: Bytes of device memory to leave for what training takes besides the steps, such as the optimizer's
            state.

    Attributes:
        workspace: The one array that holds every buffer.

    Raises:
        OutOfDeviceMemoryError: The steps do not fit on the device; the message says which would.
    """

    def __init__(
        self,
        network: Network,
        batch_size: int,
        *,
        stacked: bool = False,
        micro_batch_size: int | None = None,
        beside: int = 0,
    ) -> None:
        self.network, self.batch_size, self.stacked = network, batch_size, stacked
        self.micro_batch_size = min(batch_size, micro_batch_size or batch_size)
        self._planned = workspace.lives(network, self.micro_batch_size, stacked)
        self._size = workspace.lay_out(self._planned, network.dtype.itemsize)
        with network.device.activate():
            if network.device.is_cuda:
                self._require_memory(beside)
            self.workspace = self._aligned(self._size)
            self._dL_dtheta = network.dL_dtheta  # of the whole step, and its loss where that is added up
            if self.micro_batch_size < batch_size:
                self._dL_dtheta = zeros_like(network.theta)
            self._L = network.device.module.empty(network.theta.shape[:-1], network.dtype)
            self._stream: Any = network.device.module.cuda.Stream(non_blocking=True) if network.device.is_cuda else None
            self._event = cuda.event() if network.device.is_cuda else None
        self._buffers: dict[int, StepBuffers] = {}
        self._examples: dict[tuple[Any, ...], list[Array]] = {}  # the memory of minibatches of one kind, ...
        self._minibatches: dict[tuple[Any, ...], list[Array]] = {}  # and views of it, for each number of examples
        self._recordings: dict[tuple[Any, ...], tuple[tuple[Any, ...], Recording | None]] = {}
        self._warm: dict[tuple[Any, ...], tuple[Any, ...]] = {}
        self._compiled: set[tuple[Any, ...]] = set()  # kinds of steps whose kernels are
        self.why_not_captured: str | None = None
        """Why steps on a CUDA device are launched one by one; None where they are captured, or have not been yet."""

    @property
    def workspace_bytes(self) -> int:
        """Size of the workspace."""
        return int(self.workspace.nbytes)

    @property
    def bytes_held(self) -> int:
        """Bytes of the arrays that this plan has made by now, and keeps; a first call of `steps` makes some of them.

        They are the workspace, minibatches, the index and the losses of the steps of a launch, and the gradient that
        micro-batches add up to. Left out are what belongs to the network and to the optimizer, the small arrays that
        some kernels keep (sums of parts, a matrix laid out anew), and copies of theta and of its gradient that last as
        long as a recording is made.
        """
        arrays = [self.workspace, self._L, *chain(*self._examples.values())]
        if self._dL_dtheta is not self.network.dL_dtheta:
            arrays.append(self._dL_dtheta)
        for _, recording in self._recordings.values():
            if recording is not None:
                arrays += [recording.index, recording.losses]
        return sum(int(array.nbytes) for array in arrays)

    @property
    def dL_dtheta(self) -> Array:
        """The gradient that the last update took: of the whole step, where that is done in micro-batches too."""
        return self._dL_dtheta

    def step(
        self,
        X: Array,
        T: Array,
        sample_weight: Array | None,
        optimizer: Optimizer,
        *,
        reduce_gradients: Callable[[Array], None] | None = None,
    ) -> Array:
        """One training step on at most `batch_size` examples.

        Args:
            X: As `Network.inputs` gives it.
            T: As `Network.targets` gives it.
            sample_weight: As `Network.sample_weights` gives it.
            optimizer: Changes the network's parameters.
            reduce_gradients: Called with dL_dtheta before the update, to change it in place (an average over
                processes, say).

        Returns:
            The loss before the update, of shape () or (E,); the next step overwrites it.
        """
        with self.network.device.activate():
            return self._step(_slices(X, T, sample_weight), X.shape[-2], optimizer, reduce_gradients)

    def gradients(self, X: Array, T: Array, sample_weight: Array | None) -> Array:
        """The loss of at most `batch_size` examples, as `step` returns it; the gradient is left in `dL_dtheta`.

        Random layers draw what the next step will draw. X may be as `Network.examples` gives it, too: each micro-batch
        is converted when its turn comes.
        """
        with self.network.device.activate():
            self.network.draws.begin_steps(0)
            part = _slices(X, T, sample_weight)
            return self._gradients(lambda rows: self._converted(part(rows)), X.shape[-2], self._L)

    def _converted(self, batch: Batch) -> Batch:
        return self.network.device.module.ascontiguousarray(self.network.converted(batch[0])), *batch[1:]

    def _step(
        self,
        part: Callable[[slice], Batch],
        N: int,
        optimizer: Optimizer,
        reduce_gradients: Callable[[Array], None] | None = None,
    ) -> Array:
        """A step on N examples, which `part` gives a slice of; its loss."""
        self.network.draws.begin_steps(1)
        L = self._gradients(part, N, self._L)
        if reduce_gradients is not None:
            reduce_gradients(self._dL_dtheta)
        optimizer.update(self.network.theta, self._dL_dtheta, self.network.weights_size)
        return L

    def _gradients(self, part: Callable[[slice], Batch], N: int, L: Array) -> Array:
        """Loss and gradient of N examples, micro-batch by micro-batch: writes `_dL_dtheta`, and returns the loss.

        Args:
            part: Gives a slice of the examples.
            N: How many there are.
            L: Receives the loss where it is a sum of several, or where the loss writes where it is told to.

        Raises:
            ShapeError: N is larger than the plan's batch size.
        """
        network = self.network
        if N > self.batch_size:
            raise ShapeError(
                f"{N} examples in a step that was planned for at most {self.batch_size}: make a new StepPlan"
            )
        network.draws.part = 0
        if N <= self.micro_batch_size and self._dL_dtheta is network.dL_dtheta:
            return network.run_step(*part(slice(0, N)), self.buffers(N, L))
        for number, rows in enumerate(row_slices(N, self.micro_batch_size)):
            network.draws.part = number
            share, kept = (rows.stop - rows.start) / N, float(rows.start > 0)
            L_part = network.run_step(*part(rows), self.buffers(rows.stop - rows.start))
            combine(self._dL_dtheta, kept, network.dL_dtheta, share)
            combine(L, kept, L_part, share)
        network.draws.part = 0
        return L

    def steps(
        self,
        X: Array,
        T: Array,
        sample_weight: Array | None,
        index: Array,
        optimizer: Optimizer,
        *,
        reduce_gradients: Callable[[Array], None] | None = None,
    ) -> Array:
        """Training steps one after the other, step s on the examples ``index[s]`` of a data set.

        Where the CPU kernels compute all that a step does, it is recorded once, and all steps run in one call.

        Args:
            X: As for `step`, but all the examples.
            T: Theirs.
            sample_weight: Theirs.
            index: (S, N) int64 on the network's device, examples within the data set, N at most `batch_size`.
            optimizer: Changes the network's parameters.
            reduce_gradients: As for `step`; Python is called in each step then, and nothing recorded.

        Returns:
            The losses before each update, (S,) or (S, E).
        """
        network, S = self.network, int(index.shape[0])
        lead = () if network.members is None else (network.members,)
        data = (X, T) if sample_weight is None else (X, T, sample_weight)
        with network.device.activate():
            losses = network.device.module.empty((S, *lead), network.dtype)
            with cuda.ordered(self._stream, self._event) if network.device.is_cuda else contextlib.nullcontext():
                done = 0
                if network.device.is_cuda and S:
                    self._compile_ahead(data, index[0], optimizer)
                if reduce_gradients is None and (network.device.is_cuda or cpu.kernels() is not None):
                    done = self._recorded_steps(data, index, optimizer, losses)
                for s in range(done, S):
                    losses[s] = self._step(self._parts(data, index[s]), index.shape[1], optimizer, reduce_gradients)
        return losses

    def forget_recordings(self) -> None:
        """Let go of the data sets that recorded steps read."""
        self._recordings.clear()
        self._warm.clear()
        self._minibatches.clear()
        self._examples.clear()

    def minibatch(self, data: tuple[Array, ...], rows: Array, apart: int | None = None) -> Batch:
        """The minibatch X, T, sample_weight of the examples `rows`, in buffers that the next one takes too.

        Args:
            data: X, T and sample_weight of all examples; that may be None, or left out. X in any dtype that
                `gpubp.ops.gather.gather` turns into the network's.
            rows: (N,) int64.
            apart: See `gpubp.ops.gather.gather`.
        """
        X, T, w = (*data, None)[:3]
        N, T_axis = len(rows), example_axis(T)
        room = max(N, self.micro_batch_size)
        kind = room, X.shape, T.shape, T.dtype, None if w is None else (w.shape, w.dtype)
        key = N, *kind
        if key not in self._minibatches:
            parts = [(X.shape, -2, self.network.dtype), (T.shape, T_axis, T.dtype)]
            parts += [] if w is None else [(w.shape, -1, w.dtype)]
            if kind not in self._examples:
                self._examples[kind] = [
                    self.network.device.module.empty(math.prod(_with_rows(shape, axis, room)), dtype)
                    for shape, axis, dtype in parts
                ]
            shapes = [_with_rows(shape, axis, N) for shape, axis, _ in parts]
            self._minibatches[key] = [
                memory[: math.prod(shape)].reshape(shape)
                for memory, shape in zip(self._examples[kind], shapes, strict=True)
            ]
        X_out, T_out, *w_out = self._minibatches[key]
        gather(X, rows, X_out, -2, apart)
        gather(T, rows, T_out, T_axis, apart)
        return X_out, T_out, None if w is None else gather(w, rows, w_out[0], -1, apart)

    def _recorded_steps(self, data: tuple[Array, ...], index: Array, optimizer: Optimizer, losses: Array) -> int:
        """Run steps by a recording, which is made at first need; returns how many were done, 0 where there is none."""
        S, N = map(int, index.shape)
        if not S:
            return 0
        done, (key, held) = 0, self._key(data, N, optimizer)
        if key not in self._recordings and self.network.device.is_cuda and key not in self._warm:
            # A first step as ever: state is made, and nothing of that may happen in a capture.
            losses[0] = self._step(self._parts(data, index[0]), N, optimizer)
            done, (key, held) = 1, self._key(data, N, optimizer)
            self._warm[key] = held
            if S == 1:
                return 1
        if key not in self._recordings:
            with faults.doing("capturing a step"):
                recording = self._record(data, index[0], optimizer)
            key, held = self._key(data, N, optimizer)  # with the state that the optimizer may have made by now
            self._recordings[key] = held, recording
        _, recording = self._recordings[key]
        if recording is None:
            return done
        recording.run(index[done:], optimizer, losses[done:])
        return S

    def _compile_ahead(self, data: tuple[Array, ...], rows: Array, optimizer: Optimizer) -> None:
        """Compile all kernels of a step at once: it is done without launching one, on whatever is in the buffers.

        Layers, losses and optimizers of a user's own may do other things than launch kernels, and should not do them on
        that: where there is one, kernels are compiled as they are needed.
        """
        network = self.network
        kinds = [type(part) for part in (*all_layers(network.layers), network.loss, optimizer)]
        key = (len(rows), *kinds, self._settings(optimizer), *((array.shape, array.dtype) for array in data))
        if key in self._compiled or not all(kind.__module__.startswith("gpubp.") for kind in kinds):
            return
        self._compiled.add(key)
        before = network.snapshot()
        try:
            with cuda.noted() as kernels, contextlib.suppress(Exception):  # the step itself tells what is wrong with it
                self._gradients(self._parts(data, rows), len(rows), self._L)
                optimizer.launch(network.theta, self._dL_dtheta, network.weights_size)
        finally:
            network.draws.part = 0
            network.restore(before)
        cuda.compile_ahead(kernels)

    def _key(self, data: tuple[Array, ...], N: int, optimizer: Optimizer) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """What a recording is known by, and the objects that it holds: their ids are theirs as long as they live."""
        held = self._held(data, optimizer)
        return (N, self._settings(optimizer), *map(id, held)), held

    def _held(self, data: tuple[Array, ...], optimizer: Optimizer) -> tuple[Any, ...]:
        """The objects whose memory a recording reads and writes; it is of use for these very ones alone."""
        constants = [array for layer in self.network.layers for array in layer.constants.values()]
        return (*data, *optimizer.held(), self.network.draws, *constants)

    def _settings(self, optimizer: Optimizer) -> tuple[Any, ...]:
        """The numbers that a recording holds fast."""
        parts = (self.network.loss, *all_layers(self.network.layers))
        plain = tuple(
            (name, value)
            for part in parts
            for name, value in vars(part).items()
            if isinstance(value, int | float | str | tuple)
        )
        return self.network.l2, optimizer.settings(), plain

    def _record(self, data: tuple[Array, ...], rows: Array, optimizer: Optimizer) -> Recording | None:
        """A recording of steps of as many examples as `rows`; None where there is none, and on a device a warning."""
        plan = weakref.proxy(self)  # which keeps the recording: held by that too, its memory would outlive its use
        step = StepToRecord(
            network=self.network,
            gradients=lambda rows, L: plan._gradients(plan._parts(data, rows), len(rows), L),
            dL_dtheta=self._dL_dtheta,
            L=self._L,
            written=lambda: [plan.workspace, plan.network.dL_dtheta, *chain(*plan._examples.values())],
            examples=data[0].shape[-2],
        )
        before = self.network.snapshot()
        try:
            if not self.network.device.is_cuda:
                recording = programmed(step, rows, optimizer)
                return recording if self.network.has_weights_of(before) else None
            recording = captured(step, rows, optimizer, self._stream)
            if not self.network.has_weights_of(before):
                raise NotImplementedError("a layer changes the weights in its passes")
            self.why_not_captured = None
            return recording
        except NotFiniteError:  # the training diverges, and is told so at the end of the epoch
            return None
        except Exception as error:  # of the driver, of CuPy, of a user's layer: the plan works as well without a graph
            if not self.network.device.is_cuda:
                raise
            faults.raise_if_lost(error, self.network.device)
            reason = faults.first_line(error)
            if without := cublas.why_no_handle():
                reason = f"there is no cuBLAS but CuPy's, which can't be captured ({without})"
        finally:
            self.network.draws.part = 0
            self.network.restore(before)  # the steps that were tried have changed statistics, at least
        if self.why_not_captured is None:
            warnings.warn(f"the training step is not captured as a CUDA graph: {reason}", stacklevel=2)
        self.why_not_captured = reason
        return None

    def _aligned(self, size: int) -> Array:
        """An empty array that starts at a multiple of `workspace.ALIGNMENT`."""
        network = self.network
        if network.device.is_cuda:
            return network.device.module.empty(size, network.dtype)  # CuPy's pool aligns to 512 bytes
        room = np.empty(size * network.dtype.itemsize + workspace.ALIGNMENT, np.uint8)
        start = -room.ctypes.data % workspace.ALIGNMENT
        return room[start : start + size * network.dtype.itemsize].view(network.dtype)

    def _parts(self, data: tuple[Array, ...], rows: Array) -> Callable[[slice], Batch]:
        """What gives the minibatch of some of the examples `rows`."""
        return lambda some: self.minibatch(data, rows[some], len(rows))

    def _bytes(self, batch_size: int, N: int) -> int:
        """Device memory for steps of a batch size, N examples at a time, and for recording them."""
        network, itemsize = self.network, self.network.dtype.itemsize
        members = network.members if self.stacked and network.members else 1
        size = workspace.lay_out(workspace.lives(network, N, self.stacked), itemsize)
        of_targets = max(network.n_out * itemsize, np.dtype(np.int64).itemsize)  # which may be class indices
        minibatch = members * N * ((network.n_in + 1) * itemsize + of_targets)
        copies = network.theta.nbytes + 2 * sum(array.nbytes for array in network.statistics)  # while recording
        gradient = network.theta.nbytes if N < batch_size else 0  # of the whole step
        recordings = 2 * StepToRecord.index_bytes(batch_size)  # of the full batch, and of the last one
        parts = (size * itemsize, minibatch, copies, gradient, recordings, cublas.workspace_bytes(), SMALL_BYTES)
        return int(sum(parts))

    def _require_memory(self, beside: int) -> None:
        """Raise an OutOfDeviceMemoryError that says what would fit, if the device has not the memory for steps."""
        needed = self._bytes(self.batch_size, self.micro_batch_size) + beside
        if has_room(self.network.device, needed):
            return
        free = free_bytes(self.network.device)
        batch = _largest(self.batch_size, lambda N: self._bytes(N, N) + beside <= free)
        micro = _largest(self.micro_batch_size, lambda N: self._bytes(self.batch_size, N) + beside <= free)
        fits = f"a batch_size of at most {batch:,} fits" if batch else "not even a batch of one fits"
        if micro:
            fits += f"; with this one, a micro_batch_size of at most {micro:,}"
        raise OutOfDeviceMemoryError(
            f"a step of {self.micro_batch_size:,} examples needs {needed:,} bytes on {self.network.device}, "
            f"where {free:,} are free: {fits}"
        )

    def buffers(self, N: int, L: Array | None = None) -> StepBuffers:
        """Views of the workspace for a step of N examples; the last, smaller batch of an epoch uses the same memory.

        Args:
            N: At most the micro-batch size.
            L: Where the loss is to be written; None for the workspace.
        """
        if N not in self._buffers:
            layers = range(len(self.network.executed))
            forward: list[dict[str, Array]] = [{} for _ in layers]
            backward: list[dict[str, Array]] = [{} for _ in layers]
            loss: dict[str, Array] = {}
            views = {"forward": forward, "loss": [loss], "backward": backward}
            for planned, actual in zip(self._planned, workspace.lives(self.network, N, self.stacked), strict=True):
                part, k, name = planned.place
                memory = self.workspace[planned.offset : planned.offset + actual.size]
                views[part][k][name] = memory.reshape(actual.shape)
            self._buffers[N] = StepBuffers(forward, loss, backward)
        buffers = self._buffers[N]
        return buffers if L is None else buffers._replace(loss={**(buffers.loss or {}), "L": L})

    def __str__(self) -> str:
        """A table: each array, its shape, its life, where it lies."""
        lines = [f"{'array':<24}{'shape':<20}{'life':<10}{'bytes from':>12}"]
        itemsize = self.network.dtype.itemsize
        for planned in self._planned:
            part, k, name = planned.place
            owner = "loss" if part == "loss" else f"{k} {part}"
            life = f"{planned.born}-{planned.dies}"
            lines.append(f"{owner + ' ' + name:<24}{planned.shape!s:<20}{life:<10}{planned.offset * itemsize:>12,}")
        unshared = sum(planned.size for planned in self._planned) * itemsize
        lines.append(f"workspace: {self.workspace_bytes:,} bytes; without sharing: {unshared:,} bytes")
        return "\n".join(lines)


def _slices(X: Array, T: Array, sample_weight: Array | None) -> Callable[[slice], Batch]:
    """What gives some of these examples."""

    def part(rows: slice) -> Batch:
        w = None if sample_weight is None else sample_weight[..., rows]
        return X[..., rows, :], T[example_rows(T, rows)], w

    return part


def _largest(too_large: int, fits: Callable[[int], bool]) -> int:
    """The largest whole number that fits, where one that is too large is known; 0 for none."""
    low, high = 0, too_large
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _with_rows(shape: Shape, axis: int, count: int) -> Shape:
    """A shape with another number of examples on an axis, counted from the last."""
    axis += len(shape)
    return (*shape[:axis], count, *shape[axis + 1 :])
