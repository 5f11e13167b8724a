"""`gpubp train` and `gpubp predict` on every format, missing values, unseen texts, a file to validate with."""

from __future__ import annotations

import csv
import gzip
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import SMALL, environment, refused, run, write_csv

import gpubp

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

QUICK = ["--layers", 8, "--epochs", 8, "--learning-rate", 0.03]


def idx_of(array):
    """The bytes of an IDX file of bytes."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def images(folder):
    """Images of 4 x 5 bytes, brighter in the upper half or not, in every format of arrays."""
    rng = np.random.default_rng(0)
    t = rng.integers(0, 2, 200).astype(np.uint8)
    X = rng.integers(0, 100, (200, 4, 5)).astype(np.uint8)
    X[t == 1, :2] += 100
    for name, array in (("x-idx3-ubyte", X), ("t-idx1-ubyte", t)):
        (folder / name).write_bytes(idx_of(array))
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx_of(array)))
    np.save(folder / "x.npy", X)
    np.save(folder / "t.npy", t)
    np.savez(folder / "d.npz", x_train=X, y_train=t, x_test=X[:50], y_test=t[:50])
    return X, t


def gaps(folder, name="gaps.csv", rows=200, more=("red", "green")):
    """A CSV file with missing numbers and texts."""
    rng = np.random.default_rng(1)
    x, c = rng.normal(size=rows), rng.choice(more, rows)
    cells = ["" if i % 9 == 4 else repr(v) for i, v in enumerate(x.tolist())]
    texts = ["" if i % 11 == 5 else v for i, v in enumerate(c.tolist())]
    return write_csv(folder / name, {"x": cells, "c": texts, "y": np.where(x > 0, "up", "down")})


FORMS = [
    (["x-idx3-ubyte.gz", "--targets", "t-idx1-ubyte.gz"], "x-idx3-ubyte.gz"),
    (["x-idx3-ubyte", "--targets", "t-idx1-ubyte"], "x-idx3-ubyte"),
    (["x.npy", "--targets", "t.npy"], "x.npy"),
    (["d.npz"], "d.npz (x_train)"),
]


@pytest.mark.parametrize(("data", "source"), FORMS)
def test_arrays_of_every_format_give_the_same_model(images, data, source):
    outcome = run("train", *data, *QUICK)
    lines = outcome.stdout.splitlines()
    assert lines[:3] == [
        f"data: {source}, 200 rows, 20 features of uint8",
        "target: target, 2 classes: 0, 1",
        "rows: 136 to train, 24 to validate, 40 held out",
    ]
    assert float(re.search(r"^held-out accuracy: (.*)$", outcome.stdout, re.MULTILINE)[1]) > 0.95
    np.save("theta.npy", gpubp.load("model.safetensors", device="cpu").theta)
    run("train", "x.npy", "--targets", "t.npy", *QUICK, "--quiet")
    np.testing.assert_array_equal(gpubp.load("model.safetensors", device="cpu").theta, np.load("theta.npy"))


def test_bytes_and_floats_of_a_csv_give_the_same_predictions(images):
    X, t = images
    columns = {f"p{k}": X.reshape(200, 20)[:, k] for k in range(20)}
    write_csv(Path("x.csv"), {**columns, "target": t})
    run("train", "x.npy", "--targets", "t.npy", "--out", "a.safetensors", "--quiet", *SMALL)
    run("train", "x.csv", "--target", "target", "--out", "b.safetensors", "--quiet", *SMALL)
    a = run("predict", "a.safetensors", "x.npy")
    b = run("predict", "b.safetensors", "x.csv")
    assert a.stdout == b.stdout
    assert a.stderr == ""


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (["x-idx3-ubyte.gz", "--targets", "t-idx1-ubyte"], 200),
        (["x.npy", "--targets", "t-idx1-ubyte.gz"], 200),
        (["d.npz"], 50),
        (["x.npy"], 200),
    ],
)
def test_predictions_for_arrays(images, data, rows):
    run("train", "d.npz", *QUICK, "--quiet")
    outcome = run("predict", "model.safetensors", *data)
    lines = list(csv.reader(outcome.stdout.splitlines()))
    assert lines[0] == ["predicted", "p_0", "p_1"]
    right = np.mean([line[0] == str(t) for line, t in zip(lines[1:], images[1][:rows], strict=True)])
    assert right > 0.95
    scored = len(data) > 1 or data == ["d.npz"]
    assert outcome.stderr == (f"accuracy: {right:.4f} ({rows} rows)\n" if scored else "")


def test_a_quantity_of_arrays(folder):
    X = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float16)
    np.savez("d.npz", X=X, T=100 + 50 * X[:, :1].astype(float))
    outcome = run("train", "d.npz", "--layers", "16")
    assert "target: target, a quantity" in outcome.stdout
    assert float(re.search(r"held-out R2: (.*)", outcome.stdout)[1]) > 0.95
    values = np.array(run("predict", "model.safetensors", "d.npz").stdout.split()[1:], float)
    np.testing.assert_allclose(values, 100 + 50 * X[:, 0].astype(float), atol=25)


def test_check_takes_arrays(images):
    outcome = run("check", "x.npy", "--targets", "t.npy", "--layers", "3")
    assert outcome.exit_code == 0
    assert "20 -> 3 tanh -> 2" in outcome.stdout


def test_a_parquet_file_is_trained_on_as_its_csv_is(pets):
    with open(pets, encoding="utf-8", newline="") as file:
        weight, colour, kind = zip(*list(csv.reader(file))[1:], strict=True)
    colours = pa.array(colour).dictionary_encode()
    pq.write_table(pa.table({"weight": np.array(weight, float), "colour": colours, "kind": kind}), "pets.parquet")
    as_text = run("train", pets, "--target", "kind", "--out", "a.safetensors", *SMALL)
    as_numbers = run("train", "pets.parquet", "--target", "kind", "--out", "b.safetensors", *SMALL)
    assert "data: pets.parquet, 200 rows, 2 input columns (1 of text, 4 inputs in all)" in as_numbers.stdout
    assert as_numbers.stdout.splitlines()[5:-2][1:] == as_text.stdout.splitlines()[5:-2][1:]
    predicted = run("predict", "a.safetensors", "pets.parquet")
    assert predicted.stdout == run("predict", "b.safetensors", pets).stdout
    assert predicted.stderr.startswith("accuracy: ")


def test_missing_values_are_an_error_by_default(folder):
    said = refused("train", gaps(folder), "--target", "y", code=1)
    assert said.startswith("error: gaps.csv, line 7, column 'c': the cell is empty")
    write_csv(folder / "n.csv", {"x": ["1", ""] * 10, "z": ["", "1"] * 10, "y": ["a", "b"] * 10})
    assert refused("train", "n.csv", "--target", "y", code=1) == (
        "error: n.csv, line 3, column 'x': the cell is empty. Fill it in, or remove the row, or train with "
        "--missing median (20 missing in all, in columns x, z)\n"
    )


def test_missing_values_become_medians_and_predict_knows_them(folder):
    outcome = run("train", gaps(folder), "--target", "y", "--missing", "median", "--epochs", 30)
    assert (
        "data: gaps.csv, 200 rows, 2 input columns (1 of text, 1 with missing values, 5 inputs in all)"
        in outcome.stdout
    )
    assert float(re.search(r"held-out accuracy: (.*)", outcome.stdout)[1]) > 0.8
    table = gpubp.load_metadata("model.safetensors")["table"]
    assert table["columns"][0]["indicator"] is True
    assert table["columns"][1]["categories"] == ["", "green", "red"]
    write_csv(folder / "new.csv", {"x": ["", "5", "-5"], "c": ["red", "", "green"]})
    predicted = run("predict", "model.safetensors", "new.csv")
    assert predicted.stderr == ""
    assert [line.split(",")[0] for line in predicted.stdout.splitlines()][2:] == ["up", "down"]


def test_the_median_is_that_of_the_training_rows(folder):
    x = [*map(float, range(99)), None]
    write_csv(folder / "m.csv", {"x": ["" if v is None else v for v in x], "y": ["a", "b"] * 50})
    seen, fit = [], gpubp.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpubp, "fit", lambda net, X, T, **s: seen.append(X) or fit(net, X, T, **s))
        run("train", "m.csv", "--target", "y", "--missing", "median", *SMALL)
    (column,) = gpubp.load_metadata("model.safetensors")["table"]["columns"]
    (X,) = seen
    present = X[:, 0] if X.shape[1] == 1 else X[X[:, 1] == 0, 0]
    assert column["median"] == np.median(present)
    assert column["median"] != 49
    assert column["indicator"] == (X.shape[1] == 2)


def test_unseen_texts_are_zeros_with_one_note_or_an_error(model, folder):
    write_csv(folder / "new.csv", {"colour": ["pink", "red", "pink", "teal"], "weight": ["20"] * 4})
    outcome = run("predict", model, "new.csv")
    assert outcome.exit_code == 0
    assert len(outcome.stdout.splitlines()) == 5
    assert outcome.stderr == (
        "note: new.csv has texts that were not in the training data, with how many rows of each; all inputs of their "
        "column are 0 there: colour: 'pink' (2), 'teal' (1)\n"
    )
    said = refused("predict", model, "new.csv", "--unseen", "error", code=1)
    assert said == (
        "error: new.csv, line 2, column 'colour': 'pink' was not in the training data; known are blue, green, red\n"
    )
    assert "--unseen perhaps: use zeros or error" in refused("predict", model, "new.csv", "--unseen", "perhaps", code=2)


def test_classes_that_are_unbalanced_are_told_with_their_counts(folder):
    write_csv(folder / "u.csv", {"x": range(120), "y": [*["a"] * 100, *["b"] * 11, *["c"] * 9]})
    outcome = run("train", "u.csv", "--target", "y", *SMALL)
    assert "\nclasses are unbalanced: a 100, b 11, c 9; always a would be right in 83.3%\n" in outcome.stdout
    write_csv(folder / "v.csv", {"x": range(120), "y": [*["a"] * 100, *["b"] * 10, *["c"] * 10]})
    assert "unbalanced" not in run("train", "v.csv", "--target", "y", *SMALL).stdout


def test_a_file_to_validate_with_takes_the_place_of_a_share(pets, folder, monkeypatch):
    write_csv(folder / "v.csv", {"kind": ["dog", "fox"], "weight": ["30", "1"], "colour": ["blue", "pink"]})
    given, fit = {}, gpubp.fit
    monkeypatch.setattr(gpubp, "fit", lambda net, X, T, **s: given.update(s, rows=len(X)) or fit(net, X, T, **s))
    outcome = run("train", pets, "--target", "kind", "--validation", "v.csv", *SMALL)
    assert "rows: 160 to train, 2 to validate from v.csv, 40 held out" in outcome.stdout
    assert outcome.stderr.endswith("column are 0 there: colour: 'pink' (1)\n")
    assert given["rows"] == 160
    X, T = given["validation"]
    np.testing.assert_array_equal(X, [[30, 1, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(T, [1, 2])
    same = run("train", pets, "--target", "kind", *SMALL)
    assert same.stdout.splitlines()[6:10] != ""  # the held-out share stays as it is
    assert "40 held out" in same.stdout


def test_arrays_to_validate_with(images):
    files = ["--validation", "x-idx3-ubyte.gz", "--validation-targets", "t-idx1-ubyte"]
    outcome = run("train", "x.npy", "--targets", "t.npy", *files, *SMALL)
    assert "rows: 160 to train, 200 to validate from x-idx3-ubyte.gz, 40 held out" in outcome.stdout
    outcome = run("train", "d.npz", "--validation", "d.npz", *SMALL)
    assert "rows: 160 to train, 50 to validate from d.npz (x_test), 40 held out" in outcome.stdout


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"weight": ["1"], "kind": ["dog"]},
            "error: --validation: v.csv lacks the column colour, which the model takes",
        ),
        ({"weight": ["1"], "colour": ["red"]}, "error: --validation: v.csv has no column 'kind'"),
        (
            {"weight": ["x"], "colour": ["red"], "kind": ["dog"]},
            "--validation: v.csv, line 2, column 'weight': 'x' is not",
        ),
        (
            {"weight": ["1"], "colour": ["red"], "kind": ["owl"]},
            "'owl' was not in the training data; known are cat, dog",
        ),
    ],
)
def test_a_file_that_can_not_be_validated_with(pets, folder, columns, said):
    write_csv(folder / "v.csv", columns)
    assert said in refused("train", pets, "--target", "kind", "--validation", "v.csv", code=1)


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["x.npy"], 1, "x.npy comes with no targets: add --targets FILE"),
        (["t-idx1-ubyte.gz"], 1, "t-idx1-ubyte.gz has shape (200,); (N, features) is needed. Targets go by --targets"),
        (["x.npy", "--target", "y"], 2, "--target y: x.npy holds arrays, which have no names; use --targets FILE"),
        (["x.npy", "--targets", "t.npy", "--missing", "median"], 2, "--missing median is for tables, and x.npy holds"),
        (["x.npy", "--targets", "x.npy"], 1, "x.npy has targets of shape (200, 4, 5); (N,) is needed"),
        (["x.npy", "--targets", "d.npz"], 1, "d.npz holds no single array"),
        (["x.npy", "--targets", "nothing.npy"], 1, "there is no file 'nothing.npy'"),
        (["x.npy", "--targets", "cut-idx"], 1, "cut-idx is cut off: its header announces 200 numbers, 208 bytes"),
        (["x.npy", "--targets", "wrong-idx"], 1, "wrong-idx is no IDX file: it begins with 09 09 08 01"),
        (["cut.npy", "--targets", "t.npy"], 1, "cut.npy can't be read: it is no such file, cut off or damaged"),
        (["cut.npz"], 1, "cut.npz can't be read: it is no such file, cut off or damaged"),
        (["cut.gz", "--targets", "t.npy"], 1, "cut.gz is cut off or damaged"),
        (["cut.parquet", "--target", "y"], 1, "cut.parquet is no Parquet file, or is cut off or damaged"),
        (["iris", "--targets", "t.npy"], 1, "--targets t.npy: the bundled data set 'iris' has its own"),
        (
            ["x.npy", "--targets", "t.npy", "--validation", "x.npy"],
            1,
            "--validation: x.npy has no column 'target', nor",
        ),
        (
            ["x.npy", "--targets", "t.npy", "--validation-targets", "t.npy"],
            2,
            "of which examples? Add --validation FILE",
        ),
        (["x.npy", "--targets", "t.npy", "--out", "t.npy"], 2, "--out: t.npy would overwrite an input"),
        (["iris", "--missing", "mean"], 2, "--missing mean: use error or median"),
        (
            ["iris", "--validation", "d.npz"],
            1,
            "--validation: d.npz (x_test) holds arrays, whose columns have no names",
        ),
    ],
)
def test_arrays_and_files_that_are_refused(images, folder, options, code, said):
    for name in ("x.npy", "d.npz", "x-idx3-ubyte.gz", "t-idx1-ubyte"):
        whole = (folder / name).read_bytes()
        cut = {"x.npy": "cut.npy", "d.npz": "cut.npz", "x-idx3-ubyte.gz": "cut.gz", "t-idx1-ubyte": "cut-idx"}[name]
        (folder / cut).write_bytes(whole[:-9])
    (folder / "wrong-idx").write_bytes(b"\t\t" + (folder / "t-idx1-ubyte").read_bytes()[2:])
    pq.write_table(pa.table({"x": [1.0], "y": [1]}), "whole.parquet")
    (folder / "cut.parquet").write_bytes((folder / "whole.parquet").read_bytes()[:-9])
    assert said in refused("train", *options, code=code)


def test_nested_columns_are_refused(folder):
    pq.write_table(pa.table({"a": [[1, 2]] * 20, "y": ["a", "b"] * 10}), "n.parquet")
    said = refused("train", "n.parquet", "--target", "y", code=1)
    assert said.startswith("error: n.parquet: column 'a' is nested (list<")
    assert said.endswith("write a column for each of its parts\n")


def test_models_and_data_of_different_kinds(images, pets):
    run("train", "d.npz", "--out", "arrays.safetensors", "--quiet", *SMALL)
    run("train", pets, "--target", "kind", "--out", "table.safetensors", "--quiet", *SMALL)
    said = refused("predict", "arrays.safetensors", pets, code=1)
    assert "pets.csv is a table, but the model was trained on arrays of 20 features" in said
    assert "x.npy holds arrays, whose columns have no names" in refused("predict", "table.safetensors", "x.npy", code=1)
    np.save("other.npy", np.zeros((3, 7)))
    assert "other.npy has 7 features, but the model takes 20" in refused(
        "predict", "arrays.safetensors", "other.npy", code=1
    )


IN_LITTLE_MEMORY = """
import resource, sys
import numpy as np
import gpubp
from gpubp.cli import app
from typer.testing import CliRunner

def command(*arguments):
    outcome = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)

def kibibytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

network = ["--layers", "16", "--batch-size", "256", "--epochs", "1", "--quiet", "--threads", "1"]
command("train", "part.npy", "--targets", "part_t.npy", *network)
command("predict", "model.safetensors", "part.npy", "--out", "p.csv")  # everything is imported, compiled, started
limit = kibibytes("VmData") * 1024 + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

part, t = np.load("part.npy"), np.load("part_t.npy")
times = 1 + 3 * limit // part.nbytes
with open("x.npy", "wb") as file:
    np.lib.format.write_array_header_1_0(
        file, {"descr": part.dtype.str, "fortran_order": False, "shape": (times * len(part), part.shape[1])}
    )
    for _ in range(times):
        file.write(part.data)
np.save("t.npy", np.tile(t, times))
del part
print(limit)
try:
    held = np.load("x.npy")
except MemoryError:
    print("not in memory")
command("train", "x.npy", "--targets", "t.npy", *network)
command("predict", "model.safetensors", "x.npy", "--out", "p.csv")
print("trained and predicted")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux counts memory in this way")
def test_a_file_three_times_larger_than_all_memory_is_trained_on(folder):
    """A process may take 40 MB beyond what it has when everything is imported, compiled and warm: RLIMIT_DATA counts
    every private page that it may write, touched or not, but not the pages of a file mapped for reading, which the
    system drops when it needs memory. The file, one part again and again, is three times as large as that limit, which
    is that of the whole process; that the file can't be copied is tried first.
    """
    rng = np.random.default_rng(0)
    t = rng.integers(0, 2, 1000).astype(np.uint8)
    np.save("part.npy", rng.normal(size=(1000, 2000)) + t[:, None])  # 16 MB
    np.save("part_t.npy", t)
    command = [sys.executable, "-c", IN_LITTLE_MEMORY, "40_000_000"]
    single = environment(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    try:
        outcome = subprocess.run(command, capture_output=True, text=True, env=single, timeout=120)
        limit, *said = outcome.stdout.splitlines() or [0]
        assert said == ["not in memory", "trained and predicted"], outcome.stdout + outcome.stderr
        assert 3 * int(limit) <= Path("x.npy").stat().st_size < 1_200_000_000
        with open("p.csv", encoding="utf-8") as file:
            predicted = np.array([line[0] for line in csv.reader(file)][1:], int)
        assert (predicted == np.load("t.npy")).mean() > 0.99
    finally:
        Path("x.npy").unlink(missing_ok=True)
