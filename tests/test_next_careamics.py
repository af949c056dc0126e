"""CAREamics' block as its next version has it: no `analytical_kl`, and odd heights and widths cropped one by one.

What it does there was seen in its public branches; the class here is today's source with the same behaviour.
"""

import inspect
import pickle
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from careamics.models.lvae import stochastic
from torch import Tensor, nn

from ladder_kernels import NormalStochasticBlock, patch_model, unpatch_model
from tests.careamics_models import SETUPS, TINY_HDN

EDITS = {
    "        analytical_kl: bool,\n": "",
    "        analytical_kl: bool = False,\n": "",
    "            if analytical_kl:\n": "            if False:\n",
    "mode_pred, analytical_kl, z\n": "mode_pred, z\n",
    # Both dims even where the last is odd, and to the last's size; then each for itself, down to 1.
    ", allow_oddsizes: bool = False\n": "\n",
    "if q_mu.shape[-1] % 2 == 1 and allow_oddsizes is False:": "for dim in (-2, -1):",
    "q_mu = F.center_crop(q_mu, q_mu.shape[-1] - 1)": "even = max(q_mu.shape[dim] // 2 * 2, 1)",
    "q_lv = F.center_crop(q_lv, q_lv.shape[-1] - 1)": (
        "q_mu, q_lv = q_mu.narrow(dim, 0, even), q_lv.narrow(dim, 0, even)"
    ),
}


def next_block() -> type:
    """The class of that version: today's source without the argument."""
    source = inspect.getsource(stochastic.NormalStochasticBlock)
    for old, new in EDITS.items():
        assert old in source
        source = source.replace(old, new)
    namespace = dict(vars(stochastic))
    exec(source, namespace)
    return namespace["NormalStochasticBlock"]


NextBlock = next_block()


def model(block: type = NextBlock, conv_dims: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(block(4, 3, 4, conv_dims=conv_dims, vanilla_latent_hw=4))


def run(block: nn.Module, spatial: tuple[int, ...] = (8, 8), **options: Any) -> tuple[Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    p, q = torch.randn(2, 3, 4, *spatial, generator=generator)
    torch.manual_seed(2)
    return block(p_params=p, q_params=q, var_clip_max=20.0, **options)


def test_the_class_has_no_such_arguments() -> None:
    for method in (NextBlock.forward, NextBlock.compute_kl_metrics):
        assert "analytical_kl" not in inspect.signature(method).parameters
    assert "allow_oddsizes" not in inspect.signature(NextBlock.process_q_params).parameters


@pytest.mark.parametrize("mode_pred", [False, True])
def test_a_patched_block_has_its_numbers(mode_pred: bool) -> None:
    ours, upstream = model(), model()
    assert patch_model(ours, rng="torch").patched == ["0"]
    (out, data), (expected_out, expected) = run(ours[0], mode_pred=mode_pred), run(upstream[0], mode_pred=mode_pred)
    torch.testing.assert_close(out, expected_out, rtol=1e-5, atol=1e-6)
    assert list(data) == list(expected)
    for key in ("z", "kl_elementwise", "kl_samplewise", "kl_samplewise_restricted", "kl_spatial", "kl_channelwise"):
        torch.testing.assert_close(data[key], expected[key], rtol=1e-4, atol=1e-5)


def as_sizes(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


@pytest.mark.parametrize(
    ("spatial", "expected"),
    [
        ((15, 16), (14, 16)),
        ((9, 16), (8, 16)),
        ((15, 1), (14, 1)),
        ((1, 7), (1, 6)),
        ((1, 1), (1, 1)),
        ((9, 9), (8, 8)),
        ((6, 5, 8), (6, 4, 8)),
        ((5, 5, 5), (5, 4, 4)),
    ],
    ids=as_sizes,
)
def test_a_patched_block_crops_height_and_width_each_by_itself(
    spatial: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    ours, upstream = model(conv_dims=len(spatial)), model(conv_dims=len(spatial))
    patch_model(ours, rng="torch")
    out, expected_out = (run(block[0], spatial, mode_pred=True)[0] for block in (ours, upstream))
    assert out.shape[2:] == expected
    torch.testing.assert_close(out, expected_out, rtol=1e-5, atol=1e-6)
    _, training = run(ours[0], spatial)  # where upstream raises: p is cropped with q
    assert training["kl_spatial"].shape[1:] == training["z"].shape[2:] == expected


@pytest.mark.parametrize(
    ("spatial", "expected"),
    [((15, 16), (15, 16)), ((9, 9), (8, 8)), ((6, 5, 8), (6, 5, 8)), ((5, 5, 5), (5, 4, 4))],
    ids=as_sizes,
)
def test_beside_it_a_patched_block_of_today_crops_as_ever(spatial: tuple[int, ...], expected: tuple[int, ...]) -> None:
    today = model(stochastic.NormalStochasticBlock, conv_dims=len(spatial))
    patch_model(nn.ModuleList([model(), today]), rng="torch")
    assert run(today[0], spatial, mode_pred=True)[0].shape[2:] == expected


def test_odd_sizes_are_kept_where_that_is_asked_for() -> None:
    ours = model()
    patch_model(ours, allow_oddsizes=True)
    assert run(ours[0], (15, 17))[0].shape[2:] == (15, 17)


def metrics_of(block: nn.Module, *analytical_kl: bool, by_name: bool = False) -> dict[str, Tensor]:
    p_features, q_features = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    *p_params, p = block.process_p_params(p_features, 20.0)
    *q_params, q = block.process_q_params(q_features, 20.0)
    z = q.mean + 0.3 * q.stddev
    last = {"z": z} if by_name else {}
    return block.compute_kl_metrics(
        p, tuple(p_params), q, tuple(q_params), False, *analytical_kl, *[z][by_name:], **last
    )


@pytest.mark.parametrize("by_name", [False, True])
def test_the_metrics_can_be_asked_for_in_either_form(by_name: bool) -> None:
    upstream = model()[0]
    ours = NormalStochasticBlock(4, 3, 4, vanilla_latent_hw=4)
    ours.load_state_dict(upstream.state_dict())
    expected = metrics_of(upstream, by_name=by_name)
    for found in (metrics_of(ours, by_name=by_name), metrics_of(ours, False, by_name=by_name)):
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
    analytic = metrics_of(ours, True, by_name=by_name)["kl_samplewise"]
    assert not torch.allclose(analytic, expected["kl_samplewise"], rtol=1e-2)


# What its `predict(n_predictions=N)` calls.


class Predictor(pl.LightningModule):
    """A Lightning module of that version, as far as it predicts: `n_samples` whole passes of one input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.n_samples = model, 1

    def predict_sample(self, x: Tensor) -> Tensor:
        return self.model(x)[0]

    def predict_step(self, batch: tuple[Tensor], index: int) -> tuple[Tensor, Tensor]:
        (x,) = batch
        self.model.reset_for_inference(tuple(x.shape[2:]))
        samples = torch.stack([self.predict_sample(x) for _ in range(self.n_samples)])
        return samples.mean(0), samples.std(0)


class MirroringPredictor(Predictor):
    """Predicts another input every time."""

    def predict_sample(self, x: Tensor) -> Tensor:
        return super().predict_sample(x.flip(-1)).flip(-1) + super().predict_sample(x)


class NetPredictor(Predictor):
    """Whose model hangs under another name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(nn.Identity())
        self.net = model

    def predict_sample(self, x: Tensor) -> Tensor:
        return self.net(x)[0]

    def predict_step(self, batch: tuple[Tensor], index: int) -> tuple[Tensor, Tensor]:
        samples = torch.stack([self.predict_sample(batch[0]) for _ in range(self.n_samples)])
        return samples.mean(0), samples.std(0)


def predicted(module: Predictor, shape: tuple[int, ...] = (2, 1, 16, 16)) -> tuple[tuple[Tensor, Tensor], int]:
    """Four samples, and how many bottom-up passes they took."""
    passes: list[int] = []
    ladder = getattr(module, "net", module.model)
    hook = ladder.first_bottom_up.register_forward_hook(lambda *_: passes.append(1))
    module.eval().n_samples = 4
    torch.manual_seed(0)
    with torch.inference_mode():
        step = module.predict_step((torch.randn(shape),), 0)
    hook.remove()
    return step, len(passes)


@pytest.mark.parametrize("setup", [TINY_HDN, SETUPS["3d_to_2d"]], ids=lambda setup: setup.name)
def test_the_predictions_of_a_patched_module_share_the_bottom_up_pass(setup: Any) -> None:
    module, shape = Predictor(setup.build()), (2, 1, *setup.config["input_shape"])
    report = patch_model(module.model, rng="torch")
    assert report.predictors == []
    expected, passes = predicted(module, shape)
    assert passes == 4
    report = patch_model(module, rng="torch")
    assert report.predictors == [""]
    assert "predictions of the model share one bottom-up pass" in str(report)
    found, passes = predicted(module, shape)
    assert passes == 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert isinstance(module, Predictor)
    assert not {"bottomup_pass", "topdown_pass"} & set(vars(module.model))


def test_a_module_whose_model_has_another_name_shares_it_too() -> None:
    module = NetPredictor(TINY_HDN.build())
    module.net.mode_pred = True
    expected, passes = predicted(module)
    assert passes == 4
    assert patch_model(module, rng="torch").predictors == [""]
    found, passes = predicted(module)
    assert passes == 1
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_another_input_has_its_own_bottom_up_pass() -> None:
    module = MirroringPredictor(TINY_HDN.build())
    expected, _ = predicted(module)
    patch_model(module, rng="torch")
    found, passes = predicted(module)
    assert passes == 8
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_patched_module_can_be_patched_again_pickled_and_unpatched() -> None:
    module = Predictor(TINY_HDN.build())
    expected, _ = predicted(module)
    for _ in range(2):
        patch_model(module, rng="torch")
    for layer in module.model.bottom_up_layers:
        layer.output_expected_shape = None  # upstream's generator, which no pickle takes
    assert predicted(pickle.loads(pickle.dumps(module)))[1] == 1
    assert "" in unpatch_model(module)
    assert type(module) is Predictor
    found, passes = predicted(module)
    assert passes == 4
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
