"""Device arrays that are NumPy arrays behind a wall."""

from __future__ import annotations

import operator
import types
from collections.abc import Iterator
from typing import Any

import numpy as np

from fake_cupy.driver import Device, machine
from fake_cupy.names import METHODS, VIEWS

NUMBERS = (bool, int, float, complex, np.number, np.bool_)


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


def call(function: Any, name: str, allowed: tuple[str, ...], arguments: Any, keywords: Any) -> Any:
    """What a NumPy function makes of device arrays, as a device array; an argument that it returns stays itself."""
    if unknown := set(keywords) - set(allowed):
        raise TypeError(f"{name}() of CuPy has no keyword argument {', '.join(sorted(unknown))}")
    out = keywords.get("out")
    if out is not None and not isinstance(out, ndarray):
        raise TypeError(f"{name}(out=) takes a device array, not {type(out).__name__}")
    compute = name not in VIEWS
    unwrapped = {key: unwrap(value, compute) for key, value in keywords.items()}
    result = function(*unwrap(tuple(arguments), compute), **unwrapped)
    arrays = [argument for argument in (*arguments, out) if isinstance(argument, ndarray)]
    for array in arrays:
        if array._array is result:
            return array
    return wrap(result, arrays[0]._device if arrays else None)


class ndarray:  # noqa: N801 - CuPy's name
    """A NumPy array that says it lives on a device."""

    __array_ufunc__ = None  # NumPy's functions refuse it, NumPy's operators leave it to ours
    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def _of(cls, array: np.ndarray, device: int) -> ndarray:
        self = cls.__new__(cls)
        self._array, self._device = array, device
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
        return None if self._array.base is None else wrap(self._array.base, self._device)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self._array.__array_interface__, "version": 3, "stream": 1}

    def get(self, *, out: np.ndarray | None = None) -> np.ndarray:
        if out is None:
            return self._array.copy()
        out[...] = self._array
        return out

    def set(self, array: np.ndarray) -> None:
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError("set() takes a NumPy array of the same shape and dtype")
        self._array[...] = array

    def item(self) -> Any:
        return self._array.item()

    def tolist(self) -> Any:
        return self._array.tolist()

    def __getitem__(self, index: Any) -> Any:
        index = index if isinstance(index, tuple) else (index,)
        if not any(part is Ellipsis for part in index):
            index = (*index, ...)  # so that a single element is a view without axes, as in CuPy
        return wrap(self._array[unwrap(index, compute=False)], self._device)

    def __setitem__(self, index: Any, value: Any) -> None:
        if not isinstance(value, (ndarray, *NUMBERS)):
            raise TypeError(f"a device array takes device arrays and numbers, not {type(value).__name__}")
        unwrap(self)[unwrap(index)] = unwrap(value)

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[position] for position in range(len(self)))

    def __repr__(self) -> str:
        return f"fake_cupy({self._array!r})"

    def __format__(self, form: str) -> str:
        return format(self._array.item() if self.ndim == 0 else self._array, form)

    def __deepcopy__(self, _: Any) -> ndarray:
        return ndarray._of(self._array.copy(), self._device)

    def __bool__(self) -> bool:
        return bool(self._array)

    def __float__(self) -> float:
        return float(self._array)

    def __int__(self) -> int:
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


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor")
_REFLECTED = {f"r{name}" for name in _BINARY}
_INPLACE = [f"i{name}" for name in _BINARY if name != "matmul"]
_OTHERS = ("lt", "le", "gt", "ge", "eq", "ne", "neg", "pos", "abs", "invert")
for _name in (*_BINARY, *_REFLECTED, *_INPLACE, *_OTHERS):
    setattr(ndarray, f"__{_name}__", _operator(_name))
