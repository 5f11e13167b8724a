"""Checks of settings: each gives the value as plain Python has it, or raises a SettingError with its name and value.

The owner of a setting, which the message begins with, is an object of the class that takes it, or a name, or None.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gpubp.errors import SettingError


def require_count(owner: object, name: str, value: Any, *, least: int = 1) -> int:
    """The value as an int.

    Raises:
        SettingError: It is no whole number of at least so much.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise SettingError(f"{of(owner)}{name}={value!r}: a whole number of at least {least} is needed")
    return int(value)


def require_positive(owner: object, name: str, value: Any) -> float:
    """The value as a float.

    Raises:
        SettingError: It is no positive finite number.
    """
    if not 0 < (number := _real(value)) < math.inf:
        raise SettingError(f"{of(owner)}{name}={value!r} is not a positive finite number")
    return number


def require_in(owner: object, name: str, value: Any, interval: str) -> float:
    """The value as a float.

    Args:
        owner: See the module docstring.
        name: What the setting is called.
        value: What was given.
        interval: Such as ``"[0, 1)"``: from 0 up to 1, but not 1 itself.

    Raises:
        SettingError: It is no number within the interval.
    """
    low, high = map(float, interval[1:-1].split(","))
    number = _real(value)
    above = low <= number if interval[0] == "[" else low < number
    below = number <= high if interval[-1] == "]" else number < high
    if not (above and below):
        how = "outside" if is_number(value) else "no number in"
        raise SettingError(f"{of(owner)}{name}={value!r} is {how} {interval}")
    return number


def require_several(owner: object, name: str, values: Any, *, least: int = 1) -> tuple[Any, ...]:
    """What stands in a list, in a tuple or on the first axis of an array, not looked at.

    Raises:
        SettingError: It is none of these, or holds fewer than so many.
    """
    is_array = isinstance(values, np.ndarray) and values.ndim > 0
    is_list = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    if not (is_array or is_list) or len(values) < least:
        raise SettingError(f"{of(owner)}{name}={values!r}: a list of at least {least} is needed")
    return tuple(values)


def is_number(value: Any) -> bool:
    """Whether a value is a real number of Python or NumPy, of any size."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def of(owner: object) -> str:
    """How a message about a setting begins."""
    return "" if owner is None else f"{owner if isinstance(owner, str) else type(owner).__name__}: "


def _real(value: Any) -> float:
    """A number as a float; NaN, which is in no interval, for all else."""
    try:
        return float(value) if is_number(value) else math.nan
    except OverflowError:  # a whole number beyond all floats
        return math.nan
