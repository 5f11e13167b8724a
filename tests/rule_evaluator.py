"""Executes a `Rule`: its formula as array maths, its index form as nested loops over single numbers."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from gpubp.rules import Rule

FUNCTIONS = {
    "abs": np.abs, "clip": np.clip, "erf": np.vectorize(math.erf, [float]),
    "exp": np.exp, "log": np.log, "sign": np.sign, "sqrt": np.sqrt, "tanh": np.tanh,
    "pi": math.pi,
}  # fmt: skip
"""What a formula may call."""


def evaluate_formula(rule: Rule, names: Mapping[str, Any]) -> np.ndarray:
    """The formula's value."""
    builtins = {"__import__": __import__}  # the mean of a NumPy array is found by an import
    return np.asarray(eval(rule.formula, {"__builtins__": builtins, **FUNCTIONS}, dict(names)))


def evaluate_index_form(rule: Rule, names: Mapping[str, Any]) -> np.ndarray:
    """The index form's value, computed number by number: `dL_dW[i,o] = sum_n X[n,i] * dL_dY[n,o]`."""
    left, right = (side.strip() for side in rule.index_form.split("=", 1))
    target, indices = re.fullmatch(r"(\w+)\[(.+)\]", left).groups()
    assert target == rule.gradient
    extents = _extents(right, names)
    free = indices.split(",")
    result = np.empty([extents[index] for index in free])
    code = compile(_sums_as_calls(right), rule.index_form, "eval")

    def total(index: str, term: Any, bound: dict[str, int]) -> float:
        return sum(term({**bound, index: value}) for value in range(extents[index]))

    def mean(index: str, term: Any, bound: dict[str, int]) -> float:
        return total(index, term, bound) / extents[index]

    for values in itertools.product(*(range(extents[index]) for index in free)):
        bound = dict(zip(free, values, strict=True))
        scope = {"__builtins__": {}, **FUNCTIONS, "total": total, "mean": mean, **names}
        result[values] = eval(code, scope, {"at": bound})
    return result


def _sums_as_calls(text: str) -> str:
    """`sum_n X[n,i] * B[n,o]` -> `total('n', lambda at: X[at['n'],at['i']] * B[at['n'],at['o']], at)`."""
    text = re.sub(
        r"\[([a-z](?:,[a-z])*)\]", lambda m: "[" + ",".join(f"at['{i}']" for i in m[1].split(",")) + "]", text
    )
    while match := re.search(r"\b(sum|mean)_([a-z])\b", text):
        start, depth, end = match.end(), 0, match.end()
        while end < len(text) and (depth or text[end] != ")"):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        call = "total" if match[1] == "sum" else "mean"
        text = f"{text[: match.start()]}{call}('{match[2]}', lambda at: {text[start:end].strip()}, at){text[end:]}"
    return text


def _extents(text: str, names: Mapping[str, Any]) -> dict[str, int]:
    """How far each index letter runs, read off the arrays it stands in; two arrays that disagree fail."""
    extents: dict[str, int] = {}
    for name, indices in re.findall(r"(\w+)\[([a-z](?:,[a-z])*)\]", text):
        for index, extent in zip(indices.split(","), np.shape(names[name]), strict=True):
            assert extents.setdefault(index, extent) == extent, f"index {index} runs over {extents[index]} and {extent}"
    return extents
