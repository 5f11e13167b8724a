"""Every CUDA kernel of ``kernels/`` with every type that its template is meant for; needs nothing but gpubp."""

from __future__ import annotations

import itertools
import re

import gpubp
from gpubp import cuda
from gpubp.cuda_kernels.gather import CONVERSIONS

STEMS = sorted(path.stem for path in cuda.kernel_directory().glob("*.cu"))
FUNCTORS = re.findall(r"^struct (\w+)", cuda.read("activations.cuh"), re.MULTILINE)
LOSSES = re.findall(r"^struct (\w+)", cuda.read("loss_functions.cuh"), re.MULTILINE)
PAIRS = {kind.functor for kind in gpubp.Loss.by_name.values() if getattr(kind, "kernel", "") == "pair_loss"}
TYPES = ("float", "double")
WIDTHS = [(kind, W) for kind, pack in (("float", 4), ("double", 2)) for W in (1, pack)]
"""How many numbers of a type a kernel reads at once."""


def kernel_names(source: str) -> list[str]:
    """Every kernel of a source, with every type that its template is meant for."""
    names = []
    pattern = r"(?:template <([^>]*)>\s*)?__global__ void (?:__launch_bounds__\([^)]*\)\s*)?(\w+)\("
    for template, name in re.findall(pattern, source):
        if not template:
            names.append(name)
        elif template.startswith("typename Activation, int W"):
            names += [f"{name}<{functor}<{kind}>, {W}>" for functor in FUNCTORS for kind, W in WIDTHS]
        elif template == "typename T, int W":
            names += [f"{name}<{kind}, {W}>" for kind, W in WIDTHS]
        elif template == "typename From, typename To, int W":
            for (_, to), sources in CONVERSIONS.items():
                widths = [1, 4 if to == "float" else 2]
                names += [f"{name}<{source}, {to}, {W}>" for source in sources.values() for W in widths]
        elif template.startswith("typename Loss"):
            functors = [functor for functor in LOSSES if functor not in PAIRS]
            names += [f"{name}<{functor}<{kind}>, {W}>" for functor in functors for kind, W in WIDTHS]
        elif template.startswith("typename Pair"):
            names += [f"{name}<{functor}<{kind}>>" for functor, kind in itertools.product(sorted(PAIRS), TYPES)]
        else:
            assert template == "typename T", f"{name}: say here what `template <{template}>` is used with"
            names += [f"{name}<{kind}>" for kind in TYPES]
    return names


def all_kernels() -> list[tuple[str, str]]:
    """The kernels of all sources, as `gpubp.cuda.function` takes them: the source's stem, and the name."""
    return [(stem, name) for stem in STEMS for name in kernel_names(cuda.source(stem))]
