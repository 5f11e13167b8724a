"""Model files: everything comes back, nothing is half-written, and foreign files are named."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import gpubp
from gpubp import checkpoint
from gpubp.errors import GpubpError, ModelFileError, ShapeError
from gpubp.layers.base import Layer
from gpubp.losses.base import Loss


def every_layer():
    """A network with every example of every registered layer in it; dense layers go between, where widths differ."""
    cases = [case for _, kind in sorted(Layer.by_name.items()) for case in kind.examples()]
    first, n_in = next(case for case in cases if case[0].index_columns)  # one alone can be the first
    layers, width = [first], first.output_width(n_in)
    for layer, n_in in cases:
        if layer.index_columns:
            continue
        if n_in != width:
            layers.append(gpubp.Dense(width, n_in, gpubp.TruncatedNormal(0.2)))
        layers.append(layer)
        width = layer.output_width(n_in)
    return [*layers, gpubp.Dense(width, 2)]


@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", [loss for kind in Loss.by_name.values() for loss in kind.examples()], ids=repr)
def test_everything_comes_back(loss, dtype, members, tmp_path):
    net = gpubp.Network(every_layer(), loss, dtype=dtype, members=members, l2=0.1, rng=3)
    for layer in net.layers:
        layer.constants = {name: array.astype(dtype) for name, array in layer.constants.items()}
    path = tmp_path / "model.safetensors"
    gpubp.save(net, path, metadata={"classes": ["a", "b"], "é": 1})
    again = gpubp.load(path)
    assert repr(again) == repr(net)
    assert again.l2 == net.l2
    np.testing.assert_array_equal(again.theta, net.theta)
    X = net.layers[0].example_inputs(np.random.default_rng(0), (5, net.n_in))
    np.testing.assert_array_equal(again.predict(X), net.predict(X))
    assert gpubp.load_metadata(path) == {"classes": ["a", "b"], "é": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def dropping(members=None):
    layers = [gpubp.Standardize(3), gpubp.Dense(3, 6), gpubp.Tanh(), gpubp.Dropout(0.3), gpubp.BatchNorm(6)]
    return gpubp.Network([*layers, gpubp.Dense(6, 2)], "squared_error", members=members, device="cpu", rng=5)


@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("executor", ["cpu_kernels", "numpy_ops", "fake_cupy"])
def test_a_training_that_was_saved_goes_on_as_if_it_had_not_been(executor, members, tmp_path, request):
    request.getfixturevalue(executor)
    rng = np.random.default_rng(0)
    X, T = rng.normal(size=(40, 3)), rng.normal(size=(40, 2))
    settings = {"epochs": 2, "batch_size": 7, "progress": False}
    net, optimizer = dropping(members), gpubp.Adam(0.03, average=0.9)
    gpubp.fit(net, X, T, optimizer=optimizer, **settings)
    gpubp.save(net, tmp_path / "m")
    kept = optimizer.snapshot()
    history = gpubp.fit(net, X, T, optimizer=optimizer, **settings)
    for again in (gpubp.Adam(0.03, average=0.9), optimizer):
        loaded = gpubp.load(tmp_path / "m", device="cuda" if executor == "fake_cupy" else "cpu")
        assert (loaded.epochs_trained, loaded.draws.seed, loaded.draws.steps) == (2, net.draws.seed, 12)
        again.reset()
        again.restore(kept)
        if executor == "fake_cupy":  # rounds in another way
            gpubp.fit(loaded, X, T, optimizer=again, **settings)
            np.testing.assert_allclose(gpubp.to_host(loaded.theta), net.theta, atol=1e-4)
            continue
        assert gpubp.fit(loaded, X, T, optimizer=again, **settings)["loss"] == history["loss"]
        assert history["epoch"] == [3, 4]
        for mine, expected in zip((loaded.theta, *loaded.statistics), (net.theta, *net.statistics), strict=True):
            np.testing.assert_array_equal(mine, expected)
    again.reset()
    again.restore(kept)
    with pytest.raises(ShapeError, match="snapshot's M is float32 .* one of another network"):
        gpubp.fit(gpubp.mlp([3, 2], loss="squared_error", device="cpu"), X, T, optimizer=again, **settings)


def with_architecture(path, change):
    """The model file with another architecture."""
    with safe_open(path, framework="numpy") as file:
        texts, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    architecture = json.loads(texts["architecture"])
    change(architecture)
    save_file(tensors, path, metadata={**texts, "architecture": json.dumps(architecture)})
    return path


def test_a_file_from_before_there_was_a_count_of_epochs_is_read(tmp_path):
    net = dropping()
    gpubp.save(net, tmp_path / "m")

    def older(architecture):
        for name in ("epochs_trained", "draws", "matmul_precision"):
            del architecture[name]

    again = gpubp.load(with_architecture(tmp_path / "m", older), device="cpu")
    assert (again.epochs_trained, again.draws.steps) == (0, 0)
    np.testing.assert_array_equal(again.theta, net.theta)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs_trained", -1),
        ("epochs_trained", 1.5),
        ("epochs_trained", True),
        ("draws", {"seed": -1, "steps": 0}),
        ("draws", {"seed": 0, "steps": 2**63}),
        ("draws", {"seed": 2**64, "steps": 0}),
        ("draws", {"seed": 0}),
        ("draws", 7),
    ],
)
def test_a_wrong_count_of_epochs_or_draws_is_named(name, value, tmp_path):
    gpubp.save(dropping(), tmp_path / "m")
    path = with_architecture(tmp_path / "m", lambda architecture: architecture.update({name: value}))
    with pytest.raises(ModelFileError, match="its architecture can't be read"):
        gpubp.load(path)


def test_a_model_file_is_plain_safetensors_with_json(tmp_path):
    net = gpubp.mlp([3, 2], standardize=True)
    net.adapt(np.random.default_rng(0).normal(size=(5, 3)))
    gpubp.save(net, tmp_path / "m")
    assert set(load_file(tmp_path / "m")) == {"0.mean", "0.scale", "1.W", "1.b"}


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    gpubp.save(gpubp.mlp([3, 2], rng=0), path)
    kept = path.read_bytes()

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GpubpError, match=r"can't write .*model.safetensors: No space left"):
        gpubp.save(gpubp.mlp([3, 2], rng=1), path)
    assert path.read_bytes() == kept
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_write_that_really_fails_leaves_the_old_file_too(tmp_path):
    """A process that may write 1000 bytes to a file at most: the operating system itself says no."""
    path = tmp_path / "model.safetensors"
    gpubp.save(gpubp.mlp([3, 2], rng=0), path)
    kept = path.read_bytes()
    code = (
        "import resource, signal, sys, gpubp; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "net = gpubp.mlp([300, 20], rng=1); gpubp.save(net, sys.argv[1] + '.warm');"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); gpubp.save(net, sys.argv[1])"
    )
    result = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert "can't write" in result.stderr
    assert "File too large" in result.stderr
    assert path.read_bytes() == kept
    assert {p.name for p in tmp_path.iterdir()} == {"model.safetensors", "model.safetensors.warm"}


def test_a_link_is_followed_and_what_is_no_file_is_left_alone(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "model")
    gpubp.save(gpubp.mlp([3, 2]), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there" / "model").is_file()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(GpubpError, match="no regular file"):
        gpubp.save(gpubp.mlp([3, 2]), tmp_path / "pipe")


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3"])
@pytest.mark.parametrize("texts", [{}, {"format": "gpubp", "architecture": "{}"}])
def test_numbers_that_numpy_does_not_have_are_named(dtype, texts, tmp_path):
    size = 4 if dtype == "BF16" else 2
    header = json.dumps({"a": {"dtype": dtype, "shape": [2], "data_offsets": [0, size]}, "__metadata__": texts})
    content = len(header).to_bytes(8, "little") + header.encode() + bytes(size)
    (tmp_path / "model").write_bytes(content)
    with pytest.raises(ModelFileError, match="an array can't be read" if texts else "not a model that gpubp saved"):
        gpubp.load(tmp_path / "model")


def test_files_get_the_mode_that_plain_writing_gives(tmp_path):
    gpubp.save(gpubp.mlp([3, 2]), tmp_path / "model")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "plain").stat().st_mode


def bad_file(path, kind):
    """Write a file that is not a good model; the name says how."""
    net = gpubp.mlp([3, 2], standardize=True)
    net.adapt(np.random.default_rng(0).normal(size=(5, 3)))
    gpubp.save(net, path)
    tensors = load_file(path)
    texts = checkpoint._read(path)[0]
    if kind == "missing":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("a,b\n1,2\n" * 20)
    elif kind == "directory":
        path.unlink()
        path.mkdir()
    elif kind == "truncated":
        path.write_bytes(path.read_bytes()[:-8])
    elif kind == "foreign":
        save_file(tensors, path, metadata={"format": "pt"})
    elif kind == "no metadata":
        save_file(tensors, path)
    else:
        architecture = json.loads(texts["architecture"])
        if kind == "later version":
            architecture["version"] = 99
        elif kind == "unknown layer":
            architecture["layers"][0]["name"] = "Attention"
        elif kind == "broken config":
            architecture["layers"][1]["config"] = {"width": 3}
        elif kind == "parameter missing":
            del tensors["1.b"]
        elif kind == "wrong shape":
            tensors["1.b"] = np.zeros(7, "f4")
        elif kind == "array too many":
            tensors["9.W"] = np.zeros(7, "f4")
        elif kind == "array of an unknown name":
            tensors["1.V"] = np.zeros(7, "f4")
        elif kind == "constant of a wrong shape":
            tensors["0.mean"] = np.zeros(7, "f4")
        elif kind == "constant missing":
            del tensors["0.mean"]
        texts["architecture"] = "{" if kind == "no json" else json.dumps(architecture)
        save_file(tensors, path, metadata=texts)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no such file"),
        ("empty", "not a complete safetensors file"),
        ("text", "not a complete safetensors file"),
        ("directory", "can't read|not a complete"),
        ("truncated", "not a complete safetensors file.*train and save it again"),
        ("foreign", "not a model that gpubp saved"),
        ("no metadata", "not a model that gpubp saved"),
        ("later version", "version 99.*reads 1"),
        ("unknown layer", "unknown layer 'Attention'"),
        ("broken config", "architecture can't be read"),
        ("no json", "architecture can't be read"),
        ("parameter missing", "1.b is missing"),
        ("wrong shape", r"1.b has shape \(7,\).*wants \(2,\)"),
        ("array too many", "'9.W' belongs to no layer"),
        ("array of an unknown name", "'1.V' belongs to no layer"),
        ("constant of a wrong shape", r"0.mean has shape \(7,\)"),
        ("constant missing", "0.mean is missing"),
    ],
)
def test_a_bad_file_is_named(kind, words, tmp_path):
    path = tmp_path / "model.safetensors"
    bad_file(path, kind)
    with pytest.raises((ModelFileError, GpubpError), match=words) as caught:
        gpubp.load(path)
    assert "model.safetensors" in str(caught.value)
