"""The array module: who owns an array, which device is meant, and what to say when it can't be had."""

from __future__ import annotations

import subprocess
import sys
import types

import numpy as np
import pytest
from fake_cupy.names import UFUNCS

import gpubp
from gpubp.backend import CPU, Device, as_array, device_of, resolve_device, why_no_cuda
from gpubp.cublas import clear_cache
from gpubp.errors import DataError, DeviceError, SettingError


def test_numpy_arrays_belong_to_numpy():
    assert gpubp.array_module(np.ones(2)) is np
    assert gpubp.array_module(np.ones(2), np.float32(1), np.ma.ones(2)) is np
    with pytest.raises(DeviceError, match=r"NumPy or CuPy array was expected, not builtins.list"):
        gpubp.array_module([1, 2])


def test_importing_gpubp_imports_numpy_alone():
    code = (
        "import sys; before = set(sys.modules); import gpubp; "
        "print(*sorted({n.partition('.')[0] for n in set(sys.modules) - before} - set(sys.stdlib_module_names)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) == {"gpubp", "numpy"}


def test_training_on_the_cpu_never_imports_cupy():
    code = (
        "import sys, numpy as np, gpubp; net = gpubp.mlp([2, 2], device='cpu'); "
        "gpubp.fit(net, np.ones((4, 2)), [0, 1, 0, 1], epochs=1); assert 'cupy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def no_cupy(monkeypatch):
    monkeypatch.delitem(sys.modules, "cupy", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def a_cupy(monkeypatch, count=None, error=None):
    """A CuPy that finds `count` devices, or none because of an error."""
    cupy = types.ModuleType("cupy")
    cupy.__version__ = "14.2.0"

    class CUDARuntimeError(RuntimeError):
        pass

    def device_count():
        if error:
            raise CUDARuntimeError(error)
        return count

    runtime = types.SimpleNamespace(getDeviceCount=device_count, CUDARuntimeError=CUDARuntimeError)
    runtime.streamQuery = lambda stream: 35  # cudaErrorInsufficientDriver, raw
    cupy.cuda = types.SimpleNamespace(runtime=runtime)
    cupy.ndarray = type("ndarray", (), {})
    monkeypatch.setitem(sys.modules, "cupy", cupy)


def test_without_cupy_it_says_how_to_install_it(no_cupy):
    assert "pip install 'gpubp[cuda13x]'" in why_no_cuda()
    assert resolve_device("auto") == CPU
    with pytest.raises(DeviceError, match=r"'cuda' was asked for, but CuPy is not installed.*device='cpu'"):
        resolve_device("cuda")


def test_cupy_without_a_driver_is_said_so(monkeypatch):
    a_cupy(monkeypatch, error="cudaErrorInsufficientDriver: CUDA driver version is insufficient")
    assert "no usable NVIDIA driver (cudaErrorInsufficientDriver" in why_no_cuda()
    assert "nvidia-smi" in why_no_cuda()
    assert resolve_device("auto") == CPU
    with pytest.raises(DeviceError, match="no usable NVIDIA driver"):
        gpubp.mlp([2, 2], device="cuda:0")


def test_cupy_that_cannot_be_imported_is_said_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "can't be imported" in why_no_cuda()
    assert resolve_device("auto") == CPU


def test_no_device_and_too_high_an_index_are_said_so(monkeypatch):
    a_cupy(monkeypatch, count=0)
    assert "shows no CUDA device" in why_no_cuda()
    a_cupy(monkeypatch, count=2)
    assert why_no_cuda() is None
    assert resolve_device("auto") == resolve_device("cuda") == Device("cuda", 0)
    assert resolve_device("cuda:1") == Device("cuda", 1)
    with pytest.raises(DeviceError, match=r"'cuda:2' was asked for, but this machine has 2 CUDA device"):
        resolve_device("cuda:2")


# A part of the CUDA toolkit is missing: errors as CuPy raises them.

NO_CUBLAS = 'Failure finding "libcublas.so.13 or libcublas.so.12": No such file: libcublas.so.13 or libcublas.so.12\n'
NO_COMPILER = {
    "Failed to find CUDA headers": RuntimeError(
        "Failed to find CUDA headers. Please install CUDA toolkit headers (e.g., pip install cupy-cuda12x[ctk]) or "
        "specify CUDA_PATH environment variable."
    ),
    'Failure finding "libnvrtc.so.13 or libnvrtc.so.12"': type("DynamicLibNotFoundError", (RuntimeError,), {})(
        'Failure finding "libnvrtc.so.13 or libnvrtc.so.12": No such file: libnvrtc.so.13 or libnvrtc.so.12\n'
    ),
    "CuPy failed to load libnvrtc.so.13": RuntimeError(
        "CuPy failed to load libnvrtc.so.13: OSError: libnvrtc.so.13: cannot open shared object file"
    ),
}
X, T = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
WITH_EXTRA = (
    r"cuda:0 can't be used: (.*)\. CuPy needs .* of CUDA 13: pip install 'cupy-cuda13x\[ctk\]' .*'gpubp\[cuda13x\]'"
)


def raises(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("said", NO_COMPILER)
@pytest.mark.parametrize("of", ["gpubp", "CuPy"])
def test_a_missing_compiler_is_told_with_the_way_out(fake_cupy, monkeypatch, said, of):
    net = gpubp.mlp([3, 4, 2], standardize=True, device="cuda")
    net.adapt(X)
    if of == "gpubp":
        monkeypatch.setattr(fake_cupy.RawModule, "get_function", raises(NO_COMPILER[said]))
    for name in UFUNCS if of == "CuPy" else ():  # it compiles kernels of its own
        monkeypatch.setattr(fake_cupy, name, raises(NO_COMPILER[said]))
    for call in (lambda: gpubp.fit(net, X, T, epochs=1), lambda: net.predict(X)):
        with pytest.raises(DeviceError, match=WITH_EXTRA) as caught:
            call()
        assert said in str(caught.value)


def test_a_missing_compiler_is_told_by_a_layer_alone(fake_cupy, monkeypatch):
    layer = gpubp.mlp([3, 4, 2], device="cuda").layers[1]
    monkeypatch.setattr(fake_cupy.RawModule, "get_function", raises(NO_COMPILER["Failed to find CUDA headers"]))
    with pytest.raises(DeviceError, match=WITH_EXTRA):
        layer.forward(fake_cupy.ones((3, 4)))


def test_a_missing_cublas_is_told_with_the_way_out(fake_cupy, monkeypatch):
    net = gpubp.mlp([3, 4, 2], device="cuda")
    monkeypatch.setitem(sys.modules, "nvmath.bindings.cublas", None)
    loader = types.SimpleNamespace(load_nvidia_dynamic_lib=raises(RuntimeError(NO_CUBLAS)))
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", loader)
    monkeypatch.setattr(fake_cupy.cuda.runtime, "runtimeGetVersion", lambda: 13020)
    monkeypatch.setattr(fake_cupy, "matmul", raises(ImportError(NO_CUBLAS)))
    clear_cache()
    for call in (lambda: gpubp.fit(net, X, T, epochs=1), lambda: net.predict(X)):
        with pytest.raises(DeviceError, match=WITH_EXTRA):
            call()


def test_other_errors_within_a_device_stay_themselves(fake_cupy):
    for error in (
        RuntimeError("of a layer of somebody's"),
        ImportError("no module of somebody's"),
        DeviceError("ours"),
    ):
        with pytest.raises(type(error)) as caught, Device("cuda").activate():
            raise error
        assert caught.value is error


def test_a_release_that_is_broken_is_refused(fake_cupy, monkeypatch):
    monkeypatch.setattr(fake_cupy, "__version__", "14.1.0")
    assert resolve_device("auto") == CPU
    with pytest.raises(
        DeviceError, match=r"'cuda' was asked for, but CuPy 14\.1\.0 is installed.*Install a later version"
    ):
        gpubp.mlp([2, 2], device="cuda")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "", "CUDA", None, 0])
def test_an_unknown_device_name_is_refused(name):
    with pytest.raises(SettingError, match="'cuda:1' or 'auto'"):
        resolve_device(name)


def test_devices_print_as_they_are_asked_for():
    assert [str(Device("cuda", 1)), str(CPU)] == ["cuda:1", "cpu"]
    assert resolve_device(CPU) is CPU


def test_arrays_on_the_host_are_shared_not_copied():
    X = np.ones((2, 3))
    assert as_array(X, CPU) is X
    assert gpubp.to_host(X) is X
    assert gpubp.to_device(X, "cpu") is X
    assert as_array(X, CPU, dtype=np.float32).dtype == np.float32


class Tensor:
    """Another library's array, which speaks DLPack and nothing else."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **keywords):
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


def test_dlpack_shares_memory():
    X = np.arange(6.0).reshape(2, 3)
    taken = as_array(Tensor(X), CPU)
    assert np.shares_memory(taken, X)
    np.testing.assert_array_equal(gpubp.mlp([3, 2]).forward(Tensor(X)), gpubp.mlp([3, 2]).forward(X))


@pytest.mark.parametrize("data", [["a"], [[1], [2, 3]], np.array([1j]), {"a": 1}, np.array(["1"])])
def test_what_is_no_array_of_numbers_is_named(data):
    with pytest.raises(DataError, match="my data"):
        as_array(data, CPU, name="my data")


def test_data_on_a_device_without_cupy_says_what_is_missing(no_cupy):
    class OnDevice:
        __cuda_array_interface__: dict = {}  # noqa: RUF012 - a protocol's attribute

    with pytest.raises(DeviceError, match="X is on a CUDA device, but CuPy is not installed"):
        as_array(OnDevice(), CPU, name="X")


def test_device_of_a_numpy_array_is_the_cpu():
    assert device_of(np.ones(1)) == CPU
