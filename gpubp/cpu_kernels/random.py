"""Uniform random numbers by Philox: see `gpubp.ops.random`, and ``kernels/philox.cuh`` for the same in CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

from gpubp import cpu
from gpubp.backend import Array
from gpubp.cpu_kernels.memory import kernel, part, vector

NANOSECONDS = 3.0
"""About what 16 bytes of numbers take, to tell work worth sharing between threads."""


@register_jitable
def philox(c0: Any, c1: Any, c2: Any, c3: Any, key: Any) -> Any:
    """Four random words for a counter of four words and a key of 64 bits; all of them uint64."""
    low = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    k0, k1 = key & low, key >> half
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (p1 >> half) ^ c1 ^ k0, p1 & low, (p0 >> half) ^ c3 ^ k1, p0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return c0, c1, c2, c3


def uniforms(kind: Any, words: Any) -> Any:
    """Numbers from 0 to 1, 1 excluded, from four words: four float32 of 24 bits, or two float64 of 53."""
    raise NotImplementedError


@overload(uniforms)
def _(kind, words):
    if kind.dtype == types.float32:
        return lambda kind, words: (_of24(words[0]), _of24(words[1]), _of24(words[2]), _of24(words[3]))
    return lambda kind, words: (_of53(words[0], words[1]), _of53(words[2], words[3]))


@register_jitable
def _of24(word: Any) -> Any:
    return np.float32(word >> np.uint64(8)) * np.float32(2.0**-24)


@register_jitable
def _of53(high: Any, low: Any) -> Any:
    return np.float64(((high >> np.uint64(5)) << np.uint64(26)) | (low >> np.uint64(6))) * 2.0**-53


@kernel
def _uniform(Real: Any) -> Any:
    def uniform(a: Any, begin: int, end: int, step: int) -> None:
        low, half, pack = np.uint64(0xFFFFFFFF), np.uint64(32), a[5]
        draw = np.uint64(vector(np.int64, a[1], 1)[0] + a[4] + step)
        for block in range(begin, end):
            number = np.uint64(block)
            words = philox(number & low, number >> half, draw & low, draw >> half, np.uint64(a[3]))
            numbers = uniforms(Real, words)
            out = part(Real, a[0], block * pack, min((block + 1) * pack, a[2]))
            for k in range(len(out)):
                out[k] = numbers[k]

    return uniform


def takes(out: Array, draw: Array) -> bool:
    """Whether dtype and strides fit the kernel."""
    return cpu.is_plain(out) and draw.dtype == np.int64 and cpu.is_native(draw)


def uniform(out: Array, seed: int, draw: Array, offset: int) -> Array:
    """Launch; see `gpubp.ops.random.uniform`. Each step of a program makes the draw that follows."""
    pack = 16 // out.itemsize
    arguments = (out, draw, out.size, seed, offset, pack)
    cpu.launch(_uniform(out.dtype.type), arguments, -(-out.size // pack), NANOSECONDS)
    return out
