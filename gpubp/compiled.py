"""Which compiled kernels compute on an array: those for the CPU, those for CUDA, or none.

Both packages, `gpubp.cpu_kernels` and `gpubp.cuda_kernels`, have the same files with functions of the same names and
signatures. So an op, a loss or an optimizer asks here once, and one line serves both.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from gpubp import cpu, cuda_kernels
from gpubp.backend import Array, array_module


def kernels_of(xp: ModuleType) -> Any:
    """The package of the kernels for arrays of a module; None where there is none, and array maths computes."""
    return cpu.kernels() if xp is np else cuda_kernels


def kernels_for(*arrays: Array) -> Any:
    """The package of the kernels for these arrays; None where there is none, and array maths computes.

    Raises:
        DeviceError: The arrays live on different devices, or one of them is no array.
    """
    return kernels_of(array_module(*arrays))
