"""The step inside a CUDA graph; on a GPU only."""

import pytest
import torch

from ladder_kernels import normal_sample_kl
from ladder_kernels.variance import VarianceMap

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def test_every_replay_draws_noise_of_its_own_and_obeys_manual_seed(backend: str) -> None:
    if backend == "cpp":
        pytest.skip("it runs on a CPU")
    q, p = torch.randn(2, 8, 16, 16).requires_grad_(), torch.randn(1, 8, 16, 16).requires_grad_()

    def step():
        result = normal_sample_kl(q, p, variance=VarianceMap("stable", raw_max=20.0))
        return result.z, *torch.autograd.grad(result.kl_samplewise.sum() + result.z.sum(), (q, p))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = step()

    def replay():
        graph.replay()
        return [tensor.detach().clone() for tensor in outputs]

    assert not torch.equal(replay()[0], replay()[0])
    torch.manual_seed(1)
    first = replay()
    torch.manual_seed(1)
    assert all(torch.equal(again, once) for again, once in zip(replay(), first, strict=True))
    torch.manual_seed(1)
    assert all(torch.equal(eager, once) for eager, once in zip(step(), first, strict=True))
