"""Arrays of examples, and the `.npz` and `.npy` files that they are in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading_of import outcome

from gpubp.data.arrays import TARGET, array_data, read_npy, read_npz
from gpubp.data.encoding import ArrayEncoder, Encoder, TableEncoder
from gpubp.data.tables import Table
from gpubp.errors import DataError, ModelFileError, SettingError

X = np.arange(12, dtype=np.uint8).reshape(4, 3)


@pytest.mark.parametrize(
    ("given_dtype", "kept"),
    [
        ("uint8", "uint8"),
        ("float16", "float16"),
        ("float32", "float32"),
        ("float64", "float64"),
        ("bool", "float16"),
        ("int8", "float16"),
        ("int16", "float32"),
        ("uint16", "float32"),
        ("int32", "float64"),
        ("int64", "float64"),
        (">f4", "float32"),
        (">f8", "float64"),
        (">i2", "float32"),
    ],
)
def test_what_minibatches_are_gathered_from(given_dtype, kept):
    array = np.array([[0, 1, 1], [1, 0, 1]], given_dtype)
    data = array_data("x.npy", array)
    assert data.X.dtype == np.dtype(kept)
    assert data.X.dtype.isnative
    assert np.shares_memory(data.X, array) == (given_dtype == kept)
    np.testing.assert_array_equal(data.X, array)


def test_images_become_rows_without_a_copy(tmp_path):
    np.save(tmp_path / "x.npy", X.reshape(2, 2, 3))
    data = array_data("x.npy", read_npy(tmp_path / "x.npy"))
    assert isinstance(data.X, np.memmap)
    assert (data.X.shape, len(data)) == ((2, 6), 2)
    np.testing.assert_array_equal(data.X, X.reshape(2, 6))


@pytest.mark.parametrize("T", [[1, 2, 1, 2], [[1], [2], [1], [2]], [" a", "b", "a", "b"], [True, False, True, False]])
def test_targets_are_a_table_of_one_column(T):
    data = array_data("x.npy", X, np.array(T), "t.npy")
    encoder = ArrayEncoder.fit(data)
    assert (encoder.n_in, encoder.n_out, encoder.target) == (3, 2, TARGET)
    assert encoder.classes in (("1", "2"), ("a", "b"), ("False", "True"))
    expected = [1, 0, 1, 0] if T[0] is True else [0, 1, 0, 1]
    np.testing.assert_array_equal(encoder.targets(data), expected)
    np.testing.assert_array_equal(encoder.inputs(data), X)


@pytest.mark.parametrize(
    ("X", "T", "said"),
    [
        (np.array([["a"]]), None, "x.npy holds <U1 values; numbers are needed"),
        (np.zeros((2, 2), complex), None, "x.npy holds complex128 values"),
        (np.zeros(3), None, "x.npy has shape (3,); (N, features) is needed. Targets go by --targets"),
        (np.zeros((0, 3)), None, "x.npy has shape (0, 3): it holds nothing"),
        (np.zeros((3, 0)), None, "x.npy has shape (3, 0): it holds nothing"),
        (np.array([[1, 2], [3, np.nan]]), None, "x.npy, row 2, column 2: nan is not a finite number"),
        (np.array([[1, 2], [np.inf, 4]], np.float16), None, "x.npy, row 2, column 1: inf is not a finite number"),
        (X, np.zeros(3), "t.npy has 3 targets, but x.npy has 4 examples"),
        (X, np.zeros(5), "t.npy has 5 targets, but x.npy has 4 examples"),
        (X, np.zeros((4, 2)), "t.npy has targets of shape (4, 2); (N,) is needed"),
        (X, np.array(0), "t.npy has targets of shape (); (N,) is needed"),
        (X, np.zeros(4, "M8[s]"), "t.npy has targets of datetime64[s]; numbers or texts are needed"),
    ],
)
def test_arrays_that_can_not_be_used(X, T, said):
    with pytest.raises(DataError) as error:
        array_data("x.npy", X, T, "t.npy")
    assert said in str(error.value)


def test_a_wrong_number_far_down_is_found():
    X = np.zeros((5000, 100))
    X[4321, 56] = -np.inf
    with pytest.raises(DataError, match="x.npy, row 4322, column 57: -inf is not a finite number"):
        array_data("x.npy", X)


@pytest.mark.parametrize(
    ("T", "said"),
    [
        ([1.5, np.nan, 2.5, 3.5], "t.npy, row 2, column 'target': the cell is empty"),
        ([1.5, 2.5, np.inf, 3.5], "t.npy, row 3, column 'target': 'inf' is not a finite number"),
        ([2, 2, 2, 2], "t.npy: every row has the class '2'"),
        (None, "x.npy comes with no targets: add --targets FILE, or save both in one .npz file, as X and T"),
    ],
)
def test_targets_that_can_not_be_learned(T, said):
    with pytest.raises(DataError) as error:
        ArrayEncoder.fit(array_data("x.npy", X, None if T is None else np.array(T), "t.npy"))
    assert said in str(error.value)


def test_an_encoder_of_arrays_survives_json_and_refuses_other_data():
    encoder = ArrayEncoder.fit(array_data("x.npy", X, np.array([0.5, 1, 2, 3])))
    encoder = encoder.with_target_scale(np.array([0.5, 1, 2, 3]))
    assert ArrayEncoder.from_json(encoder.to_json()) == encoder
    assert isinstance(encoder, Encoder)
    assert encoder.input_names == ["1", "2", "3"]
    with pytest.raises(ModelFileError, match="is damaged"):
        ArrayEncoder.from_json({**encoder.to_json(), "width": "wide"})
    with pytest.raises(DataError, match="y.npy has 2 features, but the model takes 3"):
        encoder.inputs(array_data("y.npy", X[:, :2]))
    table = Table("t.csv", {"x": ["1", "2"], "y": ["a", "b"]}, range(2, 4))
    with pytest.raises(DataError, match="t.csv is a table, but the model was trained on arrays of 3 features"):
        encoder.inputs(table)
    with pytest.raises(
        DataError, match="x.npy holds arrays, whose columns have no names, but the model was trained on"
    ):
        TableEncoder.fit(table, "y").inputs(array_data("x.npy", X))
    with pytest.raises(SettingError, match="unknown task 'sorting'"):
        ArrayEncoder.fit(array_data("x.npy", X, np.arange(4)), "sorting")


@pytest.mark.parametrize(
    ("names", "part", "found"),
    [
        (["X", "T"], "train", ("X", "T")),
        (["x", "y"], "test", ("x", "y")),
        (["x_train", "y_train", "x_test", "y_test"], "train", ("x_train", "y_train")),
        (["x_train", "y_train", "x_test", "y_test"], "test", ("x_test", "y_test")),
        (["X_train", "Y_train"], "test", ("X_train", "Y_train")),
        (["data", "target", "more"], "train", ("data", "target")),
        (["x_test"], "test", ("x_test", None)),
        (["anything"], "train", ("anything", None)),
    ],
)
def test_which_arrays_of_a_npz_file_are_taken(tmp_path, names, part, found):
    arrays = {name: np.full((2, 2), number) for number, name in enumerate(names)}
    np.savez(tmp_path / "d.npz", **arrays)
    x, X, t, T = read_npz(tmp_path / "d.npz", part)
    assert (x, t) == found
    np.testing.assert_array_equal(X, arrays[x])
    assert T is None if t is None else (arrays[t] == T).all()


def test_a_npz_file_of_other_names(tmp_path):
    np.savez(tmp_path / "d.npz", a=X, b=X)
    with pytest.raises(DataError, match="d.npz holds a, b: which are the examples. Name the arrays X and T"):
        read_npz(tmp_path / "d.npz")
    np.savez(tmp_path / "d.npz", x_test=X, y_test=X)
    with pytest.raises(DataError, match="d.npz holds x_test, y_test: which are the examples"):
        read_npz(tmp_path / "d.npz")
    np.savez(tmp_path / "d.npz")
    with pytest.raises(DataError, match="d.npz holds nothing"):
        read_npz(tmp_path / "d.npz")


def test_python_objects_are_not_loaded(tmp_path):
    objects = np.array([[{"a": 1}]], object)
    np.save(tmp_path / "o.npy", objects)
    np.savez(tmp_path / "o.npz", X=objects)
    with pytest.raises(DataError, match="o.npy holds Python objects, which are not loaded"):
        read_npy(tmp_path / "o.npy")
    with pytest.raises(DataError, match="o.npz holds Python objects, which are not loaded"):
        read_npz(tmp_path / "o.npz")
    (tmp_path / "pickle.npy").write_bytes(b"\x80\x04K\x01.")
    with pytest.raises(DataError, match="pickle.npy holds Python objects"):
        read_npy(tmp_path / "pickle.npy")


def test_files_by_a_wrong_name_and_none(tmp_path):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "x.npy").rename(tmp_path / "x.npz")
    with pytest.raises(DataError, match="x.npz is a .npy file by another name: rename it"):
        read_npz(tmp_path / "x.npz")
    for read in (read_npy, read_npz):
        with pytest.raises(DataError, match="there is no file"):
            read(tmp_path / "nothing")
        with pytest.raises(DataError, match="can't be read"):
            read(tmp_path)
        (tmp_path / "empty").touch()
        with pytest.raises(DataError, match="empty can't be read: it is no such file, cut off or damaged"):
            read(tmp_path / "empty")


@pytest.mark.parametrize("packed", [False, True])
def test_npz_files_that_are_cut_off_or_damaged_are_an_error_or_the_same(tmp_path, packed):
    path = tmp_path / "d.npz"
    (np.savez_compressed if packed else np.savez)(path, X=X, T=np.arange(4))
    whole = path.read_bytes()
    for length in range(0, len(whole), 5):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"d\.npz (can't be read|holds)"):
            read_npz(path)
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        read, said = outcome(read_npz, path)
        if read is not None:
            np.testing.assert_array_equal(read[1], X)
            assert read[3] is None or (np.arange(4) == read[3]).all()
        assert "\n" not in said


@given(st.integers(0, 200), st.binary(min_size=1, max_size=4))
def test_npy_files_that_are_cut_off_or_damaged_are_an_error_or_an_array(tmp_path_factory, place, noise):
    path = tmp_path_factory.mktemp("npy") / "x.npy"
    np.save(path, X.astype(np.float32))
    whole = path.read_bytes()
    path.write_bytes(whole[:place])
    if place < len(whole):
        with pytest.raises(DataError):
            read_npy(path)
    path.write_bytes(whole[:place] + noise + whole[place + len(noise) :])
    assert "\n" not in outcome(read_npy, path)[1]
