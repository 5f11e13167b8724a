"""Fused CPU kernels, compiled by Numba. Imported by `gpubp.cpu` alone, and only where Numba is installed.

A kernel is a function of one signature, ``(arguments, begin, end, step)``: the addresses, sizes and numbers that it
works on, the range of work items to do, and which step of a launch of several this is. What an item is (a row, a chunk
of rows, a block of elements) is the kernel's own affair, but never depends on the number of threads. Sums are summed by
chunk, so that results don't either, but for matrix products: BLAS may round a part otherwise than the whole.

Each file holds its kernels and, for each, a function that launches it with the signature of the op in
`gpubp.ops` that it stands for.
"""

from gpubp.cpu_kernels import (
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
    team,
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
    "team",
]
