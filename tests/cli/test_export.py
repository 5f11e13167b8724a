"""`gpubp export`: a trained model as ONNX, which takes raw rows."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import SMALL, refused, run, write_csv

import gpubp
from gpubp.data.tables import read_csv

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime, the outside oracle, is not installed")


def predictions(path, **inputs):
    """The outputs by name."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip([value.name for value in session.get_outputs()], session.run(None, inputs), strict=True))


def test_a_classifier_takes_raw_rows(model, pets):
    outcome = run("export", model, "--out", "pets.onnx")
    assert outcome.stdout == ("ONNX: pets.onnx\ninputs: weight, colour\noutputs: predicted, scores, probabilities\n")
    columns = read_csv(pets).columns
    weight = np.array(columns["weight"], "f4")[:, None]
    outputs = predictions("pets.onnx", weight=weight, colour=np.array(columns["colour"], object)[:, None])
    first, *rows = csv.reader(run("predict", model, pets).stdout.splitlines())
    assert first == ["predicted", "p_cat", "p_dog", "p_fox"]
    assert outputs["predicted"].tolist() == [row[0] for row in rows]
    np.testing.assert_allclose(outputs["probabilities"], [list(map(float, row[1:])) for row in rows], atol=1e-5)


def test_a_regressor_and_a_name_made_from_the_models(folder):
    run("train", "diabetes", "--quiet", "--dtype", "float64", *SMALL)
    outcome = run("export", "model.safetensors")
    assert outcome.stdout.splitlines()[0] == "ONNX: model.onnx"
    assert outcome.stdout.splitlines()[2] == "outputs: predicted"
    from gpubp.data.bundled import load_bundled

    table = load_bundled("diabetes")
    names = [value.name for value in onnxruntime.InferenceSession("model.onnx").get_inputs()]
    inputs = {name: np.array(table.columns[name], float)[:, None] for name in names}
    rows = [float(line) for line in run("predict", "model.safetensors", "diabetes").stdout.splitlines()[1:]]
    np.testing.assert_allclose(predictions("model.onnx", **inputs)["predicted"][:, 0], rows, rtol=1e-7)


def test_a_regressor_of_arrays(folder):
    X = np.random.default_rng(0).normal(size=(80, 2, 3))
    np.savez("d.npz", X=X, T=1000 + 50 * X[:, 0, 0])
    run("train", "d.npz", "--quiet", "--dtype", "float64", *SMALL)
    assert run("export", "model.safetensors").stdout == "ONNX: model.onnx\ninputs: X\noutputs: predicted\n"
    rows = [float(line) for line in run("predict", "model.safetensors", "d.npz").stdout.splitlines()[1:]]
    predicted = predictions("model.onnx", X=X.reshape(80, 6))["predicted"]
    np.testing.assert_allclose(predicted[:, 0], rows, rtol=1e-7)


def test_a_classifier_of_arrays(folder):
    X = np.random.default_rng(0).integers(0, 255, size=(80, 4)).astype("u1")
    np.savez("d.npz", X=X, T=np.where(X[:, 0] > 100, "yes", "no"))
    run("train", "d.npz", "--quiet", *SMALL)
    outcome = run("export", "model.safetensors")
    assert outcome.stdout == "ONNX: model.onnx\ninputs: X\noutputs: predicted, scores, probabilities\n"
    first, *rows = csv.reader(run("predict", "model.safetensors", "d.npz").stdout.splitlines())
    assert first == ["predicted", "p_no", "p_yes"]
    outputs = predictions("model.onnx", X=X.astype("f4"))
    assert outputs["predicted"].tolist() == [row[0] for row in rows]
    np.testing.assert_allclose(outputs["probabilities"], [list(map(float, row[1:])) for row in rows], atol=1e-5)


def test_a_missing_text_in_every_spelling(folder):
    rng = np.random.default_rng(0)
    columns = {"x": rng.normal(size=120), "colour": rng.choice(["red", "", "NaN", "nan", "7"], 120)}
    write_csv(Path("d.csv"), columns | {"T": 3 * columns["x"] + 10 * (columns["colour"] == "red")})
    for embed in ([], ["--embed", "colour"]):
        run("train", "d.csv", "--target", "T", "--missing", "median", "--quiet", "--dtype", "float64", *SMALL, *embed)
        run("export", "model.safetensors")
        write_csv(Path("new.csv"), {"x": np.zeros(6), "colour": ["", "nan", "NaN", "NAN", "red", "unknown"]})
        expected = np.array(run("predict", "model.safetensors", "new.csv").stdout.split()[1:], float)
        colour = np.array([["", "nan", "NaN", "NAN", "red", "unknown"]], object).T
        values = predictions("model.onnx", x=np.zeros((6, 1)), colour=colour)["predicted"][:, 0]
        np.testing.assert_allclose(values, expected, rtol=1e-7)
        assert len(set(expected)) == 3


def test_a_model_that_knows_no_table(folder):
    net = gpubp.mlp([3, 2], members=2, device="cpu")
    gpubp.save(net, "m.safetensors")
    assert run("export", "m.safetensors").stdout == "ONNX: m.onnx\ninputs: X\noutputs: scores, probabilities\n"
    X = np.ones((5, 3), "f4")
    np.testing.assert_allclose(predictions("m.onnx", X=X)["probabilities"], net.predict(X), atol=1e-5)


def test_what_is_refused(model, folder, monkeypatch):
    assert "--out: there is no directory nowhere" in refused("export", model, "--out", "nowhere/m.onnx", code=2)
    assert "would overwrite an input" in refused("export", model, "--out", model, code=2)
    Path("m.onnx").write_bytes(Path(model).read_bytes())
    assert "would overwrite an input" in refused("export", "m.onnx", code=2)
    assert "nothing: there is no such file" in refused("export", "nothing", code=1)
    Path("text").write_text("no model", encoding="utf-8")
    assert "text is not a complete safetensors file" in refused("export", "text", code=1)
    gpubp.save(gpubp.load(model), "broken.safetensors", metadata={"table": {}})
    assert "is damaged" in refused("export", "broken.safetensors", code=1)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install 'gpubp[onnx]'" in refused("export", model, code=1)
