"""The mutants of a Python file: one small wrong edit each, made on its text where its syntax tree says.

The formulas and index forms of a `Rule` are mutated like code. Left alone: annotations, docstrings, messages of errors,
`__repr__`, and the examples that layers and losses give to the tests.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from operators import OPERATORS, Edit
from syntax import Source, called, is_index

SKIPPED_FUNCTIONS = {"__repr__", "examples", "example_targets"}
SKIPPED_NODES = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)
PARTS = (ast.Slice, ast.keyword, ast.Expression)
CLOSE = (*PARTS, ast.Call, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Subscript, ast.Attribute, ast.Tuple)
TYPES = {"dict", "list", "tuple", "type", "Callable", "ClassVar", "Iterator", "Mapping", "Sequence"}


@dataclass(frozen=True)
class Mutant:
    """One wrong edit.

    Attributes:
        file: The mutated file.
        scope: The class and function that it is in.
        line: The line it begins on.
        operator: What was done.
        before: The expression around the edit, as it is.
        after: The same, mutated.
        ordinal: Counts, from 0, the mutants of one scope that read the same.
        text: The whole mutated file.
    """

    file: str
    scope: str
    line: int
    operator: str
    before: str
    after: str
    ordinal: int
    text: str

    @property
    def name(self) -> str:
        """Readable; it changes when the lines above do."""
        return f"{self.file}:{self.line} {self.operator}: {self.before} -> {self.after}"

    @property
    def key(self) -> tuple[str, str, str, str, int]:
        """The same wherever in the file the mutated function stands."""
        return self.file, self.scope, self.before, self.after, self.ordinal


def mutants_of(file: str, text: str, functions: Collection[str] = ()) -> list[Mutant]:
    """All mutants of a file, in the order of its lines.

    Args:
        file: What to call it.
        text: Its content.
        functions: The only functions to mutate; empty for everything.
    """
    source, found, seen, count = Source(text), [], {text}, Counter()
    for node, scope in _nodes(source.tree, ()):
        if functions and not set(functions) & set(scope):
            continue
        edits = _rule_edits(node) if called(node) == "Rule" else _edits(node, source)
        for operator, (target, new) in edits:
            mutated = source.edited(target, new)
            if mutated in seen:
                continue
            seen.add(mutated)
            ast.parse(mutated)  # a mutant is wrong, not unreadable
            around = _context(target, source)
            before = " ".join(source.stretch(*around).split())
            after = " ".join(source.edited(target, new, around).split())
            mutant = Mutant(file, ".".join(scope), target.lineno, operator, before, after, 0, mutated)
            found.append(replace(mutant, ordinal=count[mutant.key]))
            count[mutant.key] += 1
    return sorted(found, key=lambda mutant: mutant.line)


def _edits(node: ast.AST, source: Source) -> Iterator[tuple[str, Edit]]:
    for operator in OPERATORS:
        for edit in operator(node, source):
            yield operator.__name__.replace("_", "-"), edit


def _rule_edits(node: ast.Call) -> Iterator[tuple[str, Edit]]:
    """Edits of the formula and the index form of ``Rule(gradient, formula, index_form, why)``."""
    _, formula, index_form, _ = node.args
    result, expression = index_form.value.split(" = ")
    for argument, head, code in ((formula, "", formula.value), (index_form, f"{result} = ", as_calls(expression))):
        source = Source(code, "eval")
        for inner in ast.walk(source.tree):
            for operator, (target, new) in _edits(inner, source):
                mutated = source.edited(target, new)
                yield operator, (argument, f'"{head}{re.sub(r", (?=[a-z][],])", ",", mutated)}"')


def as_calls(expression: str) -> str:
    """`sum_n X[n] * Y[n]` -> `sum_n(X[n] * Y[n])`: the same to who evaluates it, and Python's syntax."""
    while match := re.search(r"\b(?:sum|mean)_[a-z] ", expression):
        depth, end = 0, match.end()
        while end < len(expression) and (depth or expression[end] != ")"):
            depth += {"(": 1, ")": -1}.get(expression[end], 0)
            end += 1
        start = match.end()
        expression = f"{expression[: start - 1]}({expression[start:end]}){expression[end:]}"
    return expression


def _nodes(node: ast.AST, scope: tuple[str, ...]) -> Iterator[tuple[ast.AST, tuple[str, ...]]]:
    """Every node that may be mutated, with the names of the classes and functions around it."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            named = isinstance(child, ast.FunctionDef | ast.ClassDef)
            if not isinstance(child, ast.AST) or isinstance(child, SKIPPED_NODES) or _is_type(child):
                continue
            if (named and child.name in SKIPPED_FUNCTIONS) or is_compiled(child):
                continue
            inner = (*scope, child.name) if named else scope
            yield child, inner
            yield from _nodes(child, inner)


def is_compiled(node: ast.AST) -> bool:
    """Whether this calls a compiled kernel, `kernels.gemm.matmul(A, B, out)`: mutants run with those turned off."""
    function = node.func if isinstance(node, ast.Call) else None
    while isinstance(function, ast.Attribute):
        function = function.value
    return isinstance(function, ast.Name) and function.id in ("kernels", "compiled")


def _context(node: ast.AST, source: Source) -> tuple[int, int]:
    """First and last byte of what shows an edit of a node: what it is an operand of, or a line if that has no names."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):  # of a rule
        return source.span(node)
    around = source.parent[node] if isinstance(source.parent[node], CLOSE) or not _has_names(node) else node
    while not _has_names(around) or not hasattr(around, "lineno") or isinstance(around, PARTS) or is_index(around):
        around = source.parent[around]
        if isinstance(around, ast.stmt | ast.arguments):
            return source.span(node) if _has_names(node) else source.lines(node)
    return source.span(around)


def _has_names(node: ast.AST) -> bool:
    return any(isinstance(part, ast.Name) for part in ast.walk(node))


def _is_type(node: ast.AST) -> bool:
    return isinstance(node, ast.Subscript) and getattr(node.value, "id", None) in TYPES
