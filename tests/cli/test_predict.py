"""`gpubp predict`: predictions, their score, and what can't be predicted."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import SMALL, refused, run, write_csv

import gpubp
from gpubp.data.tables import read_csv


def test_predictions_and_their_score(model, pets):
    outcome = run("predict", model, pets)
    rows = list(csv.reader(outcome.stdout.splitlines()))
    assert rows[0] == ["predicted", "p_cat", "p_dog", "p_fox"]
    assert len(rows) == 201
    probabilities = np.array([row[1:] for row in rows[1:]], dtype=float)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    predicted = [row[0] for row in rows[1:]]
    assert predicted == [["cat", "dog", "fox"][best] for best in probabilities.argmax(axis=1)]
    truth = read_csv(pets).columns["kind"]
    right = np.mean([a == b for a, b in zip(truth, predicted, strict=True)])
    assert outcome.stderr == f"accuracy: {right:.4f} (200 rows)\n"


def test_predictions_into_a_file_for_rows_without_target(model, folder):
    write_csv(folder / "new.csv", {"note": ["", "?"], "colour": ["red", "blue"], "weight": ["20", "35"]})
    outcome = run("predict", model, "new.csv", "--out", "p.csv")
    assert outcome.stdout == "predictions: p.csv (2 rows)\n"
    assert outcome.stderr == ""
    lines = Path("p.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in lines] == ["predicted", "fox", "dog"]


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["", "?"], ""),
        (["cat", ""], "not scored: new.csv, line 3, column 'kind': the cell is empty. Fill it in, or remove the row\n"),
        (["cat", "owl"], "not scored: new.csv, line 3, column 'kind': 'owl' was not in the training data"),
    ],
)
def test_targets_that_can_not_be_scored_do_not_stop_the_predictions(model, folder, kinds, said):
    write_csv(folder / "new.csv", {"colour": ["red", "blue"], "weight": ["20", "35"], "kind": kinds})
    outcome = run("predict", model, "new.csv")
    assert outcome.exit_code == 0
    assert len(outcome.stdout.splitlines()) == 3
    assert outcome.stderr.startswith(said)
    assert bool(outcome.stderr) == bool(said)


def test_a_bundled_data_set_is_predicted(folder):
    run("train", "diabetes", "--quiet", *SMALL)
    outcome = run("predict", "model.safetensors", "diabetes")
    assert len(outcome.stdout.splitlines()) == 443
    assert re.fullmatch(r"R2: -?\d\.\d{4} \(442 rows\)\nRMSE: \d+\.\d\d \(442 rows\)\n", outcome.stderr)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "colour,weight\nred,1\npink,2\n",
            "new.csv, line 3, column 'colour': 'pink' was not in the training data; known",
        ),
        ("colour,weight\nred,heavy\n", "new.csv, line 2, column 'weight': 'heavy' is not a number"),
        ("colour,weight\nred,\n", "new.csv, line 2, column 'weight': the cell is empty"),
        ("colour,mass\nred,1\n", "new.csv lacks the column weight, which the model takes. Its columns: colour, mass"),
        ("colour,weight\n", "new.csv has a header but no rows"),
    ],
)
def test_rows_that_can_not_be_predicted(model, folder, text, said):
    (folder / "new.csv").write_text(text, encoding="utf-8")
    assert said in refused("predict", model, "new.csv", "--out", "p.csv", "--unseen", "error", code=1)


@pytest.mark.parametrize("out", ["pets.safetensors", "pets.csv"])
def test_predictions_do_not_overwrite_what_they_are_made_from(model, pets, out):
    before = Path(out).read_bytes()
    assert f"--out: {out} would overwrite an input" in refused("predict", model, pets, "--out", out, code=2)
    assert Path(out).read_bytes() == before


def test_the_place_of_the_predictions_is_looked_at_first(folder):
    assert "--out: there is no directory nowhere" in refused("predict", "m", "d", "--out", "nowhere/p.csv", code=2)


def test_models_that_can_not_predict(model, pets, folder):
    assert "nothing.safetensors" in refused("predict", "nothing.safetensors", pets, code=1)
    (folder / "text").write_text("no model", encoding="utf-8")
    assert "text" in refused("predict", "text", pets, code=1)
    net = gpubp.load(model)
    gpubp.save(net, "plain.safetensors")
    assert "gpubp train did not write it" in refused("predict", "plain.safetensors", pets, code=1)
    table = gpubp.load_metadata(model)["table"]
    gpubp.save(net, "other.safetensors", metadata={"table": {**table, "columns": table["columns"][:1]}})
    assert "its network does not fit the columns" in refused("predict", "other.safetensors", pets, code=1)
    gpubp.save(net, "broken.safetensors", metadata={"table": {}})
    assert "is damaged" in refused("predict", "broken.safetensors", pets, code=1)
