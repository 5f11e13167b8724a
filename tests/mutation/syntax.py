"""A text with its syntax tree: where each node lies, how it reads, and what it is."""

from __future__ import annotations

import ast
import re


class Source:
    """A text, its tree, and what is above each node.

    Args:
        text: Python.
        mode: ``"exec"`` for a file, ``"eval"`` for an expression.
    """

    def __init__(self, text: str, mode: str = "exec") -> None:
        self.raw = text.encode()
        self.tree = ast.parse(text, mode=mode)
        self._starts = [0, *(match.end() for match in re.finditer(rb"\n", self.raw))]
        self.parent = {child: node for node in ast.walk(self.tree) for child in ast.iter_child_nodes(node)}

    def span(self, node: ast.AST) -> tuple[int, int]:
        """First and last byte."""
        return self._starts[node.lineno - 1] + node.col_offset, self._starts[node.end_lineno - 1] + node.end_col_offset

    def lines(self, node: ast.AST) -> tuple[int, int]:
        """First and last byte of the lines that a node stands on."""
        ends = [*self._starts[1:], len(self.raw) + 1]
        return self._starts[node.lineno - 1], ends[node.end_lineno - 1] - 1

    def stretch(self, start: int, end: int) -> str:
        """The text between two bytes."""
        return self.raw[start:end].decode()

    def text(self, node: ast.AST) -> str:
        """How the node reads."""
        return self.stretch(*self.span(node))

    def operand(self, node: ast.AST) -> str:
        """The same, in parentheses where a neighbouring operator could tear it apart."""
        loose = isinstance(node, ast.BinOp | ast.UnaryOp | ast.Compare | ast.IfExp | ast.BoolOp | ast.Lambda)
        return f"({self.text(node)})" if loose else self.text(node)

    def between(self, node: ast.AST, left: ast.AST, right: ast.AST, old: str, new: str) -> str:
        """The text of a node with the operator between two of its parts replaced."""
        (start, end), (_, begin), (stop, _) = self.span(node), self.span(left), self.span(right)
        return self.stretch(start, begin) + self.stretch(begin, stop).replace(old, new, 1) + self.stretch(stop, end)

    def edited(self, node: ast.AST, new: str, within: tuple[int, int] | None = None) -> str:
        """The whole text, or a stretch of it, with a node's text replaced."""
        (start, end), (first, last) = self.span(node), within or (0, len(self.raw))
        return self.stretch(first, start) + new + self.stretch(end, last)


def called(node: ast.AST) -> str | None:
    """The last name of what a call calls."""
    if not isinstance(node, ast.Call):
        return None
    return getattr(node.func, "attr", None) or getattr(node.func, "id", None)


def whole_number(node: ast.AST) -> int | None:
    """The value of a whole number, with its sign."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        number = whole_number(node.operand)
        return None if number is None else -number
    return node.value if isinstance(node, ast.Constant) and type(node.value) is int else None


def is_index(node: ast.AST) -> bool:
    """Whether this is a tuple with a slice or an ellipsis in it."""
    parts = node.elts if isinstance(node, ast.Tuple) else []
    return any(isinstance(part, ast.Slice) or getattr(part, "value", 0) is Ellipsis for part in parts)


def is_words(node: ast.AST) -> bool:
    """Whether text is put together here."""
    return any(isinstance(part, ast.JoinedStr) or isinstance(getattr(part, "value", 0), str) for part in ast.walk(node))
