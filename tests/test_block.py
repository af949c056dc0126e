"""The drop-in block where upstream raises, is silently wrong or does needless work: section 3 of docs/design.md."""

import copy
import pickle

import pytest
import torch
from torch.distributions import Normal
from torch.utils._python_dispatch import TorchDispatchMode

from ladder_kernels.noise import philox_normal
from ladder_kernels.variance import VarianceMap
from tests import oracle
from tests.blocks import KEYS, KL_KEYS, block, features


def assert_follows_the_formula(p, q, data, **options):
    """The metrics in `data` are those of the packed parameters p and q at data's z."""
    latent = data["z"].detach()
    exact = oracle.step(
        q.double(), p.double(), latent=latent.double(), **{"variance": VarianceMap("stable"), **options}
    )
    for name in ("kl_elementwise", "kl_samplewise", "kl_samplewise_restricted", "kl_spatial", "logprob_q"):
        torch.testing.assert_close(data[name].double(), exact[name], rtol=1e-4, atol=1e-4)


class Operations(TorchDispatchMode):
    """Counts the ATen operations that run inside."""

    def __enter__(self):
        self.counts = {}
        return super().__enter__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("analytical_kl", [False, True], ids=["mc", "analytic"])
@pytest.mark.parametrize(
    ("conv_dims", "p_spatial", "q_spatial"),
    [(1, (9,), (6,)), (2, (12, 10), (8, 8)), (2, (8, 8), (8, 8)), (3, (3, 8, 8), (3, 6, 6)), (3, (5, 6, 8), (3, 6, 6))],
)
def test_a_larger_p_is_cropped_to_its_centre(backend, analytical_kl, conv_dims, p_spatial, q_spatial):
    module = block(conv_dims=conv_dims, transform_p_params=False)
    p, q = features(*p_spatial, channels=8).requires_grad_(), features(*q_spatial)
    _, data = module(p, q, analytical_kl=analytical_kl)
    centre = p.detach()
    for dim, (have, want) in enumerate(zip(p_spatial, q_spatial, strict=True), start=2):
        centre = centre.narrow(dim, (have - want) // 2, want)
    assert_follows_the_formula(centre, module.conv_in_q(q).detach(), data, analytical_kl=analytical_kl)
    data["kl_samplewise"].sum().backward()
    used = p.grad.abs().sum((0, 1)) > 0
    assert used.sum() == torch.Size(q_spatial).numel()


@pytest.mark.parametrize("mode_pred", [False, True])
def test_a_forced_latent_is_z(backend, mode_pred):
    module = block()
    p, q, latent = features(8, 8), features(8, 8), torch.randn(3, 4, 8, 8, requires_grad=True)
    out, data = module(p, q, forced_latent=latent, mode_pred=mode_pred)
    assert data["z"] is latent
    assert torch.equal(out, module.conv_out(latent))
    if not mode_pred:
        assert_follows_the_formula(module.conv_in_p(p), module.conv_in_q(q), data)
        data["kl_samplewise"].sum().backward()
        assert latent.grad.abs().min() > 0


def test_a_forced_latent_needs_no_q(backend):
    latent = torch.randn(3, 4, 8, 8)
    assert block()(features(8, 8), forced_latent=latent)[1]["z"] is latent


@pytest.mark.parametrize("mode_pred", [False, True])
@pytest.mark.parametrize("with_q", [False, True])
def test_constant_output_is_the_first_sample_and_p(backend, mode_pred, with_q):
    module = block()
    p, q = features(8, 8), features(8, 8) if with_q else None
    out, data = module(p, q, force_constant_output=True, mode_pred=mode_pred)
    p_of_data = () if with_q and mode_pred else data["p_params"]
    for tensor in (data["z"], out, *(parameter.get() for parameter in p_of_data)):
        assert tensor.shape[0] == 3
        torch.testing.assert_close(tensor, tensor[:1].expand_as(tensor))
    assert data["z"][0].std() > 0
    if with_q and not mode_pred:
        assert_follows_the_formula(module.conv_in_p(p)[:1], module.conv_in_q(q), data)


def test_without_vanilla_latent_hw_restricted_is_samplewise(backend):
    _, data = block()(features(8, 8), features(8, 8))
    assert torch.equal(data["kl_samplewise_restricted"], data["kl_samplewise"])


@pytest.mark.parametrize(
    ("spatial", "vanilla_latent_hw", "window"),
    [
        ((16, 32), 8, (slice(4, 12), slice(12, 20))),
        ((16, 16), 13, (slice(1, 15), slice(1, 15))),
        ((4, 16), 8, (slice(0, 4), slice(4, 12))),
        ((8, 8), 9, (slice(0, 8), slice(0, 8))),
    ],
    ids=["5: rows and columns apart", "6: odd difference", "5: rows smaller", "7: larger than the latent"],
)
def test_restricted_window(backend, spatial, vanilla_latent_hw, window):
    _, data = block(vanilla_latent_hw=vanilla_latent_hw)(features(*spatial), features(*spatial))
    expected = data["kl_elementwise"][..., window[0], window[1]].flatten(1).sum(1)
    torch.testing.assert_close(data["kl_samplewise_restricted"], expected, rtol=1e-5, atol=1e-4)
    assert (data["kl_samplewise_restricted"] != 0).all()


ODD = {
    "10: only the odd dim": ((16, 15), (16, 14)),
    "10: never padded": ((9, 15), (8, 14)),
    "11: odd rows alone are kept": ((15, 16), (15, 16)),
    "12: size one is kept": ((1, 1), (1, 1)),
    "12: one row": ((1, 5), (1, 4)),
    "9: both": ((15, 15), (14, 14)),
}


@pytest.mark.parametrize(("spatial", "expected"), ODD.values(), ids=ODD)
@pytest.mark.parametrize("mode_pred", [False, True])
def test_odd_sizes_are_cropped_with_p(backend, spatial, expected, mode_pred):
    module = block()
    p, q = features(*spatial), features(*spatial)
    out, data = module(p, q, mode_pred=mode_pred)
    assert data["z"].shape[2:] == expected
    assert out.shape[2:] == expected
    if not mode_pred:
        corner = (..., slice(expected[0]), slice(expected[1]))
        assert_follows_the_formula(module.conv_in_p(p)[corner], module.conv_in_q(q)[corner], data)


@pytest.mark.parametrize("mode_pred", [False, True])
def test_odd_sizes_are_kept_when_allowed(backend, mode_pred):
    out, data = block(allow_oddsizes=True)(features(15, 17), features(15, 17), mode_pred=mode_pred)
    assert data["z"].shape[2:] == out.shape[2:] == (15, 17)


@pytest.mark.parametrize(("p_spatial", "q_spatial"), [((1, 8), (8, 8)), ((6, 6), (8, 8)), ((8, 4), (8, 8))])
def test_a_p_that_does_not_cover_q_is_an_error_with_both_shapes(p_spatial, q_spatial):
    with pytest.raises(ValueError, match=r"\(3, 8, \d, \d\).*\(3, 8, 8, 8\)"):
        block()(features(*p_spatial), features(*q_spatial))


def test_wrong_channels_of_a_packed_p_are_an_error():
    with pytest.raises(ValueError, match="2 \\* c_vars = 8"):
        block(transform_p_params=False)(features(8, 8), features(8, 8))


@pytest.mark.parametrize("with_q", [False, True])
@pytest.mark.parametrize("mode_pred", [False, True])
def test_use_uncond_mode_is_the_mean_in_prediction_alone(backend, with_q, mode_pred):
    q = features(8, 8) if with_q else None
    _, data = block()(features(8, 8), q, use_uncond_mode=True, mode_pred=mode_pred)
    mean = data["q_params" if with_q else "p_params"][0].get()
    assert torch.equal(data["z"], mean) == mode_pred


@pytest.mark.parametrize("with_q", [False, True])
@pytest.mark.parametrize("mode_pred", [False, True])
@pytest.mark.parametrize("naive", [False, True])
def test_qvar_max_is_a_detached_tensor(backend, with_q, mode_pred, naive):
    module = block(use_naive_exponential=naive)
    q = features(8, 8) if with_q else None
    _, data = module(features(8, 8), q, mode_pred=mode_pred, var_clip_max=0.3)
    assert data["qvar_max"].shape == ()
    assert not data["qvar_max"].requires_grad
    expected = data["q_params"][1].get().max() if with_q else torch.tensor(0.0)
    torch.testing.assert_close(data["qvar_max"], expected.detach())


@pytest.mark.parametrize("with_q", [False, True])
@pytest.mark.parametrize("mode_pred", [False, True])
def test_all_keys_are_always_there(backend, with_q, mode_pred):
    _, data = block()(features(8, 8), features(8, 8) if with_q else None, mode_pred=mode_pred)
    assert isinstance(data, dict)
    assert data.keys() == KEYS
    empty = {key for key in KEYS if data[key] is None}
    assert empty == (KL_KEYS if mode_pred or not with_q else set()) | (set() if with_q else {"q_params", "logprob_q"})


def test_shapes_in_3d(backend):
    _, data = block(conv_dims=3)(features(2, 6, 8), features(2, 6, 8))
    assert data["kl_spatial"].shape == (3, 2, 6, 8)
    assert data["kl_elementwise"].shape == data["z"].shape == (3, 4, 2, 6, 8)
    assert data["kl_channelwise"].shape == (3, 4)


@pytest.mark.parametrize("analytical_kl", [False, True], ids=["mc", "analytic"])
def test_nan_propagates_without_a_host_synchronisation(backend, analytical_kl):
    q = features(8, 8)
    q[1, 0, 0, 0] = torch.nan
    q.requires_grad_()
    with Operations() as operations:
        _, data = block()(features(8, 8), q, analytical_kl=analytical_kl, var_clip_max=20.0)
        data["kl_samplewise"].sum().backward()
    assert "_local_scalar_dense" not in operations.counts
    assert "is_nonzero" not in operations.counts
    assert data["kl_samplewise"].isnan().tolist() == [False, True, False]
    assert data["qvar_max"].isnan()


@pytest.mark.parametrize("where", ["p_params", "q_params", "forced_latent"])
def test_validate_args_raises_upstreams_error_with_one_synchronisation(where):
    module = block(validate_args=True)
    given = {"p_params": features(8, 8), "q_params": features(8, 8), "forced_latent": torch.randn(3, 4, 8, 8)}
    with Operations() as operations:
        module(**given)
    assert operations.counts["_local_scalar_dense"] == 1
    given[where][0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"Expected parameter loc|forced_latent"):
        module(**given)
    with pytest.raises(ValueError, match=r"Expected parameter loc|forced_latent"):
        module(**given, mode_pred=where != "p_params")


def test_naive_variances_may_underflow(backend):
    module = block(use_naive_exponential=True, transform_p_params=False)
    torch.nn.init.constant_(module.conv_in_q.bias, -120.0)
    q = features(8, 8).requires_grad_()
    _, data = module(features(8, 8, channels=8), q)
    (data["kl_samplewise"].sum() + data["z"].sum()).backward()
    assert data["kl_samplewise"].isfinite().all()
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("magnitude", [1e1, 1e3, 1e4])
def test_log_q_of_a_sample_does_not_cancel(backend, magnitude):
    """Upstream's (z - mean)^2 / (2 std^2) is off by up to 1.8 per element at a mean of 1e4 and a std of 1e-3."""
    module = block(kernel=1, rng="torch")
    torch.nn.init.zeros_(module.conv_in_q.weight)
    torch.nn.init.constant_(module.conv_in_q.bias[:4], magnitude)
    torch.nn.init.constant_(module.conv_in_q.bias[4:], -200.0)
    p, q = features(8, 8), features(8, 8)
    torch.manual_seed(0)
    _, data = module(p, q)
    torch.manual_seed(0)
    eps = torch.randn(3, 4, 8, 8).double()
    log_std = torch.tensor(1e-6).double().log() / 2
    expected = (-(eps**2) / 2 - log_std - torch.tensor(2 * torch.pi).double().log() / 2).flatten(1).sum(1)
    torch.testing.assert_close(data["logprob_q"].double(), expected, rtol=1e-5, atol=0)


def test_prediction_does_no_needless_work(backend):
    module = block()
    with Operations() as operations, torch.no_grad():
        _, data = module(features(12, 12), features(8, 8), mode_pred=True, var_clip_max=20.0)
    assert operations.counts["convolution"] == 2
    expected = Normal(data["q_params"][0].get(), data["q_params"][1].get_std()).log_prob(data["z"])
    torch.testing.assert_close(data["logprob_q"], expected.flatten(1).sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spatial", [(8, 8), (9, 9)])
def test_sample_from_q_follows_q(backend, spatial):
    module, q = block(), features(*spatial)
    torch.manual_seed(0)
    z = module.sample_from_q(q, 20.0)
    torch.manual_seed(0)
    _, data = module(q, q, mode_pred=True, var_clip_max=20.0)
    assert torch.equal(z, data["z"])
    assert z.shape[2:] == (8, 8)


def test_philox_noise_of_a_block_is_that_of_its_seed(backend):
    module, q = block(rng="philox"), features(8, 8)
    torch.manual_seed(5)
    _, data = module(q, q)
    torch.manual_seed(5)
    seed = torch.randint(2**63 - 1, (), dtype=torch.int64)
    mean, logvar = data["q_params"]
    expected = mean.get() + logvar.get_std() * philox_normal(seed, data["z"].numel(), torch.float32).view(3, 4, 8, 8)
    torch.testing.assert_close(data["z"], expected, rtol=0, atol=1e-5)


def test_gradients_reach_every_parameter(backend):
    module = block()
    out, data = module(features(8, 8), features(8, 8))
    (out.sum() + data["kl_samplewise"].sum()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in module.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_block_in_another_dtype(backend, dtype):
    module = block().to(dtype)
    out, data = module(features(8, 8).to(dtype), features(8, 8).to(dtype))
    assert out.dtype == data["z"].dtype == dtype
    assert data["kl_samplewise"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_autocast_keeps_the_sums_and_the_noise_in_float32(backend):
    module, p, q = block(), features(8, 8), features(8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out, data = module(p, q)
    assert out.dtype == data["z"].dtype == torch.bfloat16
    assert data["kl_samplewise"].dtype == torch.float32
    (out.float().sum() + data["kl_samplewise"].sum()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_copies_and_pickles(backend):
    module, p, q = block(rng="philox"), features(8, 8), features(8, 8)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.manual_seed(0)
        expected, _ = module(p, q)
        torch.manual_seed(0)
        assert torch.equal(twin(p, q)[0], expected)


@pytest.mark.parametrize(
    ("settings", "message"), [({"kernel": 2}, "kernel"), ({"conv_dims": 4}, "conv_dims"), ({"rng": "numpy"}, "rng")]
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        block(**settings)


def test_a_forced_latent_of_another_shape_is_an_error():
    for options in ({}, {"mode_pred": True}):
        with pytest.raises(ValueError, match=r"\(3, 4, 8, 8\)"):
            block()(features(8, 8), features(8, 8), forced_latent=torch.randn(3, 4, 7, 8), **options)


@pytest.mark.parametrize("rng", [None, "torch", "philox"])
def test_a_generator_is_drawn_from_instead_of_the_default_one(backend, rng):
    ours, p, q = block(rng=rng), features(4, 4), features(4, 4)
    calls = (
        lambda g: ours(p, q, generator=g)[1]["z"],
        lambda g: ours(p, q, mode_pred=True, generator=g)[1]["z"],
        lambda g: ours(p, generator=g)[1]["z"],
        lambda g: ours.sample_from_q(q, None, generator=g),
    )
    for call in calls:
        state = torch.get_rng_state()
        z = call(torch.Generator(p.device).manual_seed(3))
        assert torch.equal(call(torch.Generator(p.device).manual_seed(3)), z)
        assert torch.equal(torch.get_rng_state(), state)
