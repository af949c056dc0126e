"""Other VAEs as oracles: the real class of diffusers, and the formulas of `tests/peers.py`.

torch.distributions is the oracle of every other test as well; here it meets each ready-made map.
"""

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders import autoencoder_kl
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as Upstream

from ladder_kernels import DiagonalGaussianDistribution, VarianceMap, normal_sample_kl
from tests import oracle
from tests.against_oracle import check
from tests.inputs import options, packed, tensors
from tests.peers import PEERS

# An image and a video of odd sizes, whose channels are no power of two.
SHAPES = {"image": (2, 3, 5, 7), "video": (2, 3, 3, 4, 5)}
MAPS = {
    name: getattr(VarianceMap, name)()
    for name in ("careamics", "juglab_hdn", "diffusers", "vdvae", "cosdd", "efficient_vdvae")
}


@pytest.mark.parametrize("name", PEERS)
def test_the_step_is_the_peers(backend, name):
    peer = PEERS[name]
    shape = SHAPES["image"]
    q, p, noise = packed(shape), packed(shape), torch.randn(shape)
    # The last channel holds raw spreads in either order of channels.
    for row, bound in enumerate((peer.variance.raw_min, peer.variance.raw_max)):
        if bound is not None:
            q[:, -1, row] = bound + (2 * row - 1)
    incoming = torch.randn(shape), torch.randn(shape[0])

    def ours(q, p, noise):
        q_params, p_params = peer.prepare(q, p)
        step = normal_sample_kl(
            q_params, p_params, variance=peer.variance, analytical_kl=peer.analytical_kl, noise=noise
        )
        return step.z, step.kl_samplewise

    compare(ours, peer.step, (q, p), noise, incoming)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("analytic", [False, True], ids=["mc", "analytic"])
def test_a_ready_made_map_is_that_of_torch_distributions(backend, name, analytic):
    check(tensors(SHAPES["image"], "noise"), options("noise", analytical_kl=analytic, variance=MAPS[name]))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("prior", ["standard", "other", "other, batch 1"])
def test_kl_is_that_of_diffusers(backend, shape, prior):
    given = [wide(shape)] if prior == "standard" else [wide(shape), wide((1 if "1" in prior else shape[0], *shape[1:]))]

    def kl(cls):
        return lambda *given: summed(cls(given[0]).kl(*map(cls, given[1:])))

    compare(kl(DiagonalGaussianDistribution), kl(Upstream), given, None, torch.randn(shape[0]))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dims", [None, [1, 2, 3], [1], [-1, 2]], ids=str)
def test_nll_is_that_of_diffusers(backend, shape, dims):
    incoming = torch.randn(torch.zeros(shape).sum(dims or tuple(range(1, len(shape)))).shape)

    def ours(parameters, z):
        return DiagonalGaussianDistribution(parameters).nll(z, dims)

    def theirs(parameters, z):
        return summed(Upstream(parameters).nll(z)) if dims is None else Upstream(parameters).nll(z, dims)

    compare(ours, theirs, [packed(shape), torch.randn(shape)], None, incoming)


@pytest.mark.parametrize("seeded", ["manual_seed", "generator", "a generator each"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_sample_is_that_of_diffusers_with_the_same_noise(backend, seeded, dtype):
    shape = SHAPES["video"]
    parameters, incoming = packed(shape, dtype), torch.randn(shape, dtype=torch.float64)

    def sample(cls):
        def run(parameters):
            torch.manual_seed(5)
            generators = [torch.Generator().manual_seed(seed) for seed in range(shape[0])]
            given = {"manual_seed": None, "generator": generators[0], "a generator each": generators}
            return cls(parameters).sample(given[seeded])

        return run

    ours, theirs = (differentiated(sample(cls), [parameters], incoming) for cls in PAIR)
    for name, mine, upstreams in zip(("z", "gradient"), ours, theirs, strict=True):
        # Three operations, each rounded to the parameters' dtype, against one rounding.
        error = 4 * torch.finfo(dtype).eps * upstreams.abs().max().item()
        torch.testing.assert_close(mine, upstreams, rtol=0, atol=error, msg=lambda text, name=name: f"{name}: {text}")


def test_the_mode_and_the_attributes_are_those_of_diffusers():
    parameters = wide(SHAPES["image"])
    for deterministic in (False, True):
        ours, theirs = (cls(parameters, deterministic) for cls in PAIR)
        assert ours.parameters is parameters
        assert ours.deterministic == theirs.deterministic
        for name in ("mean", "logvar", "std", "var"):
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
        assert torch.equal(ours.mode(), theirs.mode())


def test_a_deterministic_distribution_is_its_mean(backend):
    parameters = wide(SHAPES["video"])
    ours, theirs = (cls(parameters, deterministic=True) for cls in PAIR)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert torch.equal(ours.sample(), theirs.mean)
    torch.set_rng_state(state)
    assert torch.equal(ours.sample(), theirs.sample())
    z = torch.randn_like(theirs.mean)
    # Upstream's are one zero on the CPU, which a caller broadcasts.
    for mine, upstreams in ((ours.kl(), theirs.kl()), (ours.nll(z), theirs.nll(z))):
        assert torch.equal(mine, upstreams.expand(2))
        assert mine.device == parameters.device
    assert ours.nll(z, [1]).shape == (2, 3, 4, 5)
    assert (DiagonalGaussianDistribution(parameters).kl(ours) == torch.inf).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sums_of_16_bits_do_not_overflow(backend, dtype):
    # 1e5 in each of 8 x 8 elements is more than float16 holds.
    parameters = torch.cat([torch.full((1, 1, 8, 8), 200.0), torch.zeros(1, 1, 8, 8)], 1).to(dtype).requires_grad_()
    kl = DiagonalGaussianDistribution(parameters).kl()
    assert kl.dtype == torch.float32
    assert kl.item() == 64 * 200.0**2 / 2
    kl.sum().backward()
    assert torch.equal(parameters.grad[:, 0].float(), torch.full((1, 8, 8), 200.0))


def test_a_value_does_not_depend_on_when_an_attribute_was_read():
    parameters = packed(SHAPES["image"]).requires_grad_()
    distribution = DiagonalGaussianDistribution(parameters)
    with torch.no_grad():
        distribution.std.mean()
    assert distribution.std.requires_grad


def test_it_compiles_whole(backend, monkeypatch):
    monkeypatch.undo()  # no compiler sees through the functions that the fixture wraps
    parameters = packed(SHAPES["image"]).requires_grad_()

    def losses(parameters):
        posterior = DiagonalGaussianDistribution(parameters)
        return posterior.sample(), posterior.kl(), posterior.nll(posterior.mode()), posterior.std

    results = []
    for function in (losses, torch.compile(losses, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(5)
        outputs = function(parameters)
        results.append([*outputs, *torch.autograd.grad(sum(x.sum() for x in outputs), parameters)])
    for compiled, eager in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)


def test_it_serves_in_an_autoencoder_of_diffusers(monkeypatch):
    model = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, latent_channels=2)
    images = torch.randn(1, 3, 8, 8)
    found = []
    for cls in PAIR:
        monkeypatch.setattr(autoencoder_kl, "DiagonalGaussianDistribution", cls)
        posterior = model.encode(images).latent_dist
        assert type(posterior) is cls
        generator = torch.Generator().manual_seed(5)
        reconstructed = model(images, sample_posterior=True, generator=generator).sample
        loss = (reconstructed - images).square().mean() + posterior.kl().mean()
        found.append([loss, *torch.autograd.grad(loss, list(model.encoder.parameters()))])
    for mine, upstreams in zip(*found, strict=True):
        torch.testing.assert_close(mine, upstreams, rtol=1e-4, atol=1e-5)


PAIR = (DiagonalGaussianDistribution, Upstream)


def wide(shape):
    """Parameters of which some lie outside of the clamp."""
    mean, raw = packed(shape).chunk(2, dim=1)
    # Not at the bound itself, where the gradient of torch.clamp depends on torch's version.
    raw[:, :, 0] = torch.tensor([-40.0, 20.25, 19.75]).view(3, *[1] * (raw.dim() - 3))
    return torch.cat([mean, raw], 1)


def summed(values):
    """Upstream's sums over [1, 2, 3], which leave the last dim of a video."""
    return values.flatten(1).sum(1) if values.dim() > 1 else values


def differentiated(function, given, incoming):
    """The outputs of a call, and the gradients at what it was given."""
    leaves = [x.detach().clone().requires_grad_() for x in given]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    incoming = incoming if isinstance(incoming, tuple) else (incoming,)
    pairs = zip(incoming, outputs, strict=True)
    return [*outputs, *torch.autograd.grad(outputs, leaves, [grad.to(output.dtype) for grad, output in pairs])]


def compare(ours, theirs, given, noise, incoming):
    """Values and gradients of ours in float32 within the bound of theirs in float32, against theirs in float64."""
    extra = {} if noise is None else {"noise": noise}
    mine = differentiated(lambda *leaves: ours(*leaves, **extra), given, incoming)
    plain = differentiated(lambda *leaves: theirs(*leaves, **extra), given, incoming)
    doubles = [x.double() for x in given]
    exact = differentiated(lambda *leaves: theirs(*leaves, **oracle.cast(extra, torch.float64)), doubles, incoming)
    for index, found in enumerate(zip(mine, plain, exact, strict=True)):
        oracle.assert_as_exact_as_plain(f"result {index}", *(x.detach() for x in found))
