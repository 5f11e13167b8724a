"""Random numbers: published vectors, the same bits on every executor, and numbers that are spread as they should be."""

from __future__ import annotations

import contextlib

import cuda_host
import fake_cupy as fake
import numpy as np
import pytest
from scipy import stats

from gpubp import cpu, cuda
from gpubp.backend import to_host
from gpubp.cost import Cost
from gpubp.cuda_kernels import random as launches
from gpubp.errors import SettingError, ShapeError
from gpubp.ops import random

KNOWN_ANSWERS = [  # kat_vectors of Random123, philox4x32 with 10 rounds: counter, key, result
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
SIZES = [0, 1, 2, 3, 4, 5, 33, 1025]
SEED = 0x299F31D0A4093822


def words(text):
    return [int(word, 16) for word in text.split()]


def a_draw(xp, number):
    return xp.asarray(np.array([number], np.int64))


def reference(size, dtype, seed, draw, first=0):
    """One number after the other, by the array maths of a single counter."""
    pack = 16 // np.dtype(dtype).itemsize
    numbers = []
    for i in range(first, first + size):
        block, place = divmod(i, pack)
        counter = block & 0xFFFFFFFF, block >> 32, draw & 0xFFFFFFFF, draw >> 32 & 0xFFFFFFFF
        w = [int(word) for word in random.philox(*counter, seed)]
        bits = w[place] >> 8 if pack == 4 else (w[2 * place] >> 5) * 2**26 + (w[2 * place + 1] >> 6)
        numbers.append(bits / (2**24 if pack == 4 else 2**53))
    return np.array(numbers, dtype)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_published_vectors_in_array_maths(counter, key, expected):
    low, high = words(key)
    assert [int(word) for word in random.philox(*words(counter), high << 32 | low)] == words(expected)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_published_vectors_in_cuda(counter, key, expected):
    source = cuda.read("philox.cuh").replace("#pragma once", "") + (
        "__global__ void kernel(unsigned* x, unsigned long long seed) {"
        " const Words w = philox({{x[0], x[1], x[2], x[3]}}, seed); for (int k = 0; k < 4; ++k) x[k] = w.at[k]; }"
    )
    low, high = words(key)
    x = np.array(words(counter), np.uint32)
    cuda_host.launch(source, "kernel", (1,), (1,), [x, np.uint64(high << 32 | low)])
    assert x.tolist() == words(expected)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_published_vectors_in_the_cpu_kernel(counter, key, expected, cpu_kernels):
    import numba

    @numba.njit
    def call(counter, key):
        return cpu_kernels.random.philox(counter[0], counter[1], counter[2], counter[3], key)

    low, high = words(key)
    found = call(np.array(words(counter), np.uint64), np.uint64(high << 32 | low))
    assert [int(word) for word in found] == words(expected)


@pytest.mark.parametrize("seed", [0, 1, 2**63, 2**64 - 1, SEED])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_executor_gives_the_same_bits(xp, dtype, seed):
    for size in SIZES:
        for draw, offset in ((0, 0), (5, 2), (2**40, 7), (-1, 0)):
            out = xp.full(size + 1, np.nan, dtype)[1:]  # not aligned
            aligned = xp.full(size, np.nan, dtype)
            for array in (out, aligned):
                assert random.uniform(array, seed, a_draw(xp, draw), offset) is array
                np.testing.assert_array_equal(to_host(array), reference(size, dtype, seed, draw + offset))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_large_arrays_of_any_shape(xp, dtype, monkeypatch):
    out = random.uniform(xp.empty((3, 45, 1025), dtype), SEED, a_draw(xp, 1))
    monkeypatch.setattr(cpu, "kernels", lambda: None)
    in_numpy = random.uniform(np.empty(3 * 45 * 1025, dtype), SEED, a_draw(np, 0), 1)
    np.testing.assert_array_equal(to_host(out).ravel(), in_numpy)
    monkeypatch.setattr(random, "PIECE", 28)
    np.testing.assert_array_equal(random.uniform(np.empty(1000, dtype), SEED, a_draw(np, 1)), in_numpy[:1000])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_beyond_two_to_the_32_blocks(dtype):
    """Where an array is that long, its counter goes on in the second word."""
    first = 4 * (5 << 32)
    found = random.numbers(first, 9, np.dtype(dtype), SEED, 1)
    np.testing.assert_array_equal(found, reference(9, dtype, SEED, 1, first))


def test_any_grid_gives_the_same(monkeypatch):
    with fake.installed() as xp:
        before = to_host(random.uniform(xp.empty(9000, "float32"), SEED, a_draw(xp, 1))).copy()
        monkeypatch.setattr(launches, "BLOCKS", 1)
        np.testing.assert_array_equal(to_host(random.uniform(xp.empty(9000, "float32"), SEED, a_draw(xp, 1))), before)


def test_numbers_do_not_depend_on_the_number_of_threads(cpu_kernels, monkeypatch):
    monkeypatch.setattr(cpu, "ALONE_NANOSECONDS", 0)
    monkeypatch.setattr(cpu, "SHARE_NANOSECONDS", 1)
    runs = []
    for count in (1, 3):
        with cpu.limited_threads(count):
            runs.append(random.uniform(np.empty(10001, "float32"), SEED, a_draw(np, 1)))
    np.testing.assert_array_equal(*runs)


def test_a_recorded_program_makes_the_draw_of_each_step(cpu_kernels):
    out, draw, total = np.empty(9, "float32"), a_draw(np, 10), []
    with cpu.recorded() as lines:
        random.uniform(out, SEED, draw, 1)
    np.testing.assert_array_equal(out, reference(9, "float32", SEED, 11))
    program = cpu.Program(lines)
    for steps in (1, 3):
        program.run(steps)
        total.append(out.copy())
    np.testing.assert_array_equal(total[0], reference(9, "float32", SEED, 11))
    np.testing.assert_array_equal(total[1], reference(9, "float32", SEED, 13))
    draw += 1
    program.run(1)
    np.testing.assert_array_equal(out, reference(9, "float32", SEED, 12))


def test_a_captured_graph_makes_another_draw_each_time():
    with fake.installed() as xp:
        out, draw = xp.empty(33, "float32"), a_draw(xp, 0)
        random.uniform(out, SEED, draw, 3)  # compiles

        def work():
            random.uniform(out, SEED, draw, 3)

        graph = cuda.captured(xp.cuda.Stream(non_blocking=True), work)
        for number in (4, 9):
            draw.fill(number)
            graph.launch()
            np.testing.assert_array_equal(to_host(out), reference(33, "float32", SEED, number + 3))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_are_uniform_and_independent(dtype):
    """Chi-square of single numbers, and of pairs: neighbours, two draws, two seeds."""
    u = random.uniform(np.empty(1 << 18, dtype), 3, a_draw(np, 0))
    assert 0 <= u.min()
    assert u.max() < 1
    counts = np.bincount((u * 256).astype(int), minlength=256)
    assert 1e-3 < stats.chisquare(counts).pvalue < 1 - 1e-3
    next_draw = random.uniform(np.empty(1 << 18, dtype), 3, a_draw(np, 1))
    next_seed = random.uniform(np.empty(1 << 18, dtype), 4, a_draw(np, 0))
    for other in (np.roll(u, 1), np.roll(u, 4), next_draw, next_seed):
        pairs = np.bincount((u * 16).astype(int) * 16 + (other * 16).astype(int), minlength=256)
        assert 1e-3 < stats.chisquare(pairs).pvalue < 1 - 1e-3


def test_what_can_not_be_filled_is_refused(xp):
    draw = a_draw(xp, 0)
    for seed in (-1, 2**64):
        with pytest.raises(SettingError, match="from 0 to 2\\^64 - 1"):
            random.uniform(xp.empty(3), seed, draw)
    with pytest.raises(ShapeError, match="draw is float64"):
        random.uniform(xp.empty(3), 0, xp.zeros(1))
    with pytest.raises(ShapeError, match=r"draw is int64 \(2,\)"):
        random.uniform(xp.empty(3), 0, xp.zeros(2, "int64"))
    with pytest.raises(ShapeError, match="out is float16"):
        random.uniform(xp.empty(3, "float16"), 0, draw)
    with pytest.raises(ShapeError, match="with strides"):
        random.uniform(xp.empty(6)[::2], 0, draw)


@pytest.mark.parametrize(("offset", "kernel"), [(0, "uniform<float, 4>"), (1, "uniform<float, 1>")])
def test_what_is_launched(offset, kernel):
    with fake.installed(record=True) as xp:
        random.uniform(xp.empty(9, "float32")[offset:], 0, a_draw(xp, 0))
        random.uniform(xp.empty(0, "float32"), 0, a_draw(xp, 0))
        assert [launch.kernel for launch in fake.machine.launches] == [kernel]


FAULTS = [
    ("0xD2511F53u * c.at[0]", "0xD2511F53u * c.at[1]"),
    ("round < 10", "round < 9"),
    ("key_1 += 0xBB67AE85u", "key_1 += 0x9E3779B9u"),
    ("(unsigned int)(draw >> 32)", "0"),
    ("words.at[k] >> 8", "words.at[0] >> 8"),
    ("words.at[2 * k + 1] >> 6", "words.at[2 * k + 1] >> 7"),
    (" + (unsigned long long)offset", ""),
]


@pytest.mark.parametrize(("right", "wrong"), FAULTS, ids=[wrong for _, wrong in FAULTS])
def test_planted_fault_is_noticed(right, wrong, monkeypatch):
    text = cuda.source("random")
    assert text.count(right) == 1
    for faulty in (False, True):
        monkeypatch.setattr(cuda, "source", lambda stem, faulty=faulty: text.replace(right, wrong) if faulty else text)
        with pytest.raises(AssertionError) if faulty else contextlib.nullcontext(), fake.installed() as xp:
            for dtype in ("float32", "float64"):
                out = random.uniform(xp.empty(33, dtype), SEED, a_draw(xp, 2**40), 7)
                np.testing.assert_array_equal(to_host(out), reference(33, dtype, SEED, 2**40 + 7))


def test_cost():
    assert random.cost("dropout", (3, 4), 8) == Cost("dropout", 0, 12 * 8)


def test_draws_begin_with_the_first_part_of_the_first_step():
    draws = random.Draws(5)
    assert (draws.steps, draws.offset, draws.part, draws.draw.tolist()) == (0, 0, 0, [0])
