"""The look-alikes beside upstream's StableMean and StableLogVar."""

import pytest
import torch
from careamics.models.lvae.utils import StableLogVar as UpstreamLogVar
from careamics.models.lvae.utils import StableMean as UpstreamMean

from ladder_kernels.params import StableLogVar, StableMean, parameter_pair
from ladder_kernels.variance import VarianceMap


@pytest.mark.parametrize("stable", [True, False])
def test_values_are_upstreams(stable):
    logvar = torch.cat([torch.linspace(-30, 30, 101), torch.tensor([0.0, -0.0, 1e-7, -1e-7])]).view(1, 1, 105, 1)
    ours, theirs = StableLogVar(logvar, stable), UpstreamLogVar(logvar, stable)
    for method in ("get", "get_var", "get_std"):
        torch.testing.assert_close(getattr(ours, method)(), getattr(theirs, method)())
    assert torch.equal(ours._lv, theirs._lv)
    assert StableLogVar(logvar, var_eps=0.5).get_var().min() >= 0.5 - 1e-7


def test_the_clamp_is_applied_when_read():
    logvar = StableLogVar(
        torch.tensor([-1.0, 3.0, torch.nan]).view(1, 1, 3), variance=VarianceMap("stable", raw_max=2.0)
    )
    torch.testing.assert_close(logvar._lv.flatten(), torch.tensor([-1.0, 2.0, torch.nan]), equal_nan=True)


@pytest.mark.parametrize(("size", "have"), [(6, (8, 8)), (4, (8, 8)), (8, (8, 8))])
def test_centre_crop_is_upstreams(size, have):
    tensor = torch.randn(2, 3, *have)
    for ours, theirs in ((StableMean(tensor), UpstreamMean(tensor)), (StableLogVar(tensor), UpstreamLogVar(tensor))):
        ours.centercrop_to_size(size)
        theirs.centercrop_to_size(size)
        assert torch.equal(ours.get(), theirs.get())


def test_centre_crop_works_in_3d_and_names_sizes_that_do_not_fit():
    mean = StableMean(torch.randn(1, 2, 3, 8, 9))
    assert mean.is_3D
    mean.centercrop_to_size((6, 5))
    assert mean.get().shape == (1, 2, 3, 6, 5)
    with pytest.raises(ValueError, match=r"\(3, 6, 5\).*\(3, 7, 7\)"):
        mean.centercrop_to_size(7)


def test_a_pair_is_two_views():
    packed = torch.randn(2, 6, 4)
    mean, logvar = parameter_pair(packed, VarianceMap("stable"))
    assert mean.get().data_ptr() == packed.data_ptr()
    assert torch.equal(torch.cat([mean.get(), logvar._lv], 1), packed)
    assert not mean.is_3D
