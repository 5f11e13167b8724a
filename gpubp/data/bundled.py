"""The small data sets that come with scikit-learn, as tables."""

from __future__ import annotations

import importlib

from gpubp.data.tables import Table, listed
from gpubp.errors import DataError

TARGETS = {
    "digits": "label",
    "iris": "species",
    "breast_cancer": "diagnosis",
    "wine": "cultivar",
    "diabetes": "progression",
}
"""Name of each data set to the name of the column that is learned by default."""


def load_bundled(name: str) -> Table:
    """A bundled data set by its name; the target is its last column, named in `TARGETS`.

    Raises:
        DataError: There is no such data set, or scikit-learn is not installed.
    """
    if name not in TARGETS:
        raise DataError(f"there is no bundled data set {name!r}: there are {listed(TARGETS)}")
    try:
        datasets = importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise DataError(
            f"the bundled data set {name!r} comes with scikit-learn, which can't be imported ({error}). "
            "Install it: pip install 'gpubp[data]'"
        ) from error
    bunch = getattr(datasets, f"load_{name}")()
    columns = {
        str(feature): [repr(value) for value in values.tolist()]
        for feature, values in zip(bunch.feature_names, bunch.data.T, strict=True)
    }
    named = bunch.target_names if name in ("iris", "breast_cancer", "wine") else None
    columns[TARGETS[name]] = [str(value) if named is None else str(named[value]) for value in bunch.target.tolist()]
    return Table(name, columns, range(2, len(bunch.target) + 2))
