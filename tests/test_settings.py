"""Settings of any type: a SettingError names what is wrong, and never is it a TypeError of NumPy or Python."""

from __future__ import annotations

import math

import numpy as np
import pytest

import gpubp
from gpubp.errors import SettingError
from gpubp.settings import require_count, require_in, require_positive, require_several


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: gpubp.Quantile("a"), "Quantile: q='a': a list of at least 1 is needed"),
        (lambda: gpubp.Quantile(None), "Quantile: q=None: a list"),
        (lambda: gpubp.Quantile(["a"]), "Quantile: q='a' is no number in (0, 1)"),
        (lambda: gpubp.Huber("x"), "Huber: delta='x' is not a positive finite number"),
        (lambda: gpubp.SquaredError([1]), "SquaredError: scale=[1] is not a positive finite number"),
        (lambda: gpubp.GaussianNLL(None), "GaussianNLL: minimum_variance=None is not"),
        (lambda: gpubp.SoftmaxCrossEntropy("balanced"), "SoftmaxCrossEntropy: class_weight='balanced': a list"),
        (lambda: gpubp.SoftmaxCrossEntropy([]), "SoftmaxCrossEntropy: class_weight=[]: a list of at least 1 is needed"),
        (lambda: gpubp.SoftmaxCrossEntropy({0: 1.0}), "SoftmaxCrossEntropy: class_weight={0: 1.0}: a list"),
        (lambda: gpubp.SoftmaxCrossEntropy([1, "x"]), "SoftmaxCrossEntropy: class_weight='x' is not a positive"),
        (lambda: gpubp.SoftmaxCrossEntropy(label_smoothing="x"), "label_smoothing='x' is no number in [0, 1)"),
        (lambda: gpubp.BinaryCrossEntropy([]), "BinaryCrossEntropy: positive_weight=[]: a list of at least 1"),
        (lambda: gpubp.BinaryCrossEntropy(None), "BinaryCrossEntropy: positive_weight=None: a list"),
        (lambda: gpubp.BinaryCrossEntropy(label_smoothing=1), "label_smoothing=1 is outside [0, 1)"),
        (lambda: gpubp.Adam(average="x"), "Adam: average='x' is no number in [0, 1)"),
        (lambda: gpubp.Adam(clip_norm="x"), "Adam: clip_norm='x' is not a positive"),
        (lambda: gpubp.Adam(beta1=True), "Adam: beta1=True is no number in [0, 1)"),
        (lambda: gpubp.AdamW(weight_decay="x"), "AdamW: weight_decay='x' is no number in [0, inf)"),
        (lambda: gpubp.AdamW(weight_decay=-1), "AdamW: weight_decay=-1 is outside [0, inf)"),
        (lambda: gpubp.SGD("x"), "SGD: learning_rate='x' is not positive and finite"),
        (lambda: gpubp.StepDecay(0.1, 3, "x"), "StepDecay: factor='x' is no number in (0, 1)"),
        (lambda: gpubp.OneCycle(0.1, warm_up=None), "OneCycle: warm_up=None is no number in (0, 1)"),
        (lambda: gpubp.ReduceOnPlateau(0.1, minimum_change="x"), "ReduceOnPlateau: minimum_change='x' is no number"),
        (lambda: gpubp.Dense("a", 3), "Dense: n_in='a': a whole number of at least 1 is needed"),
        (lambda: gpubp.Dense(3, 2.0), "Dense: n_out=2.0: a whole number"),
        (lambda: gpubp.Dense(3, 2, 7), "unknown initializer 7"),
        (lambda: gpubp.Dense(3, 2, ["he"]), "unknown initializer ['he']"),
        (lambda: gpubp.BatchNorm(3, "x"), "BatchNorm: momentum='x' is no number in (0, 1]"),
        (lambda: gpubp.BatchNorm(3, 0.1, "x"), "BatchNorm: epsilon='x' is not a positive"),
        (lambda: gpubp.BatchNorm(None), "BatchNorm: n=None: a whole number"),
        (lambda: gpubp.LayerNorm(3, "x"), "LayerNorm: epsilon='x' is not a positive"),
        (lambda: gpubp.Standardize(True), "Standardize: n=True: a whole number"),
        (lambda: gpubp.Standardize(3, 1), "Standardize: skip=1: a list of at least 0"),
        (lambda: gpubp.Standardize(3, ["x"]), "Standardize: skip=['x']: 'x' is no column, 0 to 2"),
        (lambda: gpubp.Embedding(3, 1), "Embedding: tables=1: at least one (column, categories, width)"),
        (lambda: gpubp.Embedding(3, [1]), "Embedding: tables=[1]: at least one"),
        (lambda: gpubp.Embedding(3, {0: 5}), "Embedding: tables={0: 5}: at least one"),
        (lambda: gpubp.Embedding(3, {0: ("x", 2)}), "Embedding: categories='x': a whole number"),
        (lambda: gpubp.Embedding("x", {0: (3, 2)}), "Embedding: n_in='x': a whole number"),
        (lambda: gpubp.Dropout("x"), "Dropout: rate='x' is no number in [0, 1)"),
        (lambda: gpubp.ELU(None), "ELU: alpha=None is no number in [0, inf)"),
        (lambda: gpubp.LeakyReLU("x"), "LeakyReLU: slope='x' is no number in [0, 1]"),
        (lambda: gpubp.Softplus("x"), "Softplus: beta='x' is not a positive"),
        (lambda: gpubp.Residual(3), "Residual: layers=3: a list of at least 1 is needed"),
        (lambda: gpubp.Residual("tanh"), "Residual: layers='tanh': a list"),
        (lambda: gpubp.Residual(["tanh"]), "Residual: 'tanh' is no layer, nor the name and config of one"),
        (lambda: gpubp.Residual([{"name": "Tanh"}]), "Residual: {'name': 'Tanh'} is no layer"),
        (lambda: gpubp.Orthogonal("x"), "Orthogonal: gain='x' is not a positive finite number"),
        (lambda: gpubp.TruncatedNormal("x"), "TruncatedNormal: std='x' is not a positive"),
        (lambda: gpubp.EarlyStopping("x"), "EarlyStopping: patience='x': a whole number of at least 1"),
        (lambda: gpubp.EarlyStopping(minimum_change=-1), "EarlyStopping: minimum_change=-1 is outside [0, inf)"),
        (lambda: gpubp.Look(np.ones((2, 2)), every="x"), "Look: every='x': a whole number"),
        (lambda: gpubp.mlp([3, 2], l2="x"), "l2='x' is no number in [0, inf)"),
        (lambda: gpubp.mlp([3, 2], members="x"), "members='x': a whole number of at least 1"),
        (lambda: gpubp.mlp([3, 2], members=True), "members=True: a whole number"),
        (lambda: gpubp.Trainer(None, None, micro_batch_size="x"), "micro_batch_size='x': a whole number"),
        (lambda: gpubp.Trainer(None, None, batch_size="x"), "batch_size='x': a whole number"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(make, said):
    with pytest.raises(SettingError) as error:
        make()
    assert str(error.value).startswith(said) or said in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_of_numpy_are_taken_as_those_of_python():
    assert type(require_count(None, "n", np.int16(3))) is int
    assert type(require_positive(None, "x", np.float32(3))) is float
    assert require_in(None, "x", np.int64(0), "[0, 1)") == 0
    assert require_several(None, "x", np.array([1.0, 2.0])) == (1, 2)
    assert require_several(None, "x", [], least=0) == ()
    assert gpubp.Quantile(np.array([0.1, 0.9])).q == (0.1, 0.9)


@pytest.mark.parametrize("interval", ["[0, 1]", "[0, 1)", "(0, 1]", "(0, 1)"])
def test_an_interval_holds_its_ends_where_it_says_so(interval):
    def holds(value):
        try:
            return require_in(None, "x", value, interval) == value
        except SettingError:
            return False

    assert [holds(value) for value in (0, 1, 0.5)] == [interval[0] == "[", interval[-1] == "]", True]
    assert not any(holds(value) for value in (-1e-300, math.nextafter(1, 2), math.nan, math.inf, 10**400, None, "0.5"))


@pytest.mark.parametrize(
    "value", [0, -1, math.inf, math.nan, 10**400, None, "1", 1j, True, np.True_, np.array(1.0), [1]]
)
def test_what_is_no_positive_number(value):
    with pytest.raises(SettingError, match="Owner: x=.* is not a positive finite number"):
        require_positive("Owner", "x", value)


@pytest.mark.parametrize("values", [3, None, "ab", b"ab", {1: 2}, {1, 2}, np.array(3), [], np.empty(0), iter([1])])
def test_what_is_no_list(values):
    with pytest.raises(SettingError, match="x=.*: a list of at least 1 is needed"):
        require_several(None, "x", values)
