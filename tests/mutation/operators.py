"""The mutation operators: functions of a node that yield edits of it, most of them none. ``mutate.py`` lists them."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from typing import Any

from syntax import Source, called, is_index, is_words, whole_number

Edit = tuple[ast.AST, str]
"""A node, and the text to put in its place."""

PRODUCTS = (ast.Mult, ast.Div, ast.FloorDiv, ast.MatMult)
SIGNS = {ast.Mult: "*", ast.Div: "/", ast.Add: "+", ast.Sub: "-"}
COMPARISONS = {
    ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"),
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="),
}  # fmt: skip
COMPARING_CALLS = {
    "greater": "greater_equal", "less": "less_equal", "equal": "not_equal",
    "maximum": "minimum", "minimum": "maximum", "max": "min", "min": "max",
}  # fmt: skip
NEUTRAL = {"multiply": "1", "divide": "1", "add": "0", "subtract": "0"}


def flip_transpose(node: Any, source: Source) -> Iterator[Edit]:
    """`X.mT` -> `X`; a factor of a matrix product -> its transpose."""
    if isinstance(node, ast.Attribute) and node.attr == "mT":
        yield node, source.text(node.value)
    factors = node.args[:2] if called(node) == "matmul" else []
    factors = [node.left, node.right] if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult) else factors
    for factor in factors:
        if not (isinstance(factor, ast.Attribute) and factor.attr == "mT"):
            yield factor, f"{source.operand(factor)}.mT"


def drop_factor(node: Any, source: Source) -> Iterator[Edit]:
    """`a * b`, `a + b`, `a & b` -> `a` and -> `b`; `a / b`, `a ** b` -> `a`; ufuncs with their neutral number."""
    if isinstance(node, ast.BinOp) and not is_words(node):
        if isinstance(node.op, (*PRODUCTS, ast.Pow, ast.Add, ast.Sub, ast.BitAnd)):
            yield node, source.operand(node.left)
        if isinstance(node.op, ast.Mult | ast.MatMult | ast.Add | ast.Sub | ast.BitAnd):
            yield node, source.operand(node.right)
    name = called(node)
    if name in NEUTRAL and len(node.args) == 2:
        yield node.args[1], NEUTRAL[name]
        if name != "divide":
            yield node.args[0], NEUTRAL[name]
    if name in ("multiply", "divide"):
        yield node.func, _renamed(source.text(node.func), "add" if name == "multiply" else "multiply")
    if isinstance(node, ast.AugAssign) and type(node.op) in SIGNS:
        yield node, source.between(node, node.target, node.value, f"{SIGNS[type(node.op)]}=", "=")


def swap_axis(node: Any, source: Source) -> Iterator[Edit]:
    """`axis=-1` <-> `axis=-2`; `shape[-1]` <-> `shape[-2]`; the last two places of an index."""
    other = {-1: "-2", -2: "-1"}
    if isinstance(node, ast.keyword) and node.arg == "axis" and whole_number(node.value) in other:
        yield node.value, other[whole_number(node.value)]
    in_shape = isinstance(node, ast.Subscript) and source.text(node.value).endswith("shape")
    if in_shape and whole_number(node.slice) in other:
        yield node.slice, other[whole_number(node.slice)]
    if is_index(node) or (isinstance(node, ast.Tuple) and isinstance(source.tree, ast.Expression)):
        *front, second, last = [source.text(part) for part in node.elts]
        swapped = "..., None, :" if (second, last) == ("...", "None") else ", ".join([*front, last, second])
        yield node, swapped if isinstance(source.parent[node], ast.Subscript) else f"({swapped})"


def negate(node: Any, source: Source) -> Iterator[Edit]:
    """`a + b` <-> `a - b`; `-a` -> `a`; a factor of a product that is assigned, returned or written to `out`."""
    if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Add | ast.Sub) and not is_words(node):
        left, right = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.target, node.value)
        old, new = ("+", "-") if isinstance(node.op, ast.Add) else ("-", "+")
        yield node, source.between(node, left, right, old, new)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        yield node, source.operand(node.operand)
    name = called(node)
    other = {"add": "subtract", "subtract": "add", "negative": "positive"}.get(name)
    if other:
        yield node.func, _renamed(source.text(node.func), other)
    if name in ("multiply", "divide", "matmul"):
        yield node.args[0], f"-{source.operand(node.args[0])}"
    value = getattr(node, "value", None) if isinstance(node, ast.Return | ast.Assign | ast.AugAssign) else None
    value = node.body if isinstance(node, ast.Expression) else value  # a whole formula
    if isinstance(node, ast.Expression) or (isinstance(value, ast.BinOp) and isinstance(value.op, PRODUCTS)):
        yield value, f"-({source.text(value)})"


def off_by_one(node: Any, source: Source) -> Iterator[Edit]:
    """A whole number, or a bound of a slice or a range -> one more and one less."""
    number = whole_number(node)
    if number is not None:
        if not isinstance(source.parent[node], ast.UnaryOp) or number < 0:  # the 1 of -1 is no number of its own
            yield from ((node, str(number + 1)), (node, str(number - 1)))
        return
    bounds = [node.lower, node.upper, node.step] if isinstance(node, ast.Slice) else []
    bounds = node.args if called(node) in ("range", "slice") else bounds
    for bound in bounds:
        if bound is not None and not isinstance(bound, ast.Constant) and whole_number(bound) is None:
            yield from ((bound, f"{source.operand(bound)} + 1"), (bound, f"{source.operand(bound)} - 1"))


def flip_comparison(node: Any, source: Source) -> Iterator[Edit]:
    """`>` <-> `>=`, `<` <-> `<=`, `==` <-> `!=`, `max` <-> `min`, and the ufuncs of the same meaning."""
    if isinstance(node, ast.Compare):
        parts = [node.left, *node.comparators]
        for k, kind in enumerate(map(type, node.ops)):
            if kind in COMPARISONS:
                yield node, source.between(node, parts[k], parts[k + 1], *COMPARISONS[kind])
    other = COMPARING_CALLS.get(called(node) or "")
    if other:
        yield node.func, _renamed(source.text(node.func), other)


OPERATORS: tuple[Callable[[Any, Source], Iterator[Edit]], ...] = (
    flip_transpose,
    drop_factor,
    swap_axis,
    negate,
    off_by_one,
    flip_comparison,
)


def _renamed(function: str, name: str) -> str:
    return re.sub(r"\w+$", name, function)
