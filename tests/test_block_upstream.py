"""The drop-in block beside the real CAREamics class: same weights, same seed, a float64 copy of it as the truth."""

from contextlib import contextmanager

import pytest
import torch
from careamics.models.lvae.stochastic import NormalStochasticBlock as UpstreamBlock

from ladder_kernels import NormalStochasticBlock
from tests.oracle import assert_as_exact_as_plain
from tests.pairwise import covering_rows

C_IN, C_VARS, C_OUT = 6, 4, 5
KL_KEYS = ("kl_elementwise", "kl_samplewise", "kl_samplewise_restricted", "kl_spatial", "kl_channelwise")


@contextmanager
def standard_normal(noise):
    """Lets torch.distributions draw `noise`, so that a float64 block sees what a float32 block drew."""
    original = torch.distributions.normal._standard_normal
    torch.distributions.normal._standard_normal = lambda shape, dtype, device: noise.to(dtype).view(shape)
    try:
        yield
    finally:
        torch.distributions.normal._standard_normal = original


def blocks(**settings):
    """Upstream's block, ours with its weights, and upstream's in float64."""
    settings = {"vanilla_latent_hw": 4, **settings}
    upstream = UpstreamBlock(C_IN, C_VARS, C_OUT, **settings)
    ours = NormalStochasticBlock(C_IN, C_VARS, C_OUT, **settings, rng="torch")
    ours.load_state_dict(upstream.state_dict())
    exact = UpstreamBlock(C_IN, C_VARS, C_OUT, **settings).double()
    exact.load_state_dict(upstream.state_dict())
    return upstream, ours, exact


def inputs(spatial, transform_p_params=True, p_batch=None, p_spatial=None, batch=3):
    p_channels = C_IN if transform_p_params else 2 * C_VARS
    return (
        2 * torch.randn(p_batch or batch, p_channels, *(p_spatial or spatial)),
        2 * torch.randn(batch, C_IN, *spatial),
    )


def run(block, p_params, q_params, **options):
    """Outputs, the data dict, and the gradients of a random combination of everything differentiable."""
    dtype = next(block.parameters()).dtype
    p = p_params.to(dtype).requires_grad_()
    q = None if q_params is None else q_params.to(dtype).requires_grad_()
    out, data = block(p, q, **options)
    generator = torch.Generator().manual_seed(1)
    tensors = [out] + [data[k] for k in ("z", *KL_KEYS, "logprob_q") if data.get(k) is not None]
    loss = sum((t * torch.randn(t.shape, generator=generator).to(dtype)).sum() for t in tensors)
    leaves = {"p_params": p} | ({} if q is None else {"q_params": q}) | dict(block.named_parameters())
    grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return out, data, dict(zip(leaves, grads, strict=True))


def compare(settings, given, **options):
    upstream, ours, exact = blocks(**settings)
    spatial = given[1].shape if given[1] is not None else given[0].shape
    torch.manual_seed(7)
    up_out, up_data, up_grads = run(upstream, *given, **options)
    torch.manual_seed(7)
    out, data, grads = run(ours, *given, **options)
    torch.manual_seed(7)
    noise = torch.randn(up_data["z"].shape)
    with standard_normal(noise):
        exact_out, exact_data, exact_grads = run(exact, *given, **options)

    assert spatial[2:] == up_data["z"].shape[2:]
    torch.testing.assert_close(data["z"], up_data["z"], rtol=1e-6, atol=1e-6)
    assert_as_exact_as_plain("out", out, up_out, exact_out)
    assert list(data)[: len(KL_KEYS)] == list(KL_KEYS)
    assert set(up_data) <= set(data)
    for key, expected in up_data.items():
        compare_entry(key, data[key], expected, exact_data[key])
    for name, expected in up_grads.items():
        assert (grads[name] is None) == (expected is None), name
        if expected is not None:
            assert_as_exact_as_plain(f"grad {name}", grads[name], expected, exact_grads[name])


def compare_entry(key, ours, upstream, exact):
    if upstream is None:
        assert ours is None, key
    elif key in ("p_params", "q_params"):
        assert type(ours) is tuple
        for mine, theirs in zip(ours, upstream, strict=True):
            assert type(mine).__name__ == type(theirs).__name__
            assert mine.is_3D == theirs.is_3D
            torch.testing.assert_close(mine.get(), theirs.get())
        torch.testing.assert_close(ours[1].get_std(), upstream[1].get_std())
        torch.testing.assert_close(ours[1].get_var(), upstream[1].get_var())
    elif isinstance(upstream, torch.Tensor):
        assert ours.dtype == upstream.dtype, key
        assert_as_exact_as_plain(key, ours, upstream, exact)
    else:
        # Upstream's qvar_max without q is the int 0; ours is always a tensor.
        assert key == "qvar_max"
        assert ours.item() == upstream


# The restricted window of a rectangle is ours, not upstream's: where sizes differ it is left out.
WHOLE = {"vanilla_latent_hw": 100}
CASES = {
    "2D": ({}, inputs_2d := {"spatial": (8, 8)}),
    "2D, packed p": ({"transform_p_params": False}, inputs_2d),
    "2D, prior of batch 1": ({"transform_p_params": False}, {**inputs_2d, "p_batch": 1}),
    "2D, wide": (WHOLE, {"spatial": (8, 10)}),
    "2D, odd rows": (WHOLE, {"spatial": (7, 8)}),
    "2D, kernel 1": ({"kernel": 1}, inputs_2d),
    "3D": ({"conv_dims": 3}, {"spatial": (3, 6, 6)}),
    "3D, prior of batch 1": ({"conv_dims": 3, "transform_p_params": False}, {"spatial": (3, 6, 6), "p_batch": 1}),
}


CHOICES = {
    "case": tuple(CASES),
    "analytical_kl": (False, True),
    "naive": (False, True),
    "var_clip_max": (None, 20.0, -0.3),
}
ROWS = [tuple(row[name] for name in CHOICES) for row in covering_rows(CHOICES, lambda row: True)]


@pytest.mark.parametrize(tuple(CHOICES), ROWS)
def test_training(backend, case, analytical_kl, naive, var_clip_max):
    settings, shapes = CASES[case]
    given = inputs(**shapes, transform_p_params=settings.get("transform_p_params", True))
    settings = {**settings, "use_naive_exponential": naive}
    compare(settings, given, analytical_kl=analytical_kl, var_clip_max=var_clip_max)


@pytest.mark.parametrize("transform_p_params", [True, False])
def test_training_with_a_larger_p(backend, transform_p_params):
    given = inputs((8, 8), transform_p_params, p_spatial=(12, 12))
    compare({"transform_p_params": transform_p_params}, given, var_clip_max=20.0)


@pytest.mark.parametrize("spatial", [(8, 8), (9, 9), (7, 8)], ids=str)
@pytest.mark.parametrize("use_uncond_mode", [False, True])
@pytest.mark.parametrize("p_spatial", [None, (6, 6)])
def test_prediction(backend, spatial, use_uncond_mode, p_spatial):
    """In prediction upstream crops odd squares too, and p's size does not matter."""
    upstream, ours, _ = blocks()
    p, q = inputs(spatial, p_spatial=p_spatial)
    results = []
    for block in (upstream, ours):
        torch.manual_seed(7)
        with torch.no_grad():
            results.append(block(p, q, mode_pred=True, use_uncond_mode=use_uncond_mode, var_clip_max=20.0))
    (up_out, up_data), (out, data) = results
    torch.testing.assert_close(out, up_out, rtol=1e-6, atol=1e-6)
    assert list(data) == list(up_data)
    mean, logvar, _ = ours.process_p_params(p, 20.0)
    for key, expected in up_data.items():
        compare_entry(key, (mean, logvar) if key == "p_params" else data[key], expected, expected)


@pytest.mark.parametrize("p_batch", [3, 1])
@pytest.mark.parametrize("mode_pred", [False, True])
def test_generation_from_p(backend, p_batch, mode_pred):
    given = (inputs((9, 9), p_batch=p_batch)[0], None)
    compare({}, given, mode_pred=mode_pred, var_clip_max=20.0)


@pytest.mark.parametrize("conv_dims", [1, 2, 3])
def test_a_seed_gives_upstreams_weights(conv_dims):
    torch.manual_seed(0)
    upstream = UpstreamBlock(C_IN, C_VARS, C_OUT, conv_dims)
    torch.manual_seed(0)
    ours = NormalStochasticBlock(C_IN, C_VARS, C_OUT, conv_dims)
    assert list(ours.state_dict()) == list(upstream.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), upstream.parameters(), strict=True))


def test_state_dicts_load_both_ways():
    upstream, ours, _ = blocks(transform_p_params=False)
    upstream.load_state_dict(ours.state_dict())
    assert not any(key.startswith("conv_in_p") for key in ours.state_dict())


def test_upstreams_public_attributes_are_kept():
    upstream, ours, _ = blocks()
    # `training` and every name without a Module's own underscore dicts.
    names = {n for n in vars(upstream) if n in ("_vanilla_latent_hw", "_use_naive_exponential") or n[0] != "_"}
    assert {n: getattr(ours, n) for n in names} == {n: getattr(upstream, n) for n in names}


@pytest.mark.parametrize("analytical_kl", [False, True])
@pytest.mark.parametrize("mode_pred", [False, True])
def test_the_stages_return_upstreams_values(analytical_kl, mode_pred):
    upstream, ours, _ = blocks()
    p_features, q_features = inputs((9, 9))
    stages = []
    for block in (upstream, ours):
        q_mean, q_logvar, q = block.process_q_params(q_features, 20.0)
        p_mean, p_logvar, p = block.process_p_params(p_features[..., :8, :8], 20.0)
        torch.manual_seed(3)
        samples = [
            block.get_z(q, None, False, False),
            block.get_z(q, None, True, False),
            block.get_z(q, None, True, True),
            block.get_z(q, torch.ones(1), False, False),
            block.sample_from_q(q_features, 20.0),
        ]
        metrics = block.compute_kl_metrics(
            p, (p_mean, p_logvar), q, (q_mean, q_logvar), mode_pred, analytical_kl, samples[0]
        )
        stages.append((samples, list(metrics), [v for v in metrics.values() if v is not None]))
    for theirs, mine in zip(*stages, strict=True):
        if isinstance(theirs[0] if theirs else "", str):
            assert mine == theirs
        else:
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_odd_sizes_can_be_allowed_in_a_stage():
    upstream, ours, _ = blocks()
    _, q_features = inputs((9, 9))
    for block in (upstream, ours):
        assert block.process_q_params(q_features, None, allow_oddsizes=True)[0].get().shape[-1] == 9
        assert block.process_q_params(q_features, None)[0].get().shape[-2:] == (8, 8)
