"""Libraries that are outside oracles: skipped where they are missing, unless they were promised."""

from __future__ import annotations

import importlib
import os

import pytest


def required(module, setting):
    """An outside oracle; the whole test file is skipped without it, unless the setting is 1."""
    try:
        return importlib.import_module(module)
    except ImportError:
        if os.environ.get(setting) == "1":
            raise
        pytest.skip(f"{module}, the outside oracle, is not installed; CI installs it", allow_module_level=True)
