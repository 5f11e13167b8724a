"""`every_kernel.py` runs on the stand-in for CuPy, launches every kernel that is compiled, and notices a fault."""

from __future__ import annotations

from types import ModuleType

import every_kernel
import numpy as np
import pytest
from test_cuda import STEMS, kernel_names

from gpubp import cuda


def test_every_kernel_is_launched_and_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert every_kernel.main(["--stand-in", "--quick", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    launched = {line.removeprefix("launched ") for line in lines if line.startswith("launched ")}
    assert launched == {name for stem in STEMS for name in kernel_names(cuda.source(stem))}
    assert lines[-1].endswith(" 0 wrong")


@pytest.mark.usefixtures("fake_cupy")
@pytest.mark.parametrize(
    ("name", "right", "wrong", "said"),
    [
        (
            "combine.cu",
            "sum.at[v] *= factor",
            "sum.at[v] += factor",
            "combine of (33, 7), float32, 1 elements off: off by",
        ),
        ("rows.cu", "- mean_tile[k]", "+ mean_tile[k]", "standardize of (33, 7), float32, 1 elements off: off by"),
    ],
)
def test_a_planted_fault_is_told(monkeypatch: pytest.MonkeyPatch, name: str, right: str, wrong: str, said: str) -> None:
    read, checks = cuda.read, every_kernel.Checks()
    assert right in read(name)
    monkeypatch.setattr(cuda, "read", lambda one: read(one).replace(right, wrong) if one == name else read(one))
    every_kernel.operations(checks, every_kernel.Place("float32", 1), None, (33, 7))
    assert checks.wrong
    assert any(words.startswith(said) for words in checks.wrong), checks.wrong


def test_a_card_without_cublas_is_wrong(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(every_kernel.cublas, "why_no_handle", lambda: "no nvmath")
    monkeypatch.setattr(every_kernel, "operations", lambda *_: None)
    assert every_kernel.main(["--stand-in", "--quick"]) == 1
    said = capsys.readouterr().out
    assert "WRONG: no step can be captured, there is no cuBLAS but CuPy's: no nvmath" in said
    assert ": not captured: there is no cuBLAS but CuPy's, which can't be captured (no nvmath)" in said


def test_the_names_are_those_that_are_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    assert every_kernel.main(["--names"]) == 0
    compiled = {name.partition("<")[0] for stem in STEMS for name in kernel_names(cuda.source(stem))}
    assert set(capsys.readouterr().out.split()) == compiled


def test_what_is_not_a_number_or_has_another_shape_is_wrong() -> None:
    checks = every_kernel.Checks()
    checks.close("nothing", np.ones(2), np.ones(2), 0.0)
    checks.close("a hole", np.array([1, np.nan]), np.ones(2), 1.0)
    checks.close("a row", np.ones(3), np.ones(2), 1.0)
    assert checks.done == 3
    assert checks.wrong == ["a hole: off by nan, allowed is 1.0e+00", "a row: shape (3,) instead of (2,)"]


def test_kernels_that_were_never_launched_are_named(fake_cupy: ModuleType) -> None:
    launched = {name for stem in STEMS for name in kernel_names(cuda.source(stem))}
    assert every_kernel.not_launched(launched) == []
    assert every_kernel.not_launched(launched - {"adam<float>"}) == ["adam<...float...>"]


def test_without_a_device_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert every_kernel.main([]) == 2
    assert capsys.readouterr().out.startswith("no CUDA device: ")
