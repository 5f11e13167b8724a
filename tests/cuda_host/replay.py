"""Launches again, in a C++ program of their own, what the stand-in for CuPy was asked to launch.

In a program of their own kernels can run under sanitizers, on buffers without slack. It takes from its standard input
what to launch, for the compiler to have little to read, and for one program to serve many launches.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

import cuda_host

if TYPE_CHECKING:
    from fake_cupy import Launch

OVERRUNS = ("-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
"""What g++ takes to build a program that notices an access beside a buffer, or undefined behaviour."""
RACES = ("-g", "-O1", "-fsanitize=thread")
"""What g++ takes to build a program that notices two threads at one place of memory with no barrier between."""
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
    "TSAN_OPTIONS": "atexit_sleep_ms=0:suppress_equal_stacks=0:suppress_equal_addresses=0",
}

PROGRAM = """
using Kernel = const char* (*)(const unsigned*, const unsigned*, void**, const size_t*, size_t, unsigned);
using Buffers = std::vector<std::vector<char>>;
static const Kernel kernels[] = {KERNELS};
static bool wrong;  // whether something other than a removed barrier made a launch fail

static long long next() {
    long long word = 0;
    if (fread(&word, sizeof word, 1, stdin) != 1) exit(wrong);  // that was the last launch
    return word;
}

struct Argument {
    long long buffer, bits;  // which one and an offset in it, or -1 and a value
    size_t bytes;
};

struct Launch {
    Kernel kernel;
    unsigned grid[3], block[3];
    Buffers buffers;
    std::vector<Argument> arguments;

    Launch() : kernel(kernels[next()]) {
        for (unsigned& size : grid) size = next();
        for (unsigned& size : block) size = next();
        buffers.resize(next());
        for (std::vector<char>& buffer : buffers) {
            buffer.resize(next());
            if (fread(buffer.data(), 1, buffer.size(), stdin) != buffer.size()) exit(1);
        }
        arguments.resize(next());
        for (Argument& argument : arguments) argument = {next(), next(), size_t(next())};
    }

    const char* run(int count, char** orders) const {
        Buffers first;
        for (int i = 0; i < count; ++i) {
            Buffers copies = buffers;
            std::vector<long long> values;
            std::vector<void*> addresses;
            std::vector<size_t> sizes;
            for (const Argument& argument : arguments) {
                const auto start = argument.buffer < 0 ? 0 : (long long)copies[argument.buffer].data();
                values.push_back(start + argument.bits);
                sizes.push_back(argument.bytes);
            }
            for (long long& value : values) addresses.push_back(&value);
            const char* error = kernel(grid, block, addresses.data(), sizes.data(), sizes.size(), atoi(orders[i]));
            if (error) return error;
            if (i == 0) first = copies;
            if (copies != first) return "another result";
        }
        return "fine";
    }
};

int main(int argc, char** argv) {
    for (bool remove = atoi(argv[1]);;) {
        const Launch launch;
        cuda_host::removed = 0;
        memset(cuda_host::reached, 0, sizeof cuda_host::reached);
        const char* outcome = launch.run(argc - 2, argv + 2);
        printf("%s", outcome);
        if (strcmp(outcome, "fine")) wrong = true;
        for (int line = 0; remove && line < cuda_host::MOST_LINES; ++line) {
            if (!cuda_host::reached[line]) continue;
            cuda_host::removed = line;
            printf("\\t%d\\t%s", line, launch.run(argc - 2, argv + 2));
        }
        printf("\\n");
    }
}
"""


def run(
    launches: Sequence[Launch],
    source: str,
    flags: Sequence[str],
    *,
    content: int | None = None,
    orders: Sequence[int] = (0, 1),
    remove: bool = False,
    names: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Make launches in a program of their own. It prints a line for each, with what came of it.

    That is ``fine``, ``another result`` in one order than in the first one, ``race``, or another error. The exit code
    is 0 where all launches were fine.

    Args:
        launches: Of kernels of one source.
        source: CUDA source text that includes nothing.
        flags: How to build the program, such as `OVERRUNS` or `RACES`.
        content: What every byte of every buffer is; None for what is in the arrays.
        orders: Of threads and blocks, as ``cuda_host.h`` numbers them; each launch is made in each of them.
        remove: Make each launch without one of its barriers too, for each of them. The line of the barrier in the
            source, and what came of it, stand behind, after tabs.
        names: Look up where in the source a race is, which takes a while.

    Raises:
        CompileError: g++ does not accept the source.
    """
    kernels = sorted({launch.kernel for launch in launches})
    program = cuda_host.build(_program(source, kernels), *flags)
    given = b"".join(_encoded(launch, kernels, content) for launch in launches)
    environment = dict(OPTIONS)
    environment["TSAN_OPTIONS"] += f":symbolize={int(names)}"
    command = [str(program), str(int(remove)), *map(str, orders)]
    result = subprocess.run(command, input=given, capture_output=True, env=environment, check=False)
    if b"unexpected memory mapping" in result.stderr:  # addresses are too random for ThreadSanitizer
        command = ["setarch", "-R", *command]
        result = subprocess.run(command, input=given, capture_output=True, env=environment, check=False)
    return subprocess.CompletedProcess(command, result.returncode, result.stdout.decode(), result.stderr.decode())


def _program(source: str, kernels: Sequence[str]) -> str:
    """The text of a C++ program that makes launches of these kernels of a source."""
    calls = [
        f"[](const unsigned* grid, const unsigned* block, void** arguments, const size_t* sizes, size_t n, unsigned o)"
        f" {{ return cuda_host::launch({kernel}, grid, block, arguments, sizes, n, o); }}"
        for kernel in kernels
    ]
    return "\n".join(['#include "cuda_host.h"', "#line 1", source, PROGRAM.replace("KERNELS", ", ".join(calls))])


def _encoded(launch: Launch, kernels: Sequence[str], content: int | None) -> bytes:
    """A launch as such a program reads it, with buffers of exactly the same sizes."""
    owners: dict[int, tuple[int, np.ndarray]] = {}
    arguments: list[int] = []
    for argument in launch.arguments:
        if isinstance(argument, np.ndarray):
            owner = argument if argument.base is None else argument.base
            number, _ = owners.setdefault(id(owner), (len(owners), owner))
            arguments += number, argument.ctypes.data - owner.ctypes.data, 8
        else:
            value = np.int64(argument) if isinstance(argument, int) else argument
            bits = int.from_bytes(value.tobytes().ljust(8, b"\0"), sys.byteorder, signed=True)
            arguments += -1, bits, value.nbytes
    grid, block = ([*sizes, 1, 1, 1][:3] for sizes in (launch.grid, launch.block))
    parts = [_words(kernels.index(launch.kernel), *grid, *block, len(owners))]
    for _, owner in owners.values():
        filled = owner.tobytes("A") if content is None else bytes([content % 256]) * owner.nbytes
        parts += _words(owner.nbytes), filled
    return b"".join([*parts, _words(len(launch.arguments), *arguments)])


def _words(*numbers: int) -> bytes:
    return np.array(numbers, np.int64).tobytes()
