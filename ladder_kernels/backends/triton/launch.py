"""Launching a kernel again and again, without what Triton does to find out which kernel it is."""

from typing import Any

import torch
import triton
from triton.compiler import CompiledKernel

# What a kernel is compiled for besides its constants was looked up in these versions of Triton: of a tensor the dtype
# and whether its address is a multiple of 16, of an integer its value's divisibility. AMD's also goes by the size of
# a tensor's memory.
KNOWN_VERSIONS = ("3.3.", "3.4.", "3.5.", "3.6.", "3.7.", "3.8.", "3.9.")
DIRECT = torch.version.hip is None and triton.__version__.startswith(KNOWN_VERSIONS)


class Launcher:
    """A kernel with all its arguments but the first ones, which are tensors, alone or in tuples.

    Whoever calls one vouches that the tensors of all calls look alike (`outputs.Look`) and that their device is the
    current one. So the kernel that Triton compiles and launches at the first call serves all later ones: they ask
    Triton for nothing but the launch, a tenth of the time.
    """

    def __init__(
        self, kernel: Any, grid: tuple[int, int, int], arguments: tuple[Any, ...], constants: dict[str, Any]
    ) -> None:
        self.kernel, self.grid = kernel, grid
        self.arguments, self.constants = arguments, constants
        self.compiled: tuple[Any, tuple[Any, ...]] | None = None

    def __call__(self, *tensors: Any) -> None:
        if self.compiled is not None:
            launch, arguments = self.compiled
            launch(*tensors, *arguments)
            return
        compiled = self.kernel[self.grid](*tensors, *self.arguments, **self.constants)
        # The interpreter returns none.
        if DIRECT and isinstance(compiled, CompiledKernel):
            names = [name for name in self.kernel.arg_names if name in self.constants]
            self.compiled = compiled[self.grid], (*self.arguments, *(self.constants[name] for name in names))
