"""Inputs of the step: parameters, what z comes from, memory layouts, gradients that arrive."""

import torch

SOURCES = ("noise", "latent", "mode")
PRIORS = ("learned", "batch 1", "standard")


def packed(shape, dtype=torch.float32, batch=None, scale=1.0):
    batch_size, channels, *spatial = shape
    return (scale * torch.randn(batch or batch_size, 2 * channels, *spatial)).to(dtype)


def tensors(shape, source, dtype=torch.float32, prior="learned"):
    """Leaf inputs by argument name; the prior is "learned", "batch 1" or "standard"."""
    given = {"q_params": packed(shape, dtype)}
    if prior != "standard":
        given["p_params"] = packed(shape, dtype, batch=1 if prior == "batch 1" else None)
    if source in ("noise", "latent"):
        noise_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        given[source] = torch.randn(shape, dtype=noise_dtype)
    return given


def one(*values):
    """A packed parameter of one element."""
    return torch.tensor(values).view(1, 2, 1)


def options(source, **more):
    return {"mode": source == "mode", **more}


def random_incoming(shape, names):
    batch, channels, *spatial = shape
    shapes = {
        "z": shape,
        "kl_samplewise": (batch,),
        "kl_samplewise_restricted": (batch,),
        "kl_channelwise": (batch, channels),
        "kl_spatial": (batch, *spatial),
        "logprob_q": (batch,),
        "kl_elementwise": shape,
    }
    return {name: torch.randn(shapes[name]) for name in names}


def layouts():
    """The same packed values in memory layouts that convolutions and crops produce."""
    values = packed((2, 6, 5, 7))
    wide = torch.randn(2, 20, 9, 9)
    wide[:, 4:16, 2:7, 1:8] = values
    return {
        "contiguous": values,
        "channels_last": values.contiguous(memory_format=torch.channels_last),
        "crop of a larger one": wide[:, 4:16, 2:7, 1:8],
        "crop in channels_last": wide.contiguous(memory_format=torch.channels_last)[:, 4:16, 2:7, 1:8],
        "transposed space": values.transpose(2, 3).contiguous().transpose(2, 3),
        "transposed batch": values.transpose(0, 1).contiguous().transpose(0, 1),
    }


def gradients_of(outputs, leaves):
    """At the leaves, for gradients that arrive at all outputs: the same ones for outputs of the same shapes."""
    generator = torch.Generator().manual_seed(3)
    loss = sum((out * torch.randn(out.shape, generator=generator)).sum() for out in outputs)
    return torch.autograd.grad(loss, leaves)


def channels_last(tensor):
    return tensor.contiguous(memory_format=torch.channels_last)


def sliced(tensor):
    """The same values, between others along channels."""
    wide = torch.randn(tensor.shape[0], tensor.shape[1] + 3, *tensor.shape[2:])
    wide[:, 2:-1] = tensor
    return wide[:, 2:-1]
