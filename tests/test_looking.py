"""A look into a network: every figure against NumPy on the outputs and gradients themselves, on every executor."""

from __future__ import annotations

import re

import numpy as np
import pytest
from cases import lead
from hypothesis import given
from hypothesis import strategies as st
from test_summary import Cells

import gpubp
from gpubp.backend import to_host
from gpubp.errors import DataError, GpubpError, SettingError, ShapeError
from gpubp.layers.base import Activation, Layer
from gpubp.looking import Distribution, Histogram

NUMBERS = st.floats(allow_subnormal=True, width=32) | st.sampled_from([0.0, 1.0, 2.0**60])


@pytest.fixture(params=["numpy", "kernels", "stand-in", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    """Each executor in turn."""
    fixtures = {"numpy": "numpy_ops", "kernels": "cpu_kernels", "stand-in": "fake_cupy"}
    if request.param in fixtures:
        request.getfixturevalue(fixtures[request.param])
    return "cpu" if request.param in ("numpy", "kernels") else "cuda:0"


def examples(N=40, members=None, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(*lead(members), N, 6)), rng.integers(0, 3, size=N)


def outputs(network, X):
    """What each layer gives, one after the other."""
    found, Y = [], network.inputs(X)
    with network.device.activate():
        for layer in network.layers:
            Y, _ = layer.forward(Y)
            found.append(to_host(Y).astype(np.float64))
    return found


def gradients_by_hand(network, X, T, w=None):
    """dL_dY of each layer but those before the first with parameters, (position -> array), by a backward of its own."""
    saved, Y = [], network.inputs(X)
    for layer in network.layers:
        Y, state = layer.forward(Y, training=True)
        saved.append(state)
    _, state = network.loss.forward(Y, network.targets(T, network.inputs(X)), w)
    found, gradient = {}, network.loss.backward(state)
    first = next(k for k, layer in enumerate(network.layers) if layer.declare())
    for k in reversed(range(first, len(network.layers))):
        found[k] = np.array(gradient)
        gradient = network.layers[k].backward(gradient, saved[k], input_gradient=k > first)
    return found


def same(distribution, array, members, **tolerance):
    """Whether the figures of a distribution are those of an array, member by member."""
    rows = array.reshape(1, -1) if members is None else array.reshape(members, -1)
    shape = () if members is None else (members,)
    tolerance = {"rtol": 1e-6, "atol": 1e-9, **tolerance}
    for name, expected in [
        ("mean", rows.mean(axis=1)),
        ("deviation", rows.std(axis=1)),
        ("rms", np.sqrt((rows**2).mean(axis=1))),
        ("smallest", rows.min(axis=1)),
        ("largest", rows.max(axis=1)),
    ]:
        np.testing.assert_allclose(getattr(distribution, name), expected.reshape(shape), err_msg=name, **tolerance)
    for histogram, row in zip(distribution.histograms, rows, strict=True):
        assert histogram.counts.sum() == histogram.count == row.size


@given(st.lists(st.lists(NUMBERS, max_size=20), max_size=6))
def test_a_histogram_counts_what_numpy_counts(parts):
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    values = np.array([number for part in parts for number in part])
    finite = values[np.isfinite(values)]
    assert (histogram.count, histogram.not_finite) == (finite.size, values.size - finite.size)
    if not finite.size:
        assert histogram.counts.size == 0
        return
    assert (histogram.smallest, histogram.largest) == (finite.min(), finite.max())
    edges = histogram.edges
    assert len(edges) == len(histogram.counts) + 1 <= 65
    assert edges[0] <= finite.min()
    assert finite.max() < edges[-1]
    where = np.searchsorted(edges, finite, side="right") - 1
    np.testing.assert_array_equal(histogram.counts, np.bincount(where, minlength=len(histogram.counts)))
    assert histogram.counts[0]
    assert histogram.counts[-1]


@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=20), max_size=6))
def test_mean_and_deviation_come_in_parts(parts):
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    values = np.array([number for part in parts for number in part])
    if values.size:
        assert histogram.mean == pytest.approx(values.mean(), rel=1e-9, abs=1e-6)
        assert histogram.deviation == pytest.approx(values.std(), rel=1e-9, abs=1e-6)
        assert histogram.rms == pytest.approx(np.sqrt((values**2).mean()), rel=1e-9, abs=1e-6)


def test_bins_of_a_histogram_are_narrow_and_their_width_is_a_power_of_two():
    histogram = Histogram()
    histogram.add(np.random.default_rng(0).uniform(-3.9, 3.9, 1000))
    assert set(np.diff(histogram.edges)) == {0.125}
    assert len(histogram.counts) == 64
    histogram.add([4.05])
    assert set(np.diff(histogram.edges)) == {0.25}  # with 0.125 there would be 65
    assert len(histogram.counts) == 33
    histogram.add([100.0])
    assert set(np.diff(histogram.edges)) == {2.0}
    assert histogram.counts.sum() == 1002
    assert histogram.counts[-1] == 1


@pytest.mark.parametrize("values", [[1e308, -1e308], [0, 1.7e308], [5e-324], [-5e-324, 1e308]])
def test_numbers_at_the_ends_of_float64_are_counted(values):
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    assert histogram.counts.sum() == len(values)


def test_without_numbers_there_is_nothing():
    empty = Histogram()
    empty.add([])
    assert (empty.count, empty.mean, empty.deviation, empty.counts.size) == (0, 0, 0, 0)


def test_numbers_that_are_not_finite_are_counted_apart():
    distribution = Distribution(2)
    distribution.add(np.array([[1.0, np.nan, np.inf, 3.0], [0.0, 0.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(distribution.not_finite, [0.5, 0])
    np.testing.assert_array_equal(distribution.mean, [2, 0])
    np.testing.assert_array_equal(distribution.deviation, [1, 0])


@pytest.mark.parametrize("batch_size", [7, 40, 1000])
@pytest.mark.parametrize(("members", "own"), [(None, False), (3, False), (3, True)])
@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_outputs_parameters_dead_and_saturated_are_those_of_the_layers(device, activation, members, own, batch_size):
    X, _ = examples(members=members if own else None)
    net = gpubp.mlp([6, 9, 5, 3], activation=activation, standardize=True, members=members, device=device, rng=1)
    net.adapt(X)
    net.parameters["1.W"][...] *= 9
    net.parameters["1.b"][..., :6] = -90
    report = gpubp.look(net, X, batch_size=batch_size)
    assert (report.examples, report.members) == (40, members)
    assert [seen.name for seen in report.layers] == [repr(layer) for layer in net.layers]
    for seen, Y in zip(report.layers, outputs(net, X), strict=True):
        Y = np.broadcast_to(Y, (*lead(members), 40, Y.shape[-1]))
        same(seen.Y, Y, members)
        assert seen.position == report.layers.index(seen)
        assert seen.dL_dY is None
        assert seen.gradients == {}
        assert set(seen.parameters) == set(net.layers[seen.position].parameters)
        for name, distribution in seen.parameters.items():
            same(distribution, to_host(net.parameters[f"{seen.position}.{name}"]).astype(float), members)
        if not isinstance(net.layers[seen.position], Activation):
            assert seen.dead is None
            assert seen.saturated is None
        elif activation == "relu":
            np.testing.assert_array_equal(seen.dead, (Y == 0).all(axis=-2).mean(axis=-1))
            assert np.shape(seen.dead) == lead(members)
            assert seen.saturated is None
        else:
            np.testing.assert_allclose(seen.saturated, (Y * (1 - Y) < 0.0025).mean(axis=(-2, -1)), rtol=1e-12)
            assert np.shape(seen.saturated) == lead(members)
            np.testing.assert_array_equal(seen.dead, (Y == 0).all(axis=-2).mean(axis=-1))
    hidden = report.layers[2]
    assert (np.asarray(hidden.dead if activation == "relu" else hidden.saturated) >= 6 / 9).all()
    assert (np.asarray(hidden.dead) < 1).all()


@pytest.mark.parametrize("batch_size", [7, 1000])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("members", "own"), [(None, False), (3, False), (3, True)])
def test_gradients_are_those_of_the_loss_over_all_examples(device, members, own, weighted, batch_size):
    X, t = examples(members=members if own else None)
    w = np.random.default_rng(1).uniform(0, 2, 40) if weighted else None
    cpu = gpubp.mlp([6, 5, 3], standardize=True, members=members, l2=0.3, dtype="float64", device="cpu", rng=1)
    cpu.adapt(X)
    net = cpu.copy(device=device)
    report = gpubp.look(net, X, t, sample_weight=w, batch_size=batch_size)
    _, gradients = cpu.loss_and_gradients(X, t, w)
    for name, gradient in gradients.items():
        position, own_name = name.split(".")
        same(report.layers[int(position)].gradients[own_name], gradient, members)
    assert sum(len(seen.gradients) for seen in report.layers) == len(gradients)
    for seen, Y in zip(report.layers, outputs(cpu, X), strict=True):  # of inference alone
        assert [histogram.count for histogram in seen.Y.histograms] == [40 * Y.shape[-1]] * (members or 1)
    by_hand = gradients_by_hand(cpu, X, t, cpu.sample_weights(w, cpu.inputs(X)))
    assert report.layers[0].dL_dY is None
    for k, gradient in by_hand.items():
        same(report.layers[k].dL_dY, np.broadcast_to(gradient, (*lead(members), *gradient.shape[-2:])), members)
    assert set(by_hand) == {1, 2, 3}


def test_the_gradient_of_an_output_is_the_slope_of_the_loss():
    X, t = examples(5)
    net = gpubp.mlp([6, 4, 3], dtype="float64", device="cpu")
    seen = gpubp.look(net, X, t).layers[0]
    Z, slopes = outputs(net, X)[0], []

    def loss(Z):
        return float(net.loss.forward(net.layers[2].forward(net.layers[1].forward(Z)[0])[0], t, None)[0])

    for place in np.ndindex(Z.shape):
        step = np.zeros_like(Z)
        step[place] = 1e-5
        slopes.append((loss(Z + step) - loss(Z - step)) / 2e-5)
    assert seen.dL_dY.rms == pytest.approx(np.sqrt(np.mean(np.square(slopes))), rel=1e-7)
    assert seen.dL_dY.largest == pytest.approx(max(slopes), rel=1e-6)


def one_unit(activation, values, **settings):
    """A network that puts numbers through an activation, one each row."""
    net = gpubp.Network([gpubp.Dense(1, 1), activation], "squared_error", dtype="float64", device="cpu", **settings)
    net.parameters["0.W"][...], net.parameters["0.b"][...] = 1, 0
    return gpubp.look(net, np.array(values, float)[:, None]).layers[1]


def test_saturated_means_a_slope_below_a_hundredth_of_the_steepest():
    edge = np.log((1 + np.sqrt(0.99)) / (1 - np.sqrt(0.99)))  # y (1 - y) = 0.01 / 4
    assert one_unit(gpubp.Sigmoid(), [edge + 1e-9, -edge - 1e-9, edge - 1e-9, 0]).saturated == 0.5
    edge = np.arctanh(np.sqrt(0.99))  # 1 - y^2 = 0.01
    assert one_unit(gpubp.Tanh(), [edge + 1e-9, edge - 1e-9, -edge + 1e-9, 1, 2]).saturated == 0.2


@pytest.mark.parametrize("kind", ["ReLU", "LeakyReLU", "Identity"])
def test_only_an_activation_that_is_flat_at_both_ends_saturates(kind):
    assert one_unit(Layer.by_name[kind](), [-50, 50]).saturated is None


def test_a_new_activation_is_judged_by_its_own_slope(monkeypatch):
    monkeypatch.setattr(Layer, "by_name", dict(Layer.by_name))

    class Softsign(Activation):
        """Y = X / (1 + |X|), whose slope is 1 / (1 + |X|)^2."""

        def evaluate(self, xp, X, out, scratch):
            xp.absolute(X, out=scratch)
            xp.add(scratch, 1, out=scratch)
            xp.divide(X, scratch, out=out)

        def derivative(self, xp, saved, out):
            xp.absolute(saved, out=out)
            xp.subtract(1, out, out=out)
            xp.multiply(out, out, out=out)

    assert one_unit(Softsign(), [0, 8.9, -8.9, 9.1]).saturated == 0.25


@pytest.mark.parametrize("kind", [name for name, kind in Layer.by_name.items() if issubclass(kind, Activation)])
def test_every_activation_can_be_looked_at(kind):
    layer = Layer.by_name[kind].examples()[0][0]
    seen = one_unit(layer, np.linspace(-3, 3, 7))
    assert seen.dead == 0
    assert seen.saturated is None or 0 <= seen.saturated < 0.5


@pytest.mark.parametrize("batch_size", [3, 100])
@pytest.mark.parametrize("kind", sorted(Layer.by_name))
def test_every_layer_can_be_looked_at_and_gradients_are_those_of_a_step(kind, batch_size):
    for layer, n_in in Layer.by_name[kind].examples():
        rng = np.random.default_rng(0)
        fresh = type(layer)(**layer.config())
        layers = [fresh, gpubp.Dense(fresh.output_width(n_in), 2)]
        net = gpubp.Network(layers, "squared_error", dtype="float64", device="cpu", rng=0)
        X, T = rng.integers(0, 2, size=(7, n_in)).astype(float), rng.normal(size=(7, 2))
        net.adapt(X)
        steps, report = net.draws.steps, gpubp.look(net, X, T, batch_size=batch_size)
        same(report.layers[0].Y, outputs(net, X)[0], None)  # of inference
        assert net.draws.steps == steps
        if batch_size == 100:
            for name, gradient in net.loss_and_gradients(X, T)[1].items():
                path, _, own_name = name.rpartition(".")
                (seen,) = (layer for layer in report.layers if str(layer.position) == path)
                same(seen.gradients[own_name], gradient, None)


def test_a_unit_is_dead_only_if_it_gives_0_and_learns_nothing_from_any_example():
    assert one_unit(gpubp.ReLU(), [-1, -2, 0]).dead == 1
    assert one_unit(gpubp.ReLU(), [-1, -2, 1e-9]).dead == 0
    assert one_unit(gpubp.Tanh(), [0, 0]).dead == 0  # where tanh is steepest
    assert one_unit(gpubp.Identity(), [0]).dead == 0
    assert one_unit(gpubp.LeakyReLU(), [-1, -2]).dead == 0


def test_a_unit_that_lives_in_one_batch_lives():
    net = gpubp.Network([gpubp.Dense(1, 2), gpubp.ReLU()], "squared_error", device="cpu")
    net.parameters["0.W"][...] = [[1, -1]]
    assert gpubp.look(net, [[-1], [-1], [-1], [2]], batch_size=1).layers[1].dead == 0
    assert gpubp.look(net, [[-1], [-1]], batch_size=1).layers[1].dead == 0.5


def test_what_the_members_of_a_stack_share_is_the_same_for_each():
    layers = [gpubp.Sigmoid(), gpubp.Dense(2, 1)]
    net = gpubp.Network(layers, "squared_error", members=3, device="cpu")
    seen = gpubp.look(net, [[9.0, 0.0], [0.0, -1.0]], np.ones(2)).layers[0]
    assert seen.saturated.tolist() == [0.25] * 3
    assert seen.dead.tolist() == [0] * 3
    np.testing.assert_allclose(seen.Y.largest, [1 / (1 + np.exp(-9))] * 3, rtol=1e-6)


def test_the_network_stays_as_it_is(device):
    X, t = examples()
    net = gpubp.mlp([6, 5, 3], standardize=True, l2=0.1, device=device)
    gpubp.fit(net, X, t, epochs=1, progress=False)
    plan, executed = net.plan, list(net.executed)
    before = [to_host(array).copy() for array in (net.theta, net.dL_dtheta)]
    gpubp.look(net, 3 * X, t)
    assert (net.plan, net.executed) == (plan, executed)
    for array, kept in zip((net.theta, net.dL_dtheta), before, strict=True):
        np.testing.assert_array_equal(to_host(array), kept)
    fresh = gpubp.mlp([6, 5, 3], standardize=True, device=device)
    gpubp.look(fresh, X, t)
    assert not fresh.layers[0].adapted


def saturated(members=None):
    """A stack, or a single network, with a saturated layer, a dead one, and none of it in member 0."""
    layers = [gpubp.Dense(2, 4), gpubp.Sigmoid(), gpubp.Dense(4, 8), gpubp.ReLU(), gpubp.Dense(8, 1)]
    net = gpubp.Network(layers, "squared_error", members=members, device="cpu", rng=0)
    net.theta[...] = 0
    bad = ... if members is None else slice(1, None)
    net.parameters["0.b"][bad, :3] = 20  # of 4 units
    net.parameters["2.b"][..., :] = 1
    net.parameters["2.b"][bad, :5] = -1  # of 8
    return net


SATURATED = (
    "more than half (75 %) of layer 1, Sigmoid(), is saturated{}: its gradient is below 1 % of the largest; "
    "smaller weights, standardised inputs or ReLU help"
)
DEAD = (
    "more than half (62.5 %) of layer 3, ReLU(), is dead{}: these units give 0 for every example, and learn nothing; "
    "a smaller learning rate, He's initial weights or LeakyReLU help"
)


@pytest.mark.parametrize(
    ("members", "who"),
    [(None, ""), (2, " in member 1"), (4, " in members 1, 2, 3"), (10, " in 9 of 10 members")],
)
def test_what_is_wrong_is_said_in_sentences(members, who):
    report = gpubp.look(saturated(members), np.ones((3, 2)))
    assert [str(finding) for finding in report.findings] == [SATURATED.format(who), DEAD.format(who)]
    assert [(finding.layer, finding.kind) for finding in report.findings] == [(1, "saturated"), (3, "dead")]
    lines = str(report).splitlines()
    assert lines[-2:] == [str(finding) for finding in report.findings]
    assert lines[-3] == "of 3 examples" + ("" if members is None else f", means of {members} members")


def test_half_is_not_more_than_half():
    net = saturated()
    net.parameters["0.b"][2] = net.parameters["2.b"][4] = 0.5
    report = gpubp.look(net, np.ones((3, 2)))
    assert (report.layers[1].saturated, report.layers[3].dead) == (0.5, 0.5)
    assert report.findings == ()


def test_different_members_are_told_from_the_least_to_the_most():
    net = saturated(3)
    net.parameters["0.b"][2, 3] = 20
    assert str(gpubp.look(net, np.ones((3, 2))).findings[0]).startswith("more than half (75 to 100 %) of layer 1")


def test_numbers_that_are_not_finite_are_told_and_drawn(tmp_path):
    net = saturated()
    net.parameters["0.b"][0], net.parameters["4.b"][...] = np.inf, np.nan
    report = gpubp.look(net, np.ones((3, 2)), np.ones(3))
    told = [str(finding) for finding in report.findings if finding.kind == "not finite"]
    assert told == [
        "25 % of the output of layer 0, Dense(2, 4), is not finite",
        "100 % of the output of layer 4, Dense(8, 1), is not finite",
    ]
    report.plot(tmp_path / "x.png")


def test_the_table_shows_layers_parameters_and_gradients():
    net = gpubp.Network([gpubp.Dense(1, 1), gpubp.Tanh()], "squared_error", dtype="float64", device="cpu")
    net.parameters["0.W"][...], net.parameters["0.b"][...] = 2, 0.5
    X, t = np.array([[0.0], [1.0]]), np.array([0.0, 0.0])
    Y = np.tanh([0.5, 2.5])
    dL_dY = Y / 2  # of 1/2 * 1/2 * sum (y - t)^2
    dL_dZ = dL_dY * (1 - Y**2)
    rows = [re.split(r"\s{2,}", line.strip()) for line in str(gpubp.look(net, X, t)).splitlines()]
    rms = lambda values: f"{np.sqrt(np.mean(np.square(values))):.3g}"  # noqa: E731
    assert rows == [
        ["layer, parameter", "mean", "deviation", "rms of gradient", "dead", "saturated"],
        ["0 Dense(1, 1)", "1.5", "1", rms(dL_dZ)],
        ["W", "2", "0", rms(dL_dZ[1])],
        ["b", "0.5", "0", rms(dL_dZ.sum())],
        ["1 Tanh()", f"{Y.mean():.3g}", f"{Y.std():.3g}", rms(dL_dY), "0 %", "0 %"],
        ["of 2 examples"],
    ]
    without = str(gpubp.look(gpubp.mlp([1, 1], device="cpu"), X)).splitlines()
    assert re.split(r"\s{2,}", without[0]) == ["layer, parameter", "mean", "deviation"]


def test_a_notebook_shows_the_same_as_print():
    report = gpubp.look(saturated(), np.ones((3, 2)), np.ones(3))
    html, lines = Cells(report._repr_html_()), str(report).splitlines()
    assert html.notes == lines[-3:]
    for row, line in zip(html.rows, lines, strict=False):
        assert " ".join(" ".join(row).split()) == " ".join(line.split())


@pytest.mark.parametrize("members", [None, 2])
def test_layers_in_blocks_are_looked_at(device, members):
    inner = gpubp.Residual([gpubp.Dense(9, 9), gpubp.ReLU()])
    block = gpubp.Residual([gpubp.Dense(9, 9), gpubp.Sigmoid(), inner])
    layers = [gpubp.Dense(6, 9), block, gpubp.Dense(9, 3)]
    net = gpubp.Network(layers, "softmax_cross_entropy", device=device, members=members, dtype="float64", rng=1)
    net.parameters["1.2.0.b"][...] = -90
    X, T = examples()
    report = gpubp.look(net, X, T, batch_size=16)
    seen = {str(layer.position): layer for layer in report.layers}
    assert list(seen) == ["0", "1", "1.0", "1.1", "1.2", "1.2.0", "1.2.1", "2"]
    assert {f"{path}.{name}" for path, layer in seen.items() for name in layer.gradients} == set(net.parameters)
    assert [(finding.layer, finding.kind) for finding in report.findings] == [("1.2.1", "dead")]
    assert "of layer 1.2.1, ReLU(), is dead" in str(report)
    _, gradients = net.loss_and_gradients(X, T)
    for name, expected in gradients.items():
        path, _, own = name.rpartition(".")
        same(seen[path].gradients[own], to_host(expected), members)
        same(seen[path].parameters[own], to_host(net.parameters[name]), members)
    first, _ = net.layers[0].forward(net.inputs(X))
    Z, _ = net.layers[1].inner[0].forward(first)
    same(seen["1.0"].Y, to_host(Z).astype(np.float64), members)
    assert seen["1.1"].dL_dY is not None
    assert seen["1.1"].saturated is not None


@pytest.mark.parametrize("members", [None, 2])
@pytest.mark.parametrize("with_targets", [False, True])
def test_histograms_are_drawn(members, with_targets, tmp_path):
    net = gpubp.mlp([2, 4, 1], loss="squared_error", standardize=True, members=members, device="cpu")
    X = np.random.default_rng(0).normal(size=(9, 2))
    report = gpubp.look(net, X, np.ones(9) if with_targets else None)
    figure = report.plot(tmp_path / "look.svg")
    text = (tmp_path / "look.svg").read_text()
    assert text.startswith("<?xml")
    assert [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")] == [
        f"{seen.position} {seen.name}" for seen in report.layers
    ]
    names = [[entry.get_text() for entry in axes.get_legend().get_texts()] for axes in figure.axes if axes.get_legend()]
    of_layer = {0: [["Y"]], 1: [["Y"], ["dL_dY"], ["dL_dW", "dL_db"]], 2: [["Y"], ["dL_dY"]]}
    of_layer[3] = of_layer[1]
    assert names == [some for k in range(4) for some in of_layer[k][: 3 if with_targets else 1]]
    drawn = figure.axes[3 if with_targets else 1].patches
    assert len(drawn) == (members or 1)
    values = drawn[0].get_data().values
    counts = report.layers[1].Y.histograms[0].counts
    np.testing.assert_allclose(values, counts / counts.max())
    with pytest.raises(GpubpError, match="nowhere"):
        report.plot(tmp_path / "nowhere" / "look.png")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"X": np.ones((0, 6))}, DataError, "no examples"),
        ({"X": np.ones((2, 5))}, ShapeError, "5 features"),
        ({"T": [0]}, ShapeError, "1"),
        ({"batch_size": 0}, SettingError, "batch_size=0"),
    ],
)
def test_wrong_input_is_named(arguments, error, words):
    with pytest.raises(error, match=words):
        gpubp.look(gpubp.mlp([6, 3], device="cpu"), **{"X": np.ones((2, 6)), "T": [0, 1], **arguments})


def test_the_callback_warns_once_of_each_layer():
    watch = gpubp.Look(np.ones((3, 2)), np.ones(3), every=2)
    net = saturated()
    watch.on_train_begin(net, [])
    watch.on_epoch_end(net, {"epoch": 1})
    assert watch.report is None
    with pytest.warns(UserWarning, match="after epoch 2") as told:
        watch.on_epoch_end(net, {"epoch": 2})
    assert [str(warning.message) for warning in told] == [
        f"after epoch 2, {sentence.format('')}" for sentence in (SATURATED, DEAD)
    ]
    assert watch.report.layers[0].dL_dY is not None
    watch.on_epoch_end(net, {"epoch": 4})  # a warning would be an error
    assert len(watch.report.findings) == 2
    with pytest.raises(SettingError, match="every=0"):
        gpubp.Look(np.ones((3, 2)), every=0)


def test_the_callback_in_a_fit(device):
    X, t = examples()
    net = gpubp.mlp([6, 5, 3], device=device)
    watch = gpubp.Look(X[:10], every=2)
    twin = net.copy()
    for one, callbacks in ((net, [watch]), (twin, [])):
        gpubp.fit(one, X, t, epochs=3, batch_size=16, progress=False, callbacks=callbacks)
    np.testing.assert_array_equal(to_host(net.theta), to_host(twin.theta))
    assert watch.report.examples == 10


def trained_on_iris(*options):
    """What `gpubp train` prints, and what it says beside."""
    from typer.testing import CliRunner

    from gpubp.cli import app

    outcome = CliRunner().invoke(app, ["train", "iris", "--layers", "16", "--epochs", "20", "--l2", "0", *options])
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout, outcome.stderr


@pytest.mark.parametrize(
    ("activation", "rate", "words"),
    [("sigmoid", "10", r"\(\S+ %\) of layer 2, Sigmoid\(\), is saturated: its"), ("relu", "3", "ReLU.*is dead: these")],
)
def test_training_on_the_command_line_says_what_is_wrong(activation, rate, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stdout, stderr = trained_on_iris("--activation", activation, "--learning-rate", rate)
    assert re.fullmatch(rf"note: more than half .*{words}.*\n", stderr)
    assert "more than half" not in stdout
    assert trained_on_iris("--activation", activation)[1] == ""
