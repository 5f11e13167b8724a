"""Every peer that is installed does the same work: three steps of it agree with float64, and float64 is right.

A peer that is absent is skipped by name, unless GPUBP_REQUIRE_PEERS names it (``torch,jax,sklearn,thinc``), which makes
that a failure.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os

import numpy as np
import pytest

import gpubp
from gpubp.cli.bench import benchmarks_module

agreement, cases, peers, team = map(benchmarks_module, ("agreement", "cases", "peers", "team"))
naive = benchmarks_module("peers.naive_numpy")

NET, ROWS = "6-5-4-3", 40
NOTHING = [cases.NO_OPTIMIZER]
CASES = [
    cases.Case(NET, optimizer, batch, work)
    for work, optimizers in (("step", cases.OPTIMIZERS), ("gradients", NOTHING), ("forward", NOTHING))
    for optimizer in optimizers
    for batch in (1, 7)
]
NAMES = [peer.name for peer in peers.all_peers()]


@pytest.fixture(scope="module")
def data_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.npz"
    cases.make_data_set(NET, ROWS, path)
    return path


@pytest.fixture(scope="module")
def workers():
    """All peers in processes of their own, as a race has them."""
    workers = team.Team(peers.all_peers(), threads=1, device="cpu", timeout=300)
    try:
        workers.start()
        yield workers
    finally:
        workers.close()


def data_of(path, case):
    return cases.DataSet.read(path).of(case)


def required_peers():
    """The peers that GPUBP_REQUIRE_PEERS names."""
    return {name.strip() for name in os.environ.get("GPUBP_REQUIRE_PEERS", "").split(",")} - {""}


def skip_or_fail(name, reason):
    """What becomes of the check of a peer that is absent."""
    if name in required_peers():
        pytest.fail(f"GPUBP_REQUIRE_PEERS names {name}, which is absent: {reason}", pytrace=False)
    pytest.skip(f"NOT CHECKED: {name} is absent: {reason}")


def test_only_peers_are_required():
    """A name that is none would require nothing."""
    assert required_peers() <= set(NAMES)


def test_an_absent_peer_is_skipped_loudly_or_fails(monkeypatch):
    monkeypatch.setenv("GPUBP_REQUIRE_PEERS", "jax, thinc")
    with pytest.raises(pytest.fail.Exception, match=r"names thinc, which is absent: not installed"):
        skip_or_fail("thinc", "not installed")
    for setting in ("jax,", ""):
        monkeypatch.setenv("GPUBP_REQUIRE_PEERS", setting)
        with pytest.raises(pytest.skip.Exception, match=r"NOT CHECKED: thinc is absent: not installed"):
            skip_or_fail("thinc", "not installed")


@pytest.mark.parametrize("name", NAMES)
def test_three_steps_agree(workers, data_file, tmp_path, name):
    if reason := workers.known[name].get("absent"):
        skip_or_fail(name, reason)
    facts = workers.known[name]["facts"]
    assert facts["version"]
    assert "threads" in "".join(facts.values())
    peer, done = workers.peers[name], 0
    # Compiling takes torch.compile seconds for each case.
    for case in CASES[3:4] if name.startswith("torch-compile") else CASES:
        answer = workers.ask(name, "prepare", case=vars_of(case), data=str(data_file))
        if "unsupported" in answer:
            continue
        assert answer == {}
        found = tmp_path / "found.npz"
        assert "facts" in workers.ask(name, "check", results=str(found))
        data = data_of(data_file, case)
        expected = agreement.reference(case, data, peer.uncorrected_epsilon)
        with np.load(found) as file:
            arrays = [file[f"w{k}"] for k in range(len(file.files))]
        start = data.weights if case.work == "step" else None
        assert agreement.disagreement(arrays, expected, start) is None, case
        done += 1
    assert done


def test_a_turn_gives_seconds_per_step(workers, data_file):
    case = cases.Case(NET, "sgd", 4)
    assert workers.ask("numpy-naive", "prepare", case=vars_of(case), data=str(data_file)) == {}
    answer = workers.ask("numpy-naive", "measure", seconds=0.02)
    assert 0 < answer["step_seconds"] < 0.02
    assert answer["blocks"] >= 1
    assert 0.5 < answer["steps"] * answer["step_seconds"] / 0.02 < 20


def vars_of(case):
    return dataclasses.asdict(case)


# The reference.


@pytest.fixture
def float64(data_file):
    data = data_of(data_file, cases.Case(NET, "sgd", 7))
    weights = [w.astype(np.float64) for w in data.weights]
    return weights, data.X[:7].astype(np.float64), data.T[:7]


def test_the_references_gradients_against_differences(float64):
    weights, X, T = float64
    _, gradients = naive.loss_and_gradients(weights, X, T)
    for array, gradient in zip(weights, gradients, strict=True):
        for place in itertools.islice(np.ndindex(array.shape), 8):
            losses = []
            for step in (1e-5, -2e-5):
                array[place] += step
                losses.append(naive.loss_and_gradients(weights, X, T)[0])
            array[place] += 1e-5
            assert gradient[place] == pytest.approx((losses[0] - losses[1]) / 2e-5, abs=1e-9)


@pytest.mark.parametrize("optimizer", cases.OPTIMIZERS)
def test_the_references_steps_are_those_of_gpubp_in_float64(data_file, optimizer):
    case = cases.Case(NET, optimizer, 7)
    data = data_of(data_file, case)
    net = gpubp.mlp(case.widths, activation="sigmoid", dtype="float64", device="cpu")
    for k, w in enumerate(data.weights):
        net.parameters[f"{k // 2 * 2}.{'Wb'[k % 2]}"][...] = w
    method = gpubp.optimizer_by_name(optimizer)
    for rows in cases.Stream(data, 7).take(3):
        net.loss_and_gradients(data.X[rows], data.T[rows])
        method.update(net.theta, net.dL_dtheta)
    for k, w in enumerate(agreement.reference(case, data, False)):
        np.testing.assert_allclose(net.parameters[f"{k // 2 * 2}.{'Wb'[k % 2]}"], w, rtol=0, atol=1e-12)


def test_both_forms_of_adam_against_a_scalar_loop():
    for uncorrected in (False, True):
        theta, m, v = 0.5, 0.0, 0.0
        method, weights = naive.Adam([np.array([0.5])], uncorrected), [np.array([0.5])]
        for t, g in enumerate((1e-7, -3e-8, 2e-7), 1):  # as small as epsilon, so that the forms differ
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            c1, c2 = 1 - 0.9**t, 1 - 0.999**t
            if uncorrected:
                theta -= 1e-3 * math.sqrt(c2) / c1 * m / (math.sqrt(v) + 1e-8)
            else:
                theta -= 1e-3 * (m / c1) / (math.sqrt(v / c2) + 1e-8)
            weights = method.update(weights, [np.array([g])])
        assert weights[0][0] == pytest.approx(theta, abs=1e-15)


# What counts as agreement.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w, start: w, None),
        (lambda w, start: w + 1e-9, None),
        (lambda w, start: start, "off by"),  # it has stood still
        (lambda w, start: start + 1.1 * (w - start), "off by"),  # a rate ten percent too high
        (lambda w, start: w + 2e-4, "off by"),
        (lambda w, start: w * np.nan, "off by nan"),
        (lambda w, start: w[..., :-1], "shapes"),
    ],
)
def test_disagreement(data_file, change, said):
    case = cases.Case(NET, "sgd", 7)
    data = data_of(data_file, case)
    expected = agreement.reference(case, data, False)
    found = [change(w, start) for w, start in zip(expected, data.weights, strict=True)]
    answer = agreement.disagreement(found, expected, data.weights)
    assert answer is None if said is None else answer.startswith(said)


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """The data set of a net of the tables, for batches of up to 2,048."""
    path = tmp_path_factory.mktemp("data") / "data.npz"
    cases.make_data_set("64-64-64-64-10", 4096, path)
    return cases.DataSet.read(path)


@pytest.mark.parametrize("batch", [1, 32, 2048])
@pytest.mark.parametrize("optimizer", cases.OPTIMIZERS)
def test_float32_is_agreement_and_nearly_the_same_work_is_not(larger, optimizer, batch):
    case = cases.Case("64-64-64-64-10", optimizer, batch)
    data, start = larger.of(case), larger.weights
    expected = agreement.reference(case, data, False)

    def after_steps(part):
        run = naive.NaiveRun(case, data)
        for rows in cases.Stream(data, batch).take(agreement.STEPS):
            run.step(part(rows))
        return run.results()

    assert agreement.disagreement(after_steps(lambda rows: rows), expected, start) is None
    wrong_rate = [(b + 1.03 * (w - b)).astype(np.float32) for b, w in zip(start, expected, strict=True)]
    assert agreement.disagreement(wrong_rate, expected, start).startswith("off by")
    forgetful = [*expected[:-1], start[-1]]  # the last bias stands still
    assert agreement.disagreement(forgetful, expected, start).startswith("off by")
    if batch == 2048:
        assert agreement.disagreement(after_steps(lambda rows: rows[20:]), expected, start).startswith("off by")


def test_a_few_values_that_stand_still_are_found():
    """One row in 2,048 is left out of a weight matrix: too few for the mean to tell."""
    start, expected = [np.zeros((2048, 4))], [np.full((2048, 4), 1e-5)]
    found = [expected[0].copy()]
    found[0][7] = 0
    assert agreement.disagreement(found, expected, start) == "off by 1.0e-05, allowed is 5.0e-07"


def test_standing_still_is_no_agreement_however_small_the_change():
    start, expected = [np.ones(4)], [np.ones(4) + 5e-5]
    assert agreement.disagreement(expected, expected, start) is None
    assert agreement.disagreement(start, expected, start) == "off by 5.0e-05, allowed is 3.5e-06"


# TF32: what rounding the factors of every product does, by a reference that does so.


class Rounded(np.ndarray):
    """A float64 array whose products take factors of a few binary digits behind the point."""

    digits, cut = 10, False

    def __matmul__(self, other):
        return Rounded._product(self, other)

    def __rmatmul__(self, other):
        return Rounded._product(other, self)

    @classmethod
    def _product(cls, A, B):
        return np.matmul(cls._rounded(A), cls._rounded(B)).view(cls)

    @classmethod
    def _rounded(cls, array):
        mantissa, exponent = np.frexp(np.asarray(array))  # 0.5 to 1: one digit more behind the point
        scaled = np.ldexp(mantissa, cls.digits + 1)
        return np.ldexp(np.trunc(scaled) if cls.cut else np.rint(scaled), exponent - cls.digits - 1)


def emulated(case, data, digits, cut, monkeypatch):
    monkeypatch.setattr(Rounded, "digits", digits)
    monkeypatch.setattr(Rounded, "cut", cut)
    run = naive.NaiveRun(case, data, np.float64)
    run.weights = [w.view(Rounded) for w in run.weights]
    run.steps(cases.Stream(data, case.batch).take(agreement.STEPS))
    return [np.asarray(w) for w in run.results()]


def test_the_emulation_rounds_as_tf32_does(monkeypatch):
    numbers = np.array([1 + 2**-10, 1 + 2**-12, -3 - 2**-9 - 2**-10, 0.0, 1e-30])
    assert Rounded._rounded(numbers)[:4].tolist() == [1 + 2**-10, 1, -3 - 2**-8, 0]
    monkeypatch.setattr(Rounded, "cut", True)
    assert Rounded._rounded(numbers)[:4].tolist() == [1 + 2**-10, 1, -3 - 2**-9, 0]
    assert abs(Rounded._rounded(numbers)[4] / 1e-30 - 1) <= 2**-10


@pytest.mark.parametrize("optimizer", cases.OPTIMIZERS)
@pytest.mark.parametrize("batch", [1, 32, 256])
@pytest.mark.parametrize("net", ["64-64-64-64-10", "100-60-10", "784-64-64-10", "128-128-128-128-128"])
def test_tf32_is_agreement_and_less_than_that_is_not(net, batch, optimizer, tmp_path, monkeypatch):
    cases.make_data_set(net, 512, tmp_path / "data.npz")
    case = cases.Case(net, optimizer, batch, device="cuda", precision="tf32")
    data = data_of(tmp_path / "data.npz", case)
    expected = agreement.reference(case, data, False)

    def verdict(found):
        return agreement.disagreement(found, expected, data.weights, "tf32")

    for cut in (False, True):
        assert verdict(emulated(case, data, 10, cut, monkeypatch)) is None
    assert verdict(expected) is None
    assert verdict(emulated(case, data, 2, False, monkeypatch)).startswith("off by")
    assert "in the mean" in verdict(data.weights)  # it has stood still
    wrong_rate = [start + 1.1 * (w - start) for w, start in zip(expected, data.weights, strict=True)]
    assert verdict(wrong_rate).startswith("off by")


def test_the_share_of_tf32_grows_with_the_layers():
    assert agreement.share_of_tf32(1) == 2 * 2 * 2**-10  # one product forward, one of its own
    assert agreement.share_of_tf32(3) == 6 * 2 * 2**-10


def test_large_cases_are_checked_with_fewer_rows():
    small, large = cases.Case("784-512-512-10", "adam", 65536), cases.Case("4096-4096-4096-4096-4096", "adam", 65536)
    assert agreement.checked_case(small) == small
    assert agreement.checked_case(large) == cases.Case(large.net, "adam", 512)


# The data.


def test_minibatches_are_parts_of_the_order_again_and_again(data_file):
    case = cases.Case(NET, "sgd", 7)
    data = data_of(data_file, case)
    assert data.X.shape == (35, 6)  # 40 rows, in whole batches
    assert sorted(data.order) == list(range(35))
    stream = cases.Stream(data, 7)
    taken = [stream.take(steps) for steps in (1, 3, 8)]
    assert [index.shape for index in taken] == [(1, 7), (3, 7), (8, 7)]
    np.testing.assert_array_equal(np.concatenate(taken).ravel(), np.tile(data.order, 3)[: 12 * 7])


def test_every_class_occurs_and_no_bias_is_zero(data_file):
    data = cases.DataSet.read(data_file)
    assert set(data.T) == {0, 1, 2}
    assert all((b != 0).all() for b in data.weights[1::2])
    assert [w.dtype for w in data.weights] == [np.float32] * 6


# The interface.


def test_names_are_unique_and_gpubp_comes_first():
    assert NAMES[0] == "gpubp"
    assert len(set(NAMES)) == len(NAMES)
    assert [peer.name for peer in peers.all_peers() if peer.own] == ["gpubp", "gpubp-numpy"]


def test_a_peer_that_is_not_installed_says_how_to_get_it():
    class Nothing(peers.Peer):
        name, package, module = "nothing", "no-such-package", "no_such_module"

        def prepare(self, case, data):
            raise NotImplementedError

    assert Nothing().absent("cpu") == "not installed: pip install no-such-package"


@pytest.mark.parametrize("kernels", ["numpy", "auto"])
def test_gpubp_numpy_is_shown_only_where_it_is_another_thing(monkeypatch, kernels):
    monkeypatch.setenv("GPUBP_CPU_KERNELS", kernels)
    peer = next(peer for peer in peers.all_peers() if peer.name == "gpubp-numpy")
    monkeypatch.setattr("gpubp.cpu.importlib.util.find_spec", lambda name: None)
    assert "the same here" in peer.absent("cpu")
    monkeypatch.setattr("gpubp.cpu.importlib.util.find_spec", lambda name: name)
    assert peer.absent("cpu") is None
    assert "with and without" in peer.absent("cuda")


@pytest.mark.parametrize("name", ["numpy-naive", "sklearn", "thinc"])
def test_peers_without_a_device_say_so(name):
    peer = next(peer for peer in peers.all_peers() if peer.name == name)
    assert peer.supports(cases.Case(NET, "sgd", 1, device="cuda")) == "runs on the CPU only"
    assert peer.supports(cases.Case(NET, "sgd", 1)) is None


@pytest.mark.parametrize("precision", cases.PRECISIONS)
def test_pytorch_is_pinned_to_the_precision(precision, data_file):
    torch = pytest.importorskip("torch")
    before = torch.get_float32_matmul_precision()
    peer = next(peer for peer in peers.all_peers() if peer.name == "torch")
    case = cases.Case(NET, "sgd", 1, precision=precision)
    try:
        peer.prepare(case, data_of(data_file, case))
        assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
    finally:
        torch.set_float32_matmul_precision(before)


def test_gpubp_is_pinned_to_the_precision(data_file):
    peer, case = peers.all_peers()[0], cases.Case(NET, "sgd", 1, precision="tf32")
    assert peer.prepare(case, data_of(data_file, case)).network.matmul_precision == "tf32"


@pytest.mark.parametrize("batch", [1, 7, 300, 65536])
def test_a_scan_has_as_many_steps_as_a_program_of_gpubp(batch, cpu_kernels):
    jax_functions = benchmarks_module("peers.jax_functions")
    rng = np.random.default_rng(0)
    X, T = rng.normal(size=(batch + 1, 2)).astype(np.float32), rng.integers(2, size=batch + 1)
    network = gpubp.mlp([2, 2], device="cpu", rng=0)
    plan = gpubp.StepPlan(network, batch)
    plan.steps(X, T, None, np.arange(batch)[None], gpubp.SGD(0.1))
    ((_, recording),) = plan._recordings.values()
    assert jax_functions.scan_steps(batch) == len(recording.index)


def test_tuning_for_minutes_is_for_a_few_cases():
    peer = next(peer for peer in peers.all_peers() if peer.name == "torch-compile-max")
    tuned = [
        (net, batch)
        for net in (*cases.NETS, *cases.GPU_NETS)
        for batch in (1, 32, 256, 4096, 65536)
        if peer.supports(cases.Case(net, "adam", batch, device="cuda")) is None
    ]
    assert tuned == [("784-512-512-10", batch) for batch in (256, 4096, 65536)]
    assert peer.supports(cases.Case("784-512-512-10", "adam", 256, "forward", "cuda"))


def test_fused_sgd_is_shown_on_a_gpu():
    peer = next(peer for peer in peers.all_peers() if peer.name == "torch-fused")
    assert peer.supports(cases.Case(NET, "sgd", 1, device="cuda")) is None
    assert peer.supports(cases.Case(NET, "sgd", 1)) == "shown for Adam only, where fusing matters"
