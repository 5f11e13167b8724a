"""What a network takes: the operations of a training step with their costs, and a table of its layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gpubp import workspace
from gpubp.cost import Cost
from gpubp.losses import penalty
from gpubp.ops import gather as gather_op
from gpubp.optimizers.base import Optimizer
from gpubp.showing import Table


def step_costs(
    network: Any, batch_size: int, optimizer: Optimizer | None = None, *, gather: bool = True, stacked: bool = False
) -> list[Cost]:
    """The operations of a training step, in order; their names begin with the position of the executed layer.

    Args:
        network: What has the attributes of `gpubp.Network`.
        batch_size: Examples in the step.
        optimizer: Whose update to count; None for none.
        gather: Whether to count the picking of the minibatch from the data set.
        stacked: Whether each member of a stack has its own examples.
    """
    itemsize, N = network.dtype.itemsize, batch_size
    shape: tuple[int, ...] = (*((network.members,) if stacked and network.members else ()), N, network.n_in)
    forward: list[Cost] = [gather_op.cost("gather", shape, itemsize)] if gather else []
    backward: list[Cost] = []
    for k, layer in enumerate(network.executed):
        there, back = layer.costs(shape, itemsize, input_gradient=k > network.first_trained)
        forward += [replace(cost, name=f"{k} {cost.name}") for cost in there]
        if k >= network.first_trained:
            backward = [replace(cost, name=f"{k} {cost.name}") for cost in back] + backward
        shape = layer.buffers(shape, network.device.module)["Y"].shape
    if network.l2:
        weights = (*network.theta.shape[:-1], network.weights_size)
        backward.append(penalty.cost("penalty", weights, itemsize))
    updates = [] if optimizer is None else optimizer.costs(network.theta.shape, itemsize)
    return [*forward, *network.loss.costs(shape, itemsize), *backward, *updates]


def summary_of(network: Any, batch_size: int) -> Table:
    """The table of `gpubp.Network.summary`."""
    itemsize, shape = network.dtype.itemsize, (1, network.n_in)
    rows = []
    for position, layer in enumerate(network.layers):
        forward, _ = layer.costs(shape, itemsize)
        shape = layer.buffers(shape, network.device.module)["Y"].shape
        output = ", ".join([*map(str, shape[:-2]), "N", str(shape[-1])])
        count = sum(array.size for array in layer.parameters.values())
        flops = sum(cost.flops for cost in forward)
        rows.append((f"{position} {layer!r}", f"({output})", f"{count:,}", f"{flops:,}"))
    costs = step_costs(network, batch_size, gather=False)
    flops, moved = sum(cost.flops for cost in costs), sum(cost.bytes for cost in costs)
    size = workspace.lay_out(workspace.lives(network, batch_size, False), itemsize) * itemsize
    notes = [
        f"{network.theta.size:,} parameters in {network.dtype}, {network.theta.nbytes:,} bytes; loss {network.loss!r}",
        f"a training step of {batch_size:,} examples: {flops:,} FLOP on {moved:,} bytes read and written, "
        f"{flops / moved:.1f} FLOP per byte; {size:,} bytes of workspace",
    ]
    return Table(("layer", "output", "parameters", "forward FLOP/example"), rows, notes)
