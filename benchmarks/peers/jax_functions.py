"""JAX: the whole training step as one jitted function; or many steps in one call, by lax.scan, as many as gpubp's."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpubp.recording import MOST_INDICES, MOST_STEPS

from ..cases import ADAM_RATE, BETA1, BETA2, EPSILON, SGD_RATE, Case, Data, Weights
from . import Peer, Run

PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32"}
"""What ``jax_default_matmul_precision`` calls them."""


def scan_steps(batch: int) -> int:
    """Steps of one call: as many as gpubp does in one. They take no memory but for their losses."""
    return max(1, min(MOST_STEPS, MOST_INDICES // batch))


def logits(weights: Any, X: Any) -> Any:
    import jax

    for k in range(0, len(weights) - 2, 2):
        X = jax.nn.sigmoid(X @ weights[k] + weights[k + 1])
    return X @ weights[-2] + weights[-1]


def loss_of(weights: Any, X: Any, T: Any) -> Any:
    import jax
    import jax.numpy as jnp

    log_P = jax.nn.log_softmax(logits(weights, X))  # (batch, classes)
    return -jnp.take_along_axis(log_P, T[:, None], axis=1).mean()


def sgd(state: Any, gradients: Any) -> Any:
    (weights,) = state
    return ([w - SGD_RATE * g for w, g in zip(weights, gradients, strict=True)],)


def adam(state: Any, gradients: Any) -> Any:
    import jax.numpy as jnp

    weights, M, V, t = state
    t = t + 1
    M = [BETA1 * m + (1 - BETA1) * g for m, g in zip(M, gradients, strict=True)]
    V = [BETA2 * v + (1 - BETA2) * g * g for v, g in zip(V, gradients, strict=True)]
    c1, c2 = 1 - BETA1**t, 1 - BETA2**t
    weights = [w - ADAM_RATE * (m / c1) / (jnp.sqrt(v / c2) + EPSILON) for w, m, v in zip(weights, M, V, strict=True)]
    return weights, M, V, t


class JaxRun(Run):
    def __init__(self, case: Case, data: Data) -> None:
        import jax
        import jax.numpy as jnp

        # On recent GPUs the default for float32 is TF32, which may be another precision than that of the others.
        jax.config.update("jax_default_matmul_precision", PRECISIONS[case.precision])
        super().__init__(case)
        self.jax = jax
        self.X_all, self.T_all = jnp.asarray(data.X), jnp.asarray(data.T, dtype=np.int32)
        first = data.order[: case.batch]
        self.X, self.T = self.X_all[first], self.T_all[first]
        weights = [jnp.array(w) for w in data.weights]
        zeros = [jnp.zeros_like(w) for w in weights]
        self.state: Any = (weights,)
        if case.optimizer == "adam":
            self.state = (weights, zeros, [jnp.zeros_like(w) for w in weights], jnp.zeros((), jnp.float32))
        self.made: Any = None
        # The minibatches lie on the device too, with the number of the next one: a step is given nothing by the host.
        self.order = jnp.asarray(data.order.reshape(-1, case.batch), dtype=np.int32)
        self.position = jnp.zeros((), jnp.int32)
        # Arguments, not constants of the function: the data set is not to be compiled in.
        self._step = jax.jit(self.training_step, donate_argnums=(0, 1))
        self._forward = jax.jit(lambda weights, X: jax.nn.softmax(logits(weights, X)))
        self._gradients = jax.jit(jax.value_and_grad(loss_of))

    def training_step(self, state: Any, position: Any, X_all: Any, T_all: Any, order: Any) -> Any:
        """The next state and position, and the loss."""
        rows = order[position]
        value, gradients = self.jax.value_and_grad(loss_of)(state[0], X_all[rows], T_all[rows])
        state = (sgd if self.case.optimizer == "sgd" else adam)(state, gradients)
        return state, (position + 1) % len(order), value

    def step(self, rows: Any) -> None:
        arrays = self.X_all, self.T_all, self.order
        self.state, self.position, self.made = self._step(self.state, self.position, *arrays)

    def forward(self) -> None:
        self.made = self._forward(self.state[0], self.X)

    def gradients(self) -> None:
        self.made = self._gradients(self.state[0], self.X, self.T)

    def synchronize(self) -> None:
        self.jax.block_until_ready((self.state, self.made))

    def results(self) -> Weights:
        arrays = {"step": self.state[0], "forward": [self.made], "gradients": self.made}[self.case.work]
        return [np.asarray(array) for array in (arrays[1] if self.case.work == "gradients" else arrays)]


class ScanRun(JaxRun):
    def __init__(self, case: Case, data: Data) -> None:
        super().__init__(case, data)
        self.chunk = scan_steps(case.batch)

        def scanned(state: Any, position: Any, X_all: Any, T_all: Any, order: Any, length: int) -> Any:
            def body(carry: Any, _: Any) -> Any:
                *carry, value = self.training_step(*carry, X_all, T_all, order)
                return tuple(carry), value

            (state, position), values = self.jax.lax.scan(body, (state, position), None, length=length)
            return state, position, values

        self._scanned = self.jax.jit(scanned, donate_argnums=(0, 1), static_argnums=5)

    def steps(self, index: NDArray[Any]) -> None:
        arrays = self.X_all, self.T_all, self.order
        for start in range(0, len(index), self.chunk):  # a last, shorter chunk is compiled anew
            length = min(self.chunk, len(index) - start)
            self.state, self.position, self.made = self._scanned(self.state, self.position, *arrays, length)
        self.synchronize()


class Jax(Peer):
    name, package, module = "jax", "jax", "jax"

    def absent(self, device: str) -> str | None:
        if reason := super().absent(device):
            return reason
        import jax

        try:
            jax.devices("gpu" if device == "cuda" else "cpu")
        except RuntimeError:
            return f"JAX {jax.__version__} finds no {device} device (pip install 'jax[cuda12]' brings its CUDA part)"
        return None

    def prepare(self, case: Case, data: Data) -> Run:
        return JaxRun(case, data)

    def facts(self) -> dict[str, str]:
        import jax

        return {
            "version": jax.__version__,
            "devices": f"on {', '.join(map(str, jax.devices()))}",
            "products": f"matrix products of precision {jax.config.jax_default_matmul_precision or 'default'}",
            "threads": f"XLA's thread pool, limited by PJRT_NPROC={os.environ.get('PJRT_NPROC', 'unset')} "
            "(JAX does not tell its size)",
        }


class JaxScan(Jax):
    name = "jax-scan"

    def supports(self, case: Case) -> str | None:
        return None if case.work == "step" else "there is nothing to scan over but training steps"

    def prepare(self, case: Case, data: Data) -> Run:
        return ScanRun(case, data)


PEERS: list[Peer] = [Jax(), JaxScan()]
