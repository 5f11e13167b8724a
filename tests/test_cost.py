"""What operations cost: against counts of what they compute, read and write."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import gpubp
from gpubp.cost import Ceilings, Cost, floor_seconds
from gpubp.layers.base import Activation, Layer
from gpubp.losses.base import Loss
from gpubp.ops import activation, gather, gemm


def named(costs):
    """Name to (flops, bytes); no name stands twice."""
    found = {cost.name: (cost.flops, cost.bytes) for cost in costs}
    assert len(found) == len(costs)
    return found


def test_a_cost_takes_the_longer_of_arithmetic_and_memory():
    machine = Ceilings(flops_per_second=100, bytes_per_second=10)
    assert Cost("arithmetic", 500, 20).seconds(machine) == 5
    assert Cost("memory", 100, 20).seconds(machine) == 2
    assert floor_seconds([Cost("arithmetic", 500, 20), Cost("memory", 100, 20)], machine) == 7
    assert floor_seconds([], machine) == 0


def test_what_fits_in_the_caches_counts_at_their_rate():
    machine = Ceilings(100, 10, cache_bytes_per_second=40, cache_bytes=80)
    assert Cost("memory", 0, 81).seconds(machine) == 8.1
    assert Cost("cache", 0, 80).seconds(machine) == 2
    assert Cost("arithmetic", 300, 80).seconds(machine) == 3
    assert Cost("a cache slower than memory", 0, 80).seconds(Ceilings(100, 10, 5, 80)) == 8
    assert Cost("an unknown cache", 0, 80).seconds(Ceilings(100, 10, None, 80)) == 8


@pytest.mark.parametrize("lead", [(), (5,)])
def test_a_matrix_product(lead):
    E = math.prod(lead)
    M, K, N = 3, 7, 11
    expected = Cost("mine", E * M * N * 2 * K, (E * M * K + E * K * N + E * M * N) * 8)
    assert gemm.cost("mine", (*lead, M, K), (*lead, K, N), 8) == expected
    shared = Cost("mine", 5 * M * N * 2 * K, (M * K + 5 * K * N + 5 * M * N) * 8)
    assert gemm.cost("mine", (M, K), (5, K, N), 8) == shared
    assert gather.cost("pick", (3, 4), 4) == Cost("pick", 0, 2 * 12 * 4)


def test_a_step_of_a_network_operation_by_operation():
    N, a, h, K = 8, 6, 5, 3
    net = gpubp.mlp([a, h, K], activation="sigmoid", standardize=True, device="cpu")
    theta = a * h + h + h * K + K
    assert named(net.costs(N, gpubp.Adam())) == {
        "gather": (0, 2 * N * a * 4),
        "0 forward": (2 * N * a, 2 * N * a * 4),  # less the mean, divided by the scale
        "1 forward matmul": (2 * N * a * h, (N * a + a * h + N * h) * 4),
        "1 forward activation": (5 * N * h, 2 * N * h * 4),  # plus the bias, and -x, exp, 1 +, 1 /
        "2 forward matmul": (2 * N * h * K, (N * h + h * K + N * K) * 4),
        "2 forward bias": (N * K, 2 * N * K * 4),
        "loss": (7 * N * K, 2 * N * K * 4 + N * 8),
        "2 backward bias": (N * K, N * K * 4),
        "2 backward dL_dW matmul": (2 * N * h * K, (N * h + h * K + N * K) * 4),
        "2 backward dL_dX matmul": (2 * N * h * K, (N * h + h * K + N * K) * 4),
        "1 backward activation": (4 * N * h, 3 * N * h * 4),  # Y (1 - Y), times dL_dY, into the sum
        "1 backward dL_dW matmul": (2 * N * a * h, (N * a + a * h + N * h) * 4),
        "update": (12 * theta, 7 * theta * 4),
    }
    names = [cost.name for cost in net.costs(N, gpubp.Adam())]
    assert names.index("loss") < names.index("2 backward bias") < names.index("1 backward activation")
    assert names[-1] == "update"
    assert "gather" not in named(net.costs(N, gather=False))
    assert "update" not in named(net.costs(N))


def test_the_penalty_is_counted_where_there_is_one():
    costs = named(gpubp.mlp([6, 5, 3], l2=0.1, members=2, device="cpu").costs(8))
    single = named(gpubp.mlp([6, 5, 3], l2=0.1, device="cpu").costs(8))
    assert single["penalty"] == (4 * 45, 3 * 45 * 4)
    assert "penalty" not in named(gpubp.mlp([6, 5, 3], device="cpu").costs(8))
    assert costs["penalty"] == (
        4 * 2 * 45,
        3 * 2 * 45 * 4,
    )  # square, sum; product, sum: W and dL_dW read, dL_dW written


@pytest.mark.parametrize("stacked", [False, True])
def test_a_stack_costs_its_members(stacked):
    single = gpubp.mlp([6, 5, 3], dtype="float64", device="cpu")
    stack = gpubp.mlp([6, 5, 3], dtype="float64", members=4, device="cpu")
    one, all_ = (named(net.costs(8, gpubp.SGD(), stacked=stacked)) for net in (single, stack))
    for name, (flops, size) in one.items():
        shared = name == "gather" and not stacked
        assert all_[name][0] == (1 if shared else 4) * flops
        if "0" in name.split() and "matmul" in name and not stacked:
            assert all_[name][1] == 4 * size - 3 * 8 * 6 * 8  # X is read once
        else:
            assert all_[name][1] == (1 if shared else 4) * size


def test_the_matrix_products_hold_the_flops_that_are_known_for_them():
    """2 N n_in n_out each: forward, dL_dW, and dL_dX but for the first layer."""
    widths, N = (784, 512, 512, 10), 32
    sizes = [a * b for a, b in itertools.pairwise(widths)]
    net = gpubp.mlp(widths, device="cpu")
    flops = sum(cost.flops for cost in net.costs(N) if cost.name.endswith("matmul"))
    assert flops == 6 * N * sum(sizes) - 2 * N * sizes[0]


@pytest.mark.parametrize(
    ("optimizer", "flops", "numbers"),
    [
        (gpubp.SGD(), 2, 3),  # rate * gradient, theta - that; read both, write theta
        (gpubp.SGD(momentum=0.9), 4, 5),
        (gpubp.SGD(momentum=0.9, nesterov=True), 6, 5),
        (gpubp.Adam(), 12, 7),
        (gpubp.AdamW(), 14, 7),
        (gpubp.RMSprop(), 9, 5),
        (gpubp.RMSprop(momentum=0.9), 11, 7),
        (gpubp.Lion(), 9, 5),
    ],
)
def test_updates(optimizer, flops, numbers):
    assert named(optimizer.costs((2, 50), 4)) == {"update": (flops * 100, numbers * 100 * 4)}


@pytest.mark.parametrize("members", [None, 3])
def test_lookups(members):
    layer, N, E = gpubp.Embedding(6, {4: (2, 3), 1: (5, 7)}), 11, members or 1
    layer.initialize(0, members=members)
    forward, backward = map(named, layer.costs((N, 6), 4))
    assert forward == {
        "forward columns": (0, E * N * 2 * 4 * 4),
        "forward W4": (0, E * N * (1 + 3 + 3) * 4),
        "forward W1": (0, E * N * (1 + 7 + 7) * 4),
    }
    assert backward == {
        "backward dL_dW4": (E * N * 3, (E * N * (1 + 3) + E * 6) * 4),
        "backward dL_dW1": (E * N * 7, (E * N * (1 + 7) + E * 35) * 4),
        "backward columns": (0, E * N * 2 * 4 * 4),
    }
    assert "backward columns" not in named(layer.costs((N, 6), 4, input_gradient=False)[1])
    alone, _ = gpubp.Embedding(1, {0: (2, 3)}).costs((N, 1), 4)
    assert list(named(alone)) == ["forward W0"]


def test_an_optimizer_and_a_loss_that_say_nothing():
    plain = type("Plain", (gpubp.Optimizer,), {})(0.1)
    del gpubp.Optimizer.by_name["plain"]
    assert named(plain.costs((10,), 4)) == {"update": (2 * 10, 3 * 10 * 4)}
    loss = type("Quiet", (Loss,), {"name": "quiet"})()
    del Loss.by_name["quiet"]
    assert named(loss.costs((10, 3), 4)) == {"loss": (5 * 30, 3 * 30 * 4)}


@pytest.mark.parametrize(
    ("name", "flops", "targets"),
    [
        ("softmax_cross_entropy", 7, 20 * 8),
        ("binary_cross_entropy", 14, 20 * 6 * 4),
        ("squared_error", 5, 20 * 6 * 4),
        ("absolute_error", 5, 20 * 6 * 4),
        ("huber", 8, 20 * 6 * 4),
        ("quantile", 6, 20 * 6 * 4),
        ("poisson", 10, 20 * 6 * 4),
        ("gaussian_nll", 20, 20 * 3 * 4),
    ],
)
def test_losses(name, flops, targets):
    assert named(gpubp.loss_by_name(name).costs((20, 6), 4)) == {"loss": (flops * 120, 2 * 120 * 4 + targets)}
    assert len(Loss.by_name) == 8


def test_quantiles_share_their_targets():
    assert named(gpubp.Quantile((0.1, 0.5, 0.9)).costs((20, 6), 4)) == {"loss": (6 * 120, 2 * 120 * 4 + 20 * 2 * 4)}


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("Sigmoid", (4, 2)),
        ("Tanh", (1, 2)),
        ("ReLU", (1, 1)),
        ("LeakyReLU", (2, 3)),
        ("Identity", (0, 0)),
        ("ELU", (3, 2)),
        ("GELU", (5, 10)),
        ("SiLU", (5, 8)),
        ("Softplus", (7, 5)),
    ],
)
def test_activations(kind, flops):
    forward, backward = Layer.by_name[kind]().costs((10, 3), 4)
    assert named(forward) == {"forward activation": ((flops[0] + 1) * 30, 2 * 30 * 4)}
    assert named(backward) == {"backward activation": ((flops[1] + 2) * 30, 3 * 30 * 4)}
    assert Layer.by_name[kind]().costs((10, 3), 4, input_gradient=False)[1] == []


def test_softmax_and_layer_normalisation():
    forward, backward = gpubp.Softmax().costs((2, 10, 3), 4)
    assert named(forward) == {"forward": (5 * 60, 2 * 60 * 4)}  # maximum, less it, exp, sum, divided by it
    assert named(backward) == {"backward": (4 * 60, 3 * 60 * 4)}
    assert gpubp.Softmax().costs((2, 10, 3), 4, input_gradient=False)[1] == []
    layer = gpubp.LayerNorm(3)
    layer.initialize(members=2)
    for shape in ((2, 10, 3), (10, 3)):
        forward, backward = layer.costs(shape, 4)
        assert named(forward) == {"forward": (7 * 60, 3 * 60 * 4)}
        assert named(backward) == {
            "backward dL_dgamma": (2 * 60, 2 * 60 * 4),
            "backward dL_dbeta": (60, 60 * 4),
            "backward": (8 * 60, 3 * 60 * 4),
        }
    assert list(named(layer.costs((10, 3), 4, input_gradient=False)[1])) == ["backward dL_dgamma", "backward dL_dbeta"]


def test_an_activation_that_says_nothing_counts_one_operation_each_way():
    class Quiet(Activation, register=False):
        pass

    forward, backward = Quiet().costs((10, 3), 4)
    assert (forward[0].flops, backward[0].flops) == (2 * 30, 3 * 30)


def test_an_activation_counts_as_one_operation_where_nothing_is_said():
    assert activation.forward_cost("f", (10, 3), 4) == Cost("f", 2 * 30, 2 * 30 * 4)
    assert activation.backward_cost("b", (10, 3), 4) == Cost("b", 3 * 30, 3 * 30 * 4)


def test_every_activation_is_counted_here():
    counted = {mark.args[1][k][0] for mark in test_activations.pytestmark for k in range(len(mark.args[1]))}
    assert counted == {name for name, kind in Layer.by_name.items() if issubclass(kind, Activation)}


def test_a_layer_that_says_nothing_counts_as_one_operation():
    class Plain(Layer, register=False):
        pass

    forward, backward = Plain().costs((10, 3), 8)
    assert named(forward) == {"forward": (30, 2 * 30 * 8)}
    assert named(backward) == {"backward": (30, 2 * 30 * 8)}
    assert Plain().costs((10, 3), 8, input_gradient=False)[1] == []


def test_a_plain_dense_layer_without_gradient_of_its_input():
    dense = gpubp.Dense(4, 3)
    dense.initialize()
    _, backward = dense.costs((10, 4), 4, input_gradient=False)
    assert list(named(backward)) == ["backward bias", "backward dL_dW matmul"]


def test_the_summary_names_layers_parameters_and_memory():
    net = gpubp.mlp([784, 128, 10], standardize=True, device="cpu")
    text = net.summary(batch_size=32)
    lines = text.splitlines()
    assert lines[2].split() == ["1", "Dense(784,", "128)", "(N,", "128)", "100,480", f"{2 * 784 * 128 + 128:,}"]
    assert "101,770 parameters in float32, 407,080 bytes" in text
    plan = gpubp.StepPlan(net, 32)
    assert f"{plan.workspace_bytes:,} bytes of workspace" in text
    flops = sum(cost.flops for cost in net.costs(32, gather=False))
    assert f"a training step of 32 examples: {flops:,} FLOP" in text
    assert "member" not in text
    np.testing.assert_array_equal(net.theta, gpubp.mlp([784, 128, 10], standardize=True, device="cpu").theta)
    with pytest.raises(gpubp.GpubpError, match="at least 1"):
        net.summary(batch_size=0)
