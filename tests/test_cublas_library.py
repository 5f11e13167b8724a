"""cuBLAS by ctypes, without nvmath-python: a stand-in for libcublas is compiled, found, and called for real."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cupy import cublas as fake_cublas
from fake_cupy.driver import machine

import gpubp
from gpubp import cublas, cublas_library
from gpubp.backend import to_host
from gpubp.cli.info import info
from gpubp.cuda_kernels import gemm as launches
from gpubp.ops import gemm

CUDA = 99
"""A CUDA that no machine has a library of: what is loaded here is found by nothing else."""


@pytest.fixture(scope="session")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled stand-in for libcublas."""
    made = tmp_path_factory.mktemp("cublas") / f"libcublas.so.{CUDA}"
    source = Path(__file__).with_name("cublas_stub.cpp")
    flags = ["-std=c++17", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{made.name}"]
    subprocess.run(["g++", *flags, "-o", str(made), str(source)], check=True)
    return made


@pytest.fixture
def no_nvmath(fake_cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The stand-in for CuPy on a machine that has not nvmath-python."""
    monkeypatch.setitem(sys.modules, "nvmath.bindings.cublas", None)
    monkeypatch.setattr(fake_cupy.cuda.runtime, "runtimeGetVersion", lambda: 1000 * CUDA + 20)
    cublas.clear_cache()
    return fake_cupy


def pathfinder_finds(monkeypatch: pytest.MonkeyPatch, path: Path | str | None) -> None:
    def load(name: str) -> SimpleNamespace:
        return SimpleNamespace(abs_path=path and str(path))

    monkeypatch.setitem(sys.modules, "cuda.pathfinder", SimpleNamespace(load_nvidia_dynamic_lib=load))


@pytest.fixture
def library(no_nvmath: ModuleType, monkeypatch: pytest.MonkeyPatch, stub: Path) -> Iterator[Any]:
    """The stand-in for libcublas, loaded as cuda-pathfinder finds it."""
    pathfinder_finds(monkeypatch, stub)
    loaded = cublas_library.library(str(stub))
    loaded.stub_log.restype = ctypes.c_char_p
    loaded.stub_clear()
    yield loaded
    loaded.stub_enqueue(None)


def lines(library: Any) -> list[dict[str, str]]:
    """What was called: the function under the name ``""``, and what stands in the line."""
    return [
        dict((part.split("=", 1) if "=" in part else ("", part)) for part in line.split())
        for line in library.stub_log().decode().splitlines()
    ]


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-5), ("float64", 1e-13)])
@pytest.mark.parametrize("lead", [(), (3,)])
def test_products_of_every_shape_and_transposition(no_nvmath, library, lead, dtype, rtol):
    xp, rng = no_nvmath, np.random.default_rng(0)
    for (M, N, K), A_turned, B_turned, out_turned in itertools.product(
        itertools.product((1, 7, 33), repeat=3), *[(False, True)] * 3
    ):

        def made(rows: int, columns: int, turned: bool) -> Any:
            shape = (*lead, columns, rows) if turned else (*lead, rows, columns)
            array = xp.asarray(rng.normal(size=shape).astype(dtype))
            return array.mT if turned else array

        A, B, out = made(M, K, A_turned), made(K, N, B_turned), made(M, N, out_turned)
        before = to_host(out).copy()
        launches.matmul(A, B, out, "float32", alpha=0.5, beta=-2.0)
        expected = 0.5 * to_host(A).astype("f8") @ to_host(B).astype("f8") - 2 * before
        np.testing.assert_allclose(to_host(out), expected, rtol=rtol, atol=rtol * 50)
    assert {line[""] for line in lines(library)} == {"GemmStridedBatchedEx" if lead else "GemmEx"}
    assert fake_cublas.calls == []


@pytest.mark.parametrize(
    ("precision", "dtype", "number"),
    [("float32", "float32", 68), ("tf32", "float32", 77), ("bf16", "float32", 75), ("float32", "float64", 70)],
)
@pytest.mark.parametrize("members", [None, 3])
def test_what_the_library_is_told(no_nvmath, library, precision, dtype, number, members):
    xp, lead = no_nvmath, () if members is None else (members,)
    stream = xp.cuda.Stream(non_blocking=True)
    with stream:
        A, B, out = (xp.ones((*lead, 4, 4), dtype) for _ in range(3))
        gemm.matmul(A, B, out, precision=precision)
        handle = cublas.handle()
    np.testing.assert_array_equal(to_host(out), 4)
    assert handle.number > 2**32  # a pointer of 64 bits, not half of one
    (line,) = lines(library)
    assert line == {
        "": "GemmEx" if members is None else "GemmStridedBatchedEx",
        "stream": hex(stream.ptr),
        "workspace": f"{handle.workspace.data.ptr:#x}+{32 * 2**20}",
        "pointer": str(cublas_library.PointerMode.HOST.value),
        "math": str(cublas_library.Math.DEFAULT_MATH.value),
        "compute": str(number),
        "algo": "-1",
        "count": str(members or 1),
    }


def test_training_is_captured(no_nvmath, library):
    """As a graph: a product is noted when it is called, and computed when the graph runs."""
    size = library.stub_product_bytes()
    run = library.stub_run

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def enqueue(product: int) -> None:
        kept = ctypes.string_at(product, size)
        machine.submit(lambda: run(kept))

    library.stub_enqueue(enqueue)
    rng = np.random.default_rng(0)
    X, T = rng.normal(size=(203, 6)), rng.integers(0, 3, 203)
    net = gpubp.mlp([6, 9, 3], device="cuda", dtype="float64")
    cpu = net.copy(device="cpu")
    for trained in (net, cpu):
        gpubp.fit(trained, X, T, optimizer=gpubp.Adam(0.01), epochs=3, batch_size=8)
    assert net.plan.why_not_captured is None
    assert machine.graph_launches > 3
    np.testing.assert_allclose(to_host(net.theta), cpu.theta, atol=1e-11)


def test_a_status_is_an_error_with_its_name_and_number(no_nvmath, library):
    xp = no_nvmath
    scalars = np.array([1.0, 0.0])
    A, number = xp.ones((4, 4)), cublas.handle().number
    factor = A.data.ptr, 1, 4
    call = (number, 0, 0, 4, 4, 4, scalars.ctypes.data, *factor, *factor, scalars.ctypes.data + 8, *factor)
    cublas_library.gemm_ex(*call, 70, -1)
    with pytest.raises(cublas_library.cuBLASError, match=r"^cublasGemmEx: CUBLAS_STATUS_NOT_SUPPORTED \(15\)$"):
        cublas_library.gemm_ex(*call, 68, -1)
    with pytest.raises(cublas_library.cuBLASError, match=r"CUBLAS_STATUS_INVALID_VALUE \(7\)"):
        cublas_library.gemm_ex(*call, 70, 5)
    with pytest.raises(cublas_library.cuBLASError, match=r"^cublasGetVersion_v2: CUBLAS_STATUS_NOT_INITIALIZED \(1\)"):
        cublas_library.get_version(0)
    assert str(cublas_library.cuBLASError("f", 99)) == "f: CUBLAS_STATUS_unknown (99)"


def test_without_pathfinder_the_system_is_asked_by_name(no_nvmath, library, monkeypatch, stub):
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    cublas.clear_cache()
    assert cublas_library.path() == stub.name  # a library that is loaded is found by its name
    out = gemm.matmul(no_nvmath.ones((2, 3)), no_nvmath.ones((3, 2)), no_nvmath.empty((2, 2)))
    np.testing.assert_array_equal(to_host(out), 3)
    assert len(lines(library)) == 1


@pytest.mark.parametrize("found", ["/somewhere/libcublas.so.98", None])
def test_the_library_of_another_cuda_is_not_taken(no_nvmath, monkeypatch, found):
    pathfinder_finds(monkeypatch, found)
    assert cublas_library.path() == f"libcublas.so.{CUDA}"
    pathfinder_finds(monkeypatch, f"/somewhere/libcublas.so.{CUDA}.1.2")
    assert cublas_library.path() == f"/somewhere/libcublas.so.{CUDA}.1.2"
    monkeypatch.setattr(sys, "platform", "win32")
    assert cublas_library.path() == f"cublas64_{CUDA}.dll"


def test_where_neither_is_there_cupy_computes(no_nvmath, monkeypatch, capsys):
    pathfinder_finds(monkeypatch, None)
    monkeypatch.setattr(no_nvmath.cuda.runtime, "runtimeGetVersion", lambda: 98000)
    out = gemm.matmul(no_nvmath.ones((2, 3)), no_nvmath.ones((3, 2)), no_nvmath.empty((2, 2)))
    np.testing.assert_array_equal(to_host(out), 3)
    assert "libcublas.so.98" in cublas.why_no_handle()
    assert "pip install 'gpubp[cuda13x]'" in cublas.why_no_handle()
    info()
    assert "cuBLAS:         through CuPy, never in a CUDA graph (libcublas.so.98" in capsys.readouterr().out


def test_info_says_which_is_used(no_nvmath, library, stub, capsys):
    info()
    said = f"cuBLAS:         13.2.3, called in {stub}, as nvmath-python is not installed\n"
    assert said in capsys.readouterr().out


def test_nvmath_is_taken_where_it_is_installed(fake_cupy):
    gemm.matmul(fake_cupy.ones((2, 3)), fake_cupy.ones((3, 2)), fake_cupy.empty((2, 2)))
    assert len(fake_cublas.calls) == 1


def test_the_numbers_are_those_of_nvmath():
    """Of the stand-in for it, which is compared with nvmath itself where that is installed."""
    for kind in ("Operation", "PointerMode", "Math", "ComputeType"):
        ours, theirs = getattr(cublas_library, kind), getattr(fake_cublas, kind)
        assert {member.name: int(member) for member in ours} == {member.name: int(member) for member in theirs}


@pytest.mark.gpu
def test_the_library_of_this_machine_gives_what_nvmath_gives(monkeypatch):
    """On a GPU: products by ctypes, captured too, equal those by nvmath-python bit for bit."""
    import cupy

    rng = np.random.default_rng(0)
    A, B = (cupy.asarray(rng.normal(size=(3, 65, 65)).astype("f4")) for _ in range(2))
    outs = []
    for hidden in (False, True):
        if hidden:
            monkeypatch.setitem(sys.modules, "nvmath.bindings.cublas", None)
        elif importlib.util.find_spec("nvmath") is None:
            continue
        cublas.clear_cache()
        stream = cupy.cuda.Stream(non_blocking=True)
        out = cupy.empty_like(A)
        with gpubp.cuda.ordered(stream, gpubp.cuda.event()):
            gemm.matmul(A, B, out)
            graph = gpubp.cuda.captured(stream, lambda out=out: gemm.matmul(A, B.mT, out))
            graph.launch(stream)
        outs.append(to_host(out))
    cublas.clear_cache()
    np.testing.assert_allclose(outs[-1], to_host(A) @ to_host(B).swapaxes(1, 2), atol=1e-3)
    for out in outs:
        np.testing.assert_array_equal(out, outs[0])
