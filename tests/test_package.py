"""What is installed: wheel, editable install and bare checkout all find the kernels, and bring no module too many."""

from __future__ import annotations

import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path.name for path in (ROOT / "kernels").glob("*.cu*"))
BENCHMARKS = {path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks").rglob("*.py")}
NEED_A_CHECKOUT = {name for name in BENCHMARKS if name.split("/")[-1].startswith(("test_", "conftest"))}
FIND_BENCHMARKS = "from gpubp.cli.bench import benchmarks_module as find; print(find('race').__file__)"
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
    benchmarks = {name.removeprefix("gpubp/") for name in names if name.startswith("gpubp/benchmarks/")}
    assert benchmarks == BENCHMARKS - NEED_A_CHECKOUT
    assert NEED_A_CHECKOUT


def test_the_wheel_works_in_a_clean_environment(wheel, clean_python, expected, tmp_path):
    run(clean_python, "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    package, seen = sources_seen_by(clean_python, tmp_path)
    assert ROOT not in package.parents
    assert seen == expected
    assert "gpubp" in run(clean_python.with_name("gpubp"), "--version", cwd=tmp_path)
    assert "CuPy is not installed" in run(clean_python, "-m", "gpubp", "info", cwd=tmp_path)
    for top_level in ("kernels", "benchmarks"):
        nowhere = f"import importlib.util; assert importlib.util.find_spec({top_level!r}) is None"
        run(clean_python, "-c", nowhere, cwd=tmp_path)
    assert ROOT not in Path(run(clean_python, "-c", FIND_BENCHMARKS, cwd=tmp_path)).parents
    bench = subprocess.run([clean_python, "-m", "gpubp", "bench"], capture_output=True, text=True, cwd=tmp_path)
    assert (bench.returncode, bench.stdout) == (1, "")
    assert bench.stderr.endswith("pip install 'gpubp[bench]'\n")

    # An editable install into the same environment takes the wheel's place.
    run(clean_python, "-m", "pip", "uninstall", "--quiet", "--yes", "gpubp", cwd=tmp_path)
    run(clean_python, "-m", "pip", "install", "--quiet", "--no-deps", "--editable", ROOT, cwd=tmp_path)
    package, seen = sources_seen_by(clean_python, tmp_path)
    assert package == ROOT / "gpubp" / "__init__.py"
    assert seen == expected
    assert run(clean_python, "-c", FIND_BENCHMARKS, cwd=tmp_path).strip() == str(ROOT / "benchmarks" / "race.py")


def test_a_bare_checkout_works(expected, tmp_path):
    package, seen = sources_seen_by(sys.executable, tmp_path, PYTHONPATH=str(ROOT))
    assert package == ROOT / "gpubp" / "__init__.py"
    assert seen == expected


def test_what_cupy_does_in_an_outdated_way_is_its_own_affair():
    for category in (DeprecationWarning, FutureWarning):
        for module in ("cupy", "cupy._core._routines", "cupyx.scipy.special", "cupy_backends.cuda"):
            warnings.warn_explicit("outdated", category, "file.py", 1, module)
        for module in ("gpubp.backend", "cupyish", "fake_cupy", "numpy"):
            with pytest.raises(category, match="outdated"):
                warnings.warn_explicit("outdated", category, "file.py", 1, module)
    with pytest.raises(UserWarning, match="slow"):
        warnings.warn_explicit("slow", UserWarning, "file.py", 1, "cupy")
