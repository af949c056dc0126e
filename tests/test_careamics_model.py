"""Whole CAREamics models, patched against never patched: the same numbers from the same seed.

On the CPU our block draws upstream's very noise, so twins built from one seed stay together. What upstream's model
cannot do at all (generate from the prior, train on patches that are not square) has no twin and no test here.
"""

import functools
from collections import Counter
from typing import Any

import pytest
import torch
from careamics.models.lvae import LadderVAE
from careamics.models.lvae.stochastic import NormalStochasticBlock as UpstreamBlock
from torch.utils._python_dispatch import TorchDispatchMode

from ladder_kernels import patch_model, unpatch_model, use_backend
from tests.careamics_models import (
    HDN,
    SETUPS,
    TILES,
    TINY,
    History,
    Setup,
    blocks,
    forward,
    kinds,
    patched,
    predict,
    tensors,
    train,
)
from tests.conftest import interpreted


@pytest.fixture(scope="module", params=SETUPS.values(), ids=lambda setup: setup.name)
def histories(request: pytest.FixtureRequest) -> tuple[History, History]:
    """Five steps of one setup, patched and upstream."""
    setup = request.param
    return train(patched(setup.build()), setup), train(setup.build(), setup)


def assert_same_losses(ours: History, upstream: History, rtol: float = 1e-4) -> None:
    assert len(ours.losses) == len(upstream.losses)
    for step, (found, expected) in enumerate(zip(ours.losses, upstream.losses, strict=True)):
        assert found == pytest.approx(expected, rel=rtol, abs=0), f"step {step}"


def assert_same_gradients(ours: History, upstream: History, rtol: float = 1e-5) -> None:
    """Each within `rtol` of its norm plus a hundredth of the norm of all: some are zero but for rounding."""
    total = torch.stack([grad.norm() for grad in upstream.first_gradients.values() if grad is not None]).norm()
    assert ours.first_gradients.keys() == upstream.first_gradients.keys()
    for name, expected in upstream.first_gradients.items():
        found = ours.first_gradients[name]
        assert (found is None) == (expected is None), f"{name} has a gradient in one model only"
        if found is not None:
            error, bound = (found - expected).norm(), rtol * (expected.norm() + total / 100)
            assert error <= bound, f"{name}: |difference| {error:.1e} of |gradient| {expected.norm():.1e}"


def assert_same_data(ours: dict[str, Any], upstream: dict[str, Any]) -> None:
    assert kinds(ours) == kinds(upstream)
    found, expected = tensors(ours), tensors(upstream)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=5e-5, msg=lambda m, key=key: f"{key}: {m}")


# Training.


def test_five_steps_have_upstream_losses(histories: tuple[History, History]) -> None:
    assert_same_losses(*histories)


def test_the_first_step_has_upstream_gradients(histories: tuple[History, History]) -> None:
    assert_same_gradients(*histories)


def test_the_first_step_has_upstream_output_and_decoder_data(histories: tuple[History, History]) -> None:
    ours, upstream = histories
    torch.testing.assert_close(ours.first_output, upstream.first_output, rtol=1e-5, atol=1e-5)
    assert_same_data(ours.first_data, upstream.first_data)


def test_the_learned_prior_of_a_new_model_trains(backend: str) -> None:
    """It begins at 0, where upstream's log-variances have no gradient with torch 2.14."""
    model = LadderVAE(**HDN.config)
    patch_model(model)
    prior = model.top_down_layers[-1].top_prior_params
    assert (prior == 0).all()
    _, data = forward(model)
    sum(kl.mean() for kl in data["kl"]).backward()
    assert prior.grad is not None
    assert (prior.grad != 0).all()


@pytest.mark.parametrize("setup", [SETUPS[name] for name in SETUPS if "context" in name], ids=lambda setup: setup.name)
def test_the_setups_with_context_tell_the_restricted_kl_from_the_full_one(setup: Setup) -> None:
    _, data = forward(setup.build(), setup)
    for full, restricted in zip(data["kl"], data["kl_restricted"], strict=True):
        assert (restricted != full).all()


@pytest.mark.parametrize("name", ["hdn", "hdn-analytical", "musplit-context-analytical", "3d_to_2d", "3d_to_3d"])
def test_a_patched_model_in_float64_follows_upstream_to_ten_digits(name: str) -> None:
    setup = SETUPS[name]
    ours = train(patched(setup.build()).to(torch.float64), setup, steps=3)
    upstream = train(setup.build().to(torch.float64), setup, steps=3)
    assert_same_losses(ours, upstream, rtol=1e-10)
    assert_same_gradients(ours, upstream, rtol=1e-9)


@pytest.mark.parametrize("name", ["hdn", "musplit-context-analytical", "denoisplit-context-kl_restricted", "3d_to_3d"])
def test_every_backend_follows_upstream(backend: str, name: str) -> None:
    setup, steps = SETUPS[name], 1 if interpreted(backend) else 3  # half a minute less
    ours, upstream = train(patched(setup.build()), setup, steps), train(setup.build(), setup, steps)
    assert_same_losses(ours, upstream)
    assert_same_gradients(ours, upstream)


def test_a_patched_model_in_bfloat16_trains_and_sums_its_kl_in_float32() -> None:
    model = patched(HDN.build()).to(torch.bfloat16)
    inputs, _ = next(HDN.batches())
    out, data = model(inputs.to(torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert {z.dtype for z in data["z"]} == {torch.bfloat16}
    assert {kl.dtype for kl in data["kl"]} == {torch.float32}
    (out.float().square().mean() + sum(kl.mean() for kl in data["kl"])).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_an_optimizer_made_before_patching_trains_through_patching_and_unpatching() -> None:
    ours, upstream = HDN.build(), HDN.build()
    optimizers = [torch.optim.Adam(model.parameters(), lr=1e-4) for model in (ours, upstream)]
    for switch in (lambda model: None, patch_model, unpatch_model):
        switch(ours)
        histories = [train(m, HDN, 3, optimizer) for m, optimizer in zip((ours, upstream), optimizers, strict=True)]
        assert_same_losses(*histories)


# Prediction and checkpoints.


@pytest.mark.parametrize(("setup", "tile"), TILES, ids=[f"{s.name}-{'x'.join(map(str, t))}" for s, t in TILES])
def test_prediction_has_upstream_output_and_decoder_data(setup: Setup, tile: tuple[int, ...]) -> None:
    upstream = setup.build()
    train(upstream, setup, steps=2)
    ours = patched(setup.build(seed=5))
    ours.load_state_dict(upstream.state_dict())
    inputs = torch.randn(2, setup.config["multiscale_count"], *tile)
    (out, data), (expected_out, expected_data) = predict(ours, inputs), predict(upstream, inputs)
    torch.testing.assert_close(out, expected_out, rtol=1e-5, atol=2e-6)
    assert_same_data(data, expected_data)
    assert data["kl"] == [None] * len(data["z"])


def test_train_and_eval_reach_a_patched_model() -> None:
    ours, upstream = patched(HDN.build()).eval().train(), HDN.build().eval().train()
    torch.testing.assert_close(forward(ours)[0], forward(upstream)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(forward(ours.eval())[0], forward(upstream.eval())[0], rtol=1e-5, atol=1e-5)
    assert not any(block.training for block in blocks(ours).values())


@pytest.mark.parametrize("trained_patched", [True, False], ids=["patched_to_upstream", "upstream_to_patched"])
def test_a_checkpoint_loads_strictly_into_the_other_model(trained_patched: bool) -> None:
    source, target = HDN.build(), HDN.build(seed=5)
    patched(source if trained_patched else target)
    train(source, HDN, steps=2)
    assert list(source.state_dict()) == list(target.state_dict())
    target.load_state_dict(source.state_dict(), strict=True)
    inputs, _ = next(HDN.batches())
    torch.testing.assert_close(predict(target, inputs)[0], predict(source, inputs)[0], rtol=1e-5, atol=2e-6)


def test_patching_keeps_every_parameter_and_its_storage() -> None:
    model = HDN.build()
    before = {name: (p, p.data_ptr()) for name, p in model.named_parameters()}
    for switch in (patch_model, unpatch_model):
        switch(model)
        after = dict(model.named_parameters())
        assert after.keys() == before.keys()
        assert all(after[name] is p and p.data_ptr() == pointer for name, (p, pointer) in before.items())


# Where upstream stops: odd latents, and waiting for the host.


@pytest.mark.parametrize("size", [8, 24, 40])
def test_odd_latents_train_where_upstream_raises(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup("odd", TINY, {"input_shape": (size, size)})
    with pytest.raises(RuntimeError if size == 8 else AssertionError):  # max of nothing; p's crop by an odd number
        train(setup.build(), setup, steps=1)
    ours = train(patched(setup.build(), allow_oddsizes=True), setup)
    switch_off_upstream_crop(monkeypatch)
    upstream = train(setup.build(), setup)
    assert_same_losses(ours, upstream)
    assert_same_gradients(ours, upstream)


@pytest.mark.parametrize("size", [8, 24, 40])
def test_odd_latents_predict_where_upstream_raises(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup("odd", TINY, {"input_shape": (32, 32)})
    inputs = torch.randn(2, 1, size, size)
    with pytest.raises(RuntimeError if size == 8 else AssertionError):  # max of nothing; sizes of p and q differ
        predict(setup.build(), inputs)
    out, data = predict(patched(setup.build(), allow_oddsizes=True), inputs)
    assert out.shape[2:] == inputs.shape[2:]
    switch_off_upstream_crop(monkeypatch)
    expected_out, expected_data = predict(setup.build(), inputs)
    torch.testing.assert_close(out, expected_out, rtol=1e-5, atol=2e-6)
    assert_same_data(data, expected_data)


def switch_off_upstream_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    """What upstream would do if its block passed on the option it has."""
    uncropped = functools.partialmethod(UpstreamBlock.process_q_params, allow_oddsizes=True)
    monkeypatch.setattr(UpstreamBlock, "process_q_params", uncropped)


class HostReads(TorchDispatchMode):
    """Counts how often a tensor's value is asked for, which on a GPU waits for it."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))

    def start(self, *_: Any) -> None:
        self.__enter__()

    def stop(self, *_: Any) -> None:
        self.__exit__(None, None, None)


def host_reads(model: LadderVAE) -> tuple[list[int], int]:
    """Those of each block's forward, and those of the whole backward."""
    counts = []
    for block in blocks(model).values():
        reads = HostReads()
        counts.append(reads)
        block.register_forward_pre_hook(reads.start)
        block.register_forward_hook(reads.stop)
    out, data = forward(model)
    loss = out.square().mean() + sum(kl.mean() for kl in data["kl"])
    with HostReads() as backward:
        loss.backward()
    return [reads.count for reads in counts], backward.count


def test_upstream_reads_eleven_values_per_block() -> None:
    assert host_reads(HDN.build()) == ([11, 11, 11], 0)


@pytest.mark.parametrize("rng", ["torch", "philox"])
def test_a_patched_model_reads_no_value_forward_or_backward(rng: str) -> None:
    assert host_reads(patched(HDN.build(), rng=rng)) == ([0, 0, 0], 0)


class Calls(TorchDispatchMode):
    """The ATen operations inside the stochastic blocks of a model, block by block, and all those around them."""

    def __init__(self, model: LadderVAE) -> None:
        super().__init__()
        self.inside: dict[str, Counter[str]] = {}
        self.around: Counter[str] = Counter()
        self._current = self.around
        for name, block in blocks(model).items():
            block.register_forward_pre_hook(lambda *_, name=name: self._enter_block(name))
            block.register_forward_hook(lambda *_: self._leave_block())

    def _enter_block(self, name: str) -> None:
        self._current = self.inside.setdefault(name, Counter())

    def _leave_block(self) -> None:
        self._current = self.around

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._current[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def calls_of_a_prediction(model: LadderVAE) -> Calls:
    calls = Calls(model)
    model.reset_for_inference((32, 32))
    model.eval()
    with torch.no_grad(), calls:
        model(torch.randn(2, 1, 32, 32))
    return calls


@pytest.mark.parametrize("name", ["cpp", "triton"])
def test_a_prediction_is_one_pass_and_costs_nothing_where_the_model_reads_it(name: str) -> None:
    """Per block two convolutions, the noise, the pass, the views of q, and what guards the p that nobody reads."""
    with use_backend(name):
        ours = calls_of_a_prediction(patched(HDN.build()))
    upstream = calls_of_a_prediction(HDN.build())
    assert len(ours.inside) == 3
    for calls in ours.inside.values():
        assert calls["convolution"] == 2
        assert calls["step"] == 1
        assert calls.total() - calls["convolution"] <= 4, calls
    assert ours.around == upstream.around
