"""What the project uses of CuPy is there, under that name and with those arguments. That needs no device.

The stand-in refuses what it does not have, so it is the list of what is used; besides it, what `gpubp` and `benchmarks`
call is looked up. CI installs CuPy for this alone; GPUBP_REQUIRE_CUPY=1 makes its absence a failure.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path

import fake_cupy as fake
import numpy as np
import pytest
from fake_cupy.array import signature as signature_of_numpy
from fake_cupy.driver import STATUSES
from fake_cupy.names import CONSTANTS, FUNCTIONS, METHODS, SPECIAL_FUNCTIONS, UFUNCS
from outside import required
from signatures import misfits, signature

from gpubp import faults

cupy = required("cupy", "GPUBP_REQUIRE_CUPY")
special = required("cupyx.scipy.special", "GPUBP_REQUIRE_CUPY")
libraries = required("cupy_backends.cuda.libs", "GPUBP_REQUIRE_CUPY")
softlink = required("cupy_backends.cuda._softlink", "GPUBP_REQUIRE_CUPY")
runtime = required("cuda.bindings.runtime", "GPUBP_REQUIRE_CUPY")
pathfinder = required("cuda.pathfinder", "GPUBP_REQUIRE_CUPY")
ROOT = Path(__file__).resolve().parents[2]
MADE = ("Device.id", "Stream.ptr", "Event.ptr", "Stream.captured")
"""What CuPy has too, but not before it is made. By the last one `benchmarks` knows that it is on the stand-in."""
OWN = {
    *MADE,
    *(f"Stream.{name}" for name in ("known", "queue", "enqueued", "finished", "freed", "enqueue", "waits_for", "step")),
    *(f"Event.{name}" for name in ("known", "stream", "at", "passed", "query", "copy")),
    *("Stream.now", "Graph.nodes"),
}
"""What the stand-in has for itself."""
PYTHONS = ("__dict__", "__weakref__", "__getattr__", "__loader__", "__spec__", "__annotations__")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    theirs = getattr(cupy, name)
    assert isinstance(theirs, cupy.ufunc) == (name in UFUNCS)
    assert [*misfits(signature_of_numpy(getattr(np, name), FUNCTIONS[name]), signature(theirs))] == []


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_arrays(name):
    ours = [*signature_of_numpy(getattr(np.ndarray, name), METHODS[name]).parameters.values()]
    assert [*misfits(inspect.Signature(ours[1:]), signature(getattr(cupy.ndarray, name)))] == []


def test_special_functions():
    assert [name for name in SPECIAL_FUNCTIONS if not isinstance(getattr(special, name), cupy.ufunc)] == []


def test_constants_are_numpys():
    differ = [name for name in CONSTANTS if getattr(cupy, name) is not getattr(np, name)]
    assert differ == ["result_type", "can_cast"]
    assert all(signature(getattr(cupy, name)) == signature(getattr(np, name)) for name in differ)


def compared(ours, theirs, path=""):
    """What of the stand-in is not so in CuPy: names, how functions and methods are called, kinds of errors."""
    for name, thing in vars(ours).items():
        place, there = f"{path}{name}", getattr(theirs, name, None)
        thing = thing.__func__ if isinstance(thing, staticmethod) else thing
        if thing is there or re.match("_[^_]", name) or name in PYTHONS or ".".join(place.split(".")[-2:]) in OWN:
            continue
        if not hasattr(theirs, name):
            yield f"no {place}"
        elif isinstance(thing, type) and issubclass(thing, Exception):
            if not issubclass(there, thing.__base__):
                yield f"{place} is no {thing.__base__.__name__}"
        elif callable(thing) and not name.startswith("__"):
            yield from (f"{place}: {misfit}" for misfit in misfits(signature(thing), signature(there)))
        if isinstance(thing, types.SimpleNamespace | type):
            yield from compared(thing, there, f"{place}.")


def test_the_rest_of_the_stand_in():
    with fake.installed() as module:
        cuda = module.cuda
        for thing in (cuda.Device(), cuda.Stream(), cuda.Event(), cuda.Graph([])):  # what they have once they are made
            assert [*compared(thing, type(thing), f"{type(thing).__name__}.")] == []
    assert [*compared(module, cupy)] == []
    assert [*compared(fake.MemoryPool, cupy.cuda.MemoryPool)] == []


GIVEN = {
    "_cupy": cupy,
    "get_default_memory_pool": cupy.cuda.MemoryPool,
    "get_default_pinned_memory_pool": cupy.cuda.PinnedMemoryPool,
    "get_current_stream": cupy.cuda.Stream,
    "record": cupy.cuda.Event,
    "end_capture": cupy.cuda.Graph,
}
"""What a function returns: a module, or an instance of a class."""
NAMED = {
    **dict.fromkeys(("stream", "self._stream", "caller"), cupy.cuda.Stream),
    **dict.fromkeys(("event", "self.in_use", "self._copied"), cupy.cuda.Event),
    "graph": cupy.cuda.Graph,
}
"""What is called so in files that call `gpubp.cuda`."""


def short(node):
    """A name, or the name of something and of its attribute."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else None


class Uses:
    """What a source file uses of CuPy."""

    def __init__(self, tree):
        nodes, names = [*ast.walk(tree)], {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        self.found, self.wrong = set(), set()
        self.known = {"cupy": cupy, "xp": cupy, **(NAMED if names & {"cuda", "_cupy"} else {})}
        for node in nodes:
            if isinstance(node, ast.Assign) and (meant := self.meant(node.value)) is not None:
                self.known[short(node.targets[0])] = meant
        for node in nodes:
            self.meant(node)

    def meant(self, node):
        """What an expression is; a class for an instance of it; None where that is not known."""
        if (known := self.known.get(short(node))) is not None:
            return known
        if isinstance(node, ast.Attribute) and node.attr == "module":
            return cupy if re.search(r"(device|target|Device\(.*\))$", ast.unparse(node.value)) else None
        if isinstance(node, ast.Attribute) and (base := self.meant(node.value)) is not None:
            name = f"{base.__name__.replace('cupy_backends.cuda.api', 'cupy.cuda')}.{node.attr}"
            self.found.add(name)
            if not hasattr(base, node.attr) and name not in MADE:
                self.wrong.add(f"line {node.lineno}: no {name}")
            return getattr(base, node.attr, None)
        if isinstance(node, ast.Call):
            function = self.meant(node.func)
            if function is not None:
                self.wrong |= {*self.misused(node, signature(function))}
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            return function if isinstance(function, type) else GIVEN.get(name)
        return None

    def misused(self, node, theirs):
        if any(isinstance(argument, ast.Starred) for argument in node.args) or not all(k.arg for k in node.keywords):
            return  # which arguments these are is not written there
        try:
            theirs.bind(*node.args, **{keyword.arg: keyword.value for keyword in node.keywords})
        except TypeError as error:
            yield f"line {node.lineno}: {ast.unparse(node)}: {error}"


def test_what_the_sources_use():
    found, wrong = set(), []
    for path in sorted(path for folder in ("gpubp", "benchmarks") for path in (ROOT / folder).rglob("*.py")):
        uses = Uses(ast.parse(path.read_text("utf-8")))
        found |= uses.found
        wrong += [f"{path.relative_to(ROOT)}, {said}" for said in uses.wrong]
    assert wrong == []
    assert {
        "cupy.matmul",
        "Stream.wait_event",
        "cupy.cuda.runtime.eventQuery",
        "MemoryPool.total_bytes",
        "Graph.launch",
    } <= found


@pytest.mark.parametrize(
    "wrong",
    [
        "xp.no_such(A)",
        "xp.take(A, rows, axis=0, mode='clip')",
        "_cupy().cuda.runtime.getDevices()",
        "network.device.module.cuda.Stream(blocking=False)",
        "pool = cupy.get_default_memory_pool()\npool.bytes()",
        "cuda.wait(xp.cuda.get_current_stream().record(event, 1))",
    ],
)
def test_a_wrong_use_is_seen(wrong):
    assert len(Uses(ast.parse(wrong)).wrong) == 1


# What `gpubp.faults` knows errors by.


def test_statuses():
    for status, (name, _, words) in STATUSES.items():
        error = cupy.cuda.runtime.CUDARuntimeError(status)
        assert (str(error), error.status) == (f"{name}: {words}", status)
    known = {int(status): status.name for status in runtime.cudaError_t}
    assert {*faults.LOST, faults.OUT_OF_MEMORY} <= {*known}
    assert known[faults.OUT_OF_MEMORY] == "cudaErrorMemoryAllocation"


def test_classes_of_errors():
    for kind in (
        cupy.cuda.memory.OutOfMemoryError,
        cupy.cuda.runtime.CUDARuntimeError,
        cupy.cuda.driver.CUDADriverError,
    ):
        assert kind.__name__ in faults._KINDS
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)


def test_errors_for_want_of_a_library(monkeypatch):
    with pytest.raises(RuntimeError) as caught:
        pathfinder.load_nvidia_dynamic_lib("cufftMp")  # which nobody has
    assert isinstance(caught.value, pathfinder.DynamicLibNotFoundError)
    assert faults.lacks_toolkit(caught.value)

    def find_nothing(name):
        raise caught.value

    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", find_nothing)
    for call in (
        lambda: libraries.__getattr__("cublas"),  # as CuPy's products do
        lambda: softlink.SoftLink("libnvrtc.so.0", "nvrtc", mandatory=True),
    ):
        with pytest.raises((ImportError, RuntimeError)) as caught_again:
            call()
        assert faults.lacks_toolkit(caught_again.value)


def test_errors_for_want_of_headers():
    code = (
        "import cupy; from cuda import pathfinder; from cupy._core import core\n"
        "pathfinder.find_nvidia_header_directory = cupy.cuda.get_cuda_path = lambda *_: None\n"
        "try: core.assemble_cupy_compiler_options(('--std=c++17',))\n"
        "except RuntimeError as error: print(error)"
    )  # in a process of its own: CuPy keeps what it has found
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert faults.lacks_toolkit(RuntimeError(said))


def test_where_libraries_are_found():
    assert [*signature(pathfinder.load_nvidia_dynamic_lib).parameters] == ["libname"]
    assert "abs_path" in pathfinder.LoadedDL.__annotations__
