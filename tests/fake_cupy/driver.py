"""The fake machine: its devices, the current one, streams and graphs, memory, and a log of kernel launches.

As a rule everything happens at once. A deferred machine keeps what is enqueued in the queue of its stream until the
host waits for it, and then takes the streams in an order that is as bad as events and waits allow.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

ORDERS = ("late", "newest")
"""Of the work of a deferred machine. Late: what is not needed for what the host waits for is left undone. Newest: of
what may run next on each stream, that which was enqueued last runs first."""
GARBAGE = b"\xff"
"""Fills new and freed memory: NaN, or -1."""


@dataclass
class Machine:
    """What the fake driver knows; `fake_cupy.installed` starts it afresh."""

    device_count: int = 1
    current_device: int = 0
    reverse_threads: bool = False
    launches: list[Launch] | None = None
    """Every launch so far, where somebody wants to know; it keeps the arrays alive."""
    stream: Stream | None = None
    """The current stream; None for the default one."""
    default: Stream = field(init=False)
    allocator: Callable[[int], Any] | None = None
    """Asked for every piece of new memory, where there is one."""
    free_bytes: int = 1 << 36
    """What can be allocated in one piece."""
    limit: int = 0
    """What all device memory together may come to; 0 for no limit."""
    waits: int = 0
    """How often the host has waited for the device."""
    graph_launches: int = 0
    order: str | None = None
    """One of `ORDERS` where work is deferred."""
    busy: list[Stream] = field(default_factory=list)
    """Streams that have work to do."""
    enqueued: int = 0
    """Pieces of work so far, on all streams."""

    def allocate(self, nbytes: int) -> None:
        """What happens before new memory is there."""
        if self.allocator is not None:
            self.allocator(nbytes)
        if nbytes > self.free_bytes:
            raise OutOfMemoryError(nbytes, 0)
        if self.limit and used_bytes() + _rounded(nbytes) > self.limit:
            raise OutOfMemoryError(nbytes, used_bytes())

    def new(self, like: np.ndarray) -> np.ndarray:
        """Memory of a deferred machine for an array that looks like another.

        As in CuPy's pool, memory belongs to the stream that is current when it is asked for. What that stream was told
        to do before may be the work of the memory's last owner, and what it is told later that of the next one. So the
        memory is overwritten here, and again when the stream next gets memory after this one was freed; what happens on
        other streams must come between.
        """
        stream, memory = self.stream or self.default, bytearray(GARBAGE * max(1, like.nbytes))
        dense = sum((n - 1) * stride for n, stride in zip(like.shape, like.strides, strict=True)) + like.itemsize
        kept = like.strides if like.size and min((0, *like.strides)) == 0 and dense == like.nbytes else None
        array = np.ndarray(like.shape, like.dtype, memory, 0, kept)
        for scratch in (memory, *stream.freed):
            stream.enqueue(lambda scratch=scratch: scratch.__setitem__(slice(None), GARBAGE * len(scratch)))
        stream.freed.clear()
        weakref.finalize(array, stream.freed.append, memory).atexit = False
        return array

    def submit(self, work: Callable[..., Any], *arguments: Any, stream: Stream | None = None) -> None:
        """Do `work`, or note it where the stream is captured, or the machine deferred.

        Args:
            work: What to do.
            arguments: For `work`. Arrays among them, in lists and tuples too, are device memory, which they do not keep
                alive.
            stream: Where; None for the current one.
        """
        stream = stream or self.stream or self.default
        if stream.captured is not None:
            stream.captured.append(Node(work, arguments))
        elif self.order is not None:
            stream.enqueue(Node(work, arguments).bound())
        else:
            work(*arguments)

    def wait(self, *events: Event) -> None:
        """The host waits for events, or the current stream; a stream that is captured does not allow it."""
        current = self.stream or self.default
        if current.captured is not None:
            raise CUDARuntimeError(
                "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing"
            )
        self.waits += 1
        for event in events or (current.record(),):
            while not event.passed:
                self._next(event.stream).step()

    def wait_for_all(self) -> None:
        """The host waits for all that was enqueued."""
        self.wait(*(stream.record() for stream in self.busy))

    def _next(self, wanted: Stream) -> Stream:
        """The stream whose turn it is, when the host waits for one."""
        if self.order == "newest":
            return max((stream for stream in self.busy if stream.waits_for() is None), key=lambda s: s.queue[0][0])
        while (event := wanted.waits_for()) is not None:
            wanted = event.stream
        return wanted


@dataclass(frozen=True)
class Place:
    """An array that is held by its address."""

    owner: weakref.ref[np.ndarray]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, array: np.ndarray) -> Place:
        owner = owner_of(array)
        return cls(weakref.ref(owner), array.ctypes.data - owner.ctypes.data, array.shape, array.strides, array.dtype)

    def array(self) -> np.ndarray:
        memory = self.owner()
        if memory is None:
            raise RuntimeError("a graph reads or writes memory that was freed")
        return np.ndarray(self.shape, self.dtype, _bytes(memory), self.offset if memory.size else 0, self.strides)


class Node:
    """Work on arrays that are held by their addresses."""

    def __init__(self, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._work, self._arguments = work, each(arguments, np.ndarray, Place.of)

    def bound(self) -> Callable[[], Any]:
        """The work, with the memory as it is found now."""
        arguments = each(self._arguments, Place, Place.array)
        return lambda: self._work(*arguments)


def each(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """What a function makes of each value of a kind, in tuples and lists too."""
    if isinstance(value, tuple | list):
        return type(value)(each(item, kind, function) for item in value)
    return function(value) if isinstance(value, kind) else value


def owner_of(array: np.ndarray) -> np.ndarray:
    """The array that an array is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def _bytes(owner: np.ndarray) -> Any:
    """The memory of an array that is no view; that of a deferred machine does not keep the array alive."""
    if isinstance(owner.base, bytearray):
        return owner.base
    flat = owner.T if owner.flags.f_contiguous else owner
    return flat.reshape(-1).view(np.uint8) if owner.size else np.empty(0, np.uint8)


class Graph:
    """What a stream captured."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    def launch(self, stream: Stream | None = None) -> None:
        machine.graph_launches += 1
        for node in self.nodes:
            machine.submit(node.bound(), stream=stream)

    def upload(self, stream: Stream | None = None) -> None:
        """Nothing to do here."""


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel, with arrays as NumPy arrays."""

    source: str
    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    arguments: tuple[Any, ...]


machine = Machine()

_memory: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()  # what owns some, by its address


def used_bytes() -> int:
    """All device memory that is in use, in pieces of 512 bytes as CuPy's pool hands it out."""
    return sum(_rounded(owner.nbytes) for owner in list(_memory.values()))


def _rounded(nbytes: int) -> int:
    return -(-nbytes // 512) * 512


def register(array: np.ndarray) -> None:
    """Let the memory of an array be found by its address, as long as it lives."""
    owner = owner_of(array)
    _memory[owner.__array_interface__["data"][0]] = owner


def memory_at(address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The array with these numbers of bytes from element to element that begins at an address of device memory.

    Raises:
        CUDARuntimeError: Some of it is no memory, or was freed.
    """
    extent = np.dtype(dtype).itemsize + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    for begin, owner in list(_memory.items()):
        if begin <= address and address + extent <= begin + owner.nbytes:
            flat = owner.T if owner.flags.f_contiguous else owner
            return np.ndarray(shape, dtype, flat.reshape(-1).view(np.uint8), address - begin, strides)
    raise CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")


class Device:
    """Makes a device the current one, as a context manager or for good with `use`."""

    def __init__(self, device: int | None = None) -> None:
        self.id = machine.current_device if device is None else int(device)
        self._before: list[int] = []

    def use(self) -> None:
        if self.id >= machine.device_count:
            raise CUDARuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        machine.current_device = self.id

    def __enter__(self) -> Device:
        self._before.append(machine.current_device)
        self.use()
        return self

    def __exit__(self, *_: object) -> None:
        machine.current_device = self._before.pop()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return self.id

    def synchronize(self) -> None:
        machine.wait_for_all()


class Stream:
    """A stream on which everything happens at once, unless it is captured, or the machine deferred."""

    _count = 0
    known: ClassVar[weakref.WeakValueDictionary[int, Stream]] = weakref.WeakValueDictionary()

    def __init__(self, null: bool = False, non_blocking: bool = False, ptds: bool = False) -> None:
        Stream._count += not null
        self.ptr = 0 if null else Stream._count
        if not null:
            Stream.known[self.ptr] = self
        if machine.order is not None and not (null or non_blocking):
            raise NotImplementedError("a stream that waits for the default one unasked")
        self.captured: list[Node] | None = None
        self.queue: deque[tuple[int, Callable[[], Any] | Event]] = deque()
        """Numbered work; an event is to be waited for."""
        self.enqueued = self.finished = 0
        self.freed: list[bytearray] = []
        """Memory that the stream may hand out again."""
        self._before: list[Stream | None] = []

    def __enter__(self) -> Stream:
        self._before.append(machine.stream)
        machine.stream = self
        return self

    def __exit__(self, *_: object) -> None:
        machine.stream = self._before.pop()

    def use(self) -> Stream:
        machine.stream = self
        return self

    def begin_capture(self, mode: int | None = None) -> None:
        if self.ptr == 0:
            raise CUDARuntimeError("cudaErrorStreamCaptureImplicit: the default stream can't be captured")
        self.captured = []

    def end_capture(self) -> Graph:
        nodes, self.captured = self.captured, None
        if nodes is None:
            raise CUDARuntimeError("cudaErrorIllegalState: the stream is not captured")
        return Graph(nodes)

    def is_capturing(self) -> bool:
        return self.captured is not None

    def synchronize(self) -> None:
        machine.wait(self.record())

    def wait_event(self, event: Event) -> None:
        if machine.order is not None:
            self.enqueue(event.copy())  # it may be recorded again before its turn comes

    def record(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def enqueue(self, work: Callable[[], Any] | Event) -> None:
        """Do work, or wait for an event, after all that was enqueued before."""
        self.queue.append((machine.enqueued, work))
        self.enqueued += 1
        machine.enqueued += 1
        if self not in machine.busy:
            machine.busy.append(self)

    def waits_for(self) -> Event | None:
        """The event without which it does not go on."""
        _, work = self.queue[0]
        return work if isinstance(work, Event) and not work.passed else None

    def step(self) -> None:
        """Do the next piece of work."""
        _, work = self.queue.popleft()
        self.finished += 1
        if not self.queue:
            machine.busy.remove(self)
        if not isinstance(work, Event):
            work()


class Event:
    """A point in a stream: after so many pieces of its work."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.stream, self._position = machine.default, 0
        self.is_timed, self._was_asked = not disable_timing, False

    @property
    def passed(self) -> bool:
        return self.stream.finished >= self._position

    @property
    def done(self) -> bool:
        """Whether it has passed; who asks again has let time go by, and so it has."""
        if self._was_asked and not self.passed:
            machine.wait(self)
        self._was_asked = True
        return self.passed

    def record(self, stream: Stream | None = None) -> None:
        self.stream = stream or machine.stream or machine.default
        self._position = self.stream.enqueued
        self._was_asked = False

    def copy(self) -> Event:
        """The event as it was last recorded."""
        event = Event()
        event.stream, event._position = self.stream, self._position
        return event

    def synchronize(self) -> None:
        machine.wait(self)


machine.default = Stream(null=True)


class OutOfMemoryError(MemoryError):
    """What CuPy's memory pool says."""

    def __init__(self, size: int, total: int) -> None:
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


class CUDARuntimeError(RuntimeError):
    """What the CUDA runtime complains about."""


class CompileException(Exception):  # noqa: N818 - CuPy's name
    """What the kernel compiler complains about."""
