"""The fake machine: its devices, the current one, streams and graphs, memory, and a log of kernel launches.

As a rule everything happens at once. A deferred machine keeps what is enqueued in the queue of its stream until the
host waits for it, and then takes the streams in an order that is as bad as events and waits allow. Every call that CuPy
would make of the driver comes by `Machine.call`, where one of them may fail.
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
    calls: list[str] = field(default_factory=list)
    """Every call of the driver so far, by its kind."""
    fault: Callable[[int, str], None] | None = None
    """Told the number and the kind of each call; may raise, or set `lost` or `running_into`."""
    lost: int = 0
    """The status of every call from now on, once it is not 0."""
    running_into: int = 0
    """The status that the host will find when it next waits: a kernel has failed, and nobody knows yet."""

    def call(self, kind: str) -> None:
        """Whatever goes to the driver begins here.

        Raises:
            CUDARuntimeError: It fails; where a kernel is launched, a CUDADriverError.
        """
        self.calls.append(kind)
        if self.fault is not None and not self.lost:
            self.fault(len(self.calls), kind)
        if self.lost:
            raise (CUDADriverError if kind == "launch" else CUDARuntimeError)(self.lost)

    def status(self) -> int:
        """What a query finds, which does not raise it."""
        try:
            self.call("query")
        except CUDARuntimeError as error:
            return error.status
        return self.lost or self.running_into

    def allocate(self, nbytes: int) -> None:
        """What happens before new memory is there."""
        if self.allocator is not None:
            self.allocator(nbytes)
        self.call("allocate")
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
            raise CUDARuntimeError(900)
        self.lost = self.lost or self.running_into
        self.call("wait")
        self.waits += 1
        for event in events or (current.now(),):
            self.finish(event)

    def wait_for_all(self) -> None:
        """The host waits for all that was enqueued."""
        self.wait(*(stream.now() for stream in self.busy))

    def finish(self, event: Event) -> None:
        """Do what an event still waits for."""
        while not event.passed:
            self._next(event.stream).step()

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
        machine.call("graph")
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
    return sum(_rounded(owner.nbytes) for owner in _owners())


def _owners() -> list[np.ndarray]:
    """What owns device memory, looked up at once: other threads allocate meanwhile."""
    return [owner for reference in _memory.valuerefs() if (owner := reference()) is not None]


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
    for owner in _owners():
        begin = owner.__array_interface__["data"][0]
        if begin <= address and address + extent <= begin + owner.nbytes:
            flat = owner.T if owner.flags.f_contiguous else owner
            return np.ndarray(shape, dtype, flat.reshape(-1).view(np.uint8), address - begin, strides)
    raise CUDARuntimeError(700)


def get_device() -> int:
    machine.call("getDevice")
    return machine.current_device


def event_query(event: int) -> int:
    return Event.known[event].query()


class Device:
    """Makes a device the current one, as a context manager or for good with `use`."""

    def __init__(self, device: int | None = None) -> None:
        self.id = get_device() if device is None else int(device)
        self._before: list[int] = []

    def use(self) -> None:
        if self.id >= machine.device_count:
            raise CUDARuntimeError(101)
        machine.call("setDevice")
        machine.current_device = self.id

    def __enter__(self) -> Device:
        self._before.append(get_device())
        if self.id != self._before[-1]:
            self.use()
        return self

    def __exit__(self, *_: object) -> None:
        machine.current_device = self._before.pop()
        machine.call("setDevice")

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
        if not null:
            machine.call("stream")
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
        get_device()  # it must be the stream's
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
            raise RuntimeError("cannot capture on the default (legacy) stream")
        machine.call("beginCapture")
        self.captured = []

    def end_capture(self) -> Graph:
        nodes, self.captured = self.captured, None  # whatever comes of it
        machine.call("endCapture")
        if nodes is None:
            raise CUDARuntimeError(401)
        machine.call("instantiate")
        return Graph(nodes)

    def is_capturing(self) -> bool:
        machine.call("isCapturing")
        return self.captured is not None

    def synchronize(self) -> None:
        machine.wait(self.now())

    def wait_event(self, event: Event) -> None:
        machine.call("waitEvent")
        if machine.order is not None:
            self.enqueue(event.copy())  # it may be recorded again before its turn comes

    def record(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record(self)
        return event

    def now(self) -> Event:
        """The end of what was enqueued so far; no call of the driver."""
        return Event.at(self, self.enqueued)

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

    _count = 0
    known: ClassVar[weakref.WeakValueDictionary[int, Event]] = weakref.WeakValueDictionary()

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        machine.call("event")
        self._is_timed = not disable_timing
        self._be_at(machine.default, 0)

    @classmethod
    def at(cls, stream: Stream, position: int) -> Event:
        """The event after so many pieces of a stream's work; no call of the driver."""
        self = cls.__new__(cls)
        self._be_at(stream, position)
        return self

    def _be_at(self, stream: Stream, position: int) -> None:
        self.stream, self._position, self._was_asked = stream, position, False
        Event._count += 1
        self.ptr = Event._count
        Event.known[self.ptr] = self

    @property
    def passed(self) -> bool:
        return self.stream.finished >= self._position

    @property
    def done(self) -> bool:
        return event_query(self.ptr) == 0  # as CuPy has it: what it is else is lost

    def query(self) -> int:
        """The status as it is: 0 where it has passed, and who asks again has let time go by; 600 where not."""
        status = machine.status()
        if not status and self._was_asked:
            machine.finish(self)
        self._was_asked = True
        return status or (0 if self.passed else 600)

    def record(self, stream: Stream | None = None) -> None:
        machine.call("record")
        self.stream = stream or machine.stream or machine.default
        self._position = self.stream.enqueued
        self._was_asked = False

    def copy(self) -> Event:
        """The event as it was last recorded."""
        return Event.at(self.stream, self._position)

    def synchronize(self) -> None:
        machine.wait(self)


machine.default = Stream(null=True)


class OutOfMemoryError(MemoryError):
    """What CuPy's memory pool says."""

    def __init__(self, size: int, total: int) -> None:
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


STATUSES = {
    1: ("cudaErrorInvalidValue", "CUDA_ERROR_INVALID_VALUE", "invalid argument"),
    2: ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"),
    35: ("cudaErrorInsufficientDriver", "", "CUDA driver version is insufficient for CUDA runtime version"),
    101: ("cudaErrorInvalidDevice", "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"),
    401: (
        "cudaErrorIllegalState",
        "CUDA_ERROR_ILLEGAL_STATE",
        "the operation cannot be performed in the present state",
    ),
    700: (
        "cudaErrorIllegalAddress",
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "an illegal memory access was encountered",
    ),
    716: ("cudaErrorMisalignedAddress", "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"),
    719: ("cudaErrorLaunchFailure", "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"),
    900: (
        "cudaErrorStreamCaptureUnsupported",
        "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        "operation not permitted when stream is capturing",
    ),
}
"""What the runtime, and what the driver, calls a status, and what both say of it."""


class CUDARuntimeError(RuntimeError):
    """What the CUDA runtime complains about."""

    def __init__(self, status: int) -> None:
        runtime, _, words = STATUSES[status]
        super().__init__(f"{runtime}: {words}")
        self.status = status


class CUDADriverError(RuntimeError):
    """What the driver complains about, where CuPy goes to it directly: in launches of kernels."""

    def __init__(self, status: int) -> None:
        _, driver, words = STATUSES[status]
        super().__init__(f"{driver}: {words}")
        self.status = status


class CompileException(Exception):  # noqa: N818 - CuPy's name
    """What the kernel compiler complains about."""
