"""What kernels need of the machine: arrays at addresses, bits as numbers, calls by address, atomic counters."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
from numba import carray, cfunc, config, types
from numba.core.compiler import Compiler
from numba.extending import intrinsic, register_jitable

from gpubp import cpu

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT keeps it from compiling")

SIGNATURE = types.void(types.CPointer(types.int64), types.int64, types.int64, types.int64)
FLAGS = {"error_model": "numpy", "fastmath": {"contract"}}
"""A division by zero gives infinity, and a product and a sum may become one fused operation. No other liberties."""


def kernel(make: Callable[..., Any]) -> Callable[..., Any]:
    """A family of kernels: `make` takes types and gives a function; each is compiled when first asked for.

    What the function closes over must be types that can be found by name, for the disk cache to know them again.
    """
    known: dict[tuple[Any, ...], Any] = {}

    @functools.wraps(make)
    def compiled(*kinds: Any) -> Any:
        if kinds not in known:
            with cpu.compiling:
                if kinds not in known:  # another thread may have been first
                    known[kinds] = cached(lambda options: cfunc(SIGNATURE, **options)(make(*kinds)))
        return known[kinds]

    return compiled


def cached(compile_it: Callable[[dict[str, Any]], Any]) -> Any:
    """What `compile_it` gives with options for Numba: its disk cache on, or off where no folder can be written for it.

    Numba looks at the file of a function alone, not at those of the functions that it calls. So the cache lies in a
    folder that is named after the text of all kernels, and a change in any of them begins a new one. The caller holds
    `cpu.compiling`, as all this is one setting of Numba's for the process.
    """
    chosen = config.CACHE_DIR
    folder = Path(chosen or platformdirs.user_cache_dir("gpubp", False)) / _fingerprint()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} is not writable")
        config.CACHE_DIR = str(folder)
        _Compiler.message = f"{ANNOUNCED} once, as they are needed; from then on they come from {folder}"
        return compile_it({"cache": True, "pipeline_class": _Compiler, **FLAGS})
    except OSError as error:  # no folder can be made there, or the disk is full
        _Compiler.message = (
            f"{ANNOUNCED} as they are needed, and in every process anew, as they can't be kept ({error}). "
            "NUMBA_CACHE_DIR may name a folder that can be written"
        )
        return compile_it({"pipeline_class": _Compiler, **FLAGS})
    finally:
        config.CACHE_DIR = chosen


ANNOUNCED = "compiling CPU kernels for this machine,"


class _Compiler(Compiler):  # type: ignore[misc]
    """Numba's own, which runs only for what is not in the cache: it says why the first training takes longer."""

    message = ""

    def define_pipelines(self) -> Any:
        _announce(self.message)
        return super().define_pipelines()


@functools.cache
def _announce(message: str) -> None:
    """Say it, once in a process."""
    # A warning, as nothing below that level is seen where no logging is set up.
    logging.getLogger("gpubp").warning(message)


@functools.cache
def _fingerprint() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return "kernels-" + hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]


@intrinsic
def _pointer(typing_context: Any, address: Any, kind: Any) -> Any:
    pointer = types.CPointer(kind.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(address, kind), generate


@register_jitable
def vector(kind: Any, address: int, size: int) -> Any:
    """The array (size,) of a NumPy scalar type that begins at an address."""
    return carray(_pointer(address, kind), (size,))


@register_jitable
def part(kind: Any, address: int, begin: int, end: int) -> Any:
    """The elements begin to end of the array at an address.

    Loops over it begin at 0. From any other number, Numba could not rule out that an index is negative and counts from
    the end, and the compiler would not vectorise.
    """
    return carray(_pointer(address + begin * itemsize(kind), kind), (end - begin,))


@intrinsic
def itemsize(typing_context: Any, kind: Any) -> Any:
    """Bytes of a NumPy scalar type."""
    size = kind.dtype.bitwidth // 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant(types.int64, size)

    return types.int64(kind), generate


@register_jitable
def matrix(kind: Any, address: int, rows: int, columns: int) -> Any:
    """The array (rows, columns), C-contiguous, that begins at an address."""
    return carray(_pointer(address, kind), (rows, columns))


@register_jitable
def rows_of(kind: Any, address: int, begin: int, end: int, columns: int) -> Any:
    """Rows begin to end of the matrix (..., columns) at an address; loops over them begin at 0, as over a `part`."""
    return carray(_pointer(address + begin * columns * itemsize(kind), kind), (end - begin, columns))


def _bitcast(source: Any, target: Any) -> Any:
    @intrinsic
    def cast(typing_context: Any, bits: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), generate

    return cast


number = _bitcast(types.int64, types.float64)
"""The float64 whose bits an argument is."""
float32_of_bits = _bitcast(types.int32, types.float32)
float64_of_bits = number
bits_of_float32 = _bitcast(types.float32, types.int32)
bits_of_float64 = _bitcast(types.float64, types.int64)


@intrinsic
def call(typing_context: Any, address: Any, arguments: Any, begin: Any, end: Any, step: Any) -> Any:
    """Call the kernel at an address; `arguments` is an address too."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        from llvmlite import ir

        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word.as_pointer(), word, word, word])
        function = builder.inttoptr(values[0], kind.as_pointer())
        builder.call(function, [builder.inttoptr(values[1], word.as_pointer()), *values[2:]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def atomic_add(typing_context: Any, counters: Any, index: Any, amount: Any) -> Any:
    """Add to an int64 in an array at once, seen by all threads; returns what it was before."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.atomic_rmw("add", _element(context, builder, signature, values), values[2], "seq_cst")

    return types.int64(counters, types.intp, types.int64), generate


@intrinsic
def atomic_load(typing_context: Any, counters: Any, index: Any) -> Any:
    """Read an int64 of an array anew, whatever was read before."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load_atomic(_element(context, builder, signature, values), "acquire", 8)

    return types.int64(counters, types.intp), generate


def _element(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    from numba.core import cgutils

    kind = signature.args[0]
    array = context.make_array(kind)(context, builder, values[0])
    return cgutils.get_item_pointer(context, builder, kind, array, [values[1]])


@intrinsic
def prefetch(typing_context: Any, address: Any) -> Any:
    """Let the processor fetch the cache line at an address into its second-level cache; any address is allowed."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        from llvmlite import ir

        pointer, flag = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [pointer, flag, flag, flag])
        function = builder.module.declare_intrinsic("llvm.prefetch", (pointer,), kind)
        for_reading, second_level, data = flag(0), flag(2), flag(1)
        builder.call(function, [builder.inttoptr(values[0], pointer), for_reading, second_level, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def copy(typing_context: Any, target: Any, source: Any, size: Any) -> Any:
    """Copy so many bytes from one address to another; the two places do not overlap."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        from llvmlite import ir
        from numba.core import cgutils

        byte = ir.IntType(8).as_pointer()
        places = [builder.inttoptr(value, byte) for value in values[:2]]
        cgutils.raw_memcpy(builder, *places, values[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@intrinsic
def call_gemm(typing_context: Any, gemm: Any, kind: Any, transposed: Any, sizes: Any, matrices: Any, adds: Any) -> Any:
    """``C = op(A) @ op(B)`` by the Fortran routine at an address: column-major, so for rows pass B before A.

    Args:
        typing_context: Numba's own.
        gemm: Address of ``sgemm`` or ``dgemm``.
        kind: NumPy scalar type of the elements.
        transposed: Whether op transposes the first and the second factor.
        sizes: (m, n, k, leading dimension of the first factor, of the second, of the result).
        matrices: Addresses of the first factor, the second, the result.
        adds: Whether the product is added to what is in C.
    """
    element = kind.dtype

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        from llvmlite import ir
        from numba.core import cgutils

        real, integer, byte = context.get_value_type(element), ir.IntType(32), ir.IntType(8)

        def on_stack(value: Any) -> Any:
            place = cgutils.alloca_once(builder, value.type)
            builder.store(value, place)
            return place

        def letter(flag: Any) -> Any:
            return on_stack(
                builder.select(builder.icmp_unsigned("!=", flag, flag.type(0)), byte(ord("T")), byte(ord("N")))
            )

        flags, numbers, addresses = (cgutils.unpack_tuple(builder, values[k]) for k in (2, 3, 4))
        m, n, k, first_stride, second_stride, result_stride = (
            on_stack(builder.trunc(value, integer)) for value in numbers
        )
        first, second, result = (builder.inttoptr(value, real.as_pointer()) for value in addresses)
        alpha, zero = ir.Constant(real, 1.0), ir.Constant(real, 0.0)
        one, kept = on_stack(alpha), on_stack(builder.select(values[5], alpha, zero))
        arguments = [
            *map(letter, flags),
            *(m, n, k, one, first, first_stride, second, second_stride, kept, result, result_stride),
        ]
        kind_of_call = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
        builder.call(builder.inttoptr(values[0], kind_of_call.as_pointer()), arguments)
        return context.get_dummy_value()

    return types.void(types.int64, kind, transposed, sizes, matrices, types.boolean), generate
