"""The machine's ceilings are what they say: the best of several, of a copy of everything and of a whole product."""

from __future__ import annotations

import importlib
import subprocess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from gpubp.errors import DeviceError, SettingError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def ceilings(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, with little to copy and to multiply."""
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("benchmarks.ceilings")
    monkeypatch.setattr(module, "COPY_BYTES", dict.fromkeys(("cpu", "cuda"), 2**16))
    monkeypatch.setattr(module, "CACHED_COPY_BYTES", 2**12)
    monkeypatch.setattr(module, "PRODUCT_WIDTH", dict.fromkeys(("cpu", "cuda"), 32))
    monkeypatch.setattr(module.machine, "last_level_cache_bytes", lambda: 0)
    return module


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.machine")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_rates_are_measured(ceilings, monkeypatch, dtype):
    monkeypatch.setattr(ceilings.machine, "last_level_cache_bytes", lambda: 2**14)
    found = ceilings.measure("cpu", dtype, seconds=0.01)
    # Slower than this, or faster, is no machine: the figure would be off by its unit.
    assert 1e6 < found.flops_per_second < 1e15
    assert 1e6 < found.bytes_per_second < 1e14
    assert 1e6 < found.cache_bytes_per_second < 1e15


@pytest.mark.usefixtures("fake_cupy")
def test_a_device_is_measured_with_its_own_module(ceilings):
    found = ceilings.measure("cuda", "float32", seconds=0.01)
    assert found.flops_per_second > 0
    assert found.bytes_per_second > 0
    assert (found.cache_bytes_per_second, found.cache_bytes) == (None, 0)


def test_what_is_counted(ceilings, monkeypatch):
    """A copy reads and writes each byte; a product of width n takes n^3 multiplications and as many additions."""
    monkeypatch.setattr(ceilings, "_best", lambda part, seconds: 0.5)
    monkeypatch.setattr(ceilings.machine, "usable_cores", lambda: 3)
    found = ceilings.measure("cpu", "float32")
    assert found.bytes_per_second == 2 * 2**16 / 0.5
    assert (found.cache_bytes_per_second, found.cache_bytes) == (None, 0)  # nobody knows what fits in them
    assert found.flops_per_second == 2 * 32**3 / 0.5
    monkeypatch.setattr(ceilings.machine, "last_level_cache_bytes", lambda: 2**15)  # more is copied than it holds
    found = ceilings.measure("cpu", "float32")
    assert found.bytes_per_second == 2 * 4 * 2**15 / 0.5
    assert (found.cache_bytes_per_second, found.cache_bytes) == (3 * 2 * 2**12 / 0.5, 2**15)


def test_the_product_is_the_library_s_own_in_the_given_dtype(ceilings, monkeypatch):
    seen = []

    def matmul(A, B, out, *, precision):
        seen.append((A.shape, B.shape, out.shape, A.dtype, B.dtype, out.dtype, precision))
        return np.matmul(A, B, out=out)

    monkeypatch.setattr(ceilings.gemm, "matmul", matmul)
    ceilings.measure("cpu", "float64", seconds=0.01)
    assert set(seen) == {((32, 32),) * 3 + (np.dtype("float64"),) * 3 + ("float32",)}
    seen.clear()
    ceilings.measure("cpu", "float32", seconds=0.01, precision="tf32")
    assert set(seen) == {((32, 32),) * 3 + (np.dtype("float32"),) * 3 + ("tf32",)}


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_copy_in_threads_copies_everything(ceilings, threads):
    source, target = np.random.default_rng(0).normal(size=1001), np.zeros(1001)
    with ceilings._copy_in_threads(source, target, threads) as copy:
        copy()
    np.testing.assert_array_equal(target, source)


def test_a_ceiling_is_the_best_of_its_repetitions(ceilings, monkeypatch):
    monkeypatch.setattr(ceilings, "block_of", lambda part: (4, 0.4))
    blocks = iter([0.3, 0.2, 0.5])
    monkeypatch.setattr(ceilings, "seconds_of", lambda part, times: next(blocks))
    monkeypatch.setattr(ceilings, "FEWEST_BLOCKS", 4)
    ran = []
    assert ceilings._best(ran.append, seconds=0) == 0.2 / 4
    assert ran == [1]  # once before anything is timed


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dtype": "float16"}, SettingError, r"dtype='float16': use 'float32' or 'float64'"),
        ({"precision": "half"}, SettingError, r"precision='half': use one of float32, tf32, bf16"),
        ({"seconds": 0}, SettingError, r"seconds=0: a positive number is needed"),
        ({"seconds": float("nan")}, SettingError, r"seconds=nan"),
        ({"device": "tpu"}, SettingError, r"unknown device 'tpu'"),
        ({"device": "cuda"}, DeviceError, r"device 'cuda' was asked for"),
    ],
)
def test_bad_settings_are_refused(ceilings, arguments, error, message):
    with pytest.raises(error, match=message):
        ceilings.measure(**arguments)


def test_caches_that_cores_share_count_once(machine, monkeypatch, tmp_path):
    """Four usable cores in pairs, each pair with one cache of level 3; a fifth core is not ours."""
    shared = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3", 4: "4"}
    for core, sharing in shared.items():
        for index, (level, size, cores) in enumerate([(1, "48K", core), (2, "1M", core), (3, "32768K", sharing)]):
            cache = tmp_path / f"cpu{core}" / "cache" / f"index{index}"
            cache.mkdir(parents=True)
            for name, text in (("level", level), ("size", size), ("shared_cpu_list", cores)):
                (cache / name).write_text(f"{text}\n")
    monkeypatch.setattr(machine, "CORES", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert machine.last_level_cache_bytes() == 2 * 32 * 2**20
    assert machine.usable_cores() == 4


def test_a_system_that_tells_no_caches(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CORES", tmp_path)
    assert machine.last_level_cache_bytes() == 0


def test_both_libraries_of_blas_are_told_apart(machine):
    pools = [
        {
            "internal_api": "openblas",
            "version": version,
            "num_threads": 2,
            "filepath": f"/somewhere/site-packages/{folder}/libopenblas.so",
            "architecture": "Zen",
        }
        for version, folder in (("1.1", "numpy.libs"), ("2.2", "scipy.libs"), ("3.3", "lib"))
    ]
    assert machine._pools_of("numpy", pools) == "openblas 1.1, 2 threads, Zen kernels"
    assert machine._pools_of("scipy", pools) == "openblas 2.2, 2 threads, Zen kernels"
    assert machine._pools_of("scipy", pools[::2]) == "openblas 3.3, 2 threads, Zen kernels"  # one for all
    assert machine._pools_of("scipy", pools[:1]) == "none that threadpoolctl knows"


def test_the_facts_name_scipy_and_its_blas(machine):
    threadpoolctl = pytest.importorskip("threadpoolctl")
    found = machine.facts()
    assert found["SciPy"] == importlib.import_module("scipy").__version__
    versions = {pool["version"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}
    assert any(version in found["BLAS of SciPy"] for version in versions)


def test_a_checkout_tells_its_commit(machine, monkeypatch, tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
        done = subprocess.run(
            ["git", "-C", str(tmp_path), *who, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    source = tmp_path / "gpubp" / "__init__.py"
    source.parent.mkdir()
    source.write_text("")
    monkeypatch.setattr(machine.gpubp, "__file__", str(source))
    version = machine.gpubp.__version__
    assert machine._gpubp() == version
    git("init")
    assert machine._gpubp() == f"{version}, a checkout whose commit git does not tell"  # there is none yet
    git("add", ".")
    git("commit", "-m", "first")
    assert machine._gpubp() == f"{version}, commit {git('rev-parse', '--short=12', 'HEAD')}"
    source.write_text("# changed")
    assert machine._gpubp().endswith(" and changes")
