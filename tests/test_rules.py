"""Code, formula and index form of every backward rule are the same thing."""

from __future__ import annotations

import numpy as np
import pytest
from cases import SHAPES, inputs, layers, lead, losses, normal, ready
from rule_evaluator import evaluate_formula, evaluate_index_form

import gpubp
from gpubp.losses.penalty import RULE as L2_RULE
from gpubp.losses.penalty import add_l2

TOLERANCE = 1e-10


def names_of(layer, saved, Y, X, dL_dY) -> dict:
    """Everything a rule of this layer may name."""
    owner = getattr(layer, "dense", layer)
    settings = {**getattr(layer, "activation", layer).config(), **owner.config()}
    return {
        **settings,
        **owner.constants,
        **layer.parameters,
        **saved,
        "X": X,
        "Y": Y,
        "dL_dY": dL_dY,
        "I": np.eye(Y.shape[-1]),
        **layer.rule_names(X, dL_dY),
    }


def member_of(value, name, e, members, shared):
    """Member e's share of an array of a stack; settings and what all members share stay whole."""
    return value if members is None or not isinstance(value, np.ndarray) or name in shared else value[e]


def computed_by_code(layer, saved, dL_dY) -> dict:
    """Every gradient that backward computes, by name."""
    out = layer._fresh(saved.get("X", dL_dY))
    out = {name: out[name] for name in out}
    dL_dX = layer.backward(dL_dY, saved, out)
    gradients = {f"dL_d{name}": array for name, array in layer.gradients.items()}
    return {**out, **gradients, "dL_dX": dL_dX}


@pytest.mark.parametrize(("N", "members"), SHAPES)
@pytest.mark.parametrize(("name", "make", "n_in"), layers(), ids=lambda value: value if isinstance(value, str) else "")
def test_layer_code_is_formula_is_index_form(name, make, n_in, N, members):
    layer = ready(make, members)
    X = inputs(layer, (*lead(members), N, n_in), 2)
    Y, saved = layer.forward(X)
    dL_dY = normal(Y.shape, 3)
    code = computed_by_code(layer, saved, dL_dY)
    known, owner = names_of(layer, saved, Y, X, dL_dY), getattr(layer, "dense", layer)
    assert layer.rules
    known["dL_dX_block"] = code.get("0.dL_dX")  # of a layer that is made of others, which have rules of their own
    for rule in layer.rules:
        formula = evaluate_formula(rule, known)
        np.testing.assert_allclose(code[rule.gradient], formula, rtol=0, atol=TOLERANCE, err_msg=f"{name}: {rule}")
        for e in range(members or 1):
            one = {
                key: member_of(value, key, e, members, {*owner.constants, "I", "passed"})
                for key, value in known.items()
            }
            expected = formula if members is None else formula[e]
            np.testing.assert_allclose(
                evaluate_index_form(rule, one), expected, rtol=0, atol=TOLERANCE, err_msg=f"{name}: {rule}"
            )
        known[rule.gradient] = formula


@pytest.mark.parametrize(("name", "make", "n_in"), layers(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_gradient_of_a_layer_has_one_rule(name, make, n_in):
    layer = ready(make, None)
    stated = [rule.gradient for rule in layer.rules]
    assert sorted(set(stated)) == sorted(stated)
    own = [] if layer.inner else layer.declare()
    assert {"dL_dX", *(f"dL_d{name}" for name in own)} <= set(stated)
    assert all(rule.why and rule.why == rule.why.strip() for rule in layer.rules)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("N", "members"), SHAPES)
@pytest.mark.parametrize("loss", losses(), ids=repr)
def test_loss_code_is_formula_is_index_form(loss, N, members, weighted):
    rng = np.random.default_rng(4)
    Y = rng.normal(size=(*lead(members), N, 3 * loss.heads))
    T = loss.example_targets(rng, (*Y.shape[:-1], 3))
    sample_weight = rng.uniform(0.1, 2, size=(*lead(members), N)) if weighted else None
    _, saved = loss.forward(Y, T, sample_weight)
    dL_dY = loss.backward(saved)
    uniform = np.full((*lead(members), N), 1 / N)
    w = uniform if sample_weight is None else sample_weight / N
    known, code = {"w": w, **loss.names(Y, T)}, loss.parts(dL_dY)
    assert [rule.gradient for rule in loss.rules] == [f"dL_d{name}" for name in code]
    for rule in loss.rules:
        formula = evaluate_formula(rule, known)
        np.testing.assert_allclose(code[rule.gradient[4:]], formula, rtol=0, atol=TOLERANCE, err_msg=str(rule))
        for e in range(members or 1):
            shared = {name for name, value in known.items() if np.ndim(value) < 2}  # settings
            one = {k: member_of(v, k, e, members, shared) for k, v in known.items()}
            expected = formula if members is None else formula[e]
            np.testing.assert_allclose(evaluate_index_form(rule, one), expected, rtol=0, atol=TOLERANCE)


def test_the_l2_penalty_code_is_formula_is_index_form():
    W = normal((4, 3), 5)
    gradient = np.ones(12)
    value = add_l2(W.reshape(-1), 0.3, gradient, np.zeros(()))
    known = {"W": W, "alpha": 0.3}
    formula = evaluate_formula(L2_RULE, known)
    np.testing.assert_allclose(gradient.reshape(4, 3) - 1, formula, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(evaluate_index_form(L2_RULE, known), formula, rtol=0, atol=TOLERANCE)
    assert value == pytest.approx(0.5 * 0.3 * (W * W).sum(), rel=1e-13)


def test_the_evaluator_runs_sums_inside_parentheses_and_nested():
    Y, dL_dY = normal((3, 4), 6), normal((3, 4), 7)
    rule = gpubp.Rule(
        "dL_dX",
        "Y * (dL_dY - (dL_dY * Y).sum(axis=-1, keepdims=True))",
        "dL_dX[n,j] = Y[n,j] * (dL_dY[n,j] - sum_k dL_dY[n,k] * Y[n,k])",
        "",
    )
    known = {"Y": Y, "dL_dY": dL_dY}
    np.testing.assert_allclose(evaluate_index_form(rule, known), evaluate_formula(rule, known), atol=1e-14)
    centred = gpubp.Rule("s", "", "s[n,j] = Y[n,j] - (mean_k Y[n,k] * dL_dY[n,k]) + mean_k dL_dY[n,k]", "")
    expected = Y - (Y * dL_dY).mean(axis=-1, keepdims=True) + dL_dY.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(evaluate_index_form(centred, known), expected, atol=1e-14)
    nested = gpubp.Rule("s", "", "s[i] = sum_j Y[i,j] * (sum_k dL_dY[k,j]) + 1", "")
    expected = (Y * dL_dY.sum(axis=0) + 1).sum(axis=1)  # a sum reaches to the end
    np.testing.assert_allclose(evaluate_index_form(nested, known), expected, atol=1e-13)


def test_the_evaluator_refuses_indices_that_disagree():
    rule = gpubp.Rule("s", "", "s[i] = sum_j Y[i,j] * Z[j,i]", "")
    with pytest.raises(AssertionError, match="index"):
        evaluate_index_form(rule, {"Y": np.ones((2, 3)), "Z": np.ones((2, 3))})


def test_renaming_replaces_whole_names_in_every_text():
    rule = gpubp.Rule("dL_dX", "X * dL_dY", "dL_dX[n,j] = X[n,j] * dL_dY[n,j]", "X feeds Y")
    renamed = rule.renamed({"X": "Z", "dL_dX": "dL_dZ"})
    assert renamed == gpubp.Rule("dL_dZ", "Z * dL_dY", "dL_dZ[n,j] = Z[n,j] * dL_dY[n,j]", "Z feeds Y")
    assert "because Z feeds Y" in str(renamed)
