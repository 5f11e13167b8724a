"""The README says what is true: its two commands, its Python, its list of names."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from rule_evaluator import evaluate_formula, evaluate_index_form

import gpubp
from gpubp.gradcheck import compare
from gpubp.layers.base import Layer

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(title):
    """The text under a heading."""
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)[1]


def blocks(text, language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def test_the_quickstart_is_two_commands_of_one_line_each():
    train, test = (block.strip() for block in blocks(section("Quickstart"), "bash"))
    assert "\n" not in train + test
    assert train.endswith("gpubp train digits")
    assert "[test]" in test
    assert test.endswith("pytest -n auto")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("code", blocks(README, "python"))
def test_every_python_example_runs(code, device, tmp_path, monkeypatch, request):
    if device == "cuda":
        request.getfixturevalue("fake_cupy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Layer, "by_name", dict(Layer.by_name))  # an example may add a layer
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_the_layer_that_it_adds_is_right(monkeypatch):
    monkeypatch.setattr(Layer, "by_name", dict(Layer.by_name))
    scope = {"__name__": "readme"}
    exec(blocks(section("How to add a layer"), "python")[0], scope)
    layer, (X, dL_dY) = scope["Softsign"](), np.random.default_rng(0).normal(size=(2, 5, 3))
    Y, saved = layer.forward(X)
    np.testing.assert_allclose(Y, X / (1 + np.abs(X)), rtol=1e-15)
    dL_dX, (rule,) = layer.backward(dL_dY, saved), layer.rules
    for evaluate in (evaluate_formula, evaluate_index_form):
        np.testing.assert_allclose(evaluate(rule, {"X": X, "Y": Y, "dL_dY": dL_dY}), dL_dX, atol=1e-10)
    assert compare(lambda: (layer.forward(X)[0] * dL_dY).sum(), X, dL_dX, "X").error <= 1e-7


def test_the_extras_that_it_names_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {
        extra
        for group in re.findall(r"gpubp\[([\w,]+)\]|'\.\[([\w,]+)\]'", README)
        for extra in ",".join(group).split(",")
    }
    assert named - {""} <= set(project["optional-dependencies"])
    assert {"cuda12x", "cuda13x", "test"} <= named


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == gpubp.__version__
    assert f"## {gpubp.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_all_public_names_are_there_and_documented():
    for name in gpubp.__all__:
        assert getattr(gpubp, name).__doc__, name
