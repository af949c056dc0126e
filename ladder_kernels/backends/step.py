"""The contract between autograd and the backends: what a step is told, what it returns.

Every backend is a module with these names:

- `NAME`: its public name.
- `DIFFERENTIABLE`: whether autograd sees through `forward` and `sample`; else `ladder_kernels.autograd` differentiates
  them, with `backward`.
- `unavailable() -> str | None`: why it cannot run in this process, or None. Where something of it is there but broken
  it raises: then a warning says so.
- `unsupported(q, p, source) -> str | None`: why it cannot take these tensors, or None.
- `forward(q, p, source, step) -> StepOutputs`
- `backward(q, p, source, step, grads, needs) -> (grad_q, grad_p, grad_latent)`, an entry per `needs`, or None where it
  is not needed or nothing arrives. A term whose incoming gradient is absent does not exist: no zero stands for it.
- `sample(q, source, step) -> z`: forward's z and nothing else.

`q` and `p` are packed parameters, mean first, raw spread second along channels: (B, 2C, *S), S of 1 to 3
dims, any strides; `p` may have batch 1, or be None for N(0, I). `source` is what `step.draw` says.
"""

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ladder_kernels.geometry import in_memory_order
from ladder_kernels.variance import VarianceMap


class Step(NamedTuple):
    """Everything about one call that is not a tensor."""

    draw: Literal["noise", "seed", "latent", "mode"]
    """What `source` holds: standard normal noise (B, C, *S); an int64 Philox seed (one element);
    a given z (B, C, *S); or nothing, and z is the mean."""
    kl: Literal["monte_carlo", "analytic", "none"] = "monte_carlo"
    """The one-sample estimate at z, the closed form, or no KL at all: then p is None."""
    variance: VarianceMap = VarianceMap()
    """How raw parameters become variances, of q and p alike."""
    temperature: float = 1.0
    """Factor on the noise: z = mean + temperature * std * eps."""
    window: tuple[int, int, int, int] | None = None
    """Rows [start, stop) and columns [start, stop) of the restricted KL; None where it is the whole latent."""
    elementwise: bool = False
    """Whether the KL of every element is returned."""
    channels_last: bool = False
    """Element order: of z, of the noise of a seed, and of all gradients, which are dense in it. It is the forward
    pass's: a saved q may come back with other strides."""


class StepOutputs(NamedTuple):
    """Sums are float32, float64 for float64 inputs. Entries not asked for are None."""

    z: Tensor | None  # (B, C, *S), q's dtype; None where the latent was given
    kl_samplewise: Tensor | None  # (B,); this and the other KLs None where there is no KL
    kl_samplewise_restricted: Tensor | None  # (B,); None where the window is None
    kl_channelwise: Tensor | None  # (B, C)
    kl_spatial: Tensor | None  # (B, *S)
    logprob_q: Tensor  # (B,)
    qvar_max: Tensor  # (), not differentiable
    kl_elementwise: Tensor | None  # (B, C, *S)


class StepGrads(NamedTuple):
    """Gradients that arrive at `StepOutputs`, in its order; None where nobody used the output."""

    z: Tensor | None = None
    kl_samplewise: Tensor | None = None
    kl_samplewise_restricted: Tensor | None = None
    kl_channelwise: Tensor | None = None
    kl_spatial: Tensor | None = None
    logprob_q: Tensor | None = None
    qvar_max: None = None
    kl_elementwise: Tensor | None = None

    def have_kl(self) -> bool:
        """Whether any KL was used."""
        return any(grad is not None for grad in (*self[1:5], self.kl_elementwise))


class _Typed(Protocol):
    @property
    def dtype(self) -> torch.dtype: ...


def compute_dtype(*tensors: _Typed | None) -> torch.dtype:
    """float64 if any tensor is; else float32, also for 16-bit inputs."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def with_zeros(
    found: tuple[Tensor | None, ...],
    inputs: tuple[Tensor | None, ...],
    step: Step,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    """The result of `backward`, with zeros where a gradient is needed and nothing arrives."""

    def zeros(like: Tensor) -> Tensor:
        return in_memory_order(like.new_zeros(like.numel()), like.shape, step.channels_last)

    return tuple(
        zeros(like) if need and grad is None and like is not None else grad
        for grad, like, need in zip(found, inputs, needs, strict=True)
    )
