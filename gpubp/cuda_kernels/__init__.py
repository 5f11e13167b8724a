"""Launches of the CUDA kernels in ``kernels/``: shapes of the grid, checks, arguments. CuPy is not imported here.

Each file has, for each op that it stands for, a function with the same name and signature as in `gpubp.cpu_kernels`;
``takes`` functions say whether there is a kernel for the arrays at hand.
"""

from gpubp.cuda_kernels import (
    activation,
    batch_norm,
    combine,
    dropout,
    elementwise,
    embedding,
    gather,
    gemm,
    layer_norm,
    losses,
    optimizers,
    penalty,
    random,
    softmax,
)

__all__ = [
    "activation",
    "batch_norm",
    "combine",
    "dropout",
    "elementwise",
    "embedding",
    "gather",
    "gemm",
    "layer_norm",
    "losses",
    "optimizers",
    "penalty",
    "random",
    "softmax",
]
