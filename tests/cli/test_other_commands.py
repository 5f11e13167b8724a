"""`gpubp check`, `gpubp info`, help and version."""

from __future__ import annotations

import os
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import refused, run

import gpubp


@pytest.mark.parametrize(
    "options", [[], ["iris", "--layers", "4", "--activation", "relu"], ["diabetes", "--seed", "2"]]
)
def test_check_agrees(folder, options):
    outcome = run("check", *options)
    assert outcome.exit_code == 0
    assert outcome.stdout.startswith("network: ")
    assert "gradients agree: largest error" in outcome.stdout


def test_check_takes_a_csv(pets):
    outcome = run("check", pets, "--target", "kind", "--layers", "3")
    assert outcome.exit_code == 0
    assert "network: 4 -> 3 tanh -> 3, softmax_cross_entropy, 27 parameters, 6 rows" in outcome.stdout


@pytest.mark.usefixtures("numpy_ops")
def test_check_finds_a_wrong_gradient(monkeypatch):
    monkeypatch.setattr(gpubp.Tanh, "derivative", lambda self, xp, saved, out: xp.subtract(1, saved, out=out))
    outcome = run("check")
    assert outcome.exit_code == 1
    assert "GRADIENTS DISAGREE" in outcome.stdout


def test_info_says_what_there_is():
    lines = dict(line.split(":", 1) for line in run("info").stdout.splitlines() if not line.startswith("cuda:"))
    assert lines["gpubp"].strip() == gpubp.__version__
    assert lines["NumPy"].strip() == np.__version__
    assert lines["CPU cores"].strip().startswith(str(os.cpu_count()))
    assert lines["BLAS"].strip()
    assert lines["memory"].strip().endswith("GiB free")
    reason = gpubp.why_no_cuda()
    assert lines["GPU"].strip() == ("used" if reason is None else f"not used: {reason}")


def test_info_lists_devices_with_their_memory(monkeypatch):
    class Card:
        def __init__(self, index):
            self.index = index

        __enter__ = __exit__ = lambda self, *_: None

    runtime = SimpleNamespace(
        getDeviceCount=lambda: 2,
        getDeviceProperties=lambda index: {"name": f"Card {index}".encode()},
        memGetInfo=lambda: (3 * 2**30, 8 * 2**30),
        runtimeGetVersion=lambda: 13000,
        driverGetVersion=lambda: 13010,
    )
    stand_in = SimpleNamespace(__version__="14.0", cuda=SimpleNamespace(runtime=runtime, Device=Card))
    monkeypatch.setitem(sys.modules, "cupy", stand_in)
    lines = run("info").stdout.splitlines()
    assert "CuPy:           14.0, CUDA runtime 13000, driver 13010" in lines
    assert "cuda:1:         Card 1, 3.0 of 8.0 GiB free" in lines
    assert "device 'auto':  cuda:0" in lines
    assert "GPU:            used" in lines


def parts():
    """What `gpubp info` says of parts of CUDA that do not fit."""
    return [line.split(":", 1)[1].strip() for line in run("info").stdout.splitlines() if line.startswith("CUDA parts:")]


@pytest.fixture
def without_more(fake_cupy, monkeypatch):
    """The stand-in for CuPy, without nvmath-python and cuda-pathfinder."""
    for name in ("nvmath.bindings.cublas", "cuda.pathfinder"):
        monkeypatch.setitem(sys.modules, name, None)
    return fake_cupy


def pathfinder_finds(monkeypatch, **paths):
    def load(name):
        if paths[name] is None:
            raise RuntimeError(f'Failure finding "lib{name}.so.13 or lib{name}.so.12": No such file\n')
        return SimpleNamespace(abs_path=paths[name])

    monkeypatch.setitem(sys.modules, "cuda.pathfinder", SimpleNamespace(load_nvidia_dynamic_lib=load))


def test_info_names_libraries_that_do_not_fit(without_more, monkeypatch):
    pathfinder_finds(monkeypatch, nvrtc="/nvidia/cu13/lib/libnvrtc.so.13", cublas=r"C:\cu13\cublas64_13.dll")
    assert parts() == []
    pathfinder_finds(monkeypatch, nvrtc=r"C:\cu12\nvrtc64_120_0.dll", cublas="/nvidia/cublas/lib/libcublas.so.12.8.4")
    nvrtc, cublas = parts()
    assert (
        nvrtc == r"CuPy is of CUDA 13, but C:\cu12\nvrtc64_120_0.dll is found first: uninstall the packages of CUDA 12"
    )
    assert "but /nvidia/cublas/lib/libcublas.so.12.8.4 is found first" in cublas
    pathfinder_finds(monkeypatch, nvrtc=None, cublas="/lib/libcublas.so.13")
    assert parts() == ["nvrtc is not found: pip install 'cupy-cuda13x[ctk]'"]
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    assert parts() == []


@pytest.mark.parametrize(("driver", "told"), [(12090, True), (13000, False), (14000, False), (0, False)])
def test_info_names_a_driver_that_is_too_old(without_more, monkeypatch, driver, told):
    def device_count():
        raise runtime.CUDARuntimeError(35)

    runtime = without_more.cuda.runtime
    monkeypatch.setattr(runtime, "driverGetVersion", lambda: driver)
    if driver < 13000:
        monkeypatch.setattr(runtime, "getDeviceCount", device_count)
    said = "CuPy is of CUDA 13, the driver of 12: update the driver, or install cupy-cuda12x"
    assert parts() == [said] * told


@pytest.mark.parametrize("imported", [True, False])
def test_info_names_two_cupy_wheels(without_more, monkeypatch, tmp_path, imported):
    if not imported:
        monkeypatch.setitem(sys.modules, "cupy", None)
    for wheel in ("cupy-cuda13x", "cupy-cuda12x"):
        assert parts() == []
        about = tmp_path / f"{wheel.replace('-', '_')}-14.2.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {wheel}\nVersion: 14.2.0\n")
        (about / "top_level.txt").write_text("cupy\ncupy_backends\ncupyx\n")
        monkeypatch.syspath_prepend(str(tmp_path))
    said = "cupy-cuda12x and cupy-cuda13x overwrite each other's files: uninstall all of them, then install one"
    assert parts() == [said]


def test_version_help_and_wrong_commands(folder):
    assert run("--version").stdout == f"gpubp {gpubp.__version__}\n"
    assert all(command in run().stdout for command in ("train", "predict", "check", "info"))
    help_text = run("train", "--help").stdout
    named = set(re.findall(r"^  --([a-z0-9-]+) ", help_text, re.MULTILINE))
    assert named >= {"target", "task", "layers", "activation", "epochs", "batch-size", "learning-rate", "optimizer"}
    assert named >= {"device", "seed", "l2", "held-out", "dtype", "out", "quiet"}
    assert "Did you mean 'train'?" in refused("trian", code=2)
    assert "Missing argument" in refused("train", code=2)
