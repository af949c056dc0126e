"""Memory of the inputs and outputs of the step: strides, aliases, offsets, negated views, zeros without memory."""

import pytest
import torch

from ladder_kernels import normal_sample, normal_sample_kl
from tests import oracle
from tests.conftest import DEVICE
from tests.inputs import layouts, packed, random_incoming


@pytest.mark.parametrize("q_layout", layouts())
@pytest.mark.parametrize("p_layout", ["contiguous", "channels_last", "crop of a larger one"])
def test_every_memory_layout(backend, q_layout, p_layout):
    q, p = layouts()[q_layout], layouts()[p_layout]
    given = {"q_params": q, "p_params": p.clone(memory_format=torch.preserve_format), "noise": torch.randn(2, 6, 5, 7)}
    leaves = {k: v.detach().requires_grad_() if k != "noise" else v for k, v in given.items()}
    step = normal_sample_kl(**leaves, window=3)
    reference = {k: v.detach().contiguous().requires_grad_() if k != "noise" else v for k, v in given.items()}
    expected = normal_sample_kl(**reference, window=3)
    incoming = random_incoming((2, 6, 5, 7), oracle.OUTPUTS[:-1])
    for name in incoming:
        torch.testing.assert_close(getattr(step, name), getattr(expected, name), rtol=1e-5, atol=1e-5)
    ours = oracle.gradients(step._asdict(), [leaves["q_params"], leaves["p_params"]], incoming)
    theirs = oracle.gradients(expected._asdict(), [reference["q_params"], reference["p_params"]], incoming)
    for grad, expected_grad in zip(ours, theirs, strict=True):
        torch.testing.assert_close(grad, expected_grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_crop_whose_rows_end_inside_of_what_a_backend_takes_at_a_time(backend, memory_format):
    wide = torch.randn(1, 4, 32, 50).contiguous(memory_format=memory_format)
    crop, dense = wide[:, :, 1:31, 2:47], wide[:, :, 1:31, 2:47].clone(memory_format=memory_format)
    assert crop.stride() != dense.stride()
    results = []
    for leaf in (crop.detach().requires_grad_(), dense.requires_grad_()):
        step = normal_sample_kl(leaf, leaf, seed=3)
        (grad,) = torch.autograd.grad(step.z, leaf, torch.linspace(-1, 1, step.z.numel()).view(step.z.shape))
        results.append((step.z, step.kl_spatial, grad))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_gradient_of_kl_spatial_is_read_with_its_own_strides(backend, memory_format):
    leaf = packed((2, 6, 5, 7)).contiguous(memory_format=memory_format).requires_grad_()
    kl_spatial = normal_sample_kl(leaf, None, seed=3).kl_spatial
    incoming = torch.randn(2, 7, 5).mT
    ours, expected = (
        torch.autograd.grad(kl_spatial, leaf, each, retain_graph=True)[0] for each in (incoming, incoming.contiguous())
    )
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_a_single_position_has_the_strides_of_a_contiguous_tensor(backend):
    assert normal_sample_kl(packed((2, 3, 1, 1)), None).z.stride() == (3, 1, 1, 1)


def test_z_is_dense_in_the_layout_of_q(backend):
    q = packed((2, 4, 6, 5))
    assert normal_sample_kl(q, None).z.is_contiguous()
    last = q.contiguous(memory_format=torch.channels_last)
    assert normal_sample_kl(last, None).z.is_contiguous(memory_format=torch.channels_last)
    assert normal_sample(last, seed=1).is_contiguous(memory_format=torch.channels_last)


def test_the_mode_does_not_alias_the_parameters(backend):
    q = packed((1, 2, 3, 3))
    before = q.clone()
    normal_sample(q, mode=True).add_(1)
    normal_sample_kl(q, None, mode=True).z.add_(1)
    assert torch.equal(q, before)


@pytest.mark.parametrize("latents_apart", [2**29, 2**28 + 1], ids=["channels", "half of the channels"])
def test_offsets_beyond_32_bits(backend, latents_apart):
    """Of a slice of a tensor that is never touched but where it is read."""
    shape, strides = (1, 8, 4, 16), (2**32, latents_apart, 16, 1)
    storage = torch.UntypedStorage(
        2 * (7 * latents_apart + 64), device=DEVICE if backend in ("triton", "cuda") else None
    )
    q = torch.tensor([], dtype=torch.float16, device=storage.device).set_(storage, 0, shape, strides)
    values = packed((1, 4, 4, 16), torch.float16)
    q.copy_(values)
    ours, expected = normal_sample_kl(q, q, seed=3), normal_sample_kl(values, values, seed=3)
    assert torch.equal(ours.z, expected.z)
    assert torch.equal(normal_sample(q, seed=3), expected.z)
    leaf, dense = q.detach().requires_grad_(), values.clone().requires_grad_()
    incoming = torch.randn(1)
    grads = [torch.autograd.grad(normal_sample_kl(x, x, seed=3).kl_samplewise, x, incoming) for x in (leaf, dense)]
    torch.testing.assert_close(*grads)


def test_negative_views_are_read_with_their_sign(backend):
    """`conj().imag` and the gradients that come back through it negate when they are read, not in memory."""
    values = torch.randn(2, 4, 3, 3, dtype=torch.complex64)
    negative = values.conj().imag
    assert negative.is_neg()
    q, noise = -values.imag.clone(), torch.randn(2, 2, 3, 3, dtype=torch.complex64)
    expected = normal_sample_kl(q, q, noise=-noise.imag.clone())
    step = normal_sample_kl(negative, negative, noise=noise.conj().imag)
    torch.testing.assert_close(step.z, expected.z)
    torch.testing.assert_close(step.kl_spatial, expected.kl_spatial)
    leaf, incoming = q.requires_grad_(), torch.randn(2, 2, 3, 3, dtype=torch.complex64).conj().imag
    z = normal_sample_kl(leaf, None, noise=-noise.imag.clone()).z
    (grad,) = torch.autograd.grad(z, leaf, incoming, retain_graph=True)
    (expected_grad,) = torch.autograd.grad(z, leaf, incoming.resolve_neg().clone())
    torch.testing.assert_close(grad, expected_grad)


def test_zeros_without_memory_are_read_as_zeros(backend):
    zeros = torch._efficientzerotensor((2, 4, 3))
    expected = normal_sample_kl(torch.zeros(2, 4, 3), torch.zeros(2, 4, 3), seed=3)
    found = normal_sample_kl(zeros, zeros, seed=3)
    torch.testing.assert_close(found.z, expected.z)
    torch.testing.assert_close(found.kl_spatial, expected.kl_spatial)


def test_the_noise_of_a_seed_has_the_order_of_the_call_in_backward_too(backend):
    """However the saved parameters come back: from the CPU or a disk they may be contiguous."""
    q = packed((2, 3, 4, 5)).contiguous(memory_format=torch.channels_last).requires_grad_()
    weights = torch.randn(2, 3, 4, 5)
    (expected,) = torch.autograd.grad(normal_sample(q, seed=7), q, weights)
    to_contiguous = torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.clone(memory_format=torch.contiguous_format), lambda t: t
    )
    with to_contiguous:
        z = normal_sample(q, seed=7)
        kl = normal_sample_kl(q, None, seed=7).kl_samplewise
    (grad,) = torch.autograd.grad(z, q, weights)
    torch.testing.assert_close(grad, expected)
    (grad,) = torch.autograd.grad(kl, q, weights[:, 0, 0, 0])
    (expected,) = torch.autograd.grad(normal_sample_kl(q, None, seed=7).kl_samplewise, q, weights[:, 0, 0, 0])
    torch.testing.assert_close(grad, expected)
