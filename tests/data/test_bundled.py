"""The data sets that come with scikit-learn."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from gpubp.data.bundled import TARGETS, load_bundled
from gpubp.data.encoding import TableEncoder
from gpubp.errors import DataError

SHAPES = {
    "digits": (1797, 64, 10),
    "iris": (150, 4, 3),
    "breast_cancer": (569, 30, 2),
    "wine": (178, 13, 3),
    "diabetes": (442, 10, 1),
}


@pytest.mark.parametrize("name", TARGETS)
def test_the_cells_are_the_data(name):
    datasets = pytest.importorskip("sklearn.datasets")
    bunch = getattr(datasets, f"load_{name}")()
    table = load_bundled(name)
    encoder = TableEncoder.fit(table, TARGETS[name])
    assert (len(table), encoder.n_in, encoder.n_out) == SHAPES[name]
    np.testing.assert_array_equal(encoder.inputs(table), bunch.data)
    T = encoder.targets(table)
    if name == "diabetes":
        np.testing.assert_array_equal(T, bunch.target)
    else:
        names = [str(bunch.target_names[index]) for index in bunch.target]
        assert [encoder.classes[index] for index in T] == names
    assert list(table.columns)[-1] == TARGETS[name]


def test_an_unknown_name_lists_the_known():
    with pytest.raises(
        DataError, match="no bundled data set 'digit': there are digits, iris, breast_cancer, wine, dia"
    ):
        load_bundled("digit")


def test_without_scikit_learn_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"'iris' comes with scikit-learn.*pip install 'gpubp\[data\]'"):
        load_bundled("iris")
