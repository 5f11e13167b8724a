"""`gpubp train --embed`: columns of text as trained vectors, from the table to predictions and ONNX."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from command_line import SMALL, refused, run, write_csv

import gpubp
from gpubp.data.encoding import TableEncoder, embedding_width
from gpubp.data.tables import Table, read_csv

CITIES = [f"city {k:02}" for k in range(30)]


@pytest.fixture
def sales(folder):
    """A CSV file whose class depends on a number and on which of thirty cities it is; two columns are text."""
    rng = np.random.default_rng(0)
    amount, city, day = rng.normal(20, 5, 400), rng.integers(30, size=400), rng.choice(["mon", "tue"], 400)
    big = (amount + 3 * (city % 3) > 23).astype(int)
    columns = {"city": [CITIES[k] for k in city], "amount": amount, "day": day, "big": np.where(big, "yes", "no")}
    return write_csv(folder / "sales.csv", columns)


def test_indices_take_the_place_of_columns_of_0_and_1():
    table = Table(
        "t", {"a": ["x", "y", "z"], "n": ["1", "2", "3"], "b": ["q", "p", "q"], "T": ["u", "v", "u"]}, range(3)
    )
    encoder = TableEncoder.fit(table, "T", embed=["a"])
    assert encoder.embeddings == {0: (3, embedding_width(3))}
    assert (encoder.n_in, encoder.input_names) == (4, ["a", "n", "b", "b"])
    np.testing.assert_array_equal(encoder.inputs(table), [[0, 1, 0, 1], [1, 2, 1, 0], [2, 3, 0, 1]])
    new = Table("t", {"a": ["y", "?"], "n": ["1", "2"], "b": ["p", "?"]}, range(2))
    np.testing.assert_array_equal(encoder.inputs(new, unseen="zeros"), [[1, 1, 1, 0], [-1, 2, 0, 0]])
    assert TableEncoder.from_json(encoder.to_json()) == encoder
    both = TableEncoder.fit(table, "T", embed=["b", "a"])
    assert both.embeddings == {0: (3, embedding_width(3)), 2: (2, embedding_width(2))}


def test_the_width_grows_slowly():
    assert [embedding_width(C) for C in (1, 2, 30, 1000, 10**6)] == [2, 2, 11, 77, 600]


def test_from_a_table_to_predictions(sales):
    outcome = run("train", sales, "--target", "big", "--embed", "city", "--layers", "32", "--epochs", "60")
    assert "3 input columns (2 of text, 1 embedded, 4 inputs in all)" in outcome.stdout
    net = gpubp.load("model.safetensors")
    assert net.parameters["1.W0"].shape == (30, 11)
    assert net.layers[0].skip == (0,)
    score = [line for line in outcome.stdout.splitlines() if line.startswith("held-out accuracy")]
    assert float(score[0].split()[-1]) > 0.85
    write_csv("new.csv", {"city": [CITIES[3], "elsewhere"], "amount": [20, 20], "day": ["mon", "mon"]})
    outcome = run("predict", "model.safetensors", "new.csv")
    assert "'elsewhere' (1)" in outcome.stderr
    rows = list(csv.reader(outcome.stdout.splitlines()))
    assert len(rows) == 3
    assert np.isfinite([float(cell) for row in rows[1:] for cell in row[1:]]).all()
    assert (
        "'elsewhere' was not in the training data"
        in run("predict", "model.safetensors", "new.csv", "--unseen", "error").stderr
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_onnx_model_takes_raw_rows(sales, dtype):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime, the outside oracle, is not installed")
    options = ["--embed", "city", "--embed", "day", "--dtype", dtype, "--quiet"]
    run("train", sales, "--target", "big", *options, *SMALL)
    run("export", "model.safetensors")
    columns = read_csv(sales).columns
    given = {name: np.array(columns[name], object)[:, None] for name in ("city", "day")}
    given["city"][3, 0] = "elsewhere"
    given["amount"] = np.array(columns["amount"], dtype)[:, None]
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    (probabilities,) = session.run(["probabilities"], given)
    write_csv("raw.csv", {name: array[:, 0] for name, array in given.items()})
    rows = list(csv.reader(run("predict", "model.safetensors", "raw.csv").stdout.splitlines()))[1:]
    np.testing.assert_allclose(probabilities, [list(map(float, row[1:])) for row in rows], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--embed", "amount"], "amount can't be embedded: city, day hold text"),
        (["--embed", "nowhere"], "nowhere can't be embedded"),
        (["--embed", "big"], "big can't be embedded"),
    ],
)
def test_what_can_not_be_embedded(sales, options, said):
    assert said in refused("train", sales, "--target", "big", *options, code=2)


def test_arrays_have_no_columns_to_embed(folder):
    np.savez("a.npz", X=np.ones((20, 2)), T=np.arange(20) % 2)
    assert "--embed x is for columns of a table" in refused("train", "a.npz", "--embed", "x", code=2)
