"""What every layer promises, tested on every registered layer and every fusion."""

from __future__ import annotations

import json

import numpy as np
import pytest
from cases import SHAPES, inputs, layers, lead, normal, ready

import gpubp
from gpubp.architecture import fused
from gpubp.errors import NotReadyError, SettingError, ShapeError
from gpubp.gradcheck import compare
from gpubp.layers.base import Activation, Layer, layer_from_config
from gpubp.layers.dense_activation import DenseActivation

ALL = pytest.mark.parametrize(
    ("name", "make", "n_in"), layers(), ids=lambda value: value if isinstance(value, str) else ""
)
EACH_SHAPE = pytest.mark.parametrize(("N", "members"), SHAPES)


@ALL
@EACH_SHAPE
def test_backward_agrees_with_differences_for_the_input_and_every_parameter(name, make, n_in, N, members):
    layer = ready(make, members)
    X = inputs(layer, (*lead(members), N, n_in), 2)
    Y, saved = layer.forward(X)
    dL_dY = normal(Y.shape, 3)
    dL_dX = layer.backward(dL_dY, saved).copy()
    arrays = {"X": (X, dL_dX), **{key: (layer.parameters[key], layer.gradients[key].copy()) for key in layer.gradients}}
    for key, (array, gradient) in arrays.items():
        check = compare(lambda: (layer.forward(X)[0] * dL_dY).sum(), array, gradient, key)
        assert gradient.shape == array.shape
        assert check.error <= 1e-7, (name, check)
        assert check.compared == array.size, "no input is near a kink here"


@ALL
@EACH_SHAPE
def test_what_was_handed_in_and_saved_is_left_unchanged(name, make, n_in, N, members):
    layer = ready(make, members)
    X = inputs(layer, (*lead(members), N, n_in), 2)
    kept_X, parameters = X.copy(), {key: array.copy() for key, array in layer.parameters.items()}
    Y, saved = layer.forward(X)
    kept = {key: array.copy() for key, array in saved.items()}
    dL_dY = normal(Y.shape, 3)
    kept_dL_dY, kept_Y = dL_dY.copy(), Y.copy()
    layer.backward(dL_dY, saved)
    for before, after in [(kept_X, X), (kept_dL_dY, dL_dY), (kept_Y, Y), *((kept[k], saved[k]) for k in saved)]:
        np.testing.assert_array_equal(before, after)
    for key, array in parameters.items():
        np.testing.assert_array_equal(array, layer.parameters[key])
    assert set(saved) == set(layer.saves)


@ALL
@EACH_SHAPE
def test_given_buffers_hold_the_same_as_fresh_ones(name, make, n_in, N, members):
    layer = ready(make, members)
    X = inputs(layer, (*lead(members), N, n_in), 2)
    Y, saved = layer.forward(X)
    dL_dY = normal(Y.shape, 3)
    dL_dX = layer.backward(dL_dY, saved)
    gradients = {key: array.copy() for key, array in layer.gradients.items()}
    out = {key: np.full(buffer.shape, np.nan) for key, buffer in layer.buffers(X.shape).items()}
    for array in layer.gradients.values():
        array[...] = np.nan
    Y_out, saved_out = layer.forward(X, out)
    assert Y_out is out["Y"]
    dL_dX_out = layer.backward(dL_dY, saved_out, out)
    assert dL_dX_out is out["dL_dX"]
    np.testing.assert_array_equal(Y_out, Y)
    np.testing.assert_array_equal(dL_dX_out, dL_dX)
    for key, array in gradients.items():
        np.testing.assert_array_equal(layer.gradients[key], array)


@ALL
@EACH_SHAPE
def test_buffers_that_may_overwrite_the_incoming_gradient_can_be_it(name, make, n_in, N, members):
    layer = ready(make, members)
    X = inputs(layer, (*lead(members), N, n_in), 2)
    Y, saved = layer.forward(X)
    dL_dY = normal(Y.shape, 3)
    dL_dX = layer.backward(dL_dY, saved)
    out = {key: np.full(buffer.shape, np.nan) for key, buffer in layer.buffers(X.shape).items()}
    out.update({key: dL_dY for key, buffer in layer.buffers(X.shape).items() if buffer.overwrites == "dL_dY"})
    np.testing.assert_array_equal(layer.backward(dL_dY, saved, out), dL_dX)


@ALL
def test_fresh_results_are_never_overwritten_by_a_later_call(name, make, n_in):
    layer = ready(make, None)
    X = inputs(layer, (5, n_in), 2)
    Y, saved = layer.forward(X)
    dL_dX = layer.backward(np.ones_like(Y), saved)
    kept = Y.copy(), dL_dX.copy()
    other, other_saved = layer.forward(inputs(layer, (5, n_in), 9))
    layer.backward(-np.ones_like(other), other_saved)
    np.testing.assert_array_equal(Y, kept[0])
    np.testing.assert_array_equal(dL_dX, kept[1])


@ALL
@pytest.mark.parametrize("N", [1, 3, 5])
@pytest.mark.parametrize("shared", [False, True])
def test_a_stack_equals_the_loop_over_its_members(name, make, n_in, N, shared):
    E = 3
    stack = ready(make, E)
    if stack.is_random and "forward" in vars(stack):
        return  # members draw apart: tests/test_dropout.py
    X = inputs(stack, (N, n_in) if shared else (E, N, n_in), 2)
    Y, saved = stack.forward(X)
    dL_dY = normal(Y.shape, 3)
    dL_dX = stack.backward(dL_dY, saved)
    total = np.zeros((N, n_in))
    for e in range(E):
        one = ready(make, None)
        for key in one.parameters:
            one.parameters[key][...] = stack.parameters[key][e]
        Y_e, saved_e = one.forward(X if shared else X[e])
        stacked = Y.ndim == 3  # a layer without parameters on shared data has nothing to tell members by
        dL_dX_e = one.backward(dL_dY[e] if stacked else dL_dY, saved_e)
        np.testing.assert_allclose(Y[e] if stacked else Y, Y_e, atol=1e-13)
        for key in one.gradients:
            np.testing.assert_allclose(stack.gradients[key][e], one.gradients[key], atol=1e-13)
        total += dL_dX_e
        if not shared:
            np.testing.assert_allclose(dL_dX[e], dL_dX_e, atol=1e-13)
    if shared and Y.ndim == 3:
        np.testing.assert_allclose(dL_dX, total, atol=1e-13)


@ALL
def test_strided_input_gives_what_contiguous_input_gives(name, make, n_in):
    layer = ready(make, None)
    X = inputs(layer, (10, n_in), 2)
    wide, backwards = np.repeat(X, 2, axis=-1), np.repeat(X[:, ::-1], 2, axis=-1)
    for strided in (wide[::2, ::2], np.asfortranarray(wide[::2, ::2]), backwards[::-2, ::-2]):
        Y, saved = layer.forward(strided)
        expected, expected_saved = layer.forward(np.ascontiguousarray(strided))
        np.testing.assert_allclose(Y, expected, atol=1e-14)
        dL_dY = normal((*Y.shape[:-1], 2 * Y.shape[-1]), 3)[:, ::2]
        dL_dX = layer.backward(dL_dY, saved)
        np.testing.assert_allclose(dL_dX, layer.backward(np.ascontiguousarray(dL_dY), expected_saved), atol=1e-14)


@ALL
@pytest.mark.parametrize("members", [None, 2])
def test_no_examples_give_no_output_and_zero_gradients(name, make, n_in, members):
    layer = ready(make, members)
    Y, saved = layer.forward(np.empty((*lead(members), 0, n_in)))
    assert Y.shape[-2] == 0
    assert layer.backward(Y.copy(), saved).shape == (*lead(members), 0, n_in)
    for array in layer.gradients.values():
        assert not array.any()


@ALL
def test_input_gradient_is_skipped_when_nobody_wants_it(name, make, n_in):
    layer = ready(make, None)
    X = inputs(layer, (5, n_in), 2)
    Y, saved = layer.forward(X)
    layer.backward(np.ones_like(Y), saved)
    gradients = {key: array.copy() for key, array in layer.gradients.items()}
    for array in layer.gradients.values():
        array[...] = np.nan
    assert layer.backward(np.ones_like(Y), saved, input_gradient=False) is None
    for key, array in gradients.items():
        np.testing.assert_array_equal(layer.gradients[key], array)


@ALL
def test_float32_stays_float32_and_agrees_with_float64(name, make, n_in):
    single, double = ready(make, None, "float32"), ready(make, None)
    X = inputs(double, (5, n_in), 2)
    if single.is_random and "forward" in vars(single):
        return  # numbers of 24 and of 53 digits are made of other bits
    Y, saved = single.forward(X.astype("float32"))
    dL_dX = single.backward(np.ones_like(Y), saved)
    expected, expected_saved = double.forward(X)
    assert Y.dtype == dL_dX.dtype == np.float32
    np.testing.assert_allclose(Y, expected, atol=2e-6)
    np.testing.assert_allclose(dL_dX, double.backward(np.ones_like(expected), expected_saved), atol=5e-6)


@pytest.mark.parametrize("rows", [1, 7, 33, 1025])
@pytest.mark.parametrize("columns", [1, 10, 100])
def test_blocks_of_rows_do_not_show(rows, columns, monkeypatch):
    layer = ready(lambda: DenseActivation(gpubp.Dense(columns, columns), gpubp.Sigmoid()), 2)
    X, dL_dY = normal((2, rows, columns), 2), normal((2, rows, columns), 3)
    Y, saved = layer.forward(X)
    dL_dX, dL_db = layer.backward(dL_dY, saved), layer.gradients["b"].copy()
    monkeypatch.setattr("gpubp.ops.activation.BLOCK_ELEMENTS", 64)
    Y_blocks, saved_blocks = layer.forward(X)
    np.testing.assert_array_equal(Y_blocks, Y)
    np.testing.assert_array_equal(layer.backward(dL_dY, saved_blocks), dL_dX)
    np.testing.assert_allclose(layer.gradients["b"], dL_db, atol=1e-12)


class Square(Activation, register=False):
    """An activation whose derivative needs the input: none of the shipped ones does yet."""

    derivative_of = "X"
    rules = (gpubp.Rule("dL_dX", "dL_dY * 2 * X", "dL_dX[n,j] = dL_dY[n,j] * 2 * X[n,j]", "the slope of X^2 is 2 X"),)

    def evaluate(self, xp, X, out, scratch):
        xp.multiply(X, X, out=out)

    def derivative(self, xp, saved, out):
        xp.multiply(saved, 2, out=out)


@pytest.mark.parametrize("members", [None, 3])
def test_an_activation_that_needs_its_input_is_fused_too(members):
    pair = ready(lambda: DenseActivation(gpubp.Dense(4, 3), Square()), members)
    X = normal((*lead(members), 5, 4), 2)
    Y, saved = pair.forward(X)
    dL_dY = normal(Y.shape, 3)
    dL_dX, dL_dW, dL_db = pair.backward(dL_dY, saved), *(pair.gradients[key].copy() for key in "Wb")
    Z, saved_dense = pair.dense.forward(X)
    Y_pair, saved_square = pair.activation.forward(Z)
    np.testing.assert_array_equal(Y, Y_pair)
    np.testing.assert_array_equal(
        dL_dX, pair.dense.backward(pair.activation.backward(dL_dY, saved_square), saved_dense)
    )
    np.testing.assert_array_equal(dL_dW, pair.dense.gradients["W"])
    np.testing.assert_allclose(dL_db, pair.dense.gradients["b"], atol=1e-14)
    assert pair.saves == ("X", "Z")
    assert pair.rules[0].formula == "dL_dY * 2 * Z"


@pytest.mark.parametrize("kind", [kind for kind in Layer.by_name.values() if issubclass(kind, Activation)])
@pytest.mark.parametrize(("N", "members"), SHAPES)
def test_a_fused_pair_equals_the_two_layers(kind, N, members):
    pair = ready(lambda: DenseActivation(gpubp.Dense(4, 3), kind()), members)
    X = normal((*lead(members), N, 4), 2)
    Y, saved = pair.forward(X)
    dL_dY = normal(Y.shape, 3)
    results = [Y, pair.backward(dL_dY, saved), *(pair.gradients[key].copy() for key in "Wb")]
    Z, saved_dense = pair.dense.forward(X)
    Y_pair, saved_activation = pair.activation.forward(Z)
    dL_dX = pair.dense.backward(pair.activation.backward(dL_dY, saved_activation), saved_dense)
    for mine, theirs in zip(results, [Y_pair, dL_dX, *(pair.gradients[key] for key in "Wb")], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-14)


def test_only_a_dense_layer_directly_before_an_activation_is_fused():
    dense, sigmoid, tanh, last = gpubp.Dense(4, 4), gpubp.Sigmoid(), gpubp.Tanh(), gpubp.Dense(4, 2)
    first, second, third = fused([dense, sigmoid, tanh, last])
    assert isinstance(first, DenseActivation)
    assert (first.dense, first.activation, second, third) == (dense, sigmoid, tanh, last)
    assert repr(first) == "Dense(4, 4) + Sigmoid()"


def test_a_dense_layer_with_another_forward_is_not_fused():
    class Doubled(gpubp.Dense, register=False):
        def forward(self, X, out=None, **more):
            Y, saved = super().forward(X, out, **more)
            return 2 * Y, saved

    class Renamed(gpubp.Dense, register=False):
        pass

    assert [type(layer) for layer in fused([Doubled(3, 2), gpubp.Tanh()])] == [Doubled, gpubp.Tanh]
    assert [type(layer) for layer in fused([Renamed(3, 2), gpubp.Tanh()])] == [DenseActivation]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", [kind for kind in Layer.by_name.values() if issubclass(kind, Activation)])
def test_extreme_inputs_neither_overflow_nor_warn(kind, dtype):
    X = np.array([[-np.finfo(dtype).max, -1000, -90, -1e-30, 0, 1e-30, 90, 1000, np.finfo(dtype).max]], dtype)
    layer = kind()
    Y, saved = layer.forward(X)
    assert np.isfinite(Y).all()
    assert np.isfinite(layer.backward(np.ones_like(Y), saved)).all()
    if kind not in (gpubp.GELU, gpubp.SiLU):  # which come back to zero far below it
        assert (np.diff(Y) >= 0).all(), "every other shipped activation is non-decreasing"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigmoid_is_accurate_in_relative_terms_over_its_whole_range(dtype):
    X = np.linspace(-80, 80, 2001, dtype=dtype)[None]
    wide = X.astype(np.longdouble)
    exact = 1 / (1 + np.exp(-wide))
    Y, _ = gpubp.Sigmoid().forward(X)
    # exp(-x) turns the rounding of x, half an ulp of up to 80, into a relative error of 80 * eps / 2.
    assert float((np.abs(Y - exact) / exact).max()) < 45 * np.finfo(dtype).eps
    far, _ = gpubp.Sigmoid().forward(np.array([[-1e4, 1e4]], dtype))
    assert far[0, 1] == 1
    assert 0 <= far[0, 0] < np.finfo(dtype).tiny


def test_kinks_take_the_documented_side():
    X = np.zeros((1, 1))
    for layer, slope in ((gpubp.ReLU(), 0.0), (gpubp.LeakyReLU(0.25), 0.25)):
        _, saved = layer.forward(X)
        assert layer.backward(np.ones((1, 1)), saved)[0, 0] == slope


@pytest.mark.parametrize("kind", Layer.by_name.values())
def test_a_layer_is_rebuilt_from_its_config(kind):
    for layer, _ in kind.examples():
        again = layer_from_config(kind.__name__, json.loads(json.dumps(layer.config())))
        assert repr(again) == repr(layer)
        assert again.config() == layer.config()


def test_standardize_takes_population_statistics_and_one_for_a_constant_column():
    X = np.random.default_rng(0).normal(size=(50, 3)) * [1, 100, 1] + [0, 1e6, 0]
    X[:, 2] = 0.1
    layer = gpubp.Standardize(3)
    layer.adapt(X)
    np.testing.assert_allclose(layer.constants["mean"], X.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(layer.constants["scale"][:2], X.std(axis=0)[:2], rtol=1e-12)
    assert layer.constants["scale"][2] == 1
    Y, _ = layer.forward(X)
    np.testing.assert_allclose(Y.std(axis=0), [1, 1, 0], atol=1e-9)


def test_standardize_takes_its_rows_in_blocks_that_do_not_show():
    X = np.random.default_rng(0).normal(size=(2, 9000, 2)) + [5, -5]
    layer = gpubp.Standardize(2)
    layer.adapt(X)
    np.testing.assert_allclose(layer.constants["mean"], X.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(layer.constants["scale"], X.std(axis=1), rtol=1e-12)


def test_a_column_too_narrow_for_float32_counts_as_constant():
    layer = gpubp.Standardize(1)
    layer.adapt(np.array([[0], [1e-45]], "float32"))
    assert np.isfinite(layer.forward(np.ones((1, 1), "float32"))[0]).all()


def test_more_columns_than_are_taken_at_a_time_have_statistics_too():
    X = np.array([[1, 5], [3, 5]], np.uint8).repeat(2**18 + 1, axis=1)
    layer = gpubp.Standardize(X.shape[1])
    layer.adapt(X, np.float32)
    np.testing.assert_array_equal(np.unique(layer.constants["mean"]), [2, 5])
    np.testing.assert_array_equal(np.unique(layer.constants["scale"]), [1])


def test_standardize_in_float32_keeps_the_digits_of_a_far_away_column():
    X = (np.arange(64.0)[:, None] + 1e6).astype("float32")
    layer = gpubp.Standardize(1)
    layer.adapt(X)
    np.testing.assert_allclose(layer.constants["scale"], X.astype(float).std(axis=0), rtol=1e-6)


def per_member():
    """A Standardize with statistics of its own for each of two members."""
    layer = gpubp.Standardize(3)
    layer.adapt(normal((2, 5, 3), 1))
    return layer


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: gpubp.Dense(0, 3), SettingError, "n_in=0"),
        (lambda: gpubp.Dense(3, 2.5), SettingError, "n_out=2.5"),
        (lambda: gpubp.Dense(3, True), SettingError, "n_out=True"),
        (lambda: gpubp.Dense(3, 2, "best"), SettingError, "unknown initializer 'best'.*he_normal"),
        (lambda: gpubp.LeakyReLU(-0.1), SettingError, "slope=-0.1"),
        (lambda: gpubp.LeakyReLU(1.5), SettingError, "slope=1.5"),
        (lambda: gpubp.ELU(-0.1), SettingError, "alpha=-0.1"),
        (lambda: gpubp.ELU(float("inf")), SettingError, "alpha=inf"),
        (lambda: gpubp.Softplus(0.0), SettingError, "beta=0.0"),
        (lambda: gpubp.Softplus(float("inf")), SettingError, "beta=inf"),
        (lambda: gpubp.LayerNorm(0), SettingError, "n=0"),
        (lambda: gpubp.LayerNorm(True), SettingError, "n=True"),
        (lambda: gpubp.LayerNorm(3, 0.0), SettingError, "epsilon=0.0"),
        (lambda: ready(lambda: gpubp.LayerNorm(3), None).forward(np.ones((4, 2))), ShapeError, "width 3, not 2"),
        (lambda: gpubp.Standardize(0), SettingError, "n=0"),
        (lambda: gpubp.Dropout(1), SettingError, "rate=1 is outside"),
        (lambda: gpubp.Dropout(-0.1), SettingError, "rate=-0.1"),
        (lambda: gpubp.Dropout(float("nan")), SettingError, "rate=nan"),
        (lambda: gpubp.Dropout(True), SettingError, "rate=True"),
        (lambda: gpubp.Dropout("half"), SettingError, "rate='half'"),
        (lambda: gpubp.Dropout().forward(np.ones((2, 3)), training=True), SettingError, "give it rng=numpy.random"),
        (lambda: gpubp.Standardize(3).adapt(np.ones((4, 2))), ShapeError, "width 3, not 2"),
        (lambda: gpubp.Standardize(3).adapt(np.ones((0, 3))), ShapeError, "no rows"),
        (lambda: gpubp.Standardize(3).forward(np.ones((4, 3))), NotReadyError, r"call adapt\(X\)"),
        (lambda: per_member().forward(np.ones((4, 3))), ShapeError, r"each member.*\(2, 3\).*X of shape \(4, 3\)"),
        (lambda: gpubp.Dense(3, 2).forward(np.ones((4, 3))), NotReadyError, r"initialize\(\)"),
        (lambda: gpubp.Sigmoid().forward(np.ones(3)), ShapeError, r"shape \(3,\)"),
        (lambda: gpubp.Sigmoid().forward(np.ones((3, 1), int)), ShapeError, "int64"),
        (lambda: ready(lambda: gpubp.Dense(3, 2), None).forward(np.ones((4, 2))), ShapeError, "width 3, not 2"),
        (lambda: ready(lambda: gpubp.Dense(2, 2), None).forward(np.ones((4, 2), "f4")), ShapeError, "float32.*float64"),
        (lambda: gpubp.activation_by_name("sigmoidal"), SettingError, "unknown activation 'sigmoidal'.*sigmoid"),
        (lambda: layer_from_config("Convolution", {}), SettingError, "unknown layer 'Convolution'.*Dense"),
    ],
)
def test_wrong_use_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("name", ["leaky_relu", "LeakyReLU", "leakyrelu"])
def test_an_activation_is_found_by_its_name_in_any_spelling(name):
    assert isinstance(gpubp.activation_by_name(name), gpubp.LeakyReLU)


def test_standardised_columns_have_mean_zero_and_deviation_one():
    X = np.random.default_rng(0).normal(size=(50, 2)) * [3.0, 0.1] + [7.0, -4.0]
    layer = gpubp.Standardize(2)
    layer.adapt(X)
    Y, _ = layer.forward(X)
    np.testing.assert_allclose(Y, (X - X.mean(axis=0)) / X.std(axis=0), atol=1e-12)


def test_a_single_dense_layer_takes_any_leading_axes():
    layer = ready(lambda: gpubp.Dense(4, 3), None)
    X = np.random.default_rng(0).normal(size=(2, 6, 5, 4))
    Y, _ = layer.forward(X)
    np.testing.assert_allclose(Y, X @ layer.parameters["W"] + layer.parameters["b"], rtol=1e-13)


def test_parameters_without_a_seed_are_those_of_seed_0():
    layer, seeded = gpubp.Dense(3, 2), gpubp.Dense(3, 2)
    layer.initialize()
    seeded.initialize(0)
    np.testing.assert_array_equal(layer.parameters["W"], seeded.parameters["W"])
