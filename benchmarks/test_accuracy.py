"""Time to a given held-out accuracy on the handwritten digits that come with scikit-learn.

Each round trains another seed: other initial weights, other minibatches, other rows held out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import numpy as np
import pytest

import gpubp
from gpubp.data.splits import split_rows

WIDTHS = (64, 128, 10)
BATCH = 32
SEEDS = 5
MOST_EPOCHS = 200
HELD_OUT = 0.2
OPTIMIZERS: dict[str, Callable[[], gpubp.Optimizer]] = {
    "sgd": lambda: gpubp.SGD(0.1, momentum=0.9),
    "adam": lambda: gpubp.Adam(1e-3),
}


class StopAt(gpubp.Callback):
    """Stops the training when the held-out accuracy is reached.

    Args:
        accuracy: The share of held-out examples to classify rightly.
        X: (N, n_in) held-out examples on the network's device.
        t: (N,) their class indices, on the host.
    """

    def __init__(self, accuracy: float, X: Any, t: Any) -> None:
        self.accuracy, self._held_out = accuracy, (X, t)
        self.best = 0.0

    def on_epoch_end(self, network: gpubp.Network, measured: Mapping[str, Any]) -> bool:
        """Whether the accuracy is reached."""
        X, t = self._held_out
        predicted = gpubp.to_host(network.predict(X)).argmax(axis=-1)
        self.best = max(self.best, float((predicted == t).mean()))
        return self.best >= self.accuracy


def train(seed: int, optimizer: str, device: str, accuracy: float, X: Any, t: Any) -> gpubp.History:
    """Train a network until it classifies so many of the held-out digits rightly.

    Raises:
        RuntimeError: It does not get there in `MOST_EPOCHS` epochs.
    """
    split = split_rows(t, HELD_OUT, HELD_OUT, np.random.default_rng(seed), by_class=True)
    learned = np.concatenate([split.train, split.validation])  # nothing is tuned here, so nothing to validate with
    X_learned, t_learned, X_held_out = (gpubp.to_device(a, device) for a in (X[learned], t[learned], X[split.held_out]))
    stop = StopAt(accuracy, X_held_out, t[split.held_out])
    network = gpubp.mlp(WIDTHS, activation="sigmoid", standardize=True, device=device, rng=seed)
    history = gpubp.fit(
        network,
        X_learned,
        t_learned,
        optimizer=OPTIMIZERS[optimizer](),
        epochs=MOST_EPOCHS,
        batch_size=BATCH,
        rng=seed,
        callbacks=[stop],
        progress=False,
    )
    if stop.best < accuracy:
        raise RuntimeError(
            f"seed {seed}, {optimizer}: {stop.best:.4f} is the best held-out accuracy of {MOST_EPOCHS} epochs, "
            f"{accuracy} was asked for"
        )
    return history


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_time_to_accuracy(benchmark: Any, pytestconfig: pytest.Config, optimizer: str, device: str) -> None:
    """The training time alone: looking at the held-out digits after each epoch is not counted."""
    digits = pytest.importorskip(
        "sklearn.datasets", reason="NO FIGURES: the digits come with scikit-learn"
    ).load_digits()
    X, t = digits.data.astype(np.float32), digits.target
    accuracy = pytestconfig.getoption("--accuracy")
    benchmark.group = f"accuracy {device}"
    histories: list[gpubp.History] = []
    train(0, optimizer, device, accuracy, X, t)  # threads start, kernels are loaded

    def one_seed() -> None:
        histories.append(train(len(histories), optimizer, device, accuracy, X, t))

    benchmark.pedantic(one_seed, rounds=SEEDS)
    if benchmark.disabled:
        return
    benchmark.extra_info.update(
        {
            "kind": "accuracy",
            "data": "digits",
            "net": "-".join(map(str, WIDTHS)),
            "optimizer": repr(OPTIMIZERS[optimizer]()),
            "device": device,
            "dtype": "float32",
            "batch": BATCH,
            "accuracy": accuracy,
            "seeds": len(histories),
            "train_seconds": median(sum(history["seconds"]) for history in histories),
            "slowest_seconds": max(sum(history["seconds"]) for history in histories),
            "epochs": median(len(history) for history in histories),
        }
    )
