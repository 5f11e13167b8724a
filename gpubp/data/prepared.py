"""The data of a training: looked at as a whole before it begins, and placed where the steps read it."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpubp.backend import Array, has_room, to_device
from gpubp.examples import RowsOf
from gpubp.losses.base import require_finite
from gpubp.network import Network, require_examples
from gpubp.ops.gather import row_slices

CHECKED_ELEMENTS = 2**18
"""How much of the data to look at in one go, so that the look itself takes no memory to speak of."""


def prepared(
    network: Network, X: Any, T: Any, sample_weight: Any = None, *, resident: bool | None = None
) -> tuple[Array, Array, Array | None]:
    """X as `Network.inputs` gives it with ``as_given=True``, targets and weights as the network's methods give them.

    Args:
        network: The network.
        X: (N, n_in), or (E, N, n_in).
        T: Targets as the loss takes them.
        sample_weight: (N,) or (E, N), or None.
        resident: Whether examples on the host are moved to a CUDA device as a whole; None for where they take at most
            half of the memory that is free there.

    Raises:
        DataError: There are no examples, or a number is not finite, or is one that a layer or the loss does not take,
            or every target is missing.
        ShapeError, DeviceError: The data does not fit the network.
    """
    X = network.inputs(X, as_given=True)
    N = require_examples(X)
    for rows in row_slices(N, max(1, N * CHECKED_ELEMENTS // max(1, X.size))):
        part = X[..., rows, :]
        wider = part.dtype.itemsize > network.dtype.itemsize  # too large a number becomes infinite
        require_finite(part.astype(network.dtype) if wider else part, "X")
        network.require_valid(part)
    contiguous = network.device.module.ascontiguousarray
    placed = _placed(network, X, resident)  # the largest first, which looks whether there is room
    weights = network.sample_weights(sample_weight, X)
    T = contiguous(network.targets(T, X))
    with network.device.activate():
        network.loss.require_some(T)
    return placed, T, None if weights is None else contiguous(weights)


def _placed(network: Network, X: Any, resident: bool | None) -> Any:
    """X on the device and in one piece, if it is to be there as a whole."""
    device, data = network.device, X.data if isinstance(X, RowsOf) else X
    if not device.is_cuda:
        return X
    if isinstance(data, np.ndarray):
        if not (has_room(device, 2 * data.nbytes) if resident is None else resident):
            return X
        data = to_device(data, device)
    data = device.module.ascontiguousarray(data)
    return X.of(data) if isinstance(X, RowsOf) else data
