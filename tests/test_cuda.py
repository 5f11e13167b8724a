"""The CUDA sources: how they are found and put together, that they compile for every architecture, and run clean."""

from __future__ import annotations

import io
import itertools
import math
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
from cuda.bindings import nvrtc
from cuda.core import Program, ProgramOptions
from cuda_host import replay
from kernel_names import FUNCTORS, LOSSES, PAIRS, STEMS, TYPES, WIDTHS, all_kernels, kernel_names

import gpubp
from gpubp import cuda
from gpubp.cuda_kernels import optimizers
from gpubp.errors import DeviceError
from gpubp.layers.leaky_relu import LeakyReLU
from gpubp.layers.sigmoid import Sigmoid
from gpubp.losses.penalty import add_l2
from gpubp.ops import activation, batch_norm, dropout, elementwise, embedding, gather, layer_norm, random, rows, softmax
from gpubp.ops.combine import combine

ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")


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


def ptx(source: str, kernel: str) -> str:
    """What the compiler makes of one kernel before the assembler sees it."""
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"source", 0, [], [])
    nvrtc.nvrtcAddNameExpression(program, kernel.encode())
    options = [b"--std=c++17", b"-ftz=true", b"-arch=compute_90"]
    (result,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    assert result == nvrtc.nvrtcResult.NVRTC_SUCCESS
    text = b" " * nvrtc.nvrtcGetPTXSize(program)[1]
    nvrtc.nvrtcGetPTX(program, text)
    return text.decode()


@pytest.mark.parametrize(
    ("stem", "kernel", "read", "written"),
    [
        ("activation", "bias_activation<Sigmoid<float>, 4>", r"v4\.f32", r"v4\.f32"),
        ("activation", "activation_backward<Sigmoid<double>, 2>", r"v2\.f64", r"v2\.f64"),
        ("rows", "standardize<float, 4>", r"v4\.f32", r"v4\.f32"),
        ("gather", "gather<float, float, 4>", r"v4\.[fu]32", r"v4\.f32"),
        ("gather", "gather<unsigned char, float, 4>", r"v4\.u8", r"v4\.f32"),
        ("random", "uniform<float, 4>", r"u64", r"v4\.f32"),
        ("dropout", "dropout<float, 4>", r"v4\.f32", r"v4\.f32"),
        ("elementwise", "add<double, 2>", r"v2\.f64", r"v2\.f64"),
    ],
)
def test_sixteen_bytes_are_read_and_written_by_one_instruction(stem: str, kernel: str, read: str, written: str) -> None:
    text = ptx(cuda.source(stem), kernel)
    assert re.search(rf"\bld\.global(\.\w+)?\.{read}", text)
    assert re.search(rf"\bst\.global(\.\w+)?\.{written}", text)


def test_planted_syntax_error_is_reported() -> None:
    with pytest.raises(Exception, match="expected a"):
        compile_report("__global__ void broken( {}", "sm_90", ["broken"])


def test_all_kernels_are_found() -> None:
    names = kernel_names(cuda.source("activation"))
    assert len(names) == len(set(names)) == 2 * len(FUNCTORS) * len(WIDTHS) + len(TYPES)
    assert set(FUNCTORS) == {"Identity", "Sigmoid", "Tanh", "ReLU", "LeakyReLU", "ELU", "GELU", "SiLU", "Softplus"}
    names = kernel_names(cuda.source("losses"))
    assert {"SquaredError", "BinaryCrossEntropy", "AbsoluteError", "Huber", "Quantile", "PoissonDeviance"} < set(LOSSES)
    elementwise = len(LOSSES) - len(PAIRS)
    assert len(names) == len(set(names)) == (1 + elementwise) * len(WIDTHS) + (1 + len(PAIRS)) * len(TYPES)


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
        for function, (E, N, n), biased, off in itertools.product(
            (Sigmoid(), LeakyReLU(0.3)),
            [(1, 0, 7), (1, 7, 0), (1, 1, 1), (2, 33, 7), (1, 7, 33), (3, 900, 10), (1, 1025, 1), (1, 1, 1025)],
            (True, False),
            (0, 1),
        ):
            dtype = "float32" if function.functor == "Sigmoid" else "float64"
            shapes = activation.workspace(function, xp, (E, N, n))
            work = {name: xp.full(shape, 0, dtype) for name, shape in shapes.items()}
            # Some one element off, and b and dL_db up to the last element of the buffer that they are views of.
            Z, Y = (xp.full(E * N * n + off, 1, dtype)[off:].reshape(E, N, n) for _ in range(2))
            b, dL_db = (xp.full((E, n + 3), 1, dtype)[:, 3:] if biased else None for _ in range(2))
            activation.bias_activation(function, Z, b, Y, work)
            activation.activation_backward(function, Z, Y, Z, dL_db, work)
        assert fake.machine.launches is not None
        return fake.machine.launches


NORMALIZATION_KERNELS = {
    "softmax", "softmax_backward", "layer_norm", "layer_norm_backward", "product_sum", "sum_partials"
}  # fmt: skip
ROW_KERNELS = {
    "bias_activation", "column_sum", "sum_partials", "standardize", "gather", "uniform", "dropout", "add", "multiply",
    "batch_sums", "batch_moments", "batch_normalize", "batch_gradient_sums", "batch_gradients", "batch_input_gradient",
    "lookup", "lookup_backward", "pass_columns", "combine",
}  # fmt: skip


def record_row_launches() -> list[fake.Launch]:
    """Rows that are standardised, summed, picked and converted, and random numbers; aligned and not."""
    with fake.installed(record=True) as xp:
        for (E, N, n), off, dtype in itertools.product(
            [(1, 0, 7), (1, 1, 1), (2, 33, 7), (3, 900, 10), (1, 1025, 1), (1, 1, 1025), (2, 9, 128)],
            (0, 1),
            ("float32", "float64"),
        ):

            def placed(*shape: int, off: int = off, dtype: str = dtype) -> Any:
                """Up to the last element of the buffer that it is a view of."""
                return xp.full(math.prod(shape) + off, 0, dtype)[off:].reshape(shape)

            X, Y, row = placed(E, N, n), placed(E, N, n), placed(E, n + 3)[:, 3:]
            rows.add_bias(X, row)
            rows.column_sum(X, row, placed(*rows.partial_sums_shape(xp, X.shape)))
            rows.standardize(X, placed(n), placed(n), Y)
            index, labels = placed(17, dtype="int64"), placed(E, N + 1, dtype="uint8")
            gather.gather(labels, index, placed(E, 17, dtype="int64"), -1)
            for source in ("float32", "float64", "float16", "uint8"):
                gather.gather(placed(E, N + 1, n, dtype=source), index, placed(E, 17, n), -2)
            random.uniform(X, 2**64 - 1, placed(1, dtype="int64"))
            dropout.dropout(X, placed(E, N, n), Y, 0.5, 2**64 - 1, placed(1, dtype="int64"))
            elementwise.add(X, Y, Y)
            elementwise.multiply(X, Y, placed(E, N, n))
            for kept in (0.0, 0.5):
                combine(placed(E, N, n), kept, Y, 2.0)
            W, dL_dW = (placed(E, 40 * n + 3)[:, 3:].reshape(E, 40, n) for _ in range(2))  # looked up by column 0
            for own in ((E,), ()):
                Z, looked_up = placed(*own, N, n), placed(E, N, n + 2)
                embedding.pass_columns(Z, 0, min(n, 2), looked_up, n)
                embedding.lookup(Z, 0, W, looked_up, 2)
                sums = placed(*embedding.partial_sums_shape(xp, looked_up.shape, (40, n)), off=0)
                embedding.lookup_backward(looked_up, 2, Z, 0, dL_dW, sums)
            mean, r = placed(E, n), placed(E, n)
            partial = placed(*batch_norm.partial_sums_shape(xp, X.shape), off=0)
            batch_norm.statistics(X, mean, r, row, row, 0.5, 0.5, partial)
            batch_norm.normalize(X, mean, r, row, row, Y)
            batch_norm.gradients(Y, X, mean, r, row, row, partial)
            batch_norm.input_gradient(Y, X, mean, r, row, row, row, placed(E, N, n), 0.5)
        assert fake.machine.launches is not None
        return fake.machine.launches


def record_normalization_launches() -> list[fake.Launch]:
    """Softmax and layer normalisation: narrow and wide rows, stacks with data of each and of all, aligned and not."""
    with fake.installed(record=True) as xp:
        for (E, N, n), off, dtype in itertools.product(
            [(1, 0, 7), (1, 1, 1), (2, 33, 7), (2, 900, 10), (2, 9, 128), (1, 2, 2052)], (0, 1), ("float32", "float64")
        ):

            def placed(*shape: int, off: int = off, dtype: str = dtype) -> Any:
                """Up to the last element of the buffer that it is a view of."""
                return xp.full(math.prod(shape) + off, 0, dtype)[off:].reshape(shape)

            X, Y, dL_dX, of_rows = placed(E, N, n), placed(E, N, n), placed(E, N, n), placed(E, N)
            softmax.softmax_backward(X, softmax.softmax(X, Y, of_rows), dL_dX, of_rows)
            gamma, beta = placed(E, n + 3)[:, 3:], placed(E, n + 3)[:, 3:]
            sums = placed(*rows.partial_sums_shape(xp, X.shape))
            for lead in ((E,), ()):
                shared, hat, inverse = placed(*lead, N, n), placed(*lead, N, n), placed(*lead, N)
                layer_norm.layer_norm(shared, gamma, beta, 1e-5, Y, hat, inverse)
                rows.product_sum(Y, hat, gamma, sums)
                layer_norm.layer_norm_backward(Y, gamma, hat, inverse, Y, {})
        assert fake.machine.launches is not None
        return fake.machine.launches


def record_loss_launches() -> list[fake.Launch]:
    """Losses and the penalty: one output and many, stacks, targets and weights of one member and of each, unaligned."""
    with fake.installed(record=True) as xp:
        losses = [
            loss for kind in gpubp.Loss.by_name.values() for loss in kind.examples() if kind.__module__[:5] == "gpubp"
        ]
        for number, (loss, (E, N, K)) in enumerate(
            itertools.product(losses, [(1, 0, 7), (2, 33, 7), (1, 1100, 3), (2, 9, 128), (2, 2, 2052)])
        ):
            off, dtype = number // 2 % 2, ("float32", "float64")[number % 2]

            def placed(*shape: int, off: int = off, dtype: str = dtype) -> Any:
                """Up to the last element of the buffer that it is a view of."""
                return xp.full(math.prod(shape) + off, 0, dtype)[off:].reshape(shape)

            shape = (E, N, K * loss.heads)
            for setting in ("class_weight", "positive_weight"):
                if isinstance(getattr(loss, setting, None), tuple):
                    setattr(loss, setting, (2.0,) * K)
            out = {name: placed(*buffer.shape) for name, buffer in loss.buffers(shape, xp).items()}
            if isinstance(loss, gpubp.SoftmaxCrossEntropy):
                loss.forward(placed(*shape), placed(E, N, dtype="int64"), placed(N), out)
            loss.forward(placed(*shape), placed(N, K), placed(E, N), out)
        for off, P in itertools.product((0, 1), (33, 3000)):
            theta, gradient = placed(2, P + 3 + off, off=0), placed(2, P + 3 + off, off=0)
            add_l2(theta[:, 3:], 0.1, gradient[:, 3:], placed(2))
            add_l2(placed(P, off=off), 0.1, None, placed(1, off=off).reshape(()))
        assert fake.machine.launches is not None
        return fake.machine.launches


UPDATES = {"sgd", "adam", "rmsprop", "lion", "squares", "clip_factors"}


def record_optimizer_launches() -> list[fake.Launch]:
    """Rows that begin anywhere and may end before their first boundary, gradients that lie otherwise, all options."""
    with fake.installed(record=True) as xp:
        for dtype, (shape, own, other) in itertools.product(
            ("float32", "float64"),
            [
                ((1,), 0, 0),
                ((2,), 1, 1),
                ((33,), 3, 3),
                ((33,), 1, 0),
                ((3, 7), 1, 1),
                ((3, 1025), 1, 1),
                ((2, 5000), 0, 0),
            ],
        ):
            E, size = math.prod(shape[:-1]), math.prod(shape)
            theta, M, V = (xp.full(own + size, 1, dtype)[own:].reshape(shape) for _ in range(3))
            dL_dtheta = xp.full(other + size, 1, dtype)[other:].reshape(shape)
            update = optimizers.of(theta, dL_dtheta)
            for extras in (False, True):
                update.begin([0.1] * E if len(shape) == 2 else 0.1, np.array([[0.5, 0.25]]))
                if extras:
                    update.clip(0.5)
                    update.weight_decay, update.decayed = 0.1, shape[-1] // 2
                update.sgd(None, 0.0, False)
                update.sgd(V, 0.9, True)
                update.adam(M, V, 0.9, 0.999, 1e-8)
                update.rmsprop(V, None, 0.9, 1e-8, 0.0)
                update.rmsprop(V, M, 0.9, 1e-8, 0.9)
                update.lion(M, 0.9, 0.99)
        assert fake.machine.launches is not None
        return fake.machine.launches


def run_sanitized(launches: list[fake.Launch], source: str, content: int = 0) -> Any:
    return replay.run(launches, source, replay.OVERRUNS, content=content)


SANITIZED = [
    (record_launches, {"bias_activation", "activation_backward", "sum_partials"}, 0),
    (record_row_launches, ROW_KERNELS, -1),  # NaN, and an index of -1
    (record_normalization_launches, NORMALIZATION_KERNELS, 0),
    (record_normalization_launches, NORMALIZATION_KERNELS, -1),
    (record_optimizer_launches, UPDATES, 0),
    (record_loss_launches, {"softmax_cross_entropy", "elementwise_loss", "pair_loss", "add_l2", "add_up"}, 0),
    # NaN, and classes of number -1: an index from a user's data must not lead outside.
    (record_loss_launches, {"softmax_cross_entropy", "elementwise_loss", "pair_loss", "add_l2", "add_up"}, -1),
]


def test_every_kernel_runs_under_sanitizers() -> None:
    names = {name.split("<")[0] for _, name in all_kernels()}
    assert names == set().union(*(kernels for _, kernels, _ in SANITIZED))


@pytest.mark.parametrize(("record", "kernels", "content"), SANITIZED)
def test_runs_clean_under_sanitizers(record: Any, kernels: set[str], content: int) -> None:
    launches = record()
    assert {launch.kernel.split("<")[0] for launch in launches} == kernels
    for source in dict.fromkeys(launch.source for launch in launches):
        of_source = [launch for launch in launches if launch.source == source]
        result = run_sanitized(of_source, source, content)
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("first + PACK<T> <= end) {\n        const auto", "first < end) {\n        const auto"),  # half a pack
        ("if (first + k * apart < end) X[first", "X[first"),  # writes behind the last column
        ("c < C; c += blockDim.y) sum", "c <= C; c += blockDim.y) sum"),  # reads one chunk too many
        ("if (j < n && threadIdx.y == 0) dL_db", "if (threadIdx.y == 0) dL_db"),  # writes behind the last column
    ],
)
def test_planted_overrun_is_caught(right: str, wrong: str) -> None:
    launches = record_launches()
    source = launches[0].source
    assert source.count(right) == 1
    result = run_sanitized(launches, source.replace(right, wrong))
    assert result.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in result.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("t.at[v] = k + v == one", "t.at[v] = of_none[one]"),  # the class as a place in memory
        ("min(size, (c + 1) * chunk)", "(c + 1) * chunk"),  # outputs behind the last one
    ],
)
def test_planted_overrun_of_a_loss_is_caught(right: str, wrong: str) -> None:
    launches = record_loss_launches()
    source = launches[0].source
    assert source.count(right) >= 1  # once for each kernel
    of_source = [launch for launch in launches if launch.source == source]
    source = "static float of_none[2];\n" + source.replace(right, wrong)
    result = run_sanitized(of_source, source, -1)
    assert result.returncode != 0
    assert "AddressSanitizer: " in result.stderr or "runtime error: index" in result.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("-reinterpret_cast<unsigned long long>(address)", "reinterpret_cast<unsigned long long>(address)"),
        ("head == elements_to_boundary(dL_dtheta, sizeof(T)) &&", "true &&"),  # a gradient that lies otherwise
        ("(P - head) / SIZE", "(P + SIZE - 1 - head) / SIZE"),  # a pack beyond the end
        ("head + i * SIZE", "i * SIZE"),  # packs that begin before a boundary
        ("P - packs * SIZE;", "P - packs * SIZE + 1;"),
        ("m = kept1 * m + added1 * g;", "m = kept1 * m + M[E * P] * g;"),
        ("const Index end = min(P, (c + 1) * chunk);", "const Index end = (c + 1) * chunk + W;"),  # of squares
        ("if (threadIdx.x == 0) factors[e] =", "factors[e + threadIdx.x] ="),
    ],
)
def test_planted_overrun_of_an_update_is_caught(right: str, wrong: str) -> None:
    launches = record_optimizer_launches()
    source = launches[0].source
    assert source.count(right) == 1
    result = run_sanitized(launches, source.replace(right, wrong))
    assert result.returncode != 0
    assert re.search("AddressSanitizer: heap-buffer-overflow|misaligned address", result.stderr)


@pytest.mark.parametrize(
    ("kernel", "right", "wrong"),
    [
        ("softmax", "there = row < rows ? n : 0;\n        const T* const x_row", ""),
        ("layer_norm", "there = row < N ? n : 0, begin = e * X_stride", ""),
        ("product_sum", "load<W>(B, begin - back, end - back, b[u])", "load<W>(B, begin, end, b[u])"),
    ],
)
def test_planted_overrun_of_rows_is_caught(kernel: str, right: str, wrong: str) -> None:
    launches = [launch for launch in record_normalization_launches() if launch.kernel.startswith(f"{kernel}<")]
    source = launches[0].source
    assert source.count(right) == 1
    wrong = wrong or re.sub(r"there = .* \? n : 0", "there = n", right)
    result = run_sanitized(launches, source.replace(right, wrong))
    assert result.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in result.stderr


def test_planted_trust_in_an_index_is_caught() -> None:
    launches = [launch for launch in record_row_launches() if launch.kernel == "gather<float, float, 1>"][-4:]
    right, source = "max(min(index[b], N - 1), Index(0))", launches[0].source
    assert source.count(right) == 1
    for text, clean in ((source, True), (source.replace(right, "index[b] * 1000"), False)):
        assert (run_sanitized(launches, text, -1).returncode == 0) == clean


def test_planted_undefined_behaviour_is_caught() -> None:
    program = "\n".join(
        [
            '#include "cuda_host.h"',
            "__global__ void shift(long long by) { volatile int shifted = 1 << by; }",
            "int main() { long long by = 40; void* arguments[] = {&by}; const unsigned one[] = {1, 1, 1};",
            "size_t size = 8; return cuda_host::launch(shift, one, one, arguments, &size, 1, false) != nullptr; }",
        ]
    )
    path = cuda_host.build(program, *replay.OVERRUNS)
    result = subprocess.run([path], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "shift exponent 40" in result.stderr
