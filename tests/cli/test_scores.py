"""Scores and the confusion table."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from gpubp.cli.scores import confusion, print_confusion, score_text, scores


def test_counts_have_rows_for_the_truth():
    Y = np.eye(3)[[0, 1, 1, 2]]
    np.testing.assert_array_equal(confusion(Y, np.array([0, 0, 1, 1])), [[1, 1, 0], [0, 1, 1], [0, 0, 0]])


def test_long_names_go_by_number(capsys):
    print_confusion(np.array([[12, 1], [0, 7]]), ("[red] fox", "a very, very long name of a class"))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "                      truth  1 2",
        "               [red] fox  1 12 1",
        "a very, very long nam...  2  . 7",
    ]


def test_twenty_classes_fit_on_lines_of_80(capsys):
    counts = np.diag(np.full(20, 36))
    print_confusion(counts, tuple(f"newsgroup {i}" for i in range(20)))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 22
    assert max(map(len, lines)) <= 80
    for position, line in enumerate(lines[2:]):
        cells = line.split()
        assert cells[:3] == ["newsgroup", str(position), str(position + 1)]
        assert cells[3:] == ["36" if other == position else "." for other in range(20)]


def test_names_with_brackets_are_no_markup(capsys):
    print_confusion(np.array([[2, 0], [0, 1]]), ("[b]", "a"))
    assert capsys.readouterr().out.splitlines()[1:] == ["truth [b] a", "  [b]   2 .", "    a   . 1"]


def test_too_many_classes_are_told_by_the_worst(capsys):
    counts = np.diag(np.full(50, 9))
    counts[3, 4], counts[7, 0] = 2, 5
    print_confusion(counts, tuple(f"c{i}" for i in range(50)))
    assert capsys.readouterr().out.splitlines()[1:] == ["  5 of 14 c7 taken for c0", "  2 of 11 c3 taken for c4"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("accuracy", 0.97777, "0.9778"),
        ("R2", -0.5, "-0.5000"),
        ("R2", float("nan"), "nan"),
        ("RMSE", 53.123, "53.12"),
        ("RMSE", 50.0, "50.00"),
        ("RMSE", 123456.789, "123456.79"),
        ("RMSE", 0.0012345, "0.001234"),
    ],
)
def test_scores_as_text(name, value, text):
    assert score_text(name, value) == text


def test_R2_of_targets_that_do_not_vary_is_not_a_number():
    encoder = SimpleNamespace(task="regression", restore_targets=lambda Y: Y[:, 0])
    measured = scores(encoder, np.array([[1.0], [3.0]]), np.array([1.0, 1.0]))
    assert np.isnan(measured["R2"])
    assert measured["RMSE"] == pytest.approx(np.sqrt(2))
