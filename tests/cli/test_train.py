"""`gpubp train`: what it prints and writes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import SMALL, refused, run, write_csv

import gpubp
from gpubp.data.bundled import load_bundled


@pytest.mark.parametrize("seed", range(5))
def test_digits_reach_97_percent_with_defaults(folder, seed):
    outcome = run("train", "digits", "--seed", seed)
    assert outcome.exit_code == 0
    accuracy = re.search(r"^held-out accuracy: (\d\.\d{4})$", outcome.stdout, re.MULTILINE)
    assert float(accuracy[1]) >= 0.97
    assert sorted(path.name for path in folder.iterdir()) == ["model.png", "model.safetensors"]
    assert Path("model.png").read_bytes().startswith(b"\x89PNG")


def test_a_csv_of_the_same_digits_gives_the_same(folder):
    columns = load_bundled("digits").columns
    write_csv(folder / "some.csv", {"label": columns.pop("label"), **columns})
    bundled = run("train", "digits", "--quiet", "--epochs", 3)
    own = run("train", "some.csv", "--target", "label", "--quiet", "--epochs", 3)
    assert own.stdout == bundled.stdout
    assert re.fullmatch(r"held-out accuracy: \d\.\d{4}\n", own.stdout)


def test_what_is_printed_of_a_classification(pets):
    outcome = run("train", pets, "--target", "kind", "--layers", "16,8", "--activation", "tanh", "--out", "p.model")
    lines = outcome.stdout.splitlines()
    assert outcome.stderr == ""
    assert lines[:5] == [
        "data: pets.csv, 200 rows, 2 input columns (1 of text, 4 inputs in all)",
        "target: kind, 3 classes: cat, dog, fox",
        "rows: 136 to train, 24 to validate, 40 held out",
        "network: 4 -> 16 tanh -> 8 tanh -> 3, softmax_cross_entropy, 243 parameters, float32",
        "device: cpu" if gpubp.why_no_cuda() else "device: cuda:0",
    ]
    assert re.fullmatch(r"trained: \d+ epochs in \d+\.\d s; the best one, \d+, is kept", lines[5])
    assert lines[6] == "held-out rows by true class (down) and predicted class (across):"
    assert lines[7].split() == ["truth", "cat", "dog", "fox"]
    counts = [[0 if cell == "." else int(cell) for cell in line.split()[1:]] for line in lines[8:11]]
    assert [line.split()[0] for line in lines[8:11]] == ["cat", "dog", "fox"]
    assert np.sum(counts) == 40
    assert lines[11] == f"held-out accuracy: {np.trace(counts) / 40:.4f}"
    assert np.trace(counts) >= 36
    assert lines[12:] == ["model: p.model", "loss curve: p.png"]


def test_a_quantity_is_scored_in_its_own_units(folder):
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    write_csv(folder / "line.csv", {"x": x, "y": 5000 + 300 * x + rng.normal(0, 30, 300)})
    outcome = run("train", "line.csv", "--target", "y", "--layers", "16")
    assert "target: y, a quantity" in outcome.stdout
    R2 = float(re.search(r"^held-out R2: (\d\.\d{4})$", outcome.stdout, re.MULTILINE)[1])
    RMSE = float(re.search(r"^held-out RMSE: (\d+\.\d\d)$", outcome.stdout, re.MULTILINE)[1])
    assert R2 > 0.97
    assert 20 < RMSE < 50
    assert "accuracy" not in outcome.stdout
    write_csv(folder / "new.csv", {"x": [0.0, 1.0]})
    values = [float(value) for value in run("predict", "model.safetensors", "new.csv").stdout.split()[1:]]
    assert values == pytest.approx([5000, 5300], abs=50)


def test_a_seed_repeats_a_run_and_another_does_not(pets):
    def trained(seed):
        run("train", pets, "--target", "kind", "--quiet", "--seed", seed, *SMALL)
        return gpubp.load("model.safetensors", device="cpu").theta

    first = trained(1)
    np.testing.assert_array_equal(trained(1), first)
    assert (trained(2) != first).any()


def test_held_out_rows_are_not_seen_in_training(folder, monkeypatch):
    x = np.arange(100.0)
    write_csv(folder / "x.csv", {"x": x, "y": x % 2})
    seen, fit = [], gpubp.fit

    def watched(net, X, T, *, validation, **settings):
        seen.append((X[:, 0], validation[0][:, 0]))
        return fit(net, X, T, validation=validation, **settings)

    scored = []
    predict = gpubp.Network.predict
    monkeypatch.setattr(gpubp, "fit", watched)
    monkeypatch.setattr(
        gpubp.Network, "predict", lambda net, X, **s: scored.append(np.asarray(X)[:, 0]) or predict(net, X, **s)
    )
    run("train", "x.csv", "--target", "y", "--held-out", "0.3", *SMALL)
    train, validation = seen[0]
    assert sorted([*train, *validation, *scored[0]]) == list(x)
    assert len(scored[0]) == 30
    net = gpubp.load("model.safetensors", device="cpu")
    assert net.layers[0].constants["mean"][0] == pytest.approx(train.mean(), rel=1e-6)


def test_the_best_weights_on_the_validation_rows_are_kept(pets, monkeypatch):
    fit, kept = gpubp.fit, {}

    def watched(net, X, T, *, validation, **settings):
        history = fit(net, X, T, validation=validation, **settings)
        kept.update(loss=net.evaluate(*validation), best=min(history["validation_loss"]))
        return history

    monkeypatch.setattr(gpubp, "fit", watched)
    run("train", pets, "--target", "kind", "--learning-rate", "0.1", "--epochs", "30", "--quiet")
    assert kept["loss"] == pytest.approx(kept["best"], rel=1e-5)


def test_options_reach_the_training(pets, monkeypatch):
    given, fit = {}, gpubp.fit
    monkeypatch.setattr(gpubp, "fit", lambda net, *a, **s: given.update(net=net, **s) or fit(net, *a, **s))
    options = [
        "--epochs",
        2,
        "--batch-size",
        7,
        "--learning-rate",
        0.01,
        "--optimizer",
        "sgd",
        "--l2",
        0.5,
        "--seed",
        3,
    ]
    run("train", pets, "--target", "kind", "--layers", "5,4", "--dtype", "float64", "--device", "cpu", *options)
    net = given["net"]
    assert (given["epochs"], given["batch_size"], given["rng"]) == (2, 7, 3)
    assert repr(given["optimizer"]).startswith("SGD(learning_rate=0.01")
    assert (net.l2, str(net.dtype), str(net.device)) == (0.5, "float64", "cpu")
    assert [layer.n_out for layer in net.layers if isinstance(layer, gpubp.Dense)] == [5, 4, 3]


def test_no_penalty_at_all_is_a_choice(pets):
    assert run("train", pets, "--target", "kind", "--l2", "0", *SMALL).exit_code == 0
    assert gpubp.load("model.safetensors", device="cpu").l2 == 0


def test_the_task_can_be_set(folder):
    write_csv(folder / "n.csv", {"x": range(60), "y": [i % 6 for i in range(60)]})
    assert "target: y, 6 classes: 0, 1, 2, 3, 4, 5" in run("train", "n.csv", "--target", "y", *SMALL).stdout
    as_quantity = run("train", "n.csv", "--target", "y", "--task", "regression", *SMALL).stdout
    assert "target: y, a quantity" in as_quantity
    assert "held-out RMSE: " in as_quantity


def test_a_class_with_a_single_example_is_told(folder):
    write_csv(folder / "one.csv", {"x": range(31), "y": [*"ab" * 15, "c"]})
    outcome = run("train", "one.csv", "--target", "y", *SMALL)
    assert outcome.exit_code == 0
    assert outcome.stderr == "note: with a single example, these classes are trained on but not in the score: c\n"
    assert "rows: 22 to train, 4 to validate, 6 held out" not in outcome.stdout
    assert "6 held out" in outcome.stdout


def test_a_column_that_float32_flattens_is_told(folder):
    write_csv(folder / "t.csv", {"time": [1.7e9 + i for i in range(40)], "x": range(40), "y": [*"ab"] * 20})
    outcome = run("train", "t.csv", "--target", "y", *SMALL)
    assert outcome.stderr.startswith("note: these columns vary too little around a large value for float32")
    assert outcome.stderr.endswith("--dtype float64: time\n")
    assert run("train", "t.csv", "--target", "y", "--dtype", "float64", *SMALL).stderr == ""


def test_without_matplotlib_there_is_no_picture_but_a_word(pets, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    outcome = run("train", pets, "--target", "kind", *SMALL)
    assert outcome.exit_code == 0
    assert outcome.stdout.endswith("loss curve: not drawn; it takes Matplotlib: pip install 'gpubp[plot]'\n")
    assert not Path("model.png").exists()
    assert Path("model.safetensors").exists()


def test_a_csv_takes_no_scikit_learn(pets, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert run("train", pets, "--target", "kind", *SMALL).exit_code == 0
    said = refused("train", "iris", "--out", "other.safetensors", code=1)
    assert "pip install 'gpubp[data]'" in said
