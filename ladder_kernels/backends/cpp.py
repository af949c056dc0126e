"""The native CPU kernels of csrc/cpu, where they have been built: vectorised, threaded, one pass each way."""

from torch import Tensor

from ladder_kernels.backends import native

NAME = "cpp"
DIFFERENTIABLE = True

_ops = native.Ops("ladder_kernels._C", "ladder_kernels_cpu")
forward, backward, sample = _ops.forward, _ops.backward, _ops.sample


def unavailable() -> str | None:
    return native.reason_not_loaded("ladder_kernels._C", "LADDER_KERNELS_BUILD_CPU")


def unsupported(q: Tensor, p: Tensor | None, source: Tensor | None) -> str | None:
    for tensor in (q, p, source):
        if tensor is not None and tensor.device.type != "cpu":
            return f"CPU tensors only, got one on {tensor.device}"
    return None
