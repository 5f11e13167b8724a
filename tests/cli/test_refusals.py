"""Everything that `gpubp train` refuses, with nothing written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from command_line import refused, run

import gpubp


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch-size", "0"], "--batch-size"),
        (["--batch-size", "many"], "--batch-size"),
        (["--epochs", "0"], "--epochs"),
        (["--seed", "-1"], "--seed"),
        (["--layers", "12,x"], "--layers 12,x: 'x' is not a width. Write whole numbers"),
        (["--layers", "0"], "--layers 0: '0' is not a width"),
        (["--layers", ""], "--layers : '' is not a width"),
        (["--layers", "1.5"], "'1.5' is not a width"),
        (["--layers", "-3"], "'-3' is not a width"),
        (["--layers", "99999999"], "'99999999' is not a width"),
        (["--layers", "9" * 5000], "999' is not a width"),
        (["--activation", "relux"], "unknown activation 'relux': use one of elu, gelu, identity"),
        (["--optimizer", "rmspropp"], "unknown optimizer 'rmspropp': use one of adam"),
        (["--device", "gpu"], "unknown device 'gpu': use 'cpu', 'cuda', 'cuda:1' or 'auto'"),
        (["--task", "sorting"], "unknown task 'sorting': use 'auto', 'classification' or 'regression'"),
        (["--dtype", "int8"], "--dtype int8: use float32 or float64"),
        (["--learning-rate", "-1"], "--learning-rate -1: a number above 0 and finite is needed"),
        (["--learning-rate", "0"], "--learning-rate 0: a number above 0"),
        (["--learning-rate", "inf"], "--learning-rate inf: a number above 0 and finite"),
        (["--learning-rate", "nan"], "--learning-rate nan: "),
        (["--l2", "-0.1"], "--l2 -0.1: a number at least 0 and finite is needed"),
        (["--l2", "inf"], "--l2 inf: "),
        (["--held-out", "0"], "--held-out 0: a number above 0 and below 1 is needed"),
        (["--held-out", "1"], "--held-out 1: "),
        (
            ["--out", "nowhere/model.safetensors"],
            "--out: there is no directory nowhere; make it first, or name another",
        ),
        (["--out", "."], "--out: . is a directory; name a file in it"),
        (["--out", "model.png"], "--out model.png: the loss curve goes by that name"),
        (["--out", "pets.csv"], "--out: pets.csv would overwrite an input; name another file"),
        (["--out", "/dev/null"], "--out: /dev/null is no regular file"),
        (["--targt", "kind"], "No such option: --targt"),
        (["more.csv"], "unexpected extra argument"),
    ],
)
def test_wrong_options_are_refused_before_anything_else(pets, monkeypatch, options, said):
    monkeypatch.setattr(gpubp, "fit", lambda *a, **s: pytest.fail("training began"))
    assert said in refused("train", pets, "--target", "kind", *options, code=2)


def test_settings_are_looked_at_before_the_data_is_read(folder):
    assert "unknown activation" in refused("train", "nothing.csv", "--activation", "relux", code=2)
    assert "unknown device" in refused("predict", "nothing", "nothing.csv", "--device", "gpu", code=2)
    assert "unknown activation" in refused("check", "nothing.csv", "--activation", "relux", code=2)
    assert "is not a width" in refused("check", "--layers", "x", code=2)


def test_a_directory_that_is_read_only(pets, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    assert "--out: nothing can be written in ." in refused("train", pets, "--out", "model", code=2)


@pytest.mark.skipif(gpubp.why_no_cuda() is None, reason="there is a CUDA device")
def test_a_device_that_is_not_there(pets, model):
    said = refused("train", pets, "--target", "kind", "--device", "cuda", code=1)
    assert "device 'cuda' was asked for, but " in said
    assert "device 'cuda' was asked for" in refused("predict", model, pets, "--device", "cuda", code=1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "bad.csv is empty"),
        (b"x,y\n", "bad.csv has a header but no rows"),
        (b"x,y\n1,a\n2\n", "bad.csv, line 3: 1 field, but the header has 2"),
        (b"x,x,y\n1,1,a\n", "columns 1 and 2 are both named 'x'"),
        (b"x,y\n1,caf\xe9\n", "bad.csv is not UTF-8 text (line 2)"),
        (b"x,z\n1,a\n", "bad.csv has no column 'y'"),
        (b"x,y\n" + b"1,a\n" * 20 + b",b\n", "bad.csv, line 22, column 'x': the cell is empty"),
        (b"x,y\n" + b"1,a\n" * 20 + b"nan,b\n", "bad.csv, line 22, column 'x': 'nan' stands for a missing value"),
        (b"x,y\n" + b"1,a\n" * 20 + b"inf,b\n", "bad.csv, line 22, column 'x': 'inf' is not a finite number"),
        (b"x,y\n" + b"1,a\n" * 20 + b"o,b\n", "bad.csv, line 22, column 'x': 'o' is not a number"),
        (b"x,y\n" + b"1,a\n" * 20, "every row has the class 'a'"),
        (b"x,y\n" + b"1,a\n1,b\n" * 2, "4 rows are too few"),
        (b"x,y\n" + b"".join(b"1,c%d\n" % i for i in range(15)), "too few examples of each class"),
        (b"y\n" + b"a\nb\n" * 10, "no column but the target"),
    ],
)
def test_tables_that_can_not_be_trained_on(folder, content, said):
    (folder / "bad.csv").write_bytes(content)
    assert said in refused("train", "bad.csv", "--target", "y", code=1)


def test_data_that_is_not_there(pets, folder):
    said = refused("train", "digitz", code=1)
    assert said == (
        "error: there is no file 'digitz', and no bundled data set of that name "
        "(digits, iris, breast_cancer, wine, diabetes)\n"
    )
    (folder / "deep").mkdir()
    assert "is a directory; a CSV, Parquet, .npz, .npy or IDX file is needed" in refused(
        "train", "deep", "--target", "y", code=1
    )
    assert refused("train", pets, code=2) == (
        "error: which column is to be learned? Add --target COLUMN; pets.csv has: weight, colour, kind\n"
    )
    said = refused("train", pets, "--target", "kidn", code=1)
    assert said == "error: pets.csv has no column 'kidn'. Did you mean 'kind'? Its columns: weight, colour, kind\n"


def test_a_loss_that_explodes_is_told_with_its_place(pets):
    outcome = run("train", pets, "--target", "kind", "--learning-rate", "1e30", "--quiet")
    assert outcome.exit_code == 1
    first, *table, last = outcome.stderr.splitlines()
    assert re.fullmatch(r"error: the loss or a weight is not a finite number in epoch \d+, batch \d+ of \d+\.", first)
    assert "largest |activation|" in table[0]
    assert any(line.strip().startswith("Dense(") for line in table)
    assert "Try a smaller learning rate than 1e+30" in last
    assert sorted(path.name for path in Path().iterdir()) == ["pets.csv"]


def test_memory_that_is_not_there(pets, monkeypatch):
    def too_much(*a, **s):
        raise MemoryError("Unable to allocate 3.5 TiB")

    monkeypatch.setattr(gpubp, "fit", too_much)
    outcome = run("train", pets, "--target", "kind", "--quiet")
    assert (outcome.exit_code, outcome.stderr) == (1, "error: not enough memory. Unable to allocate 3.5 TiB\n")
