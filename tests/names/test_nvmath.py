"""cuBLAS as nvmath-python binds it is called so by `gpubp`, by its own bindings, and by the stand-in.

nvmath's functions are documented as ``set_stream(intptr_t handle, intptr_t stream_id)``, "See `cublasSetStream`".
"""

from __future__ import annotations

import ast
import ctypes
import inspect
import re

import pytest
from fake_cupy import cublas as fake_cublas
from outside import required
from signatures import signature

from gpubp import cublas, cublas_library, faults

nvmath = required("nvmath.bindings.cublas", "GPUBP_REQUIRE_CUPY")
runtime = required("cuda.bindings.runtime", "GPUBP_REQUIRE_CUPY")
OFFERED = {
    name: value for name, value in vars(fake_cublas.modules()["nvmath.bindings.cublas"]).items() if name[0] != "_"
}
FUNCTIONS = [name for name, value in OFFERED.items() if inspect.isfunction(value)]
KINDS = [name for name, value in OFFERED.items() if isinstance(value, type) and name != "cuBLASError"]
CTYPES = {
    "intptr_t": ctypes.c_void_p,
    "int": ctypes.c_int,
    "long long": ctypes.c_longlong,
    "size_t": ctypes.c_size_t,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_take_these_arguments_in_this_order(name):
    assert [*inspect.signature(OFFERED[name]).parameters] == [*signature(getattr(nvmath, name)).parameters]


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if hasattr(cublas_library, name)])
def test_the_c_functions_take_these_types(name):
    line, _, rest = getattr(nvmath, name).__doc__.partition("\n")
    arguments, returned = re.match(r"\w+\(([^)]*)\)(?: -> (\w+))?", line).groups()
    types = [CTYPES[argument.rpartition(" ")[0]] for argument in arguments.split(", ") if argument]
    if returned:
        types.append(ctypes.POINTER(CTYPES[returned]))
    called = re.search(r"See `(\w+)`", rest)[1]
    (taken,) = (taken for ours, taken in cublas_library._SIGNATURES.items() if ours.removesuffix("_v2") == called)
    assert list(taken) == types


@pytest.mark.parametrize("kind", KINDS)
def test_numbers(kind):
    theirs = {member.name: int(member) for member in getattr(nvmath, kind)}
    for ours in (getattr(cublas_library, kind), OFFERED[kind]):
        assert {member.name: int(member) for member in ours}.items() <= theirs.items()


def test_other_numbers():
    statuses = {member.value: member.name for member in nvmath.Status if member.name != "SUCCESS"}
    assert statuses == cublas_library._STATUS
    assert nvmath.GemmAlgo.DFALT == cublas._DEFAULT_ALGORITHM
    names = {"float32": "CUDA_R_32F", "float64": "CUDA_R_64F"}
    assert {dtype: int(getattr(runtime.cudaDataType, name)) for dtype, name in names.items()} == cublas._DATA_TYPES
    assert {*fake_cublas.DATA_TYPES} == {*cublas._DATA_TYPES.values()}


def test_what_gpubp_calls_is_in_both():
    called = {node.attr for node in ast.walk(ast.parse(inspect.getsource(cublas))) if of_the_library(node)}
    assert called == {*OFFERED} - {"destroy", "cuBLASError"}
    assert all(hasattr(module, name) for module in (nvmath, cublas_library) for name in called)
    assert nvmath.cuBLASError.__name__ in faults._KINDS


def of_the_library(node):
    return isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("cublas", "bindings", "_bindings()")
