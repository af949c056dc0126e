"""Triton kernels for any GPU that Triton knows: one pass forward, one backward.

On a CPU they run in Triton's interpreter, if TRITON_INTERPRET=1 was set before Triton was imported: for tests.
"""

from ladder_kernels.backends.triton.operations import backward, forward, sample, unavailable, unsupported

NAME = "triton"

__all__ = ["NAME", "backward", "forward", "sample", "unavailable", "unsupported"]
