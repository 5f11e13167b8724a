"""The CUDA sources: how they are found and put together, that they compile for every architecture, and run clean."""

from __future__ import annotations

import io
import itertools
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import cuda_host
import fake_cupy as fake
import numpy as np
import pytest
from cuda.core import Program, ProgramOptions

from gpubp import cuda
from gpubp.errors import DeviceError
from gpubp.layers.leaky_relu import LeakyReLU
from gpubp.layers.sigmoid import Sigmoid
from gpubp.ops import activation

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
STEMS = sorted(path.stem for path in cuda.kernel_directory().glob("*.cu"))
FUNCTORS = re.findall(r"^struct (\w+)", (cuda.kernel_directory() / "activations.cuh").read_text(), re.MULTILINE)
TYPES = ("float", "double")


def kernel_names(source: str) -> list[str]:
    """Every kernel of a source, with every type that its template is meant for."""
    names = []
    for template, name in re.findall(r"(?:template <([^>]*)>\s*)?__global__ void (\w+)\(", source):
        if not template:
            names.append(name)
        elif template.startswith("typename Activation"):
            names += [f"{name}<{functor}<{kind}>>" for functor, kind in itertools.product(FUNCTORS, TYPES)]
        else:
            assert template == "typename T", f"{name}: say here what `template <{template}>` is used with"
            names += [f"{name}<{kind}>" for kind in TYPES]
    return names


def compile_report(source: str, architecture: str, names: list[str]) -> str:
    """What ptxas says about each kernel, compiled with the options that CuPy will use."""
    options = ProgramOptions(arch=architecture, std="c++17", ftz=True, ptxas_options=["-v"])
    log = io.StringIO()
    Program(source, "c++", options).compile("cubin", name_expressions=tuple(names), logs=log)
    return log.getvalue()


def in_local_memory(report: str) -> list[str]:
    """Kernels that do not fit into registers: whatever has a stack frame or spills."""
    pattern = (
        r"Function properties for (\w+)\s+ptxas[ .]*(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes"
    )
    kernels = re.findall(pattern, report)
    assert kernels, f"no kernel in the report of ptxas:\n{report}"
    return [name for name, *sizes in kernels if any(size != "0" for size in sizes)]


# Finding and putting together.


def test_import_needs_no_cupy() -> None:
    code = "import sys, gpubp.cuda; sys.exit('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_headers_are_put_in_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.cuh").write_text('#pragma once\n#include "b.cuh"  // shared\nint a;\n')
    (tmp_path / "b.cuh").write_text("#pragma once\nint b;\n")
    (tmp_path / "k.cu").write_text('#include "a.cuh"\n#include "b.cuh"\nint k;\n')
    monkeypatch.setattr(cuda, "kernel_directory", lambda: tmp_path)
    assert cuda.source("k") == "int b;\nint a;\nint k;\n"


def test_wheel_comes_before_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "gpubp"
    (package / "kernels").mkdir(parents=True)
    monkeypatch.setattr(cuda, "__file__", str(package / "cuda.py"))
    assert cuda.kernel_directory() == package / "kernels"
    (package / "kernels").rmdir()
    assert cuda.kernel_directory() == tmp_path / "kernels"


def test_missing_source_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "kernel_directory", lambda: tmp_path)
    with pytest.raises(DeviceError, match=r"activation\.cu is missing .* pip install --force-reinstall gpubp"):
        cuda.source("activation")
    (tmp_path / "activation.cu").write_text('#include "gone.cuh"\n')
    with pytest.raises(DeviceError, match=r"gone\.cuh is missing"):
        cuda.source("activation")


def test_compiled_once_per_device_and_kernel() -> None:
    with fake.installed(device_count=2) as cupy:
        first = cuda.function("activation", "sum_partials<float>")
        assert cuda.function("activation", "sum_partials<float>") is first
        assert cuda.function("activation", "sum_partials<double>") is not first
        with cupy.cuda.Device(1):
            assert cuda.function("activation", "sum_partials<float>") is not first


def test_kernel_that_does_not_compile_is_named(fake_cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "source", lambda stem: "__global__ void broken() { nonsense; }")
    with pytest.raises(
        DeviceError, match=r"(?s)kernel broken of activation\.cu does not compile on cuda:0: .*nonsense"
    ):
        cuda.function("activation", "broken")


# Compiling, as a machine with a GPU will.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("stem", STEMS)
def test_compiles_without_spilling(stem: str, architecture: str) -> None:
    source = cuda.source(stem)
    names = kernel_names(source)
    assert names
    report = compile_report(source, architecture, names)
    assert report.count("Function properties for") == len(names)
    assert in_local_memory(report) == []


SPILLING = """
__global__ void spills(float* X, int n) {
    float kept[200];
    for (int i = 0; i < 200; ++i) kept[i] = X[i * n];
    for (int i = 0; i < n; ++i) X[i] = kept[X[i] > 0 ? i : n - i];
}
"""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_planted_spill_is_reported(architecture: str) -> None:
    assert len(in_local_memory(compile_report(SPILLING, architecture, ["spills"]))) == 1


def test_planted_syntax_error_is_reported() -> None:
    with pytest.raises(Exception, match="expected a"):
        compile_report("__global__ void broken( {}", "sm_90", ["broken"])


def test_all_kernels_are_found() -> None:
    names = kernel_names(cuda.source("activation"))
    assert len(names) == len(set(names)) == 2 * len(FUNCTORS) * len(TYPES) + len(TYPES)
    assert set(FUNCTORS) == {"Identity", "Sigmoid", "Tanh", "ReLU", "LeakyReLU"}


# Running on the host: what the host runner itself must notice.


def run_on_host(body: str, *, block: tuple[int, ...] = (64,), reverse: bool = False) -> np.ndarray:
    """A kernel of one block with this body; returns its (64,) array X, which starts as 0, 1, 2, ..."""
    X = np.arange(64, dtype="float32")
    source = f"__global__ void kernel(float* X) {{ const unsigned t = threadIdx.x; {body} }}"
    cuda_host.launch(source, "kernel", (1,), block, [X], reverse=reverse)
    return X


@pytest.mark.parametrize("reverse", [False, True])
def test_barriers_and_shuffles_on_the_host(reverse: bool) -> None:
    X = run_on_host("__shared__ float s[64]; s[t] = X[t]; __syncthreads(); X[t] = s[63 - t];", reverse=reverse)
    np.testing.assert_array_equal(X, np.arange(64)[::-1])
    down = run_on_host("X[t] = __shfl_down_sync(0xffffffff, X[t], 1);", reverse=reverse)
    np.testing.assert_array_equal(down, [*range(1, 32), 31, *range(33, 64), 63])
    swapped = run_on_host("X[t] = __shfl_xor_sync(0xffffffff, X[t], 1);", reverse=reverse)
    np.testing.assert_array_equal(swapped, np.arange(64).reshape(-1, 2)[:, ::-1].ravel())
    first = run_on_host("X[t] = __shfl_sync(0xffffffff, X[t], 0); __syncwarp();", reverse=reverse)
    np.testing.assert_array_equal(first, [0] * 32 + [32] * 32)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("if (t < 63) __syncthreads();", "not reached by all threads"),
        ("if (t == 5) return; __syncthreads();", "not reached by all threads"),
        ("if (t < 32) { __syncthreads(); }\n else { __syncthreads(); }", "two different barriers"),
        ("if (t != 3) X[t] = __shfl_down_sync(0xffffffff, X[t], 1);", "not reached by all threads"),
        ("if (t < 16) X[t] = __shfl_down_sync(0xffff, X[t], 1);", "whole warps only"),
    ],
)
def test_barriers_that_some_threads_miss(body: str, message: str) -> None:
    with pytest.raises(cuda_host.LaunchError, match=message):
        run_on_host(body)


def test_launches_that_a_device_refuses() -> None:
    source, X = "__global__ void kernel(float* X, float factor) {}", np.zeros(1, "float32")
    for grid, block, arguments, message in [
        ((1,), (1025,), [X, np.float32(1)], "1 to 1024 threads"),
        ((1, 65536), (1,), [X, np.float32(1)], "at most 65535 blocks"),
        ((1,), (1,), [X], "wrong number"),
        ((1,), (1,), [X, np.float64(1)], "wrong size"),
    ]:
        with pytest.raises(cuda_host.LaunchError, match=message):
            cuda_host.launch(source, "kernel", grid, block, arguments)


# Running under the sanitizers: the launches of real calls, replayed on buffers without slack.


def record_launches() -> list[fake.Launch]:
    """Odd and empty sizes, stacks, views into larger buffers, unaligned arrays, with and without a bias."""
    with fake.installed(record=True) as xp:
        for function, (E, N, n), biased in itertools.product(
            (Sigmoid(), LeakyReLU(0.3)),
            [(1, 0, 7), (1, 7, 0), (1, 1, 1), (2, 33, 7), (1, 7, 33), (3, 300, 10), (1, 1025, 1), (1, 1, 1025)],
            (True, False),
        ):
            dtype = "float32" if function.functor == "Sigmoid" else "float64"
            shapes = activation.workspace(function, xp, (E, N, n))
            work = {name: xp.full(shape, 0, dtype) for name, shape in shapes.items()}
            # One element off, and b and dL_db up to the last element of the buffer that they are views of.
            Z, Y = (xp.full(E * N * n + 1, 1, dtype)[1:].reshape(E, N, n) for _ in range(2))
            b, dL_db = (xp.full((E, n + 3), 1, dtype)[:, 3:] if biased else None for _ in range(2))
            activation.bias_activation(function, Z, b, Y, work)
            activation.activation_backward(function, Z, Y, Z, dL_db, work)
        assert fake.machine.launches is not None
        return fake.machine.launches


def replay_program(launches: list[fake.Launch], source: str) -> str:
    """A C++ program that makes these launches, in both orders of threads, on buffers of exactly the same sizes."""
    lines = ['#include "cuda_host.h"', source, "int main() {", "for (bool reverse : {false, true}) {"]
    for launch in launches:
        owners: dict[int, str] = {}
        lines.append("{ std::vector<void*> arguments; std::vector<size_t> sizes;")
        for number, argument in enumerate(launch.arguments):
            if isinstance(argument, np.ndarray):
                owner = argument if argument.base is None else argument.base
                if id(owner) not in owners:
                    owners[id(owner)] = f"buffer{number}"
                    lines.append(f"std::vector<char> buffer{number}({owner.nbytes});")
                offset = argument.ctypes.data - owner.ctypes.data
                lines.append(f"void* value{number} = {owners[id(owner)]}.data() + {offset};")
            else:
                kind = {"int": "long long", "float32": "float", "float64": "double"}[type(argument).__name__]
                lines.append(f"{kind} value{number} = {argument!s};")
            lines.append(f"arguments.push_back(&value{number}); sizes.push_back(sizeof value{number});")
        grid, block = (", ".join(map(str, (*shape, 1, 1)[:3])) for shape in (launch.grid, launch.block))
        lines.append(
            f"const unsigned grid[] = {{{grid}}}, block[] = {{{block}}};"
            f"if (const char* message = cuda_host::launch({launch.kernel}, grid, block, arguments.data(),"
            ' sizes.data(), sizes.size(), reverse)) { fprintf(stderr, "%s\\n", message); return 2; } }'
        )
    return "\n".join([*lines, "}", "}"])


def run_sanitized(program: str) -> Any:
    path = cuda_host.build(program, *cuda_host.SANITIZERS)
    environment = {"ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0"}
    return subprocess.run([path], capture_output=True, text=True, env=environment, check=False)


def test_runs_clean_under_sanitizers() -> None:
    launches = record_launches()
    kernels = {launch.kernel.split("<")[0] for launch in launches}
    assert kernels == {"bias_activation", "activation_backward", "sum_partials"}
    result = run_sanitized(replay_program(launches, launches[0].source))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("row < N; row", "row <= N; row"),  # reads and writes one row too many forward
        ("c < C; c += blockDim.y) sum", "c <= C; c += blockDim.y) sum"),  # reads one chunk too many
        ("if (j < n && threadIdx.y == 0) dL_db", "if (threadIdx.y == 0) dL_db"),  # writes behind the last column
    ],
)
def test_planted_overrun_is_caught(right: str, wrong: str) -> None:
    launches = record_launches()
    source = launches[0].source
    assert source.count(right) == 1
    result = run_sanitized(replay_program(launches, source.replace(right, wrong)))
    assert result.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in result.stderr


def test_planted_undefined_behaviour_is_caught() -> None:
    program = "\n".join(
        [
            '#include "cuda_host.h"',
            "__global__ void shift(long long by) { volatile int shifted = 1 << by; }",
            "int main() { long long by = 40; void* arguments[] = {&by}; const unsigned one[] = {1, 1, 1};",
            "size_t size = 8; return cuda_host::launch(shift, one, one, arguments, &size, 1, false) != nullptr; }",
        ]
    )
    result = run_sanitized(program)
    assert result.returncode != 0
    assert "shift exponent 40" in result.stderr
