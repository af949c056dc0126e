"""patch_model on CAREamics' noise-model likelihood: what stays true of a patched one, and why one is left alone."""

import copy
import pickle

import pytest
import torch
from careamics.models.lvae.likelihoods import NoiseModelLikelihood
from careamics.models.lvae.noise_models import GaussianMixtureNoiseModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ladder_kernels import patch_model, unpatch_model, use_backend
from tests.careamics_models import noise_model_likelihood

CONFIG = {"output_channels": 2, "decoder_conv_strides": [2, 2]}
PREDICTION, TARGET = torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4)


def upstream(channels=2):
    return noise_model_likelihood({**CONFIG, "output_channels": channels})


def patched(channels=2):
    likelihood = upstream(channels)
    report = patch_model(likelihood)
    assert (report.likelihoods, report.skipped) == ([""], {})
    return likelihood


def value_and_gradient(likelihood, channels=2):
    prediction = PREDICTION[:, :channels].clone().requires_grad_()
    value, parts = likelihood(prediction, TARGET[:, :channels])
    assert parts.keys() == {"mean", "mode", "sample", "params", "logvar"}
    return value, torch.autograd.grad(value.mean(), prediction)[0]


@pytest.mark.parametrize("channels", [1, 2])
def test_values_and_gradients_are_upstreams(channels):
    found, expected = (value_and_gradient(each(channels), channels) for each in (patched, upstream))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_wherever_it_hangs_in_the_report_and_back():
    module = nn.Sequential(nn.Module())
    module[0].nm_likelihood = upstream()
    state = module.state_dict()
    report = patch_model(module)
    assert report == patch_model(module)
    assert report.likelihoods == ["0.nm_likelihood"]
    assert "the likelihood 0.nm_likelihood runs fused" in str(report)
    assert type(module[0].nm_likelihood) is not NoiseModelLikelihood
    assert isinstance(module[0].nm_likelihood, NoiseModelLikelihood)
    assert module.state_dict().keys() == state.keys()
    assert unpatch_model(module) == ["0.nm_likelihood"]
    assert type(module[0].nm_likelihood) is NoiseModelLikelihood


@pytest.mark.parametrize("make_copy", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_is_patched_alike(make_copy):
    likelihood = patched()
    assert type(make_copy(likelihood)) is type(likelihood)
    assert torch.equal(value_and_gradient(make_copy(likelihood))[0], value_and_gradient(likelihood)[0])


def test_a_noise_model_for_all_channels_and_statistics_without_dims():
    found = []
    for each in (upstream(), patched()):
        each.noiseModel = each.noiseModel.nmodel_0
        each.set_data_stats(100.0, 20.0)
        found.append(value_and_gradient(each))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


def test_statistics_that_are_not_per_channel_go_upstreams_way():
    found = []
    for each in (upstream(), patched()):
        each.set_data_stats(torch.linspace(90, 110, 4), torch.full((4,), 20.0))
        found.append(value_and_gradient(each)[0])
    assert torch.equal(*found)


def test_without_statistics_the_error_is_upstreams():
    likelihood = patched()
    likelihood.data_mean = None
    with pytest.raises(RuntimeError, match="data_mean and data_std must be set"):
        value_and_gradient(likelihood)


def test_the_noise_models_weights_train_where_they_are_told_to():
    found = []
    for each in (upstream(), patched()):
        each.noiseModel.nmodel_1._set_model_mode("train")
        each(PREDICTION, TARGET)[0].mean().backward()
        assert each.noiseModel.nmodel_0.weight.grad is None
        found.append(each.noiseModel.nmodel_1.weight.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


class OtherNoiseModel(nn.Module):
    def likelihood(self, obs, signal):
        return torch.ones_like(obs)


class Changed(GaussianMixtureNoiseModel):
    def likelihood(self, observations, signals):
        return 2 * super().likelihood(observations, signals)


def changed(likelihood):
    likelihood.noiseModel.nmodel_1.__class__ = Changed


def another(likelihood):
    likelihood.noiseModel = OtherNoiseModel()


def unequal(likelihood):
    likelihood.noiseModel.nmodel_1.weight = nn.Parameter(torch.zeros(6, 2))


def replaced(likelihood):
    likelihood.log_likelihood = lambda x, params: x


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed, "of its noise model, it adds or overrides likelihood"),
        (another, "its noise model is a OtherNoiseModel"),
        (unequal, "different numbers of Gaussians"),
        (replaced, "it adds or overrides log_likelihood"),
    ],
)
def test_another_likelihood_is_left_alone_with_a_reason(change, reason):
    likelihood = upstream()
    change(likelihood)
    report = patch_model(likelihood)
    assert report.likelihoods == []
    assert reason in report.skipped[""]
    assert type(likelihood) is NoiseModelLikelihood


class _Launches(TorchDispatchMode):
    """Counts what makes a tensor out of others: on a GPU a launch each, an operator of ours included."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name()
        if not function.is_view and "empty" not in name and "detach" not in name:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def test_launches_of_a_step_with_two_channels():
    """Weights and constants are gathered, one kernel forward, one backward."""
    likelihood, prediction = patched(), PREDICTION.clone().requires_grad_()
    with use_backend("triton"), _Launches() as launches:
        value, _ = likelihood(prediction, TARGET)
        torch.autograd.grad(value, prediction, torch.ones_like(value))
    ours = [name for name in launches.names if "ones" not in name]
    assert sorted(ours) == ["aten::stack", "aten::stack", "ladder_kernels::mixture", "ladder_kernels::mixture_backward"]
