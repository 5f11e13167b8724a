"""``gpubp check``: the hand-written gradients of a network against central differences."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import typer

import gpubp
from gpubp.cli import options

_ROWS = 6


def check(
    data: Annotated[str | None, typer.Argument(metavar="[DATA]", help="As for train; random rows without it.")] = None,
    target: options.Target = None,
    targets: options.Targets = None,
    task: options.Task = "auto",
    layers: options.Layers = "16,8",
    activation: options.Activation = "tanh",
    seed: options.Seed = 0,
) -> None:
    """Check a network's gradients.

    The hand-written gradients are compared with central differences, in float64, on a few rows. Exit code 1 if they
    disagree.
    """
    hidden = options.parse_layers(layers)
    gpubp.activation_by_name(activation)
    rng = np.random.default_rng(seed)
    if data is None:
        X, T = rng.normal(size=(_ROWS, 5)), np.arange(_ROWS) % 3
        n_out, loss, scaled_by = 3, "softmax_cross_entropy", X
    else:
        read = options.read_data(data, targets)
        encoder = options.fit_encoder(data, read, target, task)
        scaled_by, T = encoder.inputs(read), encoder.targets(read)
        T = encoder.with_target_scale(T).standardize_targets(T)
        rows = rng.permutation(len(read))[:_ROWS]
        X, T = scaled_by[rows], T[rows]
        n_out, loss = encoder.n_out, encoder.loss
    widths = [X.shape[1], *hidden, n_out]
    net = gpubp.mlp(widths, activation=activation, loss=loss, standardize=True, dtype="float64", device="cpu", rng=seed)
    net.adapt(scaled_by)
    print(f"network: {options.chain(net, activation)}, {len(X)} rows")
    report = gpubp.check_gradients(net, X, T)
    print(report)
    if not report.ok:
        raise typer.Exit(1)
