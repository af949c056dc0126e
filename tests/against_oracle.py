"""One call of `normal_sample_kl` beside the plain formula in float32 and in float64: values and gradients."""

import torch

from ladder_kernels import normal_sample_kl
from tests import oracle
from tests.inputs import random_incoming


def run(function, given, options, incoming):
    """Outputs by name and gradients by argument name, for the outputs that have an incoming gradient."""
    given = {k: v.detach().clone(memory_format=torch.preserve_format) for k, v in given.items()}
    leaves = {k: v.requires_grad_() for k, v in given.items() if k != "noise"}
    outputs = function(**{"p_params": None, **given}, **options)
    outputs = outputs if isinstance(outputs, dict) else outputs._asdict()
    used = {k: v for k, v in incoming.items() if outputs[k].requires_grad}
    return outputs, dict(zip(leaves, oracle.gradients(outputs, list(leaves.values()), used), strict=True))


def check(given, options, names=oracle.OUTPUTS, truncates=False):
    """Values and gradients of one call within the bound; returns our outputs."""
    batch, channels, *spatial = given["q_params"].shape
    incoming = random_incoming((batch, channels // 2, *spatial), names)
    ours, our_grads = run(normal_sample_kl, given, {**options, "elementwise": True}, incoming)
    mode = not {"noise", "latent"} & given.keys()
    plain_options = {**options, "mode": mode}
    compute = torch.float64 if given["q_params"].dtype == torch.float64 else torch.float32
    plain, plain_grads = run(oracle.step, oracle.cast(given, compute), plain_options, incoming)
    exact, exact_grads = run(oracle.step, oracle.cast(given, torch.float64), plain_options, incoming)
    for name in (*oracle.OUTPUTS, "logvar_max"):
        oracle.assert_as_exact_as_plain(name, ours[name], plain[name], exact[name], truncates=truncates)
    for name in our_grads:
        assert our_grads[name].dtype == given[name].dtype
        values = (our_grads[name], plain_grads[name], exact_grads[name])
        oracle.assert_as_exact_as_plain(f"grad {name}", *values, truncates=truncates)
    return ours
