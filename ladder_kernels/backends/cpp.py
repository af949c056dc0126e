"""The native CPU kernels of csrc/cpu, where they have been built: vectorised, threaded, one pass each way."""

from torch import Tensor

from ladder_kernels.backends import native

NAME = "cpp"

_functions = native.Functions("ladder_kernels._C")
forward, backward, sample = _functions.forward, _functions.backward, _functions.sample


def unavailable() -> str | None:
    return native.reason_not_loaded("ladder_kernels._C", "LADDER_KERNELS_BUILD_CPU")


def unsupported(q: Tensor, p: Tensor | None) -> str | None:
    if q.is_cpu and (p is None or p.is_cpu):
        return None
    return "it takes tensors on the CPU only"
