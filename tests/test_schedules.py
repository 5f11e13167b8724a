"""Learning rates that change: each schedule against a loop or a hand-computed curve, and what they refuse."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpubp
from gpubp.errors import SettingError, ShapeError
from gpubp.schedules import Schedule, schedule, schedule_by_name


def cosine(done):
    return 0.5 * (1 + math.cos(math.pi * done))


def one_cycle(step, total=50, warm_up=0.3, start=0.04, final=4e-6):
    peak = warm_up * total - 1
    if step <= peak:
        return 1 + (start - 1) * cosine(step / peak)
    return final + (1 - final) * cosine((step - peak) / (total - 1 - peak))


CURVES = [
    (gpubp.InverseScaling(0.2), lambda step: 1 / math.sqrt(step + 1)),
    (gpubp.InverseScaling(0.2, power=1), lambda step: 1 / (step + 1)),
    (gpubp.StepDecay(0.2, 10), lambda step: 0.1 ** (step // 10)),
    (gpubp.StepDecay(0.2, 7, 0.5), lambda step: 0.5 ** (step // 7)),
    (gpubp.Cosine(0.2, total=50), lambda step: cosine(step / 50)),
    (gpubp.Cosine(0.2, 0.25, total=20), lambda step: 0.25 + 0.75 * cosine(min(step, 20) / 20)),
    (gpubp.OneCycle(0.2, total=50), one_cycle),
    (gpubp.OneCycle(0.2, 0.5, 0.1, 0.01, 50), lambda step: one_cycle(step, 50, 0.5, 0.1, 0.01)),
    (gpubp.WarmUp(8, 0.2), lambda step: min(1, (step + 1) / 8)),
    (gpubp.WarmUp(1, 0.2), lambda step: 1),
    (
        gpubp.WarmUp(8, gpubp.Cosine(0.2, total=42)),
        lambda step: (step + 1) / 8 if step < 8 else cosine((step - 8) / 42),
    ),
    (
        gpubp.WarmUp(8, gpubp.WarmUp(4, gpubp.InverseScaling(0.2))),
        lambda step: (step + 1) / 8 / 4 if step < 8 else (step - 7) / 4 if step < 12 else 1 / math.sqrt(step - 11),
    ),
]


@pytest.mark.parametrize(("curve", "expected"), CURVES, ids=[repr(curve) for curve, _ in CURVES])
def test_every_step_has_the_factor_of_the_curve(curve, expected):
    factors = [expected(step) for step in range(50)]
    np.testing.assert_allclose(curve(np.arange(50)), factors, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose([curve(step) for step in range(50)], factors, rtol=1e-12, atol=1e-15)
    assert type(curve(3)) is float
    np.testing.assert_allclose(curve.rates(5, 20), 0.2 * np.array(factors[5:25])[:, None], rtol=1e-12, atol=1e-15)
    assert curve.rates(5, 20).shape == (20, 1)


@pytest.mark.parametrize(("curve", "expected"), CURVES, ids=[repr(curve) for curve, _ in CURVES])
def test_a_schedule_is_rebuilt_from_its_config(curve, expected):
    again = schedule(json.loads(json.dumps(curve.config())))
    assert repr(again) == repr(curve)
    np.testing.assert_array_equal(again.rates(0, 50), curve.rates(0, 50))


@given(st.integers(2, 400), st.floats(0.01, 0.99), st.floats(0.001, 0.9), st.floats(0.001, 0.9))
def test_one_cycle_begins_and_ends_where_it_says(total, warm_up, start, final):
    factors = gpubp.OneCycle(1.0, warm_up, start, final, total)(np.arange(total))
    assert ((factors > 0) & (factors <= 1 + 1e-12)).all()
    assert factors[-1] == pytest.approx(final)
    if warm_up * total > 1:
        assert factors[0] == pytest.approx(start)
    top = int(np.argmax(factors))
    assert (np.diff(factors[: top + 1]) >= -1e-12).all()
    assert (np.diff(factors[top:]) <= 1e-12).all()


@pytest.mark.parametrize("total", [1, 2])
def test_a_cycle_of_hardly_any_steps_is_finite(total):
    factors = gpubp.OneCycle(1.0, total=total)(np.arange(total + 3))
    assert factors[0] == 1
    assert np.isfinite(factors).all()


def test_beyond_its_end_a_curve_stays_where_it_is():
    np.testing.assert_array_equal(gpubp.Cosine(1.0, 0.25, total=4)(np.arange(4, 9)), 0.25)
    assert gpubp.Cosine(1.0, total=1)(1) == 0
    np.testing.assert_array_equal(gpubp.OneCycle(1.0, total=4)(np.arange(3, 9)), 4e-6)


def test_each_member_has_its_own_base_rate():
    np.testing.assert_allclose(gpubp.StepDecay([1.0, 2.0], 1, 0.5).rates(1, 2), [[0.5, 1], [0.25, 0.5]])
    theta = np.zeros((2, 3))
    optimizer = gpubp.SGD(gpubp.WarmUp(2, gpubp.StepDecay([1.0, 2.0], 1, 0.5)))
    assert optimizer.current_rate == [0.5, 1]
    for rates in ([0.5, 1], [1, 2], [1, 2], [0.5, 1]):
        before = theta.copy()
        optimizer.update(theta, np.ones((2, 3)))
        np.testing.assert_allclose((before - theta)[:, 0], rates)
        assert optimizer.current_rate == rates
    with pytest.raises(ShapeError, match="2 learning rates.*stack of 3"):
        gpubp.SGD(gpubp.StepDecay([1.0, 2.0], 1)).update(np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(ShapeError, match="2 learning rates.*single network"):
        gpubp.SGD(gpubp.StepDecay([1.0, 2.0], 1)).update(np.ones(2), np.ones(2))


def test_the_rate_that_was_used_last_is_shown():
    theta, optimizer = np.zeros(2), gpubp.SGD(gpubp.StepDecay(1.0, 2, 0.5))
    shown = [optimizer.current_rate]
    for _ in range(4):
        optimizer.update(theta, np.ones(2))
        shown.append(optimizer.current_rate)
    assert shown == [1.0, 1.0, 1.0, 0.5, 0.5]
    np.testing.assert_array_equal(theta, -3)
    optimizer.learning_rate = 0.25
    assert optimizer.current_rate == 0.25
    optimizer.learning_rate = [0.25, 0.5]
    assert optimizer.current_rate == [0.25, 0.5]


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(20, 4)), rng.integers(3, size=20)


def test_fit_says_how_many_steps_there_are_over_all_fits():
    curve, net = gpubp.Cosine(0.1), gpubp.mlp([4, 5, 3], device="cpu")
    optimizer = gpubp.SGD(curve)
    history = gpubp.fit(net, *data(), optimizer=optimizer, epochs=2, batch_size=6)  # 4 steps an epoch
    assert curve.total == 8
    np.testing.assert_allclose(history["learning_rate"], [0.1 * cosine(3 / 8), 0.1 * cosine(7 / 8)])
    history = gpubp.fit(net, *data(), optimizer=optimizer, epochs=3, batch_size=6)
    assert curve.total == 20
    np.testing.assert_allclose(history["learning_rate"], [0.1 * cosine(s / 20) for s in (11, 15, 19)])


def test_a_total_of_ones_own_is_kept():
    curve = gpubp.Cosine(0.1, total=100)
    curve.begin(8, [])
    assert curve.total == 100
    assert curve.config() == {"name": "Cosine", "rate": 0.1, "final": 0.0, "total": 100}
    curve = gpubp.Cosine(0.1)
    curve.begin(8, [])
    assert curve.config()["total"] is None


def test_training_in_two_halves_is_training_at_once():
    ends = []
    for parts in ((4,), (1, 3)):
        net, curve = gpubp.mlp([4, 5, 3], device="cpu"), gpubp.WarmUp(5, gpubp.Cosine(0.1, total=11))
        optimizer = gpubp.Adam(curve)
        for epochs in parts:
            gpubp.fit(net, *data(), optimizer=optimizer, epochs=epochs, batch_size=6) if epochs != 1 else [
                plan_epoch(net, optimizer)
            ]
        ends.append(net.theta)
    np.testing.assert_array_equal(*ends)


def test_one_curve_over_several_fits_is_that_of_one():
    ends = []
    for parts in ((4,), (1, 3), (1, 1, 1, 1)):
        net, optimizer = gpubp.mlp([4, 5, 3], device="cpu"), gpubp.Adam(gpubp.OneCycle(0.1, total=16))
        for epochs in parts:
            gpubp.fit(net, *data(), optimizer=optimizer, epochs=epochs, batch_size=6)
        ends.append(net.theta)
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[0], ends[2])


@pytest.mark.parametrize(
    ("curve", "said"),
    [
        (gpubp.Cosine(0.1, total=7), r"^Cosine\(.*\) ends after 7 steps, and the training after 8: leave total out"),
        (gpubp.OneCycle(0.1, total=7), r"^OneCycle\(.*\) ends after 7 steps, and the training after 8"),
        (gpubp.WarmUp(3, gpubp.Cosine(0.1, total=4)), r"^Cosine\(.*\) ends after 4 steps, and the training after 5"),
    ],
)
def test_a_curve_that_ends_before_the_training_is_refused_before_it_begins(curve, said):
    net, optimizer = gpubp.mlp([4, 5, 3], device="cpu"), gpubp.SGD(curve)
    start = net.theta.copy()
    with pytest.raises(SettingError, match=said):
        gpubp.fit(net, *data(), optimizer=optimizer, epochs=2, batch_size=6)  # 8 steps
    np.testing.assert_array_equal(net.theta, start)
    gpubp.fit(net, *data(), optimizer=optimizer, epochs=1, batch_size=6)  # of 4 steps
    with pytest.raises(SettingError, match="ends after"):
        gpubp.fit(net, *data(), optimizer=optimizer, epochs=1, batch_size=6)  # 8 in all
    optimizer.reset()
    gpubp.fit(net, *data(), optimizer=optimizer, epochs=1, batch_size=6)


@pytest.mark.parametrize("curve", [gpubp.WarmUp(5, 0.1), gpubp.Cosine(0.1), gpubp.ReduceOnPlateau(0.1, monitor="no")])
def test_no_epochs_ask_nothing_of_a_schedule(curve):
    net = gpubp.mlp([4, 5, 3], device="cpu")
    assert len(gpubp.fit(net, *data(), optimizer=gpubp.SGD(curve), epochs=0)) == 0
    assert curve.total is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: gpubp.ReduceOnPlateau(0.1, factor=0.5, patience=1),
        lambda: gpubp.WarmUp(2, gpubp.ReduceOnPlateau([0.1, 0.2], factor=0.5, patience=1)),
        lambda: gpubp.WarmUp(2, gpubp.Cosine(0.1)),
        lambda: gpubp.Cosine(0.1, total=30),
    ],
)
def test_a_reset_makes_a_schedule_as_new(make):
    optimizer, fresh = gpubp.SGD(make()), make()
    curve = optimizer.learning_rate
    optimizer.begin_training(20, ["loss"])
    for _ in range(4):
        optimizer.observe({"loss": [1.0, 2.0] if "[" in repr(curve) else 1.0})
    optimizer.reset()

    def state(schedule):
        return {name: value for name, value in vars(schedule).items() if not isinstance(value, Schedule)}

    for one, other in ((curve, fresh), *([(curve.then, fresh.then)] if "WarmUp" in repr(curve) else [])):
        assert repr(state(one)) == repr(state(other))
    optimizer.begin_training(20, ["loss"])
    fresh.begin(20, ["loss"])
    np.testing.assert_array_equal(curve.rates(0, 20), fresh.rates(0, 20))


def plan_epoch(net, optimizer):
    """One epoch of what is to be four."""
    stop = type("Stop", (gpubp.Callback,), {"on_epoch_end": lambda *_: True})()
    gpubp.fit(net, *data(), optimizer=optimizer, epochs=4, batch_size=6, callbacks=[stop])


def test_a_plateau_is_noticed_after_patience_epochs():
    curve = gpubp.ReduceOnPlateau(1.0, factor=0.5, patience=1, minimum_change=0.1, minimum=0.2)
    seen = []
    for loss in (5, 4, 3.95, 3.9, 3.85, 3.5, 3.5, 3.45, 3.45, 3.45, 3.45, 3.45, 3.45):
        curve.observe({"loss": loss})
        seen.append(curve(0))
    # 3.9 is no tenth below 4, only the second such epoch is too many; 3.5 is a new best
    np.testing.assert_allclose(seen, [1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2, 0.2, 0.2])
    np.testing.assert_allclose(curve.rates(7, 2), [[0.2], [0.2]])


def test_each_member_has_its_own_plateau_and_the_validation_loss_counts():
    curve = gpubp.ReduceOnPlateau([1.0, 10.0], factor=0.1, patience=0)
    for losses in ([3.0, 3.0], [2.0, 3.0], [math.nan, 2.0]):
        curve.observe({"validation_loss": losses, "loss": [0.0, 0.0]})
    np.testing.assert_allclose(curve.rates(0, 2), [[0.1, 1.0]] * 2)
    np.testing.assert_allclose(curve.best, [2, 2])
    warm = gpubp.WarmUp(4, curve)
    np.testing.assert_allclose(warm.rates(1, 4), np.outer([0.5, 0.75, 1, 1], [0.1, 1.0]))
    warm.observe({"loss": [1.0, 9.0]})
    np.testing.assert_allclose(warm.rates(9, 1), [[0.1, 0.1]])
    assert gpubp.ReduceOnPlateau(1.0, monitor="loss").monitor == "loss"
    assert gpubp.ReduceOnPlateau(1.0).patience == 10


@pytest.mark.parametrize("members", [None, 2])
def test_a_training_drives_the_plateau(members):
    net = gpubp.mlp([4, 5, 3], members=members, device="cpu")
    optimizer = gpubp.SGD(gpubp.ReduceOnPlateau(1e-30, factor=0.5, patience=1))  # no loss ever falls
    history = gpubp.fit(net, *data(), optimizer=optimizer, epochs=6, batch_size=20, shuffle=False)
    expected = np.multiply(1e-30, [1, 1, 1, 0.5, 0.5, 0.25])
    np.testing.assert_allclose(np.array(history["learning_rate"]).reshape(6, -1)[:, 0], expected)
    if members is not None:
        assert np.shape(history["learning_rate"]) == (6, 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: gpubp.Cosine(0), "Cosine: rate=0 is not positive"),
        (lambda: gpubp.Cosine([0.1, math.nan]), "is not positive and finite"),
        (lambda: gpubp.Cosine([0.1, math.inf]), "is not positive and finite"),
        (lambda: gpubp.Cosine([[0.1]]), "is not positive and finite"),
        (lambda: gpubp.Cosine(None), "rate=None"),
        (lambda: gpubp.Cosine(0.1, final=1), r"final=1 is outside \[0, 1\)"),
        (lambda: gpubp.Cosine(0.1, final=-0.1), "final=-0.1"),
        (lambda: gpubp.Cosine(0.1, total=0), "total=0: a whole number of at least 1"),
        (lambda: gpubp.Cosine(0.1, total=2.5), "total=2.5"),
        (lambda: gpubp.InverseScaling(0.1, power=0), "power=0 is not a positive"),
        (lambda: gpubp.InverseScaling(0.1, power=math.inf), "power=inf"),
        (lambda: gpubp.InverseScaling(0.1, power=True), "power=True"),
        (lambda: gpubp.StepDecay(0.1, 0), "every=0"),
        (lambda: gpubp.StepDecay(0.1, True), "every=True"),
        (lambda: gpubp.StepDecay(0.1, 5, factor=1), r"factor=1 is outside \(0, 1\)"),
        (lambda: gpubp.StepDecay(0.1, 5, factor=0), "factor=0 is outside"),
        (lambda: gpubp.OneCycle(0.1, warm_up=0), "warm_up=0"),
        (lambda: gpubp.OneCycle(0.1, start=1), "start=1"),
        (lambda: gpubp.OneCycle(0.1, final=0), "final=0"),
        (lambda: gpubp.WarmUp(0, 0.1), "steps=0"),
        (lambda: gpubp.WarmUp(5, -0.1), "-0.1 is not positive"),
        (lambda: gpubp.ReduceOnPlateau(0.1, factor=1.5), "factor=1.5"),
        (lambda: gpubp.ReduceOnPlateau(0.1, patience=-1), "patience=-1: a whole number of at least 0"),
        (lambda: gpubp.ReduceOnPlateau(0.1, minimum_change=-1), "minimum_change=-1"),
        (lambda: gpubp.ReduceOnPlateau(0.1, minimum_change=math.inf), "minimum_change=inf"),
        (lambda: gpubp.ReduceOnPlateau(0.1, minimum=1), "minimum=1"),
        (lambda: schedule({"name": "Cosinus"}), "unknown schedule 'Cosinus'.*Cosine, InverseScaling"),
        (lambda: schedule("fast"), "learning_rate='fast'"),
        (lambda: schedule_by_name("cosinus", 0.1), "unknown schedule 'cosinus': use one of constant, cosine"),
        (lambda: schedule_by_name("constant", -1), "-1 is not positive"),
    ],
)
def test_settings_out_of_range_are_named(make, words):
    with pytest.raises(SettingError, match=words):
        make()


@pytest.mark.parametrize("curve", [gpubp.Cosine(0.1), gpubp.OneCycle(0.1), gpubp.WarmUp(2, gpubp.Cosine(0.1))])
def test_without_fit_a_total_is_needed(curve):
    with pytest.raises(SettingError, match="pass total="):
        gpubp.SGD(curve).update(np.ones(2), np.ones(2))


def test_a_training_shorter_than_its_warm_up_is_refused_before_it_begins():
    net = gpubp.mlp([4, 5, 3], device="cpu")
    start = net.theta.copy()
    with pytest.raises(SettingError, match="warm-up of 9 steps is longer than the training, of 8"):
        gpubp.fit(net, *data(), optimizer=gpubp.SGD(gpubp.WarmUp(9, 0.1)), epochs=2, batch_size=6)
    np.testing.assert_array_equal(net.theta, start)
    for then in (0.1, gpubp.Cosine(0.1)):
        gpubp.fit(net, *data(), optimizer=gpubp.SGD(gpubp.WarmUp(8, then)), epochs=2, batch_size=6)
    assert np.isfinite(net.theta).all()
    assert then.total == 0


def test_a_plateau_of_what_is_not_measured_is_refused():
    net = gpubp.mlp([4, 5, 3], device="cpu")
    curve = gpubp.ReduceOnPlateau(0.1, monitor="validation_loss")
    with pytest.raises(SettingError, match=r"validation_loss.*not measured: pass validation"):
        gpubp.fit(net, *data(), optimizer=gpubp.SGD(curve), epochs=1)
    gpubp.fit(net, *data(), optimizer=gpubp.SGD(curve), epochs=1, validation=data())


def test_schedules_by_name():
    assert schedule_by_name("constant", 0.1) == 0.1
    kinds = [gpubp.Cosine, gpubp.InverseScaling, gpubp.OneCycle, gpubp.ReduceOnPlateau]
    for name, kind in zip(("cosine", "inverse_scaling", "one_cycle", "plateau"), kinds, strict=True):
        assert repr(schedule_by_name(name, 0.1)) == repr(kind(0.1))


def test_a_schedule_of_ones_own_is_one_method():
    class Halves(Schedule):
        """Half of the base rate in every other step."""

        def _factor(self, step):
            return np.where(step % 2, 0.5, 1.0)

    try:
        theta, optimizer = np.zeros(1), gpubp.SGD(Halves(1.0))
        for _ in range(4):
            optimizer.update(theta, np.ones(1))
        np.testing.assert_array_equal(theta, -3)
    finally:
        del Schedule.by_name["Halves"]
    with pytest.raises(NotImplementedError):
        Schedule(1.0)(0)
