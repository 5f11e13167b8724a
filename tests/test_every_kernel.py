"""`every_kernel.py` runs on the stand-in for CuPy, launches every kernel that is compiled, and notices a fault."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import every_kernel
import numpy as np
import pytest
from kernel_names import all_kernels

from gpubp import cuda


def test_every_kernel_is_launched_and_right(capsys: pytest.CaptureFixture[str]) -> None:
    assert every_kernel.main(["--stand-in", "--quick", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    launched = {line.removeprefix("launched ") for line in lines if line.startswith("launched ")}
    assert launched == {name for _, name in all_kernels()}
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
    assert "WRONG: never launched: " in said
    assert "WRONG: no step can be captured, there is no cuBLAS but CuPy's: no nvmath" in said
    assert ": not captured: there is no cuBLAS but CuPy's, which can't be captured (no nvmath)" in said


def test_the_names_are_those_that_are_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    assert every_kernel.main(["--names"]) == 0
    compiled = {name.partition("<")[0] for _, name in all_kernels()}
    assert set(capsys.readouterr().out.split()) == compiled


def test_what_is_not_a_number_or_has_another_shape_is_wrong() -> None:
    checks = every_kernel.Checks()
    checks.close("nothing", np.ones(2), np.ones(2), 0.0)
    checks.close("a hole", np.array([1, np.nan]), np.ones(2), 1.0)
    checks.close("a row", np.ones(3), np.ones(2), 1.0)
    assert checks.done == 3
    assert checks.wrong == ["a hole: off by nan, allowed is 1.0e+00", "a row: shape (3,) instead of (2,)"]


class Pool:
    """Does at once what it is given."""

    @staticmethod
    def submit(work: Any, *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*arguments))
        return done


@pytest.mark.usefixtures("fake_cupy")
def test_what_does_not_compile_is_told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = [*(kernel for kernel in all_kernels() if kernel[0] == "combine"), ("combine", "divide<float>")]
    monkeypatch.setattr(every_kernel, "all_kernels", lambda: kernels)
    assert every_kernel.told(every_kernel.compile_all(Pool())) == 1
    said, wrong = capsys.readouterr().out.split("WRONG: ")
    assert said.startswith(f"{len(kernels) - 1} of {len(kernels)} kernels compiled in ")
    assert wrong.startswith("divide<float>: DeviceError: kernel divide<float> of combine.cu does not compile")


def test_without_a_device_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert every_kernel.main([]) == 2
    assert capsys.readouterr().out.startswith("no CUDA device: ")
