"""The mutation script: its operators make the mutants they say, and a mutant that survives makes it fail."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from mutants import as_calls, mutants_of
from mutate import all_mutants, as_entry

SCRIPT = Path(__file__).with_name("mutate.py")
FEW = ["--files", "initializers.py", "--sample", "3", "--seed", "2", "-j", "2"]


def changes(text, functions=()):
    """Operator, before and after of every mutant, for short."""
    return [(mutant.operator, mutant.before, mutant.after) for mutant in mutants_of("f.py", text, functions)]


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *FEW, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def last_row(result):
    return result.stdout.partition("\n\n")[0].splitlines()[-1].split()


def write_all(listed):
    """Call every mutant of the file equivalent."""
    entries = [f'{as_entry(mutant)}reason = "None."\n' for mutant in all_mutants("initializers.py")]
    listed.write_text("".join(entries))


@pytest.mark.parametrize(
    ("text", "operator", "afters"),
    [
        ("y = X.mT", "flip-transpose", ["X"]),
        ("A @ (B + C)", "flip-transpose", ["A.mT @ (B + C)", "A @ ((B + C).mT)"]),
        ("gemm.matmul(A, B.mT, Y)", "flip-transpose", ["gemm.matmul(A.mT, B.mT, Y)", "gemm.matmul(A, B, Y)"]),
        ("(a + b) * c", "drop-factor", ["(a + b)", "c", "(a) * c", "(b) * c"]),
        ("a / b", "drop-factor", ["a"]),
        ("xp.multiply(a, b, out=c)", "drop-factor",
         ["xp.multiply(a, 1, out=c)", "xp.multiply(1, b, out=c)", "xp.add(a, b, out=c)"]),
        ("a += b", "drop-factor", ["a = b"]),
        ("X.sum(axis=-2)", "swap-axis", ["X.sum(axis=-1)"]),
        ("X.shape[-1]", "swap-axis", ["X.shape[-2]"]),
        ("b[..., None, :]", "swap-axis", ["b[..., :, None]"]),
        ("w[..., None]", "swap-axis", ["w[..., None, :]"]),
        ("index = (..., rows)", "swap-axis", ["(rows, ...)"]),
        ("a - b", "negate", ["a + b"]),
        ("-a", "negate", ["a"]),
        ("c = 2.0 * a", "negate", ["-(2.0 * a)"]),
        ("xp.subtract(a, b, out=c)", "negate", ["xp.add(a, b, out=c)"]),
        ("x[:-1]", "off-by-one", ["x[:0]", "x[:-2]"]),
        ("range(n)", "off-by-one", ["range(n + 1)", "range(n - 1)"]),
        ("x[a + b :]", "off-by-one", ["x[(a + b) + 1 :]", "x[(a + b) - 1 :]"]),
        ("0 < a <= b", "flip-comparison", ["0 <= a <= b", "0 < a < b"]),
        ("min(a, b)", "flip-comparison", ["max(a, b)"]),
        ("xp.greater(a, b)", "flip-comparison", ["xp.greater_equal(a, b)"]),
    ],
)  # fmt: skip
def test_operators_make_the_mutants_they_say(text, operator, afters):
    made = [after for name, _, after in changes(text) if name == operator]
    assert made == afters


def test_rules_are_mutated_in_formula_and_index_form():
    text = 'Rule("dL_dW", "X.mT @ dL_dY", "dL_dW[i,o] = sum_n X[n,i] * dL_dY[n,o]", "because 1 + 1")'
    afters = [after for *_, after in changes(text)]
    assert '"X @ dL_dY"' in afters
    assert '"dL_dW[i,o] = sum_n(X[i,n] * dL_dY[n,o])"' in afters
    assert '"dL_dW[i,o] = sum_n(dL_dY[n,o])"' in afters
    assert not any("because 1 + 2" in after for after in afters)


def test_sums_become_calls_that_reach_as_far():
    assert as_calls("Y[n,j] * (A[n] - sum_k B[n,k] * (C[k] + 1)) + 1") == (
        "Y[n,j] * (A[n] - sum_k(B[n,k] * (C[k] + 1))) + 1"
    )


def test_words_types_and_examples_are_left_alone():
    text = '''
def f(a: dict[str, 1] = None) -> X[1]:
    """Doc 1."""
    raise ValueError(f"{a + 1}")
def __repr__(self): return 1
def examples(cls): return 1
'''
    assert changes(text) == []


def test_calls_of_compiled_kernels_are_left_alone():
    """Mutants run without them."""
    assert changes("kernels.gemm.matmul(A, B + C, out=D)") == changes("compiled.add(A * B)") == []
    assert changes("gemm.matmul(A, B)")


def test_only_the_named_functions_are_mutated():
    assert {before for _, before, _ in changes("def f(): return a + b\ndef g(): return c + d", {"f"})} == {"a + b"}


def test_keys_are_unique_and_do_not_depend_on_lines():
    mutants = all_mutants("ops/*")
    assert len({mutant.key for mutant in mutants}) == len(mutants) > 100
    text = "def f(x):\n    return x[0] + x[0]\n"
    moved = mutants_of("f.py", "# one line more\n\n" + text)
    assert [mutant.key for mutant in mutants_of("f.py", text)] == [mutant.key for mutant in moved]


def test_survivors_fail_unless_they_are_listed(tmp_path):
    blind, listed = tmp_path / "test_blind.py", tmp_path / "equivalent.toml"
    blind.write_text("def test_nothing():\n    pass\n")
    listed.touch()
    result = run("--equivalent", listed, "--suites", blind)
    assert result.returncode == 1
    assert result.stdout.count("SURVIVED initializers.py:") == 3
    assert last_row(result) == ["all", "3", "0", "0", "0", "0", "0", "3", "0.0%"]
    write_all(listed)
    result = run("--equivalent", listed, "--suites", blind)
    assert result.returncode == 0, result.stdout + result.stderr
    assert last_row(result) == ["all", "3", "0", "0", "0", "0", "3", "0", "-"]


def test_killed_mutants_succeed_and_stale_entries_fail(tmp_path):
    listed = tmp_path / "equivalent.toml"
    listed.touch()
    result = run("--equivalent", listed, "--suites", "tests/test_initializers.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert last_row(result) == ["all", "3", "3", "0", "0", "0", "0", "0", "100.0%"]
    write_all(listed)
    with listed.open("a") as file:
        file.write(as_entry(replace(all_mutants("initializers.py")[0], scope="gone")))
    result = run("--equivalent", listed, "--suites", "tests/test_initializers.py")
    assert result.returncode == 1
    assert result.stdout.count("STALE entry of equivalent.toml, it is killed") == 3
    assert result.stdout.count("STALE entry of equivalent.toml, there is no such mutant") == 1
    assert result.stdout.count("STALE entry of equivalent.toml, it gives no reason") == 1


def test_nothing_is_said_where_tests_fail_anyway(tmp_path):
    failing = tmp_path / "test_failing.py"
    failing.write_text("def test_something():\n    assert False\n")
    result = run("--suites", failing)
    assert result.returncode == 2
    assert "test_failing.py" in result.stderr
