"""What is installed: wheel, editable install and bare checkout all find the kernels, and bring no module too many."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path.name for path in (ROOT / "kernels").glob("*.cu*"))
PRINT_SOURCES = (
    "import hashlib, gpubp, gpubp.cuda as cuda; print(gpubp.__file__);"
    "[print(n, hashlib.sha256(cuda.read(n).encode()).hexdigest()) for n in {names!r}]"
)


def run(*command, cwd, **environment):
    """Run a command and return what it prints; its own words are shown where it fails."""
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=cwd, env=environment or None)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def sources_seen_by(python, cwd, **environment):
    """The package's file, and each kernel source as that Python reads it, hashed."""
    package, *lines = run(python, "-c", PRINT_SOURCES.format(names=SOURCES), cwd=cwd, **environment).splitlines()
    return Path(package), dict(line.split() for line in lines)


@pytest.fixture(scope="module")
def expected():
    """The sources as they lie in the checkout, hashed."""
    import hashlib

    assert any(name.endswith(".cu") for name in SOURCES)
    return {name: hashlib.sha256((ROOT / "kernels" / name).read_bytes()).hexdigest() for name in SOURCES}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory):
    """The Python of a new, empty virtual environment."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    return next(path for path in (folder / "bin/python", folder / "Scripts/python.exe") if path.exists())


def test_a_wheel_holds_the_package_and_nothing_beside_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"gpubp"}
    assert {"gpubp/py.typed", *(f"gpubp/kernels/{name}" for name in SOURCES)} <= set(names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_works_in_a_clean_environment(wheel, clean_python, expected, tmp_path):
    run(clean_python, "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    package, seen = sources_seen_by(clean_python, tmp_path)
    assert ROOT not in package.parents
    assert seen == expected
    assert "gpubp" in run(clean_python.with_name("gpubp"), "--version", cwd=tmp_path)
    assert "CuPy is not installed" in run(clean_python, "-m", "gpubp", "info", cwd=tmp_path)
    run(clean_python, "-c", "import importlib.util; assert importlib.util.find_spec('kernels') is None", cwd=tmp_path)

    # An editable install into the same environment takes the wheel's place.
    run(clean_python, "-m", "pip", "uninstall", "--quiet", "--yes", "gpubp", cwd=tmp_path)
    run(clean_python, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", ROOT, cwd=tmp_path)
    package, seen = sources_seen_by(clean_python, tmp_path)
    assert package == ROOT / "gpubp" / "__init__.py"
    assert seen == expected


def test_a_bare_checkout_works(expected, tmp_path):
    package, seen = sources_seen_by(sys.executable, tmp_path, PYTHONPATH=str(ROOT))
    assert package == ROOT / "gpubp" / "__init__.py"
    assert seen == expected
