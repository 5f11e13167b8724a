"""Device arrays that are NumPy arrays behind a wall."""

from __future__ import annotations

import functools
import inspect
import operator
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from fake_cupy.driver import Device, each, machine, owner_of, register
from fake_cupy.names import BY_VALUE, METHODS, OF_ADDRESSES, VIEWS

NUMBERS = (bool, int, float, complex, np.number, np.bool_)
BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
INPLACE = {f"i{name}" for name in BINARY if name != "matmul"}


def unwrap(value: Any, compute: bool = True) -> Any:
    """The NumPy array behind a device array; a NumPy array is refused."""
    if isinstance(value, ndarray):
        if compute and value._device != machine.current_device:
            raise ValueError(f"array of device {value._device} used while device {machine.current_device} is current")
        return value._array
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, tuple | list):
        return type(value)(unwrap(item, compute) for item in value)
    return value


def wrap(value: Any, device: int | None = None) -> Any:
    """Device arrays for what NumPy returned; a scalar becomes an array without axes, as in CuPy."""
    if isinstance(value, np.ndarray | np.number | np.bool_):
        return ndarray._of(np.asarray(value), machine.current_device if device is None else device)
    if isinstance(value, tuple | list):
        return type(value)(wrap(item, device) for item in value)
    return value


@functools.cache
def signature(function: Any, allowed: tuple[str, ...]) -> inspect.Signature:
    """How a NumPy function may be called: with what it can't do without, by place, and with what is allowed besides.

    That goes by place too, up to the first parameter that is left out.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # NumPy tells of fewer functions before 2.4
        parameters = [inspect.Parameter("arguments", inspect.Parameter.VAR_POSITIONAL)]
    kept, gap = [], False
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.name in allowed:
            kept.append(parameter.replace(kind=parameter.KEYWORD_ONLY) if gap else parameter)
        elif parameter.kind is parameter.VAR_POSITIONAL:
            kept.append(parameter)
        elif parameter.default is parameter.empty:  # CuPy may have another name for it
            kept.append(parameter.replace(kind=parameter.POSITIONAL_ONLY))
        else:
            gap = True
    rest = [name for name in allowed if name not in {parameter.name for parameter in kept}]
    more = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in rest]
    return inspect.Signature(kept + more)


def call(function: Any, name: str, allowed: tuple[str, ...], arguments: Any, keywords: Any) -> Any:
    """What a NumPy function makes of device arrays, as a device array; an argument that it returns stays itself."""
    try:
        bound = signature(function, allowed).bind_partial(*arguments, **keywords)
    except TypeError as error:
        raise TypeError(f"{name}() of CuPy: {error}") from None
    out = bound.arguments.get("out")
    if out is not None and not isinstance(out, ndarray):
        raise TypeError(f"{name}(out=) takes a device array, not {type(out).__name__}")
    compute = name not in VIEWS
    positional = unwrap(tuple(arguments), compute)
    named = {key: unwrap(value, compute) for key, value in keywords.items()}
    captured = machine.stream is not None and machine.stream.captured is not None
    if captured and name in ("matmul", "dot", "outer", "einsum"):
        raise NotImplementedError("calling cuBLAS API during stream capture is currently unsupported")
    values, count, names = (*positional, *named.values()), len(positional), tuple(named)

    def work(*values: Any) -> Any:
        return function(*values[:count], **dict(zip(names, values[count:], strict=True)))

    if out is not None or name in INPLACE or name in ("fill", "copyto"):
        machine.call("enqueue")
        machine.submit(work, *values)  # no new memory: it can be a node of a graph
        return out if out is not None else arguments[0] if name in INPLACE else None
    if name not in {*VIEWS, *OF_ADDRESSES, "empty", "empty_like"}:
        machine.call("enqueue")
    if machine.order is None or name in OF_ADDRESSES:
        result = work(*values)
    elif name in ("empty", "empty_like"):
        result = machine.new(work(*values))
    elif name in BY_VALUE or (name == "getitem" and _has_mask(values[1])):
        machine.wait()
        result = each(work(*values), np.ndarray, lambda made: filled(made, lambda: made))
    else:
        result = _promised(work, values)
    arrays = [argument for argument in (*arguments, out) if isinstance(argument, ndarray)]
    for array in arrays:
        if array._array is result:
            return array
    if isinstance(result, np.ndarray) and name not in VIEWS:
        machine.allocate(result.nbytes)
    return wrap(result, arrays[0]._device if arrays else None)


def filled(like: Any, work: Any, *values: Any) -> np.ndarray:
    """Memory of a deferred machine, which will hold what `work` returns and looks like `like`."""
    memory = machine.new(np.asarray(like))
    machine.submit(lambda memory, *values: memory.__setitem__(..., work(*values)), memory, *values)
    return memory


def _promised(work: Any, values: tuple[Any, ...]) -> Any:
    """What `work` returns of arrays that are still to be computed: a view of one, or memory that will be filled.

    Zeros that lie in memory as the arrays do tell which, and what it looks like.
    """
    owners = []

    def zeros(array: np.ndarray) -> np.ndarray:
        low, high = np.lib.array_utils.byte_bounds(array)
        owners.append(np.zeros(high - low, np.uint8))
        return np.ndarray(array.shape, array.dtype, owners[-1], array.ctypes.data - low, array.strides)

    with np.errstate(all="ignore"):
        like = work(*each(values, np.ndarray, zeros))
    parts = like if isinstance(like, tuple | list) else [like]
    if any(owner_of(part) is owner for part in parts for owner in owners):
        return work(*values)
    if parts is like:
        raise NotImplementedError("several results of deferred work")
    return filled(like, work, *values)


def _has_mask(index: tuple[Any, ...]) -> bool:
    return any(isinstance(part, np.ndarray) and part.dtype == bool for part in index)


class ndarray:  # noqa: N801 - CuPy's name
    """A NumPy array that says it lives on a device."""

    __array_ufunc__ = None  # NumPy's functions refuse it, NumPy's operators leave it to ours
    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def _of(cls, array: np.ndarray, device: int) -> ndarray:
        self = cls.__new__(cls)
        self._array, self._device = array, device
        register(array)
        return self

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_function__(self, function: Any, *_: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} was called on a device array")

    def __getattr__(self, name: str) -> Any:
        if name in METHODS:
            method = getattr(np.ndarray, name)
            return lambda *args, **kwargs: call(method, name, METHODS[name], (self, *args), kwargs)
        if name in {"shape", "dtype", "ndim", "size", "strides", "nbytes", "itemsize", "flags"}:
            return getattr(self._array, name)
        if name in {"T", "mT"}:
            return wrap(getattr(self._array, name), self._device)
        raise AttributeError(f"CuPy's ndarray has no attribute {name!r}, or this fake does not know it")

    @property
    def device(self) -> Device:
        return Device(self._device)

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self._array.ctypes.data)

    @property
    def base(self) -> Any:
        base = self._array.base
        return wrap(base, self._device) if isinstance(base, np.ndarray) else None

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self._array.__array_interface__, "version": 3, "stream": 1}

    def get(self, *, out: np.ndarray | None = None) -> np.ndarray:
        machine.wait()
        if out is None:
            return self._array.copy()
        out[...] = self._array
        return out

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        if arr.shape != self.shape or arr.dtype != self.dtype:
            raise ValueError("set() takes a NumPy array of the same shape and dtype")
        machine.call("copy")
        machine.submit(lambda memory: memory.__setitem__(..., arr), self._array, stream=stream)
        if stream is None:
            machine.wait()

    def item(self) -> Any:
        machine.wait()
        return self._array.item()

    def tolist(self) -> Any:
        machine.wait()
        return self._array.tolist()

    def __getitem__(self, index: Any) -> Any:
        index = index if isinstance(index, tuple) else (index,)
        if not any(part is Ellipsis for part in index):
            index = (*index, ...)  # so that a single element is a view without axes, as in CuPy
        return call(operator.getitem, "getitem", (), (self, index), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        if not isinstance(value, (ndarray, *NUMBERS)):
            raise TypeError(f"a device array takes device arrays and numbers, not {type(value).__name__}")
        machine.call("enqueue")
        machine.submit(operator.setitem, unwrap(self), unwrap(index), unwrap(value))

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[position] for position in range(len(self)))

    def __repr__(self) -> str:
        return f"fake_cupy({self._array!r})"

    def __format__(self, form: str) -> str:
        return format(self.item() if self.ndim == 0 else self.get(), form)

    def __deepcopy__(self, _: Any) -> ndarray:
        with self.device:
            return self.copy()

    def __bool__(self) -> bool:
        machine.wait()
        return bool(self._array)

    def __float__(self) -> float:
        machine.wait()
        return float(self._array)

    def __int__(self) -> int:
        machine.wait()
        return int(self._array)


def _operator(name: str) -> Any:
    function = getattr(operator, f"__{name.removeprefix('r') if name in _REFLECTED else name}__")

    def method(self: ndarray, *others: Any) -> Any:
        for other in others:
            if not isinstance(other, (ndarray, *NUMBERS)):
                raise TypeError(f"unsupported operand type for a device array: {type(other).__name__}")
        operands = (*others, self) if name in _REFLECTED else (self, *others)
        return call(function, name, (), operands, {})

    return method


_REFLECTED = {f"r{name}" for name in BINARY}
_OTHERS = ("lt", "le", "gt", "ge", "eq", "ne", "neg", "pos", "abs", "invert")
for _name in (*BINARY, *_REFLECTED, *INPLACE, *_OTHERS):
    setattr(ndarray, f"__{_name}__", _operator(_name))
