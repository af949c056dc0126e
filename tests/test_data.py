"""The block's `data` is a plain dict: no value depends on when, where or how it is read."""

import copy
import io
import math
import pickle

import pytest
import torch
import torch.distributed as dist
from torch.utils import _pytree

from ladder_kernels import NormalStochasticBlock
from ladder_kernels.params import StableLogVar, StableMean
from tests.blocks import KEYS
from tests.ranks import on_every_rank

TENSORS = sorted(KEYS - {"p_params", "q_params"})


def block(**settings):
    return NormalStochasticBlock(6, 4, 5, vanilla_latent_hw=4, **settings)


def features(requires_grad=False):
    return torch.randn(3, 6, 8, 8, requires_grad=requires_grad)


def predict(module, p, q, **options):
    return module(p, q, mode_pred=True, var_clip_max=20.0, **options)[1]


def test_it_is_a_plain_dict_of_tensors(backend):
    _, data = block()(features(), features())
    assert type(data) is dict
    assert all(isinstance(data[key], torch.Tensor) for key in TENSORS)


def test_a_kl_first_read_without_gradients_still_has_one(backend):
    q = features(requires_grad=True)
    _, data = block()(features(), q)
    with torch.no_grad():
        data["kl_elementwise"].mean()  # for a log
    weights = torch.randn(3)
    by_elements = torch.autograd.grad((data["kl_elementwise"].flatten(1).sum(1) * weights).sum(), q, retain_graph=True)
    by_samples = torch.autograd.grad((data["kl_samplewise"] * weights).sum(), q)
    torch.testing.assert_close(by_elements[0], by_samples[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rng", ["torch", "philox"])
def test_the_elementwise_kl_is_that_of_the_sample_drawn(backend, rng):
    _, data = block(rng=rng)(features(), features())
    torch.testing.assert_close(data["kl_elementwise"].sum(1), data["kl_spatial"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mode_pred", [False, True])
def test_z_edited_in_place_changes_nothing_else(backend, mode_pred):
    with torch.no_grad():
        _, data = block()(features(), features(), mode_pred=mode_pred)
        before = {key: data[key].clone() for key in TENSORS if data[key] is not None and key != "z"}
        mean, logvar = (parameter.get().clone() for parameter in data["q_params"])
        data["z"].zero_()
    assert all(torch.equal(data[key], value) for key, value in before.items())
    assert torch.equal(data["q_params"][0].get(), mean)
    assert torch.equal(data["q_params"][1].get(), logvar)


@pytest.mark.parametrize("mode_pred", [False, True])
def test_torchs_tree_functions_see_every_tensor(backend, mode_pred):
    _, data = block()(features(), features(), mode_pred=mode_pred)
    leaves = _pytree.tree_leaves(data)
    assert all(leaf is None or isinstance(leaf, torch.Tensor) for leaf in leaves)
    assert any(leaf is not None and leaf.requires_grad for leaf in leaves)
    detached = _pytree.tree_map(lambda leaf: None if leaf is None else leaf.detach(), data)
    assert not any(leaf is not None and leaf.requires_grad for leaf in _pytree.tree_leaves(detached))
    assert isinstance(detached["q_params"][0], StableMean)
    assert isinstance(detached["q_params"][1], StableLogVar)
    for parameter, original in zip(detached["q_params"], data["q_params"], strict=True):
        assert torch.equal(parameter.get(), original.get())
    assert detached["q_params"][1]._variance == data["q_params"][1]._variance
    if mode_pred:
        assert_p_is_absent(detached)


@pytest.mark.parametrize("mode_pred", [False, True])
def test_vmap_returns_all_of_it(backend, mode_pred):
    module, (p, q) = block(), torch.randn(2, 2, 3, 6, 8, 8)

    def call(p, q):
        _, data = module(p, q, mode_pred=mode_pred)
        return {key: value for key, value in data.items() if value is not None}

    together = torch.vmap(call, randomness="different")(p, q)
    _, one = module(p[1], q[1], mode_pred=mode_pred)
    for parameter, expected in zip(together["q_params"], one["q_params"], strict=True):
        torch.testing.assert_close(parameter.get()[1], expected.get())
    if mode_pred:
        assert_p_is_absent(together)


@pytest.mark.parametrize("mode_pred", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_it_can_be_exported_and_saved(backend, mode_pred, strict, monkeypatch):
    monkeypatch.undo()  # a strict export does not trace what poisons torch.empty

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block()

        def forward(self, p, q):
            return self.block(p, q, mode_pred=mode_pred)

    model, inputs = Model(), (features(), features())
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, inputs, strict=strict), file)
    file.seek(0)
    program = torch.export.load(file)
    torch.manual_seed(0)
    out, data = program.module()(*inputs)
    torch.manual_seed(0)
    expected_out, expected = model(*inputs)
    torch.testing.assert_close(out, expected_out)
    for key in TENSORS:
        assert (data[key] is None) == (expected[key] is None)
        if data[key] is not None:
            torch.testing.assert_close(data[key], expected[key])
    for parameter, original in zip(data["q_params"], expected["q_params"], strict=True):
        torch.testing.assert_close(parameter.get(), original.get())
    if mode_pred:
        assert_p_is_absent(data)


# p of a prediction from q, which is not computed: it could only be computed late, with other weights.


def assert_p_is_absent(data):
    mean, logvar = data["p_params"]
    assert isinstance(mean, StableMean)
    assert isinstance(logvar, StableLogVar)
    reads = [mean.get, logvar.get, logvar.get_std, logvar.get_var, lambda: mean._mean, lambda: logvar._lv]
    reads += [lambda: mean.is_3D, lambda: mean.centercrop_to_size(2)]
    for read in reads:
        with pytest.raises(RuntimeError, match=r"process_p_params\(p_features, var_clip_max\)"):
            read()


@pytest.mark.parametrize("options", [{}, {"transform_p_params": False}], ids=["features", "packed"])
def test_p_of_a_prediction_from_q_is_not_computed_and_says_so(backend, options):
    module, calls = block(**options), []
    if module.transform_p_params:
        module.conv_in_p.register_forward_hook(lambda *_: calls.append(1))
    p = torch.randn(3, 6 if module.transform_p_params else 8, 8, 8)
    with torch.no_grad():
        data = predict(module, p, features())
    assert_p_is_absent(data)
    assert calls == []
    mean, logvar, _ = module.process_p_params(p, 20.0)  # what the error names
    assert mean.get().shape == logvar.get().shape == (3, 4, 8, 8)


def test_p_of_a_prediction_without_q_is_there(backend):
    module, p = block(), features()
    with torch.no_grad():
        data = predict(module, p, None)
        expected = module.conv_in_p(p)[:, :4]
    torch.testing.assert_close(data["p_params"][0].get(), expected)


def test_an_override_of_a_stage_sees_p_of_a_prediction(backend):
    module, p = block(), features()
    module.get_z = module.get_z
    data = predict(module, p, features())
    torch.testing.assert_close(data["p_params"][0].get(), module.conv_in_p(p)[:, :4])


def test_copies_and_pickles_carry_the_values_and_what_is_not_there(backend):
    with torch.no_grad():
        data = predict(block(), features(), features())
        for twin in (copy.deepcopy(data), copy.copy(data), pickle.loads(pickle.dumps(data))):
            assert_p_is_absent(twin)
            for parameter, original in zip(twin["q_params"], data["q_params"], strict=True):
                assert torch.equal(parameter.get(), original.get())


# When a parameter is read.


# p of a prediction is not there.
EVERY_PARAMETER = [("p_params", False), ("q_params", False), ("q_params", True)]


@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize(("key", "mode_pred"), EVERY_PARAMETER)
def test_parameters_have_the_gradient_mode_of_the_call(backend, enabled, mode_pred, key):
    with torch.set_grad_enabled(enabled):
        _, data = block()(features(), features(), mode_pred=mode_pred)
    with torch.set_grad_enabled(not enabled):
        assert all(parameter._tensor.requires_grad == enabled for parameter in data[key])


@pytest.mark.parametrize(("key", "mode_pred"), EVERY_PARAMETER)
def test_parameters_first_read_in_inference_mode_are_those_of_the_call(backend, mode_pred, key):
    _, data = block()(features(), features(), mode_pred=mode_pred)
    with torch.inference_mode():
        mean = data[key][0].get()
    assert not mean.is_inference()
    assert mean.requires_grad


@pytest.mark.parametrize("mode_pred", [False, True])
def test_force_constant_output_copies_p_and_z(backend, mode_pred):
    _, data = block()(features(), features(), force_constant_output=True, mode_pred=mode_pred)
    for tensor in (data["z"],) if mode_pred else (data["z"], data["p_params"][0].get()):
        assert all(torch.equal(tensor[0], sample) for sample in tensor)
    mean, std = data["q_params"][0].get(), data["q_params"][1].get_std()
    log_q = -(((data["z"] - mean) / std) ** 2) / 2 - std.log() - math.log(2 * math.pi) / 2
    torch.testing.assert_close(data["logprob_q"], log_q.flatten(1).sum(1), rtol=1e-4, atol=1e-3)


# Wrappers that look for tensors in what the block returns.


def ddp_of_the_kl_alone(rank, world, results):
    torch.manual_seed(0)
    model = torch.nn.parallel.DistributedDataParallel(block(), find_unused_parameters=True)
    torch.manual_seed(1 + rank)
    for key in ("kl_samplewise", "kl_elementwise"):
        model.zero_grad()
        _, data = model(features(), features())
        data[key].sum().backward()
        used = [p.grad for n, p in model.module.named_parameters() if not n.startswith("conv_out")]
        gathered = [torch.zeros_like(used[0]) for _ in range(world)]
        dist.all_gather(gathered, used[0])
        results[f"{key} {rank}"] = (
            all(grad is not None and grad.abs().sum() > 0 for grad in used),
            torch.equal(*gathered),
        )


def fsdp_of_the_data_alone(rank, world, results):
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = block()
    fully_shard(model)
    torch.manual_seed(1 + rank)
    _, data = model(features(), features())
    (data["kl_samplewise"].sum() + data["q_params"][0].get().sum()).backward()
    used = [p for n, p in model.named_parameters() if not n.startswith("conv_out")]
    results[f"{rank}"] = (all(p.grad is not None for p in used), True)


@pytest.mark.parametrize("target", [ddp_of_the_kl_alone, fsdp_of_the_data_alone])
def test_distributed_wrappers_give_gradients_to_a_loss_of_data_alone(target):
    results = on_every_rank(target)
    assert results
    assert all(value == (True, True) for value in results.values()), results
