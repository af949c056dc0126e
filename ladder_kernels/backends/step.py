"""The contract between autograd and the backends: what a step is told, what it returns.

Every backend is a module with these names:

- `NAME`: its public name.
- `unavailable() -> str | None`: why it cannot run in this process, or None. Where something of it is there but broken
  it raises: then a warning says so.
- `unsupported(q, p) -> str | None`: why it cannot take these tensors, or None.
- `forward(q, p, source, step) -> StepOutputs`
- `backward(q, p, source, step, grads, needs) -> (grad_q, grad_p, grad_latent)`, None where it is not needed; what is
  needed is also reached (`Step.flows_to`). A term whose incoming gradient is absent does not exist: no zero stands for
  it.
- `sample(q, source, step) -> z`: forward's z and nothing else.

None of them records autograd, draws noise or fills in zeros: `ladder_kernels.autograd` does.

`q` and `p` are packed parameters, mean first, raw spread second along channels: (B, 2C, *S), S of 1 to 3
dims, any strides; `p` may have batch 1, or be None for N(0, I). `source` is what `step.draw` says.
"""

import math
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ladder_kernels.variance import VarianceMap

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Step(NamedTuple):
    """Everything about one call that is not a tensor."""

    draw: Literal["noise", "seed", "latent", "mode", "fresh"]
    """What `source` holds: standard normal noise (B, C, *S); an int64 Philox seed (one element);
    a given z (B, C, *S); or nothing, and z is the mean. "fresh": what the backend draws by default; none sees this."""
    kl: Literal["monte_carlo", "analytic", "none"] = "monte_carlo"
    """The one-sample estimate at z, the closed form, or no KL at all: then p is None."""
    variance: VarianceMap = VarianceMap("exp")
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

    def fields(self) -> tuple[Any, ...]:
        """One after the other, with the map's own in its place: the order of every flat list of them."""
        return (
            *(self.draw, self.kl, *self.variance.fields(), self.temperature),
            *(self.window, self.elementwise, self.channels_last),
        )

    @staticmethod
    def of_fields(draw: Any, kl: Any, kind: str, *rest: Any) -> "Step":
        """The step with these fields."""
        raw_min, raw_max, beta, floor, temperature, window, elementwise, channels_last = rest
        variance = VarianceMap(kind, raw_min=raw_min, raw_max=raw_max, beta=beta, floor=floor)
        return Step(draw, kl, variance, temperature, window, elementwise, channels_last)

    def with_draw(self, draw: Any) -> "Step":
        """The same with another `draw`; not by `_replace`, which older compilers do not trace."""
        _, kl, variance, temperature, window, elementwise, channels_last = self
        return Step(draw, kl, variance, temperature, window, elementwise, channels_last)

    def flows_to(self, grads: "StepGrads") -> tuple[bool, bool, bool]:
        """Whether gradients that arrive at these outputs reach q, p and a given latent."""
        kl, log_q = grads.have_kl(), grads.logprob_q is not None
        to_latent = log_q or (kl and self.kl == "monte_carlo")
        return kl or log_q or grads.z is not None, kl, self.draw == "latent" and to_latent


class StepOutputs(NamedTuple):
    """Sums are float32, float64 for float64 inputs. Entries not asked for are None."""

    z: Tensor | None = None  # (B, C, *S), q's dtype; None where the latent was given
    kl_samplewise: Tensor | None = None  # (B,); this and the other KLs None where there is no KL
    kl_samplewise_restricted: Tensor | None = None  # (B,); None where the window is None
    kl_channelwise: Tensor | None = None  # (B, C)
    kl_spatial: Tensor | None = None  # (B, *S)
    logprob_q: Tensor | None = None  # (B,); this and the next None where z alone is wanted
    logvar_max: Tensor | None = None  # (), not differentiable
    kl_elementwise: Tensor | None = None  # (B, C, *S)


class StepGrads(NamedTuple):
    """Gradients that arrive at `StepOutputs`, in its order; None where nobody used the output."""

    z: Tensor | None = None
    kl_samplewise: Tensor | None = None
    kl_samplewise_restricted: Tensor | None = None
    kl_channelwise: Tensor | None = None
    kl_spatial: Tensor | None = None
    logprob_q: Tensor | None = None
    logvar_max: None = None
    kl_elementwise: Tensor | None = None

    def have_kl(self) -> bool:
        """Whether any KL was used."""
        _, samplewise, restricted, channelwise, spatial, _, _, elementwise = self
        # Not by a loop, which takes ten times as long.
        absent = samplewise is None and restricted is None and channelwise is None and spatial is None
        return not (absent and elementwise is None)


class _Typed(Protocol):
    @property
    def dtype(self) -> torch.dtype: ...


def compute_dtype(*tensors: _Typed | None) -> torch.dtype:
    """float64 if any tensor is; else float32, also for 16-bit inputs."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32
