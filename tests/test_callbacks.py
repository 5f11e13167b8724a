"""What is measured, History, early stopping, log files and the progress bar."""

from __future__ import annotations

import csv
import sys

import numpy as np
import pytest
from test_summary import Cells

import gpubp
from gpubp.backend import to_host
from gpubp.callbacks import Progress
from gpubp.data.minibatches import in_order
from gpubp.errors import GpubpError, SettingError, TrainingDivergedError
from gpubp.trainer import norm_of


def examples(N=40, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, 4)), rng.integers(0, 3, N)


@pytest.fixture(params=["numpy", "kernels", "stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Each executor in turn."""
    fixtures = {"numpy": "numpy_ops", "kernels": "cpu_kernels", "stand-in": "fake_cupy"}
    if request.param in fixtures:
        request.getfixturevalue(fixtures[request.param])
    return "cpu" if request.param in ("numpy", "kernels") else "cuda:0"


@pytest.mark.parametrize("micro_batch_size", [None, 3])
@pytest.mark.parametrize("members", [None, 2])
def test_the_gradient_norm_is_that_of_the_last_step(device, members, micro_batch_size):
    X, t = examples()
    net = gpubp.mlp([4, 5, 3], members=members, l2=0.1, dtype="float64", device="cpu", rng=0)
    settings = {"batch_size": 16, "order": in_order, "micro_batch_size": micro_batch_size, "progress": False}
    last = net.loss_and_gradients(X[32:], t[32:])[1]
    history = gpubp.fit(net.copy(device=device), X, t, optimizer=gpubp.SGD(1e-30), epochs=2, **settings)
    squares = [(gradient.reshape(members or 1, -1) ** 2).sum(axis=1) for gradient in last.values()]
    expected = np.sqrt(np.sum(squares, axis=0))
    np.testing.assert_allclose(np.reshape(history["gradient_norm"], (2, -1)), [expected, expected], rtol=1e-12)
    assert isinstance(history["gradient_norm"][0], float if members is None else list)


@pytest.mark.parametrize("shape", [(1,), (7,), (2**18 + 5,), (3, 100_003)])
def test_a_norm_is_summed_in_parts_and_in_float64(xp, shape):
    gradient = np.random.default_rng(0).normal(size=shape).astype("float32")
    expected = np.sqrt((gradient.astype(np.float64) ** 2).sum(axis=-1))
    np.testing.assert_allclose(norm_of(xp.asarray(gradient)), expected, rtol=1e-13)
    assert norm_of(xp.asarray(np.full(shape, 1e30, "float32"))).max() == pytest.approx(1e30 * shape[-1] ** 0.5)


@pytest.mark.parametrize(("members", "rate", "expected"), [(None, 0.1, 0.1), (2, 0.1, [0.1, 0.1]), (2, [1, 2], [1, 2])])
def test_the_learning_rate_is_measured(members, rate, expected):
    X, t = examples()
    watch = Watch()
    net = gpubp.mlp([4, 3], members=members, device="cpu")
    optimizer = gpubp.SGD(rate)
    history = gpubp.fit(net, X, t, optimizer=optimizer, epochs=2, callbacks=[watch], progress=False)
    assert history["learning_rate"] == [expected, expected]
    assert watch.announced == list(history.columns) == [
        "epoch", "loss", "seconds", "examples_per_second", "learning_rate", "gradient_norm"]  # fmt: skip
    assert watch.told == [{name: column[k] for name, column in history.columns.items()} for k in range(2)]


class Watch(gpubp.Callback):
    """Keeps what it is told."""

    def on_train_begin(self, network, measures):
        self.announced, self.told = measures, []

    def on_epoch_end(self, network, measured):
        self.told.append(measured)
        return False


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


def trained(members=None, epochs=3, **settings):
    """The history of a small training."""
    X, t = examples()
    net = gpubp.mlp([4, 5, 3], members=members, device="cpu", rng=0)
    return gpubp.fit(net, X, t, epochs=epochs, validation=(X[:9], t[:9]), progress=False, **settings)


@pytest.mark.parametrize("members", [None, 3])
def test_losses_rate_and_norm_are_drawn(members):
    record = trained(members)
    figure = record.plot()
    losses, rate, norm = figure.axes
    for axes, names in ((losses, ["loss", "validation_loss"]), (rate, ["learning_rate"]), (norm, ["gradient_norm"])):
        values = [np.reshape(record[name], (3, -1)) for name in names]  # (epochs, E)
        lines = iter(axes.get_lines())
        for columns in values:
            for member in columns.T if members else ():
                line = next(lines)
                assert line.get_alpha() < 0.5
                np.testing.assert_array_equal(line.get_ydata(), member)
            line = next(lines)
            assert line.get_alpha() is None
            np.testing.assert_allclose(line.get_ydata(), columns.mean(axis=1))
            np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
        assert not list(lines)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "learning rate", "gradient norm"]
    words = [entry.get_text() for entry in losses.get_legend().get_texts()]
    assert words == (
        [*map("{}, mean of 3".format, ("training", "validation"))] if members else ["training", "validation"]
    )


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([1, 0.5, 0.11], "linear"), ([1, 0.5, 0.09], "log"), ([1, 0.5, 0], "linear"), ([1, -0.5, 0.01], "linear")],
)
def test_a_scale_is_logarithmic_where_it_spans_more_than_a_decade(losses, scale):
    record = gpubp.History()
    for epoch, loss in enumerate(losses):
        record.append({"epoch": epoch, "loss": loss, "learning_rate": loss, "gradient_norm": 1.0})
    axes = record.plot().axes
    assert [one.get_yscale() for one in axes] == [scale, scale, "linear"]


def test_a_single_epoch_is_seen(tmp_path):
    figure = trained(epochs=1).plot(tmp_path / "one.png")
    assert all(line.get_marker() == "o" for axes in figure.axes for line in axes.get_lines())


@pytest.mark.parametrize("members", [None, 2])
def test_a_notebook_shows_the_last_epochs(members):
    record = gpubp.History()
    for epoch in range(1, 26):
        record.append({"epoch": epoch, "loss": 1 / epoch if members is None else [1 / epoch, 3 / epoch]})
    html = Cells(record._repr_html_())
    assert html.rows[0] == ["epoch", "loss"]
    assert html.rows[1:] == [[str(k), f"{(1 if members is None else 2) / k:.4g}"] for k in range(6, 26)]
    notes = ["the last 20 of 25 epochs", "means over the members of the stack"]
    assert html.notes == notes[: 1 if members is None else 2]
    assert Cells(gpubp.History()._repr_html_()).rows == [[]]


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


def rows_of(path):
    """Header and rows of a CSV file."""
    with open(path, newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


@pytest.mark.parametrize("members", [None, 2])
def test_a_line_is_logged_for_each_epoch(members, tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("what was there before\n")
    record = trained(members, callbacks=[gpubp.CSVLogger(path)])
    record.to_csv(tmp_path / "history.csv")
    header, rows = rows_of(path)
    expected_header, expected = rows_of(tmp_path / "history.csv")
    assert header == expected_header
    assert ("loss.1" in header) == (members is not None)
    assert [[float(number) for number in row] for row in rows] == [
        [float(number) for number in row] for row in expected
    ]


def test_a_log_goes_on_where_it_stopped(tmp_path):
    log = gpubp.CSVLogger(tmp_path / "log.csv", append=True)
    X, t = examples()
    net, optimizer = gpubp.mlp([4, 3], device="cpu"), gpubp.SGD()
    for epochs in (2, 0, 1):
        gpubp.fit(net, X, t, optimizer=optimizer, epochs=epochs, callbacks=[log], progress=False)
    assert [row[0] for row in rows_of(tmp_path / "log.csv")[1]] == ["1", "2", "3"]
    text = (tmp_path / "log.csv").read_text()
    (tmp_path / "log.csv").write_text(text[:-5])  # as a machine that goes down leaves it
    gpubp.fit(net, X, t, optimizer=optimizer, epochs=1, callbacks=[log], progress=False)
    assert [row[0] for row in rows_of(tmp_path / "log.csv")[1]] == ["1", "2", "3", "4"]
    assert (tmp_path / "log.csv").read_text().startswith(text[:-5] + "\n")


def test_a_log_under_another_header_is_left_as_it_is(tmp_path):
    path = tmp_path / "log.csv"
    trained(callbacks=[gpubp.CSVLogger(path)])
    before = path.read_bytes()
    X, t = examples()
    for net, settings in (
        (gpubp.mlp([4, 3], device="cpu"), {}),
        (gpubp.mlp([4, 3], members=2, device="cpu"), {"validation": (X, t)}),
    ):
        kept = net.theta.copy()
        log = gpubp.CSVLogger(path, append=True)
        with pytest.raises(
            GpubpError, match=r"log.csv: the columns epoch, loss.* not epoch, loss, .*validation_loss: ta"
        ):
            gpubp.fit(net, X, t, callbacks=[log], progress=False, **settings)
        np.testing.assert_array_equal(net.theta, kept)
    assert path.read_bytes() == before
    path.write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(GpubpError, match="can't write .*log.csv"):
        trained(callbacks=[gpubp.CSVLogger(path, append=True)])
    assert path.read_bytes() == b"\xff\xfe\x00binary"


def test_a_log_that_cannot_be_written_is_told_before_the_training(tmp_path):
    for path in (tmp_path / "nowhere" / "log.csv", tmp_path):
        for append in (False, True):
            with pytest.raises(GpubpError, match=f"can't write {path}"):
                trained(callbacks=[gpubp.CSVLogger(path, append=append)])


class Interrupt(gpubp.Callback):
    """Ctrl-C after two epochs."""

    def on_epoch_end(self, network, measured):
        if measured["epoch"] == 2:
            raise KeyboardInterrupt
        return False


def test_nothing_is_lost_when_a_training_is_interrupted_or_diverges(tmp_path):
    path = tmp_path / "log.csv"
    with pytest.raises(KeyboardInterrupt):
        trained(epochs=9, callbacks=[gpubp.CSVLogger(path), Interrupt()])
    assert [row[0] for row in rows_of(path)[1]] == ["1", "2"]
    X, t = examples()
    net = gpubp.mlp([4, 3], loss="squared_error", device="cpu")
    with pytest.raises(TrainingDivergedError):
        gpubp.fit(net, X, np.eye(3)[t], optimizer=gpubp.SGD(1e4), epochs=99, callbacks=[gpubp.CSVLogger(path)])
    assert [int(row[0]) for row in rows_of(path)[1]] == list(range(1, net.epochs_trained + 1))
    assert net.epochs_trained


def test_a_logger_of_a_loop_of_ones_own_says_if_columns_change(tmp_path):
    log = gpubp.CSVLogger(tmp_path / "log.csv")
    net = gpubp.mlp([4, 3], device="cpu")
    log.on_train_begin(net, ["epoch", "accuracy"])
    log.on_epoch_end(net, {"epoch": 1, "accuracy": 0.5})
    with pytest.raises(GpubpError, match="the columns epoch, accuracy are to be written, not epoch"):
        log.on_epoch_end(net, {"epoch": 1})
    assert rows_of(tmp_path / "log.csv") == (["epoch", "accuracy"], [["1", "0.5"]])


def tensor_board(*arguments, **settings):
    """A `TensorBoard`, where the library that it writes with is installed."""
    pytest.importorskip("tensorboardX")
    return gpubp.TensorBoard(*arguments, **settings)


def events(folder):
    """Every value of the event files of a folder, as (tag, step, value): read with the check sums of each record."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    def checked(data, expected):
        crc = crc32c(data)
        masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
        assert masked == int.from_bytes(expected, "little")
        return data

    found = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(checked(content[:8], content[8:12]), "little")
            event = Event.FromString(checked(content[12 : 12 + length], content[12 + length : 16 + length]))
            found += [(value.tag, event.step, value) for value in event.summary.value]
            content = content[16 + length :]
    return found


@pytest.mark.parametrize("members", [None, 2])
def test_event_files_hold_what_was_measured(members, tmp_path):
    folder = tmp_path / "some" / "run"
    record = trained(members, callbacks=[tensor_board(folder)])
    shared = ("seconds", "examples_per_second")
    expected = {}
    for name, column in record.columns.items():
        for e in range(members or 1):
            tag = name if members is None or name in shared else f"{name}/{e}"
            for epoch, value in zip(record["epoch"], column, strict=True):
                expected[tag, epoch] = np.float32(value if tag == name else value[e]) if name != "epoch" else None
    found = {(tag, step): np.float32(value.simple_value) for tag, step, value in events(folder)}
    assert found == {key: value for key, value in expected.items() if value is not None}
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("members", [None, 2])
def test_event_files_hold_histograms_of_parameters_and_gradients(device, members, tmp_path):
    X, t = examples()
    net = gpubp.mlp([4, 5, 3], members=members, device=device, rng=0)
    board = tensor_board(tmp_path, histograms=True)
    settings = {"batch_size": 16, "micro_batch_size": 3, "progress": False}
    gpubp.fit(net, X, t, epochs=2, callbacks=[board], **settings)
    histograms = {(tag, step): value.histo for tag, step, value in events(tmp_path) if value.HasField("histo")}
    flat = {"parameters": net.theta, "gradients": net.plan.dL_dtheta}
    named = {kind: net.named_gradients(array) for kind, array in flat.items()}
    suffixes = [""] if members is None else ["/0", "/1"]
    assert set(histograms) == {
        (f"{kind}/{name}{suffix}", epoch)
        for kind in flat for name in net.parameters for suffix in suffixes for epoch in (1, 2)
    }  # fmt: skip
    for kind, views in named.items():
        for name, view in views.items():
            for e, suffix in enumerate(suffixes):
                values = to_host(view if members is None else view[e]).astype(float)
                histogram = histograms[f"{kind}/{name}{suffix}", 2]
                assert (histogram.num, sum(histogram.bucket)) == (values.size, values.size)
                assert (histogram.min, histogram.max) == (values.min(), values.max())
                assert histogram.sum == pytest.approx(values.sum(), abs=1e-6)
                assert histogram.sum_squares == pytest.approx((values**2).sum(), rel=1e-6)


def test_tensorboard_reads_the_event_files(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    record = trained(callbacks=[tensor_board(tmp_path, histograms=True)])
    log = reader.EventAccumulator(str(tmp_path))
    log.Reload()
    assert set(log.Tags()["scalars"]) == set(record.columns) - {"epoch"}
    for name in log.Tags()["scalars"]:
        assert [event.step for event in log.Scalars(name)] == [1, 2, 3]
        np.testing.assert_array_equal([event.value for event in log.Scalars(name)], np.float32(record[name]))
    assert "gradients/2.W" in log.Tags()["histograms"]
    assert log.Histograms("parameters/0.W")[-1].histogram_value.num == 20


def test_an_event_file_is_whole_after_an_interrupt(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trained(epochs=9, callbacks=[tensor_board(tmp_path), Interrupt()])
    assert {step for _, step, _ in events(tmp_path)} == {1, 2}


def test_a_second_training_adds_an_event_file(tmp_path):
    X, t = examples()
    net, optimizer, board = gpubp.mlp([4, 3], device="cpu"), gpubp.SGD(), tensor_board(tmp_path)
    for epochs in (1, 2):
        gpubp.fit(net, X, t, optimizer=optimizer, epochs=epochs, callbacks=[board], progress=False)
    assert len(list(tmp_path.iterdir())) == 2
    assert [step for tag, step, _ in events(tmp_path) if tag == "loss"] == [1, 2, 3]


def test_event_files_can_be_read_while_the_training_runs(tmp_path):
    seen = []

    class Reader(gpubp.Callback):
        """Reads what is there after each epoch."""

        def on_epoch_end(self, network, measured):
            seen.append({step for _, step, _ in events(tmp_path)})
            return False

    trained(callbacks=[tensor_board(tmp_path), Reader()])
    assert seen == [{1}, {1, 2}, {1, 2, 3}]


def test_a_training_that_does_not_begin_leaves_no_event_file(tmp_path):
    X, t = examples()
    callbacks = [tensor_board(tmp_path), gpubp.EarlyStopping()]
    with pytest.raises(SettingError, match="validation"):
        gpubp.fit(gpubp.mlp([4, 3]), X, t, callbacks=callbacks, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(GpubpError, match="can't write into the folder .*file"):
        trained(callbacks=[tensor_board(tmp_path / "file" / "run")])


def test_without_tensorboardX_it_is_told_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(GpubpError, match=r"gpubp\[tensorboard\]"):
        gpubp.TensorBoard(tmp_path)


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
