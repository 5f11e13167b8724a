"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import run, write_csv


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def pets(folder):
    """A CSV file whose class depends on a number and a category."""
    rng = np.random.default_rng(0)
    weight, colour = rng.normal(20, 5, 200), rng.choice(["red", "green", "blue"], 200)
    kind = np.where(colour == "red", "fox", np.where(weight > 20, "dog", "cat"))
    return write_csv(folder / "pets.csv", {"weight": weight, "colour": colour, "kind": kind})


@pytest.fixture
def model(pets):
    """A model of the pets."""
    run("train", pets, "--target", "kind", "--quiet", "--out", "pets.safetensors")
    return Path("pets.safetensors")
