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


def test_version_help_and_wrong_commands(folder):
    assert run("--version").stdout == f"gpubp {gpubp.__version__}\n"
    assert all(command in run().stdout for command in ("train", "predict", "check", "info"))
    help_text = run("train", "--help").stdout
    named = set(re.findall(r"^  --([a-z0-9-]+) ", help_text, re.MULTILINE))
    assert named >= {"target", "task", "layers", "activation", "epochs", "batch-size", "learning-rate", "optimizer"}
    assert named >= {"device", "seed", "l2", "held-out", "dtype", "out", "quiet"}
    assert "Did you mean 'train'?" in refused("trian", code=2)
    assert "Missing argument" in refused("train", code=2)
