"""What people put around a model: Lightning, moving averages, checkpoints, compilers, exporters.

Each wraps a small LadderVAE of CAREamics with patched blocks, or one block, and has the numbers of the same thing
unwrapped. Several processes are in test_distributed.py.
"""

import functools
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch._dynamo.testing
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from ladder_kernels import NormalStochasticBlock, patch_model
from tests.careamics_models import TINY_HDN, blocks, predict, train


def build(patched: bool = True, seed: int = 0) -> nn.Module:
    model = TINY_HDN.build(seed)
    if patched:
        assert len(patch_model(model, rng="torch").patched) == 3
    return model


def batches(count: int, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    return [batch for _, batch in zip(range(count), TINY_HDN.batches(seed), strict=False)]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """With a state; and unlike Adam's, its steps are no larger than the rounding errors where a gradient is zero."""
    return torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    """And buffers."""
    torch.testing.assert_close(dict(found.state_dict()), dict(expected.state_dict()), rtol=1e-4, atol=1e-5)


# Lightning.


class Module(pl.LightningModule):
    """A LadderVAE with upstream's loss, seeded at every step: a DataLoader draws a number of its own."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self._loss = model, TINY_HDN.build_loss()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        torch.manual_seed(index)
        inputs, targets = batch
        return self._loss(self.model(inputs), targets)["loss"]

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.log("val_loss", self.training_step(batch, index))

    def predict_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return predict(self.model, batch[0], seed=index)[0]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return sgd(self)


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    return pl.Trainer(accelerator="cpu", default_root_dir=folder, num_sanity_val_steps=0, **quiet | options)


def loader(count: int, seed: int = 1) -> DataLoader:
    """Batches as they are."""
    return DataLoader(batches(count, seed), batch_size=None)


def unwrapped_numbers(module: Module, precision: str) -> tuple[float, Tensor]:
    """The validation's loss and the prediction after two steps of two batches each, without Lightning."""
    # Anew for every step: autocast keeps the weights that it has cast.
    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    optimizer = module.configure_optimizers()
    for index, batch in enumerate(batches(4)):
        with autocast():
            loss = module.training_step(batch, index) / 2
        loss.backward()
        if index % 2:
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad(), autocast():
        loss = module.eval().training_step(batches(1, seed=5)[0], 0)
    with autocast():
        return loss.item(), predict(module.model, batches(1, seed=6)[0][0], seed=0)[0]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_lightning_fits_validates_and_predicts_with_accumulated_gradients(precision: str, tmp_path: Path) -> None:
    ours = Module(build())
    lightning = trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2, precision=precision)
    lightning.fit(ours, loader(4), loader(1, seed=5))
    (validation,) = lightning.validate(ours, loader(1, seed=5), verbose=False)
    (prediction,) = lightning.predict(ours, loader(1, seed=6))
    loss, expected = unwrapped_numbers(Module(build()), precision)
    assert validation["val_loss"] == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(prediction, expected, rtol=1e-5, atol=1e-6)


def test_a_patched_model_in_lightning_follows_upstream(tmp_path: Path) -> None:
    ours, upstream = Module(build()), Module(build(patched=False))
    for module in (ours, upstream):
        trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2).fit(module, loader(4))
    assert_same_weights(ours, upstream)


@pytest.mark.parametrize("saved_patched", [False, True], ids=["saved_upstream", "saved_patched"])
@pytest.mark.parametrize("loaded_patched", [False, True], ids=["loaded_upstream", "loaded_patched"])
def test_a_lightning_checkpoint_resumes(saved_patched: bool, loaded_patched: bool, tmp_path: Path) -> None:
    """Optimizer and all, in the other model as in the same."""
    first = trainer(tmp_path, max_epochs=1)
    first.fit(Module(build(saved_patched)), loader(2))
    first.save_checkpoint(tmp_path / "last.ckpt")
    resumed = Module(build(loaded_patched, seed=5))
    trainer(tmp_path, max_epochs=2).fit(resumed, loader(2), ckpt_path=tmp_path / "last.ckpt")

    uninterrupted = Module(build(patched=False))
    trainer(tmp_path, max_epochs=2).fit(uninterrupted, loader(2))
    assert_same_weights(resumed, uninterrupted)


# Weights and gradients.


def test_a_moving_average_of_a_patched_model_follows_upstreams() -> None:
    averages = []
    for model in (build(), build(patched=False)):
        optimizer = sgd(model)
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
        for seed in range(3):
            train(model, TINY_HDN, steps=1, optimizer=optimizer, seed=seed)
            average.update_parameters(model)
        averages.append(average.module)
    ours, upstream = averages
    assert all(isinstance(block, NormalStochasticBlock) for block in blocks(ours).values())
    assert_same_weights(ours, upstream)
    inputs, _ = batches(1, seed=6)[0]
    torch.testing.assert_close(predict(ours, inputs)[0], predict(upstream, inputs)[0], rtol=1e-5, atol=1e-6)


def gradients(model: nn.Module, **checkpoint_options: bool) -> dict[str, Tensor | None]:
    """Of upstream's loss; with options, through a checkpoint around the whole model."""
    loss = TINY_HDN.build_loss()
    inputs, targets = batches(1)[0]

    def forward(inputs: Tensor) -> Tensor:
        return loss(model(inputs), targets)["loss"]

    torch.manual_seed(0)
    inputs.requires_grad_()
    out = checkpoint(forward, inputs, **checkpoint_options) if checkpoint_options else forward(inputs)
    model.zero_grad()
    out.backward()
    return {"inputs": inputs.grad, **{name: parameter.grad for name, parameter in model.named_parameters()}}


@pytest.mark.parametrize("rng", ["torch", "philox"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_checkpointed_model_has_the_same_gradients(rng: str, use_reentrant: bool) -> None:
    model = TINY_HDN.build()
    patch_model(model, rng=rng)
    expected, found = gradients(model), gradients(model, use_reentrant=use_reentrant)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


# Compilers and exporters.


# Three batch sizes by two patch sizes. Both change at first: one that changes alone is a graph more, of any code.
SIZES = [(2, 16), (3, 32), (5, 16), (2, 32), (3, 16), (5, 32)]


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("mode_pred", [False, True], ids=["training", "prediction"])
def test_a_compiled_block_has_two_graphs_for_all_sizes(backend: str, mode_pred: bool) -> None:
    """The first, and one for every size once two have been seen."""
    block = NormalStochasticBlock(4, 3, 4, vanilla_latent_hw=4)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, backend=counter, fullgraph=True)
    for batch, size in SIZES:
        p, q = torch.randn(2, batch, 4, size // 2, size // 2)
        results = []
        for call in (block, compiled):
            torch.manual_seed(0)
            out, data = call(p, q, mode_pred=mode_pred)
            loss = out.square().sum() + (data["logprob_q"] if mode_pred else data["kl_samplewise"]).sum()
            results.append((out, data["z"], *torch.autograd.grad(loss, [block.conv_in_q.weight])))
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
    assert counter.frame_count <= 2


@pytest.mark.usefixtures("fresh_compiler")
def test_a_patched_model_with_compiled_blocks_predicts_with_two_graphs_a_block() -> None:
    ours, unwrapped = build().eval(), build().eval()
    counters = []
    for block in blocks(ours).values():
        counters.append(torch._dynamo.testing.CompileCounterWithBackend("aot_eager"))
        block.compile(backend=counters[-1], fullgraph=True)
    for batch, size in SIZES:
        inputs = torch.randn(batch, 1, size, size)
        torch.testing.assert_close(predict(ours, inputs)[0], predict(unwrapped, inputs)[0], rtol=1e-4, atol=1e-5)
    assert all(1 <= counter.frame_count <= 2 for counter in counters)
