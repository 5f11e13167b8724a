"""`RowsOf`: training on some rows of an array is training on a copy of them."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest

import gpubp
from gpubp.data import minibatches
from gpubp.errors import DataError
from gpubp.layers.standardize import Standardize

DTYPES = ["uint8", "float16", "float32", "float64"]


def problem(dtype, members=None, rows=97):
    """Inputs, class indices and example weights."""
    rng = np.random.default_rng(0)
    X = (rng.random((*([] if members is None else [members]), rows, 7)) * 200).astype(dtype)
    return X, rng.integers(0, 3, rows), rng.random(rows)


def trained(X, T, w, validation, device="cpu", members=None, **settings):
    """The weights and the measured losses of a training."""
    net = gpubp.mlp([7, 8, 3], standardize=True, rng=0, device=device, members=members)
    history = gpubp.fit(
        net, X, T, sample_weight=w, validation=validation, epochs=3, batch_size=16, progress=False, **settings
    )
    return gpubp.to_host(net.theta), history["loss"], history["validation_loss"], gpubp.to_host(net.predict(X))


def assert_rows_are_their_copy(X, T, w, **settings):
    rng = np.random.default_rng(1)
    order = rng.permutation(len(T))
    train, rest = order[:61], order[61:]
    w_train, w_rest = (None, None) if w is None else (w[train], w[rest])
    parts = [(gpubp.RowsOf(X, rows), X[..., rows, :]) for rows in (train, rest)]
    (picked, copied), (picked_rest, copied_rest) = parts
    given = trained(picked, T[train], w_train, (picked_rest, T[rest], w_rest), **settings)
    expected = trained(copied, T[train], w_train, (copied_rest, T[rest], w_rest), **settings)
    for one, other in zip(given, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_training_on_rows_is_training_on_their_copy(dtype, weighted):
    X, T, w = problem(dtype)
    assert_rows_are_their_copy(X, T, w if weighted else None)
    assert_rows_are_their_copy(X, T, w if weighted else None, shuffle=False)


@pytest.mark.usefixtures("numpy_ops")
def test_it_is_on_numpy_alone():
    assert_rows_are_their_copy(*problem("uint8"))


@pytest.mark.parametrize("shared", [False, True])
def test_it_is_in_a_stack(shared):
    X, T, w = problem("float32", None if shared else 2)
    assert_rows_are_their_copy(X, T, w, members=2)


def test_it_is_of_a_file(tmp_path):
    X, T, w = problem("uint8")
    np.save(tmp_path / "x.npy", X)
    assert_rows_are_their_copy(np.load(tmp_path / "x.npy", mmap_mode="r"), T, w)


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """A file of 30 MB of bytes, and targets."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("large") / "x.npy"
    np.save(path, rng.integers(0, 256, (60_000, 500), np.uint8))
    yield np.load(path, mmap_mode="r"), rng.integers(0, 3, 60_000)
    path.unlink()


def fit_lbfgs(net, X, T):
    gpubp.fit_lbfgs(net, X, T, iterations=1, micro_batch_size=1000, validation=(X, T))


def some_rows(X, T):
    rows = np.random.default_rng(0).permutation(len(T))[: len(T) * 2 // 3]
    return gpubp.RowsOf(X, rows), T[rows]


READERS = {
    "evaluate": lambda net, X, T: net.evaluate(X, T),
    "evaluate some rows": lambda net, X, T: net.evaluate(*some_rows(X, T)),
    "predict": lambda net, X, T: net.predict(X),
    "predict by batches": lambda net, X, T: net.predict(X, batch_size=1000),
    "predict some rows": lambda net, X, T: net.predict(some_rows(X, T)[0], batch_size=1000),
    "fit_lbfgs": fit_lbfgs,
    "fit_lbfgs of some rows": lambda net, X, T: fit_lbfgs(net, *some_rows(X, T)),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_file_is_read_in_little_memory(large_file, read, monkeypatch):
    monkeypatch.setattr("gpubp.network.EVALUATED", 2**19)  # 2 MB of float32
    net = gpubp.mlp([500, 4, 3], standardize=True, device="cpu")
    X, T = large_file
    net.adapt(X[:100])
    read(net, X[:2000], T[:2000])  # what is compiled and imported, once, is no matter of the data
    gc.collect()
    tracemalloc.start()
    read(net, X, T)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 15e6, peak  # half of the file; 4 bytes a number are 120 MB


@pytest.mark.parametrize("device", ["cpu", "stand-in"])
@pytest.mark.parametrize("own_data", [False, True])
def test_rows_and_files_are_fitted_by_lbfgs_as_their_copies_are(own_data, device, tmp_path, request):
    if device == "stand-in":
        request.getfixturevalue("fake_cupy")
    X, T, w = problem("uint8", 2 if own_data else None)
    np.save(tmp_path / "x.npy", X)
    rows = np.random.default_rng(1).permutation(97)[:50]
    thetas = []
    for given in (gpubp.RowsOf(np.load(tmp_path / "x.npy", mmap_mode="r"), rows), X[..., rows, :]):
        net = gpubp.mlp([7, 4, 3], standardize=True, members=2, dtype="float64", device="auto")
        assert net.device.is_cuda == (device == "stand-in")
        gpubp.fit_lbfgs(net, given, T[rows], sample_weight=w[rows], iterations=5, micro_batch_size=7)
        thetas.append(gpubp.to_host(net.theta))
    np.testing.assert_array_equal(*thetas)


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.usefixtures("fake_cupy")
def test_it_is_on_a_device_resident_and_streamed(resident):
    X, T, w = problem("uint8")
    assert_rows_are_their_copy(X, T, w, device="cuda", resident=resident)


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [True, False])
def test_it_is_on_a_gpu(resident):
    X, T, w = problem("uint8")
    assert_rows_are_their_copy(X, T, w, device="cuda", resident=resident)


def test_targets_with_a_number_for_each_output_go_along():
    X, _, w = problem("float32")
    T = np.random.default_rng(2).normal(size=(97, 2))
    rows = np.random.default_rng(3).permutation(97)[:50]

    def weights(X, T):
        net = gpubp.mlp([7, 4, 2], loss="squared_error", standardize=True, rng=0, device="cpu")
        gpubp.fit(net, X, T, sample_weight=w[rows], epochs=2, batch_size=9, progress=False)
        return net.theta

    np.testing.assert_array_equal(weights(gpubp.RowsOf(X, rows), T[rows]), weights(X[rows], T[rows]))


def test_a_layer_that_standardises_deep_in_a_network_adapts_to_the_rows():
    X, _, _ = problem("float64")
    rows = np.arange(0, 97, 2)

    def scale(X):
        net = gpubp.Network([gpubp.Dense(7, 3), Standardize(3)], loss="softmax_cross_entropy", device="cpu")
        net.adapt(X)
        return net.layers[1].constants["scale"]

    np.testing.assert_array_equal(scale(gpubp.RowsOf(X, rows)), scale(X[rows]))


def test_what_it_shows_and_gives():
    X = np.arange(24).reshape(2, 4, 3)
    some = gpubp.RowsOf(X, [3, 0])
    assert (some.shape, some.ndim, some.size, some.dtype) == ((2, 2, 3), 3, 12, X.dtype)
    np.testing.assert_array_equal(some[..., :, :], X[:, [3, 0]])
    np.testing.assert_array_equal(some[..., 1:, :], X[:, [0]])
    assert not np.shares_memory(some[..., :, :], X)
    with pytest.raises(TypeError, match="whole examples are picked"):
        some[0, :, :]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([0, 4], "the rows run from 0 to 4, not within 0 to 3"),
        ([-1, 2], "the rows run from -1 to 2"),
        ([0.5], "the rows are float64 (1,); whole numbers (M,) are needed"),
        ([[1]], "the rows are int64 (1, 1); whole numbers"),
    ],
)
def test_rows_that_there_are_not(rows, said):
    with pytest.raises(DataError) as error:
        gpubp.RowsOf(np.zeros((4, 2)), rows)
    assert said in str(error.value)


def test_no_rows_and_wrong_targets_are_refused():
    X, T, _ = problem("float32")
    net = gpubp.mlp([7, 3], device="cpu")
    with pytest.raises(DataError, match="no examples"):
        gpubp.fit(net, gpubp.RowsOf(X, np.arange(0)), T[:0], progress=False)
    with pytest.raises(gpubp.GpubpError):
        gpubp.fit(net, gpubp.RowsOf(X, np.arange(5)), T, progress=False)


def test_an_order_provider_counts_within_the_rows():
    X, T, _ = problem("float32")
    given = []
    batches = minibatches.Minibatches(
        gpubp.RowsOf(X, [5, 7, 9]),
        T[[5, 7, 9]],
        None,
        2,
        lambda epoch, N: given.append(N) or [2, 0, 1],
        gpubp.Device("cpu"),
    )
    parts = [part.index.tolist() for part in batches.parts(0)]
    assert (given, parts, len(batches)) == ([3], [[[9, 5]], [[7]]], 2)
