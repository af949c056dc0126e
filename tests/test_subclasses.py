"""Tensors of another class: values, gradients and classes are plain PyTorch's."""

import logging
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from ladder_kernels import BackendUnavailableError, NormalStochasticBlock, normal_sample, normal_sample_kl, use_backend
from ladder_kernels.backends import select


class Labelled(Tensor):
    """No more than another class."""


class Annotated(Tensor):
    """As MONAI's MetaTensor: data rides along, and some methods take fewer forms of their arguments."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        found = super().__torch_function__(func, types, args, kwargs or {})
        for each in found if isinstance(found, tuple | list) else (found,):
            if isinstance(each, Annotated):
                each.meta = next((arg.meta for arg in args if isinstance(arg, Annotated) and hasattr(arg, "meta")), {})
        return found

    def new_empty(self, size, dtype=None, device=None, requires_grad=False):
        return self._new(torch.empty, size, dtype, device, requires_grad)

    def new_zeros(self, size, dtype=None, device=None, requires_grad=False):
        return self._new(torch.zeros, size, dtype, device, requires_grad)

    def _new(self, make, size, dtype, device, requires_grad):
        if not isinstance(size, tuple):
            raise TypeError(f"argument 'size' must be tuple of ints, not {type(size).__name__}")
        dtype, device = dtype or self.dtype, device or self.device
        return make(size, dtype=dtype, device=device, requires_grad=requires_grad).as_subclass(Annotated)


CLASSES = [Labelled, Annotated]
SOURCES = {
    "fresh": dict,
    "seed": lambda: {"seed": 7},
    "noise": lambda: {"noise": torch.randn(2, 3, 4, 6)},
    "latent": lambda: {"latent": torch.randn(2, 3, 4, 6)},
    "mode": lambda: {"mode": True},
}


def call(q, p, source):
    torch.manual_seed(0)
    step = normal_sample_kl(q, p, variance="stable", window=2, elementwise=True, **source)
    z = step.z if "latent" in source else normal_sample(q, variance="stable", **source)
    return *step, z


@pytest.mark.parametrize("which", ["both", "q", "p"])
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("cls", CLASSES)
def test_a_subclass_gets_the_plain_numbers_and_gradients(backend, cls, source, which):
    leaves = [torch.randn(2, 6, 4, 6, requires_grad=True), torch.randn(1, 6, 4, 6, requires_grad=True)]
    given = [
        leaf.detach().as_subclass(cls).requires_grad_() if which in ("both", name) else leaf.detach().requires_grad_()
        for leaf, name in zip(leaves, ("q", "p"), strict=True)
    ]
    of = SOURCES[source]()
    expected, found = call(*leaves, of), call(*given, of)
    for out, want in zip(found, expected, strict=True):
        torch.testing.assert_close(out.as_subclass(Tensor), want, rtol=2e-5, atol=2e-5)
    if which == "both":
        assert all(type(out) is cls for out in found if not any(out is value for value in of.values()))
    weights = torch.randn(2), torch.randn(2, 3, 4, 6)
    grads = [
        torch.autograd.grad(
            (out[1].as_subclass(Tensor) * weights[0]).sum() + (out[7].as_subclass(Tensor) * weights[1]).sum(), inputs
        )
        for out, inputs in ((found, given), (expected, leaves))
    ]
    for grad, want in zip(*grads, strict=True):
        torch.testing.assert_close(grad.as_subclass(Tensor), want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("mode_pred", [False, True])
@pytest.mark.parametrize("rng", ["torch", "philox"])
@pytest.mark.parametrize("cls", CLASSES)
def test_a_block_takes_features_of_a_subclass(backend, cls, rng, mode_pred):
    block, results = NormalStochasticBlock(4, 3, 4, vanilla_latent_hw=2, rng=rng), []
    features = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    for inputs in (features, [each.as_subclass(cls) for each in features]):
        torch.manual_seed(0)
        out, data = block(*inputs, mode_pred=mode_pred)
        loss = out.square().sum() + data["logprob_q"].sum()
        results.append((out, data["qvar_max"], *torch.autograd.grad(loss, block.conv_in_q.weight)))
    for found, want in zip(*reversed(results), strict=True):
        torch.testing.assert_close(found.as_subclass(Tensor), want, rtol=1e-4, atol=1e-4)


@pytest.fixture
def mesh(tmp_path) -> Iterator["dist.device_mesh.DeviceMesh"]:
    """Of this process alone."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield dist.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("source", ["noise", "latent", "mode"])
def test_distributed_tensors_go_to_plain_torch_and_the_log_says_so(mesh, caplog, source):
    from torch.distributed.tensor import Shard, distribute_tensor

    if select.default("cpu") == "torch":
        pytest.fail("the native backend is not built: nothing to fall back from")
    select._say_not_used.cache_clear()
    q, p = torch.randn(2, 6, 4, 6), torch.randn(2, 6, 4, 6)
    of = SOURCES[source]()
    with use_backend("torch"):
        expected = call(q, p, of)

    def spread(value):
        return distribute_tensor(value, mesh, [Shard(0)]) if isinstance(value, Tensor) else value

    inputs = [spread(each).requires_grad_() for each in (q, p)]
    with caplog.at_level(logging.INFO, logger="ladder_kernels"):
        for _ in range(2):
            found = call(*inputs, {name: spread(value) for name, value in of.items()})
    for out, want in zip(found, expected, strict=True):
        torch.testing.assert_close(out.full_tensor(), want)
    assert all(grad is not None for grad in torch.autograd.grad(found[1].sum(), inputs))
    assert [record.getMessage() for record in caplog.records] == [
        "backend 'cpp' not used: a DTensor has sharding rules for torch's own operators only"
    ]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_compiled_call_of_distributed_tensors_is_plain_torch_too(mesh, compiled, fresh_compiler):
    from torch.distributed.tensor import Replicate, distribute_tensor

    q = torch.randn(2, 6, 4, 6)
    spread = distribute_tensor(q, mesh, [Replicate()])
    run = torch.compile(normal_sample, backend="aot_eager", fullgraph=True) if compiled else normal_sample
    torch.testing.assert_close(run(spread, mode=True).full_tensor(), q[:, :3])


def test_a_forced_backend_refuses_distributed_tensors_with_the_reason(mesh):
    from torch.distributed.tensor import Replicate, distribute_tensor

    q = distribute_tensor(torch.randn(2, 6, 4, 6), mesh, [Replicate()])
    with use_backend("cpp"), pytest.raises(BackendUnavailableError, match="DTensor has sharding rules"):
        normal_sample(q, mode=True)
