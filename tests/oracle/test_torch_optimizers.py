"""PyTorch in float64 as an outside oracle: AdamW without a decay of biases, clipping, and schedules, over 20 steps."""

from __future__ import annotations

import numpy as np
import pytest
from lion import Lion
from outside import required

import gpubp

torch = required("torch", "GPUBP_REQUIRE_TORCH")

STEPS = 20
SCHEDULES = {
    "cosine": (
        lambda rate: gpubp.Cosine(rate, final=0.1, total=STEPS),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.01 * 0.1),
    ),
    "one cycle": (
        lambda rate: gpubp.OneCycle(rate, total=STEPS),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.01, total_steps=STEPS, cycle_momentum=False),
    ),
    "one cycle, all settings": (
        lambda rate: gpubp.OneCycle(rate, 0.5, 0.2, 0.002, STEPS),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, 0.01, total_steps=STEPS, pct_start=0.5, div_factor=5, final_div_factor=100, cycle_momentum=False
        ),
    ),
    "steps": (
        lambda rate: gpubp.StepDecay(rate, 6, 0.3),
        lambda o: torch.optim.lr_scheduler.StepLR(o, 6, 0.3),
    ),
    "warm-up, then cosine": (
        lambda rate: gpubp.WarmUp(5, gpubp.Cosine(rate, total=15)),
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [
                torch.optim.lr_scheduler.LinearLR(o, 1 / 5, 1, 4),
                torch.optim.lr_scheduler.CosineAnnealingLR(o, 15),
            ],
            [5],
        ),
    ),
}
OPTIMIZERS = {
    "adamw": (gpubp.AdamW, {"weight_decay": 0.1}, torch.optim.AdamW, {"weight_decay": 0.1}),
    "lion": (gpubp.Lion, {"weight_decay": 0.1}, Lion, {"weight_decay": 0.1}),
    "rmsprop": (gpubp.RMSprop, {"momentum": 0.5}, torch.optim.RMSprop, {"momentum": 0.5}),
    "sgd": (gpubp.SGD, {"momentum": 0.9}, torch.optim.SGD, {"momentum": 0.9}),
}


def clip(parameters, largest):
    """As `torch.nn.utils.clip_grad_norm_`, without the millionth that it adds to the norm."""
    norm = torch.sqrt(sum((p.grad**2).sum() for p in parameters))
    for p in parameters:
        p.grad *= min(1.0, float(largest / norm))


def torch_run(start, X, T, kind, settings, make_schedule, largest):
    """Every loss, and the parameters at the end, of a network of three arrays of weights and two of biases."""
    parameters = {name: torch.tensor(array, requires_grad=True) for name, array in start.items()}
    weights = [p for name, p in parameters.items() if name.endswith("W")]
    biases = [p for name, p in parameters.items() if name.endswith("b")]
    no_decay = {"weight_decay": 0.0} if "weight_decay" in settings else {}
    groups = [{"params": weights, **settings}, {"params": biases, **settings, **no_decay}]
    optimizer = kind(groups, lr=0.01)
    scheduler = make_schedule(optimizer) if make_schedule else None
    X, T, losses = torch.tensor(X), torch.tensor(T), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        W1, b1, W2, b2 = parameters.values()
        loss = 0.5 * ((torch.tanh(X @ W1 + b1) @ W2 + b2 - T) ** 2).sum(dim=1).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        if largest is not None:
            clip([*weights, *biases], largest)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    return losses, {name: p.detach().numpy() for name, p in parameters.items()}


def mine_and_theirs(optimizer, schedule, largest, members=None, rates=None):
    rng = np.random.default_rng(0)
    X, T = rng.normal(size=(30, 4)), rng.normal(size=(30, 2)) * 3
    kind, settings, their_kind, their_settings = OPTIMIZERS[optimizer]
    make, their_schedule = SCHEDULES[schedule] if schedule else (lambda rate: rate, None)
    net = gpubp.mlp(
        [4, 6, 2], activation="tanh", loss=gpubp.SquaredError(scale=0.5), dtype="float64", device="cpu", rng=3
    )
    start = {name: array.copy() for name, array in net.parameters.items()}
    mine = kind(make(0.01), clip_norm=largest, **settings)
    history = gpubp.fit(net, X, T, optimizer=mine, epochs=STEPS, batch_size=30, shuffle=False)
    losses, ends = torch_run(start, X, T, their_kind, their_settings, their_schedule, largest)
    np.testing.assert_allclose(history["loss"], losses, rtol=1e-9)
    for name, expected in ends.items():
        np.testing.assert_allclose(net.parameters[name], expected, rtol=1e-9, atol=1e-9, err_msg=name)
    return history


@pytest.mark.parametrize("largest", [None, 0.7])
@pytest.mark.parametrize("schedule", [None, *SCHEDULES])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_twenty_steps(optimizer, schedule, largest):
    history = mine_and_theirs(optimizer, schedule, largest)
    if largest is not None:  # it was not for nothing
        assert max(history["gradient_norm"]) > largest


def test_clipping_is_that_of_pytorch_but_for_a_millionth():
    gradient = np.random.default_rng(0).normal(size=9)
    p = torch.zeros(9, dtype=torch.float64)
    p.grad = torch.tensor(gradient)
    torch.nn.utils.clip_grad_norm_([p], 0.5)
    theta = np.zeros(9)
    gpubp.SGD(1.0, clip_norm=0.5).update(theta, gradient)
    np.testing.assert_allclose(-theta, p.grad.numpy(), rtol=1e-6)


def test_a_plateau_is_that_of_pytorch():
    losses = np.random.default_rng(0).normal(size=60).round(1) + np.linspace(3, 0, 60)
    p = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.3, patience=3, threshold=0.2, threshold_mode="abs", min_lr=0.01, eps=0
    )
    mine = gpubp.ReduceOnPlateau(1.0, 0.3, 3, minimum_change=0.2, minimum=0.01)
    rates = []
    for loss in losses:
        mine.observe({"loss": loss})
        theirs.step(loss)
        rates.append((mine(0), optimizer.param_groups[0]["lr"]))
    np.testing.assert_allclose(*np.transpose(rates), rtol=1e-12)
    assert len(set(rates)) > 3
