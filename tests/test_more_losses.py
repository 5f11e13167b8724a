"""Losses: empty batches, the penalty in tiles, and targets at the edges of what is taken."""

from __future__ import annotations

import re

import numpy as np
import pytest
from cases import losses

import gpubp
from gpubp.errors import DataError, ShapeError
from gpubp.losses.base import require_finite
from gpubp.losses.penalty import add_l2

F64 = np.dtype("float64")


@pytest.mark.parametrize("loss", losses(), ids=repr)
def test_no_examples_cost_nothing(loss):
    L, saved = loss.forward(np.empty((2, 0, 3)), np.empty((2, 0, 3)))
    np.testing.assert_array_equal(L, [0, 0])
    assert loss.backward(saved).shape == (2, 0, 3)


def test_the_first_of_several_bad_values_is_named():
    with pytest.raises(DataError, match=r"target at index \(1, 0\) is nan"):
        require_finite(np.array([[0.0, 1.0], [np.nan, 1.0], [np.inf, np.nan]]), "target")
    with pytest.raises(DataError, match=r"2.0 at index \(1, 0\)"):
        gpubp.BinaryCrossEntropy().targets(np.array([1.0, 2.0, 3.0]), (3, 1), F64)


@pytest.mark.parametrize("loss", [gpubp.BinaryCrossEntropy(), gpubp.SoftmaxCrossEntropy()])
@pytest.mark.parametrize("bad", [-0.25, 1.25])
def test_probabilities_are_within_0_to_1(loss, bad):
    with pytest.raises(DataError, match=f"target {bad} at index"):
        loss.targets(np.array([[bad, 1 - bad]]), (1, 2), F64)
    edges = np.array([[0.0, 1.0]])
    np.testing.assert_array_equal(loss.targets(edges, (1, 2), F64), edges)


def test_one_row_that_does_not_sum_to_1_is_enough():
    with pytest.raises(DataError, match=r"misses the sum 1 by 0\.2"):
        gpubp.SoftmaxCrossEntropy().targets(np.array([[0.0, 1.0], [0.5, 0.3]]), (2, 2), F64)


@pytest.mark.parametrize("shape", [(4,), (2, 4)])
def test_class_indices_of_a_stack_are_held_against_its_outputs(shape):
    loss, outputs = gpubp.SoftmaxCrossEntropy(), (2, 4, 3)
    T = np.zeros(shape, int)
    T[..., 1] = 3
    with pytest.raises(DataError, match=r"class index 3 .* 3 outputs"):
        loss.targets(T, outputs, F64)
    with pytest.raises(DataError, match="class indices must be whole numbers"):
        loss.targets(np.zeros(shape), outputs, F64)


def test_the_shapes_that_are_needed_are_named_once():
    with pytest.raises(ShapeError, match=re.escape("outputs of shape (2, 2) need (2, 2)") + "$"):
        gpubp.SquaredError().targets(np.zeros((3, 2)), (2, 2), F64)


@pytest.mark.parametrize("shape", [(12,), (40,), (5, 7), (3, 40)])
def test_the_l2_penalty_sums_over_tiles_of_each_member(shape, monkeypatch):
    monkeypatch.setattr("gpubp.ops.tiles.TILE_ELEMENTS", 16)
    W = np.random.default_rng(0).normal(size=shape)
    gradient = np.ones_like(W)
    np.testing.assert_allclose(add_l2(W, 0.2, gradient), 0.1 * (W * W).sum(axis=-1), rtol=1e-13)
    np.testing.assert_allclose(gradient, 1 + 0.2 * W, rtol=1e-13)
