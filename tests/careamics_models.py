"""Real CAREamics LadderVAEs, small enough to train in a test: ways to set them up, to train them and to predict."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from careamics.config import LVAELossConfig
from careamics.config.architectures import LVAEConfig
from careamics.config.losses import KLLossConfig
from careamics.config.noise_model import GaussianMixtureNMConfig

try:
    from careamics.losses.lvae import lvae_losses
except ImportError:  # the name until 0.1
    from careamics.losses.lvae import losses as lvae_losses
from careamics.models.lvae import LadderVAE
from careamics.models.lvae.likelihoods import GaussianLikelihood, NoiseModelLikelihood
from careamics.models.lvae.noise_models import GaussianMixtureNoiseModel, MultiChannelNoiseModel
from careamics.models.lvae.stochastic import NormalStochasticBlock as UpstreamBlock
from torch import Tensor, nn

from ladder_kernels import NormalStochasticBlock, patch_model

Loss = Callable[[tuple[Tensor, dict[str, Any]], Tensor], dict[str, Tensor]]

DEFAULT = LVAEConfig(architecture="LVAE").model_dump()
SMALL = DEFAULT | {"input_shape": (32, 32), "z_dims": [32] * 3, "encoder_n_filters": 16, "decoder_n_filters": 16}
TINY = SMALL | {"input_shape": (16, 16), "z_dims": [16] * 3}

# Depth is never downsampled: with a stride of 2 there, the prior's shape no longer fits upstream's encoder.
TO_2D = {"input_shape": (5, 32, 32), "encoder_conv_strides": [1, 2, 2]}
TO_3D = TO_2D | {"decoder_conv_strides": [1, 2, 2]}
THIN = {"input_shape": (3, 16, 16)}
# With lateral context the latents are larger than the window of the restricted KL; without it they are the window.
CONTEXT = {"multiscale_count": 3}

# Three Gaussians, linear in the signal: their means, log-variances and log-weights.
NOISE_MODEL = (
    *((-8.0, 4.0), (0.0, 0.0), (8.0, -4.0)),
    *((5.0, 5.0), (6.0, 5.0), (6.0, 6.0)),
    *((0.0, 1.0), (1.0, 0.0), (0.0, 0.5)),
)


@dataclass(frozen=True)
class Setup:
    """One way to train a LadderVAE: the model, its loss, and the size of a batch."""

    name: str
    base: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    loss: str = "hdn"
    noise_model: bool = False  # HDN's likelihood; the other losses leave no choice
    kl_type: str = "kl"
    batch: int = 2

    @property
    def config(self) -> dict[str, Any]:
        """LadderVAE's arguments. The noise model wants no predicted log-variance, the Gaussian does."""
        channels = 1 if self.loss == "hdn" else 2
        likelihood = None if self.loss == "denoisplit" or self.noise_model else "pixelwise"
        return {**self.base, "output_channels": channels, "predict_logvar": likelihood, **self.options}

    def build(self, seed: int = 0) -> LadderVAE:
        """An upstream model in training mode; a seed gives the same weights again."""
        torch.manual_seed(seed)
        model = LadderVAE(**self.config)
        if not upstreams_prior_trains():
            for layer in model.top_down_layers[-1:]:
                nn.init.normal_(layer.top_prior_params, std=0.01)
        return model

    def build_loss(self, fused: bool = False) -> Loss:
        """Upstream's loss with real likelihoods, a noise model's fused if asked; `loss(model's outputs, targets)`."""
        config = LVAELossConfig(loss_type=self.loss, kl_params=KLLossConfig(loss_type=self.kl_type))
        gaussian = noise = None
        if self.loss in ("musplit", "denoisplit_musplit") or (self.loss == "hdn" and not self.noise_model):
            gaussian = GaussianLikelihood(predict_logvar="pixelwise", logvar_lowerbound=-5.0)
        if self.loss in ("denoisplit", "denoisplit_musplit") or self.noise_model:
            noise = noise_model_likelihood(self.config)
            assert not fused or patch_model(noise).likelihoods == [""]
        function = getattr(lvae_losses, f"{self.loss}_loss")
        return lambda outputs, targets: function(outputs, targets, config, gaussian, noise)

    def batches(self, seed: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless (inputs, targets): targets are noise, the first input channel is their sum, the others context."""
        generator = torch.Generator().manual_seed(seed)
        config, shape = self.config, self.config["input_shape"]
        while True:
            targets = torch.randn(self.batch, config["output_channels"], *shape, generator=generator)
            context = torch.randn(self.batch, config["multiscale_count"] - 1, *shape, generator=generator)
            inputs = torch.cat([targets.sum(1, keepdim=True), context], dim=1)
            if len(config["decoder_conv_strides"]) < len(shape):
                targets = targets[:, :, shape[0] // 2]
            yield inputs, targets


HDN = Setup("hdn", SMALL)
TINY_HDN = Setup("tiny", TINY)

# What a test trains. Upstream itself cannot build a decoder of more dims than its encoder, patches that are not
# square, or an even depth under a 2D decoder.
SETUPS = {
    setup.name: setup
    for setup in (
        Setup("default", DEFAULT, batch=1),
        HDN,
        Setup("hdn-noise_model", SMALL, noise_model=True),
        Setup("hdn-analytical", SMALL, {"analytical_kl": True}),
        # muSplit's loss takes the full KL whatever its configuration says.
        *(
            Setup(f"{loss}-context-{kl_type}", TINY, CONTEXT, loss=loss, kl_type=kl_type)
            for loss in ("hdn", "musplit", "denoisplit", "denoisplit_musplit")
            for kl_type in ("kl", "kl_restricted")
        ),
        Setup("musplit-context-analytical", TINY, CONTEXT | {"analytical_kl": True}, loss="musplit"),
        Setup("3d_to_2d", SMALL, TO_2D),
        Setup("3d_to_3d", SMALL, TO_3D),
        Setup("3d_to_2d-context", TINY, TO_2D | CONTEXT | THIN, loss="musplit"),
        Setup("3d_to_3d-context", TINY, TO_3D | CONTEXT | THIN, loss="denoisplit", kl_type="kl_restricted"),
    )
}

# What a test predicts, and the size of the tile. Missing is 3d_to_2d-context: its encoder crops 3D tensors to the
# tile's size and its decoder 2D ones, so upstream raises for any tile of three sizes.
TILES = [
    (SETUPS[name], tile)
    for name, tile in (
        ("hdn", (32, 32)),
        ("hdn", (64, 64)),
        ("hdn", (64, 48)),
        ("musplit-context-kl", (16, 16)),
        ("musplit-context-kl", (32, 32)),
        ("3d_to_2d", (5, 32, 32)),
        ("3d_to_3d", (5, 32, 32)),
        ("3d_to_3d", (3, 64, 64)),
        ("3d_to_3d-context", (3, 16, 16)),
    )
]


@functools.cache
def upstreams_prior_trains() -> bool:
    """Whether its learned prior, whose log-variances begin at 0, has a gradient there.

    Upstream's is that of `torch.clip` at its bound: 1 with torch 2.11, 0 with torch 2.14.
    """
    at_the_bound = torch.zeros((), requires_grad=True)
    torch.clip(at_the_bound, min=0).backward()
    return bool(at_the_bound.grad == 1)


def noise_model_likelihood(config: dict[str, Any]) -> NoiseModelLikelihood:
    """A likelihood with a noise model per output channel, for data of mean 100 and standard deviation 20."""
    models = []
    for _ in range(config["output_channels"]):
        model = GaussianMixtureNoiseModel(GaussianMixtureNMConfig(n_gaussian=3, max_signal=200.0, min_sigma=25.0))
        # Not GaussianMixtureNMConfig(weight=...): upstream serialises it to a string and then cannot read it.
        model.weight.data.copy_(torch.tensor(NOISE_MODEL))
        models.append(model)
    likelihood = NoiseModelLikelihood(MultiChannelNoiseModel(models))
    statistics = torch.ones(1, config["output_channels"], *[1] * len(config["decoder_conv_strides"]))
    likelihood.set_data_stats(100 * statistics, 20 * statistics)
    return likelihood


@dataclass
class History:
    """What some steps of training left behind."""

    losses: list[dict[str, float]] = field(default_factory=list)
    first_output: Tensor | None = None
    first_data: dict[str, Any] | None = None
    first_gradients: dict[str, Tensor | None] = field(default_factory=dict)


def train(
    model: nn.Module, setup: Setup, steps: int = 5, optimizer: torch.optim.Optimizer | None = None, seed: int = 2
) -> History:
    """Optimizer steps, every one on a new batch; `seed` fixes dropout and the latents' noise."""
    # Adam divides a gradient by its own size, so where the true one is zero (a bias ahead of a batch norm) it steps
    # by lr in the direction of the rounding errors: this rate keeps that below what the tests tolerate.
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=1e-4)
    loss, history = setup.build_loss(fused=runs_fused(model)), History()
    dtype = next(model.parameters()).dtype
    torch.manual_seed(seed)
    for step, (inputs, targets) in zip(range(steps), setup.batches(), strict=False):
        outputs = model(inputs.to(dtype))
        losses = loss(outputs, targets.to(dtype))
        optimizer.zero_grad()
        losses["loss"].backward()
        history.losses.append({name: value.item() for name, value in losses.items()})
        if step == 0:
            history.first_output, history.first_data = outputs
            history.first_gradients = {
                name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()
            }
        optimizer.step()
    return history


def predict(model: LadderVAE, inputs: Tensor, seed: int = 3) -> tuple[Tensor, dict[str, Any]]:
    """CAREamics' prediction on a tile of the inputs' size."""
    model.reset_for_inference(tuple(inputs.shape[2:]))
    model.eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        return model(inputs)


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The stochastic blocks by name, patched or not."""
    return {name: module for name, module in model.named_modules() if name.endswith("stochastic")}


def kinds(td_data: dict[str, Any]) -> dict[str, list[str]]:
    """The keys of the decoder's data and, level by level, the names of the values' types."""
    return {key: [type(value).__name__ for value in levels] for key, levels in td_data.items()}


def tensors(td_data: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor in the decoder's data, and those that StableMean and StableLogVar give."""
    found = {f"{key}[{level}]": value for key, levels in td_data.items() for level, value in enumerate(levels)}
    return {k: v if isinstance(v, Tensor) else v.get() for k, v in found.items() if v is not None}


def patched(model: LadderVAE, rng: Literal["torch", "philox"] = "torch", **block_options: Any) -> LadderVAE:
    """With upstream's noise, which every backend takes."""
    patch_model(model, rng=rng, **block_options)
    assert runs_fused(model), "a block was left unpatched"
    return model


def runs_fused(model: nn.Module) -> bool:
    return all(isinstance(block, NormalStochasticBlock) for block in blocks(model).values())


def is_upstream(model: nn.Module) -> bool:
    return all(type(block) is UpstreamBlock for block in blocks(model).values())


def assert_bitwise_equal(ours: tuple[Tensor, dict[str, Any]], upstream: tuple[Tensor, dict[str, Any]]) -> None:
    assert torch.equal(ours[0], upstream[0])
    found, expected = tensors(ours[1]), tensors(upstream[1])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def forward(model: LadderVAE, setup: Setup = HDN, seed: int = 4) -> tuple[Tensor, dict[str, Any]]:
    """Output and decoder data of one batch, with the noise of the seed."""
    inputs, _ = next(setup.batches())
    torch.manual_seed(seed)
    return model(inputs)
