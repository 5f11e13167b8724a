"""Finds the benchmarks: inside the package in a wheel, beside it in a checkout."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from gpubp.errors import GpubpError


def benchmarks_module(name: str) -> ModuleType:
    """A module of the benchmarks, ``gpubp.benchmarks.<name>``.

    A wheel brings them inside the package; in a checkout they lie beside it and are imported under the same name.

    Raises:
        GpubpError: They are in neither place.
    """
    package = "gpubp.benchmarks"
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        folder = Path(__file__).resolve().parents[1] / "benchmarks"
        first = folder / "__init__.py"
        spec = importlib.util.spec_from_file_location(package, first, submodule_search_locations=[str(folder)])
        if not first.is_file() or spec is None or spec.loader is None:
            raise GpubpError(f"this installation has no benchmarks: neither {package} nor {folder}. Reinstall gpubp")
        sys.modules[package] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return importlib.import_module(f"{package}.{name}")
