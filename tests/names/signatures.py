"""How functions are called, of Cython too, and whether one may be called as another is."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from inspect import Parameter, Signature
from typing import Any

BY_PLACE = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
ANY_NUMBER = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def signature(function: Callable[..., Any]) -> Signature:
    """The signature without ``self``: Python's, or what the first line of a Cython function's documentation says.

    That line has C types: ``Pool.malloc(self, size_t size) -> MemoryPointer``.
    """
    try:
        found = inspect.signature(function)
    except (TypeError, ValueError):
        line = (function.__doc__ or "").strip().splitlines()[0].replace("\\", "")
        matched = re.match(r"[\w.]+\((.*)\)", line)
        assert matched, f"{function} does not say how it is called: {line!r}"
        without_types = re.sub(r"(?:[A-Za-z_]\w* )+(?=\w+(?:=|,|$))", "", matched[1])
        found = inspect.signature(eval(f"lambda {without_types}: None"))
    return found.replace(parameters=[parameter for name, parameter in found.parameters.items() if name != "self"])


def misfits(ours: Signature, theirs: Signature) -> Iterator[str]:
    """In what way a call that `ours` takes would be wrong for `theirs`, or mean something else."""
    named = theirs.parameters
    by_place = [parameter for parameter in named.values() if parameter.kind in BY_PLACE]
    takes_more = any(parameter.kind in ANY_NUMBER for parameter in named.values())
    for place, parameter in enumerate(ours.parameters.values()):
        name, default = parameter.name, parameter.default
        if parameter.kind in BY_PLACE and not takes_more:
            there = by_place[place] if place < len(by_place) else None
        else:
            there = named.get(name)
        if parameter.kind in ANY_NUMBER or (there is None and takes_more):
            continue
        any_name = parameter.kind is Parameter.POSITIONAL_ONLY and default is Parameter.empty and name not in named
        if there is None or not (there.name == name or any_name):
            yield f"{name} is not argument {place + 1} of {theirs}"
        elif default is not Parameter.empty and there.default is Parameter.empty:
            yield f"{name} must be given"
        elif isinstance(default, bool | int | float | str) and there.default not in (default, None):
            yield f"{name} is {there.default!r}, not {default!r}, where it is not given"
    for parameter in by_place[len(ours.parameters) :]:
        if parameter.default is Parameter.empty:
            yield f"{parameter.name} must be given"
