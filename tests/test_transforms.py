"""What wraps an eager call: torch.func, forward-mode duals, checkpoints."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from ladder_kernels import NormalStochasticBlock, normal_sample, normal_sample_kl
from ladder_kernels.variance import KINDS, VarianceMap

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize("kind", KINDS)
def test_torch_func_goes_through_the_plain_formula(backend, kind):
    q, p, noise = torch.randn(2, 6, 4), torch.randn(2, 6, 4), torch.randn(2, 3, 4)

    def loss(q, p, noise):
        step = normal_sample_kl(q, p, noise=noise, variance=VarianceMap(kind))
        return step.kl_samplewise.sum() + normal_sample(q, noise=noise, variance=VarianceMap(kind)).sum()

    leaf = q.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf, p, noise), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(q, p, noise), expected)
    stacked = torch.func.vmap(lambda q, p, noise: loss(q[None], p[None], noise[None]))(q, p, noise)
    torch.testing.assert_close(stacked.sum(), loss(q, p, noise))


TRANSFORMS = {
    "jvp": lambda f, q: torch.func.jvp(f, (q,), (torch.ones_like(q),))[1],
    "grad": lambda f, q: torch.func.grad(f)(q).sum(),
    "jacrev": lambda f, q: torch.func.jacrev(f)(q).sum(),
    "jacfwd": lambda f, q: torch.func.jacfwd(f)(q).sum(),
    "vmap of grad": lambda f, q: torch.func.vmap(torch.func.grad(f))(q[None]).sum(),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms_compiled_or_not_have_the_gradient(backend, transform, compiled):
    q, p, noise = torch.randn(2, 6, 4), torch.randn(2, 6, 4), torch.randn(2, 3, 4)

    def loss(q):
        return normal_sample_kl(q, p, noise=noise).kl_samplewise.sum() + normal_sample(q, noise=noise).square().sum()

    leaf = q.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)

    def run(q):
        return TRANSFORMS[transform](loss, q)

    found = torch.compile(run, backend="aot_eager")(q) if compiled else run(q)
    torch.testing.assert_close(found, expected.sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_duals_carry_their_tangent(backend, kind):
    variance = VarianceMap(kind)
    q, p, noise = torch.randn(2, 6, 4), torch.randn(2, 6, 4), torch.randn(2, 3, 4)
    tangent, leaf = torch.randn(2, 6, 4), q.clone().requires_grad_()
    weights = torch.randn(2)
    (grad,) = torch.autograd.grad(
        normal_sample_kl(leaf, p, noise=noise, variance=variance).kl_samplewise, leaf, weights
    )
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, tangent)
        step = normal_sample_kl(dual, p, noise=noise, variance=variance)
        found = forward_ad.unpack_dual(step.kl_samplewise).tangent
    torch.testing.assert_close((found * weights).sum(), (grad * tangent).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("rng", ["torch", "philox"])
def test_checkpointing_gives_the_same_bits(backend, use_reentrant, rng):
    block = NormalStochasticBlock(4, 3, 4, rng=rng)
    p, q = (torch.randn(2, 4, 8, 8, requires_grad=True) for _ in range(2))

    def call(p, q):
        out, data = block(p, q)
        return out, data["kl_samplewise"]

    torch.manual_seed(0)
    expected = call(p, q)
    torch.manual_seed(0)
    outputs = checkpoint(call, p, q, use_reentrant=use_reentrant)
    assert all(torch.equal(out, want) for out, want in zip(outputs, expected, strict=True))
    grads = []
    for results in (outputs, expected):
        generator = torch.Generator().manual_seed(3)
        block.zero_grad()
        p.grad = q.grad = None
        sum((out * torch.randn(out.shape, generator=generator)).sum() for out in results).backward()
        grads.append([leaf.grad.clone() for leaf in (p, q, *block.parameters())])
    assert all(torch.equal(grad, want) for grad, want in zip(*grads, strict=True))
