"""History, early stopping and the progress bar."""

from __future__ import annotations

import csv

import numpy as np
import pytest

import gpubp
from gpubp.callbacks import Progress
from gpubp.errors import GpubpError, SettingError


def history(members=None):
    record = gpubp.History()
    for epoch in range(1, 4):
        loss = 1 / epoch if members is None else [1 / (epoch + e) for e in range(members)]
        record.append({"epoch": epoch, "loss": loss, "validation_loss": loss, "seconds": 0.5})
    return record


def test_history_is_a_table():
    record = history()
    assert len(record) == 3
    assert record["loss"] == [1, 1 / 2, 1 / 3]
    assert "validation_loss" in record
    assert "accuracy" not in record
    assert "3 epochs" in repr(record)


@pytest.mark.parametrize(("members", "header"), [(None, ["loss"]), (2, ["loss.0", "loss.1"])])
def test_history_goes_to_csv(members, header, tmp_path):
    record = history(members)
    record.to_csv(tmp_path / "history.csv")
    with open(tmp_path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    np.testing.assert_array_equal([[float(row[name]) for name in header] for row in rows],
                                  np.reshape(record["loss"], (3, -1)))  # fmt: skip


@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_history_is_drawn(members, ending, tmp_path):
    path = tmp_path / f"loss.{ending}"
    history(members).plot(path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if ending == "png" else b"<?xml")
    if ending == "svg":
        assert b"validation" in content


def test_an_empty_history_is_drawn_and_written(tmp_path):
    gpubp.History().plot(tmp_path / "empty.png")
    gpubp.History().to_csv(tmp_path / "empty.csv")
    assert (tmp_path / "empty.png").stat().st_size > 0


def test_history_that_cannot_be_written_says_where(tmp_path):
    with pytest.raises(GpubpError, match="can't write .*nowhere"):
        history().to_csv(tmp_path / "nowhere" / "history.csv")
    with pytest.raises(GpubpError, match="can't write .*nowhere"):
        history().plot(tmp_path / "nowhere" / "history.png")
    with pytest.raises(GpubpError, match="picture"):
        history().plot(tmp_path / "history.doc")
    assert list(tmp_path.iterdir()) == []


def run(stopping, losses, members=None):
    """Feed losses to early stopping; the weights of epoch k are all k. Returns the network and the last epoch."""
    net = gpubp.mlp([2, 2], members=members)
    stopping.on_train_begin(net, ["validation_loss"])
    for epoch, loss in enumerate(losses, start=1):
        net.theta[...] = epoch
        if stopping.on_epoch_end(net, {"epoch": epoch, "validation_loss": loss}):
            break
    stopping.on_train_end(net)
    return net, epoch


def test_early_stopping_waits_for_its_patience_and_puts_the_best_weights_back():
    stopping = gpubp.EarlyStopping(patience=2)
    net, last = run(stopping, [5, 3, 4, 2, 2, 3, 1, 0])
    assert last == 6
    assert (net.theta == 4).all()
    assert (stopping.best, stopping.best_epoch) == (2, 4)


def test_early_stopping_may_ask_for_a_minimum_change():
    net, last = run(gpubp.EarlyStopping(patience=3, minimum_change=0.5), [5, 4.8, 4.6, 4.4, 4.3, 4.2])
    assert (net.theta == 4).all()
    assert last == 6


def test_early_stopping_keeps_the_best_weights_of_each_member():
    stopping = gpubp.EarlyStopping(patience=2)
    net, last = run(stopping, [[1, 9], [2, 8], [3, 7], [4, 7.5], [0.5, 7.5], [3, 3]], members=2)
    assert last == 5
    assert (
        net.theta[0] == 1
    ).all()  # out of patience in epoch 3: the loss of epoch 5 comes too late, as it would alone
    assert (net.theta[1] == 3).all()


def test_early_stopping_without_any_epoch_leaves_the_weights():
    net = gpubp.mlp([2, 2], rng=0)
    kept = net.theta.copy()
    stopping = gpubp.EarlyStopping()
    stopping.on_train_begin(net, ["validation_loss"])
    stopping.on_train_end(net)
    np.testing.assert_array_equal(net.theta, kept)


def test_early_stopping_never_takes_a_loss_that_is_not_a_number_for_the_best():
    net, _ = run(gpubp.EarlyStopping(patience=5), [3, np.nan, 4])
    assert (net.theta == 1).all()


def test_early_stopping_in_a_fit_ends_it_with_the_best_weights():
    rng = np.random.default_rng(0)
    X, t = rng.normal(size=(40, 4)), rng.integers(0, 2, 40)
    validation = rng.normal(size=(40, 4)), rng.integers(0, 2, 40)  # noise: the validation loss soon rises
    net = gpubp.mlp([4, 32, 2], rng=0)
    stopping = gpubp.EarlyStopping(patience=5)
    record = gpubp.fit(net, X, t, optimizer=gpubp.Adam(0.05), epochs=200, validation=validation, callbacks=[stopping])
    assert len(record) < 200
    assert net.evaluate(*validation) == pytest.approx(min(record["validation_loss"]), rel=1e-6)


@pytest.mark.parametrize("settings", [{"patience": 0}, {"minimum_change": -1.0}])
def test_settings_out_of_range_are_named(settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        gpubp.EarlyStopping(**settings)


class Terminal:
    """A stand-in for a terminal on standard error."""

    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text
        return len(text)

    def flush(self):
        pass


def test_progress_is_shown_on_a_terminal_only(monkeypatch, capsys):
    with Progress(10, show=True) as bar:
        assert not bar.due
        bar.show(5, "1/2", 0.25, 1000)
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress(10, show=True) as bar:
        assert bar.due
        bar.show(5, "1/2", 0.25, 1000)
        assert not bar.due
    assert "epoch 1/2" in terminal.text
    assert "loss 0.25" in terminal.text
    assert "1,000 examples/s" in terminal.text
    quiet = Terminal()
    monkeypatch.setattr("sys.stderr", quiet)
    with Progress(10, show=False) as bar:
        assert not bar.due
    assert quiet.text == ""
