"""What a network takes, in words, and what notebooks show: against counts made here."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

import gpubp
from gpubp.errors import GpubpError
from gpubp.showing import Table, new_figure, preformatted


class Cells(HTMLParser):
    """The texts of an HTML table, row by row, and of the paragraphs below."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.notes, self._open, self.attributes = [], [], [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self._open.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        (self.rows[-1] if self._open[-1] in ("td", "th") else self.notes).append(data)


def cells(network, batch_size=256):
    """The rows of a summary without the header, split at two blanks, and the notes."""
    lines = network.summary(batch_size).splitlines()
    return [re.split(r"\s{2,}", line.strip()) for line in lines[1:-2]], lines[-2:]


def test_layers_shapes_parameters_and_operations_of_a_network():
    rows, notes = cells(gpubp.mlp([7, 5, 3], activation="tanh", standardize=True, dtype="float64", device="cpu"), 32)
    assert rows == [
        ["0 Standardize(n=7)", "(N, 7)", "0", "14"],  # less the mean, divided by the scale
        ["1 Dense(7, 5)", "(N, 5)", "40", "75"],  # 7 products and 7 sums for each of 5 outputs, and the bias
        ["2 Tanh()", "(N, 5)", "0", "10"],
        ["3 Dense(5, 3)", "(N, 3)", "18", "33"],
    ]
    assert notes[0] == "58 parameters in float64, 464 bytes; loss SoftmaxCrossEntropy()"
    assert re.fullmatch(
        r"a training step of 32 examples: [\d,]+ FLOP on [\d,]+ bytes read and written, [\d.]+ FLOP per byte; "
        r"[\d,]+ bytes of workspace",
        notes[1],
    )


def test_a_step_tells_its_arithmetic_and_its_bytes():
    """One layer, squared error, float64: by hand, operation by operation."""
    N, a, b = 8, 3, 2
    net = gpubp.Network([gpubp.Dense(a, b)], "squared_error", dtype="float64", device="cpu")
    forward = 2 * N * a * b + N * b  # products and sums, the bias
    backward = N * b + 2 * N * a * b  # dL_db, dL_dW
    loss = 5 * N * b
    of_products = 2 * (N * a + a * b + N * b)  # forward, dL_dW: X or W, dL_dY or Y, dL_dW
    moved = of_products + 2 * N * b + N * b + 3 * N * b  # the bias into Y, dL_db out of dL_dY; Y, T, dL_dY of the loss
    flops = forward + backward + loss
    note = net.summary(N).splitlines()[-1]
    assert f" 8 examples: {flops} FLOP on {8 * moved:,} bytes read and written, {flops / (8 * moved):.1f} FLOP" in note


def test_a_stack_has_its_members_in_shapes_and_counts():
    rows, notes = cells(gpubp.mlp([7, 5, 3], standardize=True, members=4, device="cpu"))
    assert [row[1:3] for row in rows] == [
        ["(N, 7)", "0"],  # all members share the data, and what it is standardised to
        ["(4, N, 5)", "160"],
        ["(4, N, 5)", "0"],
        ["(4, N, 3)", "72"],
    ]
    assert rows[1][3] == str(4 * 75)
    assert notes[0].startswith("232 parameters in float32, 928 bytes")


@pytest.mark.parametrize("members", [None, 3])
def test_the_workspace_is_that_of_the_plan(members):
    net = gpubp.mlp([7, 50, 3], members=members, device="cpu")
    assert f" {gpubp.StepPlan(net, 100).workspace_bytes:,} bytes of workspace" in net.summary(100)


def test_columns_line_up_however_long_a_layer_prints():
    lines = gpubp.mlp([7, 1234567, 3], device="cpu", members=1).summary().splitlines()[:-2]
    assert len({len(line) for line in lines}) == 1


def test_a_notebook_shows_the_same():
    net = gpubp.mlp([7, 5, 3], device="cpu")
    html, (rows, notes) = Cells(net._repr_html_()), cells(net)
    assert html.rows[0] == ["layer", "output", "parameters", "forward FLOP/example"]
    assert html.rows[1:] == rows
    assert html.notes == notes
    assert set(html.attributes) == {"style"}


def test_html_is_escaped():
    text = Table(("a<b", "c"), [("<script>", "&")], ["1 < 2"]).html()
    assert "<script>" not in text
    assert Cells(text).rows == [["a<b", "c"], ["<script>", "&"]]
    assert Cells(text).notes == ["1 < 2"]
    assert preformatted("<b> & c") == "<pre>&lt;b&gt; &amp; c</pre>"


def test_a_table_in_text():
    table = Table(("name", "n"), [("a", "10,000"), ("longer", "")], ["note"])
    assert table.text() == "name         n\na       10,000\nlonger\nnote"
    assert Table(("name", "n"), []).text() == "name  n"


def test_a_gradient_report_is_shown_as_it_prints():
    report = gpubp.check_gradients(gpubp.mlp([3, 2]), np.ones((2, 3)), [0, 1])
    assert report._repr_html_() == preformatted(str(report))


def test_without_matplotlib_it_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(GpubpError, match=r"gpubp\[plot\]"):
        new_figure(1, 1)


def test_a_layer_of_ones_own_is_in_the_summary(monkeypatch):
    monkeypatch.setattr(gpubp.Layer, "by_name", dict(gpubp.Layer.by_name))

    class Double(gpubp.Identity):
        """A layer whose name is markup."""

        def __repr__(self):
            return "<b>Double</b>"

    net = gpubp.Network([gpubp.Dense(2, 3), Double()], "squared_error", device="cpu")
    assert "1 <b>Double</b>  (N, 3)" in net.summary()
    assert "<b>" not in net._repr_html_()
    assert Cells(net._repr_html_()).rows[2][0] == "1 <b>Double</b>"
